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
    window_starts,
    windows_of_regions,
)

sizes = st.tuples(*(st.integers(1, 23) for _ in range(3)))
windows = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@st.composite
def volumes_and_regions(draw):
    shape, window = draw(sizes), draw(windows)
    lower = [draw(st.integers(0, n - 1)) for n in shape]
    upper = [draw(st.integers(low + 1, n)) for low, n in zip(lower, shape, strict=True)]
    return shape, window, np.array([lower, upper])


@settings(deadline=None)
@given(volumes_and_regions(), st.sampled_from([0.3, 0.5, 1.0]))
def test_windows_cover_the_region_from_within_the_volume(case, step_size):
    shape, window, region = case
    starts = window_starts(shape, window, region, step_size)

    covered = np.zeros(shape, bool)
    for start in starts:
        for begin, n, w in zip(start, shape, window, strict=True):
            if n > w:
                assert 0 <= begin <= n - w
            else:  # centred: the padding on both sides differs by at most one voxel
                assert begin <= 0 and begin + w >= n and 0 <= (begin + w - n) + begin <= 1
        covered[tuple(slice(max(a, 0), a + w) for a, w in zip(start, window, strict=True))] = True
    (z0, y0, x0), (z1, y1, x1) = region
    assert covered[z0:z1, y0:y1, x0:x1].all()
    assert len(np.unique(starts, axis=0)) == len(starts)
    for axis in range(3):
        along = np.unique(starts[:, axis])
        assert (np.diff(along) <= step_size * window[axis] + 1).all()


def test_starts_worked_out_by_hand():
    # z: 5 voxels in a window of 8, one window that starts at -1. y: region 3 to 9 fits into 10 and
    # is centred at 6, so it starts at 1. x: 0 to 20 of 20 with windows of 8, steps of at most 4.
    starts = window_starts((5, 30, 20), (8, 10, 8), [[0, 3, 0], [5, 9, 20]], 0.5)
    assert starts.tolist() == [[-1, 1, 0], [-1, 1, 4], [-1, 1, 8], [-1, 1, 12]]
    # A small region at the border: the window stays inside.
    assert window_starts((5, 30, 20), (5, 10, 8), [[0, 28, 0], [1, 30, 1]]).tolist() == [[0, 20, 0]]


def test_a_region_inside_a_window_that_is_there_needs_no_other():
    shape, window = (30, 40, 50), (10, 12, 16)
    large = np.array([[2, 3, 4], [11, 14, 19.5]])  # 9x11x16 voxels: fits one window
    inside = np.array([[4, 5, 6], [6, 7, 8.0]])
    far = np.array([[20, 30, 40], [22, 32, 42.0]])
    of_inside, of_far, of_large = windows_of_regions(shape, window, [inside, far, large])
    assert of_large.tolist() == of_inside.tolist() == [[1, 2, 4]]  # centred: (2 + 11 - 10) // 2
    assert of_far.tolist() == [[16, 25, 33]]


@settings(deadline=None)
@given(st.lists(volumes_and_regions(), min_size=1, max_size=5))
def test_every_voxel_of_every_region_lies_in_one_of_its_windows(cases):
    shape, window = np.max([case[0] for case in cases], axis=0), cases[0][1]
    regions = [case[2] + [[0.25], [-0.25]] for case in cases]  # continuous boxes
    for region, starts in zip(regions, windows_of_regions(shape, window, regions), strict=True):
        covered = np.zeros(shape, bool)
        for start in starts:
            here = zip(start, window, strict=True)
            covered[tuple(slice(max(a, 0), a + w) for a, w in here)] = True
        lower, upper = np.floor(region[0]).astype(int), np.ceil(region[1]).astype(int)
        assert covered[tuple(map(slice, lower, upper))].all()


@pytest.mark.parametrize("window", [(8, 12, 16), (1, 7, 5), (32, 3, 2)])
def test_weights_are_1_in_the_middle_positive_and_fall_outwards(window):
    weights = gaussian_weights(window)
    assert tuple(weights.shape) == window and weights.dtype == torch.float32
    middle = tuple(n // 2 for n in window)
    assert weights[middle] == 1 and weights.min() > 0
    for axis, n in enumerate(window):
        line = weights[tuple(slice(None) if a == axis else m for a, m in enumerate(middle))]
        assert (line[: n // 2].diff() >= 0).all() and (line[n // 2 :].diff() <= 0).all()
    # The Gaussian: one standard deviation, an eighth of 32 voxels, from the middle.
    if window[0] == 32:
        assert weights[16 + 4, 1, 1] == pytest.approx(np.exp(-0.5), abs=0.01)


def test_blending_constant_windows_gives_the_constant_everywhere():
    # Smaller than the window along z, no multiple of the step along y and x.
    shape, window = (7, 20, 21), (12, 12, 12)
    starts = window_starts(shape, window, [[0, 0, 0], shape])
    blend = Blend(starts, window, shape, gaussian_weights(window))
    for start in starts:
        blend.add(torch.full(window, 3.0), start)
    assert blend.lower.tolist() == [0, 0, 0] and blend.upper.tolist() == list(shape)
    torch.testing.assert_close(blend.result(), torch.full(shape, 3.0))


def test_blending_is_the_weighted_mean_of_a_literal_loop():
    shape, window = (5, 13, 9), (6, 5, 4)
    starts = window_starts(shape, window, [[0, 2, 1], [5, 13, 8]], 0.5)
    weights = gaussian_weights(window)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(window, generator=generator) for _ in starts]
    blend = Blend(starts, window, shape, weights)
    above, below = np.zeros(shape), np.zeros(shape)
    for start, piece in zip(starts, logits, strict=True):
        blend.add(piece, start)
        for place in itertools.product(*(range(n) for n in window)):
            voxel = tuple(start + place)
            if all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
                above[voxel] += piece[place].item() * weights[place].item()
                below[voxel] += weights[place].item()
    region = tuple(slice(a, b) for a, b in zip(blend.lower, blend.upper, strict=True))
    expected = above[region] / below[region]
    np.testing.assert_allclose(blend.result().numpy(), expected, atol=1e-5)


def test_what_no_window_reached_is_background():
    shape, window = (4, 5, 20), (4, 5, 6)
    starts = np.array([[0, 0, 0], [0, 0, 14]])
    blend = Blend(starts, window, shape, gaussian_weights(window))
    for start in starts:
        blend.add(torch.ones(window), start)
    result = blend.result()
    assert (result[..., 6:14] == -20).all() and (result[..., :6] == 1).all()


def test_groups_are_full_in_order_and_never_empty():
    assert groups_of_at_most([3, 4, 3, 20, 1, 9, 1], 10) == [[0, 1, 2], [3], [4, 5], [6]]
    assert groups_of_at_most([5, 5], 0) == [[0], [1]]
    assert groups_of_at_most([], 10) == []
