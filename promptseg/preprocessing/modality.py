"""How an image was made, told from its channel's name and from its intensities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptseg.io.dicom import MODALITIES, modality_of_series
from promptseg.io.images import is_dicom_folder

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)

# Words of a channel name, in lower case, that say how the image was made.
_MODALITIES = {
    "CT": "ct cta cect cbct ldct hu",
    "MRI": "mri mr mra t1 t1w t1c t1ce t1gd t1n t2 t2w t2f t2star flair pd pdw adc dwi swi dce "
    "cine bssfp mprage",
    "PET": "pet suv fdg psma",
    "US": "us ultrasound ultrasonography sonography trus tvus echo",
}


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Raw intensities of one channel of one case; `percentiles` by their name, `"99.5"`."""

    percentiles: dict[str, float]
    mean: float
    std: float
    min: float
    max: float


def channel_statistics(channel: np.ndarray) -> ChannelStatistics:
    """Percentiles and moments of a (z, y, x) image with finite values."""
    mean = channel.mean(dtype=np.float64)
    # Slice by slice, so that no float copy of the volume is made.
    variance = sum(np.square(slice_ - mean).sum() for slice_ in channel) / channel.size
    percentiles = np.percentile(channel, PERCENTILES)
    return ChannelStatistics(
        percentiles={f"{p:g}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        mean=float(mean),
        std=float(np.sqrt(variance)),
        min=float(channel.min()),
        max=float(channel.max()),
    )


def declared_modality(channel_name: str) -> str | None:
    """The modality that a channel name names (`T1w`, `ct_portal`), or None if none or several."""
    words = set(re.split(r"[^a-z0-9]+", channel_name.lower()))
    named = [m for m, synonyms in _MODALITIES.items() if words & set(synonyms.split())]
    return named[0] if len(named) == 1 else None


def other_modalities(files: Sequence[Path], modalities: Sequence[str]) -> list[str]:
    """In words, which DICOM series among a case's files were made another way than the plans say.

    Args:
        files: one for each channel, or one for all.
        modalities: of the channels, see `modality_of`.
    """
    found = []
    for path, expected in zip(files, modalities, strict=False):
        known = expected in MODALITIES.values() and is_dicom_folder(path)
        if known and (modality := modality_of_series(path)) not in (None, expected):
            found.append(f"the modality {modality} by its DICOM header ({expected})")
    return found


def looks_like_hu(statistics: ChannelStatistics) -> bool:
    """Whether intensities reach from air or lung (below -500) to bone or metal, as HU do."""
    return -32768 <= statistics.min <= -500 and 100 <= statistics.max <= 65535


def looks_windowed(statistics: Sequence[ChannelStatistics]) -> bool:
    """Whether a CT channel was windowed to [0, 255] in all cases before it came here.

    HU of whole cases are not all within these bounds: air and fat are below 0.
    """
    return bool(statistics) and all(s.min >= 0 and s.max <= 255 for s in statistics)


def modality_of(channel_name: str, statistics: Sequence[ChannelStatistics]) -> tuple[str, str]:
    """A channel's modality, and how it is known.

    A name that says nothing leads to a guess: CT if most cases look like HU, else `unknown`. MRI,
    PET and ultrasound are not told apart, since intensities do not tell and since all three are
    normalized alike.

    Args:
        channel_name: from dataset.json.
        statistics: of this channel in every case.

    Returns:
        `CT`, `MRI`, `PET`, `US` or `unknown`; a sentence that begins with declared or guessed.
    """
    if modality := declared_modality(channel_name):
        return modality, f"declared: channel_names calls it {channel_name!r}"
    alike = sum(looks_like_hu(s) for s in statistics)
    reason = (
        f"{channel_name!r} in channel_names names no modality, and {alike} of {len(statistics)} "
        f"cases reach below -500 and above 100 as CT in HU does"
    )
    return ("CT" if 2 * alike > len(statistics) else "unknown"), f"guessed: {reason}"
