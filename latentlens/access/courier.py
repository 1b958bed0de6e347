"""Brings values from the device to main memory while the next batch is already running."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from latentlens.values.sites import Site

Label = TypeVar("Label")


class Courier(Generic[Label]):
    """Takes each batch's values with a label and hands back those that have arrived.

    On CUDA a copy goes into pinned memory on a stream of its own, and a batch is handed back when the one
    after it has been sent, so the device never waits for the host. Values on the CPU are handed back at once.
    """

    def __init__(self) -> None:
        self._under_way: tuple[Label, dict[Site, Tensor], Any] | None = None
        self._stream: Any = None

    def send(self, label: Label, values: Mapping[Site, Tensor]) -> list[tuple[Label, dict[Site, Tensor]]]:
        """Take one batch; return what has arrived by now, with its label."""
        if not any(value.is_cuda for value in values.values()):
            return [*self.flush(), (label, {site: value.cpu() for site, value in values.items()})]
        before = self._under_way
        self._under_way = (label, *self._copy(values))
        return [] if before is None else [self._arrived(before)]

    def flush(self) -> list[tuple[Label, dict[Site, Tensor]]]:
        """Wait for the last batch and return it, if there is one."""
        before, self._under_way = self._under_way, None
        return [] if before is None else [self._arrived(before)]

    def _copy(self, values: Mapping[Site, Tensor]) -> tuple[dict[Site, Tensor], Any]:
        device = next(value.device for value in values.values() if value.is_cuda)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        for used in {value.device for value in values.values() if value.is_cuda}:
            self._stream.wait_stream(torch.cuda.current_stream(used))
        host: dict[Site, Tensor] = {}
        with torch.cuda.stream(self._stream):
            for site, value in values.items():
                host[site] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                host[site].copy_(value, non_blocking=True)
                if value.is_cuda:
                    value.record_stream(self._stream)  # its memory must not be reused before the copy is done
            return host, self._stream.record_event()

    @staticmethod
    def _arrived(sent: tuple[Label, dict[Site, Tensor], Any]) -> tuple[Label, dict[Site, Tensor]]:
        label, host, event = sent
        event.synchronize()
        return label, host
