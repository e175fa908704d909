"""Regions to the raw grid against PyTorch on the whole volume; labels against argmax."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.inference.label_map import LabelMap, connected_change, largest_component, raw_slabs
from promptseg.inference.sliding_window import Blend
from promptseg.networks.names import SURE


@st.composite
def regions(draw):
    shape = [draw(st.integers(1, 12)) for _ in range(3)]
    lower = [draw(st.integers(0, n - 1)) for n in shape]
    upper = [draw(st.integers(low + 1, n)) for low, n in zip(lower, shape, strict=True)]
    raw = [draw(st.integers(1, 15)) for _ in range(3)]
    return shape, lower, upper, raw


def resampled(logits, lower, shape, raw, most_voxels):
    """The slabs of a region put together, and its first voxel."""
    start = np.array(lower)
    blend = Blend(start[None], logits.shape, shape, torch.ones(logits.shape))
    blend.add(logits, start)
    slabs, firsts = zip(*raw_slabs(blend, shape, raw, most_voxels=most_voxels), strict=True)
    for before, slab, after in zip(firsts, slabs, firsts[1:], strict=False):
        assert (after - before).tolist() == [len(slab), 0, 0]
    return torch.cat(slabs), firsts[0]


@settings(deadline=None)
@given(regions(), st.integers(0, 99), st.sampled_from([1, 60, 10_000]))
def test_a_region_is_resampled_as_the_whole_volume_is(case, seed, most_voxels):
    shape, lower, upper, raw = case
    extent = [b - a for a, b in zip(lower, upper, strict=True)]
    logits = torch.randn(extent, generator=torch.Generator().manual_seed(seed))

    # Outside the region nothing is known: its border voxels continue there.
    sides = [(a, n - b) for a, b, n in zip(lower, upper, shape, strict=True)]
    whole = F.pad(logits[None, None], [n for pair in sides[::-1] for n in pair], mode="replicate")
    whole = F.interpolate(whole.double(), raw, mode="trilinear", align_corners=False)[0, 0]
    inside = []
    for a, b, n, m in zip(lower, upper, shape, raw, strict=True):
        centres = (np.arange(m) * 2 + 1) * n  # times 2 m: whole numbers, compared exactly
        inside.append(np.flatnonzero((centres >= 2 * m * a) & (centres <= 2 * m * b)))
    expected = whole[np.ix_(*inside)]
    if not expected.numel():
        with pytest.raises(ValueError, match="not enough values"):
            resampled(logits, lower, shape, raw, most_voxels)
        return
    found, first = resampled(logits, lower, shape, raw, most_voxels)
    assert first.tolist() == [int(i[0]) for i in inside]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    if tuple(shape) == tuple(raw):
        assert torch.equal(found, logits)


@settings(deadline=None)
@given(regions(), st.integers(0, 99), st.sampled_from([1, 60, 10_000]))
def test_slabs_with_positive_logits_hold_all_of_them(case, seed, most_voxels):
    shape, lower, upper, raw = case
    extent = [b - a for a, b in zip(lower, upper, strict=True)]
    logits = torch.randn(extent, generator=torch.Generator().manual_seed(seed)) - 2
    start = np.array(lower)
    blend = Blend(start[None], extent, shape, torch.ones(extent))
    blend.add(logits, start)
    volumes = []
    for positive_only in (False, True):
        volumes.append(torch.full(raw, -1.0))
        options = {"positive_only": positive_only, "most_voxels": most_voxels}
        for slab, first in raw_slabs(blend, shape, raw, **options):
            here = tuple(slice(a, a + n) for a, n in zip(first, slab.shape, strict=True))
            volumes[-1][here] = slab.clamp(min=-1)
    every, positive = volumes
    assert torch.equal(every > 0, positive > 0)
    assert torch.equal(every.clamp(min=0), positive.clamp(min=0))


def test_labels_are_the_argmax_over_background_whatever_their_order():
    rng = np.random.default_rng(0)
    shape = (4, 5, 7)
    values = [5, 1, 300]
    # Whole numbers, so that ties between labels and with the background's 0 are frequent.
    logits = {value: rng.integers(-3, 4, shape).astype(np.float32) for value in values}
    ordered = sorted(values)
    stacked = np.stack([np.zeros(shape), *(logits[value] for value in ordered)])
    expected = np.array([0, *ordered])[stacked.argmax(axis=0)]
    for order in itertools.permutations(values):
        label_map = LabelMap(shape, 300)
        for value in order:
            label_map.add(value, torch.from_numpy(logits[value]), np.zeros(3, int))
        np.testing.assert_array_equal(label_map.labels, expected)
        assert label_map.labels.dtype == np.int16
        for value in values:
            assert label_map.voxels(value) == (expected == value).sum()


def test_a_region_enters_at_its_place_and_weak_foreground_and_huge_logits_count():
    label_map = LabelMap((3, 4, 5), 2)
    logits = torch.tensor([1e-30, float("nan"), float("inf"), 1e30]).view(1, 1, 4)
    label_map.add(2, logits, np.array([1, 2, 1]))
    expected = np.zeros((3, 4, 5), np.uint8)
    expected[1, 2, 1:5] = [2, 0, 2, 2]
    assert label_map.voxels(2) == 3 and label_map.voxels(1) == 0
    np.testing.assert_array_equal(label_map.labels, expected)
    assert label_map.labels.dtype == np.uint8


def test_logits_that_float16_tells_apart_are_told_apart_in_any_order():
    logits = torch.rand(3, 8, 9, 10, generator=torch.Generator().manual_seed(0)) * 40 - 8
    rounded = logits.clamp(min=0).half().numpy()
    expected = np.where(rounded.max(axis=0) > 0, rounded.argmax(axis=0) + 1, 0)
    for order in itertools.permutations(range(3)):
        label_map = LabelMap((8, 9, 10), 3)
        for index in order:
            label_map.add(index + 1, logits[index], np.zeros(3, int))
        np.testing.assert_array_equal(label_map.labels, expected)
    exact = np.where(logits.amax(0) > 0, logits.argmax(0) + 1, 0)
    assert (expected != exact).mean() < 1e-2


def logits_of(shape, *boxes):
    logits = torch.full(shape, -3.0)
    for z, y, x in boxes:
        logits[z, y, x] = 3.0
    return logits


def test_a_click_changes_what_is_connected_to_it_unless_another_object_was_meant():
    whole = slice(None)
    shape, ring, inside = (3, 9, 20), (whole, whole, slice(0, 5)), (whole, whole, slice(6, 9))
    far = (whole, whole, slice(15, 18))
    former, click = logits_of(shape, ring), np.array([[1, 4, 7]])
    added = connected_change(former, logits_of(shape, ring, inside, far), click, [1])
    torch.testing.assert_close(added, logits_of(shape, ring, inside))
    other = logits_of(shape, inside, far)  # nothing of the former mask is left
    torch.testing.assert_close(connected_change(former, other, click, [1]), other)
    # a background click only takes away
    less = connected_change(former, logits_of(shape, far), np.array([[1, 4, 3]]), [0])
    torch.testing.assert_close(less, logits_of(shape))


def test_the_largest_component_of_logits_stays():
    logits = torch.full((5, 7, 6), -2.0)
    logits[1:3, 1:4, 1:4], logits[4, 6, 5], logits[0, 6, 0:2] = 3.0, 8.0, 1.0
    kept = largest_component(logits)
    torch.testing.assert_close(kept[1:3], logits[1:3])
    assert (kept[4, 6, 5], *kept[0, 6, 0:2]) == (-SURE,) * 3
    assert ((kept > 0) == (logits > 2) & (logits < 5)).all()
    empty = torch.full((3, 2, 4), -1.0)
    torch.testing.assert_close(largest_component(empty), empty)
