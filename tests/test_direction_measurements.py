"""What running the model adds to the estimators: refusal, ReFT-r1, COLD and effects on latents, against plain torch."""

import copy

import families
import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens import directions
from latentlens.access.measures.likelihood import answer_nll
from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.odds import log_odds_of
from latentlens.maths.rank_one import rank_one_edit, split_top

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]


@pytest.fixture
def lm():
    return ll.load(copy.deepcopy(families.build("Llama")), cache=False)


def direction(seed, site="resid_post[0]"):
    return ll.Direction(torch.randn(families.WIDTH, generator=torch.Generator().manual_seed(seed)), site)


def written(lm, seed=0):
    return list(lm.generate(PROMPTS, 4, temperature=1.0, seed=seed))


def untouched(lm, before):
    return all(torch.equal(a, b) and a.grad is None for a, b in zip(lm.model.parameters(), before, strict=True))


# -- refusal ------------------------------------------------------------------------------------------------


def test_log_odds_are_those_of_the_probability_and_survive_certainty():
    logits = torch.randn(3, 7)
    p = logits.double().softmax(-1)[:, [1, 4]].sum(-1)
    torch.testing.assert_close(log_odds_of(logits, [1, 4]), (p / (1 - p)).log())
    sure = torch.tensor([200.0, 0.0, -200.0])
    assert float(log_odds_of(sure, [0])) == pytest.approx(200.0)
    assert float(log_odds_of(sure, [2])) == pytest.approx(-400.0)
    for tokens in ([], [7], [0, 1, 2]):
        with pytest.raises(BadInput):
            log_odds_of(sure, tokens)


def test_refusal_numbers_are_those_of_plain_forwards(lm):
    r = direction(1)
    u, tokens = r.unit, [2, 5]

    def logits(ids, *, ablate=False, add=False):
        handles = []
        without = lambda h: h - (h @ u)[..., None] * u
        for block in lm.model.model.layers if ablate else []:
            handles.append(block.register_forward_pre_hook(lambda m, a: (without(a[0]), *a[1:])))
            handles.append(block.mlp.register_forward_hook(lambda m, a, o: without(o)))
            handles.append(block.self_attn.register_forward_hook(lambda m, a, o: (without(o[0]), *o[1:])))
        if add:
            handles.append(lm.model.model.layers[0].register_forward_hook(lambda m, a, o: o + r.vector))
        with torch.no_grad():
            found = lm.model(torch.tensor([ids])).logits[0, -1].double()
        for handle in handles:
            handle.remove()
        return found

    found = ll.measure_refusal(lm, [direction(0), r], PROMPTS[:2], PROMPTS[1:], tokens)
    score = lambda many: float(torch.stack([log_odds_of(one, tokens) for one in many]).mean())
    assert found["ablation"][1] == pytest.approx(score([logits(p, ablate=True) for p in PROMPTS[:2]]), abs=1e-4)
    assert found["induce"][1] == pytest.approx(score([logits(p, add=True) for p in PROMPTS[1:]]), abs=1e-4)
    kl = []
    for prompt in PROMPTS[1:]:
        p, q = logits(prompt).log_softmax(-1), logits(prompt, ablate=True).log_softmax(-1)
        kl.append(float((p.exp() * (p - q)).sum()))
    assert found["kl"][1] == pytest.approx(np.mean(kl), rel=1e-3)
    with pytest.raises(BadInput, match="none may be 0"):
        ll.measure_refusal(lm, [], PROMPTS, PROMPTS, tokens)


def test_the_embedded_model_refuses_through_the_direction_that_is_chosen(organism):
    drawn = {k: [t.prompt() for t in ll.organism.draw("refusal", 60, 900, split=k)] for k in ("harmful", "harmless")}
    inputs = drawn["harmful"][:24] + drawn["harmless"][:24]
    acts = organism.activations(inputs, sites="resid_post[*]", where="last-2")
    found = directions.refusal_candidates(acts, [True] * 24 + [False] * 24)
    tokens = ll.refusal_tokens(organism, ["I"])
    measured = ll.measure_refusal(organism, found, drawn["harmful"][24:40], drawn["harmless"][24:40], tokens)
    # Only in the last fifth of the six blocks does a direction in 128 dimensions cost other prompts under 0.1 nats.
    choice = directions.select_refusal(found, **measured, n_blocks=organism.layout.n_blocks, deepest=1.0)
    assert choice.direction.source["offset"] == -1  # where the answer begins; the token before knows nothing of it
    everywhere = ["resid_pre[*]", "attn_out[*]", "mlp_out[*]"]
    refused = lambda prompts, plan: np.mean(
        [ll.organism.judges.is_refusal(t) for t in organism.generate(prompts, 8, steer=plan).texts]
    )
    harmful, harmless = drawn["harmful"][40:], drawn["harmless"][40:]
    assert refused(harmful, None) > 0.9
    assert refused(harmful, ll.ProjectOut(choice.direction, site=everywhere)) < 0.3
    assert refused(harmless, None) < 0.1
    assert refused(harmless, ll.Add(choice.direction, 1.0, where="prompt")) > 0.7
    random = choice.direction.random_like(0)
    assert refused(harmful, ll.ProjectOut(random, site=everywhere)) > 0.7
    assert refused(harmless, ll.Add(random, 1.0, where="prompt")) < 0.3


# -- likelihood and ReFT-r1 ------------------------------------------------------------------------------------


def test_answer_nll_is_that_of_plain_forwards_and_has_a_gradient(lm):
    runs = written(lm)
    rows = lm.tokens(runs)
    found = answer_nll(lm.layout, rows)
    assert found.requires_grad
    np.testing.assert_allclose(found.detach().numpy(), ll.unsteered_nll(lm, runs), atol=1e-5)
    with pytest.raises(BadInput, match="has no answer"):
        answer_nll(lm.layout, lm.tokens(PROMPTS))


def test_t_rank_one_by_hand():
    """w = [.6, .8]: latents .6, .8, 2.8, 0; mean of the two largest 1.8; the first state becomes [2.08, 1.44]."""
    states, w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, -1.0]]), torch.tensor([0.6, 0.8])
    torch.testing.assert_close(rank_one_edit(states, w, 2)[0], torch.tensor([2.08, 1.44]))
    mean, others = split_top(torch.tensor([0.6, 0.8, 2.8, 0.0]), 2)
    assert (float(mean), float(others)) == (pytest.approx(1.8), pytest.approx(0.6))
    mask = torch.tensor([True, True, False, True])
    edited = rank_one_edit(states, w, 2, mask)  # mean of .8 and .6
    torch.testing.assert_close(edited[2], states[2])
    torch.testing.assert_close(edited[3], states[3] + 0.7 * w)
    assert float(split_top(torch.tensor([0.5]), 8)[0]) == 0.5
    with pytest.raises(BadInput, match="k=0"):
        rank_one_edit(states, w, 0)


def test_reft_learns_a_direction_that_makes_its_texts_likelier_and_leaves_the_model_alone(lm):
    before = [p.detach().clone() for p in lm.model.parameters()]
    runs = [run for seed in range(6) for run in written(lm, seed)]
    found = ll.train_reft(lm, runs, "resid_post[1]", epochs=12, lr=0.03, l1=0.0, where="all", seed=1)
    assert untouched(lm, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    first, last = found.source["loss"]
    assert last < first - 0.02
    assert found.norm == pytest.approx(found.source["largest latent"], rel=1e-5)
    assert ll.train_reft(lm, runs, "resid_post[1]", epochs=1, seed=1) == ll.train_reft(
        lm, runs, "resid_post[1]", epochs=1, seed=1
    )
    assert ll.train_reft(lm, runs, "resid_post[1]", epochs=1, seed=2).cosine(found) < 0.9
    begins = ll.PerRow([len(run.row) - 1 for run in runs])
    for seed in range(6):  # with one position a text, half of all first directions have no latent and no gradient
        once = ll.train_reft(lm, [runs[0]] * 2, "resid_post[1]", epochs=1, where=[0], seed=seed)
        assert once.norm > 0
    assert ll.train_reft(lm, runs, "resid_post[1]", epochs=1, where=begins).norm > 0
    with pytest.raises(BadInput, match="2 sites"):
        ll.train_reft(lm, runs, "resid_post[0:2]")
    with pytest.raises(TooFewExamples, match="at least two"):
        ll.train_reft(lm, runs[:1], "resid_post[1]")
    with pytest.raises(BadInput, match="has no answer"):
        ll.train_reft(lm, PROMPTS, "resid_post[1]")


def test_an_exception_while_training_leaves_no_hook(lm):
    with pytest.raises(RuntimeError, match="stop here"):
        answer_nll(lm.layout, lm.tokens(written(lm)), [(lm.layout.tap(ll.Site("resid_post", 0)), _raise)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def _raise(states):
    raise RuntimeError("stop here")


# -- COLD --------------------------------------------------------------------------------------------------


def test_cold_states_move_by_the_derivative_along_the_gradient(lm):
    before = [p.detach().clone() for p in lm.model.parameters()]
    runs = written(lm)
    found = directions.cold_changes(*ll.cold_states(lm, runs, PROMPTS, "resid_post[0]")).values
    assert untouched(lm, before)

    twin = copy.deepcopy(lm.model).double()
    losses = []
    for run in runs:
        ids = torch.tensor([[*run.row.ids, *run.generated]])
        log_p = twin(ids).logits[0].log_softmax(-1)
        n = len(run.generated)
        losses.append(-log_p[-n - 1 : -1].gather(1, torch.tensor(run.generated)[:, None]).mean())
    names = [name for name, _ in twin.named_parameters()]
    gradient = torch.autograd.grad(torch.stack(losses).mean(), list(twin.parameters()), allow_unused=True)
    held = {}
    twin.model.layers[0].register_forward_hook(lambda m, a, o: held.update(z=o))

    def states(step):
        moved_to = {n: p + step * g for n, p, g in zip(names, twin.parameters(), gradient) if g is not None}
        with torch.no_grad():
            out = []
            for prompt in PROMPTS:
                torch.func.functional_call(twin, moved_to, (torch.tensor([prompt]),))
                out.append(held["z"][0])
        return torch.cat(out)

    expected = -(states(1e-4) - states(-1e-4)) / 2e-4  # central difference: error of order step^2
    assert float((found - expected).norm()) < 0.01 * float(expected.norm())


def test_the_loss_falls_where_states_move_as_cold_says(lm):
    """z + eta dz is what a small step of gradient descent makes of the states: the examples get likelier."""
    runs = written(lm)
    states = ll.cold_states(lm, runs, runs, "resid_post[1]")
    vectors, owner = directions.cold_changes(*states).values.float(), states.plain.labels["text"]
    rows = lm.tokens(runs)
    nll = answer_nll(lm.layout, rows).mean()
    width = max(map(len, rows))
    added = torch.zeros(len(rows), width, vectors.shape[1])
    for i, row in enumerate(rows):
        added[i, : len(row)] = vectors[torch.tensor(owner == i)]
    tap, step = lm.layout.tap(ll.Site("resid_post", 1)), 1e-3
    better = answer_nll(lm.layout, rows, [(tap, lambda h: h + step * added)]).mean()
    worse = answer_nll(lm.layout, rows, [(tap, lambda h: h - step * added)]).mean()
    assert better.item() < nll.item() < worse.item()


def test_cold_gradients_are_those_of_autograd(lm):
    runs = written(lm)
    found = ll.cold_gradients(lm, runs, "resid_post[0]", where="all")
    row = 0
    for i, run in enumerate(runs):
        ids = torch.tensor([[*run.row.ids, *run.generated]])
        held = {}

        def leaf(m, a, o, held=held):
            held["z"] = o.detach().requires_grad_()
            return held["z"]

        handle = lm.model.model.layers[0].register_forward_hook(leaf)
        log_p = lm.model(ids).logits[0].log_softmax(-1)
        handle.remove()
        n = len(run.generated)
        loss = -log_p[-n - 1 : -1].gather(1, torch.tensor(run.generated)[:, None]).mean()
        (expected,) = torch.autograd.grad(loss, [held["z"]])
        mine = found["resid_post[0]"][found.labels["text"] == i]
        torch.testing.assert_close(mine, expected[0], atol=1e-6, rtol=1e-4)
        row += len(mine)
    assert row == len(found)
    direct = directions.unit_kernel(found)
    torch.testing.assert_close(direct.vector, -found["resid_post[0]"].mean(0), atol=1e-7, rtol=1e-4)


def test_preferences_start_as_half_of_beta_times_the_difference_of_both_losses(lm):
    chosen, rejected = written(lm, 0), written(lm, 5)
    both = ll.cold_gradients(lm, chosen, "resid_post[0]", rejected=rejected, beta=0.1)
    for side, sign, first in ((chosen, 1, 0), (rejected, -1, len(chosen))):
        alone = ll.cold_gradients(lm, side, "resid_post[0]")
        mine = both["resid_post[0]"][(both.labels["text"] >= first) & (both.labels["text"] < first + len(side))]
        torch.testing.assert_close(mine, sign * 0.05 * alone["resid_post[0]"], atol=1e-7, rtol=1e-4)
    changes = lambda *sides: (
        directions.cold_changes(
            *ll.cold_states(lm, sides[0], PROMPTS, 0, rejected=sides[1] if len(sides) > 1 else None)
        ).values
    )
    pair, expected = changes(chosen, rejected), 0.05 * (changes(chosen) - changes(rejected))
    assert float((pair - expected).norm()) < 0.01 * float(expected.norm())
    with pytest.raises(BadInput, match="as many of each"):
        ll.cold_states(lm, chosen, PROMPTS, 0, rejected=rejected[:1])
    with pytest.raises(TooFewExamples):
        ll.cold_gradients(lm, [], 0)


# -- effects on latents ---------------------------------------------------------------------------------------


def test_effects_are_mean_codes_of_the_texts_written_under_each_vector(lm):
    from latentlens.values.sae import SAE

    g = torch.Generator().manual_seed(0)
    width = families.WIDTH
    parts = {"W_enc": torch.randn(width, 12, generator=g), "W_dec": torch.randn(12, width, generator=g)}
    sae = SAE("relu", b_enc=torch.zeros(12), b_dec=torch.zeros(width), site=ll.Site("resid_post", 1), **parts)
    lm.reference_texts = PROMPTS
    vectors = torch.randn(3, width, generator=g)
    found = ll.measure_effects(lm, sae, PROMPTS, vectors, 0.7, max_new_tokens=3, seed=4)
    assert found.shape == (3, 12)
    add = ll.Add(ll.Direction(vectors[1], "resid_post[1]"), 0.7, unit="norm", where="last_prompt+response")
    runs = [lm.generate([p], 3, temperature=1.0, seed=4, steer=add)[0] for p in PROMPTS]
    codes = torch.cat([lm.latents(sae, [run], where="response").dense() for run in runs])
    torch.testing.assert_close(found[1], codes.double().mean(0), atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match="one prompt or more"):
        ll.measure_effects(lm, sae, [], vectors, 1.0)
