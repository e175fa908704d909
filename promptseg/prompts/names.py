"""Names of labels and of objects without one, and the values that stand for them."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from promptseg.labels import Values, members

_UNNAMED = re.compile(r"object(\Z|[ _\-\d])", re.IGNORECASE)
_NUMBERED = re.compile(r"object[ _\-]*(\d*)", re.IGNORECASE)


def is_unnamed(label: str, known: Container[str]) -> bool:
    """Whether a name stands for an object that is none of the known labels.

    Such names are `object`, and those that continue with a blank, `_`, `-` or a digit, in upper
    or lower case: `object 2`, `Object_tumour left`.
    """
    return bool(_UNNAMED.match(label)) and label not in known


def object_number(label: str) -> int | None:
    """The number in the name of an unnamed object that has no other name; `object` is number 1."""
    match = _NUMBERED.fullmatch(label)
    return int(match[1] or 1) if match else None


def label_of_value(value: int, labels: Mapping[str, Values]) -> str | None:
    """The name of a value in a label map: a label's, or `object N` for the Nth after the last.

    None for the background, and for a value between the labels' that none of them has.
    """
    names = {value: name for name, values in labels.items() for value in members(values)}
    last = max(names, default=0)
    return f"object {value - last}" if value > last else names.get(value)


def values_in_words(labels: Mapping[str, Values]) -> str:
    """The labels for a message: `1 (liver), 2 (spleen), 1 or 2 (abdomen)`."""
    ordered = sorted((members(values), name) for name, values in labels.items())
    return ", ".join(f"{' or '.join(map(str, values))} ({name})" for values, name in ordered)
