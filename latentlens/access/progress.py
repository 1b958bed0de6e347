"""A progress bar with a rate, shown only for work that takes longer than two seconds."""

from __future__ import annotations

import time
from types import TracebackType


class Progress:
    """`with Progress("capture", total, "tok") as bar: bar.update(n)`; written to standard error.

    things: a second count shown beside the rate, (name, total): ("rows", 64) shows `rows 12/64`.
    """

    def __init__(self, title: str, total: int, unit: str, things: tuple[str, int] | None = None) -> None:
        from tqdm.auto import tqdm

        self._things, self._counted, self._started = things, 0, time.perf_counter()
        self._bar = tqdm(total=total, desc=title, unit=unit, unit_scale=True, delay=2, leave=False, dynamic_ncols=True)

    def update(self, n: int) -> None:
        """Say that n more units are done."""
        self._bar.update(n)

    def shrink(self, n: int) -> None:
        """Say that n units will never be needed."""
        self._bar.total -= n

    def count(self, n: int) -> None:
        """Say that n more things are done."""
        if self._things is not None:
            self._counted += n
            rate = self._counted / max(time.perf_counter() - self._started, 1e-9)
            text = f"{self._things[0]} {self._counted}/{self._things[1]}, {rate:.3g}/s"
            self._bar.set_postfix_str(text, refresh=False)  # a refresh would show the bar before its two seconds

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
