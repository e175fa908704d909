"""The rules of planning against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.experiment_planning.rules import (
    BUDGETS,
    choose_ct_window,
    labelled_extent,
    plan_patch,
    single_components,
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


def test_a_median_image_within_the_budget_is_the_patch():
    # 36x50x35 of 1 mm: 63000 of 320000 elements. Strides 1, 2 leave too many tokens
    # (18 * 25 * 18 = 8100), 4 gives 9 * 13 * 9 = 1053 > 400, 8 gives 5 * 7 * 5 = 175.
    # 40 * 56 * 40 = 89600 elements, of which the budget holds three patches; a batch has two.
    plan = plan_patch((36, 50, 35), (1.0, 1.0, 1.0), BUDGETS["tiny"])
    assert plan.stride == (8, 8, 8) and plan.patch_size == (40, 56, 40)
    assert plan.finest_stride == (1, 1, 1) and plan.batch_size == 2
    assert "covers the median image, 89600 elements, 175 tokens" in plan.reason


def test_thick_slices_are_cut_less_finely():
    # Tokens of near the same size in mm: in plane 0.98 mm doubles to 1.96, then 3.92, before z.
    plan = plan_patch((60, 180, 180), (3.3, 0.98, 0.98), BUDGETS["base"])
    token_mm = np.multiply(plan.stride, (3.3, 0.98, 0.98))
    assert plan.stride[0] < plan.stride[1] == plan.stride[2]
    assert token_mm.max() / token_mm.min() < 2
    assert plan.patch_size[1] == plan.patch_size[2]


def test_heart_slices_of_10_mm_keep_their_number_on_the_finest_map():
    # 9x256x216 of 10x1.56x1.56 mm are 497664 voxels, more than 320000: in plane the finest map
    # has half the resolution, and 9 * 128 * 108 elements fit. Tokens, the physically finest axes
    # first: yx (1,4,4), yx (1,8,8) of 12.5 mm: 7776; z (2,8,8): 4320; yx (2,16,16): 1120; z
    # (4,16,16): 3 * 16 * 14 = 672; yx (4,32,32): 3 * 8 * 7 = 168. The multiples of that are
    # 12x256x224; as three slices of padding are a third of nine, z is halved again, 5 * 8 * 7 =
    # 280: 10x256x224, 143360 elements, of which 320000 hold two.
    plan = plan_patch((9, 256, 216), (10.0, 1.56, 1.56), BUDGETS["tiny"])
    assert plan.finest_stride == (1, 2, 2) and plan.stride == (2, 32, 32)
    assert plan.patch_size == (10, 256, 224) and plan.batch_size == 2
    assert "covers the median image, 143360 elements, 280 tokens" in plan.reason
    # `small` holds 884736 elements: all voxels, at the full resolution
    assert plan_patch((9, 256, 216), (10.0, 1.56, 1.56), BUDGETS["small"]).finest_stride == (1,) * 3


def test_a_large_volume_is_halved_along_all_axes_and_then_cut_along_the_longest():
    # 77x224x224 of 1 mm: 3863552 voxels. The halved map holds 8 * 320000 = 2560000 of them. By
    # steps of 5 %, y before x where both are longest: 212, 201, 190, and then 180:
    # 77 * 180 * 190 = 2633400 is still too much, 77 * 180 * 180 = 2494800 is not.
    # Tokens: 5 * 12 * 12 = 720 of stride 16, 3 * 6 * 6 = 108 of 32, whose multiples are
    # 96x192x192, a quarter more than the image in z: 16 there, 5 * 6 * 6 = 180. 80x192x192 are
    # 40 * 96 * 96 = 368640 elements, within 1.5 times the budget.
    plan = plan_patch((77, 224, 224), (1.0, 1.0, 1.0), BUDGETS["tiny"])
    assert plan.finest_stride == (2, 2, 2) and plan.stride == (16, 32, 32)
    assert plan.patch_size == (80, 192, 192) and plan.batch_size == 1
    assert "smaller than it, 368640 elements, 180 tokens" in plan.reason


def test_patches_of_a_large_image_shrink_to_what_the_labels_extend_over_and_half_as_much():
    # 9x64x69 voxels of labels: 1.5 times them are 14x96x104 of the 9x256x216, of which an eighth of
    # the budget leaves about 9x128x139. Tokens: (1,8,8) 9 * 16 * 18 = 2592; z (2,8,8): 1440; yx
    # (2,16,16): 5 * 8 * 9 = 360, whose multiples are 10x128x144, 10 * 64 * 72 elements of which
    # the budget holds six; a batch has two.
    heart = plan_patch((9, 256, 216), (10.0, 1.56, 1.56), BUDGETS["tiny"], (9, 64, 69))
    assert heart.patch_size == (10, 128, 144) and heart.stride == (2, 16, 16)
    assert heart.finest_stride == (1, 2, 2) and heart.batch_size == 2
    assert "as the labels extend over (9, 64, 69), 46080 elements" in heart.reason
    # vertebrae are one above the other: the height stays, to the sides there is less to see
    spine = plan_patch((77, 224, 224), (1.0, 1.0, 1.0), BUDGETS["tiny"], (59, 182, 62))
    assert spine.patch_size == (80, 224, 96) and spine.stride == (16, 32, 32)
    # where they extend over most of it, the budget is the reason
    whole = plan_patch((77, 224, 224), (1.0, 1.0, 1.0), BUDGETS["tiny"], (60, 180, 180))
    assert "smaller than it, 368640 elements" in whole.reason
    # an image within the budget is seen whole
    small = plan_patch((36, 50, 35), (1.0, 1.0, 1.0), BUDGETS["tiny"], (10, 10, 10))
    assert small.patch_size == (40, 56, 40) and "extend" not in small.reason
    # about a nodule there is more to see than twice the nodule: an eighth of the budget at least
    nodule = plan_patch((200, 400, 400), (1.0, 1.0, 1.0), BUDGETS["tiny"], (4, 5, 5))
    assert np.prod(nodule.patch_size) / 8 > 0.9 * 320_000 / 8
    assert max(nodule.patch_size) < 1.5 * min(nodule.patch_size)


def test_the_extent_is_that_of_all_labels_of_an_image_at_the_target_spacing():
    boxes = [
        [np.array([(2, 10, 10), (5, 30, 20)]), np.array([(4, 20, 40), (8, 40, 50)])],
        [np.array([(0, 0, 0), (10, 10, 10)])],
        [],
        [np.array([(1, 5, 7), (4, 6, 8)])],
    ]
    spacings = np.array([[3.0, 1.0, 1.0], [3.0, 2.0, 1.0], [9.0, 9.0, 9.0], [5.0, 1.0, 1.0]])
    # in mm: 18x30x40, 30x20x10 and 15x1x1; their medians 18x20x10 at 4x2x2 mm
    assert labelled_extent(boxes, spacings, (4.0, 2.0, 2.0)) == (5, 10, 5)
    assert labelled_extent([[], []], spacings[:2], (1.0, 1.0, 1.0)) == (0, 0, 0)


def test_an_axis_of_few_voxels_is_not_halved():
    # as fine as the others, but 15 voxels, which half as many elements would hardly show
    plan = plan_patch((15, 300, 300), (1.0, 1.0, 1.0), BUDGETS["tiny"])
    assert plan.finest_stride == (1, 2, 2)
    assert plan_patch((16, 300, 300), (1.0, 1.0, 1.0), BUDGETS["tiny"]).finest_stride == (2,) * 3
    # nor one of slices twice as thick as the pixels
    thick = plan_patch((40, 200, 200), (2.0, 1.0, 1.0), BUDGETS["tiny"])
    assert thick.finest_stride == (1, 2, 2)


sizes = st.integers(1, 700)
lengths = st.floats(0.2, 12)


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(sizes, sizes, sizes),
    st.tuples(lengths, lengths, lengths),
    st.sampled_from(list(BUDGETS)),
    st.tuples(sizes, sizes, sizes),
)
def test_patches_keep_to_their_budget_and_tokens_are_near_isotropic(shape, spacing, size, extent):
    budget = BUDGETS[size]
    plan = plan_patch(shape, spacing, budget, extent)
    patch_size, finest, stride, spacing = (
        np.array(values) for values in (plan.patch_size, plan.finest_stride, plan.stride, spacing)
    )

    assert (patch_size % stride == 0).all() and (patch_size >= stride).all()
    elements = (patch_size // finest).prod()
    assert elements <= 1.5 * budget.elements
    assert (patch_size // stride).prod() <= budget.tokens
    assert (patch_size < shape + stride).all()
    assert 1 <= plan.batch_size <= budget.batch_size
    assert plan.batch_size == 1 or plan.batch_size * elements <= budget.elements
    assert (finest == 1).all() or np.prod(shape) > budget.elements
    feature_strides(stride.tolist(), finest.tolist(), spacing.tolist())  # powers of two
    # A stride above that of the finest map was doubled when its token was the smallest that could
    # still grow, so that it is about twice as large at most as one that has room to.
    has_room, grown = patch_size // stride >= 4, stride > finest
    token_mm = stride * spacing
    if has_room.any() and grown.any():
        assert token_mm[grown].max() <= 2.83 * token_mm[has_room].max()


@pytest.mark.parametrize("spacing", [(999.0, 1.0, 1.0), (1.0, 1.0, 1.0), (5000.0, 0.3, 0.3)])
def test_a_single_slice_of_any_thickness_keeps_its_depth(spacing):
    budget = BUDGETS["tiny"]
    plan = plan_patch((1, 1024, 2048), spacing, budget)
    assert plan.patch_size[0] == plan.stride[0] == plan.finest_stride[0] == 1
    assert np.prod(plan.patch_size) <= 1.5 * budget.elements * 4


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
    # 3.27x5.47x5.47 mm, 64x33x34 voxels, 400 tokens. Doubled one after the other, the finest
    # first: z (2,1,1), yx (2,2,2), z, yx (4,4,4): 16*9*9 = 1296, z (8,4,4): 648, yx (8,8,8): 200.
    # 40 would pad y by 21 %, more than a fifth, and with (8,4,8) there are 8*9*5 = 360.
    plan = plan_patch((64, 33, 34), (3.27, 5.47, 5.47), BUDGETS["tiny"])
    assert plan.stride == (8, 4, 8)
    assert plan.patch_size == (64, 36, 40)


@pytest.mark.parametrize(
    ("fractions", "is_single"),
    [
        ([1.0] * 5, True),
        ([1.0] * 4, False),  # too few cases to tell
        ([0.95] * 9, True),
        ([1.0] * 9 + [0.94], False),
        ([1.0] * 98 + [0.5], False),
        ([1.0] * 99 + [0.5], True),  # one case in a hundred
        ([1.0] * 198 + [0.5, 0.1], True),
        ([], False),
    ],
)
def test_a_label_is_one_component_if_it_is_in_nearly_all_cases(fractions, is_single):
    single, reason = single_components({"liver": fractions, "lesion": [0.5] * 9})
    assert single == (("liver",) if is_single else ())
    assert reason.startswith("liver: 95% of the voxels or more" if is_single else "no label has")
