"""Queries in groups: the same answers from fewer blends at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.inference.answers import blended_answers
from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.sliding_window import gaussian_weights, windows_of_regions
from promptseg.networks.prompt_encoder import Query
from promptseg.preprocessing.lazy import LazyImage
from tests.inference.fakes import LevelNetwork
from tests.small_plans import IDENTITY

SHAPE, WINDOW = (10, 20, 60), (8, 12, 16)
BOXES = np.array(
    [[[0, 0, 0], [10, 20, 50]], [[1, 2, 40], [4, 9, 47]], [[0, 0, 0], [10, 20, 50]]], float
)


def answers(**options):
    image = np.random.default_rng(0).uniform(0, 255, (1, *SHAPE)).astype(np.float32)
    network = LevelNetwork()
    lazy = LazyImage(image, (1, 1, 1), normalizations=[IDENTITY], target_spacing=(1, 1, 1))
    decoder = ImageDecoder(lazy, [network], WINDOW, flips=[()], device="cpu", most_encodings=100)
    queries = [Query(label=label, box=box) for label, box in enumerate(BOXES)]
    starts = windows_of_regions(SHAPE, WINDOW, BOXES)
    found = blended_answers(decoder, queries, starts, gaussian_weights(WINDOW), **options)
    return {a.index: (a.blend.result(), a.predicted_iou) for a in found}, network


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (2 * 10 * 20 * 50, 2)])
def test_smaller_groups_decode_fewer_at_once_and_encode_no_window_again(most, at_once):
    expected, together = answers()
    found, grouped = answers(most_open_voxels=most)
    assert together.most_at_once >= 2 and grouped.most_at_once == at_once
    assert grouped.encoded == together.encoded and grouped.decoded == together.decoded
    assert found.keys() == expected.keys() == {0, 1, 2}
    for index, (logits, iou) in expected.items():
        assert torch.equal(found[index][0], logits) and found[index][1] == iou
