"""The optimizer of a recipe, and the seeds of all random generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from promptseg.training.settings import TrainingSettings


def make_optimizer(network: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Adam for the recipe `paper`, AdamW for `scratch`; no decay on vectors and embeddings."""
    if settings.recipe == "paper":
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=settings.initial_lr, fused=True)
    embeddings = {
        id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)
    }
    decayed, kept = [], []
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        is_kept = parameter.ndim < 2 or id(parameter) in embeddings
        (kept if is_kept else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.initial_lr, fused=True)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
