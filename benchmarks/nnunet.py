"""nnU-Net's commands, run in its own environment: plan, train for a time, predict."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Runner

from promptseg.files import read_json

TRAINER = "nnUNetTrainerTimeBudget"  # in the folder nnunet_trainers


@dataclass(frozen=True, kw_only=True)
class NNUNet:
    """nnU-Net 3d_fullres on one dataset.

    Attributes:
        programs: the `bin` folder of its environment.
        dataset: the raw dataset; nothing is written there.
        work: folder for its plans, preprocessed cases and models.
        processes: data workers in training.
    """

    programs: Path
    dataset: Path
    work: Path
    processes: int = 1

    def environment(self, results: str = "results") -> dict[str, object]:
        """The variables nnU-Net reads; `results` is the folder of models in the work folder."""
        return {
            "nnUNet_raw": self.dataset.parent,
            "nnUNet_preprocessed": self.work / "preprocessed",
            "nnUNet_results": self.work / results,
            "nnUNet_extTrainer": Path(__file__).absolute().parent / "nnunet_trainers",
            "nnUNet_n_proc_DA": self.processes,
        }

    @property
    def preprocessed(self) -> Path:
        return self.work / "preprocessed" / self.dataset.name

    def version(self) -> str:
        code = "from importlib.metadata import version; print(version('nnunetv2'))"
        return subprocess.check_output([self.programs / "python", "-c", code], text=True).strip()

    def plan_if_missing(self, runner: Runner) -> dict[str, float] | None:
        """Plan and preprocess with two processes; what it used, None when that was done before."""
        done = self.work / "preprocessed" / f"{self.dataset.name}.done"
        if done.is_file():
            return None
        print("nnU-Net is planning", flush=True)
        number = self.dataset.name.removeprefix("Dataset").split("_")[0]
        command = [self.programs / "nnUNetv2_plan_and_preprocess", "-d", number]
        command += ["-c", "3d_fullres", "-np", 2]
        used = runner.run("nnunet_plan", command, environment=self.environment())
        done.touch()
        return used

    def train(
        self, runner: Runner, log: str, *, fold: int, splits: Path, seconds: float, results: str
    ) -> dict[str, Any]:
        """Train a fold, from the beginning, for so many seconds.

        Args:
            runner: measures the command.
            log: its name.
            fold: number.
            splits: `splits_final.json`, by which nnU-Net is made to train and hold back.
            seconds: of training steps; see `nnunet_trainers/time_budget.py`.
            results: folder of models in the work folder.
        """
        shutil.copyfile(splits, self.preprocessed / "splits_final.json")
        command = [self.programs / "nnUNetv2_train", self.dataset.name, "3d_fullres", fold]
        command += ["-tr", TRAINER, "-device", "cpu"]
        environment = {**self.environment(results), "nnUNet_time_budget": seconds}
        used = runner.run(log, command, environment=environment)
        model = self.work / results / self.dataset.name / f"{TRAINER}__nnUNetPlans__3d_fullres"
        trained = read_json(model / f"fold_{fold}" / "time_budget.json")
        return {
            "steps": trained["steps"],
            "training_seconds": trained["seconds"],
            "seconds_a_step_mean": trained["seconds"] / trained["steps"],
            "batch_size": trained["batch_size"],
            "train_command": used,
        }

    def predict_command(self, fold: int, trainer: str = TRAINER) -> list[object]:
        """`nnUNetv2_predict` with its defaults, which mirror at test time, on the CPU."""
        command = [self.programs / "nnUNetv2_predict", "-d", self.dataset.name, "-f", fold]
        return [*command, "-tr", trainer, "-c", "3d_fullres", "-device", "cpu"]
