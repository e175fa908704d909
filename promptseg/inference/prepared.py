"""An image that is ready to be asked about, from its files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from promptseg.inference.decoder import ImageDecoder
from promptseg.io.images import NPZ, Geometry, file_ending, read_image
from promptseg.plans import Normalization
from promptseg.preprocessing.normalize import undo_window, windows_in_words

if TYPE_CHECKING:
    from promptseg.inference.predictor import Predictor

log = logging.getLogger(__name__)


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


def with_channels(image: np.ndarray, channel_names: Sequence[str]) -> np.ndarray:
    """A (z, y, x) or (c, z, y, x) image as (c, z, y, x).

    Raises:
        ValueError: for a wrong number of channels or axes, or an image of no voxels.
    """
    image = np.asarray(image)
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != len(channel_names) or 0 in image.shape:
        raise ValueError(
            f"expected an image of {len(channel_names)} channel(s) "
            f"({', '.join(channel_names)}), shape (c, z, y, x), found {image.shape}; "
            f"give the channels that the model was trained with"
        )
    return image


def read_prepared(predictor: Predictor, files: Sequence[Path]) -> tuple[PreparedImage, Geometry]:
    """Read an image from one file a channel and prepare it, as `Predictor.prepare` does an array.

    CT in the challenge's npz files is windowed already; see `undo_window` and
    `warn_of_windows`. Safe to call in several threads.

    Raises:
        FileNotFoundError, ValueError: naming the files that are wrong.
    """
    image, geometry = read_image(files)
    if _is_windowed(files[0]):
        image = undo_window(image, predictor.plans.normalizations)
    try:
        return predictor.prepare(image, geometry.spacing), geometry
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, files))}: {error}") from error


def warn_of_windows(files: Iterable[Path], normalizations: Sequence[Normalization]) -> bool:
    """Say, if it is so, that files are windowed already and plans for HU; whether it is so."""
    windows = windows_in_words(normalizations)
    if concerns := bool(windows) and any(map(_is_windowed, files)):
        log.warning(
            "CT in .npz files is windowed to [0, 255] already, but the model was planned on HU: "
            "the images are taken to have been windowed as its plans do (%s). If they were not, "
            "expect poor segmentations; a model trained on converted .npz files has no such doubt",
            windows,
        )
    return concerns


def _is_windowed(file: Path) -> bool:
    return file_ending(file) == NPZ
