"""What a network keeps of images to answer any number of prompts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything computed from images that does not depend on prompts.

    Attributes:
        patch_size: voxels, zyx.
        features: (b, c, z', y', x'), the finest map.
        names: (b, 1 + labels, z', y', x') log-probabilities of background and of every
            label; None for a network that treats a label's name like any other prompt.
        projected: (b, c', z', y', x'), the features as the prompt head takes them; None as above.
        compared: (b, c', z', y', x'), the features that voxels are compared by; None as above.
    """

    patch_size: tuple[int, int, int]
    features: Tensor
    names: Tensor | None = None
    projected: Tensor | None = None
    compared: Tensor | None = None

    def of_each_image(self) -> list[Encoding]:
        """The encodings of single images, whose first axis is kept."""
        parts = [
            [None] * len(self.features) if tensor is None else tensor.split(1)
            for tensor in (self.features, self.names, self.projected, self.compared)
        ]
        return [
            Encoding(patch_size=self.patch_size, features=f, names=n, projected=p, compared=c)
            for f, n, p, c in zip(*parts, strict=True)
        ]
