"""What the prompt head sees of queries: their prompts, what names say, and the image."""

from __future__ import annotations

import torch
from torch import Tensor

from promptseg.networks.contrast import CONTRASTS, contrasts, values_at_prompts
from promptseg.networks.encoding import Encoding, of_queries
from promptseg.networks.grid import Grid, resized
from promptseg.networks.likeness import cosines
from promptseg.networks.prompt_encoder import (
    NO_POINT,
    PromptBatch,
    box_maps,
    click_maps,
    click_pushes,
)

LOGITS = 4.0  # what logits are divided by on maps that are input
MARGIN = 2.0  # logit on its side that a click pushes its voxel to
PUSH_WIDTHS = (2.5, 5.0)  # of what a click adds to the logits about it
COARSE_WIDTHS = (1.5, 6.0)  # of clicks on the head's map, in voxels of the shortest side
FINE_WIDTHS = (1.0, 3.0)  # of clicks on the voxels themselves
DIRECTIONS = 8  # channels whose directions are compared with those at clicks
PUSHES = len(PUSH_WIDTHS)
# without the channels of the image; clicks, pushes, box, mask before, name, cosines (two)
COARSE_MAPS = 2 * len(COARSE_WIDTHS) + PUSHES + 5 + CONTRASTS
FINE_MAPS = 2 * len(FINE_WIDTHS) + PUSHES + 2 + CONTRASTS  # without box and cosines


def head_maps(
    encoding: Encoding,
    prompts: PromptBatch,
    features: Tensor,
    by_name: Tensor,
    start: Tensor,
    whole: Grid,
    here: Grid,
) -> tuple[Tensor, Tensor]:
    """The maps of n queries in a part of the patch.

    Args:
        encoding: of the images.
        prompts: the queries.
        features: (n or 1, c, z', y', x'), projected, of the part.
        by_name: (n, 1, ...) logits that names give, of the part.
        start: (n, 1, z, y, x) logits that the head will add to, of the part.
        whole: elements of the head's map.
        here: those of the part.

    Returns:
        (n, COARSE_MAPS + channels, z', y', x') on the elements, and
        (n, FINE_MAPS + channels, z, y, x) on the voxels, first those of `click_pushes`.
    """
    fine, points = here.at((1, 1, 1)), (prompts.points, prompts.point_labels)
    channels = encoding.values.shape[1]
    of_elements = of_queries(encoding.compared[:, -channels:], prompts)
    means = values_at_prompts(of_elements, prompts, whole)
    clicks = click_maps(*points, here, COARSE_WIDTHS)
    pushes, before = pushes_of(prompts, start[:, 0], fine), masks_before(prompts, fine)
    coarse_values = of_elements[(..., *here.slices)]
    fine_values = of_queries(encoding.values[(..., *fine.slices)], prompts)
    coarse = [
        clicks,
        drawn_maps(prompts, here, fine),
        resized(before, here.shape),
        resized(torch.tanh(by_name.detach() / LOGITS), here.shape),
        click_pushes(*points, pushes, here, PUSH_WIDTHS),
        cosines(features[:, :DIRECTIONS], clicks[:, :2]),
        contrasts(coarse_values, *means),
        coarse_values.expand(len(prompts), -1, -1, -1, -1),
    ]
    on_voxels = [
        click_pushes(*points, pushes, fine, PUSH_WIDTHS),
        click_maps(*points, fine, FINE_WIDTHS),
        before,
        torch.tanh(start.detach() / LOGITS),
        contrasts(fine_values, *means),
        fine_values.expand(len(prompts), -1, -1, -1, -1),
    ]
    maps = torch.cat(coarse, dim=1).contiguous(memory_format=torch.channels_last_3d)
    return maps, torch.cat(on_voxels, dim=1)


def pushes_of(prompts: PromptBatch, start: Tensor, fine: Grid) -> Tensor:
    """(n, k) what each click lacks to a `MARGIN` on its side, in units of `LOGITS`.

    A click that the start already satisfies pushes nothing. The surroundings of another click
    are about as unsure as its voxel where they are as wrong, and surer where they are right:
    a push that fades with the distance moves the border where it should.
    """
    first = torch.tensor(fine.first, device=start.device)
    last = torch.tensor(start.shape[1:], device=start.device) - 1
    places = (prompts.points.round().long() - first).clamp(min=0)
    z, y, x = torch.minimum(places, last).unbind(-1)
    query = torch.arange(len(prompts), device=start.device)[:, None].expand_as(z)
    sides = 2.0 * (prompts.point_labels == 1) - 1
    lacking = (MARGIN - sides * start[query, z, y, x]).clamp(min=0) / LOGITS
    return sides * lacking * (prompts.point_labels != NO_POINT)


def drawn_maps(prompts: PromptBatch, here: Grid, fine: Grid) -> Tensor:
    """(n, 1, z', y', x') of boxes and what is drawn on slices: 1 inside, -1 outside, or 0."""
    boxes = 2 * box_maps(prompts.boxes, here)[:, None] - 1
    boxes = boxes * prompts.has_box[:, None, None, None, None]
    if prompts.regions is None:
        return boxes
    drawn = resized(prompts.regions[(slice(None), None, *fine.slices)], here.shape)
    return torch.where(drawn != 0, drawn, boxes)


def masks_before(prompts: PromptBatch, fine: Grid) -> Tensor:
    """(n, 1, z, y, x) of the masks to correct in a part of the patch, -1 to 1; 0 for none."""
    if prompts.previous is None:
        return torch.zeros(len(prompts), 1, *fine.shape, device=prompts.boxes.device)
    masks = torch.tanh(prompts.previous[(slice(None), None, *fine.slices)].float() / LOGITS)
    return masks * prompts.has_previous[:, None, None, None, None]
