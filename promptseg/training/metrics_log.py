"""What a run measured, epoch by epoch: a CSV file, a picture and a line in the log."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptseg.files import replacing

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "val_loss",
    "val_dice_label",
    "val_dice_box",
    "val_dice_auto",
)

log = logging.getLogger(__name__)


def score(row: Mapping[str, Any]) -> float:
    """How good an epoch was: the Dice of automatic prompts on the validation windows.

    Without any, as when the windows are empty, it is the negative training loss; in rows of
    earlier versions, which had none where the plans had no box, the Dice of names alone.
    """
    values = (row["val_dice_auto"], row["val_dice_label"], -row["train_loss"])
    return next(value for value in values if value is not None and value == value)


def epochs_since_best(rows: Sequence[Mapping[str, Any]]) -> int:
    """Epochs after the one with the best score, of several equal ones the first; 0 for none."""
    scores = [score(row) for row in rows]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Write `metrics.csv` and `progress.png` of all epochs, and log the last one."""
    write_metrics_csv(folder / "metrics.csv", rows)
    draw_progress(folder / "progress.png", rows, title)
    values = ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if isinstance(v, float))
    log.info("epoch %d: %s", rows[-1]["epoch"], values)


def write_metrics_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line an epoch, in one step; an empty cell is an undefined value."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {k: "" if v is None or v != v else v for k, v in row.items()} for row in rows
        )


def draw_progress(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Loss, validation Dice by kind of prompt, and learning rate over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] + 1 for row in rows]

    def column(name: str) -> list[float]:
        return [float("nan") if row[name] is None else row[name] for row in rows]

    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    loss.plot(epochs, column("train_loss"), label="training", color="tab:blue")
    loss.plot(epochs, column("val_loss"), label="validation", color="tab:orange")
    loss.set_ylabel("loss")
    loss.legend()
    for name, label in (
        ("val_dice_label", "label name alone"),
        ("val_dice_box", "box from the truth, jittered"),
        ("val_dice_auto", "the plans' automatic prompt"),
    ):
        dice.plot(epochs, column(name), label=label)
    dice.set_ylabel("Dice on fixed validation windows")
    dice.set_ylim(0, 1)
    dice.legend(loc="lower right")
    rate.plot(epochs, column("learning_rate"), color="tab:gray")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    for axis in (loss, dice, rate):
        axis.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
