"""Tables as text: aligned columns for the terminal, and Markdown for pages.

Ours rather than the package tabulate, which parses and strips cells by default, draws no rule above
a last row, and would be a dependency in place of a dozen lines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[Any]], *, left: Collection[int] = (0,)) -> list[str]:
    """Lay out the rows of a table, header included, one line each, columns two spaces apart.

    Args:
        rows: as many cells in each; a cell is written by `str`.
        left: columns of text, aligned to the left; -1 is the last one. All others hold numbers and
            are aligned to the right.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = {column % len(widths) for column in left}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def markdown_table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, its lines joined; a cell is written by `str`."""
    return "\n".join(map(markdown_row, [header, ["---"] * len(header), *rows]))


def markdown_row(cells: Sequence[Any]) -> str:
    """One line of a table in Markdown, for tables that are printed as they grow."""
    return f"| {' | '.join(map(str, cells))} |"
