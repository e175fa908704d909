"""The two halves of a network as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptseg.networks.encoding import TENSORS, Encoding
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork
from promptseg.plans import Plans

PROMPTS = (  # as in `PromptBatch`
    "labels",
    "boxes",
    "has_box",
    "points",
    "point_labels",
    "regions",
    "previous",
    "has_previous",
)
OUTPUTS = ("logits", "predicted_iou")


class EncoderGraph(nn.Module):
    """Images to the tensors of an `Encoding`."""

    def __init__(self, network: PromptableNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(b, c, z, y, x) in [0, 255] to what an `Encoding` has of its tensors."""
        return tuple(self.network.encode(image).tensors().values())


class DecoderGraph(nn.Module):
    """The encoding of one image and queries to logits."""

    def __init__(self, network: PromptableNetwork, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.patch_size = tuple(patch_size)

    def forward(
        self,
        encoded: Sequence[Tensor],
        labels: Tensor,
        boxes: Tensor,
        has_box: Tensor,
        points: Tensor,
        point_labels: Tensor,
        regions: Tensor | None = None,
        previous: Tensor | None = None,
        has_previous: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(n, z, y, x) mask logits and (n,) predicted IoU logits; see `PromptBatch`.

        More parameters than usual: each is an input of the graph.
        """
        tensors = dict(zip(TENSORS, encoded, strict=False))  # a preset's has features alone
        encoding = Encoding(patch_size=self.patch_size, **tensors)
        prompts = PromptBatch(
            image_index=torch.zeros_like(labels),
            labels=labels,
            boxes=boxes,
            has_box=has_box,
            points=points,
            point_labels=point_labels,
            regions=regions,
            previous=previous,
            has_previous=torch.zeros_like(has_box) if has_previous is None else has_previous,
        )
        if encoding.names is None:
            return self.network.decode(encoding, prompts)
        return self.network.decode(encoding, prompts, whole=True)


def prompt_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the decoder's inputs for the prompts; not every network takes maps of voxels."""
    return PROMPTS if isinstance(network, PromptableNetwork) else PROMPTS[:5]


def prompt_tensors(
    network: nn.Module, prompts: PromptBatch, patch_size: Sequence[int]
) -> tuple[Tensor, ...]:
    """The decoder's inputs for the prompts, in their order; maps without content are zeros."""
    zeros = torch.zeros(len(prompts), *patch_size)
    given = (getattr(prompts, name) for name in prompt_names(network))
    return tuple(zeros if tensor is None else tensor for tensor in given)


@torch.no_grad()
def write_encoder(network: PromptableNetwork, plans: Plans, path: Path) -> tuple[Tensor, ...]:
    """Write the image encoder with its weights, and return the encoding of an empty image.

    The number of images is free, the patch size that of the plans.

    Raises:
        RuntimeError: if a part of the network cannot be written as ONNX.
    """
    graph = EncoderGraph(network.eval())
    image = torch.zeros(2, len(plans.channel_names), *plans.patch_size)
    encoded = graph(image[:1])
    _write(
        graph,
        (image,),
        path,
        input_names=["image"],
        output_names=encoding_names(len(encoded)),
        dynamic_shapes=({0: "images"},),
    )
    return encoded


@torch.no_grad()
def write_decoder(
    network: PromptableNetwork, plans: Plans, encoded: Sequence[Tensor], path: Path
) -> None:
    """Write the prompt encoder and mask decoder, for encodings like `encoded`.

    The numbers of queries and of points are free.

    Raises:
        RuntimeError: if a part of the network cannot be written as ONNX.
    """
    # The exporter treats sizes 0 and 1 as constants, so this has three queries and two points.
    example = batch_queries([Query(points=[[0, 0, 0]] * 2, point_labels=[0, 1])] * 3)
    one, two = {0: "queries"}, {0: "queries", 1: "points"}
    names = prompt_names(network)
    _write(
        DecoderGraph(network.eval(), plans.patch_size),
        (tuple(encoded), *prompt_tensors(network, example, plans.patch_size)),
        path,
        input_names=[*encoding_names(len(encoded)), *names],
        output_names=list(OUTPUTS),
        dynamic_shapes=(
            tuple({} for _ in encoded),
            *(two if "point" in name else one for name in names),
        ),
    )


def encoding_names(count: int) -> list[str]:
    """Names of the tensors that the encoder passes to the decoder.

    Not `embedding`: the exporter names inner values after operators, and lets names clash.
    """
    return [f"image_{name}" for name in TENSORS[:count]]


def _write(graph: nn.Module, example: tuple, path: Path, **names_and_shapes: Any) -> None:
    try:
        with _without_chatter():
            torch.onnx.export(
                graph.eval(),
                example,
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                **names_and_shapes,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RuntimeError(
            f"{path.name}: torch {torch.__version__} cannot write this network as ONNX: {error}"
        ) from error


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Suppress the exporter's warnings about its own code and torchvision's operators."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
