"""What a network keeps of images to answer any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything computed from images that does not depend on prompts.

    Attributes:
        patch_size: voxels, zyx.
        embedding: (b, c, z', y', x') on the coarse grid.
        pyramid: feature maps up to full resolution, finest first.
    """

    patch_size: tuple[int, int, int]
    embedding: Tensor
    pyramid: Sequence[Tensor]
