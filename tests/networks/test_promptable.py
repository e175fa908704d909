"""Prompts to answers: their maps, queries that do not know of one another, and local effects."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from promptseg.networks.encoders import ENCODERS, ImageEmbedding, ImageEncoder
from promptseg.networks.grid import Grid, resized, resized_part
from promptseg.networks.head_maps import MARGIN
from promptseg.networks.mask_decoder import QualityHead
from promptseg.networks.names import (
    AROUND,
    ENOUGH,
    MISLED,
    SURE,
    TELLING,
    after_clicks,
    agreeing,
    decided,
    same_extent,
)
from promptseg.networks.prompt_encoder import (
    NEW_OBJECT,
    Query,
    batch_queries,
    box_maps,
    click_maps,
    click_pushes,
)
from promptseg.networks.promptable import (
    PromptableNetwork,
    build_network,
    decode_in_parts,
)
from promptseg.networks.regions import CLICK_REACH
from tests.small_plans import small_plans

PATCH_SIZE = (8, 12, 16)
BOX = [[1, 2.5, 3], [5, 9.5, 12]]
RNG = np.random.default_rng(5)
REGION = np.zeros(PATCH_SIZE)
REGION[3], REGION[3, 2:9, 4:11] = -1, 1
PREVIOUS = RNG.normal(-3, 1, PATCH_SIZE)
PREVIOUS[2:6, 3:9, 4:12] += 6


def points(count: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"points": rng.uniform(0, 8, (count, 3)), "point_labels": rng.integers(0, 2, count)}


QUERIES = [
    Query(label=0),
    Query(label=1, box=BOX, image=1),
    Query(label=0, image=1, **points(1, 1)),
    Query(**points(3, 2)),
    Query(label=2, box=[[0, 0, 0], PATCH_SIZE], **points(6, 3)),
    Query(label=NEW_OBJECT, region=REGION),
    Query(label=1, previous=PREVIOUS, **points(2, 4)),
    Query(box=BOX, previous=PREVIOUS, **points(2, 5)),
]


def awake(network: PromptableNetwork) -> PromptableNetwork:
    """With random weights where training begins at zero, so that prompts change something."""
    for layer in (network.prompt_head.on_voxels[-1], network.prompt_head.film):
        nn.init.normal_(layer.weight, std=0.5)
    return network


@pytest.fixture(scope="module")
def network() -> PromptableNetwork:
    torch.manual_seed(0)
    return awake(build_network(small_plans(), "unet")).eval()


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
def test_the_fraction_of_an_element_in_a_box_is_that_of_its_voxels(a, b):
    box = np.sort([a, b], axis=0)
    fine = np.zeros([n * FINE for n in GRID])
    (z0, y0, x0), (z1, y1, x1) = np.clip(box, 0, None)
    fine[z0:z1, y0:y1, x0:x1] = 1
    counted = fine.reshape(2, FINE, 3, FINE, 4, FINE).mean(axis=(1, 3, 5))

    grid = Grid(shape=GRID, stride=(FINE, FINE, FINE), spacing=(1.0, 1.0, 1.0))
    found = box_maps(torch.tensor(box, dtype=torch.float32)[None], grid)

    np.testing.assert_allclose(found[0], counted, atol=1e-5)


def test_clicks_are_bumps_of_the_same_width_in_mm_along_all_axes():
    grid = Grid(shape=(5, 9, 9), stride=(1, 1, 1), spacing=(2.0, 1.0, 1.0))
    clicked = torch.tensor([[[2.0, 4, 4], [0, 0, 0], [9, 9, 9]]])
    maps = click_maps(clicked, torch.tensor([[1, 0, -1]]), grid, [2.0])
    assert maps.shape == (1, 2, 5, 9, 9)
    foreground, background = maps[0]
    assert foreground[2, 4, 4] == 1 and background[0, 0, 0] == 1
    torch.testing.assert_close(foreground[3, 4, 4], foreground[2, 6, 4])  # 2 mm away
    torch.testing.assert_close(foreground[2, 4, 6], torch.tensor(np.exp(-0.5), dtype=torch.float32))


def test_a_map_of_a_part_is_that_part_of_the_map():
    whole = Grid(shape=(4, 6, 8), stride=(1, 2, 2), spacing=(1.0, 1.0, 1.0))
    part = replace(whole, shape=(2, 3, 5), first=(1, 2, 3))
    clicked, kinds = torch.tensor([[[1.0, 5, 9], [3, 8, 2]]]), torch.tensor([[1, 0]])
    here = (..., slice(1, 3), slice(2, 5), slice(3, 8))
    for make in (
        lambda grid: click_maps(clicked, kinds, grid, [1.5, 6.0]),
        lambda grid: box_maps(torch.tensor([BOX]), grid),
    ):
        torch.testing.assert_close(make(part), make(whole)[here])


def test_opposite_clicks_beside_each_other_do_not_cancel_out():
    grid = Grid(shape=(5, 9, 15), stride=(1, 1, 1), spacing=(3.0, 1.0, 1.0))
    points = torch.tensor([[[2.0, 4, 4], [2, 4, 6], [0, 0, 0]]])
    kinds = torch.tensor([[1, 0, -1]])
    (pushed,) = click_pushes(points, kinds, torch.tensor([[3.0, -4.0, 0.0]]), grid, [4.0])[0]
    assert pushed[2, 4, 4] > 2 and pushed[2, 4, 6] < -3
    assert 0.2 < pushed[0, 0, 0] < 0.5  # padding is no click
    alone = click_pushes(points[:, :1], kinds[:, :1], torch.tensor([[3.0]]), grid, [4.0])[0, 0]
    # 5 pixels away in the slice; one slice of 3 pixels up
    for place, away in (((2, 4, 9), 5), ((3, 4, 4), 3)):
        assert float(alone[place]) == pytest.approx(3 * np.exp(-0.5 * (away / 4) ** 2), abs=0.02)


def test_clicks_on_thick_slices_do_not_fall_between_coarse_elements():
    # Half an element, 2 voxels, is the least width. The centre of the voxel (1, 2, 3) is 0.5, 0.5
    # and 1.5 voxels from that of its element of 4x4x4, which is at 2: 2.75 square voxels.
    grid = Grid(shape=(4, 4, 4), stride=(4, 4, 4), spacing=(1.0, 1.0, 1.0))
    maps = click_maps(torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[1]]), grid, [0.5])
    assert float(maps[0, 0, 0, 0, 0]) == pytest.approx(np.exp(-0.5 * 2.75 / 2**2))
    # Slices of 5 pixels: a click anywhere in a slice is at most half a slice from its centre.
    thick = Grid(shape=(4, 6, 6), stride=(1, 1, 1), spacing=(5.0, 1.0, 1.0))
    between = torch.tensor([[[z, 2.0, 3.0]] for z in np.linspace(0, 3, 13)])
    maps = click_maps(between, torch.ones(13, 1), thick, [1.0])
    assert maps[:, 0].amax(dim=(1, 2, 3)).min() > 0.6


def test_one_query_at_a_time_is_answered_as_all_in_one_batch(network, encoding):
    logits, iou = answers(network, encoding, QUERIES)
    assert logits.shape == (len(QUERIES), *PATCH_SIZE) and iou.shape == (len(QUERIES),)
    for i, query in enumerate(QUERIES):
        alone, its_iou = answers(network, encoding, [query])
        torch.testing.assert_close(alone[0], logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(its_iou[0], iou[i], atol=1e-5, rtol=1e-5)


def test_the_order_of_queries_and_of_a_querys_points_does_not_matter(network, encoding):
    logits, _ = answers(network, encoding, QUERIES)
    order = [3, 0, 6, 4, 2, 1, 5]
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
        replace(query, label=NEW_OBJECT),
        replace(query, region=REGION),
        replace(query, previous=PREVIOUS),
        replace(query, box=None),
        replace(query, box=[[1, 2.5, 3], [5, 9.5, 13]]),
        replace(query, points=(), point_labels=()),
        replace(query, points=[[2.0, 4.0, 7.0]]),
        replace(query, point_labels=[0]),
    ]
    logits, _ = answers(network, encoding, variants)
    different = torch.pdist(logits.flatten(1)) > 1e-3
    assert different.all()


@pytest.mark.parametrize("name", list(ENCODERS))
def test_gradients_reach_every_parameter_of_the_network(name):
    torch.manual_seed(0)
    network = awake(build_network(small_plans(), name)).train()
    with torch.no_grad():
        network.name_head.classes.bias[1] += 4  # so that not all masks are empty
    queries = [*QUERIES, Query(points=[[1, 1, 1], [2, 2, 2]], point_labels=[0, 1])]
    encoding = network.encode(torch.rand(2, 1, *PATCH_SIZE) * 255)
    logits, iou = network.decode(encoding, batch_queries(queries))
    (logits.square().mean() + iou.square().mean()).backward()
    # The bias of an attention's keys adds the same to all scores of a softmax.
    without = [
        name
        for name, p in network.named_parameters()
        if not name.endswith("in_proj_bias") and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_points_are_padded_and_what_no_query_has_is_no_map():
    batch = batch_queries([Query(label=0), Query(label=0, points=[[0, 0, 0]], point_labels=[1])])
    assert batch.point_labels.tolist() == [[-1], [1]]
    assert batch.has_box.tolist() == [False, False]
    assert batch.is_prompted.tolist() == [False, True]
    assert batch.regions is None and batch.previous is None
    both = batch_queries([Query(region=REGION), Query(previous=PREVIOUS)])
    assert both.is_prompted.tolist() == [True, True]
    assert both.has_previous.tolist() == [False, True]
    assert not both.previous[0].any() and not both.regions[1].any()


def test_a_scribble_costs_the_other_queries_of_its_batch_nothing(network, encoding):
    seen = []
    hook = network.likeness.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[1].points.shape[1])
    )
    queries = [Query(label=0, box=BOX), Query(label=1, **points(40, 6)), QUERIES[2]]
    logits, ious = answers(network, encoding, queries)
    hook.remove()
    assert seen == [0, 40, 1]
    for number, query in enumerate(queries):
        alone, iou = answers(network, encoding, [query])
        torch.testing.assert_close(logits[number], alone[0])
        torch.testing.assert_close(ious[number], iou[0])


def test_a_name_alone_is_the_class_against_all_others(network, encoding):
    logits, _ = answers(network, encoding, [Query(label=1, image=1)])
    probabilities = encoding.names[1].exp()
    expected = torch.logit(probabilities[2].double(), eps=1e-4)
    torch.testing.assert_close(logits[0].double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(PATCH_SIZE))


def test_what_is_none_of_the_labels_is_told_from_the_image_and_not_by_their_features():
    network = build_network(small_plans(), "unet").eval()
    for parameter in network.prompt_head.parameters():  # whose ends begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    box = np.array([[1, 2, 3], [5, 7, 9.0]])
    prompts = batch_queries([Query(label=label, box=box) for label in (NEW_OBJECT, 0)])
    with torch.inference_mode():
        encoding = network.encode(torch.rand(1, 1, *PATCH_SIZE) * 255)
        logits, _ = network.decode(encoding, prompts)
        others = replace(encoding, projected=torch.randn_like(encoding.projected))
        by_others, _ = network.decode(others, prompts)
        inverted = replace(encoding, values=-encoding.values)
        by_image, _ = network.decode(inverted, prompts)
    torch.testing.assert_close(by_others[0], logits[0])
    assert not torch.allclose(by_others[1], logits[1], atol=1e-2)
    assert not torch.allclose(by_image[0], logits[0], atol=1e-2)


def test_untrained_prompts_change_what_names_say_at_clicks_only():
    network = build_network(small_plans(), "unet").eval()
    network.likeness.logarithms.data[3] = -30.0  # and not at voxels like theirs
    image = torch.rand(1, 1, *PATCH_SIZE) * 255
    click = {"points": [[2, 3, 4]], "point_labels": [0]}
    queries = [
        Query(label=1),
        Query(label=1, **click),
        Query(label=1, previous=PREVIOUS, **click),
        Query(label=1, previous=PREVIOUS),
    ]
    with torch.inference_mode():
        (named, clicked, corrected, before), _ = network(image, batch_queries(queries))
    torch.testing.assert_close(before, named)
    assert named[2, 3, 4] > -MARGIN
    torch.testing.assert_close(clicked[2, 3, 4], torch.tensor(-MARGIN))
    pushed = (named - clicked) / (named - clicked)[2, 3, 4]  # fades with the distance
    fading = (np.exp(-0.5 * (4 / 2.5) ** 2) + np.exp(-0.5 * (4 / 5) ** 2)) / 2
    assert float(pushed[2, 3, 8]) == pytest.approx(fading, abs=1e-3)
    torch.testing.assert_close(corrected, clicked)


def test_a_prompt_changes_nothing_far_away():
    """What it changes on a large patch, in its region, is what it would change in the whole."""
    torch.manual_seed(0)
    plans = small_plans(patch_size=(16, 48, 64), spacing=(1.0, 1.0, 1.0))
    network = awake(build_network(plans, "unet")).eval()
    previous = np.full(plans.patch_size, -5.0)
    previous[4:9, 4:9, 4:9] = 5
    click = {"points": [[6, 10, 8]], "point_labels": [1]}
    queries = [
        Query(label=0, previous=previous),
        Query(label=0, previous=previous, **click),
        Query(label=0, box=[[2, 3, 4], [9, 12, 13]]),
    ]
    with torch.inference_mode():
        encoding = network.encode(torch.rand(1, 1, *plans.patch_size) * 255)
        (before, after, boxed), iou = network.decode(encoding, batch_queries(queries))
        whole, _ = network.decode(encoding, batch_queries(queries), whole=True)
        of_all = network.quality_head(
            after[None], encoding.features, batch_queries([queries[1]]), 1
        )
    changed = (before != after).nonzero()
    reach = 2 * CLICK_REACH  # voxels
    assert len(changed) and (abs(changed - torch.tensor([6, 10, 8])).amax(0) <= reach + 4).all()
    assert (boxed[:, 20:, :] == -SURE).all() and (boxed[:, :, 20:] == -SURE).all()
    inside = (slice(3, 9), slice(5, 10), slice(5, 10))  # further from the region's border
    torch.testing.assert_close(whole[1][inside], after[inside], rtol=1e-4, atol=1e-4)
    assert ((whole[2] == -SURE) == (boxed == -SURE)).all()
    torch.testing.assert_close(iou[1:2], of_all)  # the predicted IoU is that of the whole mask


@pytest.mark.parametrize("clicks", [{}, {"points": [[5, 6, 7]], "point_labels": [1]}])
def test_nothing_of_a_mask_to_correct_is_left_beyond_a_box(clicks):
    torch.manual_seed(0)
    plans = small_plans(patch_size=(16, 48, 64), spacing=(1.0, 1.0, 1.0))
    network = awake(build_network(plans, "unet")).eval()
    previous = np.full(plans.patch_size, -5.0)
    previous[4:12, 4:40, 4:60] = 5
    query = Query(label=0, previous=previous, box=[[2, 3, 4], [9, 12, 13]], **clicks)
    with torch.inference_mode():
        encoding = network.encode(torch.rand(1, 1, *plans.patch_size) * 255)
        here, _ = network.decode(encoding, batch_queries([query]))
        whole, _ = network.decode(encoding, batch_queries([query]), whole=True)
    # a quarter of the side and 2 voxels further: 9 + 1.75 + 2, 12 + 4.25 and 13 + 4.25
    for beyond in (np.s_[0, 13:], np.s_[0, :, 17:], np.s_[0, :, :, 18:]):
        assert (here[beyond] == -SURE).all() and (whole[beyond] == -SURE).all()
    assert (here[0, 4:9, 4:12, 4:13] > -SURE).any()


def test_a_part_of_a_resized_map_is_that_part():
    grid = Grid(shape=(3, 5, 6), stride=(1, 4, 2), spacing=(1.0, 1.0, 1.0))
    maps = torch.rand(2, 1, *grid.shape)
    whole = resized(maps, (3, 20, 12))
    for first, shape in (((0, 0, 0), (3, 5, 6)), ((1, 2, 3), (2, 2, 1)), ((0, 4, 5), (1, 1, 1))):
        part = replace(grid, shape=shape, first=first)
        fine = part.at((1, 1, 1))
        assert fine.shape == (shape[0], 4 * shape[1], 2 * shape[2])
        torch.testing.assert_close(resized_part(maps, part, fine), whole[(..., *fine.slices)])
        assert resized_part(maps, part, part).shape[2:] == shape


def test_an_untrained_quality_is_the_iou_that_the_logits_promise():
    quality = QualityHead(4)
    nn.init.zeros_(quality.rate[-1].weight)
    nn.init.zeros_(quality.rate[-1].bias)
    # 1000 voxels of probability 3/4 in the mask and 500 of 1/4 beside it: the union of all is
    # 1000 + 125, and 750 are expected to be right
    logits = torch.full((1, 10, 20, 20), -9.0)
    logits[0, :5, :10], logits[0, 5:, :5] = math.log(3), -math.log(3)
    features = torch.rand(1, 4, 10, 20, 20)
    iou = quality(logits, features, batch_queries([Query(label=0)]), 1).sigmoid()
    assert float(iou.detach()) == pytest.approx(750 / 1125, abs=0.002)
    # on a map of elements of 4 voxels the same
    coarse = quality(logits, features, batch_queries([Query(label=0)]), 4).sigmoid()
    assert float(coarse.detach()) == pytest.approx(750 / 1125, abs=0.002)


@pytest.mark.parametrize("unet", ["unet", "vit"])
def test_one_graph_without_regions_answers_alike(unet):
    torch.manual_seed(0)
    network = awake(build_network(small_plans(), unet)).eval()
    with torch.inference_mode():
        encoding = network.encode(torch.rand(2, 1, *PATCH_SIZE) * 255)
        one_by_one, iou = network.decode(encoding, batch_queries(QUERIES))
        together, its_iou = network.decode(encoding, batch_queries(QUERIES), whole=True)
    # a region's border differs: beyond it there are zeros in place of the rest of the patch
    assert ((together - one_by_one).abs() < 1e-4).float().mean() > 0.8
    assert (together - one_by_one).abs().max() < 2


def test_a_ring_extends_as_far_as_its_box_and_what_it_encloses_does_not():
    names = torch.full((1, 2, 4, 12, 12), 0.01)
    names[0, 0, :, 2:10, 2:10] = 0.9  # a ring of 8x8, a disc of 4x4
    names[0, 0, :, 4:8, 4:8], names[0, 1, :, 4:8, 4:8] = 0.05, 0.9
    box = torch.zeros(1, 4, 12, 12)
    box[0, :, 2:10, 2:10] = 1
    ring, disc = same_extent(names, box)[0]
    # along y and x 8 * 0.9 of 8 + 4 * 0.01, along z 4 * 0.9 of 4
    assert float(ring) == pytest.approx(0.9 * (7.2 / 8.04) ** 2)
    assert float(disc) == pytest.approx(0.9 * ((4 * 0.9 + 4 * 0.01) / 8.04) ** 2)


@pytest.mark.parametrize("first", [{"box": BOX}, {}])
def test_clicks_tell_what_is_meant_until_there_is_a_mask_to_correct(network, encoding, first):
    def meant(**given):
        return network.meant_labels(encoding, batch_queries([Query(**first, **given)]))

    clicks = points(4, 3)
    assert (meant() - meant(**clicks)).abs().max() > 1e-4
    corrected = meant(previous=PREVIOUS, **clicks)
    torch.testing.assert_close(corrected, meant(previous=PREVIOUS))
    if first:  # the mask is an answer to the box
        torch.testing.assert_close(corrected, meant())
    else:
        assert (corrected - meant()).abs().max() > 1e-4


def test_a_label_is_ruled_out_by_a_click_that_it_contradicts_beyond_its_border():
    # the first label fills the volume from x = 12, on voxels of 2x1x1
    names = torch.zeros(1, 2, 8, 24, 24)
    names[:, 0, ..., 12:], names[:, 1] = 1.0, 0.04
    grid = Grid(shape=(8, 24, 24), stride=(1, 1, 1), spacing=(2.0, 1.0, 1.0))

    def factors(x, kind):
        query = Query(points=np.array([[4, 12, x]]), point_labels=[kind])
        return agreeing(names, batch_queries([query]), grid)[0].tolist()

    assert (AROUND, ENOUGH) == (5, 0.1)
    assert factors(20, 1) == [1, pytest.approx(0.4)]  # 0.04 of 0.1
    assert factors(20, 0) == [0, 1]
    assert factors(4, 1) == [0, pytest.approx(0.4)] and factors(4, 0) == [1, 1]
    # of a ball of radius 5 a plane at 2.5 from its centre cuts off 5/32, one at 3.5 about 0.06
    for x in (9, 10, 11):
        assert factors(x, 1)[0] == 1
    assert 0.4 < factors(8, 1)[0] < 1 and factors(6, 1)[0] == 0


def test_what_lies_inside_a_small_or_thin_label_does_not_contradict_it():
    names = torch.full((1, 1, 20, 24, 24), 0.01)
    names[0, 0, 9:12, 11:14, 3:20] = 0.9  # a tube
    grid = Grid(shape=(20, 24, 24), stride=(1, 1, 1), spacing=(1.0, 1.0, 1.0))
    scribble = np.array([[10, 12, x] for x in range(5, 18)])
    queries = [Query(points=scribble[:k], point_labels=[1] * k) for k in (0, 1, 13)]
    found = agreeing(names.expand(3, -1, -1, -1, -1), batch_queries(queries), grid)
    torch.testing.assert_close(found, torch.ones(3, 1))
    # and a scribble elsewhere counts once, not once for each of its points
    away = [Query(points=scribble[:k] + [7, 8, 0], point_labels=[1] * k) for k in (1, 13)]
    one, all_of_it = agreeing(names.expand(2, -1, -1, -1, -1), batch_queries(away), grid)
    torch.testing.assert_close(one, all_of_it)


def test_a_click_counts_against_a_label_as_far_as_the_box_does_not_mean_it_for_certain():
    assert MISLED == 0.02
    weights = torch.tensor([[0.8, 0.1], [0.99, 0.0], [0.8, 0.1]])
    possible = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    # none 0.1 against 0.8 * 0.02 and 0.1; none 0.01 against 0.99 * 0.02; nothing new
    expected = [[0.016 / 0.216, 0.1 / 0.216], [0.0198 / 0.0298, 0.0], [0.8, 0.1]]
    torch.testing.assert_close(after_clicks(weights, possible), torch.tensor(expected))


def test_only_the_first_clicks_rule_out_a_label():
    names = torch.zeros(1, 1, 8, 24, 24)
    names[..., 12:] = 1.0
    grid = Grid(shape=(8, 24, 24), stride=(1, 1, 1), spacing=(1.0, 1.0, 1.0))

    def factor(*columns):
        clicked = np.array([[4, 12, x] for x in columns])
        query = Query(points=clicked, point_labels=[1] * len(clicked))
        others = Query(points=np.zeros((6, 3)), point_labels=[1] * 6)  # which pad the first
        batch = batch_queries([query, others])
        return float(agreeing(names.expand(2, -1, -1, -1, -1), batch, grid)[0])

    assert TELLING == 3
    assert factor(20, 19, 3) == 0 and factor(20, 19, 18, 3) == 1


def test_a_mask_of_what_clicks_rule_out_is_not_corrected():
    torch.manual_seed(0)
    certain = awake(build_network(small_plans(labels={"liver": 1}), "unet")).eval()
    certain.name_match.rate[-1].weight.data.zero_()  # that a box means the label
    certain.name_match.rate[-1].bias.data.fill_(2.0)

    def answer(**given):
        with torch.inference_mode():
            return certain.decode(encoding, batch_queries([Query(**{"box": BOX, **given})]))[0]

    with torch.inference_mode():
        encoding = certain.encode(torch.rand(1, 1, *PATCH_SIZE) * 255)
    liver = torch.full((8, 12, 16), 1e-3)
    liver[:3] = 0.9
    names = torch.stack([1 - liver, liver])[None].log()
    encoding = replace(
        encoding, names=names[(..., *(slice(None, None, s) for s in certain.stride))]
    )
    of_label = np.full(PATCH_SIZE, -9.0)
    of_label[:3] = 9
    there, away = {"points": [[1, 5, 5]]}, {"points": [[7, 11, 15]]}
    for clicked, is_kept in ((there, True), (away, False)):
        clicked["point_labels"] = [1]
        corrected, anew = answer(previous=of_label, **clicked), answer(**clicked)
        assert (float((corrected - anew).abs().max()) > 1e-3) == is_kept
        # another mask than the label's is someone's own
        own = answer(previous=-of_label, **clicked)
        assert (own - anew).abs().max() > 1e-3
        # told that it is no label, there was nothing to rule out
        told = {"label": NEW_OBJECT, **clicked}
        assert (answer(previous=of_label, **told) - answer(**told)).abs().max() > 1e-3


def test_what_is_likely_becomes_nearly_certain():
    # none 1/4, 1/2 and 1/4: their cubes are as 1, 8 and 1
    weights = decided(torch.tensor([[0.5, 0.25], [0.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.1], [0.0, 0.0], [0.5, 0.5]]))


def test_bfloat16_autocast_runs_and_is_near_float32(network):
    image = torch.rand(2, 1, *PATCH_SIZE, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        exact, _ = network(image, batch_queries(QUERIES))
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = network(image, batch_queries(QUERIES))
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


class Plain(ImageEncoder):
    """An encoder with no finer features."""

    def build(self, channels_in, patch_size, size) -> None:
        self.channels, self.feature_channels = 16, ()
        self.patches = nn.Conv3d(channels_in, 16, self.strides[-1], self.strides[-1])

    def forward(self, image):
        return ImageEmbedding(embedding=self.patches(image), features=[])


def test_answers_have_the_patches_resolution_without_features_too():
    stride = (2, 4, 4)
    encoder = Plain(
        channels_in=1, patch_size=PATCH_SIZE, stride=stride, size="tiny", finest_stride=stride
    )
    logits, _ = PromptableNetwork(encoder, ((1,),))(
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
