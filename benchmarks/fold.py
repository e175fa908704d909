"""One fold of a dataset, planned, trained and predicted by promptseg's commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import HERE, Runner, Stopped, metrics_rows

from promptseg.files import read_json
from promptseg.folders import Folders, find_dataset_folder


def plan_if_missing(
    runner: Runner, folders: Folders, dataset: str, plans_name: str, size: str
) -> Path:
    """The folder of the preprocessed dataset, which is planned first if it has no such plans."""
    try:
        folder = find_dataset_folder(folders.preprocessed, dataset, "")
        if (folder / f"{plans_name}.json").is_file():
            return folder
    except FileNotFoundError:
        pass
    print("planning", flush=True)
    command = [HERE / "promptseg_plan", "-d", dataset, "-p", plans_name]
    command += ["--raw", folders.raw, "--preprocessed", folders.preprocessed]
    runner.run("plan", [*command, "--size", size])
    return find_dataset_folder(folders.preprocessed, dataset, "promptseg_plan makes it")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One trainer on one fold for a given time, by `promptseg_train`.

    Attributes:
        source: folder of the preprocessed dataset.
        results: folder of trained models.
        trainer: name of the trainer.
        plans_name: name of the plans.
        fold: number of the fold.
        time_budget: training time in seconds.
        processes: number of worker processes.
        precision: precision of training steps; None for the command's default.
        imports: modules to import because they register classes.
    """

    source: Path
    results: Path
    trainer: str
    plans_name: str
    fold: int
    time_budget: float
    processes: int = 1
    precision: str | None = None
    imports: Sequence[str] = field(default=())

    @property
    def model(self) -> Path:
        return self.results / self.source.name / f"{self.trainer}__{self.plans_name}__3d"

    @property
    def folder(self) -> Path:
        return self.model / f"fold_{self.fold}"

    def run(
        self,
        runner: Runner,
        log: str,
        pieces: list[dict[str, float]],
        stop_after: float | None = None,
    ) -> None:
        """Start or continue training, to the end or for a number of seconds.

        Appends what this run of the command used to `pieces`, the list of all runs.
        """
        command = [HERE / "promptseg_train", "-d", self.source.name, "-tr", self.trainer]
        command += ["-f", self.fold, "-p", self.plans_name]
        command += ["--time-budget", f"{self.time_budget:g}s", "-np", self.processes]
        command += ["--preprocessed", self.source.parent, "--results", self.results]
        command += ["--precision", self.precision] if self.precision else []
        command += import_flags(self.imports)
        if (self.folder / "checkpoint_latest.pth").is_file():
            command += ["--c"]
        metrics = self.folder / "metrics.csv"
        try:
            used = runner.run(log, command, metrics=metrics, stop_after=stop_after)
            pieces.append({**used, "load_after": os.getloadavg()[0]})
        except Stopped as stop:
            pieces += [stop.usage] if stop.usage else []
            raise

    def figures(self, pieces: list[dict[str, float]]) -> dict[str, Any]:
        """The figures of a finished training.

        `validation_dice` uses boxes proposed by strategies that were fitted without the case.
        """
        last = metrics_rows(self.folder / "metrics.csv")[-1]
        validation = read_json(self.folder / "validation" / "summary.json")
        return {
            "steps": int(last["step"]),
            "training_seconds": float(last["seconds"]),
            "seconds_a_step_mean": float(last["seconds"]) / int(last["step"]),
            "train_command": {
                "wall_seconds": sum(piece["wall_seconds"] for piece in pieces),
                "cpu_seconds": sum(piece["cpu_seconds"] for piece in pieces),
                "peak_resident_bytes": max(piece["peak_resident_bytes"] for piece in pieces),
            },
            "train_pieces": pieces,
            "validation_dice": validation["foreground_mean"]["Dice"],
            "validation_dice_by_label": {k: v["Dice"] for k, v in validation["mean"].items()},
        }

    def predict(self, runner: Runner, log: str, scratch: Path, *prompts: object) -> dict[str, Any]:
        """Run `promptseg_predict` on the raw images held out from the fold, with given flags.

        With `--auto-prompt` the automatic prompts are those of the plans, which are fitted on all
        training cases of the dataset, including those held out from this fold.
        """
        images, ground_truth = link_held_out(self.source, self.plans_name, self.fold, scratch)
        command = [HERE / "promptseg_predict", "-m", self.model, "-f", self.fold, *prompts]
        command += import_flags(self.imports)
        return predict_and_evaluate(
            runner, log, command, images, ground_truth, scratch / "predictions"
        )


def import_flags(imports: Sequence[str]) -> list[str]:
    return [word for module in imports for word in ("--import", module)]


def link_held_out(source: Path, plans_name: str, fold: int, scratch: Path) -> tuple[Path, Path]:
    """New folders with links to the raw images and label files of a fold's held-out cases."""
    shutil.rmtree(scratch, ignore_errors=True)
    images, ground_truth = scratch / "images", scratch / "ground_truth"
    images.mkdir(parents=True)
    ground_truth.mkdir()
    for case_id in read_json(source / "splits_final.json")[fold]["val"]:
        case = read_json(source / f"{plans_name}_3d" / f"{case_id}.json")
        for file in map(Path, case["raw"]["files"]):
            (images / file.name).symlink_to(file.absolute())
        for file in (source / "gt_segmentations").glob(f"{case_id}.*"):
            (ground_truth / file.name).symlink_to(file.absolute())
    return images, ground_truth


def predict_and_evaluate(
    runner: Runner,
    log: str,
    command: Sequence[object],
    images: Path,
    ground_truth: Path,
    predictions: Path,
    environment: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Run a prediction command, with -i and -o added, and `promptseg_evaluate`."""
    command = [*command, "-i", images, "-o", predictions]
    used = runner.run(f"{log}_predict", command, environment=environment)
    evaluate = [HERE / "promptseg_evaluate", "-g", ground_truth, "-p", predictions]
    runner.run(f"{log}_evaluate", evaluate)
    summary = read_json(predictions / "summary.json")
    return {
        "predict_dice": summary["foreground_mean"]["Dice"],
        "predict_dice_by_label": {k: v["Dice"] for k, v in summary["mean"].items()},
        "predict_cases": len(list(ground_truth.iterdir())),
        "predict_command": used,
    }
