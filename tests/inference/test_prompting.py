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
from promptseg.preprocessing.normalize import percentile_clipping
from promptseg.prompts import automatic
from promptseg.prompts.automatic import propose_boxes
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.inference.test_coarse import plans_with
from tests.small_plans import small_plans


@pytest.mark.parametrize(
    ("planned", "iou", "measured", "expected"),
    [
        ("atlas", 0.4, {"liver": 0.5}, "hybrid"),
        ("atlas", 0.4, {"liver": 0.3}, "atlas"),
        ("atlas", 0.4, {"liver": 0.4}, "atlas"),  # no better: as planned
        ("atlas", 0.4, {}, "atlas"),
        ("atlas", 0.4, {"spleen": 0.9}, "atlas"),
        ("atlas", None, {"liver": 0.1}, "hybrid"),  # nothing measured in planning
        ("none", 0.4, {"liver": 0.1}, "hybrid"),  # no strategy was usable
        ("none", 0.4, {"liver": 0.0}, "none"),
        ("none", 0.4, {}, "none"),
    ],
)
def test_hybrid_takes_the_place_of_a_choice_that_the_network_beat(planned, iou, measured, expected):
    proposer = Proposer(plans_with(planned, iou), measured)
    assert proposer.strategy_of("liver", "plans") == expected
    for forced in ("coarse", "hybrid", "intensity", "atlas"):
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


def test_labels_that_the_plans_do_not_prompt_are_hybrid_once_the_network_finds_them():
    assert Proposer(small_plans(), {}).strategy_of("spleen", "plans") == "none"
    assert Proposer(small_plans(), {"spleen": 0.2}).strategy_of("spleen", "plans") == "hybrid"


def test_the_reason_for_hybrid_is_told_with_both_figures(caplog):
    proposer = Proposer(plans_with("atlas", 0.412), {"liver": 0.634, "lesion": 0.2, "spleen": 0.0})
    with caplog.at_level(logging.INFO, "promptseg"):
        proposer.log_choice("plans")
    assert [record.message for record in caplog.records] == [
        "hybrid in place of the plans' choice, which the network's own box beat: "
        "liver (box IoU 0.634 in validation, atlas 0.412 in planning), "
        "lesion (box IoU 0.200 in validation, none 0.000 in planning)"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "promptseg"):
        for strategy in ("coarse", "hybrid", "atlas"):
            proposer.log_choice(strategy)
        Proposer(plans_with("atlas"), {"liver": 0.1}).log_choice("plans")
    assert not caplog.records


@pytest.mark.parametrize("name", ["guess", "", "Coarse", "plan", "coarse ", "none"])
def test_unknown_strategies_are_refused_with_those_there_are(name):
    message = f"unknown automatic prompt {name!r}; registered: plans, coarse, hybrid, atlas, .*int"
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        Proposer(small_plans(), {}).check(name)
    for known in ("plans", "coarse", "hybrid", "intensity", "atlas"):
        Proposer(small_plans(), {}).check(known)


def test_segvols_weights_are_not_asked_by_name():
    plans = small_plans(preset="segvol", patch_size=(32, 256, 256), stride=(4, 16, 16), size="base")
    for strategy in ("coarse", "hybrid"):
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
    for measured in ({}, {"liver": 0.9}):
        # The plans' box is nearly everything; the fake expects the same of every mask, and of
        # equals the network's own goes first.
        model = Predictor([LevelNetwork()], plans_with("atlas"), measured_coarse=measured)
        model.set_image(image, (2.5, 1.0, 0.75))
        found = model.predict(auto_prompt="plans", labels=["liver"]).labels["liver"]
        sources.append(found.prompts.source)
    assert sources == ["atlas", "coarse"]
