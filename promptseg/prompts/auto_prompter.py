"""The interface of automatic prompts: an image in, a proposed box out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from promptseg.registry import Registry

AUTO_PROMPTERS = Registry("automatic prompt")
LOCATOR = "locator"  # one network for all labels, not registered: `promptseg.networks.locator`


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The boxes that a strategy proposes for one label of one image.

    Attributes:
        box: (2, 3) integer lower and upper corner in voxels of the image, zyx, upper exclusive;
            None when no box is proposed.
        score: box IoU that the strategy expects, in [0, 1]; 0 without a box.
        reason: a short code: `ok`, or why there is no box or a doubtful one.
        boxes: every proposed box, best first, for labels with several objects; `box` is the
            first of them.
        scores: of each of several boxes, in [0, 1]; empty where there is one.
    """

    box: np.ndarray | None
    score: float
    reason: str
    boxes: tuple[np.ndarray, ...] = field(default=())
    scores: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.box is not None and not self.boxes:
            object.__setattr__(self, "boxes", (self.box,))


class AutoPrompter(ABC):
    """A strategy with the parameters of one label; parameters are plain JSON values."""

    name: str

    @abstractmethod
    def propose(self, image: np.ndarray, spacing: tuple[float, float, float]) -> Proposal:
        """Propose a box.

        Args:
            image: (z, y, x) intensities.
            spacing: mm, zyx.
        """
