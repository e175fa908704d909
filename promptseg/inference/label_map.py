"""Logits to one prediction on the raw voxel grid, label by label and slab by slab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import box_slices
from promptseg.components import components
from promptseg.inference.results import Prediction, RegionProbabilities, label_result
from promptseg.inference.sliding_window import Blend
from promptseg.inference_plan import PostProcessing
from promptseg.labels import Values, members
from promptseg.networks.names import SURE
from promptseg.plans import Plans
from promptseg.postprocessing import postprocessed
from promptseg.prompts.names import is_unnamed, object_number
from promptseg.prompts.types import Prompts, make_prompts

MOST_OBJECTS = 9999  # without a name in one image
SLAB = 2**20  # raw voxels that are interpolated at once: 4 MB
_LARGEST = torch.finfo(torch.float16).max


def raw_slabs(
    blend: Blend,
    shape: Sequence[int],
    raw_shape: Sequence[int],
    *,
    positive_only: bool = False,
    most_voxels: int = SLAB,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Resample the logits of a region to the raw grid, by linear interpolation, slab by slab.

    Both grids cover the same field of view; a voxel i covers [i, i + 1). Equal to resampling the
    whole volume (torch's `trilinear`, `align_corners=False`) and cropping it to the raw voxels
    whose centres lie in the region, without ever holding that volume.

    Only the slices of the blend that are held and final are resampled; called again after each
    `release`, it yields every slab of the raw grid once.

    Args:
        blend: of the region.
        shape: of the preprocessed volume, zyx.
        raw_shape: of the raw volume, zyx.
        positive_only: omit slabs, and the borders of slabs, where no logit is above 0.
        most_voxels: of a slab, which has at least one slice of the region.

    Yields:
        (z, y, x) logits of a slab of the raw volume, and that slab's first voxel, zyx. Nothing
        when no raw voxel's centre lies in the region.
    """
    corners = zip(blend.lower.tolist(), blend.upper.tolist(), shape, raw_shape, strict=True)
    axes = [_between(*numbers) for numbers in corners]
    (first, left, fraction), *in_plane = axes
    there = left >= blend.first
    if not blend.is_complete:
        there &= left + 1 < blend.final
    first, left, fraction = first + int((left < blend.first).sum()), left[there], fraction[there]
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
        for axis, (_, places, fractions) in reversed(list(enumerate(wanted, start=1))):
            logits = _interpolated(logits, axis, places, fractions)
        logits = _interpolated(logits, 0, lefts - low, fraction[here : here + slices])
        yield logits, np.array([first + here, *(start for start, _, _ in wanted)])


def _around_positive(
    logits: Tensor, in_plane: Sequence[tuple[int, Tensor, Tensor]]
) -> list[tuple[int, Tensor, Tensor]] | None:
    """The y and x axes (see `_between`) cropped to the neighbours of voxels above 0, if any."""
    positive = (logits > 0).any(dim=0)
    if not positive.any():
        return None
    parts = []
    for axis, (start, left, fraction) in enumerate(in_plane):
        there = positive.any(dim=1 - axis).nonzero()[:, 0]
        low = int(torch.searchsorted(left, there[0] - 1))
        high = int(torch.searchsorted(left, there[-1], right=True))
        parts.append((start + low, left[low:high], fraction[low:high]))
    return parts


def _between(low: int, high: int, n: int, raw: int) -> tuple[int, Tensor, Tensor]:
    """The raw voxels of an axis whose centres lie in a region, and the region's voxels beside them.

    Args:
        low, high: of the region along the axis, in voxels of the preprocessed volume.
        n, raw: voxels of the preprocessed and the raw volume along the axis.

    Returns:
        The first raw voxel; for each, the region's voxel to its left, and the fraction of the way
        from there to the next one, in [0, 1].
    """
    centres = (torch.arange(raw, dtype=torch.float64) + 0.5) * (n / raw)
    inside = ((centres >= low) & (centres <= high)).nonzero()[:, 0]
    position = (centres[inside] - 0.5 - low).clamp(0, high - low - 1)
    left = position.floor().long()
    return int(inside[0]) if len(inside) else 0, left, position - left


def _interpolated(logits: Tensor, axis: int, left: Tensor, fraction: Tensor) -> Tensor:
    """Logits at positions along an axis, see `_between`."""
    extent = logits.shape[axis]
    if not fraction.any() and len(left) and left[-1] - left[0] == len(left) - 1:
        return logits.narrow(axis, int(left[0]), len(left))  # the same voxels
    right = (left + 1).clamp(max=extent - 1)
    fraction = fraction.to(logits).view([-1 if a == axis else 1 for a in range(3)])
    return torch.lerp(logits.index_select(axis, left), logits.index_select(axis, right), fraction)


def values_of(labels: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """The value of each label, and after them of each object without a name among `names`.

    `object` has the first value after the last label's, `object 2` the second; those with another
    name (`object left`) follow.

    Raises:
        ValueError: for two names of one object, and for a number below 1 or above `MOST_OBJECTS`.
    """
    values, of_number = dict(labels), {}
    last = max(values.values())
    unnamed = [name for name in names if is_unnamed(name, labels)]
    for name in unnamed:
        if (number := object_number(name)) is None:
            continue
        if not 1 <= number <= MOST_OBJECTS:
            raise ValueError(f"{name}: objects have numbers from 1 to {MOST_OBJECTS}")
        if of_number.setdefault(number, name) != name:
            raise ValueError(f"{of_number[number]!r} and {name!r} are the same object; give one")
        values[name] = last + number
    for name in unnamed:
        values.setdefault(name, max(values.values()) + 1)
    return values


def wanted_prompts(
    prompts: Mapping[str, Prompts], labels: Sequence[str], plans: Plans, shape: Sequence[int]
) -> dict[str, Prompts]:
    """The prompts of each label and object to segment; empty ones where only its name is known.

    Args:
        prompts: by label or object.
        labels: those to segment.
        plans: of the model.
        shape: of the image's file, voxels, zyx.

    Raises:
        ValueError: naming labels that the model does not know, prompts for what is not to be
            segmented, and objects without a name that no prompt places.
    """
    values = values_of(plans.written_values, labels)
    if unknown := sorted((set(prompts) | set(labels)) - set(values)):
        known = ", ".join(plans.labels)
        raise ValueError(f"unknown label(s) {', '.join(unknown)}; the model knows {known}")
    if unused := sorted(set(prompts) - set(labels)):
        raise ValueError(f"prompts for {', '.join(unused)}, which is not among `labels`")
    nothing = make_prompts(shape=shape, source="label name")
    wanted = {label: prompts.get(label, nothing) for label in labels}
    unnamed = {name: p for name, p in wanted.items() if name not in plans.labels}
    if nowhere := [n for n, p in unnamed.items() if p.is_empty or p.says_only_where_not]:
        raise ValueError(
            f"{', '.join(nowhere)}: an object without a name needs a prompt that says where it "
            f"is; give a box, a point, a scribble, a lasso or a mask"
        )
    return wanted


def connected_change(
    former: Tensor, new: Tensor, points: np.ndarray, point_labels: np.ndarray
) -> Tensor:
    """Logits in which only what belongs to the clicks has changed.

    A foreground click adds to the mask, and a background click takes away, what is connected to
    it; what the network would change elsewhere stays as it was. Where a foreground click leaves
    less than half of the mask, something else was meant, and the new answer stands.

    Args:
        former, new: (z, y, x) logits.
        points: (k, 3) voxel indices, zyx.
        point_labels: (k,) 1 foreground, 0 background.
    """
    kept = np.zeros(tuple(new.shape), bool)
    mask, before = (new > 0).numpy(), (former > 0).numpy()
    if 1 in point_labels and 2 * (mask & before).sum() < before.sum():
        return new
    for kind, changed in ((1, mask & ~before), (0, before & ~mask)):
        numbered, _ = components(changed)
        touched = set()
        for point in np.rint(np.asarray(points)[np.asarray(point_labels) == kind]).astype(int):
            near = tuple(slice(max(p - 1, 0), p + 2) for p in point)
            touched.update(np.unique(numbered[near]).tolist())
        kept |= np.isin(numbered, [number for number in touched if number])
    return torch.where(torch.from_numpy(kept), new, former.float())


def largest_component(logits: Tensor) -> Tensor:
    """(z, y, x) logits whose mask is the largest 26-connected component of theirs."""
    mask = (logits > 0).numpy()
    others = mask & ~postprocessed(mask, (1, 1, 1), PostProcessing(largest_component=True))
    return torch.where(torch.from_numpy(others), -SURE, logits)


class LabelMap:
    """The winning label of every raw voxel, one label's logits at a time.

    A voxel gets the label with the largest logit above 0, or of several equal ones the lowest
    value, whatever the order in which labels are entered. Logits are compared as float16, so they
    are equal if they differ by less than about one part in 2000. Memory: the label map, and one
    float16 per voxel of the regions that were entered, however many labels there are.

    Where labels are regions, which overlap, each is painted in its turn wherever its logit is above
    0, as nnU-Net does; then objects without a name, which a person asked for.

    Args:
        raw_shape: voxels, zyx.
        largest_value: of any label.
        class_order: the values of regions in the order in which they are painted.
    """

    def __init__(
        self, raw_shape: Sequence[int], largest_value: int, class_order: Sequence[int] = ()
    ) -> None:
        self.labels = np.zeros(tuple(raw_shape), np.uint8 if largest_value < 256 else np.int16)
        # Bits of a float16: those of positive numbers are ordered as the numbers are.
        self._best = np.zeros(tuple(raw_shape), np.int16)  # uses no memory before it is written to
        self._counts = np.zeros(largest_value + 1, np.int64)
        self._turns = {value: number for number, value in enumerate(class_order, start=1)}

    def add(self, value: int, logits: Tensor, lower: np.ndarray) -> None:
        """Enter the (z, y, x) raw-grid logits of one label's region."""
        region = box_slices(np.stack([lower, np.add(lower, logits.shape)]))
        best, labels = self._best[region], self.labels[region]
        if value in self._turns:  # a number that is smaller than those of all logits
            bits = torch.tensor(self._turns[value], dtype=torch.int16)
        else:
            bits = logits.clamp(0, _LARGEST).half().view(torch.int16)
            bits = bits.clamp_(min=1 + len(self._turns))
        new = torch.where(logits > 0, bits, 0).numpy()  # never for NaN
        wins = (new > best) | ((new == best) & (labels > value))
        best[wins] = new[wins]
        lost = np.bincount(labels[wins], minlength=len(self._counts))
        self._counts -= lost
        self._counts[value] += lost.sum()
        labels[wins] = value

    def voxels(self, values: Values) -> int:
        """Number of voxels that have a label so far, or any value of a region."""
        known = [value for value in members(values) if value < len(self._counts)]
        return int(self._counts[known].sum())


class Collector:
    """Puts together the prediction of an image.

    Args:
        plans: of the model, with its labels.
        names: of the labels and objects that may be entered.
        raw_shape: of the image, voxels, zyx.
        keep_probabilities: whether the prediction includes probabilities.

    Attributes:
        probabilities: None unless they are kept; then logits below 0 need not be entered.
    """

    def __init__(
        self,
        plans: Plans,
        names: Sequence[str],
        raw_shape: Sequence[int],
        keep_probabilities: bool,
    ) -> None:
        self.probabilities = RegionProbabilities() if keep_probabilities else None
        self._written = values_of(plans.written_values, names)
        self._values = {**self._written, **plans.labels}
        self._shape = raw_shape
        largest = max(self._written.values())
        self._label_map = LabelMap(raw_shape, largest, plans.regions_class_order)
        self._ratings: dict[str, dict[int, tuple[float | None, float | None]]] = {}

    def enter(self, label: str, slabs: Iterable[tuple[Tensor, np.ndarray]]) -> None:
        """Add (z, y, x) logits of a label on the raw grid, each with its first voxel, zyx."""
        for logits, lower in slabs:
            self._label_map.add(self._written[label], logits, lower)
            if self.probabilities is not None:
                self.probabilities.add(label, logits, lower)

    def rate(
        self, label: str, number: int, predicted_iou: float | None, prompt_consistency: float | None
    ) -> None:
        """Set the quality of one object of a label, in place of what was set before."""
        self._ratings.setdefault(label, {})[number] = predicted_iou, prompt_consistency

    def prediction(self, wanted: Mapping[str, Prompts]) -> Prediction:
        """The prediction, with a result for each label that was to be segmented."""
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
        """The lowest rating of any object of a label; None when there is none."""
        values = [of_object[place] for of_object in self._ratings.get(label, {}).values()]
        return min((value for value in values if value is not None), default=None)
