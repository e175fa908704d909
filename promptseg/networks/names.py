"""What the labels' names say about a patch, and which of them a prompt without a name means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from promptseg.networks.grid import Grid, elements_at
from promptseg.networks.prompt_encoder import NO_POINT, PromptBatch

SURE = 8.0  # largest logit that a name or a mask to correct may begin with
DECISIVE = 3.0  # exponent of the weights of the labels that a prompt without a name may mean
AROUND = 5.0  # voxels of the shortest side about a click that tell whether a label is meant
TELLING = 3  # first clicks, which may rule out a label; those that follow correct a mask
ENOUGH = 0.1  # of them on the click's side leave a label possible
MISLED = 0.02  # chance of a click that contradicts the label that is meant
BALL = [
    place
    for place in itertools.product(np.linspace(-AROUND, AROUND, 9).tolist(), repeat=3)
    if math.hypot(*place) <= AROUND
]


class NameHead(nn.Module):
    """What the labels' names say: for all labels at once, one class against the others.

    Args:
        channels: of the finest map.
        classes_of_labels: for each label its classes: one, or those of a region.
    """

    def __init__(self, channels: int, classes_of_labels: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.classes_of_labels = classes_of_labels
        self.classes = nn.Conv3d(channels, 1 + max(map(max, classes_of_labels)), 1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, z', y', x') to (b, 1 + classes, z', y', x') log-probabilities, background first.

        They are of the classes, which exclude each other; `of_labels` has those of the labels.
        """
        return self.classes(features).float().log_softmax(dim=1)

    def of_labels(self, names: Tensor) -> Tensor:
        """Log-probabilities of classes, as above, to those of labels, (b, labels, z', y', x')."""
        return of_labels(names, self.classes_of_labels, torch.logsumexp)


def of_labels(
    maps: Tensor, classes: Sequence[tuple[int, ...]], together: Callable[..., Tensor]
) -> Tensor:
    """(b, 1 + classes, ...) to (b, labels, ...): what the classes of each label are together.

    Args:
        maps: of the classes, background first.
        classes: of each label.
        together: `torch.sum`, or `torch.logsumexp` of logarithms.
    """
    if all(of_label == (number,) for number, of_label in enumerate(classes, 1)):
        return maps[:, 1:]
    return torch.stack([together(maps[:, list(of_one)], dim=1) for of_one in classes], dim=1)


class NameMatch(nn.Module):
    """Which label a prompt without a name means: it lies where the label's mask would be.

    Each label is rated alike by how its probabilities lie about the box or the mask before, and
    about the clicks; what no label explains is an object without a name. So a box says at least
    what the name would, and a new object does not become its neighbour.
    """

    STATISTICS = 10

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Sequential(
            nn.Linear(self.STATISTICS, 16), nn.LeakyReLU(0.01), nn.Linear(16, 1)
        )
        self.no_label = nn.Parameter(torch.zeros(()))

    def forward(self, names: Tensor, there: Tensor, kinds: Tensor, clicks: Tensor) -> Tensor:
        """Weights of the labels for n queries.

        Args:
            names: (n or 1, labels, z', y', x') probabilities.
            there: (n, z', y', x') fractions inside the box, or else the mask before.
            kinds: (n, 2) 0 or 1, whether it is a box, or a mask.
            clicks: (n, 2, z', y', x') maps of foreground and background clicks; zeros where
                they correct a mask.

        Returns:
            (n, labels) weights; what they lack to 1 is the weight of no label.
        """
        flat, inside, weights = names.flatten(2), there.flatten(1), clicks.flatten(2)
        total, size, clicked = flat.sum(2), inside.sum(1, keepdim=True), weights.sum(2)
        within = (flat @ inside[..., None])[..., 0]
        at_clicks = flat @ weights.transpose(1, 2) / clicked.clamp(min=1e-3)[:, None]
        overlaps = [within / (total + 1), within / (size + 1), 2 * within / (total + size + 1)]
        overlaps.append(same_extent(names, there))
        flags = torch.cat([kinds.float(), (clicked > 0.01).float()], dim=1)
        flags = flags[:, None].expand(-1, names.shape[1], -1)
        rated = self.rate(torch.cat([torch.stack(overlaps, 2), at_clicks, flags], dim=2))[:, :, 0]
        nothing = self.no_label.expand(rated.shape[0], 1)
        return torch.cat([nothing, rated], dim=1).softmax(dim=1)[:, 1:]


def agreeing(names: Tensor, prompts: PromptBatch, grid: Grid) -> Tensor:
    """How far clicks leave it possible that each label is meant, 0 to 1.

    A click contradicts a label that is on the other side there, and not only at its border: hardly
    anything of the neighbourhood is on the side that the click demands. A click never makes a label
    likelier: at an error of one label its neighbour would be right. After a few clicks it is clear
    what is meant, and an error is one of the mask.

    Args:
        names: (n, labels, z', y', x') probabilities.
        prompts: n queries, whose first `TELLING` points are used.
        grid: of the elements of `names`.

    Returns:
        (n, labels) of the click that each label contradicts most; 1 without clicks.
    """
    given, device = prompts.point_labels != NO_POINT, names.device
    given = given & (given.cumsum(1) <= TELLING)
    ball = torch.tensor([(0.0, 0.0, 0.0), *BALL], device=device)  # first the click itself
    length = torch.tensor(grid.spacing, device=device)
    places = (prompts.points + 0.5)[:, :, None] + ball / length  # (n, k, offsets, 3)
    elements = elements_at(places, grid.shape, grid.stride)  # (n, k, offsets)
    flat = elements.flatten(1)[:, None].expand(-1, names.shape[1], -1)
    found = names.flatten(2).gather(2, flat).view(*names.shape[:2], *elements.shape[1:])
    right = torch.where(prompts.point_labels[:, None, :, None] == 1, found, 1 - found)
    agrees = torch.maximum(2 * right[..., 0], right[..., 1:].mean(-1) / ENOUGH).clamp(max=1.0)
    without = torch.ones(*names.shape[:2], 1, device=device)
    return torch.cat([torch.where(given[:, None], agrees, 1.0), without], dim=2).amin(2)


def after_clicks(weights: Tensor, possible: Tensor) -> Tensor:
    """Weights of labels when a click has been seen, by Bayes' rule.

    No click contradicts an object without a label. One may contradict the label that is meant, so
    that a box which means a label for certain counts for more than a click.

    Args:
        weights: (n, labels); what they lack to 1 is the weight of no label.
        possible: (n, labels) of `agreeing`.

    Returns:
        (n, labels) alike.
    """
    left = weights * possible.clamp(min=MISLED)
    return left / (1 - weights.sum(1, keepdim=True) + left.sum(1, keepdim=True)).clamp(min=1e-6)


def is_mask_of(masks: Tensor, names: Tensor, weights: Tensor) -> Tensor:
    """(n,) whether (n, z', y', x') masks overlap the labels of (n, labels) weights, IoU above 0.5.

    Args:
        masks, weights: fractions.
        names: (n, labels, z', y', x') probabilities.
    """
    wanted = torch.einsum("nl,nlzyx->nzyx", weights, names)
    common, either = torch.minimum(masks, wanted), torch.maximum(masks, wanted)
    return common.flatten(1).sum(1) > 0.5 * either.flatten(1).sum(1)


def same_extent(names: Tensor, there: Tensor) -> Tensor:
    """How well the extent of each label's mask agrees with that of a box or mask, 0 to 1.

    A ring and what it encloses lie alike in the box of the ring, but only one extends as far.

    Args:
        names: (n or 1, labels, z', y', x') probabilities.
        there: (n, z', y', x') fractions inside the box or mask.

    Returns:
        (n, labels) products over the axes of the IoU of the two extents.
    """
    alike = torch.ones(names.shape[:2], device=names.device)
    for others in ((2, 3), (1, 3), (1, 2)):
        wanted = there.amax(others)[:, None]
        found = names.amax([axis + 1 for axis in others])
        common, either = torch.minimum(wanted, found), torch.maximum(wanted, found)
        alike = alike * common.sum(2) / either.sum(2).clamp(min=1e-3)
    return alike


def decided(weights: Tensor) -> Tensor:
    """(n, labels) weights as decisions: what is likely becomes nearly certain."""
    nothing = 1 - weights.sum(dim=1, keepdim=True)
    sharp = torch.cat([nothing.clamp(min=0), weights], dim=1) ** DECISIVE
    return (sharp / sharp.sum(dim=1, keepdim=True))[:, 1:]


def log_odds(probabilities: Tensor) -> Tensor:
    """Logits of probabilities, between -`SURE` and `SURE`."""
    return torch.logit(probabilities.float(), eps=1 / (1 + math.exp(SURE)))


def log_odds_of_log(log_probabilities: Tensor) -> Tensor:
    """The same of their logarithms, exact also where a probability is nearly 1."""
    against = torch.log(-torch.expm1(log_probabilities.float().clamp(max=-1e-6)))
    return (log_probabilities - against).clamp(-SURE, SURE)
