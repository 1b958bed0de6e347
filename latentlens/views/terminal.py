"""Closing tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from latentlens.values.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

_LOG_WIDTH = 160


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    note: str = "",
    console: Console | None = None,
) -> None:
    """Print a table: text to the left, numbers to the right.

    Cells are shown as they are: nothing in them is read as markup, and escape codes are written out.

    Args:
        title: above the table.
        columns: headings.
        rows: one sequence of cells a row, as many as there are columns; floats get three decimals.
        note: one line below: what the intervals are, what was n.
        console: where to print; the terminal by default.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(Text(visible(column)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    if console is None:
        console = Console()
        if not console.is_terminal:  # a log file has no edge to fold at
            console.width = _LOG_WIDTH
    # A title inside the table would be folded at the table's width, not at the terminal's.
    console.print(Text(visible(title), style="bold"))
    console.print(table)
    if note:
        console.print(Text(visible(note), style="dim"))
    console.print()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else visible(str(value))
