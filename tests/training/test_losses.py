import math

import torch

from promptseg.training.losses import PromptLoss, hard_dice, hard_iou


def loss(dice=0.0, focal=0.0, iou=0.0, gamma=2.0):
    return PromptLoss(dice, focal, iou, gamma)


def example():
    """Two queries of 1x2x3 voxels with logits 0 (probability one half) but for one voxel."""
    logits = torch.zeros(2, 1, 2, 3)
    logits[0, 0, 0, 0] = math.log(3)  # probability 3/4
    target = torch.zeros(2, 1, 2, 3, dtype=torch.bool)
    target[0, 0, 0, :2] = True
    return logits, target


def test_dice_loss_by_hand():
    # query 0: p = (.75, .5, .5, .5, .5, .5), t = (1, 1, 0, 0, 0, 0):
    #   1 - (2 * 1.25 + 1) / (3.25 + 2 + 1) = 1 - 3.5 / 6.25 = 0.44
    # query 1: t empty: 1 - (0 + 1) / (3 + 0 + 1) = 0.75
    logits, target = example()
    value = loss(dice=1.0)(logits, torch.zeros(2), target)
    torch.testing.assert_close(value, torch.tensor((0.44 + 0.75) / 2))


def test_focal_loss_by_hand():
    # -(1 - p_t)^2 log p_t: the voxel with 3/4: (1/4)^2 log(4/3); all others: (1/2)^2 log 2
    logits, target = example()
    value = loss(focal=1.0)(logits, torch.zeros(2), target)
    expected = ((1 / 16) * math.log(4 / 3) + 11 * 0.25 * math.log(2)) / 12
    torch.testing.assert_close(value, torch.tensor(expected))


def test_the_iou_term_compares_with_the_thresholded_masks_iou():
    # query 0: only the voxel with a positive logit is in the mask: IoU 1/2; query 1: both empty: 1
    logits, target = example()
    value = loss(iou=1.0)(logits, torch.zeros(2), target)  # sigmoid(0) = 1/2
    torch.testing.assert_close(value, torch.tensor((0.0 + 0.25) / 2))


def test_terms_add_with_their_weights():
    logits, target = example()
    quality = torch.tensor([0.3, -0.2])
    parts = [loss(**{k: 1.0})(logits, quality, target) for k in ("dice", "focal", "iou")]
    total = loss(2.0, 3.0, 5.0)(logits, quality, target)
    torch.testing.assert_close(total, 2 * parts[0] + 3 * parts[1] + 5 * parts[2])


def test_a_right_empty_mask_costs_next_to_nothing():
    logits, target = torch.full((1, 4, 5, 6), -20.0), torch.zeros(1, 4, 5, 6, dtype=torch.bool)
    assert loss(1.0, 1.0, 1.0)(logits, torch.tensor([20.0]), target) < 1e-5


def test_hard_metrics_by_hand():
    logits, target = example()
    torch.testing.assert_close(hard_iou(logits, target), torch.tensor([0.5, 1.0]))
    dice = hard_dice(logits, target)
    assert dice[0] == torch.tensor(2 * 1 / (1 + 2))
    assert dice[1].isnan()
