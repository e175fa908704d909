"""What a network keeps of images to answer any number of prompts."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from promptseg.networks.prompt_encoder import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything computed from images that does not depend on prompts.

    Attributes:
        patch_size: voxels, zyx.
        features: (b, c, z', y', x'), the finest map.
        names: (b, 1 + classes, z', y', x') log-probabilities of background and of every
            label or, with regions, stored value; None for a network that treats a label's name like
            any other prompt.
        projected: (b, c', z', y', x'), the features as the prompt head takes them; None as above.
        values: (b, channels, z, y, x) of the image, standardized; None as above.
        compared: (b, c' + channels, z', y', x'), the features that voxels are compared by, and the
            image on the elements of the prompt head's map; None as above.
    """

    patch_size: tuple[int, int, int]
    features: Tensor
    names: Tensor | None = None
    projected: Tensor | None = None
    values: Tensor | None = None
    compared: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name, in the order of `TENSORS`."""
        values = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def of_each_image(self) -> list[Encoding]:
        """The encodings of single images, whose first axis is kept."""
        parts = {name: tensor.split(1) for name, tensor in self.tensors().items()}
        return [
            Encoding(patch_size=self.patch_size, **dict(zip(parts, of_image, strict=True)))
            for of_image in zip(*parts.values(), strict=True)
        ]


TENSORS = tuple(field.name for field in fields(Encoding) if field.name != "patch_size")


def of_queries(maps: Tensor, prompts: PromptBatch) -> Tensor:
    """(b, ...) maps of images for n queries; not copied where all are about one image."""
    return maps if len(maps) == 1 else maps[prompts.image_index]
