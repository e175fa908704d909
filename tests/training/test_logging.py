import dataclasses
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from promptseg.training.logging import WANDB_RUN, check_installed, metric_loggers
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
