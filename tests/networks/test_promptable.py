"""Prompts to answers: region shares, and queries that must not know of one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from promptseg.networks.encoders import ImageEmbedding, ImageEncoder
from promptseg.networks.mask_decoder import MaskDecoder
from promptseg.networks.prompt_encoder import (
    FourierPositions,
    PromptEncoder,
    Query,
    batch_queries,
    fraction_of_cells_in_boxes,
)
from promptseg.networks.promptable import PromptableNetwork, build_network, decode_in_parts
from tests.small_plans import small_plans

PATCH_SIZE = (8, 12, 16)
BOX = [[1, 2.5, 3], [5, 9.5, 12]]


def points(count: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"points": rng.uniform(0, 8, (count, 3)), "point_labels": rng.integers(0, 2, count)}


QUERIES = [
    Query(label=0),
    Query(label=1, box=BOX, image=1),
    Query(label=0, image=1, **points(1, 1)),
    Query(**points(3, 2)),
    Query(label=2, box=[[0, 0, 0], PATCH_SIZE], **points(6, 3)),
]


@pytest.fixture(scope="module")
def network() -> PromptableNetwork:
    torch.manual_seed(0)
    return build_network(small_plans(), "vit").eval()


@pytest.fixture(scope="module")
def encoding(network):
    image = torch.rand(2, 1, *PATCH_SIZE, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        return network.encode(image)


@torch.inference_mode()
def answers(network, encoding, queries):
    return network.decode(encoding, batch_queries(queries))


GRID, FINE = (2, 3, 4), 5
fine_corners = st.tuples(*(st.integers(-2, n * FINE + 2) for n in GRID))


@settings(deadline=None, max_examples=60)
@given(fine_corners, fine_corners)
def test_the_share_of_a_cell_in_a_box_is_the_share_of_its_sub_cells(a, b):
    # Corners on a grid five times as fine, so counting sub-cells is exact.
    box = np.sort([a, b], axis=0)
    fine = np.zeros([n * FINE for n in GRID])
    (z0, y0, x0), (z1, y1, x1) = np.clip(box, 0, None)
    fine[z0:z1, y0:y1, x0:x1] = 1
    counted = fine.reshape(2, FINE, 3, FINE, 4, FINE).mean(axis=(1, 3, 5))

    relative = torch.tensor(box / (np.array(GRID) * FINE), dtype=torch.float32)[None]

    np.testing.assert_allclose(fraction_of_cells_in_boxes(relative, GRID)[0], counted, atol=1e-5)


def test_fourier_positions_of_a_grid_are_those_of_its_cell_centres():
    positions = FourierPositions(8)
    grid = positions.grid((2, 3, 5))
    assert grid.shape == (8, 2, 3, 5)
    centre = torch.tensor([0.75, 0.5, 0.1])  # cells 1 of 2, 1 of 3 and 0 of 5
    torch.testing.assert_close(grid[:, 1, 1, 0], positions(centre))


def test_one_query_at_a_time_is_answered_as_all_in_one_batch(network, encoding):
    logits, iou = answers(network, encoding, QUERIES)
    assert logits.shape == (5, *PATCH_SIZE) and iou.shape == (5,)
    for i, query in enumerate(QUERIES):
        alone, its_iou = answers(network, encoding, [query])
        torch.testing.assert_close(alone[0], logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(its_iou[0], iou[i], atol=1e-5, rtol=1e-5)


def test_the_order_of_queries_and_of_a_querys_points_does_not_matter(network, encoding):
    logits, _ = answers(network, encoding, QUERIES)
    order = [3, 0, 4, 2, 1]
    permuted, _ = answers(network, encoding, [QUERIES[i] for i in order])
    torch.testing.assert_close(permuted, logits[order], atol=1e-5, rtol=1e-5)

    query = QUERIES[4]
    turned = replace(query, points=query.points[::-1], point_labels=query.point_labels[::-1])
    again, _ = answers(network, encoding, [turned])
    torch.testing.assert_close(again[0], logits[4], atol=1e-5, rtol=1e-5)


def test_every_part_of_a_query_changes_the_answer(network, encoding):
    query = Query(label=0, box=BOX, points=[[2.0, 4.0, 6.0]], point_labels=[1])
    variants = [
        query,
        replace(query, image=1),
        replace(query, label=1),
        replace(query, label=-1),
        replace(query, box=None),
        replace(query, box=[[1, 2.5, 3], [5, 9.5, 13]]),
        replace(query, points=(), point_labels=()),
        replace(query, points=[[2.0, 4.0, 7.0]]),
        replace(query, point_labels=[0]),
    ]
    logits, _ = answers(network, encoding, variants)
    different = torch.pdist(logits.flatten(1)) > 1e-2
    assert different.all()


def test_gradients_reach_every_parameter_of_the_network():
    torch.manual_seed(0)
    network = build_network(small_plans(), "vit").train()
    queries = [*QUERIES, Query(label=0, points=[[1, 1, 1], [2, 2, 2]], point_labels=[0, 1])]
    logits, iou = network(torch.rand(2, 1, *PATCH_SIZE) * 255, batch_queries(queries))
    (logits.square().mean() + iou.square().mean()).backward()
    # The bias of the keys adds the same to all scores of a softmax: its gradient is 0 in theory.
    without = [
        name
        for name, p in network.named_parameters()
        if not name.endswith("k_proj.bias") and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_padding_is_not_learnt_from():
    torch.manual_seed(0)
    encoder = PromptEncoder(8, 1)
    batch = batch_queries([Query(label=0), Query(label=0, points=[[0, 0, 0]], point_labels=[1])])
    tokens, token_mask, _ = encoder(batch, (4, 4, 4), (2, 2, 2))
    assert tokens.shape == (2, 4, 8)
    assert token_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.point_labels.tolist() == [[-1], [1]]
    assert batch.has_box.tolist() == [False, False]


def test_bfloat16_autocast_runs_and_is_near_float32(network):
    image = torch.rand(2, 1, *PATCH_SIZE, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        exact, _ = network(image, batch_queries(QUERIES))
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = network(image, batch_queries(QUERIES))
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


class Plain(ImageEncoder):
    """An encoder with no high-resolution features."""

    def __init__(self, *, channels_in, patch_size, stride, size) -> None:
        super().__init__(channels_in=channels_in, patch_size=patch_size, stride=stride, size=size)
        self.channels, self.feature_channels = 16, ()
        self.patches = nn.Conv3d(channels_in, 16, stride, stride)

    def forward(self, image):
        return ImageEmbedding(embedding=self.patches(image), features=[])


def test_answers_have_the_patches_resolution_without_features_too():
    encoder = Plain(channels_in=1, patch_size=PATCH_SIZE, stride=(2, 4, 4), size="tiny")
    network = PromptableNetwork(encoder, PromptEncoder(16, 1), MaskDecoder(16, ()))
    logits, _ = network(
        torch.rand(1, 1, *PATCH_SIZE), batch_queries([Query(label=0), Query(box=BOX)])
    )
    assert logits.shape == (2, *PATCH_SIZE)


def test_building_a_network_names_what_is_registered():
    with pytest.raises(ValueError, match=r"unknown image encoder 'vti'; registered: .*vit"):
        build_network(small_plans(), "vti")
    with pytest.raises(ValueError, match=r"unknown size 'huge' .*tiny, small, base"):
        build_network(small_plans(size="huge"), "vit")
    with pytest.raises(ValueError, match=r"strides must be powers of two, got \(2, 3, 4\)"):
        build_network(small_plans(stride=(2, 3, 4)), "vit")


@pytest.mark.parametrize("most", [1, 2, 5, 8])
@torch.inference_mode()
def test_decoding_in_parts_gives_the_answers_of_all_at_once(network, encoding, most):
    expected = answers(network, encoding, QUERIES)
    found = decode_in_parts(network, encoding, batch_queries(QUERIES), most)
    for part, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)
