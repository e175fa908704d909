"""Prompts as a file gives them, in its own frame, and carried to an image once that is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptseg.io.images import Geometry
from promptseg.prompts.types import VOXEL, WORLD_RAS, Prompts, check_case, make_prompts
from promptseg.prompts.world import RAS, corners, extent_mm, world_to_boxes, world_to_voxel

_DECIMALS = 6  # of a voxel: a round trip through mm changes less


@dataclass(frozen=True, kw_only=True)
class GivenPrompts:
    """One label's prompts in the frame of their file.

    Attributes:
        frame: one of `FRAMES`.
        boxes: (n, 2, 3) half-open voxel boxes, zyx; or (n, 8, 3) corners, x, y, z in mm.
        points: (k, 3) voxel indices, zyx; or x, y, z in mm.
        point_labels: (k,) 1 foreground, 0 background.
        source, score, reason: as in `Prompts`.
        where: file, case and label, for error messages.
    """

    frame: str
    boxes: np.ndarray
    points: np.ndarray
    point_labels: np.ndarray
    source: str = "file"
    score: float | None = None
    reason: str = "ok"
    where: str = "prompts"

    def on(self, geometry: Geometry) -> Prompts:
        """The prompts in the voxels of an image.

        Raises:
            ValueError: if a box or a point lies outside the image.
        """
        boxes, points = self.boxes, self.points
        if self.frame != VOXEL:
            boxes, points = self._in_voxels(geometry)
        return make_prompts(
            boxes=boxes,
            points=points,
            point_labels=self.point_labels,
            shape=geometry.shape,
            where=self.where,
            source=self.source,
            score=self.score,
            reason=self.reason,
        )

    def _in_voxels(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        to_lps = RAS if self.frame == WORLD_RAS else np.ones(3)
        boxes = np.round(world_to_boxes(self.boxes * to_lps, geometry), _DECIMALS)
        points = np.round(world_to_voxel(self.points * to_lps, geometry), _DECIMALS)
        shape = np.array(geometry.shape)
        inside = np.minimum(boxes[:, 1], shape) > np.maximum(boxes[:, 0], 0)
        for box, box_mm, is_inside in zip(boxes, self.boxes, inside.all(axis=1), strict=True):
            if not is_inside:
                reach = [box_mm.min(axis=0).tolist(), box_mm.max(axis=0).tolist()]
                raise ValueError(self._outside("box", reach, box, geometry))
        inside = (points >= -0.5) & (points <= shape - 0.5)
        for point, point_mm, is_inside in zip(points, self.points, inside.all(axis=1), strict=True):
            if not is_inside:
                raise ValueError(self._outside("point", point_mm.tolist(), point, geometry))
        return boxes, points

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
    """The prompts that files give for one case, by label, and every problem with them."""

    labels: Mapping[str, GivenPrompts]
    problems: tuple[str, ...] = ()

    def on(self, geometry: Geometry) -> dict[str, Prompts]:
        """The prompts by label in the voxels of the case's image.

        Raises:
            ValueError: with every problem of the case, one per line.
        """
        problems, found = list(self.problems), {}
        for label, given in self.labels.items():
            try:
                found[label] = given.on(geometry)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return found


def case_from_json(
    labels: Any, *, frame: str = VOXEL, known: Collection[str] | None = None, where: str = "prompts"
) -> CasePrompts:
    """One case's entry of a prompts file; problems are collected, not raised.

    Args:
        labels: label name to the fields of `Prompts`.
        frame: one of `FRAMES`.
        known: labels that may occur; any when not given.
        where: file and case, for error messages.
    """
    checked, problems = check_case(labels, frame, where)
    if known is not None and (unknown := [label for label in checked if label not in known]):
        problems.append(
            f"{where}: unknown label(s) {', '.join(unknown)}; the model knows {', '.join(known)}"
        )
    given = {}
    for label, fields in checked.items():
        if frame != VOXEL:
            fields["boxes"] = corners(fields["boxes"])
        given[label] = GivenPrompts(frame=frame, where=f"{where}, label {label!r}", **fields)
    return CasePrompts(labels=given, problems=tuple(problems))
