"""One picture of several cases: image, true labels, box prompts and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from promptseg.boxes import value_box
from promptseg.files import replacing

_COLOURS = ("#ffb000", "#4cc9f0", "#ff4d6d", "#7ae582", "#c77dff", "#f4f1de")
_PAGE, _INK, _FAINT = "#14161b", "#e8e8ea", "#9a9ca4"
_COLUMNS = ("image", "true labels", "box prompts", "prediction")


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One case to draw.

    Attributes:
        case_id: identifier, written beside the row.
        image: (z, y, x) intensities.
        reference: (z, y, x) true labels.
        prediction: (z, y, x) predicted labels.
        spacing: spacing in mm, zyx.
        labels: value of each label by name, without background.
        boxes: half-open (2, 3) boxes that prompted each label, by name.
        dice: Dice of each label, by name.
        display_range: intensities drawn black and white; the 1st and 99.5th percentile if None.
    """

    case_id: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    labels: dict[str, int]
    boxes: dict[str, Sequence[np.ndarray]] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    display_range: tuple[float, float] | None = None


def draw_cases(rows: Sequence[PictureRow], path: Path | str, title: str) -> None:
    """Draw one axial slice of each case in four panels and write the picture.

    Boxes are solid, the bounding boxes of the true labels dashed. A box that does not reach the
    drawn slice is left out.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError(f"{path}: a picture needs at least one case")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    heights = [_height_over_width(row) for row in rows]
    panel, left, top, bottom = 3.1, 0.45, 1.0, 0.8  # inches
    width = left + panel * len(_COLUMNS) + 0.15
    height = top + bottom + sum(panel * h + 0.3 for h in heights)
    figure = Figure(figsize=(width, height), facecolor=_PAGE)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        len(_COLUMNS),
        height_ratios=heights,
        left=left / width,
        right=1 - 0.15 / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.03,
        hspace=0.3 / (panel * float(np.mean(heights))),
    )
    figure.text(
        left / width, 1 - 0.36 / height, title, color=_INK, fontsize=15, weight="bold", va="center"
    )
    for i, row in enumerate(rows):
        axes = [figure.add_subplot(grid[i, j]) for j in range(len(_COLUMNS))]
        _draw_row(axes, row, first=i == 0)
    _draw_legend(figure, rows[0], bottom / height)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor=_PAGE)


def telling_slice(segmentation: np.ndarray) -> int:
    """The z index of the slice that shows the labels best; the middle one if there are none.

    Each label counts by its area relative to its largest area in any slice, so that a small lesion
    counts as much as a large organ.
    """
    relative = np.zeros(segmentation.shape[0])
    for label in np.unique(segmentation):
        if label != 0:
            areas = np.count_nonzero(segmentation == label, axis=(1, 2))
            relative += areas / areas.max()
    return int(relative.argmax()) if relative.any() else segmentation.shape[0] // 2


def _draw_row(axes: list, row: PictureRow, *, first: bool) -> None:
    z = telling_slice(row.reference)
    lower, upper = row.display_range or np.percentile(row.image, (1, 99.5))
    for axis, heading in zip(axes, _COLUMNS, strict=True):
        axis.imshow(
            row.image[z],
            cmap="gray",
            vmin=lower,
            vmax=upper,
            aspect=row.spacing[1] / row.spacing[2],
            interpolation="bicubic",
        )
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if first:
            axis.set_title(heading, color=_FAINT, fontsize=11, pad=7)
    axes[0].set_ylabel(f"{row.case_id}   slice {z}", color=_FAINT, fontsize=9, labelpad=7)
    _draw_scale_bar(axes[0], row)
    for name, label in row.labels.items():
        colour = _colour(row, name)
        _draw_mask(axes[1], row.reference[z] == label, colour)
        _draw_mask(axes[3], row.prediction[z] == label, colour)
        if (tight := value_box(row.reference, label)) is not None:
            _draw_box(axes[2], tight, z, edgecolor=colour, linestyle=(0, (2, 2)), linewidth=1.0)
        for box in row.boxes.get(name, ()):
            _draw_box(axes[2], np.asarray(box), z, edgecolor=colour, linewidth=2.0)
    _write_dice(axes[3], row)


def _draw_mask(axis, mask: np.ndarray, colour: str) -> None:
    from matplotlib.colors import to_rgba

    if mask.any():
        axis.imshow(
            np.where(mask[..., None], to_rgba(colour, 0.38), 0.0),
            aspect=axis.get_aspect(),
            interpolation="nearest",
        )
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)


def _draw_box(axis, box: np.ndarray, z: int, **style) -> None:
    from matplotlib.patches import Rectangle

    (z0, y0, x0), (z1, y1, x1) = box
    if z0 <= z < z1:  # voxel i covers i - 0.5 to i + 0.5 on the axis
        axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, **style))


def _draw_scale_bar(axis, row: PictureRow) -> None:
    """A white bar of 50 or 20 mm in the lower left corner."""
    _, height, width = row.image.shape
    length_mm = 50 if width * row.spacing[2] > 150 else 20
    x, y = 0.05 * width, 0.95 * height
    axis.plot([x, x + length_mm / row.spacing[2]], [y, y], color=_INK, linewidth=2)
    axis.text(x, y - 0.02 * height, f"{length_mm} mm", color=_INK, fontsize=8, va="bottom")


def _write_dice(axis, row: PictureRow) -> None:
    """The Dice of each label in its colour, in one line below the panel."""
    shown = [(name, row.dice[name]) for name in row.labels if name in row.dice]
    for i, (name, value) in enumerate(shown):
        text = "undefined" if value is None or np.isnan(value) else f"{value:.2f}"
        axis.text(
            (i + 0.5) / len(shown),
            -0.03,
            f"{name} {text}",
            color=_colour(row, name),
            fontsize=9.5,
            weight="bold",
            ha="center",
            va="top",
            transform=axis.transAxes,
        )


def _draw_legend(figure, row: PictureRow, height: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=_colour(row, name), label=name) for name in row.labels]
    handles += [
        Line2D([], [], color=_INK, linewidth=2, label="box prompt"),
        Line2D([], [], color=_INK, linewidth=1, linestyle=(0, (2, 2)), label="true bounding box"),
        Line2D([], [], linestyle="none", label="numbers: Dice over the whole volume"),
    ]
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=(0.5, 0.42 * height),
        ncol=len(handles),
        frameon=False,
        labelcolor=_INK,
        fontsize=10,
        handlelength=1.6,
    )


def _colour(row: PictureRow, name: str) -> str:
    return _COLOURS[list(row.labels).index(name) % len(_COLOURS)]


def _height_over_width(row: PictureRow) -> float:
    _, height, width = row.image.shape
    return height * row.spacing[1] / (width * row.spacing[2])
