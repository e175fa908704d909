"""How names, numbers and values are written in messages."""

from __future__ import annotations

from pathlib import Path

from promptseg.words import plain, rounded, short, some


def test_ten_names_are_shown_and_the_others_counted():
    assert some([]) == "nothing"
    assert some(name for name in ("a", 2, Path("c"))) == "a, 2, c"
    assert some({"a": 1, "b c": 2}, quoted=True) == "'a', 'b c'"
    assert some(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert some("abcde", most=2) == "a, b and 3 more"


def test_a_long_value_is_cut_and_says_so():
    assert short(["a", 1]) == "['a', 1]"
    assert short("x" * 198) == repr("x" * 198)  # 200 characters with the quotes
    assert short("x" * 199) == "'" + "x" * 199 + "..."
    assert short([10, 20], most=3) == "[10..."


def test_numbers_keep_their_significant_digits_only():
    assert rounded((2.5, 0.78125, 1 / 3)) == "(2.5, 0.78125, 0.333333)"
    assert rounded((2.5, 0.78125, 123456.0), digits=4) == "(2.5, 0.7812, 1.235e+05)"


def test_names_are_compared_regardless_of_case_and_separators():
    assert plain("Left-_Kidney") == plain("left kidney") == "left kidney"
