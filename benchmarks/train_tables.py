"""The figures of `train.py` as Markdown tables."""

from __future__ import annotations

from typing import Any

from promptseg.tables import markdown_table

PROMPTS = ("automatic", "manual boxes", "names alone")


def main_dice(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The prediction that counts: with automatic prompts; for nnU-Net without prompts."""
    predictions = entry.get("predictions", {})
    return predictions.get("automatic", predictions.get("no prompts"))


def summary_line(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    if (predicted := main_dice(entry)) is None:
        return "not finished"
    return (
        f"{entry['steps']} steps of {entry['seconds_a_step_mean']:.3f} s, "
        f"Dice {predicted['predict_dice']:.4f}"
    )


def report(results: dict[str, Any]) -> str:
    """All figures as Markdown tables."""
    parts = [
        f"{results['dataset']}, fold {results['fold']}, encoders of size {results.get('size')}, "
        f"{results['machine']}",
        training_table(results),
        prompts_table(results),
        pipeline_table(results),
    ]
    unfinished = {
        name: summary_line(entry)
        for name, entry in results["runs"].items()
        if "error" in entry or main_dice(entry) is None
    }
    return "\n\n".join(filter(None, [*parts, *(f"{k}: {v}" for k, v in unfinished.items())]))


def training_table(results: dict[str, Any]) -> str:
    """Steps, Dice and time of each tool and time budget."""
    labels = results.get("labels", {})
    rows = []
    for entry in results["runs"].values():
        if (predicted := main_dice(entry)) is None:
            continue
        by_label = predicted["predict_dice_by_label"]
        held_out = entry.get("validation_dice")
        train, predict = entry["train_command"], predicted["predict_command"]
        rows.append(
            [
                entry["tool"],
                f"{entry['time_budget']:g}",
                entry["steps"],
                f"{entry['seconds_a_step_mean']:.3f}",
                *(dice(by_label.get(str(value))) for value in labels.values()),
                dice(predicted["predict_dice"]),
                dice(held_out),
                *(f"{train[key]:.0f}" for key in ("wall_seconds", "cpu_seconds")),
                *(f"{predict[key]:.1f}" for key in ("wall_seconds", "cpu_seconds")),
            ]
        )
    if not rows:
        return ""
    columns = ["tool", "budget, s", "steps", "s per step", *(f"Dice, {name}" for name in labels)]
    columns += ["Dice", "Dice, boxes held out", "training, s", "training, CPU s"]
    text = markdown_table([*columns, "prediction, s", "prediction, CPU s"], rows)
    if "nnunet" in results:
        text += (
            f"\n\nnnU-Net {results['nnunet']['version']}, 3d_fullres: its default trainer, except "
            f"that the learning rate falls over the given time, all of which is spent on training "
            f"steps (`nnunet_for_a_time.py`)."
        )
    return text


def prompts_table(results: dict[str, Any]) -> str:
    """How much the prompts matter to a trained model."""
    rows = []
    for entry in results["runs"].values():
        predictions = entry.get("predictions", {})
        if "error" in entry or not set(PROMPTS) <= set(predictions):
            continue
        by_kind = [predictions[kind]["predict_dice"] for kind in PROMPTS]
        rows.append(
            [
                entry["tool"],
                f"{entry['time_budget']:g}",
                *map(dice, by_kind),
                dice(entry["validation_dice"]),
                f"{by_kind[0] - by_kind[1]:+.4f}",
                f"{entry['validation_dice'] - by_kind[1]:+.4f}",
            ]
        )
    columns = ["tool", "budget, s", *PROMPTS, "automatic, boxes held out"]
    return (
        markdown_table([*columns, "automatic - manual", "held out - manual"], rows) if rows else ""
    )


def pipeline_table(results: dict[str, Any]) -> str:
    """The cost of the data pipeline."""
    rows = [
        [
            trainer,
            f"{p['fixed_batch']:.4f}",
            f"{p['real_data']:.4f}",
            f"{p['ratio']:.3f}",
            f"{p['making_a_batch']:.4f}",
            p["processes"],
        ]
        for trainer, p in results.get("pipeline", {}).items()
    ]
    columns = ["trainer", "fixed batch, s per step", "real data, s per step", "ratio"]
    return markdown_table([*columns, "preparing a batch, s", "workers"], rows) if rows else ""


def dice(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
