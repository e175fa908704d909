import dataclasses
import logging
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from promptseg.training.logging import (
    COLUMNS,
    WANDB_RUN,
    check_installed,
    draw_progress,
    epochs_since_best,
    log_to_file,
    metric_loggers,
    score,
)
from promptseg.training.request import RunOptions

ROWS = [
    {"epoch": 0, "step": 3, "train_loss": 0.75, "val_dice_auto": None, "val_dice_box": 0.25},
    {"epoch": 1, "step": 6, "train_loss": 0.5, "val_dice_auto": float("nan"), "val_dice_box": 0.5},
]
TENSORBOARD, WANDB = RunOptions(tensorboard=True), RunOptions(wandb="liver")


class FakeRun:
    """What of a W&B run is used."""

    def __init__(self, module, given):
        self.module, self.given = module, given
        self.id = given["id"] or f"new{len(module.runs)}"
        self.logged, self.exit_code = [], None

    def finish(self, exit_code):
        self.exit_code = exit_code

    def log(self, values, step):
        self.logged.append((step, values))


@pytest.fixture
def wandb(monkeypatch):
    """A package `wandb` that sends nothing and keeps what it was given."""
    error = type("Error", (Exception,), {})
    module = SimpleNamespace(runs=[], Settings=lambda **given: given, Error=error)

    def init(**given):
        module.runs.append(FakeRun(module, given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def logged(options, folder, before, rows):
    with metric_loggers(options, folder, before, "Some, fold_0", {"epochs": 2}) as log_row:
        for row in rows:
            log_row(row)


def test_nothing_is_imported_or_written_unless_asked_for(tmp_path, monkeypatch):
    for package in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    check_installed(RunOptions())
    logged(RunOptions(), tmp_path, [], ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "extra"), [(TENSORBOARD, "tensorboard"), (WANDB, "wandb")], ids=["tb", "wandb"]
)
def test_a_missing_package_is_one_message_with_the_command(options, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = rf'--{extra} needs the package {extra}, .*: pip install "promptseg\[{extra}\]"$'
    with pytest.raises(ImportError, match=message):
        check_installed(options)


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_gets_every_defined_number_at_its_step(tmp_path):
    logged(TENSORBOARD, tmp_path, [], ROWS)
    assert scalars(tmp_path) == {
        "epoch": [(3, 0.0), (6, 1.0)],
        "train_loss": [(3, 0.75), (6, 0.5)],
        "val_dice_box": [(3, 0.25), (6, 0.5)],
    }


def test_tensorboard_shows_an_epoch_that_was_trained_again_once(tmp_path):
    logged(TENSORBOARD, tmp_path, [], ROWS)
    logged(TENSORBOARD, tmp_path, ROWS[:1], [{**ROWS[1], "train_loss": 0.25}])
    assert scalars(tmp_path)["train_loss"] == [(3, 0.75), (6, 0.25)]


def test_wandb_gets_project_name_settings_and_metrics_and_no_output(tmp_path, wandb):
    logged(WANDB, tmp_path, [], ROWS)
    (run,) = wandb.runs
    assert run.given["project"] == "liver" and run.given["name"] == "Some, fold_0"
    assert run.given["config"] == {"epochs": 2} and run.given["dir"] == str(tmp_path)
    assert run.given["settings"] == {"console": "off", "disable_git": True, "save_code": False}
    assert run.logged == [
        (3, {"epoch": 0, "train_loss": 0.75, "val_dice_box": 0.25}),
        (6, {"epoch": 1, "train_loss": 0.5, "val_dice_box": 0.5}),
    ]
    assert run.exit_code == 0


def test_a_continued_fold_goes_on_in_its_run_at_wandb_and_a_new_one_does_not(tmp_path, wandb):
    logged(WANDB, tmp_path, [], ROWS[:1])
    logged(WANDB, tmp_path, ROWS[:1], ROWS[1:])
    logged(WANDB, tmp_path, [], ROWS[:1])  # started again
    first, second, third = wandb.runs
    assert (second.id, second.given["resume"]) == (first.id, "allow")
    assert [step for step, _ in second.logged] == [6]
    assert third.given["id"] is None and third.id != first.id
    assert (tmp_path / WANDB_RUN).read_text() == third.id


def test_epochs_before_wandb_was_asked_for_are_sent_too(tmp_path, wandb):
    logged(WANDB, tmp_path, ROWS[:1], ROWS[1:])
    assert [step for step, _ in wandb.runs[0].logged] == [3, 6]


def test_a_run_that_fails_is_marked_failed_at_wandb(tmp_path, wandb):
    with pytest.raises(RuntimeError, match="the loss became nan"):
        with metric_loggers(WANDB, tmp_path, [], "Some", {}):
            raise RuntimeError("the loss became nan")
    assert wandb.runs[0].exit_code == 1


def test_without_a_login_it_is_said_how_to_get_one(tmp_path, wandb, monkeypatch):
    def init(**given):
        raise wandb.Error("no API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(RuntimeError, match="'liver': no API key configured; run `wandb login`"):
        logged(WANDB, tmp_path, [], ROWS)
    assert list(tmp_path.iterdir()) == []


def test_both_can_be_asked_for_at_once(tmp_path, wandb):
    logged(dataclasses.replace(WANDB, tensorboard=True), tmp_path, [], ROWS)
    assert len(wandb.runs[0].logged) == 2 and len(scalars(tmp_path)["epoch"]) == 2


def row(auto=None, label=None, train_loss=0.5):
    return {"val_dice_auto": auto, "val_dice_label": label, "train_loss": train_loss}


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (row(auto=0.7, label=0.8), 0.7),
        (row(auto=None, label=0.8), 0.8),
        (row(auto=math.nan, label=0.8), 0.8),
        (row(auto=0.0, label=0.8), 0.0),
        (row(auto=None, label=math.nan), -0.5),
    ],
)
def test_the_score_is_the_first_dice_that_there_is(epoch, expected):
    assert score(epoch) == expected


@pytest.mark.parametrize(
    ("dice", "since"),
    [
        ([], 0),
        ([0.1], 0),
        ([0.1, 0.2], 0),
        ([0.2, 0.1], 1),
        ([0.2, 0.2, 0.2], 2),
        ([1, 0, 2, 1], 1),
    ],
)
def test_epochs_since_the_best_count_an_equal_score_as_no_better(dice, since):
    assert epochs_since_best([row(auto=value) for value in dice]) == since


def blue_pixels(path):
    """Pixels of the colour of the training loss."""
    red, green, blue = np.moveaxis(imread(path)[..., :3], -1, 0) * 255
    return np.count_nonzero((abs(red - 31) < 3) & (abs(green - 119) < 3) & (abs(blue - 180) < 3))


def test_a_single_epoch_is_visible_in_the_picture(tmp_path):
    epoch = {name: 0.1 * number for number, name in enumerate(COLUMNS)}
    hidden = epoch | {"train_loss": None, "val_dice_label": None}  # both are blue
    for name, values in (("shown", epoch), ("hidden", hidden)):
        draw_progress(tmp_path / f"{name}.png", [values], "Some, fold_0")
    assert blue_pixels(tmp_path / "shown.png") > blue_pixels(tmp_path / "hidden.png") + 10


@pytest.mark.parametrize("error", [ValueError("no such case"), KeyboardInterrupt()])
def test_the_log_file_is_appended_to_and_names_what_ends_a_run(tmp_path, error):
    logger, path = logging.getLogger("promptseg"), tmp_path / "fold_0" / "training_log.txt"
    before = logger.level, list(logger.handlers)
    with log_to_file(path):
        logger.info("step 1")
    with pytest.raises(type(error)), log_to_file(path):
        logger.info("step 2")
        raise error
    logger.warning("after the run")
    text = path.read_text()
    assert text.index("step 1") < text.index("step 2")
    assert f"error: {str(error) or 'KeyboardInterrupt'}" in text and "after the run" not in text
    assert (logger.level, logger.handlers) == before
