"""Names that stand for one value or for several: masks, boxes, counts and what is written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import label_boxes, mask_box, value_box
from promptseg.evaluation.metrics import confusion_counts
from promptseg.experiment_planning.fingerprint import label_statistics
from promptseg.files import through_json
from promptseg.inference.label_map import Collector
from promptseg.inference_plan import PostProcessing
from promptseg.labels import classes_of, label_mask, members, stored_values
from promptseg.networks.names import NameHead
from promptseg.plans import Plans
from promptseg.postprocessing import postprocess
from promptseg.prompts.types import make_prompts
from promptseg.training.losses import NameLoss, labels_meant, match_loss
from tests.small_plans import small_plans

LABELS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
PLANS = small_plans(labels=LABELS, regions_class_order=(1, 2, 3))
SHAPE = (4, 6, 9)
seeds = st.integers(0, 2**32 - 1)


def segmentation_of(seed, shape=SHAPE):
    return np.random.default_rng(seed).choice(4, shape, p=[0.7, 0.1, 0.1, 0.1]).astype(np.int16)


def test_a_region_has_the_classes_of_its_values():
    assert stored_values(LABELS) == (1, 2, 3)
    assert classes_of(LABELS) == ((1, 2, 3), (2, 3), (3,))
    assert classes_of({"liver": 1, "lesion": 5}) == ((1,), (2,))


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_the_mask_of_a_region_is_the_union_of_its_labels(seed):
    segmentation = segmentation_of(seed)
    boxes = label_boxes(segmentation, LABELS)
    statistics = label_statistics(segmentation, segmentation * 10.0, LABELS.values())
    counts = confusion_counts(segmentation, segmentation_of(seed + 1), list(LABELS.values()))
    for name, values in LABELS.items():
        union = np.logical_or.reduce([segmentation == value for value in members(values)])
        np.testing.assert_array_equal(label_mask(segmentation, values), union)
        for box in (boxes[name], value_box(segmentation, values)):
            np.testing.assert_array_equal(box, mask_box(union))
        where, found = np.argwhere(union), statistics[values]
        assert found.voxels == len(where) and found.mean == pytest.approx(
            10 * segmentation[union].mean()
        )
        np.testing.assert_array_equal(found.box, mask_box(union))
        np.testing.assert_allclose(found.centroid, (where.mean(0) + 0.5) / SHAPE)
        predicted = label_mask(segmentation_of(seed + 1), values)
        count = counts[values]
        assert count.tp == (union & predicted).sum() and count.fp == (~union & predicted).sum()
        assert count.fn == (union & ~predicted).sum() and count.tn == (~union & ~predicted).sum()


def test_plans_with_regions_are_read_as_they_were_written():
    assert Plans.from_json(through_json(PLANS.to_json())) == PLANS
    assert PLANS.written_values == {"whole": 1, "core": 2, "enhancing": 3}
    assert PLANS.declared_labels == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    content = through_json(PLANS.to_json())
    with pytest.raises(ValueError, match=r"p: regions_class_order: .*, found \[2, 1, 3\]"):
        Plans.from_json({**content, "regions_class_order": [2, 1, 3]}, "p")


def test_the_probability_of_a_region_is_the_sum_of_its_values():
    head = NameHead(5, classes_of(LABELS))
    names = head(torch.randn(2, 5, 2, 3, 4))
    assert names.shape[1] == 4
    torch.testing.assert_close(names.exp().sum(1), torch.ones(2, 2, 3, 4))
    found, p = head.of_labels(names).exp(), names.exp()
    torch.testing.assert_close(found[:, 0], 1 - p[:, 0])
    torch.testing.assert_close(found[:, 1], p[:, 2] + p[:, 3])
    torch.testing.assert_close(found[:, 2], p[:, 3])
    one_each = NameHead(5, ((1,), (2,), (3,)))
    assert torch.equal(one_each.of_labels(names), names[:, 1:])


def test_names_of_regions_are_trained_by_their_dice():
    # Two voxels, one of value 3, one of 1, with probabilities of background, 1, 2 and 3 of
    # 1/2, 0, 1/4, 1/4 and 1/4, 1/2, 1/8, 1/8.
    # whole: in common 1/2 + 3/4, found the same, there 2: 1 - (5/2 + 1) / (5/4 + 2 + 1) = 3/17
    # core: in common 1/2, found 1/2 + 1/4, there 1: 1 - (1 + 1) / (3/4 + 1 + 1) = 3/11
    # enhancing: in common 1/4, found 3/8, there 1: 1 - (1/2 + 1) / (3/8 + 1 + 1) = 7/19
    p = torch.tensor([[1 / 2, 1e-9, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 8, 1 / 8]])
    names = p.log().T.reshape(1, 4, 1, 1, 2)
    segmentation = torch.tensor([3, 1], dtype=torch.int16).reshape(1, 1, 1, 2)
    dice = NameLoss(LABELS, 1.0, 0.0, 0.0)(names, segmentation)
    assert float(dice) == pytest.approx((3 / 17 + 3 / 11 + 7 / 19) / 3, abs=1e-6)
    entropy = NameLoss(LABELS, 0.0, 1.0, 0.0)(names, segmentation)
    assert float(entropy) == pytest.approx((np.log(4) + np.log(2)) / 2)


def test_of_regions_that_are_one_in_a_patch_either_may_be_meant():
    segmentation = torch.zeros(3, 1, 2, 4, dtype=torch.int16)
    segmentation[:, 0, 0, :2], segmentation[0, 0, 1] = 2, 1  # in the others whole and core are one
    targets = torch.stack([segmentation[0] == 2, segmentation[1] == 2, segmentation[2] == 0])
    weights = torch.tensor([[0.5, 0.125, 0.25], [0.5, 0.125, 0.25], [0.5, 0.125, 0.25]])
    loss = match_loss(weights, labels_meant(targets, segmentation, LABELS))
    chances = [0.125, 0.5 + 0.125, 1 - 0.875]  # the core; either; no label
    assert float(loss) == pytest.approx(-np.log(chances).mean())


def as_nnunet_writes(masks, class_order):
    """What LabelManager.convert_probabilities_to_segmentation of nnU-Net does."""
    segmentation = np.zeros(masks[0].shape, np.uint8)
    for mask, value in zip(masks, class_order, strict=True):
        segmentation[mask] = value
    return segmentation


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_regions_are_written_in_the_class_order_whenever_they_are_entered(order):
    rng = np.random.default_rng(3)
    logits = {name: torch.from_numpy(rng.normal(0, 3, SHAPE)).float() for name in LABELS}
    expected = as_nnunet_writes([(logit > 0).numpy() for logit in logits.values()], (1, 2, 3))
    collector = Collector(PLANS, list(LABELS), SHAPE, keep_probabilities=False)
    names = list(LABELS)
    for number in order:
        collector.enter(names[number], [(logits[names[number]], np.zeros(3, int))])
    prompts = make_prompts(shape=SHAPE)
    prediction = collector.prediction(dict.fromkeys(names, prompts))
    np.testing.assert_array_equal(prediction.segmentation, expected)
    for name, values in LABELS.items():
        assert prediction.labels[name].voxels == np.isin(expected, values).sum()


def test_an_object_without_a_name_is_written_over_regions():
    collector = Collector(PLANS, ["object", "whole"], SHAPE, keep_probabilities=False)
    collector.enter("object", [(torch.full((1, 2, 3), 1e-6), np.array([1, 2, 3]))])
    collector.enter("whole", [(torch.full(SHAPE, 9.0), np.zeros(3, int))])
    found = collector.prediction({}).segmentation
    assert (found == 4).sum() == 6 and (found == 1).sum() == np.prod(SHAPE) - 6


def test_what_a_region_loses_belongs_to_the_region_around_it():
    segmentation = np.zeros((4, 8, 12), np.uint8)
    segmentation[1:3, 1:7, 1:9] = 1
    segmentation[1:3, 2:5, 2:6] = 2
    segmentation[1:3, 2:4, 2:4] = 3
    segmentation[1, 5, 7] = 3  # a component of its own, of the core, too
    segmentation[0, 0, 11] = 2  # and one of the whole
    one = PostProcessing(largest_component=True)
    found = postprocess(segmentation, (3.0, 1.0, 1.0), PLANS, {"enhancing": one})
    assert found[1, 5, 7] == 2 and (found != segmentation).sum() == 1
    found = postprocess(segmentation, (3.0, 1.0, 1.0), PLANS, dict.fromkeys(LABELS, one))
    assert found[0, 0, 11] == 0 and found[1, 5, 7] == 1 and (found != segmentation).sum() == 2
    assert set(np.unique(found)) == {0, 1, 2, 3}
