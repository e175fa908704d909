"""Box plots of an evaluation, at the width of a paper's column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.inputs import nsd_keys, tolerance_of
from promptseg.files import replacing

_WIDTH = 3.5  # inches, of a column in most journals
_INK, _FILL, _POINTS = "#222222", "#a6cee3", "#0072b2"  # told apart by lightness, too
_MOST_CHARACTERS = 18  # of a label's name
_MOST_POINTS = 100


def draw_box_plots(path: Path, summary: Mapping[str, Any]) -> None:
    """Draw Dice, NSD and HD95 of every label, one box each over the cases, and write a PNG.

    Boxes reach from the first to the third quartile, whiskers to the farthest case within 1.5
    times that from the box; the line is the median. Up to 100 cases are drawn as points, of more
    only those beyond the whiskers. A label's NSD is that of its largest tolerance.

    Args:
        path: the picture.
        summary: what `evaluate_folders` returns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    labels = list(summary["labels"].items())
    figure = Figure(figsize=(_WIDTH, 0.75 + 0.27 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    of_nsd = {label: nsd_keys(mean)[-1] for label, mean in summary["mean"].items()}
    tolerances = {tolerance_of(key) for key in of_nsd.values()}
    at = f" ({tolerances.pop():g} mm)" if len(tolerances) == 1 else ""
    panels = {
        "Dice": dict.fromkeys(of_nsd, "Dice"),
        f"NSD{at}": of_nsd,
        "HD95 (mm)": dict.fromkeys(of_nsd, "hd95_mm"),
    }
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for place, (label, _) in enumerate(labels):
            _draw_box(axis, _defined(summary, label, keys[label]), place)
        axis.set_xlabel(title, fontsize=8, color=_INK)
        axis.tick_params(labelsize=7, colors=_INK)
        axis.grid(axis="x", alpha=0.3, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:2]:
        lowest = min(axis.get_xlim()[0], 0.9)
        axis.set_xlim(max(lowest, -0.04), 1 + 0.04 * (1 - lowest))
        axis.locator_params(axis="x", nbins=3)
    axes[2].set_xlim(left=-0.04 * axes[2].get_xlim()[1])
    axes[2].locator_params(axis="x", nbins=3)
    names = [_tick(name, len(_defined(summary, label, "Dice"))) for label, name in labels]
    axes[0].set_yticks(range(len(labels)), names)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)  # the first label on top
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=300)


def _draw_box(axis: Any, values: np.ndarray, place: int) -> None:
    if not len(values):
        return
    with_points = len(values) <= _MOST_POINTS
    line = {"color": _INK, "linewidth": 0.8}
    axis.boxplot(
        [values],
        positions=[place],
        orientation="horizontal",
        widths=0.6,
        showfliers=not with_points,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": _FILL, "edgecolor": _INK, "linewidth": 0.8},
        medianprops={"color": _INK, "linewidth": 1.4},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 2, "markeredgecolor": _POINTS},
    )
    if with_points:
        beside = place + np.random.default_rng(place).uniform(-0.18, 0.18, len(values))
        axis.plot(values, beside, ".", color=_POINTS, markersize=2, alpha=0.6, zorder=3)


def _defined(summary: Mapping[str, Any], label: str, key: str) -> np.ndarray:
    values = [row["metrics"][label][key] for row in summary["metric_per_case"]]
    return np.array([value for value in values if value == value])


def _tick(name: str, n: int) -> str:
    short = name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 3]}..."
    return f"{short}\n(n = {n})" if len(short) > 10 else f"{short} (n = {n})"
