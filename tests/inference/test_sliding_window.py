"""Windows against brute force, blending against a literal loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.inference.sliding_window import (
    Blend,
    gaussian_weights,
    groups_of_at_most,
    patch_starts,
    patches_of_regions,
)

sizes = st.tuples(*(st.integers(1, 23) for _ in range(3)))
patches = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@st.composite
def volumes_and_regions(draw):
    shape, patch_size = draw(sizes), draw(patches)
    lower = [draw(st.integers(0, n - 1)) for n in shape]
    upper = [draw(st.integers(low + 1, n)) for low, n in zip(lower, shape, strict=True)]
    return shape, patch_size, np.array([lower, upper])


@settings(deadline=None)
@given(volumes_and_regions(), st.sampled_from([0.3, 0.5, 1.0]))
def test_patches_cover_the_region_from_within_the_volume(case, step_size):
    shape, patch_size, region = case
    starts = patch_starts(shape, patch_size, region, step_size)

    covered = np.zeros(shape, bool)
    for start in starts:
        for begin, n, w in zip(start, shape, patch_size, strict=True):
            if n > w:
                assert 0 <= begin <= n - w
            else:  # centred: the padding on both sides differs by at most one voxel
                assert begin <= 0 and begin + w >= n and 0 <= (begin + w - n) + begin <= 1
        covered[tuple(slice(max(a, 0), a + w) for a, w in zip(start, patch_size, strict=True))] = (
            True
        )
    (z0, y0, x0), (z1, y1, x1) = region
    assert covered[z0:z1, y0:y1, x0:x1].all()
    assert len(np.unique(starts, axis=0)) == len(starts)
    for axis in range(3):
        along = np.unique(starts[:, axis])
        assert (np.diff(along) <= step_size * patch_size[axis] + 1).all()


def test_starts_worked_out_by_hand():
    # z: 5 voxels in a patch of 8, one patch that starts at -1. y: region 3 to 9 fits into 10 and
    # is centred at 6, so it starts at 1. x: 0 to 20 of 20 with patches of 8, steps of at most 4.
    starts = patch_starts((5, 30, 20), (8, 10, 8), [[0, 3, 0], [5, 9, 20]], 0.5)
    assert starts.tolist() == [[-1, 1, 0], [-1, 1, 4], [-1, 1, 8], [-1, 1, 12]]
    # A small region at the border: the patch stays inside.
    assert patch_starts((5, 30, 20), (5, 10, 8), [[0, 28, 0], [1, 30, 1]]).tolist() == [[0, 20, 0]]


def test_a_region_inside_a_patch_that_is_there_needs_no_other():
    shape, patch_size = (30, 40, 50), (10, 12, 16)
    large = np.array([[2, 3, 4], [11, 14, 19.5]])  # 9x11x16 voxels: fits one patch
    inside = np.array([[4, 5, 6], [6, 7, 8.0]])
    far = np.array([[20, 30, 40], [22, 32, 42.0]])
    of_inside, of_far, of_large = patches_of_regions(shape, patch_size, [inside, far, large])
    assert of_large.tolist() == of_inside.tolist() == [[1, 2, 4]]  # centred: (2 + 11 - 10) // 2
    assert of_far.tolist() == [[16, 25, 33]]


@settings(deadline=None)
@given(st.lists(volumes_and_regions(), min_size=1, max_size=5))
def test_every_voxel_of_every_region_lies_in_one_of_its_patches(cases):
    shape, patch_size = np.max([case[0] for case in cases], axis=0), cases[0][1]
    regions = [case[2] + [[0.25], [-0.25]] for case in cases]  # continuous boxes
    for region, starts in zip(regions, patches_of_regions(shape, patch_size, regions), strict=True):
        covered = np.zeros(shape, bool)
        for start in starts:
            here = zip(start, patch_size, strict=True)
            covered[tuple(slice(max(a, 0), a + w) for a, w in here)] = True
        lower, upper = np.floor(region[0]).astype(int), np.ceil(region[1]).astype(int)
        assert covered[tuple(map(slice, lower, upper))].all()


@pytest.mark.parametrize("patch_size", [(8, 12, 16), (1, 7, 5), (32, 3, 2)])
def test_weights_are_1_in_the_middle_positive_and_fall_outwards(patch_size):
    weights = gaussian_weights(patch_size)
    assert tuple(weights.shape) == patch_size and weights.dtype == torch.float32
    middle = tuple(n // 2 for n in patch_size)
    assert weights[middle] == 1 and weights.min() > 0
    for axis, n in enumerate(patch_size):
        line = weights[tuple(slice(None) if a == axis else m for a, m in enumerate(middle))]
        assert (line[: n // 2].diff() >= 0).all() and (line[n // 2 :].diff() <= 0).all()
    # The Gaussian: one standard deviation, an eighth of 32 voxels, from the middle.
    if patch_size[0] == 32:
        assert weights[16 + 4, 1, 1] == pytest.approx(np.exp(-0.5), abs=0.01)


def test_blending_constant_patches_gives_the_constant_everywhere():
    # Smaller than the patch along z, no multiple of the step along y and x.
    shape, patch_size = (7, 20, 21), (12, 12, 12)
    starts = patch_starts(shape, patch_size, [[0, 0, 0], shape])
    blend = Blend(starts, patch_size, shape, gaussian_weights(patch_size))
    for start in starts:
        blend.add(torch.full(patch_size, 3.0), start)
    assert blend.lower.tolist() == [0, 0, 0] and blend.upper.tolist() == list(shape)
    torch.testing.assert_close(blend.result(), torch.full(shape, 3.0))


def test_blending_is_the_weighted_mean_of_a_literal_loop():
    shape, patch_size = (5, 13, 9), (6, 5, 4)
    starts = patch_starts(shape, patch_size, [[0, 2, 1], [5, 13, 8]], 0.5)
    weights = gaussian_weights(patch_size)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(patch_size, generator=generator) for _ in starts]
    blend = Blend(starts, patch_size, shape, weights)
    above, below = np.zeros(shape), np.zeros(shape)
    for start, piece in zip(starts, logits, strict=True):
        blend.add(piece, start)
        for place in itertools.product(*(range(n) for n in patch_size)):
            voxel = tuple(start + place)
            if all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
                above[voxel] += piece[place].item() * weights[place].item()
                below[voxel] += weights[place].item()
    region = tuple(slice(a, b) for a, b in zip(blend.lower, blend.upper, strict=True))
    expected = above[region] / below[region]
    np.testing.assert_allclose(blend.result().numpy(), expected, atol=1e-5)


def test_what_no_patch_reached_is_background():
    shape, patch_size = (4, 5, 20), (4, 5, 6)
    starts = np.array([[0, 0, 0], [0, 0, 14]])
    blend = Blend(starts, patch_size, shape, gaussian_weights(patch_size))
    for start in starts:
        blend.add(torch.ones(patch_size), start)
    result = blend.result()
    assert (result[..., 6:14] == -20).all() and (result[..., :6] == 1).all()


def test_groups_are_full_in_order_and_never_empty():
    assert groups_of_at_most([3, 4, 3, 20, 1, 9, 1], 10) == [[0, 1, 2], [3], [4, 5], [6]]
    assert groups_of_at_most([5, 5], 0) == [[0], [1]]
    assert groups_of_at_most([], 10) == []
