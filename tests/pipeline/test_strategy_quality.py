import logging

import numpy as np
import pytest

from promptseg.evaluation.metrics import mask_dice
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, write_image
from promptseg.pipeline import strategy_quality
from promptseg.pipeline.strategy_quality import measure_strategies
from promptseg.pipeline.validate_fold import chosen_prompts
from promptseg.prompts.given import CasePrompts, case_from_json
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.inference.test_coarse import CUBE, SHAPE, SPACING, cube_image, plans_with

HALF = np.array([CUBE[0], [*CUBE[1][:2], (CUBE[0][2] + CUBE[1][2]) // 2]])


@pytest.fixture
def cases(tmp_path):
    """Cases with a liver that looks like liver, but for the last, and their planned boxes."""
    geometry = Geometry(
        shape=SHAPE, spacing=SPACING, origin=(0, 0, 0), direction=tuple(np.eye(3).ravel())
    )
    made, truth, planned = [], {}, {}
    for name, level in (("a", LEVELS[0]), ("b", LEVELS[0]), ("c", LEVELS[0]), ("d", 0.0)):
        write_image(tmp_path / f"{name}_0000.nii.gz", cube_image(level=level), geometry)
        truth[name] = tmp_path / f"{name}.nii.gz"
        write_image(truth[name], (cube_image() > 0).astype(np.uint8), geometry)
        made.append(RawCase(case_id=name, images=(tmp_path / f"{name}_0000.nii.gz",), label=None))
        planned[name] = case_from_json({"liver": {"boxes": [HALF.tolist()], "source": "atlas"}})
    return made, truth, planned


def dice_of(model, case, **prompts) -> float:
    """By the predictor's own methods, called as a user would."""
    prepared, _ = model.prepare_files(case.images)
    model.set_prepared(prepared)
    found = model.predict(labels=["liver"], **prompts).segmentation
    return mask_dice(found == 1, cube_image() > 0)


def test_strategies_are_measured_by_the_masks_that_they_lead_to(cases, caplog):
    made, truth, planned = cases
    model = Predictor([LevelNetwork()], plans_with("atlas"))
    with caplog.at_level(logging.INFO, "promptseg"):
        measured = measure_strategies(model, made, truth, planned)
    assert measured["cases"] == ["a", "b", "c", "d"]
    # the other labels are in no case and are not found
    dice, expected = measured["dice"], 3 * dice_of(model, made[0]) / 4
    assert set(dice) == {"liver"} and expected > 0.5
    assert dice["liver"]["name"] == pytest.approx(expected)
    by_box = dice_of(model, made[0], boxes={"liver": [HALF]})
    assert dice["liver"]["atlas"] == pytest.approx(3 * by_box / 4)
    assert {"coarse", "hybrid"} < set(dice["liver"])
    assert set(measured["seconds"]) >= {"name", "atlas", "coarse", "hybrid"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    lines = [record.message for record in caplog.records]
    assert any(line.startswith("liver") and f"{expected:.4f}" in line for line in lines)


def test_without_a_planned_strategy_the_name_and_the_networks_box_are_left(cases):
    made, truth, planned = cases
    model = Predictor([LevelNetwork()], plans_with("none"))
    assert set(measure_strategies(model, made, truth, planned)["seconds"]) == {"name", "coarse"}


def test_two_cases_decide_nothing_and_three_are_measured_however_long_it_takes(
    cases, monkeypatch, caplog
):
    made, truth, planned = cases
    model = Predictor([LevelNetwork()], plans_with("atlas"))
    with caplog.at_level(logging.INFO, "promptseg"):
        measured = measure_strategies(model, made[:2], truth, planned)
    assert measured == {"cases": ["a", "b"], "dice": {}, "seconds": {}}
    assert "only 2 validation case(s) could be predicted, and 3 are needed" in caplog.text
    monkeypatch.setattr(strategy_quality, "MOST_SECONDS", -1.0)  # no time is left
    measured = measure_strategies(model, made, truth, planned)
    assert measured["cases"] == ["a", "b", "c"] and "name" in measured["dice"]["liver"]


@pytest.mark.parametrize(
    ("best", "source", "boxes"),
    [("atlas", "atlas", 1), ("name", "name", 0), ("coarse", "coarse", 1), ("hybrid", "coarse", 1)],
)
def test_held_out_cases_are_prompted_as_validation_chose(cases, best, source, boxes):
    made, _, planned = cases
    model = Predictor(
        [LevelNetwork()], plans_with("atlas"), measured_dice={"liver": {best: 0.9, "other": 0.1}}
    )
    labels = {name: {"source": "label name"} for name in model.plans.labels}
    held_out = {
        name: CasePrompts(labels={**case_from_json(labels).labels, **of_case.labels})
        for name, of_case in planned.items()
    }
    chosen = chosen_prompts(model, made[:1], held_out)["a"]
    (given,) = chosen.labels["liver"]
    assert (given.source, len(given.boxes)) == (source, boxes)
    prepared, geometry = model.prepare_files(made[0].images)
    model.set_prepared(prepared)
    if best != "atlas":  # whose box is of another fit, without the case
        expected = model.predict(labels=["liver"], auto_prompt="plans").segmentation
        found = model.predict_prompts({"liver": chosen.on(geometry)["liver"]}, labels=["liver"])
        np.testing.assert_array_equal(found.segmentation, expected)
    else:
        np.testing.assert_array_equal(given.boxes, [HALF])


def test_a_case_that_cannot_be_read_keeps_what_was_planned(cases, tmp_path):
    made, _, planned = cases
    model = Predictor([LevelNetwork()], plans_with("atlas"), measured_dice={"liver": {"coarse": 1}})
    labels = case_from_json({name: {"source": "label name"} for name in model.plans.labels}).labels
    held_out = {"a": CasePrompts(labels={**labels, **planned["a"].labels})}
    (tmp_path / "a_0000.nii.gz").write_bytes(b"no image")
    assert chosen_prompts(model, made[:1], held_out) == held_out
