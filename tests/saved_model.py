"""Networks that are not trained, and a model folder of them as training leaves it."""

from __future__ import annotations

import torch
from torch import nn

from promptseg.networks.promptable import build_network
from promptseg.training.checkpoint import save_checkpoint
from promptseg.training.settings import TrainingSettings
from tests.small_plans import small_plans


def untrained(encoder="residual", seed=1, plans=None) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(plans or small_plans(), encoder)


def saved_model(folder, plans, folds=("0",), encoder="residual"):
    """A model folder as training leaves it, of untrained networks."""
    for number, fold in enumerate(folds):
        (folder / f"fold_{fold}").mkdir(parents=True)
        content = {
            "plans": plans.to_json(),
            "encoder": encoder,
            "settings": TrainingSettings().to_json(),
            "network": untrained(encoder, number, plans).state_dict(),
        }
        save_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", content)
    return folder
