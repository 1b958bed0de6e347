"""Two report pages side by side: which numbers differ, by how much, and what was different about the runs.

    found = compare("monday.html", "tuesday.html")
    print(found)                                # or found.to_frame()
    found.write("difference.html")

Findings of the same name are matched. Both runs taken as independent, the interval of b - a follows from the two
intervals (MOVER):

    low  = (b - a) - sqrt((b - low_b)^2 + (high_a - a)^2)
    high = (b - a) + sqrt((high_b - b)^2 + (a - low_a)^2)

Runs that share prompts and seeds are paired, and this interval is then too wide: what it flags differs, what it does
not flag may differ all the same. Of many numbers that agree, one in twenty is flagged by chance.

Source: Zou and Donner 2008, on intervals of differences from intervals of their parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.views.findings import Finding
from latentlens.views.manifest import OF_THE_RUN
from latentlens.views.report import FORMAT, Beside, Captioned, Section, report

if TYPE_CHECKING:
    import pandas as pd

_LARGEST = 64 << 20


@dataclass(frozen=True)
class Run:
    """What one page holds for machines."""

    path: str
    title: str
    question: str
    manifest: Mapping[str, Any]
    findings: tuple[Finding, ...]
    figures: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Pair:
    """The same finding in both runs. difference: b - a with its interval; None where one is no estimate.

    differs: the interval of the difference excludes 0, or two words are not equal. unjudged: numbers that are not equal
    and have no interval to judge by.
    """

    a: Finding
    b: Finding
    difference: Estimate | None
    differs: bool
    unjudged: bool = False

    @property
    def mark(self) -> str:
        """How it is flagged in tables."""
        return "≠" if self.differs else "?" if self.unjudged else ""


@dataclass(frozen=True)
class Comparison(Shown):
    """Two runs. only_a, only_b: findings that the other lacks. manifest: entry -> (in a, in b) where they differ;
    same: entries that are equal.
    """  # fmt: skip

    a: Run
    b: Run
    pairs: tuple[Pair, ...]
    only_a: tuple[Finding, ...]
    only_b: tuple[Finding, ...]
    manifest: Mapping[str, tuple[str, str]]
    same: int

    @property
    def differing(self) -> tuple[Pair, ...]:
        """The pairs that differ."""
        return tuple(pair for pair in self.pairs if pair.differs)

    @property
    def decided(self) -> int:
        """How many pairs have intervals on both sides, so that chance can be judged."""
        return sum(pair.difference is not None for pair in self.pairs)

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: names, value and ends in a and b, the difference with its ends, differs."""
        import pandas as pd

        rows = []
        for pair in self.pairs:
            named = dict(zip(("table", "row", "name"), pair.a.key))
            sides = {
                f"{side}{end}": getattr(one, field)
                for side, one in (("a", pair.a), ("b", pair.b))
                for end, field in (("", "value"), ("_low", "low"), ("_high", "high"), ("_n", "n"))
            }
            gap = pair.difference
            ends = {"difference": gap.value, "low": gap.low, "high": gap.high} if gap else {}
            rows.append({**named, **sides, **ends, "differs": pair.differs, "unjudged": pair.unjudged})
        return pd.DataFrame(rows)

    def table(self, only_flagged: bool = False) -> pd.DataFrame:
        """The same for people, intervals as text: ≠ differs, ? not equal, with no interval to judge by."""
        import pandas as pd

        return pd.DataFrame(
            {
                "": pair.mark,
                "what": " · ".join(part for part in pair.a.key if part),
                "A": pair.a.short,
                "B": pair.b.short,
                "B - A": "" if pair.difference is None else pair.difference.short,
            }
            for pair in sorted(self.pairs, key=lambda pair: not pair.differs)
            if pair.mark or not only_flagged
        )

    def manifest_table(self) -> pd.DataFrame:
        """Manifest entries that differ."""
        import pandas as pd

        return pd.DataFrame([{"entry": key, "A": a, "B": b} for key, (a, b) in self.manifest.items()])

    @property
    def note(self) -> str:
        """How to read the flags."""
        by_chance = f"{0.05 * self.decided:.1f}".removesuffix(".0")
        unjudged = sum(pair.unjudged for pair in self.pairs)
        return (
            f"{len(self.differing)} of {len(self.pairs)} findings differ (≠). {self.decided} have intervals on both "
            f"sides; if nothing had changed, about {by_chance} of them would be flagged by chance (fewer if the runs "
            f"share prompts and seeds). {unjudged} more are not equal and have no interval to judge by (?). Only in A: "
            f"{len(self.only_a)}; only in B: {len(self.only_b)}."
        )

    def __repr__(self) -> str:
        return (
            f"Comparison({len(self.differing)} of {len(self.pairs)} findings differ; {len(self.only_a)} only in A, "
            f"{len(self.only_b)} only in B; {len(self.manifest)} manifest entries differ, {self.same} agree)"
        )

    def write(self, path: str | Path) -> Path:
        """A page with both runs side by side: differences first, then everything, figures, and the manifests."""
        sections = [
            Section("What differs", [self.note, _shown(self.table(only_flagged=True), "No finding differs.")]),
            Section("All findings", [_shown(self.table(), "The pages have no finding in common.")]),
        ]
        alone = [("A", self.only_a), ("B", self.only_b)]
        lists = [f"Only in {side}: {'; '.join(' · '.join(one.key) for one in found)}" for side, found in alone if found]
        sections += [Section("Without a partner", lists)] if lists else []
        drawn = [Beside({"A": one, "B": other}) for one, other in _figures(self.a, self.b)]
        sections += [Section("Figures", drawn)] if drawn else []
        told, same_title = _shown(self.manifest_table(), "No entry differs."), self.a.title == self.b.title
        sections.append(Section("What was different about the runs", [Captioned(told, f"{self.same} entries agree.")]))
        return report(
            path,
            title=f"Two runs: {self.a.title}" if same_title else f"A: {self.a.title} · B: {self.b.title}",
            question=self.a.question
            if self.a.question == self.b.question
            else f"{self.a.question} / {self.b.question}",
            sections=sections,
            manifest={"A": Path(self.a.path).name, "B": Path(self.b.path).name},
            highlights={"findings that differ": f"{len(self.differing)} of {len(self.pairs)}"},
        )


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two pages that `report` wrote.

    Raises: BadInput: a page is not there, is no report, or was written by a newer version.
    """
    first, second = read(a), read(b)
    theirs = {one.key: one for one in second.findings}
    mine = {one.key: one for one in first.findings}
    pairs = tuple(_pair(one, theirs[key]) for key, one in mine.items() if key in theirs)
    left, right = _leaves(first.manifest), _leaves(second.manifest)
    differ = {
        key: (left.get(key, "–"), right.get(key, "–"))
        for key in [*left, *(key for key in right if key not in left)]
        if left.get(key) != right.get(key) and key not in OF_THE_RUN
    }
    return Comparison(
        first,
        second,
        pairs,
        tuple(one for key, one in mine.items() if key not in theirs),
        tuple(one for key, one in theirs.items() if key not in mine),
        differ,
        sum(left[key] == right.get(key) for key in left),
    )


def read(path: str | Path) -> Run:
    """The numbers, figures and manifest that a page holds. Nothing in it is run.

    Raises: BadInput: as `compare`.
    """
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise BadInput(f"{path} is larger than {_LARGEST >> 20} MiB: that is no report of latentlens")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    kept = _Kept(text).found
    try:
        record, figures = json.loads(kept["record"]), json.loads(kept.get("figures", "[]"))
        number = record["format"]
        if number > FORMAT:
            raise BadInput(f"{path} was written by a newer latentlens (format {number}, this one reads {FORMAT})")
        told = record["manifest"]
        findings = tuple(Finding.from_json(one) for one in record["findings"])
        drawn = tuple(one for one in figures if isinstance(one, dict))
        return Run(str(path), str(record["title"]), str(record["question"]), dict(told), findings, drawn)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is no page of ll.report with its numbers in it (an older one?): {error!r}") from None


class _Kept(HTMLParser):
    """The two data blocks of a page, by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_data = tag == "script" and given.get("type") == "application/json"
        self._inside = str(given.get("id")) if is_data else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[self._inside] = self.found.get(self._inside, "") + data


def _pair(a: Finding, b: Finding) -> Pair:
    ends = (a.value, a.low, a.high, b.value, b.low, b.high)
    if any(not isinstance(end, float) for end in ends):
        is_word = isinstance(a.value, str) or isinstance(b.value, str)
        unequal = not _equal(a.value, b.value)
        return Pair(a, b, None, unequal and is_word, unequal and not is_word)
    x, x_low, x_high, y, y_low, y_high = (float(end) for end in ends)  # type: ignore[arg-type]
    low = y - x - math.hypot(y - y_low, x_high - x)
    high = y - x + math.hypot(y_high - y, x - x_low)
    gap = Estimate(y - x, low, high, (a.n or 0) + (b.n or 0))
    return Pair(a, b, gap, not gap.covers(0.0))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    return a == b


def _leaves(told: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A nested manifest as "versions / torch" -> text."""
    out: dict[str, str] = {}
    for key, value in told.items():
        name = f"{above} / {key}" if above else str(key)
        out |= _leaves(value, name) if isinstance(value, Mapping) else {name: str(value)}
    return out


def _figures(a: Run, b: Run) -> list[tuple[Any, Any]]:
    """Figures under the same heading in both pages."""
    import plotly.graph_objects as go

    theirs = {one.get("heading"): one for one in b.figures if one.get("heading")}
    out = []
    for one in a.figures:
        other = theirs.get(one.get("heading"))
        if other is not None:
            out.append(tuple(_labelled(go.Figure(each["data"], each["layout"]), each) for each in (one, other)))
    return out


def _labelled(figure: Any, kept: Mapping[str, Any]) -> Any:
    from html import escape

    title, subtitle = (escape(str(kept.get(part, "")), quote=False) for part in ("heading", "subtitle"))
    return figure.update_layout(title={"text": title, "subtitle": {"text": subtitle.replace("\n", "<br>")}})


def _shown(frame: pd.DataFrame, otherwise: str) -> Any:
    return frame if len(frame) else otherwise
