"""Distances between surfaces, by hand, by MONAI, and by brute force on random pairs of masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from promptseg.evaluation.surfaces import surface_distances

SPACING = (2.0, 1.0, 0.5)


def voxels(*places, shape=(9, 7, 8)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(places))] = True
    return mask


def random_pairs(count: int):
    """Pairs of blobs that overlap somewhat, in boxes of many shapes and spacings."""
    rng = np.random.default_rng(7)
    for number in range(count):
        shape = rng.integers(3, 14, 3)
        spacing = rng.uniform(0.3, 4, 3)
        centre, radius = rng.uniform(0, shape, 3), rng.uniform(1, 6)
        ball = np.sum(((np.indices(shape).T - centre) / (1, 1.3, 0.8)) ** 2, -1).T < radius**2
        noise = rng.random((2, *shape)) < (0.02, 0.3)[number % 2]
        first, second = ball ^ noise[0], np.roll(ball, 1, axis=number % 3) ^ noise[1]
        first[0, 0, 0] = second[-1, -1, -1] = True
        yield first, second, spacing


def test_two_voxels_have_the_distances_of_a_pencil():
    # A voxel's surface is an octahedron: one triangle at each of its eight corners, all of one
    # area. Along z the second lies 3 voxels of 2 mm away: the corners that face one another are 2
    # voxels apart, and those behind them 3 from the nearest of the other.
    found = surface_distances(voxels((1, 3, 4)), voxels((4, 3, 4)), SPACING)

    for distances in found.distances:
        assert distances.tolist() == [4.0] * 4 + [6.0] * 4
    # half the product of the triangle's sides from the middles of a cell's edges
    triangle = math.sqrt((1.0 * 0.5) ** 2 + (2.0 * 0.5) ** 2 + (2.0 * 1.0) ** 2) / 8
    for areas in found.areas:
        np.testing.assert_allclose(areas, triangle, rtol=1e-6)
    assert [found.dice(mm) for mm in (3.99, 4.0, 5.99, 6.0)] == [0.0, 0.5, 0.5, 1.0]
    assert found.percentile(50) == 4.0 and found.percentile(95) == 6.0
    assert found.mean == pytest.approx(5.0)


def test_a_block_that_grows_by_a_voxel_is_as_far_away_as_a_voxel_is_thick():
    # 20x20x20 voxels of 2x1x0.5 mm: the faces along z, y and x have 400, 800 and 1600 mm2, and
    # those of the larger block lie 2, 1 and 0.5 mm away; edges, a little of it, are farther.
    small, large = np.zeros((2, 24, 25, 26), bool)
    small[2:22, 2:22, 3:23], large[1:23, 1:23, 2:24] = True, True
    found = surface_distances(small, large, SPACING)
    assert sum(area.sum() for area in found.areas) == pytest.approx(2 * 2800, rel=0.1)
    assert found.dice(0.49) == 0.0
    assert found.dice(0.5) == pytest.approx(1600 / 2800, abs=0.08)
    assert found.dice(1.0) == pytest.approx(2400 / 2800, abs=0.08)
    assert found.dice(2.3) == 1.0  # at the corners the root of 4 + 1 + 0.25
    assert found.percentile(95) == pytest.approx(2.0, abs=0.1)
    assert found.mean == pytest.approx((400 * 2 + 800 * 1 + 1600 * 0.5) / 2800, abs=0.08)


def test_masks_at_the_border_of_the_volume_have_a_surface_there():
    full = np.ones((2, 3, 4), bool)
    found = surface_distances(full, full, SPACING)
    inner = np.zeros((4, 5, 6), bool)
    inner[1:-1, 1:-1, 1:-1] = True
    padded = surface_distances(inner, inner, SPACING)
    assert found.areas[0].sum() == padded.areas[0].sum()
    assert found.dice(0) == 1.0 and found.percentile(95) == found.mean == 0.0


def test_a_tolerance_holds_for_distances_that_are_rounded():
    # 7 x 0.4 mm - 2 x 0.4 mm is 2.0000000000000004 in floating point.
    first, second = voxels((1, 3, 1)), voxels((1, 3, 7))
    assert surface_distances(first, second, (2.0, 1.0, 0.4)).dice(2.0) == 0.5


def test_turning_exchanging_and_scaling_both_masks_changes_nothing_else():
    for first, second, spacing in random_pairs(12):
        found = surface_distances(first, second, spacing)
        expected = [found.dice(1.0), found.percentile(95), found.mean]
        turned = [np.flip(mask.transpose(2, 0, 1), (0, 2)) for mask in (first, second)]
        others = [
            (surface_distances(*turned, spacing[[2, 0, 1]]), 1),
            (surface_distances(second, first, spacing), 1),
            (surface_distances(first, second, 3 * spacing), 3),
        ]
        for other, scale in others:
            values = [other.dice(scale), other.percentile(95) / scale, other.mean / scale]
            np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_surfaces_are_monais_on_fifty_random_pairs():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_surface_dice

    for first, second, spacing in random_pairs(50):
        tensors = [torch.from_numpy(mask[None, None]).float() for mask in (first, second)]
        found = surface_distances(first, second, spacing)
        for mm in (0.0, 1.0, 2.0):
            expected = compute_surface_dice(
                *tensors,
                [mm],
                include_background=True,
                spacing=spacing.tolist(),
                use_subvoxels=True,
            )
            assert found.dice(mm) == pytest.approx(expected.item(), abs=1e-6)


def test_distances_are_those_of_brute_force_on_fifty_random_pairs():
    for first, second, spacing in random_pairs(50):
        corners = [np.argwhere(mixed(mask)) * spacing for mask in (first, second)]
        between = cdist(*corners)
        found = surface_distances(first, second, spacing)
        for distances, expected in zip(
            found.distances, (between.min(axis=1), between.min(axis=0)), strict=True
        ):
            np.testing.assert_allclose(distances, np.sort(expected), rtol=1e-6, atol=1e-6)
        together = [np.concatenate(both) for both in (found.distances, found.areas)]
        assert found.mean == pytest.approx(np.average(together[0], weights=together[1]), rel=1e-6)
        highest = [
            max(d for d in distances if areas[distances < d].sum() < 0.95 * areas.sum())
            for distances, areas in zip(found.distances, found.areas, strict=True)
        ]
        assert found.percentile(95) == max(highest)


def mixed(mask: np.ndarray) -> np.ndarray:
    """The corners of voxels that are neither inside nor outside, all of a volume's."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2))
    return windows.any(axis=(3, 4, 5)) & ~windows.all(axis=(3, 4, 5))


def test_monais_distances_of_voxels_differ_by_less_than_a_voxel_and_ours_are_by_area():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    shape = (20, 24, 22)
    grid = np.indices(shape).T - (9, 12, 11)
    first = (np.sum((grid * SPACING) ** 2, axis=-1) < 8**2).T
    second = (np.sum(((grid - (1, 2, -2)) * SPACING) ** 2, axis=-1) < 8**2).T
    tensors = [torch.from_numpy(mask[None, None]).float() for mask in (first, second)]
    found = surface_distances(first, second, SPACING)
    options = {"include_background": True, "spacing": SPACING}
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, **options).item()
    assd = compute_average_surface_distance(*tensors, symmetric=True, **options).item()
    assert hd95 != found.percentile(95) and abs(hd95 - found.percentile(95)) < max(SPACING)
    assert assd != found.mean and abs(assd - found.mean) < max(SPACING) / 2


def test_an_empty_mask_has_no_surface():
    one, nothing = voxels((1, 3, 4)), voxels((1, 3, 4)) & False
    for pair in ((one, nothing), (nothing, one), (nothing, nothing)):
        with pytest.raises(ValueError, match="an empty mask has no surface"):
            surface_distances(*pair, SPACING)
