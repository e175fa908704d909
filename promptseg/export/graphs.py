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

from promptseg.networks.encoding import Encoding
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork
from promptseg.plans import Plans

PROMPTS = ("labels", "boxes", "has_box", "points", "point_labels")  # as in `PromptBatch`
OUTPUTS = ("logits", "predicted_iou")


class EncoderGraph(nn.Module):
    """Images to the tensors of an `Encoding`."""

    def __init__(self, network: PromptableNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(b, c, z, y, x) in [0, 255] to the embedding and the maps of the pyramid."""
        encoding = self.network.encode(image)
        return encoding.embedding, *encoding.pyramid


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
    ) -> tuple[Tensor, Tensor]:
        """(n, z, y, x) mask logits and (n,) predicted IoU logits; see `PromptBatch`."""
        embedding, *pyramid = encoded
        return self.network.decode(
            Encoding(patch_size=self.patch_size, embedding=embedding, pyramid=pyramid),
            PromptBatch(
                image_index=torch.zeros_like(labels),
                labels=labels,
                boxes=boxes,
                has_box=has_box,
                points=points,
                point_labels=point_labels,
            ),
        )


def prompt_tensors(prompts: PromptBatch) -> tuple[Tensor, ...]:
    """The decoder's inputs for the prompts, in their order."""
    return tuple(getattr(prompts, name) for name in PROMPTS)


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
    _write(
        DecoderGraph(network.eval(), plans.patch_size),
        (tuple(encoded), *prompt_tensors(example)),
        path,
        input_names=[*encoding_names(len(encoded)), *PROMPTS],
        output_names=list(OUTPUTS),
        dynamic_shapes=(tuple({} for _ in encoded), one, one, one, two, two),
    )


def encoding_names(count: int) -> list[str]:
    """Names of the tensors that the encoder passes to the decoder.

    Not `embedding`: the exporter names inner values after operators, and lets names clash.
    """
    return ["image_embedding", *(f"image_pyramid_{level}" for level in range(count - 1))]


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
