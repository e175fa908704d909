"""Prompts of a label in a raw image: boxes and points, where they came from, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.boxes import clip_box
from promptseg.files import read_json, write_json
from promptseg.preprocessing.resample import scale_coordinates
from promptseg.words import short

PROMPTS_FORMAT = 1
VOXEL = "voxel zyx"
WORLD = "world mm"  # x, y, z as ITK and DICOM count them: to the left, posterior, superior (LPS)
WORLD_RAS = "world mm RAS"
FRAMES = (VOXEL, WORLD, WORLD_RAS)
PROMPTS_HEADER = {"format_version": PROMPTS_FORMAT, "frame": VOXEL}
# Written by promptseg_auto_prompt and by earlier versions; ignored when read.
_BESIDE_THE_PROMPTS = {"axes", "strategy", "parameters", "report", "failed"}
_FIELDS = ("boxes", "points", "point_labels", "source", "score", "reason")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of one label in one image.

    With neither boxes nor points the label's name alone is the prompt.

    Attributes:
        boxes: (n, 2, 3) lower and upper corners in voxels, zyx, upper exclusive.
        points: (k, 3) voxel indices, zyx.
        point_labels: (k,) 1 foreground, 0 background.
        source: `user`, `file`, or the automatic strategy's name.
        score: box IoU that an automatic strategy expects, in [0, 1]; None when a person gave it.
        reason: a short code; `ok` when nothing is wrong.
    """

    boxes: np.ndarray
    points: np.ndarray
    point_labels: np.ndarray
    source: str = "user"
    score: float | None = None
    reason: str = "ok"

    @property
    def is_empty(self) -> bool:
        return not len(self.boxes) and not len(self.points)

    def scaled(self, from_shape: Sequence[int], to_shape: Sequence[int]) -> Prompts:
        """The same prompts on another grid over the same field of view.

        A voxel i covers [i, i + 1); boxes scale with it and stay continuous, points go through
        their voxel's centre.
        """
        return replace(
            self,
            boxes=scale_coordinates(self.boxes, from_shape, to_shape),
            points=scale_coordinates(self.points + 0.5, from_shape, to_shape) - 0.5,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "boxes": _readable(self.boxes),
            "points": _readable(self.points),
            "point_labels": self.point_labels.tolist(),
            "source": self.source,
            "score": self.score,
            "reason": self.reason,
        }


def make_prompts(
    *,
    boxes: Sequence | np.ndarray | None = None,
    points: Sequence | np.ndarray | None = None,
    point_labels: Sequence[int] | None = None,
    shape: Sequence[int],
    where: str = "prompts",
    source: str = "user",
    score: float | None = None,
    reason: str = "ok",
) -> Prompts:
    """Check prompts against the image they are for.

    Args:
        boxes: (2, 3) or (n, 2, 3) half-open voxel boxes, zyx; clipped to the image.
        points: (3,) or (k, 3) voxel indices, zyx.
        point_labels: one per point, 1 foreground or 0 background; all foreground when not given.
        shape: voxels of the raw image, zyx.
        where: what the prompts belong to, for error messages.
        source, score, reason: as in `Prompts`.

    Raises:
        ValueError: for wrong shapes, non-finite numbers, empty boxes, boxes or points outside the
            image, or labels that are neither 0 nor 1.
    """
    shape_array = np.asarray(shape)
    box_array, point_array, kinds = check_numbers(boxes, points, point_labels, where)
    clipped = clip_box(box_array, shape)
    for given, box in zip(box_array, clipped, strict=True):
        if not (box[0] < box[1]).all():
            raise ValueError(
                f"{where}: box {given.tolist()} lies outside the image of shape {tuple(shape)} "
                f"(both zyx, voxels of the raw image); if it came as xyz, reverse each corner"
            )
    outside = ((point_array < -0.5) | (point_array > shape_array - 0.5)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{where}: {outside.sum()} of {len(point_array)} point prompts lie outside the image, "
            f"first {point_array[outside][0].tolist()} for shape {tuple(shape)} (both zyx, voxels "
            f"of the raw image); if they came as xyz, reverse each point"
        )
    return Prompts(
        boxes=clipped,
        points=point_array,
        point_labels=kinds,
        source=source,
        score=score,
        reason=reason,
    )


def read_prompts_json(path: Path | str, case_id: str | None = None) -> tuple[str, dict[str, Any]]:
    """Read a prompts file's frame and its entry for each case, which is not checked yet.

    Args:
        path: the file.
        case_id: case that a file with `labels` in place of `cases` is for; such a file needs it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and what is wrong with it as a whole.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        if "cases" in content:
            raise ValueError(f"{path}: expected either `cases` or `labels`, found both")
        if case_id is None:
            raise ValueError(
                f"{path} has `labels` of one case; several images need `cases`, or a folder with "
                f"one file per case"
            )
        content = {**content, "cases": {case_id: content["labels"]}}
        del content["labels"]
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise ValueError(f'{path}: expected {{"format_version": 1, "cases": {{CASE: ...}}}}')
    if content.get("format_version") != PROMPTS_FORMAT:
        found = content.get("format_version")
        raise ValueError(f"{path}: expected format_version {PROMPTS_FORMAT}, found {found!r}")
    if unknown := sorted(set(content) - {*PROMPTS_HEADER, "cases", *_BESIDE_THE_PROMPTS}):
        raise ValueError(
            f"{path}: unknown {', '.join(unknown)}; known: format_version, frame, and cases or "
            f"labels"
        )
    if (axes := content.get("axes", "zyx")) != "zyx":
        raise ValueError(f"{path}: expected axes 'zyx', found {axes!r}")
    frame = content.get("frame", VOXEL)
    frame = VOXEL if frame == "voxel" else frame
    if frame not in FRAMES:
        known = ", ".join(map(repr, FRAMES))
        raise ValueError(f"{path}: expected frame to be one of {known}, found {frame!r}")
    return frame, content["cases"]


def check_case(labels: Any, frame: str, where: str) -> tuple[dict[str, dict], list[str]]:
    """One case's entry of a prompts file: the fields of `Prompts` by label, and every problem.

    Boxes and points become arrays in `frame`; they are checked against the image later.
    """
    if not isinstance(labels, dict) or not all(isinstance(p, dict) for p in labels.values()):
        expected = '{LABEL: {"boxes": [...], "points": [...], "point_labels": [...]}}'
        return {}, [f"{where}: expected {expected}, found {str(labels)[:80]}"]
    checked, problems = {}, []
    for label, content in labels.items():
        try:
            checked[label] = _check_fields(content, frame, f"{where}, label {label!r}")
        except ValueError as error:
            problems.append(str(error))
    return checked, problems


def read_prompts_file(path: Path | str) -> dict[str, dict[str, dict[str, Any]]]:
    """Read prompts.json in voxels: case identifier to label name to the fields of `Prompts`.

    Whether boxes and points lie in the image is checked later, by `prompts_from_json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and everything that is wrong with it.
    """
    frame, cases = read_prompts_json(path)
    if frame != VOXEL:
        raise ValueError(f"{path}: expected frame {VOXEL!r}, found {frame!r}")
    problems = []
    for case_id, labels in cases.items():
        problems += check_case(labels, frame, f"{path}: case {case_id!r}")[1]
    if problems:
        raise ValueError("\n".join(problems))
    return cases


def write_prompts_file(path: Path | str, cases: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Write what `read_prompts_file` reads: case to label to the fields of `Prompts.to_json`."""
    write_json(path, {**PROMPTS_HEADER, "cases": cases})


def prompts_from_json(content: Mapping[str, Any], shape: Sequence[int], where: str) -> Prompts:
    """Check one label's entry of a prompts file against its image; errors begin with `where`."""
    return make_prompts(**_check_fields(content, VOXEL, where), shape=shape, where=where)


def _check_fields(content: Mapping[str, Any], frame: str, where: str) -> dict[str, Any]:
    """The arguments of `make_prompts` from one label's entry of a prompts file."""
    if unknown := sorted(set(content) - set(_FIELDS)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {sorted(_FIELDS)}")
    given = (content.get("boxes"), content.get("points"), content.get("point_labels"))
    boxes, points, point_labels = check_numbers(*given, where, in_voxels=frame == VOXEL)
    source, score = content.get("source", "file"), content.get("score")
    reason = content.get("reason", "ok")
    if not isinstance(source, str) or not isinstance(reason, str):
        raise ValueError(f"{where}: source and reason are texts, found {source!r} and {reason!r}")
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if score is not None and not (is_number and 0 <= score <= 1):
        raise ValueError(f"{where}: score is a number from 0 to 1 or null, found {score!r}")
    return {
        "boxes": boxes,
        "points": points,
        "point_labels": point_labels,
        "source": source,
        "score": score,
        "reason": reason,
    }


def _readable(array: np.ndarray) -> list:
    """Nested lists; whole numbers without a decimal point."""
    whole = np.array_equal(array, np.rint(array))
    return (array.astype(int) if whole else array).tolist()


def check_numbers(
    boxes: Any, points: Any, point_labels: Any, where: str, *, in_voxels: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, points and their labels as arrays, checked as far as possible without the image.

    Args:
        boxes: (2, 3) or (n, 2, 3) numbers in lists or an array; None for no box.
        points: (3,) or (k, 3) numbers.
        point_labels: one per point, 1 foreground or 0 background; all foreground when not given.
        where: what they belong to, for error messages.
        in_voxels: whether a box is half-open, lower and upper corner; else any two opposite ones.

    Returns:
        (n, 2, 3) boxes, (k, 3) points and (k,) labels.

    Raises:
        ValueError: for wrong shapes, values that are not finite numbers, empty boxes, or labels
            other than 0 and 1.
    """
    box_array = _numbers(boxes, (2, 3), f"{where}: boxes")
    point_array = _numbers(points, (3,), f"{where}: points")
    for box in box_array:
        if in_voxels and not (box[0] < box[1]).all():
            raise ValueError(
                f"{where}: box {box.tolist()} is empty; corners are lower and upper, zyx, "
                f"the upper one exclusive"
            )
        if (box[0] == box[1]).any():
            raise ValueError(
                f"{where}: box {box.tolist()} is empty; give two opposite corners, x, y, z in mm"
            )
    return box_array, point_array, _kinds(point_labels, len(point_array), where)


def _kinds(point_labels: Any, count: int, where: str) -> np.ndarray:
    """(count,) ones and zeros."""
    if point_labels is None:
        return np.ones(count, int)
    try:
        kinds = np.asarray(point_labels)
    except ValueError:  # lists of different lengths
        kinds = np.asarray(None)
    if kinds.shape != (count,) or not np.isin(kinds, (0, 1)).all():
        raise ValueError(
            f"{where}: {count} points need as many labels, each 1 (foreground) or 0 "
            f"(background), found {short(point_labels)}"
        )
    return kinds.astype(int)


def _numbers(values: Any, item_shape: tuple[int, ...], where: str) -> np.ndarray:
    """`values` as (n, *item_shape) finite floats; None and empty lists give n = 0."""
    empty = isinstance(values, (list, tuple, np.ndarray)) and not len(values)
    if values is None or empty:
        return np.zeros((0, *item_shape))
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise ValueError(f"{where}: expected numbers, found {short(values)}") from error
    if array.dtype.kind not in "iuf":  # also texts such as "3": a typo is likelier than a number
        raise ValueError(f"{where}: expected numbers, found {short(values)}")
    array = array.astype(float)
    if array.shape == item_shape:
        array = array[None]
    if array.shape[1:] != item_shape:
        wanted = ", ".join(map(str, ("n", *item_shape)))
        raise ValueError(f"{where}: expected shape ({wanted}), found {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: must be finite, found {short(array.tolist())}")
    return array
