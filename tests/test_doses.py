"""Measured strengths, against plain forward passes, and the whole way from a model to a calibrated strength."""

import copy

import families
import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.access.measures.doses import measure_doses, per_token_kl, token_nll, unsteered_nll
from latentlens.errors import BadInput
from latentlens.methods.calibrate import bisect_score_batch, kl_budget_batch
from latentlens.methods.dose import dose_response

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]


@pytest.fixture
def lm():
    return ll.load(copy.deepcopy(families.build("Llama")), cache=False)


def direction(seed: int) -> ll.Direction:
    return ll.Direction(torch.randn(families.WIDTH, generator=torch.Generator().manual_seed(seed)), "resid_post[1]")


def log_p(model, ids, vector=None):
    handle = None
    if vector is not None:
        handle = model.model.layers[1].register_forward_hook(lambda m, i, o: o + vector)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    if handle:
        handle.remove()
    return out


def test_kl_is_that_of_two_plain_forwards_over_the_steered_text(lm):
    v = direction(0)
    ask = per_token_kl(lm, PROMPTS, [lambda c: ll.Add(v, c), lambda c: [ll.Add(v, -c)]], max_new_tokens=5)
    plus, minus = ask([2.0, 3.0])
    expected = []
    for prompt in PROMPTS:
        (run,) = lm.generate([prompt], 5, steer=ll.Add(v, 2.0))
        ids = [*prompt, *run.generated]
        p, q = log_p(lm.model, ids, 2.0 * v.vector), log_p(lm.model, ids)
        expected.append((p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1])
    assert torch.allclose(plus.float(), torch.cat(expected), atol=1e-5)
    assert len(minus) == sum(len(run.generated) for run in lm.generate(PROMPTS, 5, steer=ll.Add(v, -3.0)))


def test_problems_that_are_not_asked_for_cost_nothing(lm):
    v, asked = direction(0), []

    def plan(c):
        asked.append(c)
        return ll.Add(v, c)

    ask = per_token_kl(lm, [3, 4, 5], [plan, plan, plan], max_new_tokens=2)
    first, second, third = ask([None, 1.0, None])
    assert first is None
    assert third is None
    assert len(second) == 2
    assert asked == [1.0]
    with pytest.raises(BadInput, match="3 plans"):
        ask([1.0])
    with pytest.raises(BadInput, match="no prompt"):
        per_token_kl(lm, [], [plan])


def test_nll_is_that_of_a_plain_forward_whatever_the_batch(lm):
    runs = lm.generate(PROMPTS, 6, steer=ll.Add(direction(1), 3.0), samples=2, temperature=1.0)
    found = unsteered_nll(lm, runs)
    for run, value in zip(runs, found, strict=True):
        ids = [*run.row.ids, *run.generated]
        n = len(run.generated)
        expected = -log_p(lm.model, ids)[-n - 1 : -1].gather(1, torch.tensor(run.generated)[:, None]).mean()
        assert value == pytest.approx(float(expected), abs=1e-5)
    for run, values in zip(runs, token_nll(lm, runs), strict=True):
        p = -log_p(lm.model, [*run.row.ids, *run.generated])[-len(run.generated) - 1 : -1]
        np.testing.assert_allclose(values, p.gather(1, torch.tensor(run.generated)[:, None])[:, 0], atol=1e-5)


def test_every_strength_shares_its_randomness_with_no_edit(lm):
    v = direction(2)
    doses = measure_doses(
        lm,
        PROMPTS,
        lambda c: ll.Add(v, c * 1e-12),
        [0, 1, 2],
        len_of_text,
        samples=3,
        temperature=1.0,
        max_new_tokens=5,
    )
    assert doses["effect"].shape == doses["nll"].shape == (9, 3)
    assert doses["groups"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (doses["nll"] == doses["nll"][:, :1]).all(), "an edit of no size leaves every sampled text as it was"
    assert doses["off_target"] is None


def len_of_text(run) -> float:
    return float(len(run.generated))


def test_a_dose_is_measured_and_drawn_into_a_response(lm):
    v = direction(3)

    def first_token_is_even(run):
        return run.generated[0] % 2

    doses = measure_doses(
        lm,
        PROMPTS,
        lambda c: ll.Add(v, c),
        [0, 0.1, 0.2, 5],
        first_token_is_even,
        off_target=len_of_text,
        max_new_tokens=4,
    )
    found = dose_response(**doses, n_bootstrap=100)
    norms = [e.value for e in found.norm_ratio]
    assert norms[0] == 0
    assert norms[2] == pytest.approx(2 * norms[1], rel=0.2)
    assert norms[3] > 10 * norms[2]
    assert found.about["model"] == lm.name
    assert len(found.to_frame()) == 4
    alone = lm.generate(PROMPTS, 4, steer=ll.Add(v, 5.0))
    assert np.allclose(doses["nll"][:, 3], unsteered_nll(lm, alone), atol=1e-5)


def test_of_several_edits_the_largest_share_of_the_residual_counts(lm):
    big, small = direction(4), direction(5).scaled_to(1e-3)
    alone = measure_doses(lm, PROMPTS, lambda c: ll.Add(big, c), [0, 1, 2], len_of_text, max_new_tokens=2)
    both = measure_doses(
        lm, PROMPTS, lambda c: [ll.Add(big, c), ll.Add(small, c)], [0, 1, 2], len_of_text, max_new_tokens=2
    )
    assert np.allclose(alone["norm_ratio"], both["norm_ratio"], rtol=1e-2)


def test_directions_brought_to_one_budget_spend_it_when_measured_again(organism):
    """The whole way on the embedded model: three directions, one batch a round."""
    acts = organism.activations("The cat is on the mat", sites="resid_post[4]")["resid_post[4]"]
    first = ll.Direction(acts[-1] - acts[2], "resid_post[4]").scaled_to(1.0)
    plans = [lambda c, d=d: ll.Add(d, c) for d in (first, first.random_like(0), first.random_like(1))]
    prompts = ["The cat is", "Paris is a city in", "The sea"]
    ask = per_token_kl(organism, prompts, plans)
    budgets = kl_budget_batch(ask, 3, high=200.0)
    again = ask([b.coeff for b in budgets])
    for budget, kl in zip(budgets, again, strict=True):
        assert budget.bracketed
        assert float(np.quantile(kl.numpy(), 0.95)) == pytest.approx(budget.achieved, abs=1e-3)
    assert sum(b.converged for b in budgets) >= 2
    assert max(b.iterations for b in budgets) <= 12


def test_a_score_of_several_directions_is_bisected_in_shared_batches(lm):
    """The share of texts that are unchanged falls from 1 to 0 with the strength."""
    plain = lm.generate(PROMPTS, 4).texts
    clean = [run.generated for run in lm.generate(PROMPTS, 4)]
    assert len(plain) == len(clean)

    def scores(coeffs):
        asked = [i for i, c in enumerate(coeffs) if c is not None]
        steer = [[ll.Add(direction(i), coeffs[i])] for i in asked for _ in PROMPTS]
        runs = lm.generate(PROMPTS * len(asked), 4, steer=steer)
        kept = np.array([r.generated == c for r, c in zip(runs, clean * len(asked), strict=True)], dtype=float)
        means = kept.reshape(len(asked), len(PROMPTS)).mean(axis=1).tolist()
        return [means[asked.index(i)] if i in asked else None for i in range(len(coeffs))]

    for found in bisect_score_batch(scores, 3, prior=(3.0, 3.0), bounds=(0.01, 30.0), trials=3):
        assert found.bracketed
        assert {score >= 0.3 for _, score in found.trace} == {True, False}
