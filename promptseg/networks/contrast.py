"""Image values beside those that prompts lie on: the border of an object that no label taught."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from promptseg.networks.grid import Grid, elements_at
from promptseg.networks.prompt_encoder import PromptBatch, box_maps

FURTHEST = 4.0  # standard deviations of a channel that count
DEVIATIONS = (0.3, 1.0)  # of the difference of two values, in which they are alike
KINDS = 3  # of prompts: foreground clicks, background clicks, a box
CONTRASTS = KINDS * len(DEVIATIONS)


def standardized(maps: Tensor) -> Tensor:
    """(b, c, z, y, x) maps, each channel with mean 0 and deviation 1 over the patch."""
    return F.instance_norm(maps.detach().float()).clamp(-FURTHEST, FURTHEST)


def values_at_prompts(values: Tensor, prompts: PromptBatch, grid: Grid) -> tuple[Tensor, Tensor]:
    """The mean image values that n queries point at.

    Args:
        values: (n or 1, c, z', y', x') over the patch.
        prompts: the queries.
        grid: of the elements of `values`.

    Returns:
        (n, KINDS, c) means at foreground clicks, at background clicks, and in the inner half of the
        box, or else in what is drawn on slices; (n, KINDS) bool, which there are.
    """
    flat = values.flatten(2).expand(len(prompts), -1, -1)
    elements = elements_at(prompts.points, grid.shape, grid.stride)[:, None]
    clicked = flat.gather(2, elements.expand(-1, flat.shape[1], -1))  # (n, c, k)
    kinds = torch.stack([prompts.point_labels == 1, prompts.point_labels == 0], dim=1).float()
    quarter = (prompts.boxes[:, 1] - prompts.boxes[:, 0]) / 4
    inner = torch.stack([prompts.boxes[:, 0] + quarter, prompts.boxes[:, 1] - quarter], dim=1)
    inside = (box_maps(inner, grid) * prompts.has_box[:, None, None, None]).flatten(1)
    weights, count = inside[:, None], inside.sum(1, keepdim=True)
    means = torch.cat(
        [
            kinds @ clicked.transpose(1, 2) / kinds.sum(2).clamp(min=1)[..., None],
            weights @ flat.transpose(1, 2) / count.clamp(min=1e-3)[..., None],
        ],
        dim=1,
    )
    return means, torch.cat([kinds.sum(2), count], dim=1) > 1e-3


def contrasts(values: Tensor, means: Tensor, given: Tensor) -> Tensor:
    """How alike image values are to those at prompts, 0 to 1, in several widths.

    Args:
        values: (n or 1, c, z, y, x) of some part of the patch.
        means, given: of `values_at_prompts`.

    Returns:
        (n, CONTRASTS, z, y, x); 0 for kinds of prompts that a query does not have.
    """
    apart = sum(
        (values[:, None, channel] - means[:, :, channel, None, None, None]).square()
        for channel in range(means.shape[2])
    )
    apart = apart / means.shape[2]
    there = given[..., None, None, None].float()
    return torch.cat([there * torch.exp(-0.5 * apart / width**2) for width in DEVIATIONS], dim=1)
