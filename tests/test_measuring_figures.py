"""Figures of probe reports, choices and early warnings show the numbers that they were given."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.errors import BadInput
from latentlens.methods import early_stopping
from latentlens.values.directions import Direction
from latentlens.values.probe_report import ProbeReport
from latentlens.values.results import Estimate
from latentlens.values.trajectory import EarlyWarning


def estimate(value, n=100):
    return Estimate(value, value - 0.05, value + 0.05, n)


@pytest.fixture
def report():
    rows = {
        "layers": [
            {"what": "resid_post[0]", "AUROC": estimate(0.5)}, {"what": "resid_post[1]", "AUROC": estimate(0.9)},
            {"what": "resid_post[2]", "AUROC": Estimate(math.nan, math.nan, math.nan, 0)},
            {"what": "bag of words", "AUROC": estimate(0.6)},
        ],
        "aggregation": [{"how": n, "AUROC": estimate(v)} for n, v in (("last token", 0.9), ("mean of tokens", 0.7))],
        "calibration": [{"what": "ECE of 10 bins, as fitted", "value": 0.125}],
    }  # fmt: skip
    bins = {
        "as fitted": ((0.1, estimate(0.3, 40)), (0.9, estimate(0.7, 10))),
        "with temperature": ((0.5, estimate(0.5)),),
    }
    direction = Direction([1.0, 0.0], "resid_post[1]")
    return ProbeReport(estimate(0.9), 0.005, direction, ("no", "<b>yes"), rows, {}, {}, bins)


def test_the_calibration_curve_holds_every_bin_and_the_diagonal(report):
    figure = ll.plots.calibration_curve(report)
    diagonal, plain, warm = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    assert (list(plain.x), list(plain.y)) == ([0.1, 0.9], [0.3, 0.7])
    assert list(warm.y) == [0.5]
    assert plain.marker.size[0] > plain.marker.size[1]  # forty rows against ten
    assert "0.125" in figure.layout.title.subtitle.text
    assert "<b>yes" not in figure.layout.xaxis.title.text
    with pytest.raises(BadInput, match="no reliability"):
        ll.plots.calibration_curve(replace(report, reliability={}))


def test_sites_joins_and_baselines_stand_side_by_side_and_what_was_given_up_is_a_gap(report):
    figure = ll.plots.sites_and_joins(report)
    sites, joins, others = figure.data
    assert (list(sites.x), list(sites.y)) == (["resid_post[0]", "resid_post[1]"], [0.5, 0.9])
    assert list(figure.layout.xaxis.categoryarray) == ["resid_post[0]", "resid_post[1]", "resid_post[2]"]
    assert sites.marker.color[0] != sites.marker.color[1]  # the chosen one stands out
    assert list(joins.y) == [0.9, 0.7]
    assert list(others.x) == ["bag of words"]
    with pytest.raises(BadInput, match="nothing to draw"):
        ll.plots.sites_and_joins(replace(report, rows={}))


def test_choices_stand_where_their_accuracy_and_savings_are():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    found = early_stopping.early_stop(
        right + rng.normal(0, 0.3, 200), right, np.repeat(np.arange(40), 5), tokens=np.full(200, 100),
        read=np.full(200, 20), answers=np.where(right, "x", rng.integers(0, 9, 200)), n_controls=3, n_bootstrap=50,
    )  # fmt: skip
    figure = ll.plots.choices(found)
    by_name = {trace.name: trace for trace in figure.data}
    signal = found["go on with the best start"]
    assert (by_name["by the signal"].x[0], by_name["by the signal"].y[0]) == (signal.saved.value, signal.accuracy.value)
    for name in ("the same, scores shuffled", "the same, equal scores shuffled together"):
        assert by_name[name].y[0] == found[name].accuracy.value
        assert by_name[name].mode == "markers"  # named in the legend: their points lie on each other
    assert set(by_name["without a signal"].text) == {"shortest", "first", "random"}
    places = dict(zip(by_name["without a signal"].text, by_name["without a signal"].textposition))
    higher, lower = sorted(("first", "random"), key=lambda name: -found[name].accuracy.value)
    assert (places[higher], places[lower]) == ("top right", "bottom right")  # names do not lie on each other
    drawn = sum(len(trace.x) for trace in figure.data)
    assert drawn == len(found.policies)
    assert "40 questions" in figure.layout.title.subtitle.text


def test_an_early_warning_has_a_line_a_signal_over_the_tokens_read():
    nan = Estimate(0.7, math.nan, math.nan, 12)
    curve = EarlyWarning(
        {("net", 1): estimate(0.5, 60), ("net", 2): estimate(0.6, 40), ("aligned", 1): estimate(0.55, 60),
         ("aligned", 2): nan}, {1: 16.0, 2: 24.0},
    )  # fmt: skip
    figure = ll.plots.early_warning(curve)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["net", "aligned"]
    assert list(lines[0].x) == [16, 24]
    assert list(lines[1].y) == [0.55, 0.7]
    assert "n = 60 at first, 12 at last" in figure.layout.title.subtitle.text


def test_the_identity_matrix_is_as_wide_as_its_concepts_and_sites_stand_beside_their_control():
    from latentlens.methods.identity_test import identity_test

    rng = torch.Generator().manual_seed(0)
    base = {name: torch.randn(20, 6, generator=rng) for name in ("a > b", "c > d", "<i>")}
    pairs = {name: (x, x + 2 * torch.eye(6)[i]) for i, (name, x) in enumerate(base.items())}
    found = identity_test(pairs, halvings=3)
    figure = ll.plots.identity_matrix(found)
    np.testing.assert_allclose(figure.data[0].z, found.matrix)
    assert figure.data[0].text[1][1] == "1.00"
    assert figure.data[0].y[2] == "&lt;i&gt;"
    sites = ll.plots.identity_by_site({"resid_post[0]": found, "final_norm": found})
    assert [trace.name for trace in sites.data] == ["classifiers of the concepts", "labels shuffled"]
    assert sites.data[0].y[0] == found.gap.value
    assert "3 halvings" in sites.layout.title.subtitle.text
    with pytest.raises(BadInput):
        ll.plots.identity_by_site({})
