"""Plain Python values of a pickled numpy array, read without running any code from it."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np

PLAIN_TYPES = re.compile(r"b1|[iu][1248]|f[248]|U[1-9]\d{0,4}")  # whose bytes are their value
_MOST_VALUES = 250_000  # so that few bytes do not unfold to many
_MOST_DEPTH = 32
_NUMPY = {  # what numpy 1.x and 2.x call what pickled arrays and scalars are made of
    f"numpy.{core}.multiarray.{name}": name
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype"}


def plain_values(data: bytes, where: str) -> Any:
    """The values of a pickled object array, as nested lists.

    Args:
        data: the pickle.
        where: file and array, named in errors.

    Raises:
        ValueError: if it is damaged or holds anything other than plain values.

    Source:
        Our own. The opcodes build a tree in which numpy's functions are only noted, and `_Values`
        makes arrays and numbers of it; so neither a pickle nor the state it holds for numpy's types
        is ever applied. numpy trusts that state: documentation/decisions/0010-readers.md.
    """
    try:
        _check_opcodes(data)
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
    """Something in a pickle that is not a plain value; the message names it."""


def _check_opcodes(data: bytes) -> None:
    """Refuse what would do harm while the tree is built: huge memos and deep tuples.

    A key is hashed before it can be inspected, and hashing deeply nested tuples overflows the C
    stack. So the opcodes are first run with the depth of tuples in place of values; None is a
    mark.

    Raises:
        _RefusedError: for deep tuples.
        ValueError, LookupError, TypeError: if the pickle is damaged.
    """
    stack: list[int | None] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if name == "MEMOIZE" else argument
            if index > len(data):
                raise ValueError("a memo larger than the data")  # it would be allocated
            memo[index] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            before, after = opcode.stack_before, opcode.stack_after
            popped = []
            if pickletools.markobject in before:
                while (value := stack.pop()) is not None:
                    popped.append(value)
                before = before[: before.index(pickletools.markobject)]
            popped += [stack.pop() for _ in before]
            depth = 1 + max(popped, default=0) if "TUPLE" in name else 0  # a mark is a TypeError
            if depth > _MOST_DEPTH:
                raise _RefusedError(f"more than {_MOST_DEPTH} levels")
            stack += [None if item is pickletools.markobject else depth for item in after]


class _Noted:
    """One of numpy's functions or types in a pickle, with its arguments and state; calls nothing.

    `arguments` is None until it is called, `state` until one is set.
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
    """Builds plain values and `_Noted`s; every other class or function is refused."""

    def find_class(self, module: str, name: str) -> _Noted:
        found = f"{module}.{name}"
        if found not in _NUMPY:
            raise _RefusedError(found)
        return _Noted(_NUMPY[found])

    def persistent_load(self, pid: Any) -> None:
        raise _RefusedError("a persistent id")


class _Values:
    """Plain values of a tree; each visited value is counted, as few bytes can unfold to many."""

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
    """Values in C order as lists in lists; the value itself if there are no axes."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    step = math.prod(shape[1:])
    return [_nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _dtype(node: Any) -> np.dtype:
    """The dtype that a noted numpy.dtype stands for."""
    if type(node) is not _Noted or node.name != "dtype" or not node.arguments:
        raise _RefusedError("a type that is not a numpy.dtype")
    code, state = node.arguments[0], node.state
    if type(code) is not str or not (PLAIN_TYPES.fullmatch(code) or code in ("O", "O8")):
        raise _RefusedError(f"values of type {code!r}"[:100])
    order = state[1] if type(state) is tuple and len(state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise _RefusedError(f"byte order {order!r}"[:100])
    return np.dtype(object) if code[0] == "O" else np.dtype(f"{order}{code}")
