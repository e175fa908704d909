"""Arrays and plain Python values of an .npz file, read so that nothing in the file can run code."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MOST_BYTES = 4 << 30  # uncompressed, of all arrays that are read; 1000 slices of 2048x2048 uint8
_MOST_OBJECT_BYTES = 16 << 20  # of one pickled array: prompts of thousands of structures
_MOST_VALUES = 250_000  # in one pickled array, so that few bytes do not unfold to many
_MOST_DEPTH = 32
_PLAIN = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,5}")  # types whose bytes are their value
_DAMAGED = (  # what zipfile raises when an archive is not whole
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError),
    *(OverflowError, UnicodeDecodeError),
)
_NUMPY = {  # what numpy 1.x and 2.x call what pickled arrays and scalars are made of
    f"numpy.{core}.multiarray.{name}": name
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype"}


def read_npz(path: Path | str, keys: Sequence[str], most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read those of `keys` that an .npz file has; its other arrays are not looked at.

    Arrays of numbers and text come as they are. Object arrays, which numpy pickles, come as nested
    lists of what they may hold: dict, list, str, numbers, None and such arrays; an object array
    without axes comes as its one value.

    Args:
        path: the file.
        keys: names of the wanted arrays.
        most_bytes: the wanted arrays may take together, uncompressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and array, if it is no .npz file, damaged, larger than
            `most_bytes`, or if a pickled array holds anything else than the above.

    Source:
        The format: numpy.lib.format. A pickle's opcodes build a tree in which numpy's functions
        are only noted, and `_Values` makes arrays and numbers of it; so neither a pickle nor the
        state it has for numpy's own types (which numpy trusts) is ever executed.
    """
    with _archive(path) as archive:
        members = _members(archive, path)
        wanted = [key for key in keys if key in members]
        size = sum(members[key].file_size for key in wanted)
        if size > most_bytes:
            raise ValueError(
                f"{path}: {', '.join(wanted)} would take {size} bytes uncompressed, more than "
                f"the limit of {most_bytes}; the file is damaged or made to fill the memory"
            )
        return {key: _read_member(archive, members[key], f"{path}: {key}") for key in wanted}


def npz_keys(path: Path | str) -> list[str]:
    """Names of the arrays in an .npz file, none of them read; for the errors see `read_npz`."""
    with _archive(path) as archive:
        return list(_members(archive, path))


@contextmanager
def _archive(path: Path | str) -> Iterator[zipfile.ZipFile]:
    """The open file; what zipfile raises of damaged ones becomes a sentence that names it."""
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
                f"{path} cannot be read as .npz: {error}; it is of another format, damaged or cut "
                f"short; copy it again"
            ) from error


def _members(archive: zipfile.ZipFile, path: Path | str) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by array name, each a plain name that is there once."""
    names = Counter(archive.namelist())
    for name, count in names.items():
        if not name.endswith(".npy") or set(name) & set("/\\:\0") or name.startswith("."):
            raise ValueError(f"{path}: expected arrays (NAME.npy) only, found {name!r} in it")
        if count > 1:
            raise ValueError(f"{path}: {name!r} is in it {count} times; expected once")
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
            return _unpickled(file.read(), where)
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
        raise ValueError(f"{where}: it is no array: {error}") from error
    if dtype.str != "|O" and not _PLAIN.fullmatch(_code(dtype)):
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


def _unpickled(data: bytes, where: str) -> Any:
    """The plain values of a pickled array."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise ValueError("a memo larger than the data")  # it would be allocated
        tree = _TreeBuilder(io.BytesIO(data), fix_imports=False).load()
        return _Values().of(tree)
    except _RefusedError as error:
        raise ValueError(
            f"{where}: pickled data with {error}; only dict, list, str, numbers and arrays of "
            f"them are read. The file may have been made to run code: do not open it with "
            f"numpy.load(..., allow_pickle=True)"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(
            f"{where}: pickled data that cannot be read ({type(error).__name__}: {error})"
        ) from error


class _RefusedError(Exception):
    """Something in a pickle that is no plain value; the message names it."""


class _Noted:
    """One of numpy's functions or types in a pickle, with its arguments and state; calls nothing.

    `arguments` is None as long as it was not called, `state` as long as none was set.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple | None = None) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> _Noted:
        if self.arguments is not None:
            raise _RefusedError(f"a call of what numpy's {self.name} returned")
        return _Noted(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        if self.arguments is None:
            raise _RefusedError(f"a change of numpy's {self.name}")
        self.state = state


class _TreeBuilder(pickle.Unpickler):
    """Builds plain values and `_Noted`s, and knows no other class or function."""

    def find_class(self, module: str, name: str) -> _Noted:
        found = f"{module}.{name}"
        if found not in _NUMPY:
            raise _RefusedError(found)
        return _Noted(_NUMPY[found])

    def persistent_load(self, pid: Any) -> None:
        raise _RefusedError("a persistent id")


class _Values:
    """Plain values of a tree, each visited value counted, as small pickles can unfold far."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: Any, depth: int = 0) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES or depth > _MOST_DEPTH:
            raise _RefusedError(f"more than {_MOST_VALUES} values or {_MOST_DEPTH} levels")
        kind = type(node)
        if node is None or kind in (bool, int, float, str):
            return node
        if kind in (list, tuple):
            return [self.of(item, depth + 1) for item in node]
        if kind is dict:
            if odd := {type(key).__name__ for key in node} - {"str", "int"}:
                raise _RefusedError(f"keys of type {', '.join(sorted(odd))}")
            return {key: self.of(value, depth + 1) for key, value in node.items()}
        if kind is _Noted and node.arguments is not None:
            if node.name == "scalar":
                return self._scalar(*node.arguments)
            if node.name == "_reconstruct":
                return self._array(node, depth)
        raise _RefusedError(f"numpy's {node.name}" if kind is _Noted else kind.__name__)

    def _scalar(self, dtype: Any, data: Any = None) -> Any:
        dtype = _dtype(dtype)
        if dtype.hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
            raise _RefusedError(f"a {dtype} scalar of {type(data).__name__}")
        return np.frombuffer(data, dtype, count=1)[0].item()

    def _array(self, node: _Noted, depth: int) -> Any:
        """An object array as nested lists, one of numbers as an array."""
        if type(node.state) is not tuple or len(node.state) != 5:
            raise _RefusedError("an array without its state")
        _, shape, dtype, fortran, data = node.state
        dtype = _dtype(dtype)
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise _RefusedError(f"an array of shape {shape!r}"[:100])
        if not dtype.hasobject:
            if type(data) is not bytes or len(data) != math.prod(shape) * dtype.itemsize:
                raise _RefusedError("an array whose bytes do not fit its shape")
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        if type(data) is not list or len(data) != math.prod(shape):
            raise _RefusedError("an array whose values do not fit its shape")
        return _nested([self.of(item, depth + 1) for item in data], shape)


def _nested(values: list, shape: tuple[int, ...]) -> Any:
    """Values in C order as lists in lists; the one value itself when there is no axis."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    step = math.prod(shape[1:])
    return [_nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _dtype(node: Any) -> np.dtype:
    """The number type that a noted numpy.dtype stands for."""
    if type(node) is not _Noted or node.name != "dtype" or not node.arguments:
        raise _RefusedError("a type that is no numpy.dtype")
    code, state = node.arguments[0], node.state
    if type(code) is not str or not (_PLAIN.fullmatch(code) or code in ("O", "O8")):
        raise _RefusedError(f"values of type {code!r}"[:100])
    order = state[1] if type(state) is tuple and len(state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise _RefusedError(f"byte order {order!r}"[:100])
    return np.dtype(object) if code[0] == "O" else np.dtype(f"{order}{code}")
