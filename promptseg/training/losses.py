"""Dice and focal loss on logits, of names and of queries, and the error of the predicted IoU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from promptseg.labels import IGNORED, Values, classes_of, members, stored_values
from promptseg.networks.names import of_labels
from promptseg.networks.prompt_encoder import NO_POINT, PromptBatch
from promptseg.training.distributed import sum_of_all

CERTAIN = 50.0  # logit of a voxel that costs nothing, in Dice and focal loss


class PromptLoss(nn.Module):
    """`dice_weight * Dice + focal_weight * focal + iou_weight * squared error of the IoU`.

    Source:
        Paper, equation 2, both weights 1. The IoU term is SAM's (arXiv:2304.02643, Appendix A).
    """

    def __init__(
        self, dice_weight: float, focal_weight: float, iou_weight: float, focal_gamma: float
    ) -> None:
        super().__init__()
        self.weights = (dice_weight, focal_weight, iou_weight)
        # smoothed by 1 voxel: an empty mask is right for an empty target, with a finite gradient
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        self.focal = FocalLoss(gamma=focal_gamma)

    def forward(
        self, logits: Tensor, iou_logits: Tensor, target: Tensor, ignored: Tensor | None = None
    ) -> Tensor:
        """Mean loss over n queries.

        Args:
            logits: (n, z, y, x) mask logits.
            iou_logits: (n,) predicted IoU before the sigmoid.
            target: (n, z, y, x) bool.
            ignored: (n, z, y, x) bool, voxels that count nowhere; None for none.
        """
        logits = without_ignored(logits.float(), ignored)
        quality = F.mse_loss(iou_logits.float().sigmoid(), hard_iou(logits, target))
        logits, expected = logits[:, None], target[:, None].float()
        dice, focal, iou = self.weights
        hard = self.focal(logits, expected)
        if ignored is not None:  # a mean over the others
            hard = hard * (ignored.numel() / (~ignored).sum().clamp(min=1))
        return dice * self.dice(logits, expected) + focal * hard + iou * quality


def without_ignored(logits: Tensor, ignored: Tensor | None) -> Tensor:
    """Logits that are as good as certain of no mask in voxels to ignore, where no target is.

    Args:
        logits: (n, z, y, x) mask logits.
        ignored: (n, z, y, x) bool; None for none.
    """
    return logits if ignored is None else torch.where(ignored, -CERTAIN, logits)


class NameLoss(nn.Module):
    """`dice_weight * Dice + focal_weight * focal` of all labels against each other.

    The focal loss is of the stored values, which exclude each other; the Dice is of the labels.
    Where these are regions, the probability of one is the sum of its values'.

    Args:
        labels: what each name stands for.
        dice_weight, focal_weight, focal_gamma: as in `PromptLoss`.
    """

    def __init__(
        self,
        labels: Mapping[str, Values],
        dice_weight: float,
        focal_weight: float,
        focal_gamma: float,
    ) -> None:
        super().__init__()
        self.weights, self.gamma = (dice_weight, focal_weight), focal_gamma
        stored = stored_values(labels)
        index = torch.zeros(stored[-1] + 1, dtype=torch.long)
        index[list(stored)] = torch.arange(1, len(stored) + 1)
        self.register_buffer("index", index)
        self.classes = classes_of(labels)

    def forward(self, names: Tensor, segmentation: Tensor) -> Tensor:
        """The loss of the images of all processes together.

        Dice compares sums over these images, so that a label that most of them lack counts where
        it is; the focal loss is a mean over voxels. Voxels that are `IGNORED` count in neither.

        Args:
            names: (b, 1 + values, z', y', x') log-probabilities. Where their map is coarser than
                voxels, each element should have the fractions of the values in it.
            segmentation: (b, z, y, x) label values, or `IGNORED`.
        """
        inside = segmentation.long().clamp(0, len(self.index) - 1)
        classes = self.index.to(inside.device)[inside].where(segmentation != IGNORED, IGNORED)
        truth = _fractions(classes, names.shape[1], names.shape[2:])
        dice, focal = self.weights
        probabilities = names.exp()
        hard = -truth * names
        if self.gamma:
            hard = hard * (1 - probabilities) ** self.gamma
        known = truth.sum(dim=1, keepdim=True)  # fraction of an element that is not ignored
        probabilities, truth = (
            of_labels(maps, self.classes, torch.sum) for maps in (probabilities, truth)
        )
        parts = (probabilities * truth, probabilities * known, truth)
        sums = [part.sum((0, 2, 3, 4)) for part in parts]
        sums = sum_of_all(torch.cat([*sums, torch.stack([hard.sum(), known.sum()])]))
        (common, found, there), (hard, known) = sums[:-2].view(3, -1), sums[-2:]
        overlap = (2 * common + 1) / (found + there + 1)  # smoothed as in `PromptLoss`
        return dice * (1 - overlap).mean() + focal * hard / known.clamp(min=1e-3)


def _fractions(classes: Tensor, count: int, shape: Sequence[int]) -> Tensor:
    """(b, z, y, x) numbers of classes to (b, count, z', y', x') fractions of each in an element.

    A negative number is of no class.
    """
    strides = [n // m for n, m in zip(classes.shape[1:], shape, strict=True)]
    places = itertools.product(*(range(stride) for stride in strides))
    corners = [tuple(slice(p, None, s) for p, s in zip(q, strides, strict=True)) for q in places]
    fractions = torch.zeros(len(classes), count, *shape, device=classes.device)
    for number in range(count):
        for corner in corners:
            fractions[:, number] += classes[(slice(None), *corner)] == number
    return fractions / len(corners)


def about_objects(logits: Tensor, targets: Tensor, margin: int = 16) -> list[tuple[slice, ...]]:
    """For each of n queries the part of the patch that its mask or its target takes up, widened.

    In a large patch most voxels are far from an object and sure: they cost time, and their sum
    would outweigh a small object in the Dice.

    Args:
        logits: (n, z, y, x) mask logits.
        targets: (n, z, y, x) bool.
        margin: voxels.

    Returns:
        Slices of n, z, y and x, of one query each; all of the patch for a query with neither.
    """
    parts = []
    for query, there in enumerate((logits.detach() > 0) | targets):
        one = slice(query, query + 1)
        lines = [there.any(dim=a).any(dim=b).nonzero()[:, 0] for a, b in ((2, 1), (2, 0), (1, 0))]
        if not len(lines[0]):
            parts.append((one, *(slice(None),) * 3))
            continue
        sides = [slice(max(int(i[0]) - margin, 0), int(i[-1]) + 1 + margin) for i in lines]
        parts.append((one, *sides))
    return parts


def click_loss(logits: Tensor, prompts: PromptBatch) -> Tensor:
    """Mean cross-entropy at the points of all processes' queries, which say what is right there.

    Args:
        logits: (n, z, y, x) mask logits.
        prompts: n queries.
    """
    given = prompts.point_labels != NO_POINT
    size = torch.tensor(logits.shape[1:], device=logits.device)
    z, y, x = torch.minimum(prompts.points.round().long().clamp(min=0), size - 1).unbind(-1)
    query = torch.arange(len(logits), device=logits.device)[:, None].expand_as(z)
    there = logits.float()[query, z, y, x]
    wanted = prompts.point_labels[given].float()
    wrong = F.binary_cross_entropy_with_logits(there[given], wanted, reduction="sum")
    wrong, count = sum_of_all(torch.stack([wrong, given.sum().to(wrong)]))
    return wrong / count.clamp(min=1)


def labels_meant(targets: Tensor, segmentation: Tensor, labels: Mapping[str, Values]) -> Tensor:
    """(n, 1 + labels) bool: the labels that masks are all of in their patch; first, none of them.

    Several regions may be one in the patch.

    Args:
        targets: (n, z, y, x) bool.
        segmentation: (n, z, y, x) label values of each mask's image.
        labels: what each name stands for.
    """
    meant = torch.zeros(len(targets), 1 + len(labels), dtype=torch.bool, device=targets.device)
    for query, (target, stored) in enumerate(zip(targets, segmentation, strict=True)):
        inside, size = set(stored[target].unique().tolist()), target.sum()
        for number, values in enumerate(labels.values(), 1):
            of_label = stored.new_tensor(members(values))
            if inside and inside <= set(members(values)):
                meant[query, number] = torch.isin(stored, of_label).sum() == size
    meant[:, 0] = ~meant.any(dim=1)
    return meant


def match_loss(weights: Tensor, meant: Tensor) -> Tensor:
    """Mean cross-entropy of what queries without a name mean: any of their labels, or none.

    Args:
        weights: (n, labels), see `PromptableNetwork.meant_labels`.
        meant: (n, 1 + labels) of `labels_meant`.
    """
    chances = torch.cat([1 - weights.sum(dim=1, keepdim=True), weights], dim=1).float()
    return -(chances * meant).sum(dim=1).clamp(min=1e-4).log().mean()


@torch.no_grad()
def hard_iou(logits: Tensor, target: Tensor) -> Tensor:
    """(n,) IoU of (n, z, y, x) logits, thresholded at 0, with bool targets; 1 for both empty."""
    mask = logits > 0
    intersection = (mask & target).flatten(1).sum(1).float()
    union = (mask | target).flatten(1).sum(1).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


@torch.no_grad()
def hard_dice(logits: Tensor, target: Tensor) -> Tensor:
    """(n,) Dice of logits, thresholded at 0; NaN where mask and target are both empty."""
    mask = logits > 0
    intersection = (mask & target).flatten(1).sum(1).float()
    total = (mask.flatten(1).sum(1) + target.flatten(1).sum(1)).float()
    return 2 * intersection / total
