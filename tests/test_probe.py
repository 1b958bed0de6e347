"""Linear probes on planted directions, where the right answer is known."""

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.statistics import auroc
from latentlens.methods import probe
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

D = 24
GROUPS, PER_GROUP = 60, 6
SITES = (Site("resid_post", 0), Site("resid_post", 1), Site("resid_post", 2))
QUICK = {"n_bootstrap": 300, "n_controls": 6}


def planted(strengths=(0.0, 1.0, 2.5), seed=0, group_noise=1.0):
    """Groups of rows with mixed labels; the label moves a unit direction by `strength` at each site."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(GROUPS), PER_GROUP)
    labels = rng.random(len(groups)) < 0.5
    truth = rng.normal(size=D)
    truth /= np.linalg.norm(truth)
    values = {}
    for site, strength in zip(SITES, strengths):
        noise = rng.normal(size=(len(groups), D)) + group_noise * rng.normal(size=(GROUPS, D))[groups]
        values[site] = torch.tensor(noise + strength * labels[:, None] * truth, dtype=torch.float32)
    return Activations(values, {"text": np.arange(len(groups))}, {"model": "made up"}), labels, groups, truth


@pytest.fixture(scope="module")
def found():
    acts, labels, groups, truth = planted()
    return acts, labels, groups, truth, probe.fit(acts, labels, groups=groups, seed=0, **QUICK)


def test_a_planted_direction_is_recovered(found):
    *_, truth, sweep = found
    best = sweep.best()
    assert best.site == SITES[2]
    assert abs(best.direction.unit.numpy() @ truth) > 0.85
    assert best.mean_direction.unit.numpy() @ truth > 0.85


def test_label_one_is_the_positive_side(found):
    acts, labels, *_, truth, sweep = found
    assert sweep.best().direction.unit.numpy() @ truth > 0
    turned = probe.fit(acts, ~labels, groups=found[2], seed=0, **QUICK)
    assert turned.best().direction.unit.numpy() @ truth < 0
    assert turned.best().auroc.value == pytest.approx(sweep.best().auroc.value, abs=1e-3)


def test_intervals_cover_the_auroc_that_fresh_data_shows():
    rng = np.random.default_rng(99)
    fresh_labels = np.arange(5000) % 2 == 0
    covered = []
    for seed in range(16):
        acts, labels, groups, truth = planted(seed=seed, strengths=(2.5,))
        p = probe.fit(acts, labels, groups=groups, C=0.01, seed=seed, n_bootstrap=300, n_controls=1).best()
        fresh = rng.normal(size=(5000, D)) * np.sqrt(2) + 2.5 * fresh_labels[:, None] * truth
        covered.append(p.auroc.covers(auroc(p.logits(torch.tensor(fresh)).numpy(), fresh_labels)))
    assert sum(covered) >= 13  # of 16; nominal 95%


def test_where_nothing_is_planted_the_interval_covers_chance(found):
    assert found[-1][SITES[0]].auroc.covers(0.5)


def test_shuffled_labels_give_chance(found):
    for p in found[-1]:
        assert p.shuffled.value == pytest.approx(0.5, abs=0.08)
        assert p.shuffled.n == 6
    acts, labels, groups, _ = planted()
    lost = probe.fit(acts, np.random.default_rng(5).permutation(labels), groups=groups, **QUICK)
    assert all(p.auroc.covers(0.5) for p in lost)


def test_activations_times_direction_plus_intercept_is_the_logit(found):
    acts, labels, *_, sweep = found
    for p in sweep:
        logits = acts[p.site] @ p.direction.vector + p.intercept
        torch.testing.assert_close(logits, p.logits(acts[p.site]))
        test = sweep.test_rows
        assert auroc(logits.numpy()[test], labels[test]) == pytest.approx(p.auroc.value, abs=1e-4)


@pytest.mark.parametrize("width", [8, 400])  # 400: more features than rows, the rotated solution
def test_the_probe_is_scikit_learns_in_raw_coordinates(width):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, width)) * rng.uniform(0.1, 10, width) + rng.normal(size=width)
    labels = x[:, 0] - x[:, 0].mean() + rng.normal(size=200) > 0
    acts = Activations({SITES[0]: torch.tensor(x)}, {})
    sweep = probe.fit(acts, labels, C=0.1, types=np.arange(200) % 7, **QUICK)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    theirs.fit(x[sweep.train_rows], labels[sweep.train_rows])
    ours = sweep[SITES[0]].logits(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, theirs.decision_function(x), atol=5e-3)


def test_no_group_is_on_both_sides(found):
    _, labels, groups, _, sweep = found
    assert not set(groups[sweep.train_rows]) & set(groups[sweep.test_rows])
    assert sweep.n_train + sweep.n_test == len(labels)
    assert sweep.n_test / len(labels) == pytest.approx(0.3, abs=0.03)
    assert sweep.n_groups == (len(set(groups[sweep.train_rows])), len(set(groups[sweep.test_rows])))


def test_group_noise_leaks_through_a_row_split_and_not_through_ours():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 5)
    labels = rng.permutation(np.arange(60) % 2 == 0)[groups]  # one random label a group: nothing to learn
    noise = rng.normal(size=(60, 64))[groups] + 0.1 * rng.normal(size=(300, 64))
    acts = Activations({SITES[0]: torch.tensor(noise, dtype=torch.float32)}, {})
    naive = probe.fit(acts, labels, groups=np.arange(300), **QUICK)
    ours = probe.fit(acts, labels, groups=groups, **QUICK)
    assert naive.best().auroc.value > 0.85
    assert ours.best().auroc.covers(0.5)
    assert ours.best().auroc.value < 0.75


def test_the_control_task_shows_what_memorising_groups_alone_would_give():
    acts, labels, groups, _ = planted(group_noise=3.0)
    sweep = probe.fit(acts, labels, groups=groups, **QUICK)
    strong = sweep[SITES[2]]
    assert strong.control.value > 0.7  # group identity is easy to read here
    assert strong.selectivity.n == 6
    plain = probe.fit(*planted(group_noise=0.0)[:2], groups=groups, **QUICK)[SITES[2]]
    assert plain.control.value == pytest.approx(0.5, abs=0.1)
    assert plain.selectivity.value > 0.3


def test_types_that_recur_keep_the_split_by_group():
    acts, labels, groups, _ = planted()
    templates = np.arange(len(labels)) % 3
    sweep = probe.fit(acts, labels, groups=groups, types=templates, **QUICK)
    assert sweep.best().control.value == pytest.approx(0.5, abs=0.12)
    # here the true labels meet the same split, so selectivity is the plain difference
    best = sweep.best()
    assert best.selectivity.value == pytest.approx(best.auroc.value - best.control.value, abs=1e-6)
    with pytest.raises(BadInput, match="recur"):
        probe.fit(acts, labels, groups=groups, types=groups, **QUICK)


def test_without_groups_texts_are_the_groups_and_lone_rows_have_no_control():
    acts, labels, *_ = planted()
    sweep = probe.fit(acts, labels, **QUICK)
    assert sweep.best().control is None
    assert "no group has two rows" in sweep.about["control task"]
    twice = Activations(acts.values, {"text": np.arange(len(labels)) // 2})
    assert probe.fit(twice, labels, **QUICK).n_groups[0] < 130


def test_best_is_chosen_on_the_training_side():
    acts, labels, groups, _ = planted()
    sweep = probe.fit(acts, labels, groups=groups, **QUICK)
    held_out = {s: v.clone() for s, v in acts.values.items()}
    held_out[SITES[2]][torch.as_tensor(sweep.test_rows)] *= -1  # ruin the best site's held-out score
    again = probe.fit(Activations(held_out, acts.labels), labels, groups=groups, **QUICK)
    assert again[SITES[2]].auroc.value < 0.3
    assert again.best().site == SITES[2]


def test_the_held_out_rows_do_not_touch_the_probe():
    acts, labels, groups, _ = planted()
    sweep = probe.fit(acts, labels, groups=groups, **QUICK)
    other = {s: v.clone() for s, v in acts.values.items()}
    for v in other.values():
        v[torch.as_tensor(sweep.test_rows)] = 1e6
    again = probe.fit(Activations(other, acts.labels), labels, groups=groups, **QUICK)
    for a, b in zip(sweep, again):
        assert np.array_equal(a.weights, b.weights)
        assert a.C == b.C


def test_everything_is_decided_by_the_seed():
    acts, labels, groups, _ = planted()
    a, b = (probe.fit(acts, labels, groups=groups, seed=4, **QUICK) for _ in range(2))
    c = probe.fit(acts, labels, groups=groups, seed=5, **QUICK)
    assert a.to_frame().equals(b.to_frame())
    assert a.best().direction == b.best().direction
    assert not np.array_equal(a.test_rows, c.test_rows)


def test_perfect_separation_still_has_an_interval_with_a_width():
    acts, labels, groups, _ = planted(strengths=(0.0, 0.0, 60.0))
    best = probe.fit(acts, labels, groups=groups, **QUICK).best()
    assert (best.auroc.value, best.auroc.high) == (1, 1)
    assert 0.5 < best.auroc.low < 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (lambda y: y, ("False", "True")),
        (lambda y: y.astype(int), ("0", "1")),
        (lambda y: np.where(y, "true", "false"), ("false", "true")),
        (lambda y: list(np.where(y, 1, -1)), ("-1", "1")),
        (lambda y: torch.as_tensor(y), ("False", "True")),
    ],
)
def test_labels_may_be_bool_int_or_str(labels, classes):
    acts, y, groups, _ = planted()
    sweep = probe.fit(acts, labels(y), groups=groups, sites="resid_post[2]", C=0.1, **QUICK)
    assert sweep.classes == classes
    assert sweep.best().auroc.value > 0.7
    assert np.isnan(sweep.best().cv_auroc)  # one site and one C: nothing was chosen


def test_sites_may_be_a_slice_or_a_list():
    acts, labels, groups, _ = planted()
    assert probe.fit(acts, labels, groups=groups, sites="resid_post[1:3]", **QUICK).sites == SITES[1:]
    assert probe.fit(acts, labels, groups=groups, sites=[SITES[0]], **QUICK).sites == SITES[:1]


def test_a_constant_site_is_at_chance_and_has_no_direction():
    acts, labels, groups, _ = planted()
    constant = Activations({SITES[0]: torch.full((len(labels), D), 0.1), SITES[2]: acts[SITES[2]]}, {})
    sweep = probe.fit(constant, labels, groups=groups, **QUICK)
    assert sweep[SITES[0]].auroc.value == 0.5
    assert sweep.best().site == SITES[2]
    with pytest.raises(BadInput, match="the same in every row"):
        _ = sweep[SITES[0]].direction
    with pytest.raises(BadInput, match="the same in every row"):
        _ = sweep[SITES[0]].mean_direction


def test_what_cannot_be_probed_is_refused_by_name():
    acts, labels, groups, _ = planted()
    with pytest.raises(TooFewExamples, match="two classes"):
        probe.fit(acts, np.ones(len(labels)), groups=groups)
    with pytest.raises(TooFewExamples, match="at least 2 on each side"):
        probe.fit(acts, labels, groups=np.arange(len(labels)) % 3)
    with pytest.raises(TooFewExamples, match="1 group\\(s\\) hold label 1"):
        probe.fit(acts, groups == 0, groups=groups)
    with pytest.raises(TooFewExamples, match="one C and one site"):
        probe.fit(acts, groups % 4 < 2, groups=groups % 4)
    with pytest.raises(BadInput, match="one label a row"):
        probe.fit(acts, labels[:-1], groups=groups)
    with pytest.raises(BadInput, match="groups for 360 rows"):
        probe.fit(acts, labels, groups=groups[:-1])
    with pytest.raises(BadInput, match="distinct labels"):
        probe.fit(acts, groups, groups=groups)
    with pytest.raises(BadInput, match="NaN"):
        probe.fit(acts, np.where(labels, 1.0, np.nan), groups=groups)
    with pytest.raises(BadInput, match="must be bool, int or str"):
        probe.fit(acts, [None, *labels[1:]], groups=groups)
    with pytest.raises(BadInput, match="positive"):
        probe.fit(acts, labels, groups=groups, C=0.0)
    with pytest.raises(BadInput, match="test_share"):
        probe.fit(acts, labels, groups=groups, test_share=1.2)
    with pytest.raises(BadInput, match="no site"):
        probe.fit(acts, labels, groups=groups, sites=[])
    heads = Activations({Site("z", 0): torch.zeros(len(labels), 2, 4)}, {})
    with pytest.raises(BadInput, match=r"rows of shape \(2, 4\)"):
        probe.fit(heads, labels, groups=groups)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_probe_never_sees_nan_or_infinity(poison):
    acts, labels, groups, _ = planted()
    acts.values[SITES[1]][7, 3] = poison
    with pytest.raises(NonFiniteActivations, match=r"1 of 360 rows at resid_post\[1\].*row 7"):
        probe.fit(acts, labels, groups=groups, **QUICK)


@pytest.mark.parametrize("method", ["logistic", "mean difference", "lda", "ridge", "sparse"])
def test_every_method_finds_the_planted_direction_with_the_same_controls(method):
    acts, labels, groups, truth = planted(strengths=(0.0, 1.0, 4.0))
    sweep = probe.fit(acts, labels, groups=groups, method=method, k=12, seed=0, **QUICK)
    best = sweep.best()
    assert best.site == SITES[2]
    assert best.direction.unit.numpy() @ truth > 0.7
    assert best.auroc.value > 0.85
    assert sweep[SITES[0]].auroc.covers(0.5)
    for p in sweep:
        assert p.shuffled.value == pytest.approx(0.5, abs=0.1)
        logits = acts[p.site] @ p.direction.vector + p.intercept
        torch.testing.assert_close(logits, p.logits(acts[p.site]), rtol=1e-4, atol=1e-4)
    assert best.selectivity.value > 0.1
    assert method in sweep.about["method"]
    assert method in str(dict(best.direction.source))


def test_a_sparse_probe_keeps_k_latents_and_an_unknown_method_is_refused():
    acts, labels, groups, _ = planted()
    sweep = probe.fit(acts, labels, groups=groups, method="sparse", k=3, **QUICK)
    assert all(np.count_nonzero(p.weights) == 3 for p in sweep)
    with pytest.raises(BadInput, match="allowed are logistic"):
        probe.fit(acts, labels, groups=groups, method="svm")


@pytest.mark.slow
def test_intervals_cover_chance_at_their_rate_over_200_seeds():
    covered = []
    for seed in range(200):
        acts, labels, groups, _ = planted(strengths=(0.0,), seed=seed)
        sweep = probe.fit(acts, labels, groups=groups, C=0.01, seed=seed, n_bootstrap=300, n_controls=1)
        covered.append(sweep.best().auroc.covers(0.5))
    assert 0.93 <= np.mean(covered) <= 0.97, np.mean(covered)
