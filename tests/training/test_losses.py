import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.training.losses import (
    NameLoss,
    PromptLoss,
    about_objects,
    click_loss,
    hard_dice,
    hard_iou,
    labels_meant,
    match_loss,
)


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


LABELS = {"liver": 2, "spleen": 7}  # classes 1 and 2


def test_the_loss_of_names_by_hand():
    # Two voxels, one of the spleen, one of background, with probabilities of background, liver and
    # spleen of 1/4, 1/4, 1/2 and 1/2, 1/4, 1/4.
    names = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]).log().T.reshape(1, 3, 1, 1, 2)
    segmentation = torch.tensor([7, 0], dtype=torch.int16).reshape(1, 1, 1, 2)
    # liver: nowhere, 1 - (0 + 1) / (1/2 + 0 + 1) = 1/3; spleen: in common 1/2, found 3/4, there 1:
    # 1 - (1 + 1) / (3/4 + 1 + 1) = 3/11
    dice = NameLoss(LABELS, 1.0, 0.0, 2.0)(names, segmentation)
    assert float(dice) == pytest.approx((1 / 3 + 3 / 11) / 2)
    # both voxels have half of the probability where it belongs
    entropy = NameLoss(LABELS, 0.0, 1.0, 0.0)(names, segmentation)
    assert float(entropy) == pytest.approx(math.log(2))
    focal = NameLoss(LABELS, 0.0, 1.0, 2.0)(names, segmentation)
    assert float(focal) == pytest.approx(math.log(2) / 4)


def random_names(shape=(2, 3, 4, 5, 6), seed=0):
    rng = np.random.default_rng(seed)
    names = torch.from_numpy(rng.normal(0, 2, shape)).float().log_softmax(dim=1)
    target = rng.integers(0, 3, (shape[0], *shape[2:]))
    return names, torch.from_numpy(target), torch.from_numpy(np.array([0, 2, 7])[target])


def test_the_loss_of_names_is_torchs_cross_entropy_and_monais_dice():
    names, target, segmentation = random_names()
    entropy = NameLoss(LABELS, 0.0, 1.0, 0.0)(names, segmentation)
    torch.testing.assert_close(entropy, F.cross_entropy(names, target))
    dice = DiceLoss(
        include_background=False, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    expected = dice(names.exp(), target[:, None])
    torch.testing.assert_close(NameLoss(LABELS, 1.0, 0.0, 2.0)(names, segmentation), expected)
    both = NameLoss(LABELS, 2.0, 3.0, 0.0)(names, segmentation)
    torch.testing.assert_close(both, 2 * expected + 3 * entropy)


def test_elements_of_a_coarser_map_have_the_fractions_of_the_labels_in_them():
    # One element of two voxels, one of the spleen, with probabilities 1/2, 1/4, 1/4: the
    # cross-entropy is that of both classes, (ln 2 + ln 4) / 2. Dice: liver 1 - 1 / (1/4 + 1) = 1/5;
    # spleen in common 1/8, found 1/4, there 1/2: 1 - (1/4 + 1) / (3/4 + 1) = 2/7.
    names = torch.tensor([0.5, 0.25, 0.25]).log().reshape(1, 3, 1, 1, 1)
    segmentation = torch.tensor([7, 0], dtype=torch.int16).reshape(1, 1, 1, 2)
    entropy = NameLoss(LABELS, 0.0, 1.0, 0.0)(names, segmentation)
    assert float(entropy) == pytest.approx((math.log(2) + math.log(4)) / 2)
    dice = NameLoss(LABELS, 1.0, 0.0, 0.0)(names, segmentation)
    assert float(dice) == pytest.approx((1 / 5 + 2 / 7) / 2)


def test_what_is_no_label_of_the_plans_is_background():
    names, _, segmentation = random_names()
    others = torch.where(segmentation == 2, torch.tensor([0, 1, 5, 9])[segmentation % 4], 0)
    loss = NameLoss(LABELS, 1.0, 1.0, 2.0)
    segmentation[segmentation == 2] = 0
    # above the largest value there is, such as 9, values count as that: they do not occur
    others[others == 9] = 0
    expected = loss(names, segmentation)
    torch.testing.assert_close(loss(names, torch.where(others > 0, others, segmentation)), expected)


def test_the_loss_at_clicks_by_hand():
    # query 0: logit 0 at a foreground click, ln 2; ln 3 at a background click, of probability 3/4:
    # -ln(1/4); query 1: ln 3 at a foreground click: -ln(3/4), and two places of padding
    logits = torch.zeros(2, 2, 3, 4)
    logits[0, 1, 2, 3] = logits[1, 0, 1, 2] = math.log(3)
    queries = [
        Query(points=[[0, 0, 0], [1, 2, 3]], point_labels=[1, 0]),
        Query(points=[[0.4, 0.6, 2.0]], point_labels=[1]),
    ]
    loss = click_loss(logits, batch_queries(queries))
    assert float(loss) == pytest.approx((math.log(2) + math.log(4) + math.log(4 / 3)) / 3)
    # points outside the patch count where they are nearest
    outside = batch_queries([Query(points=[[5, 2.2, 8]], point_labels=[0])])
    assert float(click_loss(logits[:1], outside)) == pytest.approx(math.log(4))


def test_without_clicks_there_is_no_loss_at_them():
    logits = torch.ones(2, 2, 3, 4, requires_grad=True)
    loss = click_loss(logits, batch_queries([Query(label=0), Query(label=1)]))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_the_part_about_an_object_holds_answer_and_target_and_a_margin():
    logits, targets = torch.full((3, 8, 40, 60), -1.0), torch.zeros(3, 8, 40, 60, dtype=torch.bool)
    logits[0, 4, 20, 30] = 2
    targets[0, 5, 22:24, 33] = True
    logits[1, 0, 0, 59] = 1
    found = about_objects(logits, targets, margin=3)
    for query, expected in enumerate(
        [np.s_[0:1, 1:9, 17:27, 27:37], np.s_[1:2, 0:4, 0:4, 56:63], np.s_[2:3, :, :, :]]
    ):
        assert found[query] == expected


def test_what_a_query_without_a_name_means_by_hand():
    segmentation = torch.zeros(4, 1, 2, 4, dtype=torch.int16)
    segmentation[:, 0, 0, :2], segmentation[:, 0, 1] = 7, 2
    targets = torch.stack(
        [
            segmentation[0] == 2,  # the liver, label 0
            segmentation[0] == 7,  # the spleen, label 1
            (segmentation[0] == 2) & (torch.arange(4) < 2),  # a part of the liver: none
            segmentation[0] == 0,  # all of the background: none
        ]
    )
    weights = torch.tensor([[0.5, 0.25], [0.25, 0.125], [0.25, 0.25], [0.5, 0.375]])
    loss = match_loss(weights, labels_meant(targets, segmentation, LABELS))
    chances = [0.5, 0.125, 0.5, 0.125]
    assert float(loss) == pytest.approx(-np.log(chances).mean())
