"""What a mask tells without its ground truth: how large it is, where, of what form, how clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from promptseg.boxes import box_slices, box_volume, clip_box, label_boxes, widen_box
from promptseg.components import components
from promptseg.labels import Values, label_mask

Normalized = Callable[[tuple[slice, ...]], np.ndarray]
"""(c, z, y, x) intensities in [0, 255] of a part of an image on its raw grid."""

SHELL = 2  # voxels on either side of the surface that are compared
MOST_VOXELS = 2**21  # of a mask and its surroundings that are looked at; larger ones are thinned


def evidence_by_label(
    segmentation: np.ndarray,
    labels: Mapping[str, Values],
    normalized: Normalized,
    spacing: Sequence[float],
) -> dict[str, dict[str, float]]:
    """`mask_evidence` of every label that a segmentation has.

    Args:
        segmentation: (z, y, x) label values on the raw grid of the image.
        labels: those to look at.
        normalized: gives a part of the image.
        spacing: mm, zyx.
    """
    found = {}
    for label, box in label_boxes(segmentation, labels).items():
        if box is None:
            continue
        around = clip_box(widen_box(box, SHELL + 1), segmentation.shape)
        step = max(1, int(np.ceil((box_volume(around) / MOST_VOXELS) ** (1 / 3))))
        part = tuple(slice(s.start, s.stop, step) for s in box_slices(around))
        mask = label_mask(segmentation[part], labels[label])
        if not mask.any():
            continue
        size = np.array(segmentation.shape)
        seen = mask_evidence(mask, normalized(part), step * np.array(spacing))
        centre = (around[0] + step * np.argwhere(mask).mean(axis=0) + 0.5) / size
        seen |= dict(zip(("place_z", "place_y", "place_x"), centre.tolist(), strict=True))
        seen["faces_at_border"] = float(((box[0] == 0) | (box[1] == size)).sum())
        found[label] = seen
    return found


def mask_evidence(
    mask: np.ndarray, values: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """Size, form and contrast of one mask.

    Args:
        mask: (z, y, x) bool with a voxel or more, and about it some that are not in it.
        values: (c, z, y, x) normalized intensities there, in [0, 255].
        spacing: mm, zyx.

    Returns:
        `log_mm3`; `largest`, the fraction of the largest 26-connected component; `surface`, voxels
        next to the outside over voxels to the power of 2/3; and for each channel the `mean` and
        `deviation` inside and the `step` in mean intensity across the surface.
    """
    voxels = int(mask.sum())
    core, outer = _eroded(mask, 1), binary_dilation(mask, iterations=SHELL) & ~mask
    inner = mask & ~_eroded(core, SHELL - 1)
    found = {
        "log_mm3": float(np.log10(voxels * np.prod(spacing))),
        "largest": float(components(mask)[1].max() / voxels),
        "surface": float((voxels - core.sum()) / voxels ** (2 / 3)),
    }
    for number, channel in enumerate(values):
        inside, outside = channel[mask], channel[outer]
        step = channel[inner].mean() - outside.mean() if inner.any() and outside.size else 0.0
        found |= {
            f"mean_{number}": float(inside.mean()),
            f"deviation_{number}": float(inside.std()),
            f"step_{number}": float(step),
        }
    return found


def _eroded(mask: np.ndarray, iterations: int) -> np.ndarray:
    """A mask without its outermost voxels; what lies beyond the array counts as inside."""
    return binary_erosion(mask, iterations=iterations, border_value=1)
