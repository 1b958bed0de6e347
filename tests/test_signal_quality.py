"""A trajectory signal mostly measures length: the nulls must show it, and a planted difference must survive them."""

import math

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths import paths as geometry
from latentlens.maths.strata import strata, stratified_auroc
from latentlens.methods import trajectory
from latentlens.methods.signal_quality import early_warning, evaluate
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

D = 32
QUICK = {"n_draws": 5, "n_bootstrap": 200}


def walks(n=240, seed=0, longer=8, drift=0.0, sites=2):
    """Random walks; wrong ones have `longer` more segments in the median, right ones drift in one direction."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.5
    lengths = np.maximum(3, np.round(rng.lognormal(np.log(np.where(y, 12, 12 + longer)), 0.35)).astype(int))
    values: list[list[np.ndarray]] = [[] for _ in range(sites)]
    for right, length in zip(y, lengths, strict=True):
        for site in values:
            steps = rng.normal(size=(length, D))
            steps[:, 0] += drift * right
            site.append(np.cumsum(steps, axis=0))
    position = np.concatenate([10 * np.arange(k) for k in lengths])
    acts = Activations(
        {Site("resid_post", i): torch.tensor(np.concatenate(v), dtype=torch.float32) for i, v in enumerate(values)},
        {"text": np.repeat(np.arange(n), lengths), "position": position, "stop": position + 10},
    )
    return trajectory.paths(acts), y


@pytest.fixture(scope="module")
def noise():
    paths, y = walks()
    return paths, y, evaluate(trajectory.signals(paths), y, paths=paths, **QUICK)


@pytest.mark.parametrize("name", ["net", "cumulative", "aligned"])
def test_a_pure_noise_walk_with_longer_wrong_texts_looks_like_a_good_signal(noise, name):
    """The trap, and every way out of it."""
    *_, report = noise
    one = report[name]
    assert one.auroc.value > 0.7
    assert one.auroc.value == pytest.approx(report.length.value, abs=0.06)
    assert one.walk.value == pytest.approx(one.auroc.value, abs=0.05)
    assert one.resampled.value == pytest.approx(one.auroc.value, abs=0.05)
    assert abs(one.within.value - 0.5) < 0.1
    assert one.auroc.low > 0.6


@pytest.mark.parametrize("net", ["paper", "code"])
def test_a_real_difference_in_movement_survives_all_nulls(net):
    paths, y = walks(longer=0, drift=3.0)
    report = evaluate(trajectory.signals(paths, net=net), y, paths=paths, **QUICK)
    aligned = report["aligned"]
    assert abs(report.length.value - 0.5) < 0.1
    assert aligned.auroc.value > 0.9
    assert aligned.within.low > 0.8
    assert max(aligned.walk.high, aligned.resampled.high) < 0.65
    assert report["net"].auroc.value > 0.9
    assert aligned.reordered.value < aligned.auroc.value - 0.1


def test_the_net_of_the_null_is_in_the_mode_of_the_signal():
    """With two or three segments N and N - 1 differ most; the walk must use the same one."""
    paths, y = walks(longer=0)
    short = trajectory.paths(
        Activations(
            {s: torch.tensor(np.concatenate([paths[i][k, : 2 + (not y[i])] for i in range(len(y))]))
             for k, s in enumerate(paths.sites)},
            {"text": np.repeat(np.arange(len(y)), np.where(y, 2, 3)),
             "position": np.concatenate([10 * np.arange(2 + (not right)) for right in y])},
        )
    )  # fmt: skip
    nulls = {net: evaluate(trajectory.signals(short, net=net), y, paths=short, **QUICK)["net"].walk.value
             for net in ("paper", "code")}  # fmt: skip
    real = {net: evaluate(trajectory.signals(short, net=net), y, **QUICK)["net"].auroc.value for net in nulls}
    assert nulls == pytest.approx(real, abs=0.06)
    assert abs(nulls["paper"] - nulls["code"]) > 0.05


def test_the_report_says_how_many_texts_had_no_signal(noise):
    paths, y, _ = noise
    cut = trajectory.signals(paths)
    broken = {k: np.where(np.arange(len(y)) < 7, math.nan, v) for k, v in cut.values.items()}
    report = evaluate(cut.add(**broken), y, **QUICK)
    assert report["net"].dropped == 7
    assert report["net"].auroc.n == len(y) - 7
    assert report["net"].walk is None
    nothing = evaluate(cut.add(empty=np.full(len(y), math.nan)), y, **QUICK)
    assert math.isnan(nothing["empty"].auroc.value)


def test_the_report_prints_length_beside_the_signals(noise):
    *_, report = noise
    frame = report.to_frame()
    assert frame["signal"].tolist()[-1] == "length alone"
    assert {"auroc", "within", "reordered", "walk", "resampled", "dropped"} <= set(frame.columns)
    assert "length alone" in repr(report)
    assert "<table" in report._repr_html_()
    with pytest.raises(BadInput):
        report["nonsense"]


def test_samples_of_one_question_widen_the_interval():
    paths, y = walks(n=60, longer=0, drift=0.3)
    again = np.tile(np.arange(60), 4)
    many, labels = paths[again], y[again]
    found = trajectory.signals(many)
    naive = evaluate(found, labels, **QUICK)["aligned"].auroc
    grouped = evaluate(found, labels, groups=again, **QUICK)["aligned"].auroc
    assert grouped.high - grouped.low > 1.5 * (naive.high - naive.low)


def test_early_warning_reads_prefixes_only():
    paths, y = walks(longer=8, drift=1.0)
    found = early_warning(paths, y, max_steps=4)
    frame = found.to_frame()
    assert frame["step"].max() == 4
    assert found.tokens[2] == 30
    again = early_warning(paths, y, max_steps=2)
    assert again.by_step["aligned", 2] == found.by_step["aligned", 2]
    noise, labels = walks(longer=8)
    null = early_warning(noise, labels, max_steps=3)
    assert all(e.covers(0.5) or abs(e.value - 0.5) < 0.12 for e in null.by_step.values())
    with pytest.raises(TooFewExamples):
        early_warning(paths[:5], y[:5])


def test_early_warning_at_step_s_is_the_signal_of_s_plus_one_segments():
    paths, y = walks(n=60, drift=0.5)
    alive = np.flatnonzero(paths.n_points > 3)
    cut = trajectory.paths(
        Activations(
            {s: torch.tensor(np.concatenate([paths[i][k, :4] for i in alive])) for k, s in enumerate(paths.sites)},
            {"text": np.repeat(alive, 4), "position": np.tile(np.arange(4), len(alive))},
        )
    )
    whole = evaluate(trajectory.signals(cut, net="code"), y[alive], **QUICK)
    early = early_warning(paths, y, max_steps=3)
    for name in ("net", "cumulative", "aligned"):
        assert early.by_step[name, 3].value == pytest.approx(whole[name].auroc.value)


def test_one_class_is_refused():
    paths, y = walks(n=20)
    with pytest.raises(TooFewExamples):
        evaluate(trajectory.signals(paths), np.ones(20, bool))
    for wrong in (y[:3], np.arange(20)):
        with pytest.raises(BadInput):
            evaluate(trajectory.signals(paths), wrong)
    with pytest.raises(BadInput):
        evaluate(trajectory.signals(paths), y, paths=paths[:5])


# -- the simulated walk and the strata ------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(6, 40), (9, 8), (30, 8)])
def test_a_walk_in_few_coordinates_has_the_lengths_and_angles_of_one_in_all(n, d):
    rng = np.random.default_rng(0)
    short = geometry.gaussian_walk(n, d, np.full(4000, 2.0), rng)
    full = np.concatenate([np.zeros((4000, 1, d)), rng.normal(size=(4000, n - 1, d)).cumsum(1) * 2 / math.sqrt(d)], 1)
    assert short.shape[-1] == min(n - 1, d)
    for a, b in zip(geometry.displacement(short), geometry.displacement(full), strict=True):
        assert a.mean() == pytest.approx(b.mean(), rel=0.02)
        assert a.std() == pytest.approx(b.std(), rel=0.06)
    assert (geometry.speed(short) ** 2).mean() == pytest.approx(4, rel=0.02)
    assert geometry.turning(short).mean() == pytest.approx(math.pi / 2, abs=0.02)


def test_a_walk_of_s_steps_has_the_length_that_theory_says():
    for n in (5, 17):
        walk = geometry.gaussian_walk(n, 1000, np.full(500, 3.0), np.random.default_rng(0))
        reach, length, alignment = (v.mean() for v in geometry.displacement(walk))
        assert reach == pytest.approx(3 * math.sqrt(n - 1), rel=0.03)
        assert length == pytest.approx(3 * (n - 1), rel=0.01)
        assert alignment == pytest.approx(1 / math.sqrt(n - 1), rel=0.03)


def test_a_point_is_no_walk():
    assert geometry.gaussian_walk(1, 5, np.ones(2), np.random.default_rng(0)).shape == (2, 1, 0)
    assert np.isnan(geometry.displacement(np.ones((3, 1, 4)))).all()


def test_stratified_auroc_by_brute_force():
    rng = np.random.default_rng(0)
    s, y, b = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4, rng.integers(0, 4, 80)
    wins = [
        (s[i] > s[j]) + (s[i] == s[j]) / 2
        for i in np.flatnonzero(y) for j in np.flatnonzero(~y) if b[i] == b[j]
    ]  # fmt: skip
    assert stratified_auroc(s, y, b) == pytest.approx(np.mean(wins))
    with pytest.raises(TooFewExamples):
        stratified_auroc([1, 2], [0, 1], [0, 1])
    with pytest.raises(BadInput):
        stratified_auroc([1, 2], [0, 1], [0])


def test_strata_are_of_equal_size_and_never_split_ties():
    assert np.bincount(strata(np.arange(100), 10)).tolist() == [10] * 10
    assert len(np.unique(strata(np.ones(50), 10))) == 1
    tied = strata([1, 1, 1, 1, 1, 2, 3], 3)
    assert len(set(tied[:5])) == 1
    assert strata([5, 7, 5], None).tolist() == [0, 1, 0]
    for wrong in ([math.nan], [[1.0]]):
        with pytest.raises(BadInput):
            strata(wrong)
    with pytest.raises(BadInput):
        strata([1.0], 0)


def test_perfect_separation_within_strata_has_an_interval():
    paths, y = walks(n=30)
    found = evaluate(trajectory.signals(paths).add(told=y.astype(float)), y, n_bins=3, **QUICK)["told"]
    assert found.auroc.value == found.within.value == 1
    assert 0.7 < found.within.low < 1
    assert 0.7 < found.auroc.low < 1
