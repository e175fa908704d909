"""Which strategy prompts a label, and how prediction says so."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import Proposer
from promptseg.preprocessing import lazy
from promptseg.preprocessing.normalize import normalize, percentile_clipping
from promptseg.prompts import automatic
from promptseg.prompts.automatic import propose_boxes
from promptseg.prompts.strategies.fitted import view_of
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.inference.test_coarse import plans_with
from tests.locators import make_locator
from tests.small_plans import small_plans


@pytest.mark.parametrize(
    ("planned", "measured", "expected"),
    [
        ("atlas", {"liver": {"name": 0.80, "atlas": 0.81, "coarse": 0.85}}, "coarse"),
        ("atlas", {"liver": {"name": 0.80, "atlas": 0.81, "coarse": 0.79}}, "atlas"),
        ("atlas", {"liver": {"name": 0.82, "atlas": 0.81, "coarse": 0.79}}, "name"),
        # as good as the best but for 0.002: the first one is the fastest
        ("atlas", {"liver": {"name": 0.809, "atlas": 0.81, "coarse": 0.81}}, "name"),
        ("atlas", {"liver": {"name": 0.807, "atlas": 0.81, "coarse": 0.81}}, "atlas"),
        ("atlas", {"spleen": {"name": 0.9}}, "atlas"),
        ("atlas", {}, "atlas"),
        ("none", {"liver": {"name": 0.1, "coarse": 0.2}}, "coarse"),  # no strategy was usable
        ("none", {}, "none"),
    ],
)
def test_the_strategy_of_the_best_masks_takes_the_place_of_the_planned_one(
    planned, measured, expected
):
    proposer = Proposer(plans_with(planned, 0.4), measured)
    assert proposer.strategy_of("liver", "plans") == expected
    for forced in ("name", "coarse", "hybrid", "intensity", "atlas"):
        assert proposer.strategy_of("liver", forced) == forced


def test_the_range_of_intensities_is_measured_once_an_image(monkeypatch):
    measured = []
    for module in (lazy, automatic):
        original = module.intensity_range
        monkeypatch.setattr(
            module, "intensity_range", lambda *rest, f=original: measured.append(1) or f(*rest)
        )
    plans = replace(small_plans(), normalizations=(percentile_clipping(),))
    model = Predictor([LevelNetwork()], plans)
    image = np.random.default_rng(0).normal(0, 40, (7, 30, 21)).astype(np.float32)
    image[2:5, 9:20, 5:14] += 300
    prepared = model.prepare(image, (2.5, 1.0, 0.75))
    found = model.proposer.propose(prepared, ["liver"], "intensity")["liver"]
    assert len(measured) == 1
    expected = propose_boxes(
        image[None],
        (2.5, 1.0, 0.75),
        auto_prompts={"liver": {"strategy": "none"}},
        normalizations=plans.normalizations,
        strategy="intensity",
    )["liver"]
    assert len(measured) == 2  # alone it measures itself, and proposes the same
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_what_is_not_as_planned_is_told_with_the_figures(caplog):
    measured = {
        "liver": {"name": 0.7, "atlas": 0.61234, "coarse": 0.5},
        "spleen": {"name": 0.5},
        "lesion": {"name": 0.2, "coarse": 0.4},
    }
    proposer = Proposer(plans_with("atlas", 0.412), measured)
    with caplog.at_level(logging.INFO, "promptseg"):
        proposer.log_choice("plans")
    assert [record.message for record in caplog.records] == [
        "prompted as validation found best, not as planned (Dice): liver by its name alone (0.700, "
        "atlas 0.612); spleen by its name alone (0.500); lesion by coarse (0.400)"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "promptseg"):
        for strategy in ("name", "coarse", "hybrid", "atlas"):
            proposer.log_choice(strategy)
        Proposer(plans_with("atlas"), {"liver": {"atlas": 0.5, "name": 0.4}}).log_choice("plans")
    assert not caplog.records


@pytest.mark.parametrize("name", ["guess", "", "Coarse", "plan", "coarse ", "none"])
def test_unknown_strategies_are_refused_with_those_there_are(name):
    message = (
        f"unknown automatic prompt {name!r}; registered: plans, name, coarse, hybrid, atlas, .*int"
    )
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        Proposer(small_plans(), {}).check(name)
    for known in ("plans", "name", "coarse", "hybrid", "intensity", "atlas"):
        Proposer(small_plans(), {}).check(known)


def test_the_locator_prompts_the_labels_that_it_is_asked_for():
    plans = small_plans(
        auto_prompts={
            "liver": {"strategy": "locator", "candidates": {"locator": {"parameters": {}}}},
            "spleen": {"strategy": "none"},
        }
    )
    locator = make_locator(tuple(plans.labels), spacing=(2.0, 1.0, 0.75))
    model = Predictor([LevelNetwork()], plans, locator=locator)
    image, spacing = np.random.default_rng(0).uniform(0, 255, (7, 30, 21)), (2.5, 1.0, 0.75)
    view = view_of(normalize(image, plans.normalizations[0]), spacing)
    expected = {label: proposal.box for label, proposal in locator.propose(view).items()}
    assert any(box is not None for box in expected.values())
    prepared = model.prepare(image, spacing)
    forced = model.proposer.propose(prepared, list(plans.labels), "locator")
    planned = model.proposer.propose(prepared, ["liver", "spleen"], "plans")
    for label, box in expected.items():
        boxes = [] if box is None else [box]
        np.testing.assert_array_equal(forced[label].boxes, np.reshape(boxes, (-1, 2, 3)))
        assert forced[label].source == ("label name" if box is None else "locator")
    np.testing.assert_array_equal(planned["liver"].boxes, forced["liver"].boxes)
    assert planned["spleen"].reason == "no_usable_strategy"
    model.set_prepared(prepared)
    found = model.predict(auto_prompt="locator")
    for label in plans.labels:
        np.testing.assert_array_equal(found.labels[label].prompts.boxes, forced[label].boxes)


def test_without_a_locator_its_name_is_refused():
    with pytest.raises(ValueError, match="this model has no locator; it is trained by"):
        Proposer(small_plans(), {}).check("locator")
    with pytest.raises(ValueError, match="'locator' needs the networks that promptseg_plan trains"):
        propose_boxes(
            np.zeros((1, 4, 5, 6)),
            (1.0, 1.0, 1.0),
            auto_prompts={"liver": {"strategy": "locator"}},
            normalizations=small_plans().normalizations,
        )


def test_segvols_weights_are_not_asked_by_name():
    plans = small_plans(preset="segvol", patch_size=(32, 256, 256), stride=(4, 16, 16), size="base")
    for strategy in ("name", "coarse", "hybrid"):
        with pytest.raises(ValueError, match=f"{strategy} asks the network by the labels' names"):
            Proposer(plans, {}).check(strategy)
    Proposer(plans, {}).check("plans")
    Proposer(plans, {}).check("intensity")


def test_a_prediction_with_a_wrong_strategy_is_refused_too():
    model = Predictor([LevelNetwork()], small_plans())
    model.set_image(np.full((8, 12, 16), LEVELS[0], np.float32), (2.5, 1.0, 0.75))
    with pytest.raises(ValueError, match="unknown automatic prompt 'guess'"):
        model.predict(auto_prompt="guess")
    assert model.networks[0].encoded == 0


def test_what_validation_measured_decides_in_a_prediction():
    image = np.zeros((8, 12, 16), np.float32)
    image[2:6, 3:9, 4:10] = LEVELS[0]
    sources = []
    for best in ("atlas", "coarse", "hybrid", "name"):
        # The plans' box is nearly everything; the fake expects the same of every mask, and of
        # equals the network's own goes first.
        measured = {"liver": {best: 0.9}}
        model = Predictor([LevelNetwork()], plans_with("atlas"), measured_dice=measured)
        model.set_image(image, (2.5, 1.0, 0.75))
        found = model.predict(auto_prompt="plans", labels=["liver"]).labels["liver"]
        sources.append(found.prompts.source)
        assert len(found.prompts.boxes) == (best != "name")
        assert "no_box" not in found.flags
    assert sources == ["atlas", "coarse", "coarse", "name"]
