"""Probabilities of labels, kept for the regions that were looked at, and their file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from torch import Tensor

from promptseg.files import replacing
from promptseg.npz_reading import read_npz

MOST_BYTES = 2**36  # that a file may unpack to


def probabilities_file(output: Path, case_id: str) -> Path:
    """Where a case's probabilities go: apart from the segmentations, which may be `.npz` too."""
    return output / "probabilities" / f"{case_id}.npz"


class RegionProbabilities:
    """What the network gives each label, in the regions where it was looked for.

    Labels are independent: where they overlap, their probabilities may sum to more than 1. With
    several objects of a label a voxel has the largest of theirs.
    """

    def __init__(self) -> None:
        self._slabs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, label: str, logits: Tensor, lower: Sequence[int]) -> None:
        """Enter (z, y, x) raw-grid logits that begin at a voxel, zyx."""
        if logits.numel():
            values = logits.float().sigmoid().half().numpy()
            self._slabs.setdefault(label, []).append((np.asarray(lower), values))

    def region(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """First voxel (3,), zyx, and (z, y, x) float16 probabilities; empty if never looked for."""
        slabs = self._slabs.get(label, [])
        if not slabs:
            return np.zeros(3, int), np.zeros((0, 0, 0), np.float16)
        lower = np.min([start for start, _ in slabs], axis=0)
        upper = np.max([start + values.shape for start, values in slabs], axis=0)
        region = np.zeros(upper - lower, np.float16)
        for start, values in slabs:
            first = start - lower
            here = tuple(slice(a, a + n) for a, n in zip(first, values.shape, strict=True))
            np.maximum(region[here], values, out=region[here])
        return lower, region

    def forget(self, label: str) -> None:
        """Free what is kept of a label."""
        self._slabs.pop(label, None)


def write_probabilities(
    path: Path, probabilities: RegionProbabilities, labels: Sequence[str], shape: Sequence[int]
) -> None:
    """Write an npz: `shape`, `labels`, and for label number i `lower_i` and `probabilities_i`.

    One label's region is put together at a time, and the label forgotten once it is written.

    Args:
        path: ends in `.npz`.
        probabilities: of one image; empty when the file is there.
        labels: those asked for.
        shape: of the image, voxels, zyx.
    """
    with replacing(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        _add(archive, "shape", np.array(shape, np.int64))
        _add(archive, "labels", np.array(labels, str))
        for number, label in enumerate(labels):
            lower, region = probabilities.region(label)
            probabilities.forget(label)
            _add(archive, f"lower_{number}", np.asarray(lower, np.int64))
            _add(archive, f"probabilities_{number}", region)


def _add(archive: ZipFile, name: str, array: np.ndarray) -> None:
    """Add an array to an npz file, as `np.savez_compressed` does."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def read_probabilities(path: Path | str) -> dict[str, np.ndarray]:
    """Read (z, y, x) float16 probabilities of each label on the image's grid, 0 where not looked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or something else.
    """
    try:
        head = read_npz(path, ("shape", "labels"))
        shape, labels = head["shape"].astype(int), head["labels"].astype(str).tolist()
        names = [f"{kind}_{i}" for i in range(len(labels)) for kind in ("lower", "probabilities")]
        arrays = read_npz(path, names, MOST_BYTES)
        regions = [(arrays[f"lower_{i}"], arrays[f"probabilities_{i}"]) for i in range(len(labels))]
        return {label: _full(*of, shape) for label, of in zip(labels, regions, strict=True)}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path}: no probabilities as promptseg_predict --save_probabilities writes them: "
            f"{reason}"
        ) from error


def _full(lower: np.ndarray, region: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A region's values on the grid of the whole image."""
    upper = lower + region.shape
    if not ((lower >= 0) & (upper <= shape)).all():
        raise ValueError(
            f"the region from {lower.tolist()} to {upper.tolist()} leaves the image of shape "
            f"{shape.tolist()} (zyx)"
        )
    full = np.zeros(shape, np.float16)
    full[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = region
    return full
