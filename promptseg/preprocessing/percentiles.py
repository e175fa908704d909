"""Percentiles of volumes of any size and dtype, without a sorted copy of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

LARGE = 2**22  # voxels; smaller volumes are copied and partitioned, which is as fast for them
_PART = 2**20  # voxels counted at a time
_DIGIT = 16  # bits counted at a time


def percentiles(
    image: np.ndarray, percents: Sequence[float], above: float | None = None
) -> list[float]:
    """`np.percentile(image, percents)`, for large volumes by counting.

    Args:
        image: finite numbers of any type, in any shape; at least one.
        percents: in [0, 100].
        above: consider only values larger than this; NaN when there are none.
    """
    count = image.size if above is None else int(sum((p > above).sum() for p in _parts(image)))
    if not count:
        return [float("nan")] * len(percents)
    if image.size <= LARGE:
        return np.percentile(image if above is None else image[image > above], percents).tolist()
    places = np.asarray(percents, float) / 100 * (count - 1)  # linear between order statistics
    lower = np.floor(places).astype(np.int64)
    upper = np.minimum(lower + 1, count - 1)
    values = order_statistics(image, np.concatenate([lower, upper]) + image.size - count)
    low, high = values.astype(np.float64).reshape(2, -1)
    return (low + (high - low) * (places - lower)).tolist()


def order_statistics(image: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """The values that stand at places `ranks` (0 is the smallest) of all values in order.

    The bits of a number, seen as an unsigned integer, are ordered as the numbers are (but for
    signs, which `_as_unsigned` mends). So 16 bits are counted at a time, the highest first, and
    after each count only the numbers that begin like a wanted one matter: one pass over 16-bit
    numbers, two over 32-bit ones. Memory does not depend on the size of the volume.
    """
    bits = 8 * image.itemsize
    left = np.array(ranks, np.int64)
    found = np.zeros(len(left), np.uint64)  # the bits known so far, the others 0
    for shift in range(bits - min(bits, _DIGIT), -1, -_DIGIT):
        beginnings, which = np.unique(found, return_inverse=True)
        counts = np.zeros((len(beginnings), 2**_DIGIT), np.int64)
        for part in _parts(image):
            unsigned = _as_unsigned(part)
            for beginning, count in zip(beginnings, counts, strict=True):
                alike = unsigned
                if shift + _DIGIT < bits:
                    known = np.uint64(shift + _DIGIT)
                    alike = unsigned[
                        unsigned >> known.astype(unsigned.dtype)
                        == (beginning >> known).astype(unsigned.dtype)
                    ]
                digits = (alike >> unsigned.dtype.type(shift)).astype(np.uint16)
                count += np.bincount(digits, minlength=2**_DIGIT)
        for place, row in enumerate(which):
            until = counts[row].cumsum()
            digit = int(np.searchsorted(until, left[place], side="right"))
            left[place] -= until[digit] - counts[row, digit]
            found[place] |= np.uint64(digit) << np.uint64(shift)
    return _from_unsigned(found, image.dtype.newbyteorder("="))


def _parts(image: np.ndarray) -> Iterator[np.ndarray]:
    """All values, some at a time, (n,) each, in this machine's byte order."""
    native = image.dtype.newbyteorder("=")
    slices = max(1, _PART // max(1, int(np.prod(image.shape[1:]))))
    for first in range(0, len(image), slices):
        yield image[first : first + slices].ravel().astype(native, copy=False)


def _as_unsigned(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the same order; the sign bit of floats also inverts the rest."""
    unsigned = np.dtype(f"u{values.itemsize}").type
    bits, sign = values.view(unsigned), unsigned(1 << (8 * values.itemsize - 1))
    if values.dtype.kind == "i":
        return bits ^ sign
    if values.dtype.kind == "f":
        return np.where(bits & sign, ~bits, bits | sign)
    return bits


def _from_unsigned(found: np.ndarray, dtype: np.dtype) -> np.ndarray:
    unsigned = np.dtype(f"u{dtype.itemsize}").type
    bits, sign = found.astype(unsigned), unsigned(1 << (8 * dtype.itemsize - 1))
    if dtype.kind == "i":
        bits = bits ^ sign
    elif dtype.kind == "f":
        bits = np.where(bits & sign, bits ^ sign, ~bits)
    return bits.view(dtype)
