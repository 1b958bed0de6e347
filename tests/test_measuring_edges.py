"""Every measuring method on inputs at its edges: a named error, or the value that its docstring names."""

import math

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples, WhereNotValid
from latentlens.methods import early_stopping, intention, probe, recoverability, selection, signal_quality, trajectory
from latentlens.methods.class_probe import fit_classes
from latentlens.methods.contrast_probe import fit_contrast
from latentlens.methods.identity_test import identity_test
from latentlens.methods.probe_report import probe_report
from latentlens.methods.sdm import fit_sdm
from latentlens.methods.token_probe import fit_tokens
from latentlens.values.activations import Activations
from latentlens.values.sites import Site
from latentlens.values.where import Where

SITES = (Site("resid_post", 0), Site("resid_post", 1), Site("resid_post", 2))
QUICK = {"n_bootstrap": 60, "n_controls": 3}
REPORT = {"n_permutations": 20, "n_bootstrap": 60, "n_controls": 3, "C": (0.1,)}


def planted(n_groups=24, each=4, d=8, seed=0, strength=2.0):
    rng = np.random.default_rng(seed)
    n = n_groups * each
    labels = rng.random(n) < 0.5
    values = {
        s: torch.tensor(rng.normal(size=(n, d)) + k * strength * labels[:, None] * np.eye(d)[0], dtype=torch.float32)
        for k, s in enumerate(SITES)
    }
    return Activations(values, {"text": np.arange(n)}), labels, np.repeat(np.arange(n_groups), each)


def poisoned(value=math.nan, rows=(3, 17)):
    acts, labels, groups = planted()
    for row in rows:
        acts.values[SITES[1]][row, 2] = value
    return acts, labels, groups


# -- NaN and infinity: raise, skip, flag ---------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [probe.fit, probe_report])
def test_by_default_nan_and_infinity_are_refused(method, value):
    acts, labels, groups = poisoned(value)
    with pytest.raises(NonFiniteActivations, match=r"2 of 96 rows at resid_post\[1\].*row 3"):
        method(acts, labels, groups=groups)


def test_skipped_rows_are_left_out_of_every_site_and_counted():
    acts, labels, groups = poisoned()
    found = probe.fit(acts, labels, groups=groups, types=groups % 6, nonfinite="skip", **QUICK)
    assert found.about["nonfinite"] == {"rows left out": 2, "sites given up": {}}
    used = np.concatenate([found.train_rows, found.test_rows])
    assert sorted(used.tolist()) == [i for i in range(96) if i not in (3, 17)]
    kept = np.array([i not in (3, 17) for i in range(96)])
    plain = probe.fit(acts.rows(kept), labels[kept], groups=groups[kept], types=(groups % 6)[kept], **QUICK)
    for one, two in zip(found, plain, strict=True):
        assert one.auroc == two.auroc
        np.testing.assert_array_equal(one.weights, two.weights)
    assert not set(groups[found.train_rows]) & set(groups[found.test_rows])


def test_flagged_sites_have_no_numbers_and_are_never_the_best():
    acts, labels, groups = poisoned()
    found = probe.fit(acts, labels, groups=groups, nonfinite="flag", **QUICK)
    assert [p.site for p in found] == list(SITES)
    assert found.about["nonfinite"] == {"rows left out": 0, "sites given up": {"resid_post[1]": 2}}
    assert math.isnan(found[SITES[1]].auroc.value)
    assert math.isnan(found[SITES[1]].shuffled.value)
    assert found.best().site == SITES[2]
    assert len(found.train_rows) + len(found.test_rows) == 96
    with pytest.raises(BadInput, match="hold NaN or infinity"):
        _ = found[SITES[1]].direction
    assert found.to_frame()["auroc"].isna().tolist() == [False, True, False]
    clean = probe.fit(acts, labels, groups=groups, sites=[SITES[0], SITES[2]], **QUICK)
    assert clean[SITES[2]].auroc == found[SITES[2]].auroc


def test_a_policy_that_leaves_nothing_or_does_not_exist_is_refused():
    acts, labels, groups = planted()
    for site in SITES:
        acts.values[site][5] = math.nan
    for method in (probe.fit, probe_report):
        with pytest.raises(NonFiniteActivations, match="every one of 3 sites"):
            method(acts, labels, groups=groups, nonfinite="flag")
        with pytest.raises(BadInput, match="raise, skip, flag"):
            method(acts, labels, groups=groups, nonfinite="drop")
    for site in SITES:
        acts.values[site][:] = math.nan
    with pytest.raises(NonFiniteActivations, match="all 96 rows"):
        probe.fit(acts, labels, groups=groups, nonfinite="skip")
    good, *_ = planted()
    for policy in ("raise", "skip", "flag"):
        assert "nonfinite" not in probe.fit(good, labels, groups=groups, nonfinite=policy, **QUICK).about


def test_a_report_skips_rows_with_all_that_belongs_to_them():
    acts, labels, groups = poisoned()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "blue"], 3)) for _ in labels]
    tokens = Activations(
        {s: v.repeat_interleave(2, 0) for s, v in acts.values.items()}, {"text": np.repeat(np.arange(96), 2)}
    )
    tokens.values[SITES[2]][10] = math.nan  # a token of a text that stays
    twin, other_labels, _ = poisoned(rows=(8,))
    found = probe_report(
        acts, labels, groups=groups, types=groups % 6, texts=texts, untrained=planted(seed=3)[0], tokens=tokens,
        others={"twin": (twin, other_labels)}, nonfinite="skip", **REPORT,
    )  # fmt: skip
    assert found.auroc.n == 94
    assert found.about["nonfinite"] == {"rows left out": 2, "sites given up": {}}
    assert {"aggregation", "transfer", "controls"} <= set(found.rows)
    assert not found.missing.keys() - {"causal"}


def test_a_report_gives_up_flagged_sites_and_says_so():
    acts, labels, groups = poisoned()
    found = probe_report(acts, labels, groups=groups, nonfinite="flag", **REPORT)
    assert found.auroc.n == 96
    assert found.missing["resid_post[1]"] == "2 rows hold NaN or infinity there"
    layers = {row["what"]: row["AUROC"].value for row in found.rows["layers"]}
    assert math.isnan(layers["resid_post[1]"])
    assert layers["resid_post[2]"] > 0.8
    assert found.direction.site == SITES[2]


@pytest.mark.parametrize(
    "call",
    [
        lambda a, y, g: fit_classes(a, np.arange(96) % 3, groups=g, site=SITES[1]),
        lambda a, y, g: recoverability.recover(a, y),
        lambda a, y, g: intention.effective_dimensionality(a),
        lambda a, y, g: fit_contrast(a[SITES[1]][:48], a[SITES[1]][48:], site=SITES[1]),
        lambda a, y, g: fit_tokens(a, y, site=SITES[1]),
        lambda a, y, g: identity_test({"x": (a[SITES[1]], a[SITES[1]] + 1), "y": (a[SITES[0]], a[SITES[0]] + 1)}),
        lambda a, y, g: fit_sdm(*[a[SITES[1]], a[SITES[1]][:, :2], y] * 2),
        lambda a, y, g: trajectory.paths(Activations(a.values, {**a.labels, "position": np.zeros(96)})),
    ],
)
def test_no_other_method_sees_nan_or_infinity(call):
    with pytest.raises(NonFiniteActivations):
        call(*poisoned())


# -- one class, too few, too wide, constant, grouped ------------------------------------------------------------


def test_one_class_is_refused_or_has_no_value():
    acts, labels, groups = planted()
    one = np.ones(96, dtype=bool)
    for call in (
        lambda: probe.fit(acts, one, groups=groups),
        lambda: probe_report(acts, one, groups=groups),
        lambda: fit_classes(acts, one, groups=groups, site=SITES[0]),
        lambda: fit_tokens(acts, one, site=SITES[0]),
        lambda: fit_tokens(acts, labels, site=SITES[0], rows=np.flatnonzero(labels)),
        lambda: signal_quality.evaluate(trajectory.signals(walks(6)), np.ones(6)),
    ):
        with pytest.raises(TooFewExamples):
            call()
    found = recoverability.recover(acts, one)
    assert math.isnan(found.auroc.value)
    assert found.reason


def test_fewer_rows_than_folds_are_refused_by_name():
    acts, *_ = planted(n_groups=6, each=1)
    for call in (
        lambda: probe.fit(acts, [True, False] * 3),
        lambda: probe_report(acts, [True, False, False, False, False, False]),
        lambda: fit_classes(acts, [0, 1, 2, 0, 1, 2], site=SITES[0]),
    ):
        with pytest.raises(TooFewExamples):
            call()
    few = recoverability.recover(acts, [True, False, False, False, False, False], split="folds")
    assert math.isnan(few.auroc.value)
    assert "1" in few.reason


@pytest.mark.parametrize("method", ["logistic", "mean difference", "lda", "ridge", "sparse"])
def test_more_columns_than_rows_are_fitted_and_noise_stays_at_chance(method):
    acts, labels, groups = planted(n_groups=20, each=2, d=200, strength=0.0)
    found = probe.fit(acts, labels, groups=groups, method=method, **QUICK)
    for one in found:
        assert np.isfinite(one.weights).all()
        assert one.auroc.low <= 0.5 <= one.auroc.high
    if method == "logistic":
        assert found[SITES[0]].train_auroc == 1.0  # and says nothing: d > n


def test_a_report_with_more_columns_than_rows_covers_chance():
    acts, labels, groups = planted(n_groups=20, each=2, d=200, strength=0.0)
    found = probe_report(acts, labels, groups=groups, **REPORT)
    assert found.auroc.covers(0.5)
    assert found.p > 0.02


@pytest.mark.parametrize("method", ["logistic", "mean difference", "lda", "ridge", "sparse"])
def test_constant_features_carry_nothing(method):
    acts, labels, groups = planted()
    for site in SITES:
        acts.values[site][:, 5] = 1e4
    found = probe.fit(acts, labels, groups=groups, method=method, **QUICK)
    bare = Activations({s: v[:, [0, 1, 2, 3, 4, 6, 7]] for s, v in acts.values.items()}, acts.labels)
    plain = probe.fit(bare, labels, groups=groups, method=method, **QUICK)
    for one, two in zip(found, plain, strict=True):
        assert abs(one.weights[5]) < 1e-6 * np.abs(one.weights).max() + 1e-12
        assert one.auroc.value == pytest.approx(two.auroc.value, abs=0.03)


def test_a_group_that_is_named_in_separate_places_is_one_group():
    acts, labels, groups = planted()
    mixed = np.random.default_rng(1).permutation(96)
    moved = acts.rows(mixed)
    found = probe.fit(moved, labels[mixed], groups=groups[mixed], **QUICK)
    assert not set(groups[mixed][found.train_rows]) & set(groups[mixed][found.test_rows])
    assert sum(found.n_groups) == 24
    named = probe.fit(acts, labels, groups=[("city", int(g)) for g in groups], **QUICK)  # any hashable names
    assert named[SITES[2]].auroc == probe.fit(acts, labels, groups=groups, **QUICK)[SITES[2]].auroc


def test_copies_of_rows_change_neither_value_nor_interval_when_they_are_grouped():
    acts, labels, groups = planted()
    twice, how = acts.rows(np.repeat(np.arange(96), 2)), {"method": "mean difference", **QUICK}
    found = probe.fit(twice, np.repeat(labels, 2), groups=np.repeat(groups, 2), **how)
    plain = probe.fit(acts, labels, groups=groups, **how)
    for one, two in zip(found, plain, strict=True):
        assert one.auroc.value == pytest.approx(two.auroc.value, abs=1e-12)
        assert (one.auroc.low, one.auroc.high) == pytest.approx((two.auroc.low, two.auroc.high))


# -- empty segments, zero norms, texts that are too short -----------------------------------------------------------


def walks(n, points=4, d=3, step=1.0):
    rng = np.random.default_rng(0)
    x = torch.tensor(np.cumsum(step * rng.normal(size=(n, points, d)), axis=1), dtype=torch.float32)
    labels = {"text": np.repeat(np.arange(n), points), "position": np.tile(np.arange(points) * 10, n)}
    return trajectory.paths(Activations({SITES[0]: x.flatten(0, 1)}, {**labels, "stop": labels["position"] + 10}))


def test_an_empty_segment_is_refused_before_anything_is_computed():
    from latentlens.values.rows import TokenRow

    with pytest.raises(WhereNotValid, match="selects no token"):
        Where.of(slice(5, 5)).positions(TokenRow.plain(tuple(range(9))))
    with pytest.raises(BadInput, match="needs rows"):
        trajectory.paths(Activations({SITES[0]: torch.zeros(0, 3)}, {"text": np.zeros(0), "position": np.zeros(0)}))
    with pytest.raises(BadInput, match="n_points=0"):
        trajectory.truncated(walks(3), 0)
    with pytest.raises(BadInput, match="lengths"):
        trajectory.pooled(walks(3), 2, [0, 1, 1])


def test_states_of_zero_norm_give_zero_and_no_nan():
    still = walks(3, step=0.0)
    found = trajectory.signals(still)
    for name in ("net", "cumulative", "aligned"):
        assert found[name].tolist() == [0.0] * 3
    coe = trajectory.chain_of_embedding(torch.zeros(2, 4, 3))
    assert np.isfinite(coe.mag).all()
    assert np.isfinite(coe.coe_r).all()


def test_texts_of_one_segment_have_no_signal_and_are_counted_as_dropped():
    signals = trajectory.signals(walks(8, points=1))
    assert np.isnan(signals["net"]).all()
    mixed = trajectory.signals(walks(8)).add(extra=[math.nan, *range(7)])
    report = signal_quality.evaluate(mixed, [1, 0] * 4, n_draws=2, n_bootstrap=20)
    assert report["extra"].dropped == 1


def test_samples_without_any_score_are_never_chosen_by_it():
    nothing = np.full(20, math.nan)
    q, right = np.repeat(np.arange(5), 4), np.tile([1, 0, 0, 0], 5)
    with pytest.raises(TooFewExamples, match="finite score"):
        selection.threshold(nothing, right, q, answers=right)
    assert early_stopping.going_on(nothing, q).reshape(5, 4)[:, 0].all()
