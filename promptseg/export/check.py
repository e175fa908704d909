"""Comparing ONNX files with the network that they were made from."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptseg.export.graphs import (
    OUTPUTS,
    DecoderGraph,
    EncoderGraph,
    encoding_names,
    prompt_names,
    prompt_tensors,
)
from promptseg.networks.prompt_encoder import NEW_OBJECT, PromptBatch, Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork
from promptseg.plans import Plans

TOLERANCE = 1e-3  # largest difference relative to the largest value


log = logging.getLogger(__name__)


def check(
    network: PromptableNetwork, plans: Plans, encoder_path: Path, decoder_path: Path
) -> float | None:
    """`largest_difference`; None, with a warning, where onnxruntime is not installed.

    Raises:
        RuntimeError: if the difference is larger than `TOLERANCE`.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        log.warning("the files were not checked: pip install onnxruntime, which compares them")
        return None
    difference = largest_difference(network, plans, encoder_path, decoder_path)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{encoder_path.name} and {decoder_path.name} answer differently from the network: "
            f"largest relative difference {difference:.1e}, allowed {TOLERANCE:.0e}; they were "
            f"not kept"
        )
    return difference


@torch.no_grad()
def largest_difference(
    network: PromptableNetwork, plans: Plans, encoder_path: Path, decoder_path: Path
) -> float:
    """Run files and network on random patches, with prompts of every kind.

    Returns:
        The largest difference between outputs, relative to the largest value of each output.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    providers = ["CPUExecutionProvider"]
    encode = onnxruntime.InferenceSession(encoder_path, options, providers)
    decode = onnxruntime.InferenceSession(decoder_path, options, providers)
    encoder = EncoderGraph(network).eval()
    decoder = DecoderGraph(network, plans.patch_size).eval()
    rng = np.random.default_rng(0)
    shape = (2, len(plans.channel_names), *plans.patch_size)
    images = torch.from_numpy(rng.uniform(0, 255, shape).astype(np.float32))
    images[1] = images[1] / 5 + torch.linspace(0, 200, shape[-1])  # less noise, and a slope

    encoded = encoder(images)
    names = encoding_names(len(encoded))
    found = encode.run(names, {"image": images.numpy()})
    differences = [_difference(a, b) for a, b in zip(found, encoded, strict=True)]
    for prompts in _prompts_of_every_kind(plans, rng):
        for image in range(len(images)):
            expected = decoder(
                [part[image : image + 1] for part in encoded], **_named(network, prompts, plans)
            )
            inputs = {
                name: part[image : image + 1] for name, part in zip(names, found, strict=True)
            }
            inputs |= {
                name: tensor.numpy() for name, tensor in _named(network, prompts, plans).items()
            }
            answers = decode.run(list(OUTPUTS), inputs)
            differences += [_difference(a, b) for a, b in zip(answers, expected, strict=True)]
    return max(differences)


def _named(network: PromptableNetwork, prompts: PromptBatch, plans: Plans) -> dict[str, Tensor]:
    tensors = prompt_tensors(network, prompts, plans.patch_size)
    return dict(zip(prompt_names(network), tensors, strict=True))


def _difference(found: np.ndarray, expected: Tensor) -> float:
    """The largest difference relative to the largest value; infinite if there is a NaN."""
    expected = expected.numpy()
    largest = max(float(np.abs(expected).max()), 1e-6)
    return float(np.nan_to_num(np.abs(found - expected).max(), nan=np.inf)) / largest


def _prompts_of_every_kind(plans: Plans, rng: np.random.Generator) -> Sequence[PromptBatch]:
    """Each kind alone, and all in one batch, in which some need padding."""
    patch_size = np.array(plans.patch_size)
    box = np.stack([patch_size * rng.uniform(0, 0.4, 3), patch_size * rng.uniform(0.6, 1, 3)])
    label = len(plans.labels) - 1
    points = {"points": rng.uniform(0, patch_size - 1, (3, 3)), "point_labels": [1, 0, 1]}
    kinds = [
        Query(label=label),
        Query(label=0, box=box),
        Query(box=box),
        Query(**points),
        Query(label=0, points=points["points"][:1], point_labels=[1]),
        Query(label=label, box=box, **points),
        Query(label=NEW_OBJECT, region=rng.integers(-1, 2, patch_size)),
        Query(label=0, previous=rng.normal(0, 4, patch_size), **points),
    ]
    return [*(batch_queries([query]) for query in kinds), batch_queries(kinds)]
