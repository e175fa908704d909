import logging

import numpy as np
import pytest

from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.evaluation.metrics import mask_dice
from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.predictor import Predictor
from promptseg.inference.results import LOW_DICE, LOW_PREDICTED_DICE
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, write_image
from promptseg.pipeline import dice_samples as module
from promptseg.pipeline.degraded import CHANGES, CROPPED, INVERTED, degraded, kinds_for
from promptseg.pipeline.dice_samples import degraded_samples, dice_samples
from promptseg.predicted_dice import DiceEstimator
from promptseg.prompts.types import make_prompts
from tests.inference.fakes import LevelNetwork
from tests.inference.test_coarse import SPACING, cube_image, plans_with

KINDS = [*CHANGES, INVERTED, CROPPED]


def textured(rng, shape=(20, 33, 41)):
    image = cube_image([[5, 8, 10], [14, 24, 30]], 80.0, shape)
    noisy = (image + rng.normal(0, 3, shape)).clip(0, 255).astype(np.float32)
    return noisy[None], (image > 0).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_copy_is_another_image_of_the_same_object(kind):
    image, truth = textured(np.random.default_rng(0))
    before = image.copy()
    copy, expected = degraded(image, truth, kind, np.random.default_rng(1))
    assert (image == before).all() and np.isfinite(copy).all() and copy.dtype == np.float32
    assert copy.shape[1:] == expected.shape
    again, _ = degraded(image, truth, kind, np.random.default_rng(1))
    assert (again == copy).all()
    other, _ = degraded(image, truth, kind, np.random.default_rng(2))
    assert kind == INVERTED or other.shape != copy.shape or (other != copy).any()
    if kind == CROPPED:
        assert all(10 <= n < full for n, full in zip(copy.shape[1:], truth.shape, strict=True))
        inside, outside = copy[0][expected == 1], copy[0][expected == 0]
        assert inside.min() > outside.max()  # cut alike
    else:
        assert (expected == truth).all()
        assert np.abs(copy - image).max() > 0.05 * np.ptp(image)


def test_a_crop_of_a_thin_volume_keeps_a_slice():
    copy, _ = degraded(
        np.zeros((1, 1, 5, 60), np.float32),
        np.zeros((1, 5, 60), np.uint8),
        CROPPED,
        np.random.default_rng(0),
    )
    assert copy.shape[1:3] == (1, 5) and 30 <= copy.shape[3] <= 54


def test_kinds_are_different_ones():
    drawn = [kinds_for(np.random.default_rng(seed), 3) for seed in range(40)]
    assert {kind for some in drawn for kind in some} == set(KINDS)
    assert all(len(set(some)) == 3 for some in drawn)


def samples_of(model, count):
    """Of a network that knows the label by its intensity alone: what changes that is not found."""
    samples = []
    for number in range(count):
        image, truth = textured(np.random.default_rng([7, number]))
        samples += degraded_samples(model, image, SPACING, truth, number)
    return samples


def test_a_mask_of_a_degraded_image_gets_a_low_dice_and_a_flag(monkeypatch):
    monkeypatch.setattr(module, "COPIES", 5)
    model = Predictor([LevelNetwork()], plans_with("none"))
    model.keep_evidence = True
    samples = samples_of(model, 12)
    assert len({s.copy for s in samples}) > 5 and len({s.group for s in samples}) == 12
    assert max(s.dice for s in samples) > 0.9 and min(s.dice for s in samples) < 0.4

    model.dice_estimator, model.keep_evidence = DiceEstimator(samples), False
    image, truth = textured(np.random.default_rng(99))
    model.set_image(image, SPACING)
    good = model.predict(labels=["liver"])
    dice = mask_dice(good.segmentation == 1, truth == 1)
    result = good.labels["liver"]
    assert dice > 0.9 and abs(result.predicted_dice.value - dice) < 0.1
    assert result.predicted_dice.low <= dice <= result.predicted_dice.high
    assert LOW_PREDICTED_DICE not in result.flags and result.evidence is None
    told = result.to_json()
    assert told["predicted_dice"] == result.predicted_dice.value and "evidence" not in told

    inverted, _ = degraded(image, truth, INVERTED, np.random.default_rng(0))
    model.set_image(inverted, SPACING)
    bad = model.predict(labels=["liver"])
    assert mask_dice(bad.segmentation == 1, truth == 1) < LOW_DICE
    assert bad.labels["liver"].predicted_dice.value < LOW_DICE
    assert LOW_PREDICTED_DICE in bad.labels["liver"].flags

    model.set_image(image, SPACING)
    of_person = model.predict(boxes={"liver": [[5, 8, 10], [14, 24, 30]]})
    assert of_person.labels["liver"].predicted_dice is None
    proposed = make_prompts(boxes=[[5, 8, 10], [14, 24, 30]], shape=truth.shape, source="atlas")
    of_plans = model.predict_prompts({"liver": proposed}, labels=["liver"])
    assert of_plans.labels["liver"].predicted_dice is not None


def test_validated_cases_and_their_copies_are_put_together(tmp_path, caplog):
    made, ground_truth = [], {}
    for name in "abcdefgh":
        image, truth = textured(np.random.default_rng(ord(name)))
        geometry = Geometry(
            shape=truth.shape, spacing=SPACING, origin=(0, 0, 0), direction=tuple(np.eye(3).ravel())
        )
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", image[0], geometry)
        ground_truth[name] = tmp_path / "labels" / f"{name}.nii.gz"
        write_image(ground_truth[name], truth, geometry)
        files = (tmp_path / "images" / f"{name}_0000.nii.gz",)
        made.append(RawCase(case_id=name, images=files, label=None))
    model = Predictor([LevelNetwork()], plans_with("none"))
    model.keep_evidence = True
    report = predict_cases(model, made, tmp_path / "predictions")
    labels = model.plans.declared_labels
    summary = evaluate_folders(tmp_path / "labels", tmp_path / "predictions", labels=labels)
    made.append(RawCase(case_id="gone", images=(tmp_path / "gone.nii.gz",), label=None))
    with caplog.at_level(logging.INFO, "promptseg"):
        samples = dice_samples(model, made, ground_truth, report)
    whole = {s.group: s.dice for s in samples if not s.copy}
    of_summary = {row["case"]: row["metrics"]["1"]["Dice"] for row in summary["metric_per_case"]}
    assert whole == {number: of_summary[name] for number, name in enumerate("abcdefgh")}
    assert len(samples) > 2 * len(whole) and {s.label for s in samples} == {"liver"}
    assert samples[0].evidence == report["cases"]["a"]["labels"]["liver"]["evidence"]
    (line,) = (r.message for r in caplog.records if r.message.startswith("Predicted Dice"))
    assert "8 masks of images" in line and f"{len(samples) - 8} of degraded copies" in line


def test_without_masks_it_says_that_nothing_is_learned(caplog):
    model = Predictor([LevelNetwork()], plans_with("none"))
    with caplog.at_level(logging.INFO, "promptseg"):
        assert dice_samples(model, [], {}, {"cases": {}}) == []
    assert "No Dice will be predicted for new images: 0 masks are too few." in caplog.text
