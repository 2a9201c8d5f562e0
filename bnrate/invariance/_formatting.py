"""Rows of text as an aligned table."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces apart; the first row is the header.

    >>> print(table([("leaf", "axis"), ("kernel", "1")]))
    leaf    axis
    kernel  1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
