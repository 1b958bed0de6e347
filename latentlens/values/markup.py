"""How values look in a notebook and on a page: small HTML, in which text stays text.

Whatever came from a model or a person is escaped, and characters that hide or reorder are written out; only `Html`,
which is made here, is taken as markup. Inks are mixed from the colour of the surrounding text, so that light and dark
themes of JupyterLab, VS Code and Colab need no rules of their own.

    class Found(Shown): ...                 gives `_repr_html_`: the first line of `repr`, and its table below
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, ClassVar

from latentlens.values.visible import visible

ROWS_SHOWN = 12
_SHORT = 44  # characters that are kept on one line
#: Strengths on text: orange above zero, blue below; told apart with any colour vision.
HEAT = {1: "230,140,0", -1: "0,114,178"}
_FULL = 0.55  # opacity of full colour: the word on it can be read in light and dark themes

_STYLE = """<style>
.ll.ll{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));font-size:13px;line-height:1.45;
--ll-line:color-mix(in srgb,currentColor 20%,transparent);max-width:72rem}
.ll.ll .ll-head{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;white-space:pre-wrap;
overflow-wrap:anywhere;margin:0 0 .4em}
.ll.ll .ll-wide{overflow-x:auto}
.ll.ll table{border-collapse:collapse;margin:.3em 0;font-size:12px;font-variant-numeric:tabular-nums;border:0}
.ll.ll th,.ll.ll td{text-align:left;vertical-align:top;padding:.2em 1.1em .2em 0;border:0;
border-bottom:1px solid var(--ll-line);background:none;color:inherit;max-width:44rem;overflow-wrap:anywhere}
.ll.ll tr{background:none}
.ll.ll th{font-weight:600;opacity:.75;white-space:nowrap}
.ll.ll .ll-n{text-align:right;white-space:nowrap}
.ll.ll .ll-text{white-space:pre-wrap;min-width:12rem}
.ll.ll .ll-short{white-space:pre}
.ll.ll .ll-key{vertical-align:top}
.ll.ll .ll-note{opacity:.7;font-size:12px;margin:.2em 0}
.ll.ll .ll-t{white-space:pre-wrap;border-radius:2px;padding:1px 0}
.ll.ll .ll-at{outline:1.5px solid currentColor}
.ll.ll h4{margin:.9em 0 .2em;font-size:12.5px}
</style>"""


class Html(str):
    """Markup made in this file, or with its functions. A plain string is text and is escaped wherever it appears."""


class Shown:
    """Gives a value its form in notebooks: `_html_head` in one line, `_html_parts` below it.

    shows_itself: whether a report page shows these parts too, instead of the whole table.
    """

    shows_itself: ClassVar[bool] = False

    def inside(self) -> Html:
        """What stands below the head."""
        return Html("".join(map(text, self._html_parts())))

    def _html_head(self) -> str:
        return repr(self).splitlines()[0]

    def _html_parts(self) -> Iterable[Any]:
        made = getattr(self, "table", None) or getattr(self, "to_frame", None)
        return (table(made()),) if made is not None else ()

    def _repr_html_(self) -> str:
        return card(self._html_head(), self.inside())


def text(value: Any) -> Html:
    """Any value as harmless text; Html stays what it is."""
    return value if isinstance(value, Html) else Html(escape(visible(str(value))))


def tag(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element. `class_` is written `class`; text inside and attribute values are escaped.

    >>> tag("b", "1 < 2", title='"')
    '<b title="&quot;">1 &lt; 2</b>'
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(v)}"' for key, v in attributes.items() if v != "")
    return Html(f"<{name}{given}>{''.join(map(text, inside))}</{name}>")


def card(head: str, *parts: Any) -> Html:
    """The frame of every value: one line that says what it is, then its parts."""
    inside = tag("div", tag("div", head, class_="ll-head"), *parts, class_="ll")
    return Html(_STYLE + inside)


def note(line: str) -> Html:
    """A soft line of explanation."""
    return tag("div", line, class_="ll-note")


def facts(pairs: Mapping[str, Any]) -> Html:
    """Names and values in two columns; what is empty is left out."""
    kept = {key: value for key, value in pairs.items() if value is not None and value != ""}
    rows = [tag("tr", tag("th", key, class_="ll-key"), tag("td", _inline(value))) for key, value in kept.items()]
    return tag("table", *rows) if rows else Html("")


def table(of: Any, limit: int | None = ROWS_SHOWN) -> Html:
    """A pandas frame, or rows (a list of mappings), as a table; further rows are counted.

    Numbers stand to the right, Estimates become `0.90 [0.87, 0.93]`, missing values a dash, truth values a mark.
    """
    names, columns, n_rows = _columns(of, limit)
    if not names:
        return note("nothing to show")
    numeric = [all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in column) for column in columns]
    right = ["ll-n" if n and column else "" for n, column in zip(numeric, columns)]
    head = tag("tr", *(tag("th", name, scope="col", class_=side) for name, side in zip(names, right)))
    written = [cells(column) for column in columns]
    kinds = [side or _kind(column) for side, column in zip(right, written)]
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds))) for row in zip(*written)]
    more = note(f"{n_rows - len(body)} more of {n_rows} rows") if n_rows > len(body) else Html("")
    return Html(tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="ll-wide") + more)


def tokens(
    texts: Sequence[str], values: Sequence[float], *, largest: float | None = None, at: int | None = None
) -> Html:
    """Tokens coloured by a number each: orange above zero, blue below, the stronger the more; the number is its title.

    Args:
        texts: the tokens.
        values: one for each; NaN is left plain.
        largest: the |value| of full colour; that of these tokens by default.
        at: index of one to mark.
    """
    numbers = [float(v) for v in values]
    full = largest or max((abs(v) for v in numbers if math.isfinite(v)), default=0.0) or 1.0
    out = []
    for i, (token, value) in enumerate(zip(texts, numbers, strict=True)):
        strength = min(abs(value) / full, 1.0) if math.isfinite(value) else 0.0
        style = f"background:rgba({HEAT[1 if value > 0 else -1]},{_FULL * strength:.2f})" if strength >= 0.01 else ""
        shown = token.replace("\n", "⏎\n") if token.strip(" ") else token.replace(" ", "·") or "∅"
        out.append(tag("span", shown, class_="ll-t ll-at" if i == at else "ll-t", title=f"{value:.4g}", style=style))
    return Html("".join(out))


def cells(values: Iterable[Any]) -> list[str]:
    """One column as text; a column of whole numbers with gaps (pandas makes it float) stays whole."""
    values = list(values)
    floats = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    whole = bool(floats) and all(v.is_integer() for v in floats) and max(map(abs, floats)) > 1
    return [cell(v, whole) for v in values]


def cell(value: Any, whole: bool = False) -> str:
    """One value as text: an Estimate with its interval, three decimals for a number, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's too
        return "✓" if value else "✗"
    if isinstance(value, float):  # numpy's float64 is one
        return f"{value:.0f}" if whole else f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return str(getattr(value, "short", value))


def _columns(of: Any, limit: int | None) -> tuple[list[str], list[list[Any]], int]:
    if hasattr(of, "columns") and hasattr(of, "itertuples"):
        kept = of if limit is None else of.head(limit)
        names, columns = [str(c) for c in of.columns], [kept.iloc[:, i].tolist() for i in range(len(of.columns))]
        if type(of.index).__name__ != "RangeIndex":
            names, columns = [str(of.index.name or ""), *names], [[str(i) for i in kept.index], *columns]
        return names, columns, len(of)
    rows = list(of)
    names = list(dict.fromkeys(key for row in rows for key in row))
    kept = rows[:limit]
    return names, [[row.get(name) for row in kept] for name in names], len(rows)


def _kind(column: Sequence[str]) -> str:
    """A column of short words stays on one line; one with a long text in it wraps, and gives way to the others."""
    return "ll-text" if any(len(cell) > _SHORT for cell in column) else "ll-short"


def _inline(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_inline(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_inline(v)) for v in value)
    return value if isinstance(value, Html) else cell(value)
