"""`consensus`: several fitted strategies propose, and each face is where the middle one puts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import FittedPrompter, Sample, View


@AUTO_PROMPTERS.register("consensus")
class ConsensusPrompter(FittedPrompter):
    """The median, face by face, of the boxes of strategies that fail in different ways.

    One strategy that is far off does not move a face as long as the others agree. Few training
    cases rarely tell which single strategy is best; then the middle is the safer choice.

    Args:
        members: parameters of each member, by name.
    """

    members = ("fitted_intensity", "likelihood", "regression")

    def __init__(self, *, members: dict[str, dict[str, Any]]) -> None:
        self.prompters = [AUTO_PROMPTERS.get(name)(**members[name]) for name in self.members]

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """Every member's own fit."""
        return {"members": {name: AUTO_PROMPTERS.get(name).fit(samples) for name in cls.members}}

    def locate(self, view: View) -> np.ndarray | None:
        """The median of what the members find; None where none finds anything."""
        return self.combine([prompter.locate(view) for prompter in self.prompters])

    @staticmethod
    def combine(boxes: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """The median box (2, 3) in the boxes' frame; of two the lower faces.

        It is always one of the numbers given, so that it is the same before and after rounding
        to voxels.
        """
        found = [box for box in boxes if box is not None]
        return np.quantile(found, 0.5, axis=0, method="lower") if found else None
