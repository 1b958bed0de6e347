"""A progress bar with a rate, shown only for work that takes longer than two seconds."""

from __future__ import annotations

from types import TracebackType


class Progress:
    """`with Progress("capture", total, "tok") as bar: bar.update(n)`; written to standard error."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, desc=title, unit=unit, unit_scale=True, delay=2, leave=False, dynamic_ncols=True)

    def update(self, n: int) -> None:
        """Say that n more units are done."""
        self._bar.update(n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
