"""A raw image that is preprocessed only where, and when, its voxels are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from scipy import sparse

from promptseg.plans import Normalization
from promptseg.preprocessing.kernels import resampled_from_planes, resampled_planes
from promptseg.preprocessing.normalize import (
    check_finite,
    intensity_range,
    rescale_part,
    scale_of,
    to_uint8,
)
from promptseg.preprocessing.resample import (
    coarse_axes,
    image_weights,
    resample_image,
    resampled_shape,
)

MOST_KEPT = 2**27  # voxels of a preprocessed image that is kept whole: 128 MB
_SLAB = 2**18  # voxels normalized at a time: they stay in the processor's cache

Box = tuple[slice, slice, slice]


class LazyImage:
    """A raw image, preprocessed region by region.

    Every region equals that of the whole preprocessed image: intensities are clipped first and
    interpolated after, so that metal or a hot bladder cannot spread into its neighbours, and
    rounded once, at the end. Only what must be known of the whole volume, its range of
    intensities, is measured at the start. Besides input and result only a few slices are in memory.

    What was made of a small image is kept: once the regions requested add up to the whole image,
    and the image is not larger than `MOST_KEPT`, it is made whole. So many overlapping patches
    cost little more than the whole image, and a single one nothing but itself.

    It slices like a (c, z', y', x') uint8 array, in steps of 1.

    Args:
        raw: (c, z, y, x) raw intensities; kept as they are.
        spacing: of `raw`, mm, zyx.
        normalizations: one per channel.
        target_spacing: mm, zyx.

    Attributes:
        ranges: for each channel the raw intensities that become 0 and 255.
        scales: the same for `rescale_part`; see `scale_of`.

    Raises:
        ValueError: if the channels are not as many as the normalizations, or a voxel is NaN or
            infinite.
    """

    def __init__(
        self,
        raw: np.ndarray,
        spacing: Sequence[float],
        *,
        normalizations: Sequence[Normalization],
        target_spacing: Sequence[float],
    ) -> None:
        if raw.ndim != 4 or len(raw) != len(normalizations):
            raise ValueError(
                f"expected a (c, z, y, x) image of {len(normalizations)} channels, got shape "
                f"{raw.shape}"
            )
        self.raw = raw
        grid = resampled_shape(raw.shape[1:], spacing, target_spacing)
        self.shape = (len(raw), *grid)
        self._linear_axes = coarse_axes(spacing, target_spacing)
        for channel in raw:
            check_finite(channel)
        self.ranges = [intensity_range(*pair) for pair in zip(raw, normalizations, strict=True)]
        self.scales = [scale_of(c, *limits) for c, limits in zip(raw, self.ranges, strict=True)]
        self._made = 0  # voxels, of all regions so far
        self._whole: np.ndarray | None = None

    def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
        """(c, n, m, k) uint8 of `[:, z0:z1, y0:y1, x0:x1]`."""
        channels, *box = region
        if self._whole is None:
            box = tuple(slice(*s.indices(n)[:2]) for s, n in zip(box, self.shape[1:], strict=True))
            self._made += int(np.prod([max(0, s.stop - s.start) for s in box]))
            if self._made < np.prod(self.shape[1:]) or not self._is_small:
                return self._region(box)[channels]
        return self.everything()[(channels, *box)]

    def everything(self) -> np.ndarray:
        """The (c, z', y', x') uint8 preprocessed image; a constant channel is 0."""
        if self._whole is not None:
            return self._whole
        whole = self._region(tuple(slice(0, n) for n in self.shape[1:]))
        if self._is_small:
            self._whole = whole
        return whole

    def rescaled(self, part: Box) -> np.ndarray:
        """(c, n, m, k) float32 in [0, 255] of a part of the raw grid, which may have steps."""
        pairs = zip(self.raw, self.scales, strict=True)
        return np.stack([rescale_part(channel[part], *scale) for channel, scale in pairs])

    def resized(self, size: Sequence[int]) -> np.ndarray:
        """(c, *size) uint8: `resample_image(everything(), size)`, by slices when that is large."""
        if self._is_small:
            return resample_image(self.everything(), size)
        weights = image_weights(self.shape[1:], size)
        box = tuple(slice(0, n) for n in self.shape[1:])
        channels = range(len(self.raw))
        return np.stack(
            [to_uint8(resampled_from_planes(self._planes(c, box), *weights)) for c in channels]
        )

    @property
    def _is_small(self) -> bool:
        return np.prod(self.shape) <= MOST_KEPT

    @cached_property
    def _weights(self) -> list[sparse.csr_matrix]:
        return image_weights(self.raw.shape[1:], self.shape[1:], self._linear_axes)

    def _region(self, box: Box) -> np.ndarray:
        region = np.empty((len(self.raw), *(max(0, s.stop - s.start) for s in box)), np.uint8)
        for channel, target in enumerate(region if region.size else ()):
            for plane, out in zip(self._planes(channel, box), target, strict=True):
                out[...] = plane
        return region

    def _planes(self, channel: int, box: Box) -> Iterator[np.ndarray]:
        """The (y', x') uint8 slices of a box of one channel, one after the other."""
        raw, scale = self.raw[channel], self.scales[channel]
        if self.shape[1:] == raw.shape:
            raw = raw[box]
            step = max(1, _SLAB // int(np.prod(raw.shape[1:])))
            for first in range(0, len(raw), step):
                yield from to_uint8(rescale_part(raw[first : first + step], *scale))
            return
        used = [_used(matrix, s) for matrix, s in zip(self._weights, box, strict=True)]
        raw = raw[tuple(columns for _, columns in used)]
        weights = [matrix for matrix, _ in used]
        for plane in resampled_planes(lambda z: rescale_part(raw[z], *scale), *weights):
            yield to_uint8(plane)


def _used(matrix: sparse.csr_matrix, rows: slice) -> tuple[sparse.csr_matrix, slice]:
    """Some rows of a matrix of weights without the columns they do not use, and these columns."""
    part = matrix[rows]
    columns = slice(int(part.indices.min()), int(part.indices.max()) + 1)
    return part[:, columns], columns
