"""NIfTI-1, NIfTI-2 and Analyze 7.5 files: header by nibabel, voxels checked while they are read."""

from __future__ import annotations

import gzip
import math
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError

from promptseg.io.geometry import Geometry, check_volume
from promptseg.io.nifti_place import copy_place, geometry_of

_KINDS = {348: Nifti1Header, 540: Nifti2Header}  # by the size that a header begins with
_SIZES = {
    size.to_bytes(4, order): (size, code)
    for size in _KINDS
    for order, code in (("little", "<"), ("big", ">"))
}
_EXTENSIONS = 4  # bytes behind the header that say whether extensions follow
_MAGIC = {Nifti1Header: (b"n+1", b"ni1"), Nifti2Header: (b"n+2", b"ni2")}  # one file, two files
_MOST_OF_NIFTI1 = 2**15 - 1  # voxels along an axis
_VECTOR, _MATRICES = 1007, (1004, 1005)  # `intent_code`
_RGB = {128: 3, 2304: 4}  # components within a voxel's bytes, by `datatype`
MOST_DEFLATION = 1040  # bytes per compressed byte; deflate reaches 1032
_CHUNK = 1 << 22  # bytes


def is_nifti(path: Path) -> bool:
    """Whether a file begins, once unpacked, as NIfTI or Analyze 7.5 does, whatever its name."""
    try:
        with ExitStack() as stack:
            start = opened(path, stack).read(132)
            return start[:4] in _SIZES and start[128:] != b"DICM"  # whose first bytes are free
    except (EOFError, OSError, zlib.error):
        return False


def count_nifti_channels(path: Path) -> int:
    """How many components a voxel has; for the errors see `read_nifti`."""
    return _read_header(path).components


def read_nifti(path: Path, *, channels_last: bool = False) -> tuple[np.ndarray, Geometry]:
    """Read a volume.

    NaN and infinite voxels are kept. `scl_slope` and `scl_inter` are applied as ITK does: integers
    become float32, and a slope of 0 counts as 1.

    Args:
        path: a file for which `is_nifti` holds; of two files the header.
        channels_last: a fourth dimension counts channels. By default it is refused.

    Returns:
        (c, z, y, x) array in the file's dtype; its geometry, by ITK's choice of qform or sform.

    Raises:
        ValueError: naming the file, if it is damaged, cut short, not three-dimensional, sheared
            or of a datatype that is not supported.
    """
    header = _read_header(path)
    check_volume(path, header.size, channels_last=channels_last and header.components == 1)
    geometry = geometry_of(path, header.fields, header.size[2::-1])
    array = _read_voxels(path, header)
    if header.interleaved:
        array = np.ascontiguousarray(np.moveaxis(array.reshape(*header.size[::-1], -1), -1, 0))
    else:
        # components, or the fourth dimension, come first
        array = array.reshape(-1, *geometry.shape)
        array = _scaled(array, *_scale(header.fields))
    return array, geometry


def write_nifti(path: Path, array: np.ndarray, like: Path) -> None:
    """Write a (z, y, x) array where another NIfTI file has its voxels, for every program.

    The qform, the sform, their codes and the units are that file's: a program may follow either
    form, and the two may differ.

    Raises:
        ValueError: naming the other file if it cannot be read.
    """
    fields, is_long = _read_header(like).fields, max(array.shape) > _MOST_OF_NIFTI1
    header = (Nifti2Header if is_long else Nifti1Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    copy_place(fields, header)
    (Nifti2Image if is_long else Nifti1Image)(array.T, None, header).to_filename(path)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What is needed of a header to read the voxels.

    Attributes:
        fields: as nibabel has them, with neutral ones where Analyze 7.5 has others.
        size: voxels, x first; trailing axes of one voxel left out beyond the third.
        components: channels of a voxel.
        interleaved: whether a voxel's components follow one another (RGB), not volumes.
        dtype: of a component, in the file's byte order.
        offset: bytes before the first voxel.
        data: file with the voxels.
    """

    fields: Nifti1Header
    size: tuple[int, ...]
    components: int
    interleaved: bool
    dtype: np.dtype
    offset: int
    data: Path


def _read_header(path: Path) -> _Header:
    with ExitStack() as stack:
        try:
            block = opened(path, stack).read(max(_KINDS))
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path, error) from error
    length, endianness = _SIZES[block[:4]]
    if len(block) < length:
        raise ValueError(f"{path} is cut short: it holds {len(block)} bytes, less than a header")
    fields = _KINDS[length](block[:length], endianness=endianness, check=False)
    magic, (of_one, of_two) = bytes(fields["magic"])[:3], _MAGIC[type(fields)]
    if magic not in (of_one, of_two):
        if isinstance(fields, Nifti2Header):
            raise damaged(path, f"its header says {magic!r}")
        # Analyze 7.5
        fields["qform_code"] = fields["sform_code"] = fields["intent_code"] = 0
        fields["scl_slope"], fields["scl_inter"] = 1, 0
        fields["xyzt_units"] = 0
    size, components = _size(path, fields)
    interleaved = int(fields["datatype"]) in _RGB
    return _Header(
        fields=fields,
        size=size,
        components=_RGB.get(int(fields["datatype"]), components),
        interleaved=interleaved,
        dtype=np.dtype(np.uint8) if interleaved else _dtype(path, fields),
        offset=_offset(path, fields, length + _EXTENSIONS if magic == of_one else 0),
        data=path if magic == of_one else _voxel_file(path),
    )


def _size(path: Path, fields: Nifti1Header) -> tuple[tuple[int, ...], int]:
    """Voxels along each axis, x first, and components."""
    dim = fields["dim"].tolist()
    if not 1 <= dim[0] <= 7 or dim[1] < 1:
        raise ValueError(f"{path} is damaged: its header has the dimensions {dim}; copy it again")
    if int(fields["intent_code"]) in _MATRICES:
        raise ValueError(f"{path}: voxels are matrices; expected numbers or vectors")
    size = [max(n, 1) for n in dim[1 : dim[0] + 1]]
    is_vector = int(fields["intent_code"]) == _VECTOR
    components = size.pop(4) if is_vector and len(size) > 4 else 1
    while len(size) > (1 if is_vector else 3) and size[-1] == 1:
        size.pop()
    return tuple(size), components


def _dtype(path: Path, fields: Nifti1Header) -> np.dtype:
    try:
        dtype = fields.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ValueError(f"{path}: voxels of an unknown datatype, {fields['datatype']}") from error
    if dtype.kind == "c":
        raise ValueError(f"{path}: voxels are complex numbers; save their magnitude")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{path}: voxels of type {dtype} are not supported; save them as float64")
    return dtype


def _offset(path: Path, fields: Nifti1Header, lowest: int) -> int:
    offset = float(fields["vox_offset"])
    if not lowest <= offset < 2**31:  # NaN too
        raise ValueError(
            f"{path} is damaged: by its header the voxels begin at byte {offset:g}, expected "
            f"{lowest} or more; write it again"
        )
    return int(offset)


def _voxel_file(path: Path) -> Path:
    """The second file of a pair."""
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    for ending in (".img", ".IMG", ".img.gz"):
        if (data := stem.with_suffix(ending)).is_file():
            return data
    raise ValueError(
        f"{path}: a header whose voxels are missing; expected {stem.stem}.img beside it"
    )


def _scale(fields: Nifti1Header) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    return slope if math.isfinite(slope) and slope else 1.0, inter if math.isfinite(inter) else 0.0


def _scaled(array: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """`array * slope + inter`, in float64 and a piece at a time; integers become float32."""
    if slope == 1 and inter == 0:
        return array
    result = array.astype(np.float32 if array.dtype.kind in "iu" else array.dtype, copy=False)
    flat = result.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            part[:] = part.astype(np.float64) * slope + inter
    return result


def _read_voxels(path: Path, header: _Header) -> np.ndarray:
    """All components of all voxels in file order, in the machine's byte order."""
    count = math.prod(header.size) * header.components
    promised = header.offset + count * header.dtype.itemsize
    try:
        with ExitStack() as stack:
            stream = opened(header.data, stack)
            packed = isinstance(stream, gzip.GzipFile)
            stored = header.data.stat().st_size
            if promised > stored * (MOST_DEFLATION if packed else 1):  # before allocating
                raise _cut_short(path, promised, f"{stored}{' compressed' if packed else ''}")
            stream.seek(header.offset)
            array = np.empty(count, header.dtype)
            view, filled = memoryview(array.view(np.uint8)), 0
            while filled < len(view):
                read = stream.readinto(view[filled : filled + _CHUNK])
                if not read:
                    raise _cut_short(path, promised, header.offset + filled)
                filled += read
            while packed and stream.read(_CHUNK):  # its checksum is at the end
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, error) from error
    if not header.dtype.isnative:
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return array


def _cut_short(path: Path, promised: int, found: int | str) -> ValueError:
    return ValueError(
        f"{path} is cut short: its header promises {promised} bytes, the file holds {found}; "
        f"copy it again"
    )


def damaged(path: Path, error: Exception | str) -> ValueError:
    """The error of a file that cannot be read for a reason."""
    return ValueError(f"{path} is damaged or cut short ({error}); copy it again")


def opened(path: Path, stack: ExitStack) -> BinaryIO:
    """A file, unpacked where its content is gzip's."""
    file = stack.enter_context(open(path, "rb"))
    if file.peek(2)[:2] == b"\x1f\x8b":
        return stack.enter_context(gzip.GzipFile(fileobj=file))
    return file
