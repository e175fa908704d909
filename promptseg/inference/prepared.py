"""An image that is ready to be asked about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promptseg.inference.decoding import ImageDecoder


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image, (c, z, y, x) as it came, and what answers queries about it."""

    raw: np.ndarray
    spacing: tuple[float, float, float]
    decoder: ImageDecoder

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        return self.raw.shape[1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the preprocessed image, zyx."""
        return self.decoder.shape
