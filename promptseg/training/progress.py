"""How far a training run has come: steps, time, metrics, and the progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from tqdm import tqdm

from promptseg.progress_bar import progress_bar
from promptseg.training.logging import epochs_since_best
from promptseg.training.settings import TrainingSettings


@dataclass(kw_only=True)
class Progress:
    """What a run has done so far, over all its continuations.

    Attributes:
        step: optimizer steps.
        seconds: time of training.
        rows: metrics of each finished epoch.
        losses: loss of each step of the current epoch.
    """

    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of_checkpoint(cls, content: Mapping[str, Any]) -> Progress:
        return cls(**{entry.name: content[entry.name] for entry in fields(cls)})

    def state(self) -> dict[str, Any]:
        """The entries of a checkpoint."""
        return dict(vars(self))

    def epoch(self, settings: TrainingSettings) -> int:
        """Index of the current epoch, starting at 0."""
        return self.step // settings.iterations_per_epoch

    def fraction(self, settings: TrainingSettings) -> float:
        """Fraction of the run that is done, by time or by steps; 1 or more at its end."""
        if settings.time_budget is not None:
            return self.seconds / settings.time_budget
        return self.step / (settings.epochs * settings.iterations_per_epoch)

    def ended_early(self, settings: TrainingSettings) -> bool:
        """Whether the validation score has not improved for `early_stopping` epochs."""
        patience = settings.early_stopping
        return patience > 0 and epochs_since_best(self.rows) >= patience

    @property
    def loss(self) -> float:
        """Mean training loss of the current epoch, or of the previous one if it has just begun."""
        if self.losses:
            return float(np.mean(self.losses))
        return self.rows[-1]["train_loss"] if self.rows else float("nan")


def run_bar(fraction: float, *, shown: bool) -> tqdm:
    """A progress bar in percent that begins at a fraction of the run."""
    return progress_bar(
        total=100.0,
        initial=min(100 * fraction, 100),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        disable=not shown,
    )
