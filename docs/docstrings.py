"""From the docstrings of this package to Markdown: a griffe extension for the API reference.

A docstring here has labels (`Args:`, `Returns:`, `Raises:`, `Source:`) whose text begins on the same line or below it,
bare doctests, and class docstrings whose lines name attributes. Nothing else is read into it.
"""

from __future__ import annotations

import inspect
import re

import griffe

LABEL = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Source|Example):\s*(.*)$")
ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*):\s+(.*)$")
NAME = re.compile(r"\*{0,2}[A-Za-z_][\w.]*")


class HouseStyle(griffe.Extension):
    """Rewrites the docstring of every object before it is shown."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, names_in(obj))


def names_in(obj: griffe.Object) -> set[str]:
    """What lines of its docstring may be about: members, parameters."""
    if obj.is_function:
        return {parameter.name for parameter in obj.parameters}
    init = obj.members.get("__init__") if obj.is_class else None
    return set(obj.members) | (names_in(init) if init is not None and init.is_function else set())


def markdown(text: str, known: set[str] | None = None) -> str:
    r"""The same text as Markdown.

    >>> print(markdown("Sum.\n\n    s = a + b\n\nArgs: a, b: numbers.\nReturns: s."))
    Sum.
    <BLANKLINE>
        s = a + b
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `a`, `b`: numbers.
    <BLANKLINE>
    **Returns** s.
    """
    lines = inspect.cleandoc(text).splitlines()
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        label = LABEL.match(line)
        item = ITEM.match(line)
        if line.startswith(">>>"):
            end = next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))
            out += ["", "```pycon", *lines[at:end], "```", ""]
            at = end
        elif label:
            end = _block(lines, at)
            out += ["", *_labelled(label[1], label[2], lines[at + 1 : end], known), ""]
            at = end
        elif item and known and set(NAME.findall(item[1])) & known:
            end = _block(lines, at)
            bullets = _items([line, *lines[at + 1 : end]], known)
            out += ["", *bullets] if not (out and out[-1].startswith(("- ", "    "))) else bullets
            at = end
        else:
            out.append(line)
            at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_unlinked(out))).strip()


def _unlinked(lines: list[str]) -> list[str]:
    """`x[0]["role"]` outside code is no link."""
    out, inside = [], False
    for line in lines:
        inside ^= line.startswith("```")
        parts = line.split("`")
        if not inside and not line.startswith("    "):
            line = "`".join(part.replace("][", "]\\[") if i % 2 == 0 else part for i, part in enumerate(parts))
        out.append(line)
    return out


def _block(lines: list[str], at: int) -> int:
    """First line after `at` that is neither indented nor blank before an indented one."""
    end = at + 1
    while end < len(lines) and (lines[end].startswith(" ") or (not lines[end].strip() and _goes_on(lines, end))):
        end += 1
    return end


def _goes_on(lines: list[str], blank: int) -> bool:
    return blank + 1 < len(lines) and lines[blank + 1].startswith("        ")


def _labelled(label: str, first: str, rest: list[str], known: set[str] | None) -> list[str]:
    """A label as a bold word, with a list of its items where it has such."""
    if label in ("Args", "Attributes") and ITEM.match(first):
        return [f"**{label}**", "", *_items([" ".join([first, *(part.strip() for part in rest)])], known)]
    if first:
        return [f"**{label}** {first}", *(part.strip() for part in rest)]
    body = inspect.cleandoc("\n".join(rest)).splitlines()
    if body and body[0].startswith(">>>"):
        return ["```pycon", *body, "```"]
    if any(ITEM.match(part) for part in body):
        return [f"**{label}**", "", *_items(body, known if label in ("Args", "Attributes") else None)]
    return [f"**{label}** " + " ".join(part.strip() for part in body)]


def _items(body: list[str], known: set[str] | None = None) -> list[str]:
    """`name: text` lines, with what is indented below them, as a bulleted list.

    Several items may share a line, `a: one. b, c: two.`; with `known`, only these names begin an item.
    """
    out: list[str] = []
    for line in body:
        parts = re.split(r"(?<=[.;)]) +(?=\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[a-z_]\w*)*: )", line)
        for part in parts:
            item = ITEM.match(part)
            names = NAME.findall(item[1]) if item else []
            if item and (not known or {name.lstrip("*") for name in names} & known or not out):
                out.append(f"- {', '.join(f'`{name}`' for name in names)}: {item[2]}")
            elif part.strip():
                out.append(f"    {part.strip()}")
    return out
