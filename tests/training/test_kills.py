"""A run that is killed again and again, at any moment, ends as one that was left alone."""

import csv
import multiprocessing
import re
import time

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from promptseg.files import WRITING, read_json, write_json
from promptseg.training.checkpoint import load_checkpoint
from tests.training.killed_run import KilledRun, start_fork_server

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs os.fork"
)

EPOCHS, ITERATIONS = 8, 3
MODEL = "Dataset007_Boxes/ViTTrainer__PromptSegPlans__3d"
LATEST, BEST, FINAL = (f"checkpoint_{name}.pth" for name in ("latest", "best", "final"))
# Moments of the kills: in start-up or between two steps, at random; half way through a file; when
# a file is whole and not yet in its place. The network saves `latest` after every step.
MOMENTS = (
    "start-up",
    f"half {LATEST}",  # the first one: there is none yet
    f"half {BEST}",
    "steps",
    f"half {LATEST}",
    "start-up",
    f"move {LATEST}",
    "steps",
    "move progress.png",
    "steps",
    "move metrics.csv",
    "steps",
    f"half {FINAL}",
    "move prompt_strategies.json",  # in the validation of whole cases
    "move summary.json",
)


class Runs:
    """Runs of one command on one results folder."""

    def __init__(self, planned, folder):
        self.folder, self.fold = folder, folder / "results" / MODEL / "fold_0"
        self.command = [
            *("-d", "7", "-tr", "ViTTrainer", "-f", "0", "-np", "0", "-device", "cpu", "--c"),
            *("--epochs", str(EPOCHS), "--iterations", str(ITERATIONS), "--seed", "5"),
            *("--preprocessed", str(planned.preprocessed), "--results", str(folder / "results")),
        ]
        self.count = 0

    def start(self, hold=None, nth=1) -> KilledRun:
        self.count += 1
        return KilledRun(self.command, self.folder / f"run_{self.count}", hold, nth)

    def latest_step(self) -> int | None:
        path = self.fold / LATEST
        return load_checkpoint(path)["step"] if path.exists() else None

    def rows(self) -> list[dict[str, str]]:
        with open(self.fold / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def beginnings(self) -> list[int]:
        """The steps at which runs began, by the log."""
        path = self.fold / "training_log.txt"
        text = path.read_text() if path.exists() else ""
        found = re.findall(r"(?:continuing|starts).* from step (\d+)$", text, re.MULTILINE)
        return [int(step) for step in found]


@pytest.fixture(scope="module")
def uninterrupted(planned, tmp_path_factory):
    """A run that was left alone, and the seconds that its start and one of its steps took."""
    start_fork_server()
    runs = Runs(planned, tmp_path_factory.mktemp("uninterrupted"))
    times = [time.monotonic()]
    run = runs.start()
    for reached in (lambda: run.steps > 0, lambda: (runs.fold / FINAL).exists()):
        run.wait_for(reached)
        times.append(time.monotonic())
    run.end()
    start, steps = np.diff(times)
    return runs, start, steps / (EPOCHS * ITERATIONS)


def check_files(fold, rows) -> None:
    """What is there is whole: checkpoints, the table, the picture; no epoch is in it twice."""
    for path in fold.glob("checkpoint_*.pth"):
        content = load_checkpoint(path)
        ends = [row["step"] for row in content["rows"]]
        assert ends == [ITERATIONS * (n + 1) for n in range(len(ends))]
        assert len(content["losses"]) == content["step"] - ITERATIONS * len(ends)
    if (fold / "metrics.csv").exists():
        assert [row["epoch"] for row in rows()] == [str(n) for n in range(len(rows()))]
        assert all(float(row["learning_rate"]) > 0 for row in rows())
    if (fold / "progress.png").exists():
        assert imread(fold / "progress.png").ndim == 3


def check_held(runs, run, moment, step) -> None:
    """That a run stands still where it was to, before it is killed.

    Args:
        step: of `latest` when the run was started.
    """
    how, name = moment.split()
    (written,) = runs.fold.glob(f"**/{WRITING}*/{name}")
    if how == "half":
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            load_checkpoint(written)
    elif name == LATEST:
        assert load_checkpoint(written)["step"] == step + run.steps
    # every step ends with saving `latest`, so the one under way is not in it
    saved = step + run.steps - (name in (LATEST, BEST, "metrics.csv", "progress.png"))
    assert (runs.latest_step() or 0) == saved


def test_a_run_killed_again_and_again_ends_as_if_it_had_been_left_alone(
    planned, tmp_path, uninterrupted
):
    whole, start_seconds, step_seconds = uninterrupted
    runs, rng = Runs(planned, tmp_path), np.random.default_rng(7)
    write_json(runs.fold / "validation" / "summary.json", {})  # of weights from before
    for moment in MOMENTS:
        before = runs.latest_step()
        begun = runs.beginnings()
        if moment in ("start-up", "steps"):
            run = runs.start()
            if moment == "start-up":
                until = time.monotonic() + rng.uniform(0.2, 0.8) * start_seconds
                run.wait_for(lambda run=run, t=until: run.steps > 0 or time.monotonic() > t)
            else:
                steps = rng.integers(1, 3)
                run.wait_for(lambda run=run, steps=steps: run.steps >= steps)
                time.sleep(rng.uniform(0, 1) * step_seconds)
        else:
            run = runs.start(moment, rng.integers(2, 4) if before and LATEST in moment else 1)
            run.wait_for(lambda run=run: run.held)
            check_held(runs, run, moment, before or 0)
        run.kill()

        check_files(runs.fold, runs.rows)
        assert (runs.latest_step() or 0) - (before or 0) in (run.steps, run.steps - 1)
        new = runs.beginnings()[len(begun) :]
        assert new == [before or 0] or (moment == "start-up" and new == [])
    assert not (runs.fold / "validation" / "summary.json").exists()

    runs.start().end()

    assert runs.beginnings()[-1] == EPOCHS * ITERATIONS
    check_files(runs.fold, runs.rows)
    assert_same_ends(runs, whole)


def assert_same_ends(runs, whole) -> None:
    """The same in all but the seconds: checkpoints bit by bit, metrics, validation."""
    ends = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (runs.fold, whole.fold)]
    assert ends[0] == ends[1]  # no half-written files either
    for name in (LATEST, BEST, FINAL):
        one, other = (load_checkpoint(folder / name) for folder in (runs.fold, whole.fold))
        for content in (one, other):
            for row in (content, *content["rows"]):
                del row["seconds"]
        assert_equal(one, other, name)
    for name in ("epoch", "step", "learning_rate", "train_loss", "val_loss", "val_dice_box"):
        assert [row[name] for row in runs.rows()] == [row[name] for row in whole.rows()]
    assert len(runs.rows()) == EPOCHS
    for name in ("prompt_strategies.json", "validation/prompts_used.json"):
        assert read_json(runs.fold / name) == read_json(whole.fold / name)
    means = (read_json(f / "validation" / "summary.json") for f in (runs.fold, whole.fold))
    one, other = (mean["foreground_mean"] for mean in means)
    assert one == other


def assert_equal(one, other, where) -> None:
    """Bit by bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where} {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, items in enumerate(zip(one, other, strict=True)):
            assert_equal(*items, f"{where} {index}")
    else:
        assert one == other, where
