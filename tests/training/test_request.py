from dataclasses import fields
from pathlib import Path

import pytest

from promptseg.training.request import RunOptions, TrainingRequest
from promptseg.training.settings import EXTENDING, TrainingSettings


def test_only_given_settings_override_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainingRequest(trainer="MobileNetTrainer", fold=3).overrides() == {}
    request = TrainingRequest(epochs=2, ema=0.0, teacher=Path("model"), pretrained_weights="w.pth")
    assert request.overrides() == {
        "epochs": 2,
        "ema": 0.0,
        "teacher": str(tmp_path / "model"),
        "pretrained_weights": str(tmp_path / "w.pth"),
    }
    settings = TrainingSettings().replace(**request.overrides())
    assert (settings.epochs, settings.teacher) == (2, str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("recipe", "weights", "expected"),
    [
        (None, None, "scratch"),
        (None, "w.pth", "paper"),
        ("scratch", "w.pth", "scratch"),
        ("paper", None, "paper"),
    ],
)
def test_pretrained_weights_are_trained_by_the_papers_recipe_unless_told(recipe, weights, expected):
    assert TrainingRequest(recipe=recipe, pretrained_weights=weights).recipe_name == expected


def test_a_continued_run_is_extended_and_names_the_flags_that_it_ignores():
    request = TrainingRequest(
        recipe="paper", epochs=5, iterations_per_epoch=7, initial_lr=1e-3, pretrained_weights="w"
    )
    assert request.extensions() == {"epochs": 5}
    assert request.ignored_flags() == [
        "--recipe",
        "--iterations-per-epoch",
        "--initial-lr",
        "-pretrained_weights",
    ]
    assert TrainingRequest(time_budget=60.0, early_stopping=3).ignored_flags() == []


def test_names_are_those_of_the_settings():
    names = {field.name for field in fields(TrainingRequest)}
    assert names - {field.name for field in fields(TrainingSettings)} == {
        "trainer",
        "fold",
        "plans_name",
        "group_regex",
    }
    assert set(EXTENDING) <= names and not names & {field.name for field in fields(RunOptions)}
