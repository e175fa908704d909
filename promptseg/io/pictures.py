"""TIFF stacks and PNG and BMP pictures as nnU-Net takes them; their spacing is in a JSON beside."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from promptseg.files import read_json, replacing, write_json
from promptseg.io.geometry import Geometry, check_volume
from promptseg.io.nifti import damaged

TIFF_ENDINGS = (".tif", ".tiff")
FLAT_ENDINGS = (".png", ".bmp")
PICTURE_ENDINGS = (*TIFF_ENDINGS, *FLAT_ENDINGS)
_CHANNEL = re.compile(r"_\d{4}$")  # of CASE_0000.tif, whose spacing is in CASE.json
_BIG = 43  # in the third byte of TIFF files whose numbers have eight bytes

_log = logging.getLogger(__name__)


def read_picture(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a volume or a single slice, which has depth 1.

    Returns:
        (c, z, y, x) array, colours as channels, and its geometry: the spacing of `{"spacing":
        [z, y, x]}` in CASE.json beside it, else 1 mm.

    Raises:
        ValueError: naming the file, if it is damaged or cut short, has several points in time or
            pages of several sizes, or its spacing is not three positive numbers.

    Source:
        nnU-Net v2, Tiff3DIO and NaturalImage2DIO. Differs: a picture without a JSON has voxels of
        1 mm, where nnU-Net gives it slices of 999 mm.
    """
    array, axes = _read_tiff(path) if _is_tiff(path) else _read_flat(path)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: voxels of type {array.dtype}; expected numbers")
    array = _channels_first(path, array, axes)
    check_volume(path, array.shape[:0:-1])
    return array, Geometry(shape=array.shape[1:], spacing=_spacing(path, array.shape[1]))


def write_picture(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (z, y, x) labels, as uint8 or uint16, and for TIFF their spacing beside them.

    Raises:
        ValueError: for other values, or several slices in a format that has one.
    """
    path = Path(path)
    if array.dtype.kind not in "biu" or array.min() < 0 or array.max() >= 2**16:
        raise ValueError(f"{path}: expected labels from 0 to 65535, which is all that it can hold")
    array = array.astype(np.uint8 if array.max() < 2**8 else np.uint16)
    if _is_tiff(path):
        with replacing(path) as temporary:
            tifffile.imwrite(temporary, array, compression="zlib", photometric="minisblack")
        write_json(path.with_suffix(".json"), {"spacing": list(geometry.spacing)})
        return
    if len(array) != 1:
        raise ValueError(f"{path}: holds one slice, found {len(array)}; write .tif or .nii.gz")
    if array.dtype != np.uint8 and path.suffix.lower() == ".bmp":
        raise ValueError(f"{path}: holds labels up to 255, found {array.max()}; write .png")
    from skimage.io import imsave

    with replacing(path) as temporary:
        imsave(temporary, array[0], check_contrast=False)


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in TIFF_ENDINGS


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors of libraries, which raise many kinds for damaged files, name the file."""
    try:
        yield
    except Exception as error:
        raise damaged(path, error) from error


def _read_tiff(path: Path) -> tuple[np.ndarray, str]:
    """The voxels, and a letter for each axis."""
    with _errors_name(path):
        _check_pages(path)
        with tifffile.TiffFile(path) as file:
            count, first = len(file.series), file.series[0]
            array, axes = first.asarray(), first.axes
    if count != 1:
        raise ValueError(f"{path}: its pages make {count} images; write each to a file of its own")
    return array, axes


def _check_pages(path: Path) -> None:
    """Raise if the list of pages leads out of the file; tifffile takes it to end there."""
    with open(path, "rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        is_big = struct.unpack(f"{order}H", start[2:4])[0] == _BIG
        count, entry, pointer = ("Q", 20, "Q") if is_big else ("H", 12, "I")
        sizes = struct.calcsize(f"{order}{count}"), struct.calcsize(f"{order}{pointer}")
        at = struct.unpack_from(f"{order}{pointer}", start, 8 if is_big else 4)[0]
        seen = set()
        while at and at not in seen:
            seen.add(at)
            file.seek(at)
            entries = struct.unpack(f"{order}{count}", file.read(sizes[0]))[0]
            file.seek(entries * entry, 1)
            at = struct.unpack(f"{order}{pointer}", file.read(sizes[1]))[0]


def _read_flat(path: Path) -> tuple[np.ndarray, str]:
    from skimage.io import imread

    with _errors_name(path):
        array = imread(path)
    return array, "YXS" if array.ndim == 3 else "YX"


def _channels_first(path: Path, array: np.ndarray, axes: str) -> np.ndarray:
    """Axes of any order as (c, z, y, x); those of length 1 are left out."""
    kept = [place for place, axis in enumerate(axes) if axis in "YX" or array.shape[place] > 1]
    channels = [place for place in kept if axes[place] in "CS"]
    depth = [place for place in kept if axes[place] not in "CSTYX"]
    if len(channels) > 1 or len(depth) > 1 or len(kept) - len(channels) - len(depth) != 2:
        raise ValueError(
            f"{path}: expected slices and channels, found {array.shape} with the axes {axes}; "
            f"write each time point to a file of its own"
        )
    order = [*channels, *depth, axes.index("Y"), axes.index("X")]
    shape = [array.shape[place] for place in order]
    of_one = [place for place in range(array.ndim) if place not in order]
    dtype = {"b": np.dtype(np.uint8)}.get(array.dtype.kind, array.dtype.newbyteorder("="))
    array = array.transpose(*of_one, *order).astype(dtype, order="C")
    return array.reshape(shape[0] if channels else 1, shape[-3] if depth else 1, *shape[-2:])


def _spacing(path: Path, depth: int) -> tuple[float, float, float]:
    """mm, z, y, x, of the JSON beside a file."""
    stem = path.with_suffix("").name
    names = dict.fromkeys((f"{stem}.json", f"{_CHANNEL.sub('', stem)}.json"))
    beside = next((p for p in map(path.with_name, names) if p.is_file()), None)
    if beside is None:
        if depth > 1:
            _log.warning("%s: no %s beside it; voxels are taken as 1 mm", path, " or ".join(names))
        return 1.0, 1.0, 1.0
    content: Any = read_json(beside)
    values = content.get("spacing") if isinstance(content, dict) else None
    is_right = isinstance(values, list) and len(values) == 3
    if not is_right or not all(isinstance(v, int | float) and 0 < v < np.inf for v in values):
        raise ValueError(f'{beside}: expected {{"spacing": [z, y, x]}} in mm, found {content!r}')
    return tuple(map(float, values))
