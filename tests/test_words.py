"""A few of many names."""

from __future__ import annotations

from pathlib import Path

from promptseg.words import some


def test_ten_names_are_shown_and_the_others_counted():
    assert some([]) == "nothing"
    assert some(name for name in ("a", 2, Path("c"))) == "a, 2, c"
    assert some({"a": 1, "b c": 2}, quoted=True) == "'a', 'b c'"
    assert some(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
