import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, SiteNotFound, TooFewExamples
from latentlens.maths.contrastive import nearest_is_own, supervised_contrastive
from latentlens.maths.regression_scores import mean_squared_error, r_squared
from latentlens.methods import psychometrics
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

A, B = Site("resid_post", 1), Site("resid_post", 2)


def planted(n_characters=40, each=6, d=24, k=3, noise=0.3, seed=0):
    """Excerpts whose states at B hold the sheet and who speaks; at A nothing."""
    rng = np.random.default_rng(seed)
    sheets = rng.integers(0, 4, (n_characters, k)) / 3
    weights, own = rng.normal(size=(k, d)), rng.normal(size=(n_characters, d))
    who = np.repeat(np.arange(n_characters), each)
    states = sheets[who] @ weights + 0.3 * own[who] + noise * rng.normal(size=(len(who), d))
    values = {A: torch.tensor(rng.normal(size=(len(who), d))).float(), B: torch.tensor(states).float()}
    return Activations(values, {"text": np.arange(len(who))}), sheets[who], who, weights


@pytest.fixture(scope="module")
def found():
    acts, sheets, who, _ = planted()
    return psychometrics.fit(acts, sheets, who, traits=("open", "kind", "calm"), n_shuffles=2, steps=120)


def test_squared_error_and_what_it_is_worth():
    said, true = [0.2, 0.4, 0.6, 0.8, 1.0], [0.3, 0.4, 0.5, 0.8, 0.9]
    assert mean_squared_error(said, true) == pytest.approx(0.006)
    assert r_squared(said, true) == pytest.approx(0.888, abs=5e-4)
    assert r_squared([0.58] * 5, true) == pytest.approx(0)
    assert r_squared([0.5] * 5, true, constant=0.5) == 0
    assert np.isnan(r_squared([1, 2], [3, 3]))
    uniform = np.random.default_rng(0).random(100_000)
    assert mean_squared_error(np.full(100_000, 0.5), uniform) == pytest.approx(0.0833, abs=1e-3)
    with pytest.raises(BadInput):
        r_squared([1, 2], [1])
    with pytest.raises(TooFewExamples):
        mean_squared_error([], [])


def test_contrastive_loss_equals_its_formula():
    rng = torch.Generator().manual_seed(0)
    rows, classes, t = torch.randn(7, 4, generator=rng), torch.tensor([0, 0, 0, 1, 1, 2, 3]), 0.5
    z = rows / rows.norm(dim=1, keepdim=True)
    losses = []
    for i in range(7):
        own = [p for p in range(7) if p != i and classes[p] == classes[i]]
        if own:
            total = sum(float((z[i] @ z[a] / t).exp()) for a in range(7) if a != i)
            losses.append(-np.mean([np.log(float((z[i] @ z[p] / t).exp()) / total) for p in own]))
    assert len(losses) == 5
    assert float(supervised_contrastive(rows, classes, t)) == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(TooFewExamples):
        supervised_contrastive(rows, torch.arange(7), t)
    with pytest.raises(BadInput):
        supervised_contrastive(rows, classes, 0)


def test_contrastive_loss_has_a_gradient_with_rows_alone_in_their_class():
    rows = torch.randn(5, 3, requires_grad=True)
    supervised_contrastive(rows, torch.tensor([0, 0, 1, 1, 2])).backward()
    assert torch.isfinite(rows.grad).all()


def test_the_nearest_row_is_of_the_same_class_or_not():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]])
    own, chance = nearest_is_own(rows, torch.tensor([0, 0, 1, 1, 0]))
    assert own.tolist() == [True, True, True, True, False]
    assert chance == pytest.approx((2 + 2 + 1 + 1 + 2) / 5 / 4)


def test_a_planted_sheet_is_read_from_unseen_characters_where_it_is_and_not_elsewhere(found):
    there, elsewhere = found["resid_post[2]"], found["resid_post[1]"]
    assert there.r2.low > 0.6
    assert there.mse.high < there.constant_mse / 2
    assert elsewhere.r2.value < 0.1
    assert found.best() is there
    assert there.ridge_r2.low > 0.6
    assert set(there.by_trait) == {"open", "kind", "calm"}
    assert all(r2.value > 0.5 for _, r2 in there.by_trait.values())


def test_sheets_dealt_to_others_are_not_read(found):
    assert found["resid_post[2]"].shuffled_r2.high < 0.1


def test_unseen_characters_are_told_apart_better_than_by_chance(found):
    there = found["resid_post[2]"]
    assert there.identity.low > 3 * there.chance_identity
    assert found["resid_post[1]"].identity.value < 0.35


def test_no_character_is_on_both_sides():
    who = np.repeat(np.arange(30), 4)
    parts = psychometrics._split(who, 0.3, 0)
    names = [set(who[part]) for part in parts]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert sum(map(len, names)) == 30
    assert sum(map(len, parts)) == len(who)


def test_without_a_shared_layer_the_identity_head_changes_nothing():
    acts, sheets, who, _ = planted(16, 4)
    how = {"sites": B, "n_shuffles": 0, "steps": 30}
    with_it = psychometrics.fit(acts, sheets, who, **how)["resid_post[2]"]
    without = psychometrics.fit(acts, sheets, who, identity=False, **how)["resid_post[2]"]
    assert without.identity is None
    assert with_it.mse.value == pytest.approx(without.mse.value, rel=0.02)
    shared = psychometrics.fit(acts, sheets, who, shared=16, **how)["resid_post[2]"]
    shared_without = psychometrics.fit(acts, sheets, who, shared=16, identity=False, **how)["resid_post[2]"]
    assert abs(shared.mse.value - shared_without.mse.value) > 1e-4


def test_trait_directions_are_the_planted_effects():
    acts, sheets, _, weights = planted(noise=0.05, n_characters=200)
    made = psychometrics.trait_directions(acts[B], sheets, ("a", "b", "c"), B)
    for name, row in zip("abc", weights, strict=True):
        assert torch.nn.functional.cosine_similarity(made[name].vector, torch.tensor(row).float(), 0) > 0.97
        assert made[name].norm == pytest.approx(np.linalg.norm(row), rel=0.15)
    with pytest.raises(TooFewExamples, match="follows"):
        psychometrics.trait_directions(acts[B], np.c_[sheets[:, :2], sheets[:, 0] + sheets[:, 1]], ("a", "b", "c"), B)


def test_angles_stand_beside_chance(found):
    one = found["resid_post[2]"]
    assert one.chance_angle == pytest.approx((2 / (np.pi * 24)) ** 0.5)
    assert 0 <= one.angle < 0.6


def test_tokens_of_an_excerpt_are_averaged_first():
    acts, sheets, who, _ = planted(12, 3)
    twice = Activations({B: acts[B].repeat_interleave(2, 0)}, {"text": np.repeat(np.arange(len(acts)), 2)})
    how = {"sites": B, "n_shuffles": 0, "steps": 20, "identity": False}
    one = psychometrics.fit(acts, sheets, who, **how)["resid_post[2]"]
    assert psychometrics.fit(twice, sheets, who, **how)["resid_post[2]"].mse.value == pytest.approx(one.mse.value)


def test_what_makes_no_sense_is_refused(found):
    acts, sheets, who, _ = planted(12, 3)
    with pytest.raises(BadInput, match="0 to 1"):
        psychometrics.fit(acts, sheets * 2, who)
    with pytest.raises(BadInput, match="belong to the character"):
        psychometrics.fit(acts, sheets, np.arange(len(who)) // 7)
    with pytest.raises(BadInput, match="names"):
        psychometrics.fit(acts, sheets, who, traits=("a",))
    with pytest.raises(TooFewExamples, match="at least ten"):
        psychometrics.fit(acts.rows(who < 6), sheets[who < 6], who[who < 6])
    with pytest.raises(SiteNotFound):
        found["resid_post[7]"]
    assert list(found.to_frame()["site"]) == ["resid_post[1]", "resid_post[2]"]
