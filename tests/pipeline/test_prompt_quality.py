import logging

import numpy as np
import pytest

from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, write_image
from promptseg.pipeline import prompt_quality
from promptseg.pipeline.prompt_quality import (
    Measured,
    correct,
    evenly,
    measure_object,
    measure_prompts,
    rank_correlation,
)
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.small_plans import small_plans

SHAPE, SPACING = (8, 12, 16), (2.5, 1.0, 0.75)  # the plans' patch size and spacing
SOLID = np.s_[1:7, 2:10, 3:13]  # 6x8x10 voxels


def model(**options) -> Predictor:
    return Predictor([LevelNetwork(click=1.1, **options)], small_plans())


def image_and_target() -> tuple[np.ndarray, np.ndarray]:
    """Liver in a block of 480 voxels; of the ground truth, two voxels look like nothing."""
    target = np.zeros(SHAPE, bool)
    target[SOLID] = True
    image = np.where(target, LEVELS[0], 0).astype(np.float32)
    image[3, 5, 5], image[5, 8, 10] = 0, 0
    return image, target


def test_clicks_are_counted_until_the_mask_is_right():
    image, target = image_and_target()
    predictor = model()
    predictor.set_image(image, SPACING)
    into = {start: Measured() for start in ("name", "name and box", "box")}
    measure_object(predictor, "liver", target, SPACING, 3, into)
    # 478 of 480 voxels are found, then 479, then all; the fake clicks one voxel and its neighbours
    dice = [2 * 478 / 958, 2 * 479 / 959, 1.0, 1.0]
    for measured in into.values():
        assert measured.dice == [pytest.approx(dice)]
        assert measured.right[1] == [True, True] and not measured.right[0]
        assert measured.distances == [0.0, 0.0] and len(measured.seconds) == 2
        true = [478 / 480, 479 / 480, 1.0]
        np.testing.assert_allclose([t for _, t in measured.ious], true)
        np.testing.assert_allclose([p for p, _ in measured.ious], 1 / (1 + np.exp(-2)))


def test_a_click_without_a_name_begins_in_the_middle_of_the_object():
    image, target = image_and_target()
    predictor = model()
    predictor.set_image(image, SPACING)
    into = {"click": Measured()}
    measure_object(predictor, "liver", target, SPACING, 1, into)
    first = 7  # voxels of a click within 1.1 voxels
    assert into["click"].dice[0][0] == pytest.approx(2 * first / (480 + first))
    assert into["click"].dice[0][1] > into["click"].dice[0][0]
    assert into["click"].right[1] == [True]


def test_clicks_without_an_effect_are_on_the_wrong_side():
    image, target = image_and_target()
    predictor = Predictor([LevelNetwork()], small_plans())  # ignores points
    predictor.set_image(image, SPACING)
    measured = Measured()
    correct(predictor.new_object("liver"), target, SPACING, 2, measured)
    assert measured.dice == [[pytest.approx(2 * 478 / 958)] * 3]
    assert measured.right[1] == [False, False] and not measured.distances


@pytest.fixture
def cases(tmp_path):
    geometry = Geometry(
        shape=SHAPE, spacing=SPACING, origin=(0, 0, 0), direction=tuple(np.eye(3).ravel())
    )
    image, target = image_and_target()
    cases, truth = [], {}
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}_0000.nii.gz", image, geometry)
        truth[name] = tmp_path / f"{name}.nii.gz"
        write_image(truth[name], target.astype(np.uint8), geometry)
        cases.append(RawCase(case_id=name, images=(tmp_path / f"{name}_0000.nii.gz",), label=None))
    return cases, truth


def test_validation_cases_are_measured_and_told_in_a_table(cases, caplog):
    caplog.set_level(logging.INFO)
    found = measure_prompts(model(), *cases)
    assert found["cases"] == ["a", "b", "c"] and found["objects"] == 3  # none has other labels
    assert found["clicks"] == [0, 1, 3, 5] and list(found["starts"]) == list(prompt_quality.STARTS)
    name = found["starts"]["name"]
    assert name["dice"] == pytest.approx([2 * 478 / 958, 2 * 479 / 959, 1.0, 1.0])
    assert name["clicked_right"] == 1.0 and np.isnan(name["iou_rank_correlation"])
    lines = [" ".join(record.message.split()) for record in caplog.records]
    assert "start 0 clicks 1 clicks 3 clicks 5 clicks clicked right IoU rank" in lines
    assert "name and box 0.9979 0.9990 1.0000 1.0000 1.00 nan" in lines
    assert "prompts were measured on" not in caplog.text


def test_few_of_many_cases_are_measured_and_those_are_named(cases, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prompt_quality, "MOST_CASES", 2)
    assert measure_prompts(model(), *cases)["cases"] == ["a", "c"]
    assert "prompts were measured on 2 of 3 cases: a, c" in caplog.text
    monkeypatch.setattr(prompt_quality, "MOST_SECONDS", -1.0)
    nothing = measure_prompts(model(), *cases)
    assert nothing["cases"] == [] and nothing["objects"] == 0 and nothing["starts"] == {}
    assert evenly(list("abcdefg"), 3) == ["a", "d", "g"] and evenly([], 3) == []
    assert evenly([1, 2], 3) == [1, 2]


def test_all_labels_have_their_turn():
    names = list("abcdefghijkl")
    taken = [prompt_quality._in_turn(names, 3, number) for number in range(4)]
    assert sum(taken, []) == names
    assert prompt_quality._in_turn(names[:2], 3, 7) == ["a", "b"]
    assert prompt_quality._in_turn([], 3, 1) == []


def test_the_rank_correlation_of_what_does_not_vary_is_undefined():
    assert rank_correlation([(0.1, 0.2), (0.3, 0.5), (0.4, 0.9)]) == pytest.approx(1)
    assert rank_correlation([(0.1, 0.9), (0.3, 0.5), (0.4, 0.1)]) == pytest.approx(-1)
    for pairs in ([], [(0.1, 0.2)], [(0.1, 0.2), (0.1, 0.5)], [(0.1, 0.2), (0.3, 0.2)]):
        assert np.isnan(rank_correlation(pairs))


def test_voxels_to_ignore_are_neither_measured_nor_clicked():
    image, target = image_and_target()
    ignored = np.zeros(SHAPE, bool)
    ignored[3:, 5:] = True  # both voxels that look like nothing
    predictor = model()
    predictor.set_image(image, SPACING)
    into = {start: Measured() for start in ("name", "click")}
    measure_object(predictor, "liver", target & ~ignored, SPACING, 2, into, ignored)
    assert into["name"].dice == [[1.0, 1.0, 1.0]] and not into["name"].right
    correct(predictor.new_object("liver"), target & ~ignored, SPACING, 1, into["name"])
    assert into["name"].dice[1][0] < 1  # what the ground truth lacks there would be an error
