"""Dice and focal loss on logits, and the error of the predicted IoU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn


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

    def forward(self, logits: Tensor, iou_logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over n queries.

        Args:
            logits: (n, z, y, x) mask logits.
            iou_logits: (n,) predicted IoU before the sigmoid.
            target: (n, z, y, x) bool.
        """
        logits, expected = logits.float()[:, None], target[:, None].float()
        dice, focal, iou = self.weights
        quality = F.mse_loss(iou_logits.float().sigmoid(), hard_iou(logits[:, 0], target))
        loss = dice * self.dice(logits, expected) + focal * self.focal(logits, expected)
        return loss + iou * quality


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
