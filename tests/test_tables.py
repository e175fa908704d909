"""Tables for the terminal and in Markdown."""

from __future__ import annotations

from promptseg.tables import aligned, markdown_row, markdown_table


def test_texts_are_aligned_to_the_left_and_numbers_to_the_right():
    assert aligned([["label", "Dice"], ["a", 0.5], ["longer", "0.25"]]) == [
        "label   Dice",
        "a        0.5",
        "longer  0.25",
    ]


def test_several_columns_of_text_and_a_last_one_that_ends_where_it_ends():
    rows = [["a", "*", 1, "the rest"], ["bcd", "", 1000, "more"]]
    assert aligned(rows, left=(0, 1, -1)) == ["a    *     1  the rest", "bcd     1000  more"]


def test_a_markdown_table_may_be_printed_row_by_row():
    rows = [["a", 1], ["b", ""]]
    whole = "| name | s |\n| --- | --- |\n| a | 1 |\n| b |  |"
    assert markdown_table(["name", "s"], rows) == whole
    assert "\n".join([markdown_table(["name", "s"], []), *map(markdown_row, rows)]) == whole
