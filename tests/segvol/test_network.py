"""The preset's network as the rest of the package uses it."""

from __future__ import annotations

import pytest
import torch

from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import build_network, decode_in_parts
from promptseg.segvol.network import SegVolNetwork, SegVolSizes
from promptseg.segvol.prompt_encoder import FourierPositions
from tests.small_plans import small_plans

PLANS = small_plans(preset="segvol")  # 8x12x16 voxels, stride 2x4x4: a grid of 4x3x4
BOX = [[1, 2.5, 3], [5, 9.5, 12]]
QUERIES = [
    Query(label=0),
    Query(label=2, image=1, box=BOX),
    Query(image=1, points=[[1, 2, 3], [7, 11, 15]], point_labels=[1, 0]),
    Query(),
]


@pytest.fixture(scope="module")
def network() -> SegVolNetwork:
    torch.manual_seed(0)
    return build_network(PLANS, "vit").eval()


@pytest.fixture
def image():
    return torch.rand(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1)) * 255


def test_a_plan_of_the_preset_builds_segvol(network):
    assert isinstance(network, SegVolNetwork)
    assert not isinstance(build_network(small_plans(), "vit"), SegVolNetwork)


@pytest.mark.parametrize("encoder", ["mobilenet", "resnet", ""])
def test_the_preset_has_no_other_encoder(encoder):
    with pytest.raises(ValueError, match="the preset segvol is SegVol's own network, whose enc"):
        build_network(PLANS, encoder)


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown size 'huge' .* tiny, small, base"):
        build_network(small_plans(preset="segvol", size="huge"), "vit")


def test_channels_of_the_plan_reach_the_patches():
    plans = small_plans(preset="segvol", channel_names=("T1", "T2"))
    assert build_network(plans, "vit").image_encoder.patches.in_channels == 2


def test_the_released_sizes_are_the_defaults():
    # Without text, SegVol has 117,330,128 parameters and a buffer of 3 x 384; of these the unused
    # mask_downscaling has 13,388. New here: 12 biases of 3 x 768 and, for 5 labels, 5 x 512
    # vectors and dim_align's 768 x 513.
    with torch.device("meta"):
        network = SegVolNetwork(
            SegVolSizes(), patch_size=(32, 256, 256), stride=(4, 16, 16), label_count=5
        )
    count = sum(p.numel() for p in network.parameters())
    assert count == 117_330_128 - 13_388 + 12 * 3 * 768 + 5 * 512 + 768 * 513


@pytest.mark.parametrize(
    "patch_size, stride, message",
    [
        ((8, 12, 16), (3, 4, 4), r"patch \(8, 12, 16\) is not a multiple of stride \(3, 4, 4\)"),
        ((8, 12, 16), (2, 5, 4), "not a multiple"),
        ((8, 12, 15), (2, 4, 4), "not a multiple"),
    ],
)
def test_a_patch_of_parts_of_tokens_is_refused(patch_size, stride, message):
    with pytest.raises(ValueError, match=message):
        SegVolNetwork(SegVolSizes(), patch_size=patch_size, stride=stride, label_count=1)


@pytest.mark.parametrize("shape", [(8, 12, 8), (16, 12, 16), (12, 8, 16), (4, 6, 8), (8, 12, 17)])
def test_other_patches_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"made for the patch size \(8, 12, 16\), the image has"):
        network.encode(torch.zeros(1, 1, *shape))


@torch.inference_mode()
def test_intensities_are_divided_by_255(network, image):
    encoding = network.encode(image)
    assert encoding.patch_size == (8, 12, 16) and encoding.names is None
    torch.testing.assert_close(encoding.features, network.image_encoder(image / 255))
    whole = image.to(torch.uint8)
    torch.testing.assert_close(
        network.encode(whole).features, network.encode(whole.float()).features
    )


@torch.inference_mode()
def test_queries_do_not_know_of_one_another(network, image):
    encoding = network.encode(image)
    logits, iou = network.decode(encoding, batch_queries(QUERIES))
    assert logits.shape == (4, 8, 12, 16) and iou.shape == (4,)
    for i, query in enumerate(QUERIES):
        alone, alone_iou = network.decode(encoding, batch_queries([query]))
        torch.testing.assert_close(alone[0], logits[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone_iou[0], iou[i], rtol=1e-4, atol=1e-5)
    parts, _ = decode_in_parts(network, encoding, batch_queries(QUERIES), most=2)
    torch.testing.assert_close(parts, logits, rtol=1e-4, atol=1e-5)


def test_a_label_is_a_prompt_once_it_was_trained(image):
    torch.manual_seed(0)
    network = build_network(PLANS, "vit").eval()
    named, nameless = (batch_queries([Query(label=label, box=BOX)]) for label in (2, -1))
    with torch.inference_mode():
        encoding = network.encode(image)
        before, _ = network.decode(encoding, named)
        without, _ = network.decode(encoding, nameless)
        torch.testing.assert_close(before, without)

    network.train()
    network(image, named)
    assert network.label_text.learned.tolist() == [False, False, True]
    network.eval()
    with torch.inference_mode():
        after, _ = network.decode(encoding, named)
        assert (after - without).abs().max() > 1e-3
        other, _ = network.decode(encoding, batch_queries([Query(label=0, box=BOX)]))
        torch.testing.assert_close(other, without)

    again = build_network(PLANS, "vit").eval()
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        same, _ = again.decode(again.encode(image), named)
    torch.testing.assert_close(same, after)


def test_gradients_reach_all_that_an_answer_depends_on(image):
    network = build_network(PLANS, "vit").train()
    logits, iou = network(image, batch_queries(QUERIES))
    (logits.square().mean() + iou.square().mean()).backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == set()
    still = {name for name, p in network.named_parameters() if not p.grad.any()}
    # the other mask tokens answer nothing, as in SegVol; a key's bias cancels in the softmax
    assert all(
        name.startswith(tuple(f"mask_decoder.responses.{i}." for i in (1, 2, 3))) or "bias" in name
        for name in still
    )


def test_moving_the_image_moves_the_answer(network, image):
    with torch.inference_mode():
        embedding = network.encode(image).features
        moved = network.encode(image.roll(8, dims=4)).features
    assert embedding.std(dim=(2, 3, 4)).min() > 0.01
    assert (embedding - moved).abs().max() > 0.1


@torch.inference_mode()
def test_bfloat16_autocast_stays_near(network, image):
    # bfloat16 has 8 bits: a few per cent. Coordinates in it would be off by whole periods.
    exact, _ = network(image, batch_queries(QUERIES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, iou = network(image, batch_queries(QUERIES))
        batch = batch_queries(QUERIES)
        tokens, _ = network.prompt_encoder.embed(batch, *network.label_text(batch.labels))
    assert logits.dtype == iou.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()
    wanted, _ = network.prompt_encoder.embed(batch, *network.label_text(batch.labels))
    torch.testing.assert_close(tokens[:, :5], wanted[:, :5])


@torch.inference_mode()
def test_channels_last_memory_changes_nothing(network, image):
    wanted, _ = network(image, batch_queries(QUERIES))
    other = build_network(PLANS, "vit").eval()
    other.load_state_dict(network.state_dict())
    other.to(memory_format=torch.channels_last_3d)
    logits, _ = other(image, batch_queries(QUERIES))
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_fourier_positions_of_a_grid_are_those_of_its_cell_centres():
    positions = FourierPositions(8)
    grid = positions.grid((2, 3, 5))
    assert grid.shape == (8, 2, 3, 5)
    centre = torch.tensor([0.75, 0.5, 0.1])  # cells 1 of 2, 1 of 3 and 0 of 5
    torch.testing.assert_close(grid[:, 1, 1, 0], positions(centre))


def test_autocast_leaves_positions_exact():
    torch.manual_seed(0)
    positions, places = FourierPositions(64), torch.rand(50, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = positions(places)
    angles = 2 * torch.pi * (2 * places.double() - 1) @ positions.frequencies.double()
    exact = torch.cat([angles.sin(), angles.cos()], dim=-1)
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=1e-5)
