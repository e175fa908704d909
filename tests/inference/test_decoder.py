"""Queries in groups and answers slice by slice: the same with less held at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg import progress_bar as bars
from promptseg.inference import decoder as decoder_module
from promptseg.inference.decoder import ImageDecoder, blended_answers
from promptseg.inference.label_map import raw_slabs
from promptseg.inference.sliding_window import (
    Blend,
    gaussian_weights,
    patch_starts,
    patches_of_regions,
)
from promptseg.networks.prompt_encoder import Query
from promptseg.preprocessing.lazy import LazyImage
from tests.inference.fakes import LevelNetwork
from tests.small_plans import IDENTITY

SHAPE, PATCH_SIZE = (10, 20, 60), (8, 12, 16)
BOXES = np.array(
    [[[0, 0, 0], [10, 20, 50]], [[1, 2, 40], [4, 9, 47]], [[0, 0, 0], [10, 20, 50]]], float
)


def answers(boxes=BOXES, most_encodings=100, **options):
    """Logits of each query's region, predicted IoU and most slices held; and the network."""
    image = np.random.default_rng(0).uniform(0, 255, (1, *SHAPE)).astype(np.float32)
    network = LevelNetwork()
    lazy = LazyImage(image, (1, 1, 1), normalizations=[IDENTITY], target_spacing=(1, 1, 1))
    decoder = ImageDecoder(
        lazy, [network], PATCH_SIZE, flips=[()], device="cpu", most_encodings=most_encodings
    )
    queries = [Query(label=index % 3, box=box) for index, box in enumerate(boxes)]
    starts = patches_of_regions(SHAPE, PATCH_SIZE, boxes)
    parts, told = {}, {}
    for a in blended_answers(decoder, queries, starts, gaussian_weights(PATCH_SIZE), **options):
        own = parts.setdefault(a.index, [])
        first, last = a.blend.first, a.blend.final
        assert first == max(0, sum(map(len, own)) - len(own))  # a slice is given twice
        own.append(a.blend.result(first, last))
        told[a.index] = a.predicted_iou
    whole = {
        index: torch.cat([own[0], *(part[1:] for part in own[1:])]) for index, own in parts.items()
    }
    return {index: (whole[index], told[index]) for index in whole}, network


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (2 * 9 * 20 * 50, 2)])
def test_smaller_groups_decode_fewer_at_once_and_encode_no_patch_again(most, at_once):
    expected, together = answers()
    found, grouped = answers(most_open_voxels=most)
    assert together.most_at_once >= 2 and grouped.most_at_once == at_once
    assert grouped.encoded == together.encoded and grouped.decoded == together.decoded
    assert found.keys() == expected.keys() == {0, 1, 2}
    for index, (logits, iou) in expected.items():
        assert torch.equal(found[index][0], logits) and found[index][1] == iou


def test_patches_are_counted_where_they_are_many_and_take_long(monkeypatch, capsys):
    answers()
    assert capsys.readouterr().err == ""  # it is done in less than a moment
    monkeypatch.setattr(decoder_module, "PATIENCE", 0.0)
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    expected, _ = answers()
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("patches:") and "patch/s" in line for line in lines)
    monkeypatch.setattr(decoder_module, "MANY_PATCHES", 1000)
    found, _ = answers()
    assert capsys.readouterr().err == ""
    for index, (logits, _) in expected.items():
        assert torch.equal(found[index][0], logits)


def test_many_labels_of_the_whole_volume_take_one_pass_over_its_patches():
    whole = np.array([[(0, 0, 0), SHAPE]] * 20, float)
    patches = len(patch_starts(SHAPE, PATCH_SIZE, whole[0].astype(int)))
    found, network = answers(whole, most_encodings=1, most_open_voxels=20 * 9 * 20 * 60)
    assert network.encoded == patches and network.decoded == 20 * patches
    expected, _ = answers(whole[:3])
    for index in range(20):
        assert torch.equal(found[index][0], expected[index % 3][0])
    _, twice = answers(whole, most_encodings=1, most_open_voxels=10 * 9 * 20 * 60)
    assert twice.encoded == 2 * patches  # not even a patch's thickness of all has room


def test_of_a_tall_region_about_a_patch_is_held_and_the_raw_grid_gets_each_slab_once():
    shape, patch_size, raw = (40, 9, 11), (8, 6, 7), (57, 8, 11)
    starts = patch_starts(shape, patch_size, [[3, 0, 0], [37, 9, 11]])
    weights = gaussian_weights(patch_size)
    logits = torch.randn((len(starts), *patch_size), generator=torch.Generator().manual_seed(0))
    whole, rolling = (Blend(starts, patch_size, shape, weights) for _ in range(2))
    whole_slabs, slabs = [], []
    for answer, start in zip(logits, starts, strict=True):
        whole.add(answer, start)
        rolling.add(answer, start)
        slabs += raw_slabs(rolling, shape, raw, most_voxels=200)
        rolling.release()
        assert rolling.final - rolling.first <= 1 and len(rolling.result()) <= patch_size[0] + 1
    whole_slabs += raw_slabs(whole, shape, raw)
    assert rolling.is_complete and len(slabs) > 4
    firsts = np.array([first for _, first in slabs])
    counts = [len(slab) for slab, _ in slabs]
    assert firsts[0].tolist() == whole_slabs[0][1].tolist()
    np.testing.assert_array_equal(np.diff(firsts[:, 0]), counts[:-1])
    expected = torch.cat([slab for slab, _ in whole_slabs])
    assert torch.equal(torch.cat([slab for slab, _ in slabs]), expected)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 25), st.integers(1, 6), st.integers(1, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 33),
    st.sampled_from([0.3, 0.5, 1.0]),
)
def test_slabs_that_are_given_early_are_those_of_the_whole(shape, patch_size, raw_z, step_size):
    raw = (raw_z, shape[1], 4)
    starts = patch_starts(shape, patch_size, [(0, 0, 0), shape], step_size)
    weights = gaussian_weights(patch_size)
    whole, rolling = (Blend(starts, patch_size, shape, weights) for _ in range(2))
    volumes = torch.full((2, *raw), torch.nan)
    generator = torch.Generator().manual_seed(0)
    for start in starts:
        answer = torch.randn(patch_size, generator=generator)
        whole.add(answer, start)
        rolling.add(answer, start)
        enter(volumes[0], raw_slabs(rolling, shape, raw))
        rolling.release()
    enter(volumes[1], raw_slabs(whole, shape, raw))
    assert not volumes.isnan().any() and torch.equal(*volumes)


def enter(volume: torch.Tensor, slabs) -> None:
    for slab, first in slabs:
        here = volume[tuple(slice(a, a + n) for a, n in zip(first, slab.shape, strict=True))]
        assert here.isnan().all()  # nothing is given twice
        here[...] = slab
