"""nnU-Net's commands, run in its own environment: plan, train for a given time, predict."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Runner

from promptseg.files import read_json


@dataclass(frozen=True, kw_only=True)
class NNUNet:
    """nnU-Net 3d_fullres on one dataset, on the CPU.

    Attributes:
        programs: folder `bin` of its environment.
        dataset: folder of the raw dataset; nothing is written there.
        work: folder for its plans, preprocessed cases and models.
        processes: number of data workers in training.
        results: path of its models relative to the work folder.
    """

    programs: Path
    dataset: Path
    work: Path
    processes: int = 1
    results: str = "results"

    @property
    def environment(self) -> dict[str, object]:
        """Environment variables that nnU-Net and its threads read."""
        return {
            "nnUNet_raw": self.dataset.parent,
            "nnUNet_preprocessed": self.work / "preprocessed",
            "nnUNet_results": self.work / self.results,
            "nnUNet_n_proc_DA": self.processes,
            "OMP_WAIT_POLICY": "PASSIVE",  # as in promptseg's commands
            "GOMP_SPINCOUNT": 10000,
        }

    @property
    def model(self) -> Path:
        trained = self.work / self.results / self.dataset.name
        return trained / "nnUNetTrainer__nnUNetPlans__3d_fullres"

    def version(self) -> str:
        code = "from importlib.metadata import version; print(version('nnunetv2'))"
        return subprocess.check_output([self.programs / "python", "-c", code], text=True).strip()

    def plan(self, runner: Runner, *flags: object) -> dict[str, float]:
        """Plan and preprocess with two processes; returns the time and memory used."""
        number = self.dataset.name.removeprefix("Dataset").split("_")[0]
        command = [self.programs / "nnUNetv2_plan_and_preprocess", "-d", number]
        command += ["-c", "3d_fullres", "-np", 2, *flags]
        return runner.run("nnunet_plan", command, environment=self.environment)

    def train(
        self, runner: Runner, log: str, *, fold: int, splits: Path, seconds: float
    ) -> dict[str, Any]:
        """Train a fold from scratch for a number of seconds, by `nnunet_for_a_time.py`.

        Args:
            runner: runs and measures the command.
            log: name of the log file.
            fold: number of the fold.
            splits: `splits_final.json`, which tells nnU-Net the training and held-out cases.
            seconds: time spent on training steps.
        """
        shutil.rmtree(self.model / f"fold_{fold}", ignore_errors=True)  # of a stopped training
        used_splits = self.work / "preprocessed" / self.dataset.name / "splits_final.json"
        shutil.copyfile(splits, used_splits)
        script = Path(__file__).with_name("nnunet_for_a_time.py").absolute()
        command = [self.programs / "python", script, seconds, self.dataset.name, "3d_fullres"]
        used = runner.run(log, [*command, fold, "-device", "cpu"], environment=self.environment)
        trained = read_json(self.model / f"fold_{fold}" / "for_a_time.json")
        return {
            "steps": trained["steps"],
            "training_seconds": trained["seconds"],
            "seconds_a_step_mean": trained["seconds"] / trained["steps"],
            "batch_size": trained["batch_size"],
            "train_command": used,
        }

    def predict_command(self, fold: int) -> list[object]:
        """`nnUNetv2_predict` with its defaults, which include mirroring at test time."""
        command = [self.programs / "nnUNetv2_predict", "-d", self.dataset.name, "-f", fold]
        return [*command, "-c", "3d_fullres", "-device", "cpu"]
