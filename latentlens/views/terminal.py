"""Closing tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from latentlens.values.results import Estimate
from latentlens.values.visible import visible

if TYPE_CHECKING:
    import pandas as pd
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


def print_frame(
    title: str, frame: pd.DataFrame, *, note: str = "", digits: int = 3, console: Console | None = None
) -> None:
    """Print a pandas frame as a closing table: estimates with their intervals, nothing where there is no number.

    Args: title, note, console: as `print_table`. digits: of estimates.
    """
    rows = [[_short(value, digits) for value in row] for row in frame.to_numpy(dtype=object).tolist()]
    print_table(title, [str(column) for column in frame], rows, note=note, console=console)


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, Estimate):
        if not value.n or math.isnan(value.value):
            return "-"
        return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else visible(str(value))
