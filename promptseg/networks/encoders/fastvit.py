"""A small vision transformer: 6 layers, 6 heads, 384 channels."""

from __future__ import annotations

from promptseg.networks.encoders.base import ENCODERS, known_size
from promptseg.networks.encoders.vit import ViT, ViTSize

WIDTHS = ViTSize(channels=384, layers=6, heads=6, mlp_channels=1536, stem_channels=16)


@ENCODERS.register("fastvit")
class FastViT(ViT):
    """The paper's lightest transformer, at every size.

    Source:
        The paper, section 3.2 and table 2: about 10 M parameters.
    """

    @staticmethod
    def widths(size: str) -> ViTSize:
        known_size(size, "fastvit")
        return WIDTHS
