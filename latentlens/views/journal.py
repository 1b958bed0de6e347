"""An experiment told as it goes: every table is printed when it is there, and kept with its figure for the page.

show = Journal()
show.table("Dose", [d.line() for d in doses], figure=plots.ablation_dose(doses))
show.write("page.html", title="...", question="...", manifest=ll.manifest(lm))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentlens.values.markup import cells
from latentlens.values.results import Estimate
from latentlens.views.report import Captioned, Section, report
from latentlens.views.terminal import print_table


class Journal:
    """Tables, figures and remarks in the order in which they came."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self.remarks: list[str] = []
        self._started = time.perf_counter()

    def table(self, title: str, rows: Any, note: str = "", *, figure: Any = None, quiet: bool = False) -> None:
        """Print a table and keep it.

        Args: title: also of its section. rows: a pandas frame, or mappings with the same keys; Estimates are shown with
            their interval. note: one line below. figure: above the table on the page. quiet: on the page only.
        """
        import pandas as pd

        frame = rows if hasattr(rows, "columns") else pd.DataFrame(_listed(rows))
        if not quiet and len(frame):
            shown = [cells(map(_short, frame.iloc[:, i].tolist())) for i in range(len(frame.columns))]
            print_table(title, [str(c) for c in frame.columns], list(zip(*shown, strict=True)), note=note)
        kept = Captioned(frame, note) if note else frame
        self.sections.append(Section(title, [kept] if figure is None else [figure, kept]))

    def say(self, text: str) -> None:
        """Print a remark and keep it as a paragraph of its own."""
        print(f"{text}\n", flush=True)
        self.remarks.append(text)
        if self.sections:
            last = self.sections[-1]
            self.sections[-1] = Section(last.title, [*last.blocks, text])
        else:
            self.sections.append(Section("Remarks", [text]))

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return time.perf_counter() - self._started

    def write(self, path: str | Path, *, manifest: Mapping[str, Any], **about: Any) -> Path:
        """Write the page. Args: manifest, about: as for `report`."""
        written = report(path, sections=self.sections, manifest={**manifest, "seconds": round(self.seconds)}, **about)
        print(f"{self.seconds / 60:.1f} minutes; page: {written}")
        return written


def _short(value: Any) -> Any:
    """An estimate for a terminal: two decimals, none above 10."""
    if not isinstance(value, Estimate):
        return value
    form = ".0f" if abs(value.value) >= 10 else ".2f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _listed(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]
