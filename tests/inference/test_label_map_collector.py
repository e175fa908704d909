"""Logits and ratings entered label by label: the prediction they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.inference.label_map import Collector
from promptseg.prompts.types import make_prompts
from tests.small_plans import small_plans

SHAPE, PLANS = (3, 4, 6), small_plans(labels={"liver": 1, "lesion": 5})


def filled(logit: float, shape=(2, 2, 3), first=(0, 1, 2)):
    return torch.full(shape, logit), np.array(first)


def wanted(*labels: str):
    box = np.array([[0, 1, 2], [2, 3, 5]])
    return {label: make_prompts(boxes=box, shape=SHAPE, where=label) for label in labels}


def test_the_larger_logit_wins_and_voxels_are_those_of_the_result():
    collector = Collector(PLANS, ["liver", "lesion"], SHAPE, keep_probabilities=False)
    collector.enter("lesion", [filled(1.0), filled(-3.0, first=(1, 0, 0))])
    collector.enter("liver", [filled(2.0, (1, 2, 3))])
    prediction = collector.prediction(wanted("liver", "lesion"))
    expected = np.zeros(SHAPE, np.uint8)
    expected[0:2, 1:3, 2:5], expected[0:1, 1:3, 2:5] = 5, 1
    np.testing.assert_array_equal(prediction.segmentation, expected)
    assert {name: of.voxels for name, of in prediction.labels.items()} == {"liver": 6, "lesion": 6}
    assert prediction.probabilities is None


def test_the_worst_object_counts_with_what_was_told_of_it_last():
    collector = Collector(PLANS, ["liver", "lesion"], SHAPE, keep_probabilities=True)
    for number, iou, prompt_consistency in ((0, 0.1, 0.2), (1, 0.8, None), (0, 0.9, 0.75)):
        collector.rate("liver", number, iou, prompt_consistency)
    collector.rate("lesion", 2, None, 0.5)
    prediction = collector.prediction(wanted("lesion", "liver"))
    assert list(prediction.labels) == ["lesion", "liver"]
    liver, lesion = prediction.labels["liver"], prediction.labels["lesion"]
    assert (liver.predicted_iou, liver.prompt_consistency) == (0.8, 0.75)
    assert (lesion.predicted_iou, lesion.prompt_consistency) == (None, 0.5)
    assert lesion.flags == ("disagreement", "empty")


def test_probabilities_are_kept_of_all_that_was_entered():
    collector = Collector(PLANS, ["liver", "lesion"], SHAPE, keep_probabilities=True)
    collector.enter("liver", [filled(-1.0)])
    prediction = collector.prediction(wanted("liver"))
    lower, region = prediction.probabilities.region("liver")
    assert lower.tolist() == [0, 1, 2] and region.shape == (2, 2, 3)
    assert region == pytest.approx(1 / (1 + np.exp(1)), abs=1e-3)
    assert not prediction.segmentation.any()
