"""A network whose right answers are known without training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from promptseg.networks.prompt_encoder import NO_POINT, PromptBatch

LEVELS = (80.0, 160.0, 240.0)  # intensity that label 0, 1, 2 of the plans has; background is 0
WIDTH = 30.0  # a voxel belongs to a label when it is nearer than this to its level


class LevelNetwork(nn.Module):
    """Labels a voxel by its intensity; counts its calls.

    A query starts from the mask to correct, if it has one; else from its label's voxels; else, if
    it has a box, from those of any label; else from nothing. What is drawn on slices holds there.

    Args:
        inside_box: whether voxels whose centre lies outside the query's box are background.
        radius: voxels; a query with points answers 1 so near to a foreground point and nowhere
            else, whatever the intensities; None ignores points.
        click: voxels; so near to a point the answer becomes 5 or -5, as it says, the last of
            several counting; nothing else changes. None ignores points.
        iou: the logit it predicts for every answer.
    """

    def __init__(
        self,
        inside_box: bool = True,
        radius: float | None = None,
        click: float | None = None,
        iou: float = 2.0,
    ):
        super().__init__()
        self.inside_box, self.radius, self.click, self.iou = inside_box, radius, click, iou
        self.encoded, self.decoded, self.most_at_once, self.calls = 0, 0, 0, 0

    def encode(self, image: Tensor) -> Tensor:
        self.encoded += 1
        return image.float()

    def decode(self, encoding: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        self.decoded += len(prompts)
        self.calls += 1
        self.most_at_once = max(self.most_at_once, len(prompts))
        return torch.stack([self._answer(encoding, prompts, i) for i in range(len(prompts))]), (
            torch.full((len(prompts),), self.iou)
        )

    def _start(self, image: Tensor, prompts: PromptBatch, i: int) -> Tensor:
        if prompts.has_previous[i]:
            return prompts.previous[i]
        if (label := int(prompts.labels[i])) >= 0:
            return (WIDTH - (image - LEVELS[label]).abs()) / 10
        if prompts.has_box[i]:
            return torch.stack([(WIDTH - (image - level).abs()) / 10 for level in LEVELS]).amax(0)
        return torch.full_like(image, -5.0)

    def _answer(self, encoding: Tensor, prompts: PromptBatch, i: int) -> Tensor:
        image = encoding[prompts.image_index[i], 0]
        places = torch.stack(
            torch.meshgrid(*(torch.arange(float(n)) for n in image.shape), indexing="ij"), dim=-1
        )
        logits = self._start(image, prompts, i)
        wanted = prompts.points[i][prompts.point_labels[i] == 1]
        if self.radius is not None and (prompts.point_labels[i] != NO_POINT).any():
            far = torch.full((1, *image.shape), torch.inf)
            distances = (places[..., None, :] - wanted).norm(dim=-1).moveaxis(-1, 0)
            logits = (self.radius - torch.cat([far, distances]).amin(0)).clamp(min=-20)
        if prompts.regions is not None:
            region = prompts.regions[i]
            logits = torch.where(region == 0, logits, 5 * region)
        if self.inside_box and prompts.has_box[i]:
            lower, upper = prompts.boxes[i]
            inside = ((places + 0.5 > lower) & (places + 0.5 < upper)).all(dim=-1)
            logits = torch.where(inside, logits, -10.0)
        if self.click is not None:
            for point, kind in zip(prompts.points[i], prompts.point_labels[i], strict=True):
                if kind != NO_POINT:
                    near = (places - point).norm(dim=-1) < self.click
                    logits = torch.where(near, 10.0 * kind - 5, logits)
        return logits
