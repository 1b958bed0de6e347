"""The numbers of a result, flat: what a report keeps for machines, so that two runs can be compared.

Estimate 0.91 [0.85, 0.96]          one finding, with its ends and n
a frame with auroc, auroc_low, auroc_high    one finding a row; `value`, `low`, `high` likewise
other numbers                       findings without an interval
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latentlens.errors import BadInput
from latentlens.values.results import Estimate

#: Columns that count what stands behind a row and do not say which row it is.
_COUNTS = ("n", "k", "draws", "groups_train", "groups_test", "dropped")
_MOST = 20_000


@dataclass(frozen=True)
class Finding:
    """One number, or one word such as a chosen site, with the names that find it again in another run.

    table: where it stands. row: which row there. name: which column. low, high, n: of an estimate, else None.
    """

    table: str
    row: str
    name: str
    value: float | str | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What two runs are matched by."""
        return self.table, self.row, self.name

    @property
    def short(self) -> str:
        """Value and interval, for people."""
        if isinstance(self.value, str):
            return self.value
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return Estimate(self.value, self.low, self.high, self.n or 0).short

    def to_json(self) -> dict[str, Any]:
        """Its fields, those that say nothing left out."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None) or key == "value"}

    @classmethod
    def from_json(cls, given: Any) -> Finding:
        """Read what `to_json` made, from a page that anybody may have written.

        Raises: BadInput: not such a mapping.
        """
        try:
            value, ends = given.get("value"), [given.get(end) for end in ("low", "high", "n")]
            named = [str(given.get(part, "")) for part in ("table", "row", "name")]
        except AttributeError:
            raise BadInput(f"{str(given)[:80]!r} is no finding of a report") from None
        number = value if value is None or isinstance(value, str) else float(value)
        low, high = (None if end is None else float(end) for end in ends[:2])
        return cls(named[0], named[1], named[2], number, low, high, None if ends[2] is None else int(ends[2]))


def findings(table: str, value: Any) -> list[Finding]:
    """Every number in a result value, a frame, a mapping of these, an Estimate, a number or a word.

    Args: table: the name under which they are kept.
    """
    found = list(_of(table, value))
    if len(found) > _MOST:
        return []  # raw data, not results
    seen: dict[tuple[str, str, str], int] = {}
    out = []
    for one in found:  # two rows of one name are told apart by their order
        seen[one.key] = seen.get(one.key, 0) + 1
        out.append(one if seen[one.key] == 1 else Finding(**{**asdict(one), "row": f"{one.row} #{seen[one.key]}"}))
    return out


def _of(table: str, value: Any, name: str = "", row: str = "") -> Iterator[Finding]:
    if isinstance(value, Estimate):
        yield Finding(table, row, name, _number(value.value), _number(value.low), _number(value.high), value.n)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _of(table, one, str(key), row)
    elif hasattr(value, "columns") and hasattr(value, "itertuples"):
        yield from _of_frame(table, value)
    elif hasattr(value, "to_frame") and hasattr(value, "__dataclass_fields__"):
        yield from _of_frame(table, value.to_frame())
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield Finding(table, row, name, _number(value))
    elif isinstance(value, (str, bool)):
        yield Finding(table, row, name, str(value))


def _of_frame(table: str, frame: Any) -> Iterator[Finding]:
    import pandas as pd

    names = [str(c) for c in frame.columns]
    frame = frame.set_axis(names, axis=1)
    ends = {name: pair for i, name in enumerate(names) if (pair := _ends(names, i)) is not None}
    first = min((names.index(name) for name in ends), default=len(names))
    numbers = {
        name
        for name in names
        if pd.api.types.is_float_dtype(frame[name]) or any(isinstance(v, Estimate) for v in frame[name])
    }
    taken = {end for pair in ends.values() for end in pair} | {*ends, *_COUNTS}
    if ends:
        labels = [name for name in names[:first] if name not in taken and not name.startswith("n_")]
        values = [name for name in names if name in ends or (name in numbers and name not in {*labels, *taken})]
    else:
        values = [name for name in names if name in numbers]
        labels = [name for name in names if name not in {*values, *taken} and not name.startswith("n_")]
    index = [] if type(frame.index).__name__ == "RangeIndex" else [str(i) for i in frame.index]
    for i, row in enumerate(frame.to_dict("records")):
        said = [f"{name} {_word(row[name])}" for name in labels if _word(row[name])]
        here = ", ".join([*index[i : i + 1], *said])
        for name in values:
            if name in ends:
                low, high = (_number(row[end]) for end in ends[name])
                count = row.get("n", row.get("n_test"))
                yield Finding(table, here, name, _number(row[name]), low, high, _whole(count))
            else:
                yield from _of(table, row[name], name, here)


def _ends(names: list[str], i: int) -> tuple[str, str] | None:
    """Columns that hold the ends of column i: `auroc_low`, `auroc_high`; or `low`, `high` right after it."""
    pair = (f"{names[i]}_low", f"{names[i]}_high")
    if all(end in names for end in pair):
        return pair
    return ("low", "high") if names[i + 1 : i + 3] == ["low", "high"] else None


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)


def _word(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)[:80]
