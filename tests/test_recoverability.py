"""Recoverability: finds what is planted, finds nothing in noise, and says when it cannot know."""

import math

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, NonFiniteActivations
from latentlens.maths.statistics import auroc
from latentlens.methods.recoverability import recover, transfer
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

QUICK = {"n_bootstrap": 200, "n_permutations": 19}


def planted(n=160, d=60, strength=2.0, seed=0, sites=2, direction=None):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.5
    line = np.eye(d)[0] if direction is None else direction
    values = {
        Site("resid_post", i): torch.tensor(rng.normal(size=(n, d)) + strength * y[:, None] * line)
        for i in range(sites)
    }
    return Activations(values, {"text": np.arange(n)}), y


@pytest.mark.parametrize("split", ["holdout", "folds"])
def test_what_is_planted_is_recovered(split):
    acts, y = planted(strength=3.0)
    found = recover(acts, y, split=split, **QUICK)
    assert found.auroc.value > 0.9
    assert found.p == pytest.approx(1 / 20)
    assert 0.4 < found.shuffled.value < 0.6
    assert found.d == 120
    assert (found.folds, found.auroc.n) == ((1, 32) if split == "holdout" else (5, 160))


def test_the_code_uses_c_one_and_the_paper_chooses_it_on_the_validation_side():
    acts, y = planted()
    assert recover(acts, y, split="folds", n_permutations=0).C == 1
    assert recover(acts, y, n_permutations=0).C in [10.0**k for k in range(-4, 3)]
    with pytest.raises(BadInput, match="nothing to choose"):
        recover(acts, y, split="folds", C=[0.1, 1])


def test_noise_has_no_recoverability_although_it_is_fitted_perfectly():
    found = [recover(*planted(strength=0, seed=s, n=80), split="folds", C=1.0, **QUICK) for s in range(8)]
    assert all(f.train_auroc > 0.999 for f in found)
    assert 0.4 < np.mean([f.auroc.value for f in found]) < 0.6
    assert np.mean([f.p for f in found]) > 0.2


def test_samples_of_one_question_leak_unless_they_are_grouped():
    rng = np.random.default_rng(0)
    question = np.repeat(np.arange(40), 5)
    states = torch.tensor(rng.normal(size=(40, 50))[question] + 0.1 * rng.normal(size=(200, 50)))
    y = (rng.random(40) < 0.5)[question]
    acts = Activations({Site("resid_post", 0): states}, {"text": np.arange(200)})
    assert recover(acts, y, split="folds", n_permutations=0).auroc.value > 0.95
    grouped = recover(acts, y, groups=question, split="folds", **QUICK)
    assert grouped.auroc.value < 0.75
    assert grouped.p > 0.05
    assert grouped.auroc.high - grouped.auroc.low > 0.2


@pytest.mark.parametrize("split", ["holdout", "folds"])
@pytest.mark.parametrize("n_right", [0, 1, 30])
def test_a_missing_class_gives_nan_and_a_reason(split, n_right):
    acts, _ = planted(n=30)
    found = recover(acts, np.arange(30) < n_right, split=split, **QUICK)
    assert math.isnan(found.auroc.value)
    assert math.isnan(found.p)
    assert found.folds == 0
    assert found.reason
    assert found.reason in repr(found)
    assert found.short == found.reason
    assert found.to_frame()["reason"][0] == found.reason


def test_the_interval_of_out_of_fold_scores_takes_in_what_refitting_adds():
    acts, y = planted(strength=0, n=80)
    fixed = recover(acts, y, split="folds", n_permutations=0)
    wide = recover(acts, y, split="folds", n_permutations=40)
    assert fixed.wider == 1
    assert wide.wider > 1.1
    assert wide.auroc.value == fixed.auroc.value
    assert wide.auroc.high - wide.auroc.value == pytest.approx(wide.wider * (fixed.auroc.high - fixed.auroc.value))
    assert recover(acts, y, split="holdout", n_permutations=40).wider == 1
    assert wide.to_frame()["wider"][0] == wide.wider


def test_the_rarer_class_sets_the_number_of_folds():
    acts, _ = planted(n=40)
    assert recover(acts, np.arange(40) < 3, split="folds", n_permutations=0).folds == 3


def test_the_same_seed_gives_the_same_numbers():
    acts, y = planted(strength=1.0)
    one, other = (recover(acts, y, seed=3, **QUICK) for _ in range(2))
    assert repr(one) == repr(other)
    assert repr(one) != repr(recover(acts, y, seed=4, **QUICK))


def test_a_direction_shared_by_two_regimes_transfers_and_another_does_not():
    d = 60
    first, y1 = planted(seed=1, strength=3)
    same, y2 = planted(seed=2, strength=3)
    turned, y3 = planted(seed=3, strength=3, direction=np.eye(d)[1])
    found = transfer({"a": first, "b": same, "c": turned}, {"a": y1, "b": y2, "c": y3}, n_bootstrap=100)
    assert min(found["a", "a"].value, found["a", "b"].value, found["b", "a"].value) > 0.85
    assert abs(found["a", "c"].value - 0.5) < 0.15
    assert len(found.to_frame()) == 9
    assert list(found.table().columns) == ["trained in", "a", "b", "c"]
    with pytest.raises(BadInput):
        found["a", "z"]


def test_transfer_never_tests_on_an_item_it_was_trained_on():
    """States that name the item, and random labels shared by both regimes: only a leak could read them."""
    rng = np.random.default_rng(0)
    item = rng.normal(size=(120, 200))
    y = rng.random(120) < 0.5
    acts = {k: Activations({Site("resid_post", 0): torch.tensor(item)}, {"text": np.arange(120)}) for k in "ab"}
    found = transfer(acts, {"a": y, "b": y}, n_bootstrap=50)
    assert abs(found["a", "b"].value - 0.5) < 0.15


def test_a_regime_without_both_classes_has_nan_cells():
    acts, y = planted()
    found = transfer({"a": acts, "b": acts}, {"a": y, "b": np.zeros(len(y), bool)}, n_bootstrap=50)
    assert math.isnan(found["a", "b"].value)
    assert math.isnan(found["b", "a"].value)
    assert not math.isnan(found["a", "a"].value)


@pytest.mark.parametrize("width", [6, 90])
def test_out_of_fold_auroc_is_that_of_scikit_learns_loop(width):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(0)
    y = rng.random(80) < 0.4
    x = rng.normal(size=(80, width)) * rng.uniform(0.1, 10, width) + 5
    x[:, 0] += 8 * y
    x[:, 1] = 7  # constant: it carries nothing
    acts = Activations({Site("resid_post", 0): torch.tensor(x)}, {"text": np.arange(80)})
    split_seed = int(np.random.SeedSequence(3).generate_state(3)[0])
    scores = np.full(80, np.nan)
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=split_seed).split(y, y, np.arange(80)):
        mean, std = x[train].mean(0), x[train].std(0)
        std[1] = 1.0
        model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit((x[train] - mean) / std, y[train])
        scores[test] = model.decision_function((x[test] - mean) / std)
    found = recover(acts, y, split="folds", seed=3, n_permutations=0, n_bootstrap=50)
    assert found.auroc.value == pytest.approx(auroc(scores, y), abs=1e-3)


def test_permutations_refit_everything_and_are_those_of_one_at_a_time():
    acts, y = planted(n=60)
    many = recover(acts, y, n_permutations=30, n_bootstrap=50)
    one = recover(acts, y, n_permutations=1, n_bootstrap=50)
    assert one.shuffled.n == 1
    assert many.shuffled.n == 30
    assert one.auroc == many.auroc  # the company of a labelling does not change it
    assert many.shuffled.low <= one.shuffled.value <= many.shuffled.high


def test_wrong_input_is_refused():
    acts, y = planted(n=30)
    broken = Activations({Site("resid_post", 0): torch.full((30, 2), math.nan)}, {"text": np.arange(30)})
    for kwargs in ({"split": "both"}, {"C": 0.0}, {"groups": [1, 2]}, {"sites": []}):
        with pytest.raises(BadInput):
            recover(acts, y, **kwargs)
    with pytest.raises(BadInput):
        recover(acts, y[:5])
    with pytest.raises(BadInput):
        recover(acts, np.arange(30))
    with pytest.raises(NonFiniteActivations):
        recover(broken, y)
    with pytest.raises(BadInput):
        transfer({"a": acts}, {"a": y})
    with pytest.raises(BadInput):
        transfer({"a": acts, "b": planted(n=20)[0]}, {"a": y, "b": y[:20]})


def test_c_is_chosen_on_the_validation_side():
    """The label hides under a shared disturbance: only a weak penalty subtracts one column from the other."""
    rng = np.random.default_rng(0)
    y, shared = rng.random(300) < 0.5, 10 * rng.normal(size=300)
    states = torch.tensor(np.stack([y + shared, shared], 1) + 0.05 * rng.normal(size=(300, 2)))
    acts = Activations({Site("resid_post", 0): states}, {"text": np.arange(300)})
    found = recover(acts, y, C=[1e-4, 1e4], n_permutations=0)
    assert found.C == 1e4
    assert found.auroc.value > 0.95
    assert recover(acts, y, C=1e-4, n_permutations=0).auroc.value < 0.8


def test_transfer_holds_out_whole_groups():
    rng = np.random.default_rng(1)
    question = np.repeat(np.arange(40), 5)
    states = torch.tensor(rng.normal(size=(40, 80))[question] + 0.1 * rng.normal(size=(200, 80)))
    y = (rng.random(40) < 0.5)[question]
    acts = {k: Activations({Site("resid_post", 0): states}, {"text": np.arange(200)}) for k in "ab"}
    leaking = transfer(acts, {"a": y, "b": y}, n_bootstrap=50)["a", "b"]
    grouped = transfer(acts, {"a": y, "b": y}, groups=question, n_bootstrap=50)["a", "b"]
    assert leaking.value > 0.95
    assert grouped.value < 0.75
