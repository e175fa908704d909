"""Sliding window: where patches lie, their weights, and blending; independent of networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


def patch_starts(
    shape: Sequence[int],
    patch_size: Sequence[int],
    region: np.ndarray,
    step_size: float = 0.5,
) -> np.ndarray:
    """Starts of patches that together cover a region of a volume.

    Along each axis a region that fits into a patch is covered by one, centred on it or shifted to
    lie inside the volume; a longer one by evenly spaced patches, at most `step_size` patches
    apart, as in nnU-Net. A volume shorter than the patch is centred in it: the start is then
    negative.

    Args:
        shape: of the volume, voxels, zyx.
        patch_size: voxels, zyx.
        region: (2, 3) integer half-open box inside the volume, zyx.
        step_size: largest distance of neighbouring patches, as a fraction of the patch.

    Returns:
        (n, 3) integer starts, zyx, in raster order.
    """
    axes = []
    for n, w, lower, upper in zip(shape, patch_size, *np.asarray(region, int), strict=True):
        if n <= w:
            axes.append([-((w - n) // 2)])
        elif upper - lower <= w:
            axes.append([int(np.clip((lower + upper - w) // 2, 0, n - w))])
        else:
            first, last = int(lower), int(min(upper, n) - w)
            count = int(np.ceil((last - first) / max(step_size * w, 1))) + 1
            axes.append(np.round(np.linspace(first, last, count)).astype(int).tolist())
    return np.array(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).T


def patches_of_regions(
    shape: Sequence[int],
    patch_size: Sequence[int],
    regions: Sequence[np.ndarray],
    step_size: float = 0.5,
) -> list[np.ndarray]:
    """The patches that cover each region; regions share a patch where one holds both.

    Larger regions come first. A region inside a patch that has already been chosen needs no
    other; any other region gets its own from `patch_starts`. So only patches that meet a region
    are computed, and each is encoded once for all regions that use it.

    Args:
        shape: of the volume, voxels, zyx.
        patch_size: voxels, zyx.
        regions: (2, 3) boxes inside the volume, zyx, half-open, continuous.
        step_size: see `patch_starts`.

    Returns:
        For each region (n, 3) integer starts, zyx.
    """
    size = np.asarray(patch_size)
    boxes = [np.stack([np.floor(r[0]), np.ceil(r[1])]).astype(int) for r in regions]
    order = sorted(range(len(boxes)), key=lambda i: -int(np.prod(boxes[i][1] - boxes[i][0])))
    chosen: dict[int, np.ndarray] = {}
    there: list[np.ndarray] = []
    for index in order:
        lower, upper = boxes[index]
        holding = [s for s in there if (s <= lower).all() and (upper <= s + size).all()]
        if holding:  # of several, the one whose centre is nearest
            offsets = [np.abs(2 * s + size - lower - upper).max() for s in holding]
            chosen[index] = holding[int(np.argmin(offsets))][None]
        else:
            chosen[index] = patch_starts(shape, patch_size, boxes[index], step_size)
            there.extend(chosen[index])
    return [chosen[index] for index in range(len(boxes))]


def gaussian_weights(patch_size: Sequence[int], sigma_fraction: float = 1 / 8) -> Tensor:
    """(z, y, x) float32 weights: 1 in the centre, smallest at the corners, never 0.

    Source:
        nnU-Net: a Gaussian with a standard deviation of an eighth of the patch.
    """
    weights = torch.ones(())
    for axis, n in enumerate(patch_size):
        impulse = np.zeros(n)
        impulse[n // 2] = 1
        line = gaussian_filter1d(impulse, n * sigma_fraction, mode="constant")
        line = torch.from_numpy(np.maximum(line / line.max(), 1e-2)).float()
        weights = weights * line.view([-1 if a == axis else 1 for a in range(3)])
    return weights


def spanned(
    starts: np.ndarray, patch_size: Sequence[int], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner, inside the volume, of the region that (n, 3) patches span."""
    return np.maximum(starts.min(axis=0), 0), np.minimum(starts.max(axis=0) + patch_size, shape)


class Blend:
    """Weighted mean of the logits that one query has in several patches, in the region they span.

    A slice is final once every patch that meets it has been added. Final slices can be released:
    with patches in raster order, memory is a float32 for each voxel of about one patch's
    thickness of the region, whatever the number of patches.

    Slices are counted from the region's first, starting at 0.

    Args:
        starts: (n, 3) starts of all patches that will be added, zyx; may be negative.
        patch_size: voxels, zyx.
        shape: of the volume, zyx.
        weights: (z, y, x) of a patch.

    Attributes:
        lower, upper: (3,) corners of the region, zyx.
        first: first slice that is held; those before it have been released.
        final: slices before this one are final.
    """

    def __init__(
        self, starts: np.ndarray, patch_size: Sequence[int], shape: Sequence[int], weights: Tensor
    ) -> None:
        self.starts = starts
        self.patch_size = np.asarray(patch_size)
        self.lower, self.upper = spanned(starts, self.patch_size, shape)
        self.weights = weights.cpu()
        self.first = self.final = 0
        self._missing = sorted(self._common(start)[1][0].start for start in starts)
        self._slices, *self._plane = (self.upper - self.lower).tolist()
        self._sum = torch.zeros([min(self._slices, int(self.patch_size[0]) + 1), *self._plane])

    @property
    def is_complete(self) -> bool:
        """Whether all patches have been added."""
        return not self._missing

    @property
    def is_due(self) -> bool:
        """Whether slices are final that were not at the last `release`."""
        return self.is_complete or self.final > self.first + 1

    def add(self, logits: Tensor, start: np.ndarray) -> None:
        """Add a patch's (z, y, x) logits; those outside the volume are ignored."""
        here, (z, *in_plane) = self._common(start)
        if (new := z.stop - self.first - len(self._sum)) > 0:  # nothing was released
            self._sum = torch.cat([self._sum, torch.zeros([new, *self._plane])])
        there = (slice(z.start - self.first, z.stop - self.first), *in_plane)
        self._sum[there] += logits.float().cpu()[here] * self.weights[here]
        self._missing.remove(z.start)
        self.final = min(self._missing, default=self._slices)

    def release(self) -> None:
        """Forget the final slices but the last, which interpolation needs for what follows."""
        first = max(self.first, self.final - 1)
        if first > self.first:  # in place: new allocations would fragment memory
            kept = self._sum[first - self.first :].clone()
            self._sum[: len(kept)] = kept
            self._sum[len(kept) :] = 0
            self.first = first

    def inside(self, start: np.ndarray) -> tuple[slice, ...]:
        """The part of a patch, in its own voxels, that lies in the volume."""
        return self._common(start)[0]

    def result(
        self, first: int | None = None, last: int | None = None, outside: float = -20.0
    ) -> Tensor:
        """(z, y, x) mean logits of slices that are held; `outside` where there is no patch.

        Args:
            first, last: slices, the last one exclusive; all that are held when not given.
            outside: value of voxels without an answer.
        """
        first = self.first if first is None else first
        last = min(self._slices, self._slices if last is None else last)
        logits = self._sum[first - self.first : last - self.first]
        weight_sum = torch.zeros_like(logits)
        for start in self.starts:
            here, (z, *in_plane) = self._common(start)
            low, high = max(z.start, first), min(z.stop, first + len(logits))
            if low < high:
                part = slice(here[0].start + low - z.start, here[0].start + high - z.start)
                there = (slice(low - first, high - first), *in_plane)
                weight_sum[there] += self.weights[(part, *here[1:])]
        return torch.where(weight_sum > 0, logits / weight_sum, outside)

    def _common(self, start: np.ndarray) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The intersection of a patch and the region, as slices of each."""
        first = np.maximum(start, self.lower)
        last = np.minimum(start + self.patch_size, self.upper)
        here, there = (
            tuple(slice(int(a), int(b)) for a, b in zip(first - o, last - o, strict=True))
            for o in (start, self.lower)
        )
        return here, there


def open_voxels(lower: np.ndarray, upper: np.ndarray, patch_size: Sequence[int]) -> int:
    """The most voxels that a `Blend` of a region holds if it is released whenever it is due."""
    return int(np.prod(np.minimum(upper - lower, (patch_size[0] + 1, *(upper - lower)[1:]))))


def groups_of_at_most(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices of `sizes`, in order, in groups whose sizes sum to at most `most`, or of one."""
    groups: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups
