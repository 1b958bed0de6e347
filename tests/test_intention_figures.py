"""Figures of intention metrics and trajectory signals draw the numbers of the result and keep labels text."""

import numpy as np
import pytest

from latentlens.errors import BadInput
from latentlens.values.intention import Dimensionality, EntropyCurve, LayerDimension
from latentlens.values.results import Estimate
from latentlens.values.sites import Site
from latentlens.values.trajectory import SignalQuality, SignalReport
from latentlens.views.figures.intention import by_regime, regimes
from latentlens.views.figures.signals import signal_quality

HOSTILE = "<b onclick=1>steps</b>"


def at(value, n=20):
    return Estimate(value, value - 0.1, value + 0.1, n)


def means(figure):
    return [trace for trace in figure.data if trace.marker.symbol == "diamond"]


def test_regimes_show_every_item_the_means_and_the_aurocs():
    a, b = np.arange(10.0), np.arange(10.0) + 20
    figure = regimes({"direct": a, HOSTILE: b}, metric="entropy (bits)")
    points = [trace for trace in figure.data if trace.marker.symbol != "diamond"]
    assert [list(trace.y) for trace in points] == [a.tolist(), b.tolist()]
    assert [trace.y[0] for trace in means(figure)] == [4.5, 24.5]
    assert "over direct 1.000" in figure.layout.title.subtitle.text
    assert "<b onclick" not in str(figure.to_json())
    assert "n = 10 items" in figure.layout.title.subtitle.text


@pytest.mark.parametrize(
    "values", [{"one": np.ones(5)}, {"a": np.ones(5), "b": np.ones(4)}, {str(i): np.ones(5) for i in range(6)}]
)
def test_regimes_that_cannot_be_compared_are_refused(values):
    with pytest.raises(BadInput, match="regimes"):
        regimes(values)


def test_curves_and_dimensions_are_lines_with_their_intervals():
    curve = EntropyCurve(np.arange(3), (at(1.0), at(2.0), at(0.5)))
    figure = by_regime({"direct": curve, HOSTILE: curve})
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [list(line.y) for line in lines] == [[1.0, 2.0, 0.5]] * 2
    assert "<b onclick" not in str(figure.to_json())
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(bands[0].y) == pytest.approx([1.1, 2.1, 0.6, 0.4, 1.9, 0.9])

    layers = tuple(LayerDimension(Site("resid_post", i + 2), at(3.0 + i), 2, 1.0) for i in range(2))
    figure = by_regime({"direct": Dimensionality(layers, 20, 8, np.ones(20))})
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert (list(line.x), list(line.y)) == ([2.0, 3.0], [3.0, 4.0])


def test_unequal_numbers_of_items_are_said_and_two_kinds_refused():
    layers = (LayerDimension(Site("resid_post", 0), at(3.0), 2, 1.0),)
    many, few = (Dimensionality(layers, n, 8, np.ones(n)) for n in (40, 20))
    assert "do not compare" in by_regime({"a": many, "b": few}).layout.title.subtitle.text
    with pytest.raises(BadInput, match="2 kinds"):
        by_regime({"a": many, "b": EntropyCurve(np.arange(1), (at(1.0),))})
    with pytest.raises(BadInput, match="0 regimes"):
        by_regime({})


def report(walk):
    signals = (
        SignalQuality("net", 1, at(0.7), at(0.55), walk, walk, walk, 2),
        SignalQuality(HOSTILE, -1, at(0.6), Estimate(np.nan, np.nan, np.nan, 0), None, None, None, 0),
    )
    return SignalReport(signals, at(0.68), 40, 25, 20, 5)


def test_signals_stand_beside_their_nulls_and_length_alone():
    figure = signal_quality(report(at(0.66)))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["the signal"].y) == [0.7, 0.6]
    assert list(by_name["random walks"].y) == [0.66]
    length = next(trace for name, trace in by_name.items() if name.startswith("length alone"))
    assert list(length.y) == [0.68, 0.68]
    low, high = figure.layout.yaxis.range
    assert low < 0.45
    assert high > 0.8
    assert "<b onclick" not in str(figure.to_json())


def test_nulls_that_were_not_drawn_are_not_shown():
    assert not [t for t in signal_quality(report(None)).data if t.name in ("random walks", "segments shuffled")]
