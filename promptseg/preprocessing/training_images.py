"""What the images of the training are like, and whether another image is like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptseg.preprocessing.modality import ChannelStatistics, channel_statistics

_LOOKED_AT = ("0.5", "50", "99.5")  # percentiles
_BEYOND = 0.25  # of the range of all intensities that a percentile may lie beyond the training's
_CONTRAST = 4.0  # times less or more than in any training image, where intensities are absolute
_LENGTH = 3.0  # times less or more: voxels and fields of view
_VOXELS = 500_000  # of an image, evenly spread, that are looked at


def describe(
    channels: Sequence[Sequence[ChannelStatistics]],
    spacings: np.ndarray,
    shapes: np.ndarray,
    absolute: Sequence[bool],
) -> dict[str, Any]:
    """The ranges over training images, as the plans have them.

    Args:
        channels: for each channel the statistics of all images.
        spacings, shapes: (images, 3) mm and voxels, zyx.
        absolute: for each channel, whether its intensities mean the same in every image, as HU do.
    """

    def reach(values: Any) -> list[Any]:
        return [np.min(values, axis=0).tolist(), np.max(values, axis=0).tolist()]

    return {
        "channels": [
            {
                "absolute": bool(is_absolute),
                "percentiles": {
                    name: reach([s.percentiles[name] for s in of_channel]) for name in _LOOKED_AT
                },
                "contrast": reach([_contrast(s) for s in of_channel]),
                "below_0": reach([_is_below_0(s) for s in of_channel]),
            }
            for of_channel, is_absolute in zip(channels, absolute, strict=True)
        ],
        "spacing": reach(spacings),
        "extent_mm": reach(spacings * shapes),
    }


def differences(
    image: np.ndarray, spacing: Sequence[float], training: Mapping[str, Any]
) -> list[str]:
    """In words, in what an image is not like those of the training; empty if it is.

    Args:
        image: (c, z, y, x) raw intensities, in the plans' orientation.
        spacing: mm, zyx.
        training: of `describe`; empty where nothing is known.
    """
    if not training:
        return []
    step = max(1, round((image[0].size / _VOXELS) ** (1 / 3)))
    few = image[:, ::step, ::step, ::step]
    found = []
    for number, (channel, seen) in enumerate(zip(few, training["channels"], strict=True)):
        where = f" of channel {number}" if len(few) > 1 else ""
        found += [f"{text}{where}" for text in _of_channel(channel_statistics(channel), seen)]
    extent = np.multiply(image.shape[1:], spacing)
    for name, values in (("spacing", spacing), ("extent_mm", extent)):
        lowest, highest = training[name]
        for axis, value, low, high in zip("zyx", values, lowest, highest, strict=True):
            if not low / _LENGTH <= value <= high * _LENGTH:
                what = "voxels of" if name == "spacing" else "a field of view of"
                found.append(f"{what} {value:.3g} mm along {axis} ({low:.3g} to {high:.3g})")
    return found


def _of_channel(statistics: ChannelStatistics, seen: Mapping[str, Any]) -> list[str]:
    if statistics.min == statistics.max:
        return [f"the value {statistics.min:g} everywhere"]
    never, always = not seen["below_0"][1], bool(seen["below_0"][0])
    if never and _is_below_0(statistics):
        return ["values below 0 (none)"]
    if always and statistics.min >= 0:
        return ["no value below 0 (5 % or more)"]
    if not seen["absolute"]:
        return []
    low, high = seen["contrast"]
    if not low / _CONTRAST <= (contrast := _contrast(statistics)) <= high * _CONTRAST:
        return [f"values that span {contrast:.4g} ({low:.4g} to {high:.4g})"]
    room = _BEYOND * (seen["percentiles"]["99.5"][1] - seen["percentiles"]["0.5"][0])
    found = []
    for name, (low, high) in seen["percentiles"].items():
        if not low - room <= (value := statistics.percentiles[name]) <= high + room:
            what = "a median" if name == "50" else f"a percentile {name}"
            found.append(f"{what} of {value:.4g} ({low:.4g} to {high:.4g})")
    return found


def _contrast(statistics: ChannelStatistics) -> float:
    return statistics.percentiles["99.5"] - statistics.percentiles["0.5"]


def _is_below_0(statistics: ChannelStatistics) -> bool:
    """Whether that is more than a few odd voxels, such as interpolation leaves."""
    return statistics.percentiles["5"] < 0
