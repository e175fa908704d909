"""Lower precision and compilation change no answer by much, whatever the encoder."""

from __future__ import annotations

import pytest
import torch

from promptseg.networks.encoders import ENCODERS
from promptseg.networks.encoders.vit import ViT
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.training.losses import PromptLoss
from tests.shallow import shallow_networks
from tests.small_plans import small_plans

PATCH_SIZE = (4, 8, 12)
QUERIES = [
    Query(label=0),
    Query(label=1, box=[[1, 2.5, 3], [3, 7.5, 12]], image=1),
    Query(label=2, image=1, points=[[1, 2, 3], [3, 7, 11]], point_labels=[1, 0]),
    Query(box=[[0, 0, 4], [4, 6, 12]], points=[[2, 3, 9]], point_labels=[1]),
]
# Of the largest logit. bfloat16 has 8 bits, one rounding is 0.4 %; float16 has 11, 0.05 %.
TOLERANCES = {torch.bfloat16: 0.1, torch.float16: 0.02}


def plans_of(name):
    return small_plans(
        patch_size=PATCH_SIZE, stride=(1, 2, 4), preset="segvol" if name == "segvol" else "none"
    )


@pytest.fixture(scope="module", params=[*ENCODERS, "segvol"])
def network(request):
    torch.manual_seed(0)
    name = request.param
    with shallow_networks():
        return build_network(plans_of(name), "vit" if name == "segvol" else name)


@pytest.fixture
def images():
    noise = torch.rand(2, 1, *PATCH_SIZE, generator=torch.Generator().manual_seed(1))
    return 100 * noise + torch.linspace(0, 150, PATCH_SIZE[2])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_autocast_is_near_float32_forward_and_backward(network, images, dtype):
    network.train()
    prompts, target = batch_queries(QUERIES), torch.zeros(4, *PATCH_SIZE, dtype=torch.bool)
    target[:, 1:3, 2:7, 3:11] = True
    compute_loss = PromptLoss(1.0, 1.0, 1.0, 2.0)
    exact, exact_iou = network(images, prompts)
    exact_loss = compute_loss(exact, exact_iou, target)

    network.zero_grad()
    with torch.autocast("cpu", dtype):
        logits, iou = network(images, prompts)
        loss = compute_loss(logits, iou, target)
    loss.backward()

    assert logits.dtype == iou.dtype == loss.dtype == torch.float32
    assert (logits - exact).abs().max() < TOLERANCES[dtype] * exact.abs().max()
    assert (iou.sigmoid() - exact_iou.sigmoid()).abs().max() < TOLERANCES[dtype]
    torch.testing.assert_close(loss, exact_loss, rtol=0.02, atol=0)
    with_gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(with_gradients) > 10
    assert all(gradient.isfinite().all() for gradient in with_gradients)


@torch.no_grad()
def test_encoding_and_decoding_one_image_are_one_graph_each(network, images):
    network.eval()
    encode = torch.compile(network.encode, backend="eager", fullgraph=True)
    encoding, expected = encode(images[:1]), network.encode(images[:1])
    torch.testing.assert_close(encoding.features, expected.features)
    whole = {}
    if isinstance(network, PromptableNetwork):
        torch.testing.assert_close(encoding.names, expected.names)
        torch.testing.assert_close(encoding.projected, expected.projected)
        whole = {"whole": True}  # regions depend on values
    if not whole or type(network.image_encoder) is ViT:
        # of the other encoders the decoder is the same, but for widths
        decode = torch.compile(network.decode, backend="eager", fullgraph=True)
        prompts = batch_queries([Query(label=1, box=[[1, 2, 3], [3, 7, 9]]), QUERIES[3]])
        answers = network.decode(expected, prompts, **whole)
        torch.testing.assert_close(decode(encoding, prompts, **whole), answers)
    torch.compiler.reset()


@torch.no_grad()
def test_compiled_decoding_of_several_images_gives_the_same_answers(images):
    torch.manual_seed(0)
    with shallow_networks():
        network = build_network(plans_of("vit"), "vit").eval()
    encoding, decode = network.encode(images), torch.compile(network.decode, backend="eager")
    for queries in (QUERIES, QUERIES[::-1]):
        expected = network.decode(encoding, batch_queries(queries))
        torch.testing.assert_close(decode(encoding, batch_queries(queries)), expected)
    torch.compiler.reset()
