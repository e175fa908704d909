"""Voxels whose label nobody knows count in no loss and no Dice, and nothing is asked there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from promptseg.labels import IGNORED, with_ignored
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.training.dataset import make_batch
from promptseg.training.losses import NameLoss, PromptLoss
from promptseg.training.objects import unnamed_object
from promptseg.training.patches import Sample
from promptseg.training.rounds import corrected
from promptseg.training.sampling import training_queries
from promptseg.training.settings import TrainingSettings
from promptseg.training.validation import ValidationPatch, validate

LABELS = {"liver": 1, "spleen": 2}
seeds = st.integers(0, 2**32 - 1)


def partly_known(rng, shape=(4, 5, 6)):
    """Random labels whose voxels of the last two columns nobody knows."""
    segmentation = rng.integers(0, 3, shape).astype(np.int16)
    segmentation[..., -2:] = IGNORED
    return segmentation


def test_the_stored_value_becomes_one_that_no_label_has():
    stored = np.array([[[0, 3, 2, 3, 1]]], np.uint8)
    assert with_ignored(stored, 3).tolist() == [[[0, IGNORED, 2, IGNORED, 1]]]
    assert with_ignored(stored, None) is stored


def test_the_loss_of_names_is_that_of_the_voxels_that_are_known():
    rng = np.random.default_rng(1)
    segmentation = torch.from_numpy(partly_known(rng, (2, 3, 4, 7)))
    names = torch.from_numpy(rng.normal(0, 2, (2, 3, 3, 4, 7))).log_softmax(dim=1)
    names.requires_grad_()
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        loss = NameLoss(LABELS, *weights, 2.0)
        value = loss(names, segmentation)
        expected = loss(names[..., :-2], segmentation[..., :-2])
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, names)
        assert not gradient[..., -2:].any() and gradient[..., :-2].any()


def test_an_element_counts_as_far_as_its_voxels_are_known():
    # One element of two voxels, of which one is known, of the spleen: probability 1/2. Focal loss
    # without gamma: -ln(1/2). Dice: liver 1 - 1 / (1/4 * 1/2 + 1) = 1/9; spleen: in common 1/2 of
    # 1/2, found the same, there 1/2: 1 - (1/2 + 1) / (1/4 + 1/2 + 1) = 1/7.
    names = torch.tensor([0.25, 0.25, 0.5]).log().view(1, 3, 1, 1, 1)
    segmentation = torch.tensor([2, IGNORED], dtype=torch.int16).view(1, 1, 1, 2)
    entropy = NameLoss(LABELS, 0.0, 1.0, 0.0)(names, segmentation)
    torch.testing.assert_close(entropy, torch.tensor(2.0).log())
    dice = NameLoss(LABELS, 1.0, 0.0, 0.0)(names, segmentation)
    torch.testing.assert_close(dice, torch.tensor((1 / 9 + 1 / 7) / 2))


def test_where_nothing_is_known_nothing_is_learned():
    names = torch.full((1, 3, 2, 3, 4), 1 / 3).log().requires_grad_()
    nothing = torch.full((1, 2, 3, 4), IGNORED, dtype=torch.int16)
    NameLoss(LABELS, 1.0, 1.0, 2.0)(names, nothing).backward()
    assert not names.grad.any()


def test_the_loss_of_answers_is_that_of_the_voxels_that_are_known():
    rng = np.random.default_rng(2)
    segmentation = torch.from_numpy(partly_known(rng, (3, 4, 5, 8)))
    logits = torch.from_numpy(rng.normal(0, 3, (3, 4, 5, 8))).float().requires_grad_()
    quality, target = torch.tensor([0.4, -1.0, 2.0]), segmentation == 1
    loss = PromptLoss(1.0, 1.0, 0.5, 2.0)
    value = loss(logits, quality, target, segmentation == IGNORED)
    torch.testing.assert_close(value, loss(logits[..., :-2], quality, target[..., :-2]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[..., -2:].any() and gradient[..., :-2].any()


def test_nothing_is_corrected_where_nobody_knows_what_is_right():
    segmentation = partly_known(np.random.default_rng(3), (4, 5, 9))
    ignored = torch.from_numpy(segmentation == IGNORED)[None]
    logits = torch.where(torch.from_numpy(segmentation == 1)[None] | ignored, 3.0, -3.0)
    prompts, targets = batch_queries([Query(label=0)]), (segmentation == 1)[None]
    for generators in (None, [np.random.default_rng(4)]):
        after = corrected(prompts, logits, targets, generators, ignored)
        assert after.point_labels.tolist() == [[]] or (after.point_labels == -1).all()
    logits[0, 1, 2, 3] *= -1  # the only error
    after = corrected(prompts, logits, targets, ignored=ignored)
    assert after.points.tolist() == [[[1, 2, 3]]]


def sample(seed):
    """Two labels in a noisy image, of which a slab is not known."""
    rng = np.random.default_rng(seed)
    segmentation = np.zeros((8, 12, 20), np.int16)
    segmentation[1:7, 2:7, 2:15], segmentation[2:6, 8:11, 3:12] = 1, 2
    segmentation[:, :, 10:16] = IGNORED
    whole = {
        "liver": np.array([[1, 2, 2], [7, 7, 10]], float),
        "spleen": np.array([[2, 8, 3], [6, 11, 10]], float),
    }
    image = rng.uniform(0, 255, (1, *segmentation.shape))
    return Sample(image=image, segmentation=segmentation, whole_boxes=whole, auto_boxes={})


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_no_object_and_no_point_has_a_voxel_that_is_ignored(seed):
    rng, patch = np.random.default_rng(seed), sample(seed)
    ignored = patch.segmentation == IGNORED
    for values in (LABELS, {}):
        mask, _ = unnamed_object(patch.image, patch.segmentation, values, rng)
        assert not mask[ignored].any()
    queries = training_queries(patch, 0, LABELS, TrainingSettings(), rng, count=6)
    for query, mask in queries:
        assert not mask[ignored].any()
        points = np.asarray(query.points, int).reshape(-1, 3)
        assert not ignored[tuple(points.T)].any()
        assert len(points) == len(query.point_labels)


class SaysLiverEverywhere(nn.Module):
    def encode(self, image):
        return image

    def decode(self, image, prompts):
        return torch.full((len(prompts), *image.shape[2:]), 4.0), torch.zeros(len(prompts))


def test_validation_measures_what_is_known():
    segmentation = np.ones((4, 6, 8), np.int16)
    segmentation[:2] = IGNORED
    segmentation[3, :, :4] = 0  # 24 of 96 known voxels
    patch = Sample(
        image=np.zeros((1, 4, 6, 8)), segmentation=segmentation, whole_boxes={}, auto_boxes={}
    )
    batch = make_batch([patch], [Query(label=0)], [segmentation == 1])
    patches = [ValidationPatch(batch=batch, ways=("label",), missed=0)]
    row = validate(SaysLiverEverywhere(), patches, PromptLoss(1, 1, 0.1, 2), "cpu")
    assert np.isclose(row["val_dice_label"], 2 * 72 / (96 + 72))
    assert row["val_dice_clicks"] == row["val_dice_label"]
