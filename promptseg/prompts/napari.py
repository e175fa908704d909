"""napari's layers of points and of shapes, saved as CSV, to prompts in voxels.

Source: the columns that napari's own writer makes: `index`, `axis-0`, ... and the layer's
properties for points; `index`, `shape-type`, `vertex-index`, `axis-0`, ... for shapes, with four
corners for a rectangle and for the rectangle around an ellipse.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from promptseg.prompts.checks import lasso_slice
from promptseg.prompts.given import CasePrompts, gathered
from promptseg.prompts.slicer import label_of
from promptseg.prompts.types import VOXEL
from promptseg.words import some

CSV = ".csv"
_AXES = ("axis-0", "axis-1", "axis-2")
_NAMES = ("label", "name")  # columns with a label's name
_KINDS = ("kind", "positive", "foreground", "point_label")  # columns that tell foreground
_FOREGROUND = {"1", "1.0", "true", "yes", "positive", "pos", "foreground", "fg", "+"}
_BACKGROUND = {"0", "0.0", "false", "no", "negative", "neg", "background", "bg", "-"}
_OUTLINE = 64  # vertices of an ellipse


def read_napari(path: Path, rest: str, labels: Sequence[str], case_id: str) -> CasePrompts:
    """Read the points or the shapes of one file; problems are collected, not raised.

    Coordinates are voxel indices, z, y, x. A rectangle is a box in its slice (a lasso if it is
    turned), a polygon or an ellipse a lasso, a path or a line a scribble. The label is named in a
    column `label` or `name`, else by the file; `label_named` tells what else a name may say. A
    column `kind`, `positive`, `foreground` or `point_label` tells foreground from background.

    Args:
        path: the file.
        rest: of its name, without the case and the ending.
        labels: names that the model knows.
        case_id: for errors.
    """
    where = f"{path}: case {case_id!r}"
    try:
        rows = _rows(path, where)
    except (OSError, ValueError) as error:
        return CasePrompts(labels={}, problems=(str(error),))
    drawn, problems = [], []
    items = [[row] for row in rows]
    if "shape-type" in rows[0]:
        items = [list(of_shape) for _, of_shape in groupby(rows, lambda row: row["index"])]
    for number, item in enumerate(items, 1):
        what = item[0].get("shape-type", "point")
        at = f"{where}, {what if what == 'point' else 'shape'} {number}"
        try:
            label, is_foreground = _label(item[0], rest, labels, at)
            name, positions = _prompt(what, np.array([_position(row, at) for row in item]), at)
            if not is_foreground and name in ("boxes", "lassos"):
                raise ValueError(
                    f"{at}: a {what} cannot mark the background; use points, lines or paths"
                )
        except ValueError as error:
            problems.append(str(error))
        else:
            drawn.append((label, name, positions, is_foreground))
    return CasePrompts(labels=gathered(drawn, VOXEL, where), problems=tuple(problems))


def _rows(path: Path, where: str) -> list[dict[str, str]]:
    """The rows of the table, by column."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where}: is not a text with comma-separated values: {error}") from error
    wanted = ("index", *_AXES)
    axes = [name for name in columns if name.startswith("axis-")]
    if set(wanted) - set(columns) or len(axes) != 3:
        raise ValueError(
            f"{where}: expected napari's columns {', '.join(wanted)} (points) or index, "
            f"shape-type, vertex-index, {', '.join(_AXES)} (shapes), found {some(columns)}; save "
            f"a layer of three dimensions"
        )
    if not rows:
        raise ValueError(f"{where}: has no point and no shape; draw some, and save it again")
    return rows


def _label(
    row: Mapping[str, str], rest: str, labels: Sequence[str], where: str
) -> tuple[str, bool]:
    """The label of a point or a shape, and whether it marks the label's foreground."""
    names = [row[name] for name in _NAMES if name in row]
    hint = f"name it in a column label, or the file CASE_LABEL{CSV}"
    label, negative = label_of([*names, rest], labels, where, hint)
    for column in _KINDS:
        if column not in row:
            continue
        text = row[column].strip().lower()
        if text not in _FOREGROUND | _BACKGROUND:
            raise ValueError(
                f"{where}: expected {column} to be positive or negative, 1 or 0, true or false, "
                f"found {row[column]!r}"
            )
        negative = negative or text in _BACKGROUND
    return label, not negative


def _position(row: Mapping[str, str], where: str) -> list[float]:
    texts = [row[axis] for axis in _AXES]
    try:
        return np.array(texts, float).tolist()
    except ValueError as error:
        raise ValueError(
            f"{where}: expected numbers in {', '.join(_AXES)}, found {', '.join(map(repr, texts))}"
        ) from error


def _prompt(what: str, positions: np.ndarray, where: str) -> tuple[str, np.ndarray]:
    """The field of `Prompts` that a point or a shape belongs to, and its array."""
    if not np.isfinite(positions).all():
        raise ValueError(f"{where}: must be finite, found {positions.tolist()}")
    if what == "point":
        return "points", positions[0]
    if what in ("line", "path"):
        return "scribbles", positions
    if what == "polygon":
        return "lassos", positions
    if what not in ("rectangle", "ellipse"):
        raise ValueError(
            f"{where}: unknown shape-type {what!r}; expected rectangle, polygon, ellipse, line or "
            f"path"
        )
    if len(positions) != 4:
        raise ValueError(f"{where}: a {what} has four corners, found {len(positions)}")
    if what == "ellipse":
        angles = np.linspace(0, 2 * np.pi, _OUTLINE, endpoint=False)[:, None]
        along, across = (positions[1] - positions[0]) / 2, (positions[3] - positions[0]) / 2
        return "lassos", positions.mean(axis=0) + np.cos(angles) * along + np.sin(angles) * across
    return _rectangle(positions, where)


def _rectangle(positions: np.ndarray, where: str) -> tuple[str, np.ndarray]:
    """A box one voxel thick; a lasso if the rectangle is turned within its slice."""
    if (found := lasso_slice(positions)) is None:
        raise ValueError(
            f"{where}: a rectangle lies in one slice, found corners {positions.tolist()}"
        )
    axis, index = found
    across = [a for a in range(3) if a != axis]
    corners = positions[:, across]
    box = np.stack([positions.min(axis=0), positions.max(axis=0)]) + 0.5  # from centres to edges
    box[:, axis] = np.rint(index) + (0, 1)
    straight = all(
        np.isclose(corners[:, a], bound, atol=1e-3).sum() == 2
        for a in range(2)
        for bound in (corners[:, a].min(), corners[:, a].max())
    )
    return ("boxes", box) if straight else ("lassos", positions)
