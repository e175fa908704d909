"""Pieces of sentences that several messages need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHOWN = 10


def some(names: Iterable[Any], *, quoted: bool = False) -> str:
    """A few of many names: `a, b`, `a, b, ... and 3 more`, or `nothing` where there are none."""
    names = list(names)
    shown = ", ".join((repr if quoted else str)(name) for name in names[:SHOWN])
    return (shown or "nothing") + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
