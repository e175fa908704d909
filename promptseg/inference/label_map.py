"""Logits of regions, label by label, to one segmentation on the raw voxel grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.results import Prediction, RegionProbabilities, label_result
from promptseg.inference.sliding_window import Blend
from promptseg.prompts.types import Prompts

SLAB = 2**20  # raw voxels that are interpolated at a time: 4 MB
_LARGEST = torch.finfo(torch.float16).max


def raw_slabs(
    blend: Blend,
    shape: Sequence[int],
    raw_shape: Sequence[int],
    *,
    positive_only: bool = False,
    most_voxels: int = SLAB,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Carry the logits of a region to the raw grid, by linear interpolation, slab by slab.

    Both grids cover the same field of view; a voxel i covers [i, i + 1). Equal to resampling the
    whole volume (torch's `trilinear`, `align_corners=False`) and cutting out the raw voxels whose
    centre lies in the region, without ever holding that volume.

    Only the slices of the blend that are held and final are carried over; called again after each
    `release`, it gives every slab of the raw grid once.

    Args:
        blend: of the region.
        shape: of the preprocessed volume, zyx.
        raw_shape: of the raw volume, zyx.
        positive_only: leave out slabs, and the border of slabs, where no logit is above 0.
        most_voxels: of a slab, but at least one slice of the region.

    Yields:
        (z, y, x) logits of a slab of the raw volume, and that slab's first voxel, zyx. Nothing
        when no raw voxel's centre lies in the region, or none is wanted.
    """
    corners = zip(blend.lower.tolist(), blend.upper.tolist(), shape, raw_shape, strict=True)
    axes = [_between(*numbers) for numbers in corners]
    (first, left, share), *in_plane = axes
    there = left >= blend.first
    if not blend.is_complete:
        there &= left + 1 < blend.final
    first, left, share = first + int((left < blend.first).sum()), left[there], share[there]
    slices = max(1, most_voxels // max(1, len(in_plane[0][1]) * len(in_plane[1][1])))
    if not all(len(places) for places in (left, in_plane[0][1], in_plane[1][1])):
        return
    for here in range(0, len(left), slices):
        lefts = left[here : here + slices]
        low, high = int(lefts[0]), int(lefts[-1]) + 2
        logits = blend.result(low, high)
        wanted = _around_positive(logits, in_plane) if positive_only else in_plane
        if wanted is None:
            continue
        for axis, (_, places, shares) in reversed(list(enumerate(wanted, start=1))):
            logits = _interpolated(logits, axis, places, shares)
        logits = _interpolated(logits, 0, lefts - low, share[here : here + slices])
        yield logits, np.array([first + here, *(start for start, _, _ in wanted)])


def _around_positive(
    logits: Tensor, in_plane: Sequence[tuple[int, Tensor, Tensor]]
) -> list[tuple[int, Tensor, Tensor]] | None:
    """The part of the y and x axes (see `_between`) that has a voxel above 0 beside it, if any."""
    positive = (logits > 0).any(dim=0)
    if not positive.any():
        return None
    parts = []
    for axis, (start, left, share) in enumerate(in_plane):
        there = positive.any(dim=1 - axis).nonzero()[:, 0]
        low = int(torch.searchsorted(left, there[0] - 1))
        high = int(torch.searchsorted(left, there[-1], right=True))
        parts.append((start + low, left[low:high], share[low:high]))
    return parts


def _between(low: int, high: int, n: int, raw: int) -> tuple[int, Tensor, Tensor]:
    """Which raw voxels of an axis lie in a region, and between which of its voxels.

    Returns:
        The first one, for each the region's voxel to its left, and how far it is from there to
        the next, in [0, 1].
    """
    centres = (torch.arange(raw, dtype=torch.float64) + 0.5) * (n / raw)
    inside = ((centres >= low) & (centres <= high)).nonzero()[:, 0]
    position = (centres[inside] - 0.5 - low).clamp(0, high - low - 1)
    left = position.floor().long()
    return int(inside[0]) if len(inside) else 0, left, position - left


def _interpolated(logits: Tensor, axis: int, left: Tensor, share: Tensor) -> Tensor:
    extent = logits.shape[axis]
    if not share.any() and len(left) and left[-1] - left[0] == len(left) - 1:
        return logits.narrow(axis, int(left[0]), len(left))  # the same voxels as before
    right = (left + 1).clamp(max=extent - 1)
    share = share.to(logits).view([-1 if a == axis else 1 for a in range(3)])
    return torch.lerp(logits.index_select(axis, left), logits.index_select(axis, right), share)


class LabelMap:
    """The winning label of every raw voxel, one label's logits at a time.

    A voxel goes to the label with the largest logit above 0, to the lowest value when several
    are equal, whatever the order in which labels come. Logits are compared as float16: to about
    one part in 2000, that is where two labels are equally likely. Memory: the label map and, of
    the regions that were entered, a float16 a voxel, however many labels there are.
    """

    def __init__(self, raw_shape: Sequence[int], largest_value: int) -> None:
        self.labels = np.zeros(tuple(raw_shape), np.uint8 if largest_value < 256 else np.int16)
        # Bits of a float16: those of positive numbers are ordered as the numbers are.
        self._best = np.zeros(tuple(raw_shape), np.int16)  # no memory before it is written to
        self._counts = np.zeros(largest_value + 1, np.int64)

    def add(self, value: int, logits: Tensor, lower: np.ndarray) -> None:
        """Enter the (z, y, x) raw-grid logits of one label's region."""
        region = tuple(slice(int(a), int(a + n)) for a, n in zip(lower, logits.shape, strict=True))
        best, labels = self._best[region], self.labels[region]
        bits = logits.clamp(0, _LARGEST).half().view(torch.int16).clamp_(min=1)
        new = torch.where(logits > 0, bits, 0).numpy()  # never for NaN
        wins = (new > best) | ((new == best) & (labels > value))
        best[wins] = new[wins]
        lost = np.bincount(labels[wins], minlength=len(self._counts))
        self._counts -= lost
        self._counts[value] += lost.sum()
        labels[wins] = value

    def voxels(self, value: int) -> int:
        """How many voxels a label has won so far."""
        return int(self._counts[value])


class Collector:
    """What is known of an image's prediction so far.

    Args:
        values: of the labels in the segmentation.
        raw_shape: of the image, voxels, zyx.
        keep_probabilities: whether the prediction has them.

    Attributes:
        probabilities: None when they are not kept; then logits below 0 need not be entered.
    """

    def __init__(
        self, values: Mapping[str, int], raw_shape: Sequence[int], keep_probabilities: bool
    ) -> None:
        self.probabilities = RegionProbabilities() if keep_probabilities else None
        self._values = values
        self._shape = raw_shape
        self._label_map = LabelMap(raw_shape, max(values.values()))
        self._told: dict[str, dict[int, tuple[float | None, float | None]]] = {}

    def enter(self, label: str, slabs: Iterable[tuple[Tensor, np.ndarray]]) -> None:
        """Take (z, y, x) logits of a label on the raw grid, each with its first voxel, zyx."""
        for logits, lower in slabs:
            self._label_map.add(self._values[label], logits, lower)
            if self.probabilities is not None:
                self.probabilities.add(label, logits, lower)

    def rate(
        self, label: str, number: int, predicted_iou: float | None, prompt_consistency: float | None
    ) -> None:
        """Take what is told of one object of a label, in place of what was told before."""
        self._told.setdefault(label, {})[number] = predicted_iou, prompt_consistency

    def prediction(self, wanted: Mapping[str, Prompts]) -> Prediction:
        """All that was entered, with a result for each label that prompts were wanted for."""
        results = {
            label: label_result(
                prompts,
                self._worst(label, 0),
                self._label_map.voxels(self._values[label]),
                self._shape,
                self._worst(label, 1),
            )
            for label, prompts in wanted.items()
        }
        return Prediction(
            segmentation=self._label_map.labels, labels=results, probabilities=self.probabilities
        )

    def _worst(self, label: str, place: int) -> float | None:
        """Of the objects of a label that one which a person should look at."""
        told = [of_object[place] for of_object in self._told.get(label, {}).values()]
        return min((value for value in told if value is not None), default=None)
