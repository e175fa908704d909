"""Morphological closing of a mask, 64 voxels of a row in one machine word."""

from __future__ import annotations

import numpy as np

from promptseg.prompts.intensity.threads import map_pieces

_WORDS_AT_ONCE = 2**14  # of 8 bytes; what is combined with OR stays in the processor's cache


def close_with_ball(mask: np.ndarray, radius: float = 3) -> np.ndarray:
    """Closing with the digital ball z^2 + y^2 + x^2 <= radius^2, on the infinite grid.

    What lies outside the volume is background to the dilation, and the dilation may grow there,
    so that the erosion takes nothing from the borders: the result contains the mask.

    Args:
        mask: (z, y, x) bool.
        radius: voxels; 0 changes nothing.

    Returns:
        (z, y, x) bool.
    """
    return close_with_ellipsoid(mask, radius, spacing=(1.0, 1.0, 1.0))


def close_with_ellipsoid(
    mask: np.ndarray, radius_mm: float, spacing: tuple[float, float, float]
) -> np.ndarray:
    """Closing with a ball in mm, which is an ellipsoid in voxels; on the infinite grid.

    Args:
        mask: (z, y, x) bool.
        radius_mm: mm; an axis whose spacing is larger is not closed at all.
        spacing: mm, zyx.

    Returns:
        (z, y, x) bool; contains the mask.

    Source:
        The structuring element is a stack of runs along x. The mask widened along x by each
        half-width of a run, as bits, is combined with OR over the runs' places in z and y.
    """
    runs = half_widths(radius_mm, spacing)
    reach_z, reach_y, reach_x = (runs.shape[0] // 2, runs.shape[1] // 2, int(runs.max()))
    if reach_z == reach_y == reach_x == 0:
        return mask.copy()
    bits = _packed(mask, (2 * reach_z, 2 * reach_y, reach_x))
    outside = ~_dilate(bits, runs)
    closed_bits = ~_dilate(outside, runs)
    return _unpacked(closed_bits, mask.shape, reach_x)


def half_widths(radius: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """(2 rz + 1, 2 ry + 1) half-width in voxels of the ball's run at each z and y; -1 for none."""
    reaches = [int(radius / step + 1e-9) for step in spacing]
    axes = [
        np.arange(-reach, reach + 1) * step for reach, step in zip(reaches, spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    inside = z**2 + y**2 + x**2 <= radius**2 * (1 + 1e-9)  # a voxel on the surface belongs to it
    return (inside.sum(axis=2) - 1) // 2


def _packed(mask: np.ndarray, padding: tuple[int, int, int]) -> np.ndarray:
    """(z, y, words) uint64: the padded mask, voxel x in bit x + padding, lowest bit first."""
    pad_z, pad_y, pad_x = padding
    shape_z, shape_y, shape_x = mask.shape
    words = -(-(shape_x + 2 * pad_x) // 64)
    bits = np.zeros((shape_z + 2 * pad_z, shape_y + 2 * pad_y, words), "<u8")

    def pack(z: int) -> None:
        rows = np.zeros((shape_y, 64 * words), bool)
        rows[:, pad_x : pad_x + shape_x] = mask[z]
        packed = np.packbits(rows, axis=1, bitorder="little").view("<u8")
        bits[pad_z + z, pad_y : pad_y + shape_y] = packed

    map_pieces(pack, range(shape_z), mask.size)
    return bits


def _unpacked(bits: np.ndarray, shape: tuple[int, int, int], first_bit: int) -> np.ndarray:
    mask = np.empty(shape, bool)

    def unpack(z: int) -> None:
        rows = np.unpackbits(bits[z].view(np.uint8), axis=1, bitorder="little")
        mask[z] = rows[:, first_bit : first_bit + shape[2]]

    map_pieces(unpack, range(shape[0]), mask.size)
    return mask


def _dilate(bits: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Dilation by the runs, for the z and y at which all of the element lies inside `bits`."""
    widened = [bits]
    for _ in range(int(runs.max())):
        widened.append(_widen(widened[-1]))
    shape_z, shape_y, words = np.subtract(bits.shape, (*runs.shape, 0)) + (1, 1, 0)
    dilated = np.zeros((shape_z, shape_y, words), "<u8")

    def dilate(slab: slice) -> None:
        target = dilated[slab]
        for dz, dy in np.argwhere(runs >= 0):
            start = slab.start + dz
            target |= widened[runs[dz, dy]][start : start + len(target), dy : dy + shape_y]

    step = max(1, _WORDS_AT_ONCE // (shape_y * words))
    slabs = [slice(start, start + step) for start in range(0, shape_z, step)]
    map_pieces(dilate, slabs, 64 * bits.size)
    return dilated


def _widen(bits: np.ndarray) -> np.ndarray:
    """Set both neighbours along x of every set bit, across word borders."""
    widened = bits | bits << 1 | bits >> 1
    widened[..., 1:] |= bits[..., :-1] >> 63
    widened[..., :-1] |= bits[..., 1:] << 63
    return widened
