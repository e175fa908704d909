"""Prompts of a label in a raw image: boxes and points, where they came from, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import read_json, write_json
from promptseg.preprocessing.resample import scale_coordinates

PROMPTS_FORMAT = 1
PROMPTS_HEADER = {"format_version": PROMPTS_FORMAT, "frame": "voxel", "axes": "zyx"}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is known about one label in one image before the network looks.

    With neither boxes nor points the label's name alone is the prompt.

    Attributes:
        boxes: (n, 2, 3) lower and upper corners in voxels, zyx, upper exclusive.
        points: (k, 3) voxel indices, zyx.
        point_labels: (k,) 1 foreground, 0 background.
        source: `user`, `file`, or the automatic strategy's name.
        score: box IoU that an automatic strategy expects, in [0, 1]; None when a person gave it.
        reason: a short code; `ok` when there is nothing to say.
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
        point_labels: one a point, 1 foreground or 0 background; all foreground when not given.
        shape: voxels of the raw image, zyx.
        where: what the prompts belong to, for errors.
        source, score, reason: as in `Prompts`.

    Raises:
        ValueError: for wrong shapes, non-finite numbers, empty boxes, boxes or points outside the
            image, or labels that are neither 0 nor 1.
    """
    shape_array = np.asarray(shape)
    box_array = _numbers(boxes, (2, 3), f"{where}: boxes")
    point_array = _numbers(points, (3,), f"{where}: points")
    clipped = np.clip(box_array, 0, shape_array)
    for given, box in zip(box_array, clipped, strict=True):
        if not (given[0] < given[1]).all():
            raise ValueError(
                f"{where}: box {given.tolist()} is empty; corners are lower and upper, zyx, "
                f"the upper one exclusive"
            )
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
    kinds = np.ones(len(point_array), int) if point_labels is None else np.asarray(point_labels)
    if kinds.shape != (len(point_array),) or not np.isin(kinds, (0, 1)).all():
        raise ValueError(
            f"{where}: {len(point_array)} points need as many labels, each 1 (foreground) or 0 "
            f"(background), found {kinds.tolist()}"
        )
    return Prompts(
        boxes=clipped,
        points=point_array,
        point_labels=kinds.astype(int),
        source=source,
        score=score,
        reason=reason,
    )


def read_prompts_file(path: Path | str) -> dict[str, dict[str, dict[str, Any]]]:
    """Read prompts.json: case identifier to label name to the fields of `Prompts`.

    The boxes and points are checked later, against each image, by `prompts_from_json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and what is wrong with it.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise ValueError(f'{path}: expected {{"format_version": 1, "cases": {{CASE: ...}}}}')
    if content.get("format_version") != PROMPTS_FORMAT:
        found = content.get("format_version")
        raise ValueError(f"{path}: expected format_version {PROMPTS_FORMAT}, found {found!r}")
    for key, wanted in PROMPTS_HEADER.items():
        if content.get(key, wanted) != wanted:
            raise ValueError(f"{path}: expected {key} {wanted!r}, found {content[key]!r}")
    for case_id, labels in content["cases"].items():
        if not isinstance(labels, dict) or not all(isinstance(p, dict) for p in labels.values()):
            raise ValueError(
                f'{path}: case {case_id!r}: expected {{LABEL: {{"boxes": [...], '
                f'"points": [...], "point_labels": [...]}}}}'
            )
    return content["cases"]


def write_prompts_file(path: Path | str, cases: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Write what `read_prompts_file` reads: case to label to the fields of `Prompts.to_json`."""
    write_json(path, {**PROMPTS_HEADER, "cases": cases})


def prompts_from_json(content: Mapping[str, Any], shape: Sequence[int], where: str) -> Prompts:
    """Check one label's entry of a prompts file against its image; `where` is for errors."""
    allowed = {"boxes", "points", "point_labels", "source", "score", "reason"}
    if unknown := sorted(set(content) - allowed):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {sorted(allowed)}")
    return make_prompts(
        boxes=content.get("boxes"),
        points=content.get("points"),
        point_labels=content.get("point_labels"),
        shape=shape,
        where=where,
        source=str(content.get("source", "file")),
        score=content.get("score"),
        reason=str(content.get("reason", "ok")),
    )


def _readable(array: np.ndarray) -> list:
    """Nested lists; whole numbers without a decimal point."""
    whole = np.array_equal(array, np.rint(array))
    return (array.astype(int) if whole else array).tolist()


def _numbers(values: Any, item_shape: tuple[int, ...], where: str) -> np.ndarray:
    """`values` as (n, *item_shape) finite floats; None and empty lists give n = 0."""
    if values is None or (hasattr(values, "__len__") and not len(values)):
        return np.zeros((0, *item_shape))
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected numbers, found {values!r}") from error
    if array.shape == item_shape:
        array = array[None]
    if array.shape[1:] != item_shape:
        wanted = ", ".join(map(str, ("n", *item_shape)))
        raise ValueError(f"{where}: expected shape ({wanted}), found {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: must be finite, found {array.tolist()}")
    return array
