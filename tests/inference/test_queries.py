"""Prompts as queries: where they are answered, by which patches, and what these are asked."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.inference.queries import (
    GIVEN,
    FlatBox,
    ImageQuery,
    as_queries,
    flat_axis,
    flipped,
    in_patch,
    patch_around,
    patches_of_queries,
    patches_that_meet,
    region_of,
)
from promptseg.inference.sliding_window import patches_of_regions
from promptseg.networks.names import SURE
from promptseg.networks.prompt_encoder import NO_LABEL, Query
from promptseg.prompts.types import make_prompts

PATCH_SIZE = (8, 12, 16)


@pytest.mark.parametrize(
    ("lower", "upper", "margin"),
    [
        ((40, 40, 40), (44, 46, 48), (1, 1.5, 2)),  # a quarter of the sides 4, 6, 8
        ((40, 40, 40), (47.6, 51, 56), (0.2, 0.5, 0)),  # as much as the patch has room for
        ((40, 20, 10), (60, 140, 190), (2, 3, 4)),  # a quarter of the patch: 2, 3, 4
    ],
)
def test_a_box_is_widened_by_a_quarter_as_far_as_the_patch_allows(lower, upper, margin):
    query = Query(label=0, box=np.array([lower, upper], float))
    region = region_of(query, (100, 200, 300), PATCH_SIZE)
    np.testing.assert_allclose(region, [np.subtract(lower, margin), np.add(upper, margin)])


def test_only_patches_that_meet_the_box_are_kept_and_all_without_a_box():
    starts = np.array([[0, 0, 0], [8, 0, 0], [8, 12, 15], [9, 0, 0], [4, 5, 40]])
    query = Query(label=0, box=np.array([[8.0, 1, 2], [9.0, 30, 31]]))
    kept = patches_that_meet(query, starts, PATCH_SIZE)
    np.testing.assert_array_equal(kept, starts[[1, 2]])  # the others end at 8, begin at 9 or 40
    assert patches_that_meet(Query(label=0), starts, PATCH_SIZE) is starts


@pytest.mark.parametrize("seed", range(20))
def test_no_patch_sees_an_empty_box_and_together_they_see_all_of_it(seed):
    rng = np.random.default_rng(seed)
    shape, patch_size = np.array([60, 90, 300]), rng.integers(1, 12, 3)
    corners = np.sort(rng.uniform(0, shape, (2, 3)), axis=0)
    query = Query(label=0, box=corners + [[0], [0.1]])
    query.box[1] = np.minimum(query.box[1], shape)
    [starts] = patches_of_regions(shape, patch_size, [region_of(query, shape, patch_size)])
    starts = patches_that_meet(query, starts, patch_size)
    boxes = np.array([in_patch(query, start, patch_size).box for start in starts])
    assert (boxes[:, 0] < boxes[:, 1]).all()
    for axis in range(3):
        pieces = np.unique((boxes + starts[:, None])[:, :, axis], axis=0)
        assert pieces.min() == query.box[0, axis] and pieces.max() == query.box[1, axis]
        assert (pieces[1:, 0] <= np.maximum.accumulate(pieces[:, 1])[:-1]).all()  # no gap


def clicks(*points, label=NO_LABEL, **more) -> ImageQuery:
    points = np.array(points, float)
    return ImageQuery(label=label, points=points, point_labels=np.ones(len(points)), **more)


def test_a_name_and_a_mask_concern_the_whole_volume_and_a_click_alone_one_patch():
    shape = (60, 90, 300)
    whole = [[0, 0, 0], list(shape)]
    mask = np.zeros(shape, np.float32)
    for query in (Query(label=1), clicks([5, 6, 7], label=1), clicks([5, 6, 7], previous=mask)):
        assert region_of(query, shape, PATCH_SIZE).tolist() == whole
    for point in ([30, 40, 50], [30.5, 40.2, 50.9], [0, 89, 299], [0.5, 0.2, 3]):
        [starts] = patches_of_queries([clicks(point)], shape, PATCH_SIZE, 0.5)
        assert len(starts) == 1
        # about the middle of the patch, but for the ends of the volume
        offset = starts[0] + np.array(PATCH_SIZE) / 2 - np.array(point)
        ends = (starts[0] == 0) | (starts[0] + PATCH_SIZE == shape)
        assert (ends | (np.abs(offset) <= 1.5)).all()
    assert (
        len(patches_of_queries([clicks([30, 40, 50], [32, 44, 58])], shape, PATCH_SIZE, 0.5)[0])
        == 1
    )


def test_an_object_without_a_name_is_asked_for_only_where_something_is_of_it():
    shape, size = (60, 90, 300), np.array(PATCH_SIZE)
    query = clicks([30, 40, 50], [30, 40, 250], [30, 80, 250])
    [starts] = patches_of_queries([query], shape, PATCH_SIZE, 0.5)
    for point in query.points:
        assert ((starts <= point) & (point < starts + size)).all(axis=1).any()
    for start in starts:
        assert len(in_patch(query, start, size).points)


@pytest.mark.parametrize("label", [NO_LABEL, 1])
def test_a_mask_is_corrected_only_where_something_is_of_it_or_of_its_prompts(label):
    shape, size = (60, 90, 300), np.array(PATCH_SIZE)
    mask = np.full(shape, -4.0, np.float32)
    mask[10:30, 20:50, 30:60] = 4
    clicked = clicks([50, 80, 290], previous=mask, label=label)
    [starts] = patches_of_queries([clicked], shape, PATCH_SIZE, 0.5)
    seen = np.zeros(shape, bool)
    for start in starts:
        here = tuple(slice(a, a + n) for a, n in zip(start, PATCH_SIZE, strict=True))
        assert (mask[here] > 0).any() or (
            (start <= [50, 80, 290]) & ([50, 80, 290] < start + size)
        ).all()
        seen[here] = True
    assert seen[mask > 0].all() and seen[50, 80, 290] and seen.mean() < 0.1
    negative = np.array([[-4, -6, -8], [-20, 0, 0], [56, 84, 292]])
    assert patches_that_meet(clicked, negative, PATCH_SIZE).tolist() == []


def test_a_patch_is_used_again_where_it_shows_a_click_in_its_middle():
    shape = (60, 90, 300)
    starts = np.array([[8, 12, 16], [10, 14, 18], [0, 12, 16], [52, 78, 284]])
    around = lambda point: patch_around(clicks(point), starts, shape, PATCH_SIZE)  # noqa: E731
    np.testing.assert_array_equal(around([12, 18, 24]), starts[0])
    np.testing.assert_array_equal(around([13, 19, 25]), starts[1])  # also in 0, but nearer
    np.testing.assert_array_equal(around([0, 18, 24]), starts[2])  # the volume ends there
    np.testing.assert_array_equal(around([59, 89, 299]), starts[3])
    assert around([12, 18, 17]) is None  # only at the border of some
    assert around([40, 50, 100]) is None
    assert patch_around(clicks([1, 1, 1]), starts[:0], shape, PATCH_SIZE) is None
    assert patch_around(Query(label=0), starts, shape, PATCH_SIZE) is None


def test_a_patch_gets_the_part_of_a_query_that_it_shows():
    mask = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    query = clicks([5, 6, 7], [19, 2, 3], [4, 12, 9], previous=mask)
    inside = in_patch(query, np.array([3, 4, 5]), np.array(PATCH_SIZE))
    np.testing.assert_array_equal(inside.points, [[2, 2, 2], [1, 8, 4]])
    np.testing.assert_array_equal(inside.previous, mask[3:11, 4:16, 5:21])
    outside = in_patch(query, np.array([-2, 25, 30]), np.array(PATCH_SIZE)).previous
    np.testing.assert_array_equal(outside[2:, :5, :10], mask[:6, 25:, 30:])
    assert (outside[:2] == -SURE).all() and (outside[:, 5:] == -SURE).all()
    assert (outside[:, :, 10:] == -SURE).all() and outside.dtype == np.float32
    assert (
        np.isfinite(mask).all()
        and in_patch(clicks([1, 1, 1]), np.zeros(3, int), np.array(PATCH_SIZE)).previous is None
    )


def test_slices_are_drawn_in_the_patches_that_show_them():
    drawn = (
        FlatBox(box=np.array([[5.0, 6, 7], [6, 10, 30]]), axis=0),
        np.array([[2.0, 8, 4], [9, 8, 4], [9, 8, 9], [2, 8, 9]]),
    )
    size = np.array(PATCH_SIZE)
    region = in_patch(ImageQuery(drawn=drawn), np.array([2, 4, 4]), size).region
    expected = np.zeros(PATCH_SIZE)
    expected[3], expected[:, 4] = -1, -1  # the slices 5 along z, 8 along y
    expected[3, 2:6, 3:] = 1
    np.testing.assert_array_equal(region[:, [0, 1, 2, 3, 5, 6]], expected[:, [0, 1, 2, 3, 5, 6]])
    assert (region[1:7, 4, 1:5] == 1).all() and (region[:3, 4, 6:] == -1).all()
    assert in_patch(ImageQuery(drawn=drawn), np.array([10, 20, 4]), size).region is None
    assert ImageQuery(drawn=drawn).region is None


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirroring_twice_gives_the_query_back(axes):
    rng = np.random.default_rng(0)
    query = Query(
        box=np.array([[1, 2, 3], [4, 6, 9.5]]),
        points=[[1, 2, 3], [4, 5, 6.5]],
        point_labels=[1, 0],
        region=rng.integers(-1, 2, PATCH_SIZE),
        previous=rng.normal(size=PATCH_SIZE),
    )
    once = flipped(query, axes, PATCH_SIZE)
    twice = flipped(once, axes, PATCH_SIZE)
    for name in ("box", "points", "region", "previous"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(query, name))
    z, y, x = (
        n - 1 - p if axis in axes else p
        for axis, (n, p) in enumerate(zip(PATCH_SIZE, (1, 2, 3), strict=True))
    )
    np.testing.assert_array_equal(once.points[0], [z, y, x])
    assert once.previous[z, y, x] == query.previous[1, 2, 3]
    assert once.region[z, y, x] == query.region[1, 2, 3]


def test_every_box_is_a_query_with_all_other_prompts():
    raw, shape = (10, 20, 30), (5, 20, 60)
    mask = np.zeros(raw, bool)
    mask[:, 5:9] = True
    solid = [[[2, 3, 4], [6, 9, 10]], [[0, 0, 0], [2, 2, 2]]]
    flat = [[4, 3, 4], [5, 9, 10]]
    prompts = make_prompts(
        boxes=[solid[0], flat, solid[1]],
        points=[[4, 5, 6], [9, 0, 29]],
        point_labels=[1, 0],
        scribbles=[[[2, 2, 2], [2, 2, 4]]],
        scribble_labels=[0],
        lassos=[[[2, 1, 1], [2, 9, 1], [2, 9, 9]]],
        mask=mask,
        shape=raw,
    )
    first, second = as_queries(prompts, 2, raw, shape)
    np.testing.assert_array_equal(first.box, [[1, 3, 8], [3, 9, 20]])
    np.testing.assert_array_equal(second.box, [[0, 0, 0], [1, 2, 4]])
    for query in (first, second):
        assert query.label == 2 and len(query.drawn) == 2
        np.testing.assert_array_equal(query.drawn[0].box, [[2, 3, 8], [2.5, 9, 20]])
        assert query.drawn[0].axis == 0
        np.testing.assert_array_equal(query.drawn[1][1], [0.75, 9, 2.5])  # (1 + 0.5) * 2 - 0.5
        np.testing.assert_array_equal(query.points[:2], [[1.75, 5, 12.5], [4.25, 0, 58.5]])
        assert query.point_labels.tolist() == [1, 0] + [0] * (len(query.points) - 2)
        scribble = query.points[2:]  # from 4.5 to 8.5 along x
        assert (scribble[:, :2] == [1, 2]).all() and set(scribble[:, 2]) <= {4, 5, 6, 7, 8}
        assert len(scribble) >= 2 and query.previous.shape == shape
        np.testing.assert_array_equal(query.previous[:, 6], GIVEN)
        np.testing.assert_array_equal(query.previous[:, 12], -GIVEN)
    [alone] = as_queries(make_prompts(boxes=[flat], shape=raw), NO_LABEL, raw, shape)
    assert alone.box is None and len(alone.drawn) == 1 and alone.previous is None
    [name] = as_queries(make_prompts(shape=raw), 1, raw, shape)
    assert name.is_name and name.label == 1


@pytest.mark.parametrize(
    ("box", "shape", "axis"),
    [
        ([[4, 3, 4], [5, 9, 10]], (10, 20, 30), 0),
        ([[4, 3, 4], [9, 4, 10]], (10, 20, 30), 1),
        ([[4, 3, 4], [9, 9, 5]], (10, 20, 30), 2),
        ([[4, 3, 4], [6, 5, 6]], (10, 20, 30), None),
        ([[0, 3, 4], [1, 9, 10]], (1, 20, 30), None),  # the image has one slice
        ([[0, 3, 4], [1, 4, 10]], (1, 20, 30), 1),  # a row of it
        ([[0, 0, 0], [1, 1, 1]], (1, 1, 1), None),
    ],
)
def test_a_box_one_voxel_thick_is_drawn_on_a_slice(box, shape, axis):
    assert flat_axis(np.array(box, float), shape) == axis


def test_scribbles_up_to_the_edge_of_the_image_stay_in_it():
    prompts = make_prompts(scribbles=[[[0, 0, 0], [9.5, 19.5, 29.5]]], shape=(10, 20, 30))
    for shape in ((10, 20, 30), (4, 20, 61)):
        [query] = as_queries(prompts, 0, (10, 20, 30), shape)
        assert (query.points >= 0).all() and (query.points <= np.array(shape) - 1).all()
        np.testing.assert_array_equal(query.points[-1], np.array(shape) - 1)
