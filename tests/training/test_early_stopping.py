"""Whole runs with early stopping, averaged weights, lower precision and event files."""

import dataclasses
import logging
import sys

import pytest
import torch

from promptseg.commands import train as command
from promptseg.inference.load import load_networks
from promptseg.training.checkpoint import load_checkpoint
from promptseg.training.fold import load_fold
from promptseg.training.request import RunOptions
from promptseg.training.settings import TrainingSettings
from promptseg.training.trainer import BaseTrainer
from promptseg.training.trainers import TRAINERS

MODEL = "Dataset007_Boxes/UNetTrainer__PromptSegPlans__3d"
NO_PROGRESS = {"initial_lr": 1e-12, "epochs": 9, "iterations_per_epoch": 1, "early_stopping": 2}


def trainer(planned, folder, *, extend=None, validation=1, options=None, **settings) -> BaseTrainer:
    """A prepared run on the planned dataset; with `extend` it continues what is there."""
    every = load_fold(planned.preprocessed / "Dataset007_Boxes", "PromptSegPlans", "all")
    cases = every.training_cases
    given = dataclasses.replace(
        every, training_cases=cases[validation:], validation_cases=cases[:validation]
    )
    resume = extend is not None
    run = TRAINERS.get("ViTTrainer")(
        given,
        folder,
        TrainingSettings(**settings),
        RunOptions(device="cpu", processes=0, resume=resume, **(options or {})),
        extend=extend,
    )
    run.prepare()
    return run


def weights(folder, name="final", entry=("network",)):
    content = load_checkpoint(folder / f"checkpoint_{name}.pth")
    for key in entry:
        content = content[key]
    return content


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_without_progress_ends_with_its_best_and_goes_on_only_with_more_patience(
    planned, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    fold = tmp_path / "fold_0"
    run = trainer(planned, fold, **NO_PROGRESS)
    assert run.run()
    # the rate is too small to change any voxel: epoch 0 is the best, 1 and 2 are no better
    assert run.progress.step == 3 and len(run.progress.rows) == 3
    assert "ended after 3 epochs, 2 of them without a better validation score" in caplog.text
    best = load_checkpoint(fold / "checkpoint_best.pth")
    assert best["step"] == load_checkpoint(fold / "checkpoint_final.pth")["step"] == 1
    assert_same_weights(weights(fold), best["network"])

    caplog.clear()
    again = trainer(planned, fold, extend={"epochs": 20})
    assert again.run() and again.progress.step == 3
    assert "give --c and a larger --early-stopping, or --early-stopping 0" in caplog.text

    patient = trainer(planned, fold, extend={"early_stopping": 3})
    assert patient.run() and patient.progress.step == 4

    endless = trainer(planned, fold, extend={"early_stopping": 0, "epochs": 5})
    assert endless.run() and endless.progress.step == 5
    assert load_checkpoint(fold / "checkpoint_final.pth")["step"] == 5  # no longer the best


def test_early_stopping_without_validation_cases_is_refused_before_anything_is_removed(
    planned, tmp_path
):
    kept = tmp_path / "fold_all" / "checkpoint_latest.pth"
    kept.parent.mkdir()
    kept.write_bytes(b"")
    with pytest.raises(ValueError, match="early stopping needs validation cases, and this fold"):
        trainer(planned, kept.parent, validation=0, early_stopping=3, options={"overwrite": True})
    assert kept.exists()


def test_a_missing_package_is_reported_before_anything_is_removed(planned, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    kept = tmp_path / "fold_0" / "checkpoint_latest.pth"
    kept.parent.mkdir()
    kept.write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "promptseg\[wandb\]"'):
        trainer(planned, kept.parent, options={"overwrite": True, "wandb": "project"})
    assert kept.exists()


def test_a_stopped_run_with_averages_continues_to_the_same_weights_and_averages(planned, tmp_path):
    settings = {"epochs": 2, "iterations_per_epoch": 2, "ema": 0.9, "early_stopping": 50}
    whole, parts = tmp_path / "whole" / "fold_0", tmp_path / "parts" / "fold_0"
    assert trainer(planned, whole, **settings).run()

    first = trainer(planned, parts, **settings)
    save = first._save

    def save_and_stop(name):  # as a signal that comes while the first epoch is saved
        save(name)
        first.stop_requested = name == "latest"

    first._save = save_and_stop
    assert not first.run() and first.progress.step == 2
    assert trainer(planned, parts, extend={}).run()

    for entry in (("network",), ("unaveraged", "network")):
        assert_same_weights(weights(whole, "latest", entry), weights(parts, "latest", entry))
    assert weights(whole, "latest", ("rows", -1))["step"] == 4
    networks, _, _ = load_networks(whole.parent, None, "checkpoint_latest.pth")
    assert_same_weights(networks[0].state_dict(), weights(whole, "latest"))
    name = "name_head.classes.weight"
    averaged, trained = (
        weights(whole, "latest"),
        weights(whole, "latest", ("unaveraged", "network")),
    )
    assert not torch.equal(averaged[name], trained[name])


def test_a_checkpoint_of_before_these_settings_predicts_and_continues_without_them(
    planned, tmp_path
):
    fold = tmp_path / "fold_0"
    assert trainer(planned, fold, epochs=1, iterations_per_epoch=2).run()
    for path in fold.glob("checkpoint_*.pth"):
        content = load_checkpoint(path)
        for name in ("unaveraged", "scaler"):
            del content[name]
        for name in ("ema", "early_stopping", "precision", "rare_label_fraction"):
            del content["settings"][name]
        torch.save({**content, "best": 0.25}, path)

    networks, _, settings = load_networks(tmp_path, None, "checkpoint_final.pth")
    assert_same_weights(networks[0].state_dict(), weights(fold))
    # it was trained in float32 on any device; on a GPU, nobody asking would mean bf16 now
    assert (settings.precision, settings.ema, settings.early_stopping) == ("fp32", 0.0, 0)
    assert settings.rare_label_fraction == 0
    again = trainer(planned, fold, extend={"epochs": 2})
    assert again.run() and again.progress.step == 4 and again.learner.average is None


def test_a_checkpoint_of_version_0_1_0_predicts_and_continues_under_its_former_names(
    planned, tmp_path
):
    fold = tmp_path / "fold_0"
    chosen = {"zoom_out_fraction": 0.125, "rare_label_fraction": 0.375}
    assert trainer(planned, fold, epochs=1, iterations_per_epoch=1, **chosen).run()
    for path in fold.glob("checkpoint_*.pth"):
        content = load_checkpoint(path)
        plans, settings = content["plans"], content["settings"]
        content["plans"] = {("window" if k == "patch_size" else k): v for k, v in plans.items()}
        former = {f"{name}_fraction": f"{name}_share" for name in ("zoom_out", "rare_label")}
        content["settings"] = {former.get(k, k): v for k, v in settings.items()}
        content["settings"]["labels_per_image"] = 4  # which nothing has replaced
        torch.save(content, path)

    networks, plans, settings = load_networks(tmp_path, None, "checkpoint_final.pth")
    assert_same_weights(networks[0].state_dict(), weights(fold))
    assert plans.patch_size == tuple(content["plans"]["window"])
    assert (settings.zoom_out_fraction, settings.rare_label_fraction) == (0.125, 0.375)
    again = trainer(planned, fold, extend={"epochs": 2})
    assert again.run() and again.progress.step == 2
    assert again.settings.zoom_out_fraction == 0.125


def test_the_command_trains_as_its_flags_say_and_keeps_it_when_continued(planned, tmp_path, capsys):
    roots = ["--preprocessed", str(planned.preprocessed), "--results", str(tmp_path)]
    fixed = ["-d", "7", "-f", "all", "-np", "0", "-device", "cpu", "--tensorboard", *roots]
    flags = ["--epochs", "1", "--iterations", "1", "--ema", "0.5", "--precision", "bf16"]
    assert command.main([*fixed, *flags]) == 0
    fold = tmp_path / MODEL / "fold_all"
    settings = load_checkpoint(fold / "checkpoint_final.pth")["settings"]
    assert (settings["ema"], settings["precision"]) == (0.5, "bf16")
    assert len(list(fold.glob("events.out.tfevents.*"))) == 1
    capsys.readouterr()

    assert (
        command.main([*fixed, "--c", "--epochs", "2", "--ema", "0.9", "--precision", "fp32"]) == 0
    )

    assert "--ema, --precision ignored: a continued run keeps its own" in capsys.readouterr().err
    content = load_checkpoint(fold / "checkpoint_final.pth")
    assert (content["settings"]["ema"], content["settings"]["precision"]) == (0.5, "bf16")
    assert content["step"] == content["unaveraged"]["updates"] == 2


def test_a_run_that_ended_early_goes_on_from_its_final_checkpoint_alone(planned, tmp_path):
    fold = tmp_path / "fold_0"
    assert trainer(planned, fold, **NO_PROGRESS).run()
    best = weights(fold)
    for name in ("latest", "best"):
        (fold / f"checkpoint_{name}.pth").unlink()
    again = trainer(planned, fold, extend={"epochs": 9})
    assert again.progress.step == len(again.progress.rows)
    assert again.run()
    assert_same_weights(weights(fold), best)
    assert_same_weights(weights(fold, "best"), best)


def test_without_its_best_checkpoint_a_run_ends_with_its_last_and_says_so(
    planned, tmp_path, caplog
):
    fold = tmp_path / "fold_0"
    run = trainer(planned, fold, **{**NO_PROGRESS, "epochs": 2})
    assert run.run() and len(run.progress.rows) == 2
    (fold / "checkpoint_best.pth").unlink()
    content = load_checkpoint(fold / "checkpoint_latest.pth")
    content["rows"][0]["val_dice_auto"] = 2.0  # the best is elsewhere, whatever comes
    torch.save(content, fold / "checkpoint_latest.pth")
    assert trainer(planned, fold, extend={"epochs": 3, "early_stopping": 5}).run()
    assert "checkpoint_best.pth is gone; the final checkpoint is the last epoch's" in caplog.text
    assert load_checkpoint(fold / "checkpoint_final.pth")["step"] == 3
