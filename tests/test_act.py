"""ACT and neuron attribution: numbers by hand, planted heads and neurons found, the wording measured."""

import numpy as np
import pytest
import torch
from families import build

import latentlens as ll
from latentlens.access.measures.writes import token_writes
from latentlens.errors import BadInput, NonFiniteActivations, SiteNotFound, TooFewExamples
from latentlens.methods import act, neurons
from latentlens.values.act_heads import ActHeads, HeadProbe
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

Z = (Site("z", 0), Site("z", 2))
UP = (Site("mlp_post", 0), Site("mlp_post", 1))


def heads_of(x, sites=Z):
    return Activations(dict(zip(sites, x)), {"text": np.arange(len(x[0]))})


def planted(n=90, seed=0):
    """Two blocks of four heads of width 5; only head 2 of the second block tells the target from the other styles."""
    g = torch.Generator().manual_seed(seed)
    rows = [[torch.randn(n, 4, 5, generator=g) for _ in Z] for _ in range(3)]
    rows[0][1][:, 2] += torch.tensor([3.0, 0, 0, 0, 4])
    return heads_of(rows[0]), [heads_of(one) for one in rows[1:]]


# -- ACT -----------------------------------------------------------------------------------------------


def test_the_plan_pushes_one_head_by_hand_and_leaves_the_others():
    probe = HeadProbe(Z[1], 1, 0, torch.tensor([0.6, 0.8]), float(torch.logit(torch.tensor(0.8))) - 0.6, 0.5, 1.0, 9)
    found = ActHeads((probe,), {Z[1]: (3, 2)}, 1)
    (item,) = found.plan(12.0)
    assert item.site == Z[1]
    z = torch.tensor([[5.0, 5, 1, 0, 7, 7]])
    assert item.edit(z)[0].tolist() == pytest.approx([5, 5, 1.72, 0.96, 7, 7], abs=6e-5)


def test_a_planted_head_is_the_best_of_every_cluster_and_its_normal_is_found():
    target, others = planted()
    found = act.fit(target, others, k=3)
    assert found.k == 3
    assert len(found.probes) == 2 * 4 * 3
    best = found.best(1)
    assert [(p.site, p.head) for p in best] == [(Z[1], 2)] * 3
    wanted = torch.tensor([0.6, 0, 0, 0, 0.8])
    assert min(float(p.theta @ wanted) for p in best) > 0.8
    everything = torch.cat([one[Z[1]][:, 2] for one in (target, *others)])
    for p in best:
        assert p.accuracy > 0.85
        assert p.sigma == pytest.approx(float((everything @ p.theta).std(unbiased=False)), rel=1e-4)
    plan = found.plan(2.0, top=1)
    assert len(plan) == 1
    assert plan[0].vectors.shape == (3, 20)
    assert not plan[0].vectors[:, :10].any()


def test_clustering_by_the_difference_makes_noise_look_readable_and_the_control_shows_it():
    g = torch.Generator().manual_seed(1)
    noise = [heads_of([torch.randn(90, 4, 5, generator=g) for _ in Z]) for _ in range(3)]
    plain, clustered = (act.fit(noise[0], noise[1:], k=k) for k in (1, 3))
    accuracy = [np.mean([p.accuracy for p in one.probes]) for one in (plain, clustered)]
    assert accuracy[0] < 0.6
    assert accuracy[1] > 0.7
    assert clustered.control.value == pytest.approx(accuracy[1], abs=0.08)
    assert plain.control.value == pytest.approx(accuracy[0], abs=0.08)
    target, others = planted()
    signal = act.fit(target, others, k=1)
    assert signal.best(1)[0].accuracy > signal.control.high > 0.5
    assert act.fit(target, others, k=1, n_controls=0).control is None


def test_a_cluster_with_few_rows_held_out_scores_nothing():
    target, others = planted(6)
    found = act.fit(target, others, k=3)
    assert {p.accuracy for p in found.probes if p.n_validation < 5} <= {0.0}
    assert any(p.n_validation == 0 for p in found.probes)


def test_act_reads_the_input_of_the_output_projection():
    lm = ll.load(build("Llama"), cache=False)
    rows = [[5, 6, 7], [8, 9, 10], [11, 12, 13], [20, 21, 22]]
    acts = lm.activations(rows, sites="z[*]", where="last")
    other = lm.activations([row[::-1] for row in rows], sites="z[*]", where="last")
    found = act.fit(acts, [other], k=1)
    plan = found.plan(3.0, where="last_prompt")
    assert {item.site.point for item in plan} == {"z"}
    assert lm.layout.tap(plan[0].site).name.endswith("o_proj")
    assert lm.layout.tap(plan[0].site).side == "in"
    assert not torch.equal(lm.logits(rows), lm.logits(rows, steer=plan))


def test_what_act_cannot_read_is_refused():
    target, others = planted(10)
    flat = Activations({Site("resid_post", 0): torch.randn(10, 8)}, {"text": np.arange(10)})
    for make, error, says in (
        (lambda: act.fit(target, []), BadInput, "one other style at least"),
        (lambda: act.fit(flat, [flat]), BadInput, "not split into heads"),
        (lambda: act.fit(target, [others[0].rows([0, 1])]), BadInput, "the same prompts"),
        (lambda: act.fit(target.rows([0]), [others[0].rows([0])]), TooFewExamples, "two at least"),
        (lambda: act.fit(target, [heads_of([v * float("nan") for v in target.values.values()])]),
         NonFiniteActivations, "NaN"),
        (lambda: act.fit(target, others).plan(top=0), BadInput, "one head a cluster"),
        (lambda: ActHeads((), {}, 1).plan(), TooFewExamples, "no head has a probe"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            make()


# -- neurons -------------------------------------------------------------------------------------------


def test_contributions_by_hand():
    a, down, u = torch.tensor([[1.0, -2, 3]]), torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([1.0, 2])
    site = UP[:1]
    found = neurons.attribution(Activations({site[0]: a}, {"text": np.arange(1)}), {site[0]: (down @ u)[None]})
    assert found.mean[0].tolist() == [1, -4, 9]
    assert found.ranked() == [(0, 2, 9.0), (0, 1, -4.0), (0, 0, 1.0)]
    assert found.top == ((0, 2),)
    (item,) = found.plan(1.0)
    assert item.edit(a)[0].tolist() == [1, -2, 6]
    both = {site[0]: torch.stack([down @ u, torch.tensor([0.0, 0, 3])])}
    acts = Activations({site[0]: a}, {"text": np.arange(1)})
    assert neurons.attribution(acts, both, against=[1]).mean[0].tolist() == [1, -4, 0]
    more, less = found.plan(0.5, n=2)
    assert more.edit(a)[0].tolist() == [1, -2, 4.5]
    assert less.edit(a)[0].tolist() == [1, -1, 3]


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "OPT", "Qwen2"])
def test_writes_are_the_models_own_weights(family):
    lm = ll.load(build(family), cache=False)
    tokens = [3, 50]
    found = token_writes(lm, tokens, "mlp_post[1]")
    ((site, writes),) = found.items()
    module = lm.layout.tap(site).module
    down = module.weight.detach() if type(module).__name__ == "Conv1D" else module.weight.detach().T
    head = lm.model.get_output_embeddings().weight.detach()[tokens]
    torch.testing.assert_close(writes, head @ down.T, atol=1e-4, rtol=1e-4)
    assert not any(p.grad is not None for p in lm.model.parameters())


def test_scaling_a_neuron_is_scaling_its_row_of_the_down_projection():
    import copy

    model = copy.deepcopy(build("Llama"))
    lm = ll.load(model, cache=False)
    rows = [[5, 6, 7, 8], [9, 10]]
    acts = lm.activations(rows, sites="mlp_post[*]", where="last")
    found = neurons.attribution(acts, token_writes(lm, [7]))
    (item,) = found.plan(2.0)
    steered = lm.logits(rows, steer=item)
    place, neuron, value = found.ranked(1)[0]
    with torch.no_grad():
        lm.layout.tap(found.sites[place]).module.weight[:, neuron] *= 3.0 if value > 0 else -1.0
    torch.testing.assert_close(ll.load(model, cache=False).logits(rows), steered, atol=1e-4, rtol=1e-4)


def test_brittleness_is_none_for_the_same_wording_and_shows_for_another():
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(20, 12, generator=g) for _ in UP]
    other = [x.clone() for x in base]
    base[0][:, 3] += 20
    other[1][:, 5] += 20
    writes = {site: torch.ones(1, 12) for site in UP}
    a, b = (neurons.attribution(Activations(dict(zip(UP, x)), {"text": np.arange(20)}), writes) for x in (base, other))
    same = neurons.agreement({"one": a, "again": a}, n=4).iloc[0]
    assert (same["same top neuron"], same["overlap of the 4 largest"], same["rank of one's best in other"]) == (1, 1, 1)
    apart = neurons.agreement({"one": a, "two": b}, n=4).iloc[0]
    assert apart["same top neuron"] == 0
    assert apart["rank of one's best in other"] > 1
    with pytest.raises(TooFewExamples):
        neurons.agreement({"one": a})


def test_neurons_that_do_not_fit_are_refused():
    lm = ll.load(build("Llama"), cache=False)
    with pytest.raises(BadInput, match="holds no neurons"):
        token_writes(lm, [3], "resid_post[0]")
    with pytest.raises(BadInput, match="ids from 0 to"):
        token_writes(lm, [10_000])
    with pytest.raises(SiteNotFound):
        token_writes(lm, [3], "mlp_post[9]")
    acts = lm.activations([[5, 6]], sites="mlp_post[0]", where="last")
    with pytest.raises(BadInput, match="writes has nothing"):
        neurons.attribution(acts, token_writes(lm, [3], "mlp_post[1]"))


def test_they_say_what_they_are():
    target, others = planted(30)
    found = act.fit(target, others)
    assert "24 probes in 2 blocks" in repr(found)
    assert "sigma" in found._repr_html_()
    lm = ll.load(build("Llama"), cache=False)
    some = neurons.attribution(lm.activations([[5, 6]], sites="mlp_post[*]", where="last"), token_writes(lm, [3]))
    assert "mean contribution" in repr(some)
    assert some.to_frame()["largest in"].max() == 1.0
