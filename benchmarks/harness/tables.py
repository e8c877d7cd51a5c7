"""Tables of results, for the terminal and for Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text cells; `notes` are lines below the table.

    A `detail` table is printed by its benchmark, but left out of the documentation.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())
    detail: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: {len(row)} cells {row} for {len(self.columns)} columns")


def number(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, without an exponent if possible; None becomes a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    magnitude = f"{value:.{digits}g}"
    if "e" in magnitude:
        return f"{value:,.0f}" if 1 <= abs(value) < 1e9 else magnitude
    return magnitude


def percent(value: float | None) -> str:
    """Format a fraction as a whole percentage."""
    return "–" if value is None else f"{value:.0%}"


def rows_of(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str, *notes: str) -> Table:
    """Return a table of flat records; `columns` maps headings to keys."""
    rows = tuple(tuple(number(record.get(key)) for key in columns.values()) for record in records)
    return Table(title, tuple(columns), rows, notes)


def as_text(table: Table) -> str:
    """Return aligned columns for a terminal."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    numeric = [_is_numeric(table, column) for column in range(len(table.columns))]

    def aligned(cells: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([table.title, *(aligned(line) for line in lines), *table.notes])


def as_markdown(table: Table) -> str:
    """Return a Markdown table without its notes."""
    rule = ["---:" if _is_numeric(table, column) else "---" for column in range(len(table.columns))]
    lines = [table.columns, tuple(rule), *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _is_numeric(table: Table, column: int) -> bool:
    cells = [row[column] for row in table.rows]
    return bool(cells) and all(cell[:1] in "0123456789-–" for cell in cells if cell)
