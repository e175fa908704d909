"""Arrays and plain Python values of an .npz file, read without running any code from it."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from promptseg.io.plain_pickle import PLAIN_TYPES, plain_values

MOST_BYTES = 4 << 30  # uncompressed, of all arrays that are read; 1000 slices of 2048x2048 uint8
_MOST_OBJECT_BYTES = 16 << 20  # of one pickled array: prompts of thousands of structures
_DAMAGED = (  # what zipfile raises for a damaged archive
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError),
    *(OverflowError, UnicodeDecodeError),
)


def read_npz(path: Path | str, keys: Sequence[str], most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read those of `keys` that an .npz file has; its other arrays are not opened.

    Arrays of numbers and text are returned unchanged. Object arrays, which numpy pickles, become
    nested lists of what they may hold: dict, list, str, numbers, None and arrays; an object array
    without axes becomes its one value.

    Args:
        path: the file.
        keys: names of the wanted arrays.
        most_bytes: limit of the wanted arrays together, uncompressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and array, if it is not an .npz file, is damaged or larger than
            `most_bytes`, or if a pickled array holds anything other than the above.

    Source:
        The format: numpy.lib.format.
    """
    with _archive(path) as archive:
        members = _members(archive, path)
        wanted = [key for key in keys if key in members]
        size = sum(members[key].file_size for key in wanted)
        if size > most_bytes:
            raise ValueError(
                f"{path}: {', '.join(wanted)} would take {size} bytes uncompressed, more than "
                f"the limit of {most_bytes}; the file is damaged or was made to fill the memory"
            )
        return {key: _read_member(archive, members[key], f"{path}: {key}") for key in wanted}


def npz_keys(path: Path | str) -> list[str]:
    """Names of the arrays in an .npz file, without reading them; for the errors see `read_npz`."""
    with _archive(path) as archive:
        return list(_members(archive, path))


@contextmanager
def _archive(path: Path | str) -> Iterator[zipfile.ZipFile]:
    """The open file; zipfile's errors for damaged ones become a sentence that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy it again")
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except _DAMAGED as error:
            raise ValueError(
                f"{path} cannot be read as .npz: {error}; it has another format, is damaged or cut "
                f"short; copy it again"
            ) from error


def _members(archive: zipfile.ZipFile, path: Path | str) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by array name: plain names without duplicates."""
    names = Counter(archive.namelist())
    for name, count in names.items():
        if not name.endswith(".npy") or set(name) & set("/\\:\0") or name.startswith("."):
            raise ValueError(f"{path}: expected arrays (NAME.npy) only, found {name!r} in it")
        if count > 1:
            raise ValueError(f"{path}: duplicate array {name!r}, found {count} times")
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Any:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{where}: it is encrypted or packed as numpy.savez does not")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, where)
        left = info.file_size - file.tell()
        if dtype.hasobject:
            if left > _MOST_OBJECT_BYTES:
                raise ValueError(
                    f"{where}: pickled data of {left} bytes, more than the limit of "
                    f"{_MOST_OBJECT_BYTES}"
                )
            return plain_values(file.read(), where)
        if math.prod(shape) * dtype.itemsize != left:
            raise ValueError(
                f"{where}: its header says shape {shape} of {dtype}, which is "
                f"{math.prod(shape) * dtype.itemsize} bytes, but there are {left}; it is damaged"
            )
        array = np.empty(math.prod(shape), dtype)
        _fill(file, memoryview(array.view(np.uint8)) if left else memoryview(b""), where)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"format version {version} is not known")
        shape, fortran, dtype = readers[version](file)
    except _DAMAGED:
        raise
    except Exception as error:  # numpy parses the text as Python, which can fail in many ways
        raise ValueError(f"{where}: it is not an array: {error}") from error
    if dtype.str != "|O" and not PLAIN_TYPES.fullmatch(_code(dtype)):
        raise ValueError(f"{where}: expected numbers or text, found values of type {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"{where}: its header says shape {shape}; it is damaged")
    return shape, fortran, dtype


def _code(dtype: np.dtype) -> str:
    return dtype.str[1:] if dtype.names is None and dtype.subdtype is None else "structured"


def _fill(file: BinaryIO, buffer: memoryview, where: str) -> None:
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled : filled + (1 << 24)])
        if not count:
            raise ValueError(f"{where}: {filled} of {len(buffer)} bytes; the file is cut short")
        filled += count
    file.read(1)  # reaching the end compares the checksum
