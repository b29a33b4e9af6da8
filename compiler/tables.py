"""Tables of figures for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], head: Sequence[Sequence[str]] = ()) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right. Rows may be shorter than the first."""
    table = [*head, *rows]
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(max(map(len, table)))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=False))]).rstrip()
        for row in table
    ]


def three_digits(value: float) -> str:
    """A number with the three digits that count."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"
