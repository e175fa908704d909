"""The rules of planning against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.experiment_planning.rules import (
    BUDGETS,
    choose_ct_window,
    patch_size_and_stride,
    target_spacing,
)
from promptseg.networks.blocks import feature_strides


def test_the_target_spacing_is_the_median_along_each_axis():
    spacings = np.array([[1.0, 0.5, 0.6], [2.0, 0.7, 0.5], [3.0, 0.6, 0.9]])
    spacing, reason = target_spacing(spacings, np.array([[90, 100, 100]] * 3))
    assert spacing == (2.0, 0.6, 0.6)
    assert reason == "median over the training images"  # 2.0 is coarse, but 90 * 3 > 100


def test_the_coarse_axis_of_thick_slices_takes_the_10th_percentile():
    # Median 5 is more than 3 times 0.8, and 20 slices are fewer than a third of 256. The 10th
    # percentile of 2, 5, 5, 5, 6 lies at place 0.4 of 4: 2 + 0.4 * 3 = 3.2.
    spacings = np.array([[z, 0.8, 0.7] for z in (5.0, 2.0, 5.0, 6.0, 5.0)])
    spacing, reason = target_spacing(spacings, np.array([[20, 256, 300]] * 5))
    assert spacing == pytest.approx((3.2, 0.8, 0.7)) and "10th percentile" in reason
    # The coarse axis need not be the first.
    turned, _ = target_spacing(spacings[:, [1, 2, 0]], np.array([[256, 300, 20]] * 5))
    assert turned == pytest.approx((0.8, 0.7, 3.2))


def test_the_10th_percentile_is_never_finer_than_the_other_axes():
    spacings = np.array([[z, 0.8, 0.7] for z in (0.2, 0.3, 5.0, 5.0, 5.0)])
    spacing, _ = target_spacing(spacings, np.array([[20, 256, 300]] * 5))
    assert spacing == pytest.approx((0.8, 0.8, 0.7), abs=1e-4)


def test_a_median_image_within_the_budget_is_the_window():
    # 36x50x35 of 1 mm: 63000 of 196608 voxels. Strides 1, 2 leave too many tokens
    # (18 * 25 * 18 = 8100), 4 gives 9 * 13 * 9 = 1053 > 512, 8 gives 5 * 7 * 5 = 175.
    window, stride, reason = patch_size_and_stride((36, 50, 35), (1.0, 1.0, 1.0), BUDGETS["tiny"])
    assert stride == (8, 8, 8) and window == (40, 56, 40)
    assert "covers the median image, 175 tokens" in reason


def test_thick_slices_are_cut_less_finely():
    # Tokens of near the same size in mm: in plane 0.98 mm doubles to 1.96, then 3.92, before z.
    window, stride, _ = patch_size_and_stride((60, 180, 180), (3.3, 0.98, 0.98), BUDGETS["base"])
    token_mm = np.multiply(stride, (3.3, 0.98, 0.98))
    assert stride[0] < stride[1] == stride[2] and token_mm.max() / token_mm.min() < 2
    assert window[1] == window[2]


sizes = st.integers(1, 700)
lengths = st.floats(0.2, 12)


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(sizes, sizes, sizes),
    st.tuples(lengths, lengths, lengths),
    st.sampled_from(list(BUDGETS)),
)
def test_windows_keep_to_their_budget_and_tokens_are_near_isotropic(shape, spacing, size):
    budget = BUDGETS[size]
    window, stride, _ = patch_size_and_stride(shape, spacing, budget)
    window, stride, spacing = np.array(window), np.array(stride), np.array(spacing)

    assert (window % stride == 0).all() and (window >= stride).all()
    assert window.prod() <= 1.5 * budget.patch_voxels
    assert (window // stride).prod() <= budget.tokens
    assert (window < shape + stride).all()
    feature_strides(stride.tolist())  # powers of two
    # A stride above 1 was doubled when its token was within sqrt 2 of the smallest that could
    # still grow, so it is at most 2 * sqrt 2 times as large as one that has room to.
    has_room = window // stride >= 4
    token_mm = stride * spacing
    if has_room.any() and (stride > 1).any():
        assert token_mm[stride > 1].max() <= 2.83 * token_mm[has_room].max()


@pytest.mark.parametrize("spacing", [(999.0, 1.0, 1.0), (1.0, 1.0, 1.0), (5000.0, 0.3, 0.3)])
def test_a_single_slice_of_any_thickness_keeps_its_depth(spacing):
    window, stride, _ = patch_size_and_stride((1, 1024, 2048), spacing, BUDGETS["tiny"])
    assert window[0] == stride[0] == 1 and window[1] * window[2] <= 1.5 * 48 * 64 * 64


EDGES = np.arange(-1000, 2001, 5.0)  # HU
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


def histogram(low, high, count=1000):
    return np.where((low <= CENTRES) & (high >= CENTRES), count, 0).tolist()


def test_the_ct_window_is_the_one_that_tells_labels_from_the_rest():
    # Two kinds of bone, both white in every window but bone's.
    window, reason = choose_ct_window({0: histogram(400, 700), 1: histogram(900, 1200)}, EDGES)
    assert window == "bone" and "bone 1.000" in reason and "soft tissue 0.000" in reason
    # Two kinds of lung, both black in the soft tissue window (-160 to 240).
    window, reason = choose_ct_window({0: histogram(-900, -700), 1: histogram(-650, -500)}, EDGES)
    assert window == "lung" and "lung 1.000" in reason


def test_soft_tissue_is_kept_unless_another_window_is_clearly_better():
    # Apart in soft tissue as well as in all others: no reason to change.
    window, reason = choose_ct_window({0: histogram(0, 30), 1: histogram(45, 70)}, EDGES)
    assert window == "soft tissue" and "soft tissue 1.000" in reason
    # 1 of 100 voxels is told apart by the bone window only: below 0.02.
    rest = np.array(histogram(300, 320, 99)) + np.array(histogram(900, 920, 0))
    label = np.array(histogram(300, 320, 99)) + np.array(histogram(900, 920, 1))
    assert choose_ct_window({0: rest, 1: label}, EDGES)[0] == "soft tissue"


def test_the_mean_over_labels_decides_and_the_order_does_not():
    # Label 2 is 99 times as large; both count alike.
    histograms = {0: histogram(0, 300, 5), 1: histogram(900, 1200, 1), 2: histogram(45, 70, 99)}
    turned = dict(reversed(histograms.items()))
    assert choose_ct_window(histograms, EDGES) == choose_ct_window(turned, EDGES)


@pytest.mark.parametrize("histograms", [{}, {0: histogram(0, 50)}, {1: histogram(0, 50)}])
def test_without_labels_or_background_soft_tissue_is_the_default(histograms):
    window, reason = choose_ct_window(histograms, EDGES)
    assert window == "soft tissue" and "default" in reason


def test_the_stride_is_the_finest_that_fits_step_by_step():
    # 3.27x5.47x5.47 mm, 64x33x34 voxels, 512 tokens. Doubled one after the other, the finest
    # first: z (2,1,1), yx (2,2,2), z, yx (4,4,4): 16*9*9 = 1296, z (8,4,4): 648, yx (8,8,8): 200.
    window, stride, _ = patch_size_and_stride((64, 33, 34), (3.27, 5.47, 5.47), BUDGETS["tiny"])
    assert stride == (8, 8, 8)
    assert window == (64, 40, 40)
