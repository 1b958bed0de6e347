"""G-ACT: hand-computed clusters and steps, a planted structure found and absent under the controls, every edge case."""

import math
import warnings

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.errors import BadInput, NonFiniteActivations, SiteNotFound, TooFewExamples
from latentlens.methods import gact
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

SITES = (Site("resid_post", 0), Site("resid_post", 1))


def acts(x, sites=SITES):
    """(sites, rows, d) as activations."""
    x = torch.as_tensor(x, dtype=torch.float32)
    return Activations(dict(zip(sites, x)), {"text": np.arange(x.shape[1])})


def planted(n=60, d=8, seed=0, k=3, apart=4.0):
    """Prompts of k kinds: their state shows the kind, their difference is that kind's vector. Kinds of 3:2:1."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.tensor([0, 0, 0, 1, 1, 2] * (n // 6))[:n] % k
    vectors = torch.randn(2, k, d, generator=torch.Generator().manual_seed(99)) * 2
    shows = torch.zeros(2, k, d)
    shows[:, range(k), range(k)] = apart
    states = shows[:, kind] + torch.randn(2, n, d, generator=g)
    difference = vectors[:, kind] + 0.1 * torch.randn(2, n, d, generator=g)
    return acts(states), difference, kind.numpy(), vectors


# -- by hand -------------------------------------------------------------------------------------------


def test_clusters_centroids_and_choices_by_hand():
    d = torch.tensor([[[1, 0], [1.2, 0], [0, 1], [0, 0.8]]])
    site = (Site("resid_post", 0),)
    found = gact.fit(acts(d, site), d, k=2, test_share=0)
    assert found.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.centroids[0], [[1.1, 0], [0, 0.9]], atol=1e-6)
    np.testing.assert_allclose(found.mean[0], [0.55, 0.45], atol=1e-6)
    assert found.nearest(torch.tensor([[[3.0, 1], [1, 3], [1, 1.2]]])).tolist() == [0, 1, 1]
    assert found.sizes.tolist() == [2, 2]


def test_differences_are_against_the_mean_of_the_other_styles():
    a, b, c = acts([[[4.0, 4]]] * 2), acts([[[1.0, 0]]] * 2), acts([[[3.0, 2]]] * 2)
    assert gact.differences(a, [b, c]).tolist() == [[[2.0, 3.0]]] * 2
    with pytest.raises(BadInput, match="at least one other"):
        gact.differences(a, [])
    with pytest.raises(BadInput, match="the same prompts"):
        gact.differences(a, [acts([[[1.0, 0], [2, 2]]] * 2)])


def test_one_online_step_by_hand_reaches_the_intervention():
    d = torch.tensor([[[1, 0], [1.2, 0], [0, 1], [0, 0.8]]])
    found = gact.fit(acts(d, (Site("resid_post", 0),)), d, k=2, test_share=0)
    probe = type(found.probe)(torch.eye(2)[None], torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))
    found = type(found)(**{**vars(found), "probe": probe})
    state, difference = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 5.0]])
    online = gact.Refiner(found, rate=0.1)
    assert online.observe(state, difference, judged="C++", wanted="C++") == 1
    (item,) = online.result().plan(sites=SITES[:1], threshold=0)
    assert item.weight.flatten().tolist() == pytest.approx([0.8538, -0.0731, 0.1462, 1.0731], abs=6e-5)
    assert item.bias.tolist() == pytest.approx([-0.0731, 0.0731], abs=6e-5)


def test_the_plan_adds_alpha_mean_norms_of_the_chosen_cluster():
    states, d, _, _ = planted()
    found = gact.fit(states, d, test_share=0.2)
    plan = found.plan(0.3, SITES, threshold=0, where="last_prompt")
    for i, item in enumerate(plan):
        assert item.site == SITES[i]
        assert str(item.where) == "last_prompt"
        norm = states.stack()[i, found.train_rows].norm(dim=-1).mean()
        torch.testing.assert_close(item.vectors.norm(dim=-1), torch.full((3,), 0.3 * float(norm)))
        x = states.stack()[i][:1]
        moved = (item.edit(x) - x)[0]
        chosen = found.centroids[i, int(item.choices(x)[0])]
        torch.testing.assert_close(moved / moved.norm(), chosen / chosen.norm(), atol=1e-4, rtol=1e-4)


# -- planted, and absent under the controls ------------------------------------------------------------


def test_a_planted_structure_is_found_and_named_on_prompts_held_out():
    states, d, kind, vectors = planted(120, apart=5.0)
    found = gact.fit(states, d, k=3)
    assert [len(found.train_rows), len(found.test_rows)] == [96, 24]
    assert (found.labels == kind).all(), "numbered by size, as planted"
    for i in range(2):
        cosine = torch.nn.functional.cosine_similarity(found.centroids[i], vectors[i], dim=-1)
        assert float(cosine.min()) > 0.99
        score = found.scores[i]
        assert score.accuracy.low > 0.75
        assert score.macro_f1.low > 0.7
        assert score.shuffled_f1.high < score.macro_f1.low
        assert score.majority_accuracy == pytest.approx(0.5, abs=0.2)
        assert score.majority_f1 < 0.4


def test_where_clusters_differ_choosing_reaches_what_one_vector_cannot_and_a_wrong_choice_does_worse():
    states, _, kind, vectors = planted(120, apart=5.0)
    opposite = vectors.clone()
    opposite[:, 1] = -2 * vectors[:, 0]  # kinds of 3:2:1: their mean difference is small
    d = opposite[:, torch.as_tensor(kind)]
    found = gact.fit(states, d, k=3)
    x, wanted = states.stack()[1][found.test_rows], d[1][found.test_rows]

    def missed(plan):
        moved = plan[0].edit(x) - x
        return float(1 - torch.nn.functional.cosine_similarity(moved, wanted, dim=-1).mean())

    chosen = missed(found.plan(0.5, SITES[1:], threshold=0))
    one = missed(found.mean_plan(0.5, SITES[1:]))
    wrong = missed(found.plan(0.5, SITES[1:], threshold=0, order=[1, 2, 0]))
    assert chosen < 0.15
    assert chosen < one - 0.3
    assert wrong > one


def test_states_that_do_not_show_the_cluster_score_like_shuffled_clusters():
    states, d, _, _ = planted(120, apart=0.0)
    found = gact.fit(states, d, k=3)
    for score in found.scores:
        assert score.macro_f1.value < 0.6
        assert score.macro_f1.low < score.shuffled_f1.high


def test_heads_are_scored_as_the_baseline_reads_them():
    states, d, kind, _ = planted(120, apart=5.0)
    g = torch.Generator().manual_seed(5)
    z = torch.randn(120, 4, 6, generator=g)
    z[:, 2, :3] += 5 * torch.eye(3)[torch.as_tensor(kind)]
    heads = Activations({Site("z", 1): z}, {"text": np.arange(120)})
    found = gact.fit(states, d, heads=heads)
    none, some = found.scores
    assert none.heads_f1 is None
    assert some.heads_f1.n == 4
    assert some.best_head_f1 == some.heads_f1.high > 0.9
    assert some.heads_f1.value < 0.6, "three heads of four know nothing"


def test_sites_are_chosen_by_held_out_macro_f1_the_first_of_equals():
    states, d, _, _ = planted(120, apart=5.0)
    x = states.stack()
    x[0] = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
    found = gact.fit(acts(x), d)
    assert found.best_sites(1) == (SITES[1],)
    assert found.best_sites(9) == SITES
    equal = type(found)(**{**vars(found), "scores": (found.scores[1], found.scores[1])})
    assert equal.best_sites(1) == (SITES[0],)
    assert [item.site for item in found.plan(sites=1)] == [SITES[1]]
    with pytest.raises(BadInput, match="1 site at least"):
        found.best_sites(0)


def test_groups_are_never_on_both_sides():
    states, d, _, _ = planted()
    groups = [f"task {i // 6}" for i in range(60)]
    found = gact.fit(states, d, groups=groups)
    sides = [{groups[i] for i in rows} for rows in (found.train_rows, found.test_rows)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2


def test_held_out_prompts_do_not_move_the_clusters():
    states, d, _, _ = planted()
    found = gact.fit(states, d)
    other = d.clone()
    other[:, found.test_rows] += 50 * torch.randn(2, len(found.test_rows), 8)
    again = gact.fit(states, other)
    assert torch.equal(again.centroids, found.centroids)
    assert torch.equal(again.probe.weight, found.probe.weight)


def test_clusters_can_be_made_at_one_site():
    states, d, kind, _ = planted(120)
    d[0] = torch.randn(d[0].shape, generator=torch.Generator().manual_seed(3)) * 30
    found = gact.fit(states, d, on="resid_post[1]")
    assert found.clustered_at == (1,)
    assert (found.labels == kind).all()


# -- one cluster is the mean difference ----------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_one_cluster_steers_exactly_as_the_mean_difference_token_for_token(soft):
    from families import build

    lm = ll.load(build("Llama"), cache=False)
    rows = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24], [40, 41], [50, 51, 52, 53], [7, 9, 11]]
    states = lm.activations(rows, where="last")
    d = gact.differences(lm.activations([r[::-1] for r in rows], where="last"), [states])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gact.fit(states, d, k=1)
    texts = {}
    for name, plan in {
        "G-ACT": found.plan(0.8, 2, soft=soft),
        "mean difference": found.mean_plan(0.8, 2),
        "random": found.mean_plan(0.8, 2, random=0),
        "none": None,
    }.items():
        texts[name] = [run.generated for run in lm.generate(rows, 10, 3, 1.0, seed=1, steer=plan, stop_ids=())]
    assert texts["G-ACT"] == texts["mean difference"]
    assert texts["G-ACT"] != texts["none"]
    assert texts["random"] != texts["mean difference"]
    logits = [lm.logits(rows, steer=plan) for plan in (found.plan(0.8, 2, soft=soft), found.mean_plan(0.8, 2))]
    assert torch.equal(*logits)


def test_a_single_cluster_has_a_constant_probe():
    states, d, _, _ = planted()
    found = gact.fit(states, d, k=1)
    assert found.probe.probabilities(states.stack()).unique().tolist() == [1.0]
    assert found.scores[0].accuracy.value == found.scores[0].majority_accuracy == 1
    assert torch.equal(found.centroids[:, 0], found.mean)
    assert found.cosines().flatten().tolist() == pytest.approx([1.0, 1.0])


# -- edges ---------------------------------------------------------------------------------------------


def test_k_is_reduced_to_the_number_of_distinct_differences():
    states, d, _, _ = planted(12)
    same = d[:, [0, 3] * 6]
    found = gact.fit(states, same, k=5)
    assert found.k == 2
    assert found.plan(sites=SITES)[0].vectors.shape == (2, 8)
    equal = gact.fit(states, d[:, [0] * 12], k=3)
    assert equal.k == 1
    nothing = gact.fit(states, torch.zeros_like(d), k=3)
    assert nothing.k == 1
    item = nothing.plan(5.0, SITES)[0]
    x = states.stack()[0]
    assert torch.equal(item.edit(x), x), "no difference, no steering"
    with pytest.raises(BadInput, match="zero vector"):
        nothing.mean_direction(SITES[0])


def test_few_prompts_warn_and_very_few_are_all_fitted_on():
    states, d, _, _ = planted(12)
    with pytest.warns(UserWarning, match="5 prompts for 3 clusters"):
        found = gact.fit(acts(states.stack()[:, :5]), d[:, :5], k=3)
    assert len(found.test_rows) == 1
    with pytest.warns(UserWarning, match="2 prompts"):
        found = gact.fit(acts(states.stack()[:, :2]), d[:, :2], k=3)
    assert len(found.test_rows) == 0
    assert math.isnan(found.scores[0].macro_f1.value)
    assert found.scores[0].macro_f1.n == 0
    with pytest.raises(SiteNotFound, match="name them"):
        found.plan()
    assert len(found.plan(sites=["resid_post[1]"])) == 1
    with pytest.raises(TooFewExamples), pytest.warns(UserWarning, match="0 prompts"):
        gact.fit(acts(states.stack()[:, :0]), d[:, :0], k=1)


def test_a_cluster_that_no_held_out_prompt_has_is_no_trouble():
    states, d, _, _ = planted(60)
    d[:, 0] += 500  # a cluster of its own
    for seed in range(3):
        found = gact.fit(states, d, seed=seed)
        assert found.k == 3
        assert all(0 <= s.macro_f1.value <= 1 for s in found.scores)


def test_what_does_not_fit_is_refused():
    states, d, _, _ = planted()
    for make, says in (
        (lambda: gact.fit(states, d[:, :5]), "states are"),
        (lambda: gact.fit(states, d, k=0), "at least one cluster"),
        (lambda: gact.fit(states, d, test_share=1.0), "test_share=1.0"),
        (lambda: gact.fit(states, d, groups=[1, 2]), "2 groups for 60"),
        (lambda: gact.fit(states, d).plan(order=[0, 1]), "must hold one of the clusters"),
        (lambda: gact.fit(states, d).plan(order=[0, 1, 3]), "must hold one of the clusters"),
        (lambda: gact.fit(states, d).plan(float("nan")), "finite"),
        (lambda: gact.Refiner(gact.fit(states, d), rate=0), "a rate above 0"),
    ):
        with pytest.raises(BadInput, match=says):
            make()
    with pytest.raises(SiteNotFound, match=r"resid_post\[7\] was not fitted"):
        gact.fit(states, d).plan(sites=["resid_post[7]"])
    with pytest.raises(SiteNotFound, match="mlp_out"):
        gact.fit(states, d, on="mlp_out[0]")
    with pytest.raises(NonFiniteActivations):
        gact.fit(states, d * math.nan)


def test_the_permuted_order_gives_each_cluster_anothers_vector():
    states, d, _, _ = planted()
    found = gact.fit(states, d)
    right, wrong = found.plan(sites=SITES)[0], found.plan(sites=SITES, order=[1, 2, 0])[0]
    assert torch.equal(wrong.vectors, right.vectors[[1, 2, 0]])
    assert torch.equal(wrong.weight, right.weight)


# -- online --------------------------------------------------------------------------------------------


def test_refinement_learns_clusters_that_moved_and_freezing_does_not():
    states, d, _, _ = planted(120, apart=5.0)
    found = gact.fit(states, d)
    later, new, kind, _ = planted(120, seed=7, apart=5.0)
    x = later.stack().roll(3, -1)  # the same prompts look different now
    truth = found.nearest(new)
    assert (truth == kind).all(), "what is observed still tells the cluster"
    online, frozen = gact.Refiner(found), gact.Refiner(found, frozen=True)
    for i in range(80):
        for one in (online, frozen):
            one.observe(x[:, i], new[:, i], judged="julia", wanted="julia")
    test = acts(x[:, 80:])
    before, after, still = (
        [f1.value for _, f1 in gact.evaluate(one, test, truth[80:])]
        for one in (found, online.result(), frozen.result())
    )
    assert max(before) < 0.6
    assert min(after) > 0.9
    assert still == before
    assert frozen.seen.learnt == online.seen.learnt == 80
    assert torch.equal(frozen.result().probe.weight, found.probe.weight)


def test_only_generations_in_the_wanted_style_teach_and_the_others_are_counted():
    states, d, _, _ = planted()
    found = gact.fit(states, d)
    online = gact.Refiner(found)
    x = states.stack()
    for judged in ("Julia", "C++", None, "unknown", "Julia"):
        taught = online.observe(x[:, 0], d[:, 0], judged=judged, wanted="Julia")
        assert (taught is not None) == (judged == "Julia")
    assert (online.seen.learnt, online.seen.refused, online.seen.unknown) == (2, 1, 2)
    assert online.seen.clusters == (0, 0)
    assert "refinement" in online.result().about
    with pytest.raises(BadInput, match="one state and one difference a site"):
        online.observe(x[:, 0, :3], d[:, 0], judged="a", wanted="a")
    with pytest.raises(NonFiniteActivations):
        online.observe(x[:, 0], d[:, 0] * math.inf, judged="a", wanted="a")


def test_the_buffer_keeps_the_latest_rows():
    states, d, _, _ = planted()
    online = gact.Refiner(gact.fit(states, d), buffer=4, replay=3)
    for i in range(9):
        online.teach(states.stack()[:, i], i % 3)
    assert [label for _, label in online._kept] == [2, 0, 1, 2]


# -- stability -----------------------------------------------------------------------------------------


def test_planted_clusters_come_again_and_noise_does_not():
    _, d, _, _ = planted(60)
    sure = gact.stability(d, 3, draws=5)
    assert sure.samples.low == sure.seeds.value == 1.0
    assert sure.matched.low > 0.99
    noise = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    loose = gact.stability(noise, 3, draws=5)
    assert loose.samples.value < 0.8
    assert loose.samples.n == 10
    with pytest.raises(TooFewExamples):
        gact.stability(d[:, :1], 1)


# -- shown ---------------------------------------------------------------------------------------------


def test_results_say_what_they_are():
    states, d, _, _ = planted()
    found = gact.fit(states, d)
    assert "3 clusters of 30, 20, 10 prompts" in repr(found)
    frame = found.to_frame()
    assert list(frame["site"]) == ["resid_post[0]", "resid_post[1]"]
    assert "macro-F1" in found._repr_html_()
    assert "adjusted Rand" in gact.stability(d, draws=3)._repr_html_()
    assert found.direction(SITES[0], 1).name == "cluster 1 of 3"


# -- drawn ---------------------------------------------------------------------------------------------


def test_figures_show_every_arm_and_every_control():
    from latentlens.values.style_effect import StyleArm, StyleEffect

    arms = [
        StyleArm("no edit", (0, 1), (0, 0), ("py", "unknown"), (True, None), (0, 0)),
        StyleArm("G-ACT <b>", (0, 1), (0, 0), ("jl", "jl"), (True, False), (1, 2)),
    ]
    effects = [StyleEffect(target, ("py", "jl"), arms) for target in ("py", "jl")]
    figure = ll.plots.style_shares(effects)
    totals = {}
    for trace in figure.data:
        for name, x in zip(trace.y, trace.x):
            totals[trace.xaxis, name] = totals.get((trace.xaxis, name), 0) + x
    assert set(totals.values()) == {1}, "all answers are shown"
    assert ("x", "G-ACT &lt;b&gt;") in totals
    assert sum(trace.error_x.array is not None for trace in figure.data) == 2, "one interval a panel: the target's"
    with pytest.raises(BadInput, match="the same styles"):
        ll.plots.style_shares([effects[0], StyleEffect("py", ("py",), arms)])
    states, d, _, _ = planted(60, apart=5.0)
    z = torch.randn(60, 2, 6, generator=torch.Generator().manual_seed(0))
    heads = Activations({Site("z", i): z for i in range(2)}, {"text": np.arange(60)})
    found = gact.fit(states, d, heads=heads)
    names = [trace.name for trace in ll.plots.cluster_probes({"jl": found}).data]
    for word in ("shuffled clusters (20 draws)", "always the largest cluster", "single attention heads", "stream, jl"):
        assert any(word in name for name in names if name), word
    bare = ll.plots.cluster_probes({"jl": gact.fit(states, d)})
    assert not any("heads" in (trace.name or "") for trace in bare.data)
    with pytest.raises(BadInput, match="no steering has"):
        ll.plots.cluster_probes({"jl": gact.fit(states, d, test_share=0)})


def test_judged_generations_are_taught_one_after_another_as_a_refiner_does():
    states, d, _, _ = planted()
    found, x = gact.fit(states, d), states.stack()
    judged = ["jl" if i % 3 else None for i in range(60)]
    one = gact.Refiner(found)
    for i in range(60):
        one.observe(x[:, i], d[:, i], judged=judged[i], wanted="jl")
    assert torch.equal(gact.taught(found, x, d, judged, "jl").probe.weight, one.result().probe.weight)
    blank = gact.forgotten(found)
    assert blank.choices(x).max() == 0, "equal probabilities go to the lowest"
    assert torch.equal(blank.centroids, found.centroids)
    learnt = gact.taught(blank, x, d, ["jl"] * 60, "jl")
    assert (learnt.choices(x)[0] == found.nearest(d)).mean() > 0.9
    with pytest.raises(BadInput, match="one each"):
        gact.taught(found, x, d, judged[:5], "jl")
