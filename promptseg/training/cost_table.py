"""The costs of all encoders and trainers as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from promptseg.networks.cost import count_parameters, network_cost
from promptseg.networks.encoders import ENCODERS
from promptseg.networks.promptable import build_network
from promptseg.plans import Normalization, Plans
from promptseg.tables import aligned
from promptseg.training.cost import step_cost
from promptseg.training.settings import TrainingSettings

DEFAULT_PATCH_SIZE, DEFAULT_STRIDE = (40, 56, 40), (8, 8, 8)  # as planned for hippocampus MR

_NOTES = """
M: million parameters. GFLOP: convolutions and matrix products for encoding one patch and for
decoding one query; a multiplication and an addition count as two. MB: peak memory of tensors in
one training step of a whole batch with AdamW's state (counted, with the default settings in fp32),
and in predicting one patch."""


def plans_for_cost(
    patch_size: Sequence[int] = DEFAULT_PATCH_SIZE,
    stride: Sequence[int] = DEFAULT_STRIDE,
    size: str = "tiny",
) -> Plans:
    """Plans of one CT channel, two labels and two patches per batch, for use without a dataset.

    Raises:
        ValueError: if patch size and stride are not positive, or do not divide.
    """
    plans = Plans(
        dataset_name="none",
        size=size,
        channel_names=("CT",),
        modalities=("CT",),
        normalizations=(Normalization(kind="window", lower=0.0, upper=255.0),),
        spacing=(1.0, 1.0, 1.0),
        median_shape=tuple(patch_size),
        patch_size=tuple(patch_size),
        stride=tuple(stride),
        batch_size=2,
        labels={"first": 1, "second": 2},
    )
    return Plans.from_json(plans.to_json(), "the given sizes")


def cost_table(
    plans: Plans, trainers: Mapping[str, str], device: str | torch.device = "cpu"
) -> str:
    """The costs of every registered encoder for some plans.

    Args:
        plans: whose patch size, stride, encoder size and batch size are used.
        trainers: the name of each trainer's encoder, by the trainer's name.
        device: the device on which the memory of prediction is measured.
    """
    titles = ["encoder", "trainers", "encoder M", "network M", "encode GFLOP", "decode GFLOP"]
    rows = [[*titles, "train MB", "predict MB", "description"]]
    for encoder in ENCODERS:
        using = ", ".join(name for name, used in trainers.items() if used == encoder)
        rows.append([encoder, using or "-", *_cost_cells(plans, encoder, device)])
    return "\n".join([f"{_described(plans)}\n", *aligned(rows, left=(0, 1, -1)), _NOTES])


def trainer_table(plans: Plans, trainers: Mapping[str, str]) -> str:
    """Every trainer with its encoder and parameters; arguments as in `cost_table`."""
    rows = [["trainer", "encoder", "encoder M", "network M", "description of the encoder"]]
    for trainer, encoder in trainers.items():
        try:
            network = build_network(plans, encoder)
        except ValueError as error:  # without this size
            rows.append([trainer, encoder, "-", "-", str(error)])
            continue
        counts = (count_parameters(network.image_encoder), count_parameters(network))
        millions = [f"{count / 1e6:.2f}" for count in counts]
        rows.append([trainer, encoder, *millions, _first_sentence(encoder)])
    return "\n".join(
        [
            *aligned(rows, left=(0, 1, -1)),
            f"\nM: million parameters, {_described(plans)}.",
            "promptseg_encoders measures their operations and memory, also for plans of yours.",
        ]
    )


def _cost_cells(plans: Plans, encoder: str, device: str | torch.device) -> list[str]:
    try:
        cost = network_cost(plans, encoder, device)
        training_bytes = step_cost(plans, encoder, TrainingSettings()).bytes
    except ValueError as error:  # an encoder may lack this size, or not fit this patch size
        return [*["-"] * 6, str(error)]
    return [
        f"{cost.encoder_parameters / 1e6:.2f}",
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.encode_flops / 1e9:.2f}",
        f"{cost.decode_flops / 1e9:.3f}",
        f"{training_bytes / 1e6:.0f}",
        f"{cost.prediction_bytes / 1e6:.0f}",
        _first_sentence(encoder),
    ]


def _first_sentence(encoder: str) -> str:
    paragraph = (ENCODERS.get(encoder).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".")


def _described(plans: Plans) -> str:
    return (
        f"size {plans.size}, patch {plans.patch_size}, stride {plans.stride} (zyx), "
        f"{len(plans.channel_names)} channel(s), batch size {plans.batch_size}"
    )
