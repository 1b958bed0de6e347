import pytest
import torch

from latentlens.access.courier import Courier
from latentlens.values.sites import Site

SITE = Site("resid_post", 0)


def test_values_on_the_cpu_are_handed_back_at_once():
    courier = Courier()
    assert courier.send("a", {SITE: torch.ones(2)}) == [("a", {SITE: pytest.approx(torch.ones(2))})]
    assert courier.flush() == []


def test_batches_arrive_in_order_each_once_and_one_behind(monkeypatch):
    """The order of hand-over on an accelerator, with the copy itself replaced (there is none here)."""
    waited = []

    class Event:
        def __init__(self, label):
            self.label = label

        def synchronize(self):
            waited.append(self.label)

    class Fake:
        is_cuda = True

        def __init__(self, label):
            self.label = label

    courier = Courier()
    monkeypatch.setattr(courier, "_copy", lambda values: ({SITE: values[SITE].label}, Event(values[SITE].label)))
    got = [courier.send(i, {SITE: Fake(i)}) for i in range(3)] + [courier.flush(), courier.flush()]
    assert got == [[], [(0, {SITE: 0})], [(1, {SITE: 1})], [(2, {SITE: 2})], []]
    assert waited == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_values_on_cuda_arrive_unchanged():
    courier = Courier()
    sent = [torch.randn(1000, 64, device="cuda") for _ in range(5)]
    got = []
    for i, value in enumerate(sent):
        got += courier.send(i, {SITE: value * 2})
    got += courier.flush()
    assert [label for label, _ in got] == list(range(5))
    for value, (_, host) in zip(sent, got, strict=True):
        torch.testing.assert_close(host[SITE], (value * 2).cpu())
