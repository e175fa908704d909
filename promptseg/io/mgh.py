"""FreeSurfer's MGH files, packed (`.mgz`) or not (`.mgh`), by nibabel."""

from __future__ import annotations

import gzip
import math
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHError, MGHImage
from nibabel.spatialimages import HeaderDataError

from promptseg.io.geometry import Geometry, check_volume
from promptseg.io.nifti import MOST_DEFLATION, damaged, opened

MGH_ENDINGS = (".mgz", ".mgh")
_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # FreeSurfer's world is RAS
_ROUNDING = 1e-3  # between axes that count as perpendicular
_HEADER_BYTES = 284


def read_mgh(path: Path, *, channels_last: bool = False) -> tuple[np.ndarray, Geometry]:
    """Read a volume.

    Args:
        path: the file.
        channels_last: frames count as channels. By default several are refused.

    Returns:
        (c, z, y, x) array in the file's dtype and the machine's byte order; its geometry.

    Raises:
        ValueError: naming the file, if it is damaged, cut short, has several frames or axes that
            are not perpendicular.
    """
    try:
        with ExitStack() as stack:
            stream = opened(path, stack)
            image = MGHImage.from_file_map({"image": FileHolder(fileobj=stream)})
            dims = [int(n) for n in image.header["dims"]]
            size = dims if dims[3] != 1 else dims[:3]
            if min(dims) < 1:
                raise damaged(path, f"its header has the dimensions {dims}")
            promised = _HEADER_BYTES + math.prod(dims) * image.get_data_dtype().itemsize
            is_packed = isinstance(stream, gzip.GzipFile)
            most = MOST_DEFLATION if is_packed else 1
            if promised > path.stat().st_size * most:  # before allocating
                raise damaged(path, f"its header promises {promised} bytes")
            check_volume(path, size, channels_last=channels_last)
            voxels = np.asarray(image.dataobj)
            while is_packed and stream.read(2**20):  # its checksum is at the end
                pass
    except (EOFError, OSError, zlib.error, HeaderDataError, MGHError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    array = np.ascontiguousarray(voxels.reshape(*dims[:3], -1).T)
    return array, _geometry(path, image.affine, array.shape[1:])


def _geometry(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> Geometry:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / np.where(spacing > 0, spacing, 1)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=_ROUNDING):  # also for NaN
        raise ValueError(
            f"{path}: its axes are not perpendicular, or of no length; resample it to a "
            f"rectangular grid"
        )
    return Geometry(
        shape=shape,
        spacing=tuple(float(v) for v in spacing[::-1]),
        origin=tuple(float(v) for v in _TO_LPS @ affine[:3, 3] + 0.0),  # no -0
        direction=tuple(float(v) for v in (_TO_LPS @ axes).ravel() + 0.0),
    )
