import json
import math

import pytest

from promptseg.training.settings import TrainingSettings


def test_the_scratch_rate_rises_then_follows_a_cosine_to_zero():
    settings = TrainingSettings(initial_lr=2.0, warmup=0.1)
    assert settings.learning_rate(0.05, 0) == pytest.approx(1.0)
    assert settings.learning_rate(0.1, 0) == pytest.approx(2.0)
    assert settings.learning_rate(0.55, 0) == pytest.approx(1.0)  # half of the way down
    quarter = 0.1 + 0.9 / 4
    assert settings.learning_rate(quarter, 0) == pytest.approx(1 + math.cos(math.pi / 4))
    assert settings.learning_rate(1.0, 0) == pytest.approx(0.0)
    assert settings.learning_rate(1.3, 0) == pytest.approx(0.0)  # a run over its time


def test_steps_are_answered_evenly_and_more_often_towards_the_end():
    settings = TrainingSettings(answer_every=4)
    answered = [settings.is_answered(step, step / 3000) for step in range(3000)]
    assert answered[0]  # whatever happens, queries are learned
    assert sum(answered) == pytest.approx(3000 / 4, abs=3)
    assert sum(answered[:300]) == pytest.approx(300 * (1 + 4 * 0.05) / 12, abs=2)
    assert sum(answered[-300:]) == pytest.approx(300 * (1 + 4 * 0.95) / 12, abs=2)
    last = [place for place, yes in enumerate(answered[-300:]) if yes]
    assert max(b - a for a, b in zip(last, last[1:], strict=False)) <= 5
    assert settings.is_answered(5, 1.3) == settings.is_answered(5, 1.0)  # a time that is over
    assert all(TrainingSettings().is_answered(step, 0.0) for step in range(9))


def test_the_papers_rate_halves_every_200_epochs():
    settings = TrainingSettings(recipe="paper", initial_lr=1e-5)
    rates = [settings.learning_rate(0.0, epoch) for epoch in (0, 199, 200, 399, 400)]
    assert rates == [1e-5, 1e-5, 5e-6, 5e-6, 2.5e-6]


def test_settings_survive_json():
    settings = TrainingSettings(epochs=3, mirror_axes=(0, 2), time_budget=5.0)
    assert TrainingSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_settings_that_older_versions_did_not_have_were_off():
    content = TrainingSettings(precision="bf16", ema=0.9, early_stopping=4).to_json()
    for name in ("precision", "ema", "early_stopping"):
        del content[name]
    assert TrainingSettings.from_json(content) == TrainingSettings(precision="fp32")


def test_settings_of_version_0_1_0_are_read_under_their_present_names():
    content = TrainingSettings(epochs=3).to_json()
    for name in ("zoom_out", "foreground", "rare_label", "auto_box"):
        del content[f"{name}_fraction"]
    former = {
        "zoom_out_share": 0.125,
        "foreground_share": 0.25,
        "rare_label_share": 0.375,
        "auto_box_share": 0.625,
    }
    assert TrainingSettings.from_json({**content, **former}) == TrainingSettings(
        epochs=3,
        zoom_out_fraction=0.125,
        foreground_fraction=0.25,
        rare_label_fraction=0.375,
        auto_box_fraction=0.625,
        precision=None,
    )


def test_settings_that_are_gone_are_left_out():
    content = {**TrainingSettings(epochs=3).to_json(), "labels_per_image": 4}
    for name in ("objects_per_step", "unnamed_fraction", "rounds", "click_weight"):
        del content[name]
    assert TrainingSettings.from_json(content) == TrainingSettings(epochs=3)


def test_replace_changes_only_what_is_given():
    settings = TrainingSettings(epochs=3, seed=4)
    assert settings.replace(epochs=None, seed=9) == TrainingSettings(epochs=3, seed=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "best"}, "unknown recipe 'best'; there are scratch, paper"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"objects_per_step": 0}, "objects_per_step must be positive, got 0"),
        ({"answer_every": 0}, "answer_every must be positive, got 0"),
        ({"rounds": -1}, "rounds must be 0 or more, got -1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"initial_lr": -1.0}, "initial_lr must be positive"),
        ({"time_budget": 0.0}, "time_budget must be positive"),
        ({"ema": 1.0}, "ema must be a decay of at least 0 and below 1, got 1.0"),
        ({"ema": -0.1}, "ema must be a decay"),
        ({"ema": float("nan")}, "ema must be a decay"),
        ({"early_stopping": -1}, "early_stopping must be epochs, or 0, got -1"),
        ({"precision": "fp8"}, "precision must be fp32, bf16, fp16, or not given; got 'fp8'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)
