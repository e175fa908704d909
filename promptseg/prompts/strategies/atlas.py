"""`atlas`: where the label's box lay in the training volumes, whatever the image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import FittedPrompter, Sample, View


@AUTO_PROMPTERS.register("atlas")
class AtlasPrompter(FittedPrompter):
    """Each face of the box at `share` of the volume's extent plus `offset_mm`.

    Volumes of one protocol differ in extent; whether a face keeps its relative position (share
    0.4), its distance from the near side (share 0) or from the far side (share 1) is a matter of
    the data, so the line is fitted for every face, robustly: medians and absolute errors.

    Args:
        share: (2, 3) lower and upper faces, zyx.
        offset_mm: (2, 3) mm.
    """

    def __init__(self, *, share: list[list[float]], offset_mm: list[list[float]]) -> None:
        self.share = np.asarray(share, float)
        self.offset_mm = np.asarray(offset_mm, float)

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """The share (0, 1, or the median relative position) with the least absolute error."""
        faces = np.stack([sample.box_mm for sample in samples])  # (n, 2, 3)
        extents = np.stack([sample.view.extent_mm for sample in samples])  # (n, 3)
        share, offset = np.zeros((2, 3)), np.zeros((2, 3))
        for face in np.ndindex(2, 3):
            y, x = faces[(slice(None), *face)], extents[:, face[1]]
            lines = [(s, np.median(y - s * x)) for s in (0.0, 1.0)] + [(np.median(y / x), 0.0)]
            errors = [np.abs(y - s * x - o).mean() for s, o in lines]
            share[face], offset[face] = lines[int(np.argmin(errors))]
        return {"share": share.tolist(), "offset_mm": offset.tolist()}

    def locate(self, view: View) -> np.ndarray | None:
        """Faces on the fitted lines, inside the volume."""
        box = self.share * view.extent_mm + self.offset_mm
        return box.clip(0, view.extent_mm)
