"""Raw intensities to [0, 255]: clinical windows for CT, percentiles for all else, or SegVol's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptseg.plans import Normalization
from promptseg.preprocessing.percentiles import percentiles

CT_WINDOWS: dict[str, tuple[float, float]] = {  # width, level in HU (paper, section 3.3)
    "soft tissue": (400.0, 40.0),
    "lung": (1500.0, -160.0),
    "brain": (80.0, 40.0),
    "bone": (1800.0, 400.0),
}
PERCENTILES = (0.5, 99.5)  # paper, section 3.3: MRI, PET and ultrasound
FOREGROUND_PERCENTILES = (0.05, 99.95)  # SegVol, every modality


def ct_window(name: str) -> Normalization:
    """One of the four clinical windows by name; width 400 and level 40 keep -160 to 240 HU."""
    width, level = CT_WINDOWS[name]
    return Normalization(kind="window", lower=level - width / 2, upper=level + width / 2)


def percentile_clipping() -> Normalization:
    """The paper's normalization of MRI, PET and ultrasound."""
    return Normalization(kind="percentiles", lower=PERCENTILES[0], upper=PERCENTILES[1])


def foreground_clipping() -> Normalization:
    """SegVol's normalization, whatever the modality.

    SegVol clips to percentiles of the voxels above the volume's mean, takes off their mean,
    divides by their standard deviation and scales what comes out to its own minimum and maximum.
    The last step undoes the two before it, and background is never above the lower percentile:
    what remains is a linear map of the clipped intensities.

    Source:
        SegVol, data_process/demo_data_process.py, ForegroundNormalization and MinMaxNormalization.
    """
    lower, upper = FOREGROUND_PERCENTILES
    return Normalization(kind="foreground", lower=lower, upper=upper)


def keep_windowed() -> Normalization:
    """Of CT that whoever made the files has windowed to [0, 255] already: it stays as it is."""
    return Normalization(kind="window", lower=0.0, upper=255.0)


def default_normalization(modality: str) -> Normalization:
    """What a modality gets when no training cases say better: soft tissue for `CT`."""
    return ct_window("soft tissue") if modality == "CT" else percentile_clipping()


def intensity_range(image: np.ndarray, normalization: Normalization) -> tuple[float, float]:
    """The raw intensities that map to 0 and 255; equal when the volume is constant or empty.

    Where both percentiles coincide although the volume is not constant (a small bright spot in
    plain background), the lowest and highest intensity stand in for them.
    """
    if normalization.kind == "window":
        return normalization.lower, normalization.upper
    if image.size == 0:
        return 0.0, 0.0
    above = image.mean() if normalization.kind == "foreground" else None
    lower, upper = percentiles(image, (normalization.lower, normalization.upper), above)
    if np.isnan(lower):  # nothing is above the mean: a constant volume
        return float(image.min()), float(image.min())
    if lower == upper:
        lower, upper = image.min(), image.max()
    return float(lower), float(upper)


def normalize(image: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Clip and scale one channel to [0, 255].

    Args:
        image: (z, y, x) finite raw intensities of any dtype.
        normalization: how.

    Returns:
        (z, y, x) float32 in [0, 255]; all 0 when the volume is constant after clipping.

    Source:
        Paper, section 3.3.
    """
    return rescale(image, *intensity_range(image, normalization))


def rescale(image: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """Map `lower` to 0 and `upper` to 255 linearly and clip; `normalize` with the range known.

    Args:
        image: (z, y, x) finite raw intensities of any dtype.
        lower, upper: raw intensities.

    Returns:
        (z, y, x) float32 in [0, 255]; all 0 when the volume is constant after clipping.
    """
    scaled = rescale_part(image, lower, upper)
    if scaled.size and scaled.min() == scaled.max():
        scaled.fill(0.0)
    return scaled


def scale_of(image: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """The range with which `rescale_part` of any part is that part of `rescale` of the whole.

    The same range, or an empty one where the volume is constant once it is clipped.
    """
    for part in (image[:: max(1, len(image) // 8)], image):  # a few slices mostly tell
        if part.size and rescale(np.array([part.min(), part.max()]), lower, upper).any():
            return lower, upper
    return lower, lower


def rescale_part(image: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """`rescale` of a part of a volume with the range from `scale_of`; 0 when that is empty."""
    width = np.float32(upper - lower)
    if not width > 0:
        return np.zeros(image.shape, np.float32)
    scaled = image.astype(np.float32)  # the one float copy; everything below works in place
    np.clip(scaled, lower, upper, out=scaled)
    scaled -= np.float32(lower)
    scaled /= width  # before the factor: 255 / width overflows for tiny widths
    scaled *= np.float32(255.0)
    return np.clip(scaled, 0.0, 255.0, out=scaled)


def check_finite(channel: np.ndarray) -> None:
    """Raise a ValueError if a voxel of a (z, y, x) image is NaN or infinite."""
    if channel.dtype.kind != "f" or not channel.size:
        return
    if not np.isfinite([channel.min(), channel.max()]).all():  # NaN is in both
        bad = sum(int((~np.isfinite(plane)).sum()) for plane in channel)
        raise ValueError(
            f"{bad} of {channel.size} voxels are NaN or infinite; expected numbers: replace them, "
            f"for example by the value of the background"
        )


def check_windowed(image: np.ndarray, normalizations: Sequence[Normalization]) -> None:
    """Raise if an image is in HU where the plans were made on images windowed before.

    Args:
        image: (c, z, y, x) raw intensities.
        normalizations: of each channel.

    Raises:
        ValueError: naming the channel and the intensities found.
    """
    for number, (channel, normalization) in enumerate(zip(image, normalizations, strict=True)):
        if normalization != keep_windowed() or not channel.size:
            continue
        lowest, highest = channel.min(), channel.max()
        if lowest < normalization.lower or highest > normalization.upper:
            raise ValueError(
                f"channel {number}: found intensities {lowest:g} to {highest:g}, expected 0 to "
                f"255, as the model's training images had been windowed before; window this one "
                f"alike"
            )


def windows_in_words(normalizations: Sequence[Normalization]) -> str:
    """The windows of the plans that turn HU into [0, 255]; empty where they have none."""
    of_hu = filter(_is_of_hu, normalizations)
    return ", ".join(f"{n.lower:g} to {n.upper:g} HU" for n in of_hu)


def _is_of_hu(normalization: Normalization) -> bool:
    return normalization.kind == "window" and normalization != keep_windowed()


def undo_window(image: np.ndarray, normalizations: Sequence[Normalization]) -> np.ndarray:
    """Intensities that the plans' windows turn into those of an image windowed before.

    Args:
        image: (c, z, y, x) in [0, 255] where its channel's normalization is a window.
        normalizations: of each channel.

    Returns:
        the same array if no channel has another window than `keep_windowed`; else float32, HU in
        channels with a window, under the assumption that it was this window.
    """
    if not any(map(_is_of_hu, normalizations)):
        return image
    result = image.astype(np.float32)
    for channel, n in zip(result, normalizations, strict=True):
        if n.kind == "window":
            channel *= np.float32((n.upper - n.lower) / 255.0)
            channel += np.float32(n.lower)
    return result


def to_uint8(normalized: np.ndarray) -> np.ndarray:
    """Round [0, 255] floats to uint8, half to even, as preprocessing rounds what it stores."""
    return np.rint(normalized).clip(0, 255).astype(np.uint8)
