"""Prompts of a label in a raw image: boxes, points, lines and a mask, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import read_json, write_json
from promptseg.io.orientation import Turn
from promptseg.preprocessing.resample import scale_coordinates
from promptseg.prompts.checks import (
    check_inside,
    check_lines,
    check_mask,
    check_numbers,
    clipped_boxes,
    flat_lasso,
)

PROMPTS_FORMAT = 1
VOXEL = "voxel zyx"
WORLD = "world mm"  # x, y, z as ITK and DICOM count them: to the left, posterior, superior (LPS)
WORLD_RAS = "world mm RAS"
FRAMES = (VOXEL, WORLD, WORLD_RAS)
PROMPTS_HEADER = {"format_version": PROMPTS_FORMAT, "frame": VOXEL}
# Written by promptseg_auto_prompt and by earlier versions; ignored when read.
_BESIDE_THE_PROMPTS = {"axes", "strategy", "parameters", "report", "failed"}
_LINES = ("scribbles", "scribble_labels", "lassos")  # in files only where there are any
_FIELDS = ("boxes", "points", "point_labels", *_LINES, "source", "score", "reason")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of one label in one image.

    With nothing of all this, the label's name alone is the prompt.

    Attributes:
        boxes: (n, 2, 3) lower and upper corners in voxels, zyx, upper exclusive. One that is one
            voxel thick along an axis is drawn in that slice, and the object may continue beyond.
        points: (k, 3) voxel indices, zyx.
        point_labels: (k,) 1 foreground, 0 background.
        scribbles: (k, 3) voxel indices, zyx, each: a line through them, or a single voxel.
        scribble_labels: one per scribble, 1 foreground, 0 background.
        lassos: (k, 3) vertices, zyx, each: a closed polygon around the object in one slice; along
            that slice's axis they share one voxel index. The object may continue beyond.
        mask: (z, y, x) bool on the raw image's grid, to be corrected; None for none.
        source: `user`, `file`, or the automatic strategy's name.
        score: box IoU that an automatic strategy expects, in [0, 1]; None when a person gave it.
        reason: a short code; `ok` when nothing is wrong.
    """

    boxes: np.ndarray
    points: np.ndarray
    point_labels: np.ndarray
    scribbles: tuple[np.ndarray, ...] = ()
    scribble_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    lassos: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None
    source: str = "user"
    score: float | None = None
    reason: str = "ok"

    @property
    def is_of_person(self) -> bool:
        """Whether a person gave any of them, here or in a file."""
        return not self.is_empty and not {"user", "file"}.isdisjoint(self.source.split(", "))

    @property
    def is_empty(self) -> bool:
        drawn = (self.boxes, self.points, self.scribbles, self.lassos)
        return self.mask is None and not any(map(len, drawn))

    @property
    def is_box_at_most(self) -> bool:
        """Whether there is nothing but one box, or nothing at all."""
        others = (self.points, self.scribbles, self.lassos)
        return self.mask is None and len(self.boxes) < 2 and not any(map(len, others))

    @property
    def says_only_where_not(self) -> bool:
        """Whether there are background points and scribbles, and nothing else."""
        where = (self.mask is not None, *map(len, (self.boxes, self.lassos)))
        kinds = (*self.point_labels, *self.scribble_labels)
        return bool(kinds) and not any(kinds) and not any(where)

    def scaled(self, from_shape: Sequence[int], to_shape: Sequence[int]) -> Prompts:
        """The same prompts on another grid over the same field of view.

        A voxel i covers [i, i + 1); boxes scale with it and stay continuous, points, scribbles and
        lassos go through their voxel's centre. The mask stays on the raw image's grid.
        """

        def of_centres(positions: np.ndarray) -> np.ndarray:
            return scale_coordinates(positions + 0.5, from_shape, to_shape) - 0.5

        return replace(
            self,
            boxes=scale_coordinates(self.boxes, from_shape, to_shape),
            points=of_centres(self.points),
            scribbles=tuple(map(of_centres, self.scribbles)),
            lassos=tuple(map(of_centres, self.lassos)),
        )

    def turned(self, turn: Turn, shape: Sequence[int]) -> Prompts:
        """The same prompts on an image of that shape once it is turned."""
        return replace(
            self,
            boxes=turn.boxes(self.boxes, shape),
            points=turn.points(self.points, shape),
            scribbles=tuple(turn.points(line, shape) for line in self.scribbles),
            lassos=tuple(turn.points(line, shape) for line in self.lassos),
            mask=None if self.mask is None else turn.array(self.mask),
        )

    def to_json(self) -> dict[str, Any]:
        """As in a prompts file, which has lines only where there are any, and no mask."""
        lines: dict[str, Any] = {}
        if self.scribbles:
            lines["scribbles"] = [_readable(line) for line in self.scribbles]
            lines["scribble_labels"] = self.scribble_labels.tolist()
        if self.lassos:
            lines["lassos"] = [_readable(line) for line in self.lassos]
        return {
            "boxes": _readable(self.boxes),
            "points": _readable(self.points),
            "point_labels": self.point_labels.tolist(),
            **lines,
            "source": self.source,
            "score": self.score,
            "reason": self.reason,
        }


def make_prompts(
    *,
    boxes: Sequence | np.ndarray | None = None,
    points: Sequence | np.ndarray | None = None,
    point_labels: Sequence[int] | None = None,
    scribbles: Sequence | None = None,
    scribble_labels: Sequence[int] | None = None,
    lassos: Sequence | None = None,
    mask: np.ndarray | None = None,
    shape: Sequence[int],
    where: str = "prompts",
    source: str = "user",
    score: float | None = None,
    reason: str = "ok",
) -> Prompts:
    """Check prompts against the image they are for.

    More parameters than usual: each is an independent keyword with a default.

    Args:
        boxes: (2, 3) or (n, 2, 3) half-open voxel boxes, zyx; clipped to the image.
        points: (3,) or (k, 3) voxel indices, zyx.
        point_labels: one per point, 1 foreground or 0 background; all foreground when not given.
        scribbles: (k, 3) voxel indices, zyx, or a list of such lines.
        scribble_labels: one per scribble, as those of points.
        lassos: (k, 3) vertices of a polygon in one slice, voxel indices, zyx, or a list of such.
        mask: (z, y, x) true and false, or 1 and 0; one without a voxel is as good as None.
        shape: voxels of the raw image, zyx.
        where: what the prompts belong to, for error messages.
        source, score, reason: as in `Prompts`.

    Raises:
        ValueError: for wrong shapes, non-finite numbers, empty boxes, anything outside the image,
            labels that are neither 0 nor 1, or a lasso that is not in one slice.
    """
    box_array, point_array, kinds = check_numbers(boxes, points, point_labels, where)
    lines, line_kinds, polygons = check_lines(scribbles, scribble_labels, lassos, where)
    check_inside(point_array, shape, where, "point prompts")
    for number, line in enumerate(lines, 1):
        check_inside(line, shape, where, f"positions of scribble {number}")
    for number, line in enumerate(polygons, 1):
        check_inside(line, shape, where, f"vertices of lasso {number}")
    return Prompts(
        boxes=clipped_boxes(box_array, shape, where),
        points=point_array,
        point_labels=kinds,
        scribbles=lines,
        scribble_labels=line_kinds,
        lassos=tuple(
            flat_lasso(line, shape, f"{where}: lasso {number}")
            for number, line in enumerate(polygons, 1)
        ),
        mask=check_mask(mask, shape, where),
        source=source,
        score=score,
        reason=reason,
    )


def joined(several: Sequence[Prompts]) -> Prompts:
    """The prompts of one label, from several places, in one object; a voxel of any mask counts."""
    if len(several) == 1:
        return several[0]
    masks = [prompts.mask for prompts in several if prompts.mask is not None]
    reasons = [prompts.reason for prompts in several if prompts.reason != "ok"]
    return Prompts(
        boxes=np.concatenate([prompts.boxes for prompts in several]),
        points=np.concatenate([prompts.points for prompts in several]),
        point_labels=np.concatenate([prompts.point_labels for prompts in several]),
        scribbles=sum((prompts.scribbles for prompts in several), ()),
        scribble_labels=np.concatenate([prompts.scribble_labels for prompts in several]),
        lassos=sum((prompts.lassos for prompts in several), ()),
        mask=np.logical_or.reduce(masks) if masks else None,
        source=", ".join(dict.fromkeys(prompts.source for prompts in several)),
        reason=reasons[0] if reasons else "ok",
    )


def _readable(array: np.ndarray) -> list:
    """Nested lists; whole numbers without a decimal point."""
    whole = np.array_equal(array, np.rint(array))
    return (array.astype(int) if whole else array).tolist()


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

    Boxes, points and lines become arrays in `frame`; they are checked against the image later.
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

    Whether all lies in the image is checked later, by `prompts_from_json`.

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
    lines = check_lines(*(content.get(name) for name in _LINES), where)
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
        **dict(zip(_LINES, lines, strict=True)),
        "source": source,
        "score": score,
        "reason": reason,
    }
