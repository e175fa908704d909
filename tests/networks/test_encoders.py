"""The contract that every registered image encoder keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from promptseg.networks.encoders import ENCODERS, ImageEmbedding, ImageEncoder
from promptseg.networks.encoders.base import SIZES
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import build_network
from promptseg.training.trainers import TRAINERS
from tests.small_plans import small_plans

CONFIGURATIONS = {  # channels, patch, stride
    "anisotropic": (1, (4, 24, 16), (2, 8, 8)),
    "isotropic, two channels": (2, (12, 8, 16), (4, 4, 4)),
    "flat": (1, (1, 24, 32), (1, 8, 8)),
    "thin, uneven": (2, (3, 16, 24), (1, 4, 8)),
    "no stride": (1, (3, 4, 6), (1, 1, 1)),
}


@pytest.fixture(params=list(ENCODERS))
def name(request) -> str:
    return request.param


@pytest.fixture(params=CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def configuration(request):
    return request.param


def make_encoder(name, channels, patch_size, stride) -> ImageEncoder:
    torch.manual_seed(1)
    encoder = ENCODERS.get(name)(
        channels_in=channels, patch_size=patch_size, stride=stride, size="tiny"
    )
    return encoder.eval()


def random_images(channels, patch_size, count=2) -> torch.Tensor:
    return (
        torch.rand(count, channels, *patch_size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    )


def check_shapes(encoder, images, stride):
    patch_size = images.shape[2:]
    with torch.inference_mode():
        encoded = encoder(images)
    grid = tuple(w // s for w, s in zip(patch_size, stride, strict=True))
    assert encoded.embedding.shape == (len(images), encoder.channels, *grid)
    assert tuple(f.shape[1] for f in encoded.features) == encoder.feature_channels
    strides = encoder.strides[: len(encoded.features)]
    for feature, of_map in zip(encoded.features, strides, strict=True):
        assert tuple(feature.shape[2:]) == tuple(
            w // s for w, s in zip(patch_size, of_map, strict=True)
        )


def test_the_embedding_is_the_patch_by_the_stride_and_features_have_their_strides(
    name, configuration
):
    channels, patch_size, stride = configuration
    encoder = make_encoder(name, channels, patch_size, stride)
    check_shapes(encoder, random_images(channels, patch_size), stride)


def test_patches_other_than_the_planned_one_are_encoded_too(name):
    encoder = make_encoder(name, 1, (4, 24, 16), (2, 8, 8))
    check_shapes(encoder, random_images(1, (8, 16, 32)), (2, 8, 8))


def spread_of_responses(encoder, channels, patch_size, stride) -> float:
    """How much the place where the embedding changes depends on where the image changed.

    Up to twelve tokens' voxels are changed, one at a time. Each gives a map over the tokens of
    how much they change, of sum 1; the mean total variation distance of two such maps, 0 to 1.
    """
    image = random_images(channels, patch_size, 1)
    grid = [w // s for w, s in zip(patch_size, stride, strict=True)]
    tokens = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(5))[:12]]
    changed = image.repeat(len(tokens), 1, 1, 1, 1)
    for one, token in zip(changed, tokens.tolist(), strict=True):
        z, y, x = (slice(t * s, (t + 1) * s) for t, s in zip(token, stride, strict=True))
        one[:, z, y, x] *= -0.5
    with torch.inference_mode():
        change = (encoder(changed).embedding - encoder(image).embedding).norm(dim=1).flatten(1)
    maps = change / change.sum(dim=1, keepdim=True)
    return float(torch.pdist(maps, p=1).mean() / 2)


class Pooled(torch.nn.Module):
    """What must not happen: an encoder that forgets where things are."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> ImageEmbedding:
        encoded = self.encoder(image)
        pooled = encoded.embedding.mean(dim=(2, 3, 4), keepdim=True).expand_as(encoded.embedding)
        return ImageEmbedding(embedding=pooled, features=encoded.features)


def test_moving_the_input_moves_the_output_and_pooling_would_be_noticed(name, configuration):
    encoder = make_encoder(name, *configuration)
    assert spread_of_responses(encoder, *configuration) > 0.02
    assert spread_of_responses(Pooled(encoder), *configuration) < 1e-3


def test_images_of_a_batch_do_not_know_of_each_other_and_eval_is_deterministic(name, configuration):
    channels, patch_size, stride = configuration
    encoder = make_encoder(name, channels, patch_size, stride)
    images = random_images(channels, patch_size, 3)
    order = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        encoded, again, permuted = encoder(images), encoder(images), encoder(images[order])
        alone = encoder(images[:1])
    torch.testing.assert_close(encoded.embedding, again.embedding, rtol=0, atol=0)
    torch.testing.assert_close(permuted.embedding, encoded.embedding[order])
    torch.testing.assert_close(alone.embedding, encoded.embedding[:1], rtol=1e-4, atol=1e-4)
    for feature, other in zip(encoded.features, permuted.features, strict=True):
        torch.testing.assert_close(other, feature[order])


def test_gradients_reach_every_parameter(name, configuration):
    channels, patch_size, stride = configuration
    encoder = make_encoder(name, channels, patch_size, stride).train()
    encoded = encoder(random_images(channels, patch_size))
    weigh = torch.Generator().manual_seed(3)
    total = sum(
        (out * torch.randn(out.shape, generator=weigh)).sum()
        for out in (encoded.embedding, *encoded.features)
    )
    total.backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_ball_is_learnt(name):
    plans = small_plans(patch_size=(4, 12, 16))
    torch.manual_seed(4)
    network = build_network(plans, name).train()
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in plans.patch_size), indexing="ij")
    target = (((z - 2) * 2) ** 2 + (y - 5) ** 2 + (x - 9) ** 2 <= 12).float()[None]
    image = (60 + 120 * target + 20 * torch.randn(1, *plans.patch_size))[None]
    prompts = batch_queries([Query(label=1)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        logits, _ = network(image, prompts)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def documented_parameters():
    text = (Path(__file__).parents[2] / "documentation" / "reference" / "encoders.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `\w+` \| (\w+) \| ([\d.]+) M \|", text, re.MULTILINE)
    return [
        (encoder, each, 1e6 * float(millions))
        for encoder, size, millions in rows
        for each in (SIZES if size == "any" else [size])
    ]


@pytest.mark.parametrize(("encoder", "size", "expected"), documented_parameters())
def test_parameters_are_as_documented(encoder, size, expected):
    with torch.device("meta"):
        built = ENCODERS.get(encoder)(
            channels_in=1, patch_size=(48, 64, 64), stride=(8, 8, 8), size=size
        )
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(expected, rel=0.02)


def test_every_encoder_and_size_is_documented():
    documented = {(encoder, size) for encoder, size, _ in documented_parameters()}
    assert documented == {(encoder, size) for encoder in ENCODERS for size in SIZES}


def test_every_encoder_has_a_trainer():
    assert {TRAINERS.get(trainer).encoder for trainer in TRAINERS} >= set(ENCODERS)


@pytest.mark.parametrize("stride", [(1, 16, 16), (4, 16, 16), (2, 64, 64), (2, 2, 2)])
def test_strides_with_more_or_fewer_levels_than_stages_work(name, stride):
    patch_size = tuple(2 * s for s in stride)
    check_shapes(make_encoder(name, 1, patch_size, stride), random_images(1, patch_size, 1), stride)


def test_an_unknown_size_is_refused(name):
    with pytest.raises(ValueError, match=rf"unknown size 'giant' of the encoder {name}; it has .*"):
        ENCODERS.get(name)(channels_in=1, patch_size=(4, 8, 8), stride=(2, 4, 4), size="giant")
