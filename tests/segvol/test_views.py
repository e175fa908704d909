"""Prompts and masks between SegVol's looks at a volume, against resized maps of them."""

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from torch.nn import functional

from promptseg.networks.prompt_encoder import Query
from promptseg.segvol.views import (
    NOTHING_HERE,
    CoarseMask,
    grown_to_patch,
    in_patch_of_region,
    in_region,
    is_prompt,
    region_starts,
)

SHAPES = [(21, 30, 17), (8, 50, 40), (3, 11, 90)]
PATCH_SIZE = (8, 24, 20)


def cube(shape, box) -> torch.Tensor:
    """(1, 1, z, y, x): 1 in a half-open box."""
    volume = torch.zeros(1, 1, *shape)
    volume[(0, 0, *(slice(int(a), int(b)) for a, b in zip(*box, strict=True)))] = 1
    return volume


def tight_box(volume: torch.Tensor) -> np.ndarray | None:
    voxels = (volume > 0).reshape(volume.shape[-3:]).nonzero().numpy()
    return np.stack([voxels.min(0), voxels.max(0) + 1]) if len(voxels) else None


def random_box(shape, rng) -> np.ndarray:
    ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in shape]
    return np.array(ends).T


def whole(shape) -> np.ndarray:
    return np.array([(0, 0, 0), shape])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_goes_to_the_patch_as_a_cube_of_voxels_would(shape):
    rng = np.random.default_rng(0)
    for _ in range(40):
        box = random_box(shape, rng)
        expected = tight_box(
            functional.interpolate(cube(shape, box), PATCH_SIZE, mode="nearest-exact")
        )
        moved = in_region(Query(box=box), whole(shape), PATCH_SIZE).box
        if expected is None:  # so thin that resizing loses it: one voxel of its place is kept
            scale = np.divide(PATCH_SIZE, shape)
            assert (moved[0] < moved[1]).all()
            assert (moved[0] < box[1] * scale).all() and (box[0] * scale < moved[1]).all()
        else:
            np.testing.assert_array_equal(moved, expected)


def test_boxes_between_voxels_become_the_voxels_with_their_centres_inside():
    def moved(box):
        query = in_region(Query(box=np.array(box)), np.array([[2, 3, 4], [9, 23, 34]]), (7, 20, 30))
        return query.box if query.box is None else query.box.tolist()

    assert moved([[4.4, 5.6, 6.5], [5.6, 7.4, 7.6]]) == [[2, 3, 2], [4, 4, 4]]
    assert moved([[4.6, 5.6, 6.6], [5.2, 5.7, 6.8]]) == [[2, 2, 2], [3, 3, 3]]  # no centre inside
    assert moved([[0, 0, 0], [50, 50, 50]]) == [[0, 0, 0], [7, 20, 30]]
    assert moved([[0, 0, 0], [2, 50, 50]]) is None
    assert moved([[9, 4, 5], [12, 8, 9]]) is None


def test_points_go_to_the_voxel_they_lie_in_and_none_beyond_the_region():
    region = np.array([[2, 3, 4], [9, 23, 34]])  # 7 x 20 x 30, resized to 14 x 10 x 30
    points = [[2, 3, 4], [8, 22, 33], [1, 5, 5], [5, 4, 10], [9, 5, 5], [5, 5, 34]]
    query = in_region(Query(points=points, point_labels=[1, 0, 1, 1, 0, 1]), region, (14, 10, 30))
    # (2 - 2 + 0.5) * 2 = 1; (22 - 3 + 0.5) / 2 = 9.75; (5 - 2 + 0.5) * 2 = 7, (4 - 3 + 0.5) / 2
    assert query.points.tolist() == [[1, 0, 0], [13, 9, 29], [7, 0, 6]]
    assert query.point_labels.tolist() == [1, 0, 1]
    assert is_prompt(query) and not is_prompt(Query(label=3)) and is_prompt(Query(box=region))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_coarse_mask_is_what_resizing_it_to_the_volume_gives(shape):
    rng = np.random.default_rng(1)
    for _ in range(30):
        box = random_box(PATCH_SIZE, rng)
        small = cube(PATCH_SIZE, box) * (torch.rand(1, 1, *PATCH_SIZE) < 0.3)
        large = functional.interpolate(small, shape, mode="nearest")[0, 0]
        coarse = CoarseMask(small[0, 0].numpy() > 0, shape)
        expected = tight_box(large)
        if expected is None:
            assert coarse.box() is None
        else:
            np.testing.assert_array_equal(coarse.box(), expected)
        part = random_box(shape, rng)
        inside = large[tuple(slice(a, b) for a, b in zip(*part, strict=True))]
        expected, found = tight_box(inside), coarse.box_in(part)
        if expected is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected + part[0])


def test_a_mask_that_falls_between_the_voxels_of_a_smaller_volume_is_nothing():
    mask = np.zeros((8, 4, 4), bool)
    mask[5] = True  # of 8 coarse slices the volume's 3 take 0, 2 and 5
    assert CoarseMask(mask, (3, 4, 4)).box().tolist() == [[2, 0, 0], [3, 4, 4]]
    mask = np.zeros((8, 4, 4), bool)
    mask[6:] = True
    assert CoarseMask(mask, (3, 4, 4)).box() is None


def literal_region(low, high, patch_size, shape) -> tuple[int, int]:
    """One axis of SegVol's region, with inclusive ends as it counts; returns half-open ones."""
    extent = high - low + 1
    padding = max(0, patch_size - extent)
    low, high = max(0, low - padding // 2), min(shape, high + padding // 2)
    return low, min(high + 1, shape)  # what its slices take


def test_the_region_grows_as_segvols_does():
    rng = np.random.default_rng(2)
    for shape in SHAPES:
        for _ in range(50):
            box = random_box(shape, rng)
            expected = [
                literal_region(a, b - 1, w, n)
                for a, b, w, n in zip(*box, PATCH_SIZE, shape, strict=True)
            ]
            grown = grown_to_patch(box, PATCH_SIZE, shape)
            np.testing.assert_array_equal(grown, np.array(expected).T)


@pytest.mark.parametrize("step_size", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("shape", [(8, 24, 20), (9, 25, 61), (30, 24, 39), (16, 100, 20)])
def test_patches_of_a_region_are_monais(shape, step_size):
    interval = [
        w if n == w else max(int(w * step_size), 1) for n, w in zip(shape, PATCH_SIZE, strict=True)
    ]
    slices = dense_patch_slices(shape, PATCH_SIZE, interval)
    expected = sorted([s.start for s in patch_size] for patch_size in slices)
    assert region_starts(shape, PATCH_SIZE, step_size).tolist() == expected


def test_a_region_smaller_than_the_patch_lies_in_its_middle():
    # MONAI pads (w - n) // 2 before and the rest behind
    assert region_starts((5, 23, 20), PATCH_SIZE, 0.5).tolist() == [[-1, 0, 0]]
    assert region_starts((1, 2, 30), PATCH_SIZE, 0.5).tolist() == [[-3, -11, 0], [-3, -11, 10]]


REGION = np.array([[1, 10, 0], [7, 30, 20]])  # 6 x 20 x 20: padded by 1 and 2 along z and y
START = np.array([-1, -2, 0])


@pytest.fixture
def coarse() -> CoarseMask:
    """Of a volume of one voxel a coarse voxel: found in [2, 4) x [12, 16) x [3, 9)."""
    mask = np.zeros((8, 48, 40), bool)
    mask[2:4, 12:16, 3:9] = True
    return CoarseMask(mask, (8, 48, 40))


FOUND = np.array([[2, 12, 3], [4, 16, 9]]) - REGION[0] - START


def asked(query, coarse, start=START, alone=True) -> Query:
    return in_patch_of_region(query, coarse, REGION, start, PATCH_SIZE, alone)


def test_one_patch_is_asked_with_the_given_box_where_the_padding_puts_it(coarse):
    box = np.array([[0, 11.6, 2], [5, 20, 50]])  # reaches beyond the region along z and x
    query = asked(Query(label=1, box=box), coarse)
    assert query.label == 1
    # z 1..5 -> 0..4 of the region, 1..5 of the patch; y 12..20 -> 2..10, 4..12; x 2..20
    assert query.box.tolist() == [[1, 4, 2], [5, 12, 20]]


def test_a_box_that_misses_the_region_gives_way_to_what_was_found(coarse):
    query = asked(Query(box=np.array([[0, 40, 30], [8, 48, 40]])), coarse)
    np.testing.assert_array_equal(query.box, FOUND)


def test_of_several_patches_each_is_asked_with_what_was_found_in_it(coarse):
    box = np.array([[1, 10, 0], [7, 30, 20]])
    for query in (Query(box=box), Query(points=[[3, 13, 4]], point_labels=[1])):
        np.testing.assert_array_equal(asked(query, coarse, alone=False).box, FOUND)
    start = np.array([-1, 15, 0])  # rows 25 on, where nothing was found
    np.testing.assert_array_equal(asked(Query(box=box), coarse, start, False).box, NOTHING_HERE)
    start = np.array([-1, 4, 0])  # rows 14 on: two of the four rows, the patch's first
    found = asked(Query(box=box), coarse, start, False).box
    assert found.tolist() == [[2, 0, 3], [4, 2, 9]]


def test_points_are_those_of_the_patch_and_come_with_the_box_of_what_was_found(coarse):
    points = [[3, 13, 4], [0, 13, 4], [6, 29, 19], [5, 30, 4]]  # second and last: not in the region
    query = asked(Query(points=points, point_labels=[1, 1, 0, 1]), coarse)
    assert query.points.tolist() == [[3, 5, 4], [6, 21, 19]]
    assert query.point_labels.tolist() == [1, 0]
    np.testing.assert_array_equal(query.box, FOUND)


def test_a_name_alone_stays_a_name_alone(coarse):
    query = asked(Query(label=2), coarse, alone=False)
    assert query.label == 2 and query.box is None and not len(query.points)
