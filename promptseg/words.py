"""How names, numbers and values are written in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def some(names: Iterable[Any], *, quoted: bool = False, most: int = 10) -> str:
    """Up to `most` of the names: `a, b`, or `a, b and 3 more`; `nothing` if there are none."""
    names = list(names)
    shown = ", ".join((repr if quoted else str)(name) for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def short(value: Any, most: int = 200) -> str:
    """The `repr` of a value, cut after `most` characters and then ending in `...`."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def rounded(values: Iterable[float], digits: int = 6) -> str:
    """Numbers as a tuple with so many significant digits: `(2.5, 0.78125, 0.78125)`."""
    return "(" + ", ".join(f"{value:.{digits}g}" for value in values) + ")"


def plain(name: str) -> str:
    """A name to compare regardless of case and separators: `Left-Kidney` is `left kidney`."""
    return re.sub(r"[-_ ]+", " ", name).casefold()
