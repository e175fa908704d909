"""Boxes on three orthogonal slices of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promptseg.files import replacing

_PAGE, _INK, _FAINT = "#14161b", "#e8e8ea", "#9a9ca4"
_FIRST, _OTHERS = "#ffb000", "#4cc9f0"
_AXES = "zyx"
_HEIGHT = 4.2  # inches of the tallest panel


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[np.ndarray],
    spacing: tuple[float, float, float],
    path: Path | str,
    title: str = "",
) -> None:
    """Draw the slices through the first box's centre, in true proportions, and write a picture.

    The first box is drawn solid, others that the slice meets dashed; without a box the slices pass
    through the volume's centre.

    Args:
        image: (z, y, x) intensities in [0, 255].
        boxes: (2, 3) half-open boxes in voxels, zyx, best first; may reach beyond the image.
        spacing: mm, zyx.
        path: picture to write; its ending gives the format.
        title: text above the slices.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    shape = np.array(image.shape)
    middle = boxes[0].mean(axis=0) if len(boxes) else shape / 2
    centre = middle.astype(int).clip(0, shape - 1)
    size_mm = shape * spacing
    panels = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]  # cut, down, across
    widths = [size_mm[across] for _, _, across in panels]
    inches = _HEIGHT / max(size_mm[down] for _, down, _ in panels)
    figure = Figure(figsize=(max(inches * sum(widths), 6) + 1.5, _HEIGHT + 1.1), facecolor=_PAGE)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, width_ratios=widths)
    for axis, (cut, down, across) in zip(axes, panels, strict=True):
        slice_ = np.take(image, centre[cut], axis=cut)
        aspect = spacing[down] / spacing[across]
        # z counts from the feet in most files: draw it upward
        origin = "lower" if down == 0 else "upper"
        axis.imshow(slice_, cmap="gray", vmin=0, vmax=255, aspect=aspect, origin=origin)
        for number, box in reversed(list(enumerate(boxes))):
            if box[0, cut] <= centre[cut] < box[1, cut]:
                _draw_rectangle(axis, box[:, [down, across]], first=number == 0)
        axis.set_title(f"{_AXES[cut]} = {centre[cut]}", color=_INK, fontsize=10)
        axis.set_xlabel(f"{_AXES[across]}, voxels", color=_FAINT, fontsize=8)
        axis.set_ylabel(f"{_AXES[down]}, voxels", color=_FAINT, fontsize=8)
        axis.tick_params(colors=_FAINT, labelsize=7)
    figure.suptitle(title, color=_INK, fontsize=11)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_rectangle(axis, corners: np.ndarray, *, first: bool) -> None:
    """Outline a half-open (2, 2) rectangle; voxel i is drawn from i - 0.5 to i + 0.5."""
    (top, left), (bottom, right) = corners - 0.5
    style = {"color": _FIRST, "linewidth": 1.8} if first else {"color": _OTHERS, "linestyle": "--"}
    axis.plot(
        [left, right, right, left, left],
        [top, top, bottom, bottom, top],
        clip_on=False,
        **style,
    )
