"""3D Slicer's markups (`.mrk.json`, `.fcsv`) to prompts: ROIs are boxes, curves are lines.

Source: the format as Slicer documents it, markups-schema-v1.0.3.json and "Markups json file
format" in its developer guide. Read here: `type`, `name`, `coordinateSystem`, `coordinateUnits`,
`center`, `size`, `orientation`, and of control points `label`, `description`, `position` and
`positionStatus`; curves are taken to run straight between these. The older `.fcsv` has a point
per line; its header names coordinates and columns.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import read_json
from promptseg.prompts.given import CasePrompts, added, gathered
from promptseg.prompts.names import is_unnamed
from promptseg.prompts.types import WORLD
from promptseg.prompts.world import RAS, corners
from promptseg.words import plain

MARKUPS = ".mrk.json"
FIDUCIALS = ".fcsv"
_SYSTEMS = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}  # of .fcsv, new and old spelling
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_PLACED = "2"  # in the column after those, which newer versions write without naming it
_LINES = {"Line": "scribbles", "Curve": "scribbles", "ClosedCurve": "lassos"}
_TO_LPS = {"LPS": np.ones(3), "RAS": RAS}
_TO_MM = {"mm": 1.0, "um": 1e-3}
_COUNTER = re.compile(r"[-_ ]?\d+$")  # Slicer numbers what it names: liver-1, liver_2
_POINT_COUNTER = re.compile(r"-\d+$")  # the points of a list: object-1, object-2 of object
_RENAME = f"rename it in 3D Slicer, or the file to CASE_LABEL{MARKUPS}"
_WORD = r"(^|[-_ ])({})(?=$|[-_ ])"
_NEGATIVE = re.compile(_WORD.format("neg|negative|background") + "|-$", re.IGNORECASE)
_POSITIVE = re.compile(_WORD.format("pos|positive|foreground") + r"|\+$", re.IGNORECASE)


def read_markups(
    files: Sequence[tuple[Path, str]], labels: Iterable[str], case_id: str
) -> CasePrompts:
    """Read one case's .mrk.json and .fcsv files; problems are collected, not raised.

    A box, a line or a point belongs to the label that names it: the first of the control point's
    description and label, the markup's name, and the file's name that is a label's name. See
    `label_named` for what else may stand in a name.

    Args:
        files: each file with the rest of its name, without the case and the ending.
        labels: names that the model knows.
        case_id: for errors.
    """
    return added(_read_file(path, rest, list(labels), case_id) for path, rest in files)


def _read_file(path: Path, rest: str, labels: Sequence[str], case_id: str) -> CasePrompts:
    where = f"{path}: case {case_id!r}"
    try:
        markups = _markups(path)
    except (OSError, ValueError) as error:
        return CasePrompts(labels={}, problems=(f"case {case_id!r}: {error}",))
    drawn, problems = [], []
    for number, markup in enumerate(markups, 1):
        try:
            drawn += _prompts_of(markup, rest, labels, f"{where}, markup {number}")
        except ValueError as error:
            problems.append(str(error))
    return CasePrompts(labels=gathered(drawn, WORLD, where), problems=tuple(problems))


def label_named(text: str, labels: Iterable[str]) -> tuple[str | None, bool]:
    """The label that a name refers to, and whether it marks the background of that label.

    Case is ignored, and blank, `_` and `-` are the same. A name that is not a label's as it stands
    may end in a number (`liver-1`), and mark the background by a final `-` or by the word `neg`,
    `negative` or `background` (`liver-`, `liver negative`, `liver--1`); a final `+`, `pos`,
    `positive` or `foreground` changes nothing. It may also consist of such a mark alone. The name
    of an unnamed object keeps its number: `Object_2` is `object 2`.

    Returns:
        the label, or None if the text names none; True for the background.
    """
    by_name = {plain(label): label for label in labels}
    text = text.strip()
    numbered = _COUNTER.sub("", text)
    for name in (text, numbered):
        if plain(name) in by_name:
            return by_name[plain(name)], False
    negative = bool(_NEGATIVE.search(numbered))
    bare = _POSITIVE.sub("", _NEGATIVE.sub("", numbered)).strip(" -_")
    for name in (bare, _COUNTER.sub("", bare)):
        if plain(name) in by_name:
            return by_name[plain(name)], negative
    unnamed = plain(_POSITIVE.sub("", _NEGATIVE.sub("", text)).strip(" -_"))
    return (unnamed if is_unnamed(unnamed, by_name) else None), negative


def label_of(
    texts: Sequence[str], labels: Sequence[str], where: str, hint: str
) -> tuple[str, bool]:
    """The label that the first of the texts names, and whether any of them says background.

    Raises:
        ValueError: if none names a label, with what to do in the words of `hint`.
    """
    named = [label_named(text, labels) for text in texts if text]
    label = next((label for label, _ in named if label is not None), None)
    if label is None:
        tried = ", ".join(repr(text) for text in dict.fromkeys(texts) if text) or "nothing"
        raise ValueError(
            f"{where}: unknown label(s): found the names {tried}, expected one of "
            f"{', '.join(labels)}, or object for none of these; {hint}"
        )
    return label, any(negative for _, negative in named)


def _markups(path: Path) -> list[dict[str, Any]]:
    if path.name.lower().endswith(FIDUCIALS):
        return [_fiducials(path)]
    content = read_json(path)
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not all(isinstance(m, dict) for m in markups):
        raise ValueError(f'{path}: expected 3D Slicer\'s {{"markups": [{{"type": ...}}]}}')
    if not markups:
        raise ValueError(f"{path}: has no markup; draw a ROI or place points, and save it again")
    return markups


def _fiducials(path: Path) -> dict[str, Any]:
    """The points of an .fcsv file as `.mrk.json` has them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a text: {error}") from error
    header = [line[1:].partition("=") for line in lines if line.startswith("#")]
    said = {key.strip(): value.strip() for key, _, value in header}
    system = said.get("CoordinateSystem")
    if system not in _SYSTEMS:
        raise ValueError(
            f"{path}: expected a line # CoordinateSystem = LPS or RAS (or 1 or 0, as older "
            f"versions write), found {system!r}; save the points from 3D Slicer again"
        )
    columns = [name.strip() for name in said.get("columns", _COLUMNS).split(",")]
    if missing := [name for name in "xyz" if name not in columns]:
        raise ValueError(f"{path}: expected columns {_COLUMNS}, found none for {missing}")
    points = []
    for row in csv.reader(line for line in lines if line.strip() and not line.startswith("#")):
        point = dict(zip(columns, row, strict=False))
        status = row[len(columns)] if len(row) > len(columns) else _PLACED
        points.append(
            {
                "label": point.get("label", ""),
                "description": point.get("desc", ""),
                "position": [_number(point.get(axis, "")) for axis in "xyz"],
                "positionStatus": "defined" if status == _PLACED else "undefined",
            }
        )
    return {"type": "Fiducial", "coordinateSystem": _SYSTEMS[system], "controlPoints": points}


def _number(text: str) -> float | str:
    """The number that a text is, or the text, for the error."""
    try:
        return float(text)
    except ValueError:
        return text


def _prompts_of(
    markup: dict[str, Any], rest: str, labels: Sequence[str], where: str
) -> list[tuple[str, str, np.ndarray, bool]]:
    """What a markup holds, as `gathered` takes it, in mm (LPS)."""
    kind, name = markup.get("type"), _text(markup, "name", where)
    where += f" ({kind} {name!r})" if name else f" ({kind})"
    if kind not in ("Fiducial", "ROI", *_LINES):
        raise ValueError(
            f"{where}: type {kind!r} is not a prompt; ROI (a box), Fiducial (points), Line and "
            f"Curve (scribbles) and ClosedCurve (a lasso) are, remove the others from the file"
        )
    to_lps = _to_lps_mm(markup, where)
    points = markup.get("controlPoints", [])
    if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise ValueError(f"{where}: controlPoints must be a list of objects, found {points!r}")
    placed = [  # Slicer keeps a place in the list for a point that is not placed yet
        (f"{where}, control point {number}", point)
        for number, point in enumerate(points, 1)
        if point.get("positionStatus", "defined") == "defined"
    ]
    if kind != "ROI" and not placed:
        raise ValueError(f"{where}: has no point that is placed")
    if kind == "Fiducial":
        found = []
        for at, point in placed:
            texts = [*_point_texts(point, at), name, rest]
            label, negative = label_of(texts, labels, at, _RENAME)
            found.append(
                (label, "points", _vector(point, "position", 3, at) * to_lps, not negative)
            )
        return found
    texts = [name, *(t for point in points for t in _point_texts(point, where)), rest]
    label, negative = label_of(texts, labels, where, _RENAME)
    if negative and kind in ("ROI", "ClosedCurve"):
        what = "box" if kind == "ROI" else "lasso"
        raise ValueError(f"{where}: a {what} cannot mark the background; use points for that")
    if kind == "ROI":
        return [(label, "boxes", _roi_corners(markup, where) * to_lps, True)]
    line = np.array([_vector(point, "position", 3, at) * to_lps for at, point in placed])
    if kind == "ClosedCurve" and len(line) < 3:
        raise ValueError(f"{where}: a lasso needs 3 points or more, found {len(line)}")
    return [(label, _LINES[kind], line, not negative)]


def _point_texts(point: dict[str, Any], where: str) -> list[str]:
    """Description and label; of an unnamed object's the number of the point is left off."""
    label = _text(point, "label", where)
    of_list = _POINT_COUNTER.sub("", label)
    is_object = is_unnamed(label_named(of_list, ())[0] or "", ())
    return [_text(point, "description", where), of_list if is_object else label]


def _roi_corners(markup: dict[str, Any], where: str) -> np.ndarray:
    """(8, 3) corners in the markup's own coordinates and unit.

    The columns of `orientation` are the ROI's axes; Slicer writes them, like `center`, in the
    file's coordinate system.
    """
    if markup.get("insideOut"):
        raise ValueError(f"{where}: an inside-out ROI means what lies outside; turn that off")
    center = _vector(markup, "center", 3, where)
    size = _vector(markup, "size", 3, where)
    axes = np.eye(3)
    if "orientation" in markup:
        axes = _vector(markup, "orientation", 9, where).reshape(3, 3)
    if not (size > 0).all():
        raise ValueError(f"{where}: size must be positive, found {size.tolist()}; the box is empty")
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise ValueError(
            f"{where}: orientation must be three perpendicular unit vectors, found "
            f"{axes.ravel().tolist()}"
        )
    half = np.stack([-size / 2, size / 2])[None]
    return center + corners(half)[0] @ axes.T


def _to_lps_mm(markup: dict[str, Any], where: str) -> np.ndarray:
    """(3,) factors that turn the markup's coordinates into mm in LPS."""
    system = markup.get("coordinateSystem", "LPS")
    if not isinstance(system, str) or system not in _TO_LPS:
        raise ValueError(f"{where}: expected coordinateSystem 'LPS' or 'RAS', found {system!r}")
    unit = markup.get("coordinateUnits", "mm")
    code = unit[0] if isinstance(unit, list) and unit else unit  # or ["mm", "UCUM", "millimeter"]
    if not isinstance(code, str) or code not in _TO_MM:
        raise ValueError(f"{where}: expected coordinateUnits 'mm' or 'um', found {unit!r}")
    return _TO_LPS[system] * _TO_MM[code]


def _text(item: dict[str, Any], key: str, where: str) -> str:
    text = item.get(key, "")
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected {key} to be a text, found {text!r}")
    return text


def _vector(item: dict[str, Any], key: str, length: int, where: str) -> np.ndarray:
    values = item.get(key)
    numbers = isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )
    if not numbers or len(values) != length or not np.isfinite(values).all():
        raise ValueError(f"{where}: expected {key} of {length} finite numbers, found {values!r}")
    return np.array(values, float)
