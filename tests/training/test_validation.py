"""What the fixed patches measure, with a network whose answers are known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from promptseg.boxes import mask_box
from promptseg.networks.prompt_encoder import NO_LABEL
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.losses import PromptLoss
from promptseg.training.validation import WAYS, validate, validation_patches


class FillsItsBox(nn.Module):
    """Answers with the voxels whose centres are in the box; without one, with the whole patch."""

    def encode(self, image):
        return image

    def decode(self, image, prompts):
        places = np.stack(np.indices(image.shape[2:]), axis=-1) + 0.5
        answers = []
        for box, has_box in zip(prompts.boxes.numpy(), prompts.has_box, strict=True):
            inside = ((box[0] < places) & (places < box[1])).all(axis=-1)
            answers.append(inside if has_box else np.ones_like(inside))
        return torch.tensor(np.where(answers, 5.0, -5.0)), torch.zeros(len(answers))


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture
def small(planned_case):
    """The dataset and its plans with a patch that labels reach beyond, and the labels' boxes."""
    folder, plans, _ = planned_case
    dataset = PreprocessedDataset(folder)
    boxes = {
        case_id: {
            name: [mask_box(np.asarray(dataset.segmentation(case_id)[:]) == value).tolist()]
            for name, value in plans.labels.items()
        }
        for case_id in dataset.case_ids
    }
    return dataset, dataclasses.replace(plans, patch_size=(6, 10, 8)), boxes


def measured(small, auto_boxes):
    dataset, plans, _ = small
    patches = validation_patches(dataset.folder, dataset.case_ids, plans, auto_boxes, seed=0)
    row = validate(FillsItsBox(), patches, PromptLoss(1, 1, 0.1, 2), "cpu")
    return patches, {way: row[f"val_dice_{way}"] for way in WAYS}


def shown(patches):
    """Each patch's masks of the labels that it shows, one for each query by name."""
    for patch_size in patches:
        for target, way in zip(patch_size.batch.targets.numpy(), patch_size.ways, strict=True):
            if way == "label":
                yield target


def test_automatic_boxes_are_asked_with(small):
    dataset, plans, boxes = small
    patches, measures = measured(small, boxes)
    masks = list(shown(patches))
    assert len(patches) == 6 and len(masks) >= 6
    everything = np.ones(plans.patch_size, bool)
    assert measures["label"] == pytest.approx(np.mean([dice(m, everything) for m in masks]))
    # the labels are boxes, so that the clipped box of the whole label is the mask
    assert measures["auto"] == pytest.approx(1)
    assert measures["label"] < measures["box"] < 1
    assert all(patch_size.missed == 0 for patch_size in patches)


def test_without_an_automatic_box_the_name_is_asked_with(small):
    _, _, boxes = small
    _, measures = measured(small, {})
    assert measures["auto"] == measures["label"] < 1
    _, measures = measured(small, {case_id: {"label_1": []} for case_id in boxes})
    assert measures["auto"] == measures["label"]


def test_a_label_that_its_automatic_box_misses_counts_as_not_found(small):
    _, _, boxes = small
    elsewhere = [[[400, 0, 0], [410, 9, 9]]]
    one_label = {case_id: {**of, "label_2": elsewhere} for case_id, of in boxes.items()}
    patches, measures = measured(small, one_label)
    missed, all_labels = sum(patch_size.missed for patch_size in patches), len(list(shown(patches)))
    assert 0 < missed < all_labels
    assert measures["auto"] == pytest.approx(1 - missed / all_labels)
    # of several boxes the first alone is looked at: the label may be in another
    two = {case_id: {**of, "label_2": 2 * elsewhere} for case_id, of in boxes.items()}
    patches, measures = measured(small, two)
    assert sum(patch_size.missed for patch_size in patches) == 0
    assert measures["auto"] == pytest.approx(1)


def test_a_box_is_asked_with_and_without_the_name_and_clicks_follow_the_name(small):
    dataset, plans, boxes = small
    patches = validation_patches(dataset.folder, dataset.case_ids, plans, boxes, seed=0)
    for patch in patches:
        prompts, ways = patch.batch.prompts, np.array(patch.ways)
        by_way = {way: prompts[torch.from_numpy(ways == way)] for way in WAYS}
        assert torch.equal(by_way["object"].boxes, by_way["box"].boxes)
        assert (by_way["object"].labels == NO_LABEL).all() and by_way["object"].has_box.all()
        assert torch.equal(by_way["box"].labels, by_way["label"].labels)
        assert not by_way["label"].has_box.any()

    loss = PromptLoss(1, 1, 0.1, 2)
    row = validate(FillsItsBox(), patches, loss, "cpu")  # which clicks do not change
    assert row["val_dice_clicks"] == pytest.approx(row["val_dice_label"])
    corrected = validate(Corrected(), patches, loss, "cpu")
    assert corrected["val_dice_label"] == row["val_dice_label"] < corrected["val_dice_clicks"]


class Corrected(FillsItsBox):
    """Without a mask to correct as its parent; else that mask, with 3x3 voxels of each click."""

    def decode(self, image, prompts):
        logits, iou = super().decode(image, prompts)
        if prompts.previous is None:
            return logits, iou
        logits = prompts.previous.clone()
        for answer, points, kinds in zip(
            logits, prompts.points.long(), prompts.point_labels, strict=True
        ):
            for (z, y, x), kind in zip(points.tolist(), kinds.tolist(), strict=True):
                if kind >= 0:
                    answer[z, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 10 * kind - 5
        return logits, iou
