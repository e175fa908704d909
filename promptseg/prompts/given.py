"""Prompts as a file gives them, in its own frame, and carried to an image once that is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from promptseg.io.images import Geometry
from promptseg.prompts.names import is_unnamed
from promptseg.prompts.types import VOXEL, WORLD_RAS, Prompts, check_case, joined, make_prompts
from promptseg.prompts.world import RAS, corners, extent_mm, world_to_boxes, world_to_voxel

_LABELS_OF = {"points": "point_labels", "scribbles": "scribble_labels"}
_DECIMALS = 6  # of a voxel: a round trip through mm changes less


@dataclass(frozen=True, kw_only=True)
class GivenPrompts:
    """One label's prompts in the frame of their file.

    Attributes:
        frame: one of `FRAMES`.
        boxes: (n, 2, 3) half-open voxel boxes, zyx; or (n, 8, 3) corners, x, y, z in mm.
        points: (k, 3) voxel indices, zyx; or x, y, z in mm.
        point_labels: (k,) 1 foreground, 0 background.
        scribbles, lassos: (k, 3) positions each, as points have them.
        scribble_labels: one per scribble, as those of points.
        source, score, reason: as in `Prompts`.
        where: file, case and label, for error messages.
        grid: of the file whose voxels are meant, which must be the image's; None for files that
            have no grid.
    """

    frame: str
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    point_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    scribbles: tuple[np.ndarray, ...] = ()
    scribble_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    lassos: tuple[np.ndarray, ...] = ()
    source: str = "file"
    score: float | None = None
    reason: str = "ok"
    where: str = "prompts"
    grid: Geometry | None = None

    def on(self, geometry: Geometry) -> Prompts:
        """The prompts in the voxels of an image.

        Raises:
            ValueError: if any lies outside the image, a lasso in no single slice of it, or if it
                has another grid than the file.
        """
        if self.grid is not None:
            check_same_grid(self.grid, geometry, self.where)
        places = (self.boxes, self.points, self.scribbles, self.lassos)
        boxes, points, scribbles, lassos = (
            places if self.frame == VOXEL else self._in_voxels(geometry)
        )
        return make_prompts(
            boxes=boxes,
            points=points,
            point_labels=self.point_labels,
            scribbles=scribbles,
            scribble_labels=self.scribble_labels,
            lassos=lassos,
            shape=geometry.shape,
            where=self.where,
            source=self.source,
            score=self.score,
            reason=self.reason,
        )

    def _in_voxels(self, geometry: Geometry) -> tuple[Any, ...]:
        """Boxes, points, scribbles and lassos in voxels."""
        to_lps = RAS if self.frame == WORLD_RAS else np.ones(3)
        boxes = np.round(world_to_boxes(self.boxes * to_lps, geometry), _DECIMALS)
        shape = np.array(geometry.shape)
        inside = np.minimum(boxes[:, 1], shape) > np.maximum(boxes[:, 0], 0)
        for box, box_mm, is_inside in zip(boxes, self.boxes, inside.all(axis=1), strict=True):
            if not is_inside:
                reach = [box_mm.min(axis=0).tolist(), box_mm.max(axis=0).tolist()]
                raise ValueError(self._outside("box", reach, box, geometry))

        def placed(what: str, positions_mm: np.ndarray) -> np.ndarray:
            found = np.round(world_to_voxel(positions_mm * to_lps, geometry), _DECIMALS)
            inside = ((found >= -0.5) & (found <= shape - 0.5)).all(axis=1)
            for position, mm, is_inside in zip(found, positions_mm, inside, strict=True):
                if not is_inside:
                    raise ValueError(self._outside(what, mm.tolist(), position, geometry))
            return found

        return (
            boxes,
            placed("point", self.points),
            tuple(placed("position of a scribble", line) for line in self.scribbles),
            tuple(placed("vertex of a lasso", line) for line in self.lassos),
        )

    def _outside(self, what: str, found: list, voxels: np.ndarray, geometry: Geometry) -> str:
        reach = extent_mm(geometry) * (RAS if self.frame == WORLD_RAS else 1.0)
        axes = zip("xyz", reach.min(axis=0), reach.max(axis=0), strict=True)
        extent = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in axes)
        system = "RAS" if self.frame == WORLD_RAS else "LPS"
        return (
            f"{self.where}: {what} {found} lies outside the image, which reaches over {extent} "
            f"(mm, {system}); in its voxels, zyx, the {what} is at {voxels.round(1).tolist()} of "
            f"shape {geometry.shape}. Was it drawn on this image, and is {system} right?"
        )


@dataclass(frozen=True, kw_only=True)
class CasePrompts:
    """The prompts that files give for one case, by label, and every problem with them.

    Those of several files for one label add up.
    """

    labels: Mapping[str, tuple[GivenPrompts, ...]]
    problems: tuple[str, ...] = ()

    def on(self, geometry: Geometry) -> dict[str, Prompts]:
        """The prompts by label in the voxels of the case's image.

        Raises:
            ValueError: with every problem of the case, one per line.
        """
        problems, found = list(self.problems), {}
        for label, several in self.labels.items():
            of_label = []
            for given in several:
                try:
                    of_label.append(given.on(geometry))
                except ValueError as error:
                    problems.append(str(error))
            if of_label:
                found[label] = joined(of_label)
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return found


def added(several: Iterable[CasePrompts]) -> CasePrompts:
    """The prompts of several files for one case, and the problems of all."""
    labels: dict[str, tuple[GivenPrompts, ...]] = {}
    problems: tuple[str, ...] = ()
    for case in several:
        problems += case.problems
        for label, given in case.labels.items():
            labels[label] = labels.get(label, ()) + given
    return CasePrompts(labels=labels, problems=problems)


def gathered(
    drawn: Iterable[tuple[str, str, np.ndarray, bool]], frame: str, where: str
) -> dict[str, tuple[GivenPrompts, ...]]:
    """The prompts by label of what one file holds.

    Args:
        drawn: of each thing the label, the field of `GivenPrompts` it belongs to, its positions
            there, and whether it marks foreground.
        frame: of the positions.
        where: file and case, for error messages.
    """
    by_label: dict[str, dict[str, list]] = {}
    for label, name, positions, is_foreground in drawn:
        fields = by_label.setdefault(label, {})
        fields.setdefault(name, []).append(positions)
        if name in _LABELS_OF:
            fields.setdefault(_LABELS_OF[name], []).append(int(is_foreground))
    found = {}
    for label, fields in by_label.items():
        arrays = {
            name: tuple(values) if name in ("scribbles", "lassos") else np.array(values)
            for name, values in fields.items()
        }
        found[label] = (GivenPrompts(frame=frame, where=f"{where}, label {label!r}", **arrays),)
    return found


def check_same_grid(grid: Geometry, of_image: Geometry, where: str) -> None:
    """Raise a ValueError, beginning with `where`, unless a label map has the image's grid."""
    if difference := grid.difference_from(of_image):
        raise ValueError(
            f"{where}: the label map and its image differ: {difference}; expected one grid: save "
            f"it on the image that is predicted, or resample it onto that"
        )


def case_from_json(
    labels: Any, *, frame: str = VOXEL, known: Collection[str] | None = None, where: str = "prompts"
) -> CasePrompts:
    """One case's entry of a prompts file; problems are collected, not raised.

    Args:
        labels: label name to the fields of `Prompts`.
        frame: one of `FRAMES`.
        known: labels that may occur, beside unnamed objects (`is_unnamed`); any when not given.
        where: file and case, for error messages.
    """
    checked, problems = check_case(labels, frame, where)
    accepted = {*checked} if known is None else known
    unknown = [name for name in checked if name not in accepted and not is_unnamed(name, accepted)]
    if unknown:
        problems.append(
            f"{where}: unknown label(s) {', '.join(unknown)}; the model knows {', '.join(known)}"
        )
    given = {}
    for label, fields in checked.items():
        if frame != VOXEL:
            fields["boxes"] = corners(fields["boxes"])
        given[label] = (GivenPrompts(frame=frame, where=f"{where}, label {label!r}", **fields),)
    return CasePrompts(labels=given, problems=tuple(problems))
