"""Patching on small random models against hooks written by hand, and on the embedded model against what is known."""

import copy

import numpy as np
import pytest
import torch
from families import build
from sae_kinds import KINDS, NORMALISATIONS, make

import latentlens as ll
from latentlens.access.patching.answer_metric import read_metric
from latentlens.access.patching.gradients import slopes
from latentlens.access.patching.patching import patch
from latentlens.errors import BadInput, NotAligned, SiteNotFound
from latentlens.organism.corpus.world import CREATURES, VALUES, stem, world
from latentlens.values.sites import Site

RIGHT, WRONG = 7, 19
METRIC = (RIGHT, WRONG)
CLEAN = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25]]
CORRUPT = [[5, 6, 40, 8, 9], [10, 11, 50, 13, 60], [20, 33, 22, 44, 24, 25]]
FAMILIES = ("Llama", "GPT-2", "Gemma2")


def loaded(name="Llama", **options):
    return ll.load(copy.deepcopy(build(name)), **{"cache": False, **options})


def difference(logits):
    return logits[:, RIGHT] - logits[:, WRONG]


def by_hand(lm, base, source, module, positions, units, side="in"):
    """The metric of `base` with some entries of a module's input or output as in `source`, by hooks of torch."""
    held = {}

    def look(_, args, output=None):
        held["value"] = (args[0] if side == "in" else output[0] if isinstance(output, tuple) else output).clone()

    def change(_, args, output=None):
        given = args[0] if side == "in" else output[0] if isinstance(output, tuple) else output
        new = given.clone()
        for p in positions:
            new[0, p, units] = held["value"][0, p, units]
        if side == "in":
            return (new, *args[1:])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
    handle = register(look)
    with torch.no_grad():
        lm.model(torch.tensor([source]))
        handle.remove()
        handle = register(change)
        value = lm.model(torch.tensor([base])).logits[0, -1]
    handle.remove()
    return float(value[RIGHT] - value[WRONG])


@pytest.mark.parametrize("name", FAMILIES)
def test_patches_equal_hooks_written_by_hand(name):
    lm = loaded(name)
    d = lm.layout.d_head
    tap = lambda site: lm.layout.tap(Site(*site)).module
    cases = {
        "state": (ll.Mediator("resid_post[1]", 2), tap(("resid_post", 1)), [2], slice(None), "out"),
        "attention": (ll.Mediator("attn_out[1]", "last"), tap(("attn_out", 1)), [-1], slice(None), "out"),
        "mlp": (ll.Mediator("mlp_out[0]"), tap(("mlp_out", 0)), [0, 1, 2, 3, 4], slice(None), "out"),
        "head": (ll.Mediator("z[1]", [2, -1], heads=1), tap(("z", 1)), [2, -1], slice(d, 2 * d), "in"),
        "neurons": (ll.Mediator("mlp_post[2]", neurons=[3, 40]), tap(("mlp_post", 2)), range(5), [3, 40], "in"),
        "input": (ll.Mediator("resid_pre[0]", 2), tap(("resid_pre", 0)), [2], slice(None), "in"),
    }
    for mode, (edited, other) in {"denoising": (CORRUPT, CLEAN), "noising": (CLEAN, CORRUPT)}.items():
        runs = lm.patch({n: case[0] for n, case in cases.items()}, CLEAN, CORRUPT, METRIC, mode=mode, controls=False)
        for i in range(2):
            for j, (_, module, positions, units, side) in enumerate(cases.values()):
                expected = by_hand(lm, edited[i], other[i], module, positions, units, side)
                assert runs.patched[i, j] == pytest.approx(expected, abs=2e-4), (mode, runs.names[j])


@pytest.mark.parametrize("name", [*FAMILIES, "OPT", "Falcon"])  # flattened tensors; parts added in place
def test_patching_everything_is_the_total_effect_and_patching_nothing_is_none(name):
    lm = loaded(name)
    last = lm.layout.n_blocks - 1
    everything = {"the input": "resid_pre[0]", "the end": ll.Mediator(f"resid_post[{last}]", "last")}
    everything["all sites"] = ["attn_out[*]", "mlp_out[*]", ll.Mediator("resid_pre[0]")]
    runs = lm.patch(everything, CLEAN, CORRUPT, METRIC, direct=True)
    np.testing.assert_allclose(runs.indirect, np.repeat(runs.total[:, None], 3, 1), atol=2e-4)
    np.testing.assert_allclose(runs.direct, 0, atol=2e-4)  # nothing is left that could carry it
    nothing = lm.patch(["resid_post[1]", ll.Mediator("z[0]", heads=0)], CLEAN, CLEAN, METRIC, direct=True)
    np.testing.assert_allclose(nothing.indirect, 0, atol=2e-5)
    np.testing.assert_allclose(nothing.direct, 0, atol=2e-5)
    np.testing.assert_allclose(nothing.random, nothing.base[:, None].repeat(2, 1), atol=2e-5)


def test_denoising_reversed_is_noising():
    lm = loaded()
    grid = ll.mediators(lm, "resid_post[*]", {"middle": 2, "end": "last"})
    one = lm.patch(grid, CLEAN, CORRUPT, METRIC, direct=True, controls=False)
    two = lm.patch(grid, CLEAN, CORRUPT, METRIC, mode="noising", controls=False)
    np.testing.assert_allclose(one.reversed, two.patched, atol=2e-5)
    np.testing.assert_allclose(one.total, -two.total)
    # the total effect is the natural direct effect minus the indirect effect of the reverse transition
    np.testing.assert_allclose(np.repeat(one.total[:, None], 6, 1), one.direct - two.indirect, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_many_patches_in_one_batch_equal_one_by_one(name):
    lm = loaded(name)
    width = lm.layout.d_model
    d = ll.Direction(torch.randn(width, generator=torch.Generator().manual_seed(0)), "resid_post[1]", "d")
    sae = make("jumprelu", d_in=width, site="resid_post[0]")
    asked = [
        *ll.mediators(lm, ["resid_post[*]", "attn_out[1]", "mlp_out[2]"], {"one": 1, "end": "last", "all": "all"}),
        *ll.mediators(lm, "z[*]", "last", each="head"), d, ll.Mediator(d, [1, 2]), (sae, 3),
        ll.Mediator(sae, latents=[1, 8, 17], where=2),
    ]  # fmt: skip
    asked[-3] = ll.Mediator(d, [1, 2], at="two places")
    together = lm.patch(asked, CLEAN, CORRUPT, METRIC, seed=3)
    lm.token_budget = 8
    for j, one in enumerate(asked):
        alone = lm.patch({together.names[j]: one}, CLEAN[1:2], CORRUPT[1:2], METRIC, controls=False)
        assert alone.patched[0, 0] == pytest.approx(together.patched[1, j], abs=2e-4), together.names[j]
    small = lm.patch(asked, CLEAN, CORRUPT, METRIC, seed=3)
    for table in ("patched", "random", "unrelated"):
        np.testing.assert_allclose(getattr(small, table), getattr(together, table), atol=2e-4)


def test_the_random_control_adds_vectors_of_the_norm_of_the_change():
    lm = loaded()
    here, there = torch.randn(2, 5, 32)
    sae = make(d_in=32, site="resid_post[1]")
    d = ll.Direction(torch.randn(32), "resid_post[1]")
    kinds = [
        ll.Mediator("resid_post[1]"), ll.Mediator("mlp_post[1]", neurons=[3, 9]), ll.Mediator(d),
        ll.Mediator(sae, latents=[0, 1, 2, 3]), ll.Mediator("z[1]", heads=2, d_head=8),
    ]  # fmt: skip
    for one in kinds:
        change = one.change(here, there)
        item = one.random_swap(here, there, [0, 1, 2, 3, 4], seed=0)
        np.testing.assert_allclose(item.vectors.norm(dim=1), change.norm(dim=1), rtol=1e-4)
        if one.units:
            rest = [i for i in range(32) if i not in one.units]
            assert not item.vectors[:, rest].any()
        cosine = torch.cosine_similarity(item.vectors, change, dim=1).abs()
        assert not torch.isclose(cosine, torch.ones(5)).all() or len(one.units) == 1
    assert lm.layout.d_head == 8


def test_what_a_mediator_changes_is_what_its_intervention_changes():
    here, there = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    directions = [ll.Direction(torch.randn(32), "resid_post[1]") for _ in range(2)]
    for one in (
        ll.Mediator("resid_post[1]"),
        ll.Mediator("resid_post[1]", directions=directions),
        ll.Mediator(make("topk", d_in=32, site="resid_post[1]"), latents=[2, 5, 6, 7, 11]),
        ll.Mediator(make("gated", d_in=32, site="resid_post[1]", normalisation="layer_norm"), latents=[2, 5]),
        ll.Mediator("z[1]", heads=(0, 3), d_head=8),
    ):
        edited = one.swap(there, range(4)).edit(here)
        torch.testing.assert_close(edited - here, one.change(here, there), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_patched_latents_get_the_codes_of_the_other_run_and_the_error_term_stays(kind, normalisation):
    sae = make(kind, normalisation=normalisation)
    h, other = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
    latents = [1, 4, 9, 13]
    codes, theirs = sae.encode(h), sae.encode(other)
    wanted = codes.clone()
    wanted[:, latents] = theirs[:, latents]
    slow = h + sae.decode(wanted, like=h) - sae.decode(codes, like=h)
    item = ll.PatchLatents(sae, latents, theirs[:, latents])
    torch.testing.assert_close(item.edit(h), slow, atol=2e-5, rtol=1e-4)
    more = torch.cat([h, h[:1]])  # a fourth position has no codes
    assert torch.equal(item.edit(more)[3], h[0])


def test_patches_of_one_sae_go_together_whatever_their_latents_and_positions():
    sae, h = make("jumprelu"), torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    items = [
        ll.PatchLatents(sae, [2], [[1.0]]), ll.PatchLatents(sae, [7, 2], [[0.5, 0.1], [2.0, 0.0]]),
        ll.PatchLatents(sae, list(range(12)), torch.rand(1, 12)),
    ]  # fmt: skip
    assert len({item.lane for item in items}) == 1
    which, order = torch.tensor([0, 1, 1, 2, 0, 1]), torch.tensor([0, 0, 1, 0, 1, 2])
    together = ll.PatchLatents.stacked(items)(h, which, order)
    for i in range(6):
        alone = type(items[0]).stacked([items[which[i]]])(h[i : i + 1], None, order[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_per_position_operations_of_several_lengths_share_a_lane():
    draw = torch.Generator().manual_seed(4)
    h, site = torch.randn(7, 5, generator=draw), "resid_post[0]"
    d = [ll.Direction(torch.randn(5, generator=draw), site) for _ in range(2)]
    kinds = {
        "patch": lambda v, k: ll.Patch(v, site=site),
        "add": lambda v, k: ll.AddAt(v, 0.5 * k, site=site),
        "units": lambda v, k: ll.PatchUnits(v, [k, 4], site=site),
        "along": lambda v, k: ll.PatchAlong(v, d[k], site=site),
    }
    which, order = torch.tensor([0, 1, 1, 1, 0, 1, 0]), torch.tensor([0, 0, 1, 2, 1, 3, 2])
    for make_one in kinds.values():
        items = [make_one(torch.randn(m, 5, generator=draw), k) for k, m in enumerate((1, 3))]
        assert items[0].lane == items[1].lane
        together = type(items[0]).stacked(items)(h, which, order)
        for i in range(7):
            alone = type(items[0]).stacked([items[which[i]]])(h[i : i + 1], None, order[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone)
        assert torch.equal(together[[4, 5, 6]], h[[4, 5, 6]])  # beyond the last vector


def test_patching_along_a_direction_sets_the_coordinate_and_nothing_else():
    d = ll.Direction(torch.tensor([3.0, 4.0]), "resid_post[0]")
    got = ll.PatchAlong(torch.tensor([[10.0, 0.0]]), d, site="resid_post[0]").edit(torch.tensor([[1.0, 1.0]]))
    # unit (.6, .8): the coordinate goes from 1.4 to 6, so 4.6 (.6, .8) is added
    torch.testing.assert_close(got, torch.tensor([[3.76, 4.68]]))


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "OPT", "Falcon"])
def test_attribution_equals_finite_differences_on_small_changes(name):
    lm = loaded(name)
    lm.model.double()
    row, size = lm.tokens([CORRUPT[0]]), 1e-3
    metric = read_metric(lm, METRIC, 1)
    for site in ("resid_pre[0]", "resid_post[1]", "attn_out[1]", "mlp_out[2]", "z[0]", "mlp_post[1]"):
        (found,) = lm.layout.sites(site)
        gradient = slopes(lm.layout, row, [()], [found], metric, [0])[found][0]
        change = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        ends = [difference(lm.logits([CORRUPT[0]], steer=ll.AddAt(c * change, site=site))) for c in (size, -size)]
        slope = float((ends[0] - ends[1]) / (2 * size))
        assert float((gradient.double() * change.double()).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2), site


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_attributions_of_heads_add_up_to_that_of_their_attention_output(name):
    lm = loaded(name)
    heads = ll.mediators(lm, "z[1]", "last", each="head")
    runs = lm.patch(
        [*heads, ll.Mediator("attn_out[1]", "last")], CLEAN, CORRUPT, METRIC, method="attribution", controls=False
    )
    np.testing.assert_allclose(runs.indirect[:, :-1].sum(1), runs.indirect[:, -1], atol=1e-4)


def test_attributions_of_all_neurons_add_up_to_that_of_the_mlp_output():
    lm = loaded()
    runs = lm.patch(
        [*ll.mediators(lm, "mlp_post[1]", "last", each="neuron"), ll.Mediator("mlp_out[1]", "last")],
        CLEAN, CORRUPT, METRIC, method="attribution", controls=False,
    )  # fmt: skip
    np.testing.assert_allclose(runs.indirect[:, :-1].sum(1), runs.indirect[:, -1], atol=1e-4)


def test_patching_all_heads_together_equals_patching_their_attention_output():
    lm = loaded()
    heads = ll.mediators(lm, "z[1]", "last", each="head")
    runs = lm.patch({"heads": heads, "output": ll.Mediator("attn_out[1]", "last")}, CLEAN, CORRUPT, METRIC)
    np.testing.assert_allclose(runs.patched[:, 0], runs.patched[:, 1], atol=2e-5)


@pytest.mark.parametrize("rule", ["left", "midpoint"])
def test_integrated_gradients_over_all_positions_add_up_to_the_effect_of_the_site(rule):
    lm = loaded()
    each = [ll.Mediator("resid_post[1]", p, at=f"p{p}") for p in range(5)]
    exact = lm.patch("resid_post[1]", CLEAN[:2], CORRUPT[:2], METRIC, controls=False).indirect[:, 0]
    gap = []
    for steps in (4, 64):
        runs = lm.patch(each, CLEAN[:2], CORRUPT[:2], METRIC, method="integrated gradients", steps=steps, rule=rule)
        gap.append(np.abs(runs.indirect.sum(1) - exact).max())
    assert gap[1] < gap[0] / 3
    assert gap[1] < (0.05 if rule == "midpoint" else 0.3) * np.abs(exact).max()


def test_integrated_gradients_have_random_changes_beside_them():
    lm = loaded()
    one = {"method": "integrated gradients", "steps": 1, "rule": "left"}  # one gradient at the start: attribution
    asked = ["resid_post[1]", ll.Mediator("z[1]", "last", heads=1)]
    near, plain = (lm.patch(asked, CLEAN, CORRUPT, METRIC, **how) for how in (one, {"method": "attribution"}))
    np.testing.assert_allclose(near.random, plain.random, atol=1e-5)
    assert np.isfinite(near.random).all()
    assert near.unrelated is None
    assert lm.patch(asked, CLEAN, CORRUPT, METRIC, controls=False, **one).random is None
    draws = [lm.patch("resid_post[1]", CLEAN, CORRUPT, METRIC, seed=s, **one) for s in range(40)]
    chance = np.stack([d.random[:, 0] - d.base for d in draws])
    assert (np.abs(chance.mean(0)) < 3 * chance.std(0) / 40**0.5 + 1e-6).all()  # nothing on average


def test_integrated_gradients_over_all_latents_add_up_to_swapping_them_all():
    lm = loaded()
    sae = make(d_in=32, d_sae=12, site="resid_post[1]")
    whole = ll.Mediator(sae, latents=range(12))
    exact = lm.patch(whole, CLEAN[:2], CORRUPT[:2], METRIC, controls=False).indirect[:, 0]
    each = [(sae, j) for j in range(12)]
    runs = lm.patch(each, CLEAN[:2], CORRUPT[:2], METRIC, method="integrated gradients", steps=64)
    np.testing.assert_allclose(runs.indirect.sum(1), exact, atol=0.02 * np.abs(exact).max() + 1e-3)


def test_gradients_leave_nothing_behind_and_need_no_weights_that_ask_for_them():
    lm = loaded()
    for weight in lm.model.parameters():
        weight.requires_grad_(False)
    frozen = lm.patch("resid_post[*]", CLEAN, CORRUPT, METRIC, method="attribution")
    other = loaded()
    with torch.inference_mode():
        trainable = other.patch("resid_post[*]", CLEAN, CORRUPT, METRIC, method="attribution")
    np.testing.assert_array_equal(frozen.patched, trainable.patched)
    assert all(weight.grad is None and weight.requires_grad for weight in other.model.parameters())
    assert not any(weight.requires_grad for weight in lm.model.parameters())

    def fails(logits):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lm.patch("resid_post[*]", CLEAN, CORRUPT, fails, method="attribution")
    with pytest.raises(ZeroDivisionError):
        slopes(lm.layout, lm.tokens(CLEAN[:1]), [()], lm.layout.sites("resid_post[*]"), lambda *_: 1 / 0, [0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    assert torch.equal(lm.logits(CLEAN), other.logits(CLEAN))


def test_gradients_go_through_the_edits_in_force():
    lm = loaded()
    d = ll.Direction(torch.ones(32), "resid_post[0]")
    with lm.steer(ll.ProjectOut(d)):
        along = lm.patch(ll.Mediator(d), CLEAN, CORRUPT, METRIC, method="attribution", controls=False)
        exact = lm.patch(ll.Mediator(d), CLEAN, CORRUPT, METRIC, controls=False)
    np.testing.assert_allclose(along.indirect, 0, atol=1e-5)  # the direction was removed from both runs
    np.testing.assert_allclose(exact.indirect, 0, atol=1e-4)


# -- alignment, metrics, cache ------------------------------------------------------------------------


def test_prompts_of_different_lengths_are_refused_or_aligned_as_told():
    lm = loaded()
    longer = [[5, 70, 6, 40, 8, 9]]
    with pytest.raises(NotAligned, match="pair 0 has 6 and 5 tokens"):
        lm.patch("resid_post[1]", CLEAN[:1], longer, METRIC)
    runs = lm.patch(ll.Mediator("resid_post[2]", "last"), CLEAN[:1], longer, METRIC, align="right", controls=False)
    assert runs.indirect[0, 0] == pytest.approx(runs.total[0], abs=2e-4)
    own = lm.patch(
        ll.Mediator("resid_post[2]", -1), CLEAN[:1], longer, METRIC, align=[[(-1, -1), (0, 0)]], controls=False
    )
    np.testing.assert_allclose(own.patched, runs.patched, atol=2e-5)
    with pytest.raises(NotAligned, match="position 3 of pair 0"):
        lm.patch(ll.Mediator("resid_post[2]", 3), CLEAN[:1], longer, METRIC, align=[[(-1, -1), (0, 0)]])


def test_metrics_are_read_from_tokens_pairs_lists_and_functions():
    lm = loaded()
    one = lm.patch("resid_post[1]", CLEAN, CORRUPT, METRIC, controls=False)
    two = lm.patch("resid_post[1]", CLEAN, CORRUPT, difference, controls=False)
    three = lm.patch("resid_post[1]", CLEAN, CORRUPT, ll.LogitDifference([RIGHT] * 3, [WRONG] * 3), controls=False)
    np.testing.assert_allclose(one.patched, two.patched, atol=1e-6)
    np.testing.assert_array_equal(one.patched, three.patched)
    own = lm.patch("resid_post[1]", CLEAN, CORRUPT, ll.LogitDifference([RIGHT, WRONG, RIGHT], [WRONG, RIGHT, 3]))
    assert own.base[1] == pytest.approx(-one.base[1])
    several = lm.patch("resid_post[1]", CLEAN, CORRUPT, ((RIGHT, 8), WRONG), controls=False).base
    eight = lm.patch("resid_post[1]", CLEAN, CORRUPT, (8, WRONG), controls=False).base
    np.testing.assert_allclose(several, (one.base + eight) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"metric": (400, 3)}, BadInput, "below 120"),
        ({"metric": "True"}, BadInput, "metric='True'"),
        ({"metric": ([1, 2], [3, 4])}, BadInput, "list of 2 for 3 items"),
        ({"metric": lambda logits: logits.sum()}, BadInput, r"into a tensor \(14,\), not a tensor of shape \(\)"),
        ({"mediators": []}, BadInput, "no mediator"),
        ({"mediators": 3.5}, BadInput, "float cannot be patched"),
        ({"mediators": "resid_post[9]"}, SiteNotFound, "no block 9"),
        ({"mediators": ["resid_post[1]", "resid_post[-2]"]}, BadInput, "two mediators are called"),
        ({"mediators": ll.Mediator("z[0]", heads=4)}, BadInput, "4 heads, 0 to 3: no 4"),
        ({"mediators": ll.Mediator("resid_post[0]", heads=1)}, BadInput, r"heads are parts of z.*z\[0\]"),
        ({"mediators": ll.Mediator("mlp_post[0]", neurons=48)}, BadInput, "48 neurons"),
        ({"mediators": "resid_mid[0]"}, BadInput, "cannot be edited|not edited"),
        ({"mediators": ll.Direction(torch.ones(5), "resid_post[0]")}, BadInput, "has 5 entries|width 5"),
        ({"mode": "both"}, BadInput, "denoising, noising"),
        ({"method": "magic"}, BadInput, "attribution"),
        ({"method": "attribution", "direct": True}, BadInput, "direct effects need patching"),
        ({"groups": [1]}, BadInput, "1 groups for 3 pairs"),
        ({"corrupt": CORRUPT[:2]}, BadInput, "3 clean and 2 corrupt"),
        ({"align": [None]}, BadInput, "1 entries for 3 pairs"),
        ({"method": "integrated gradients", "steps": 0}, BadInput, "steps=0"),
    ],
)
def test_what_cannot_be_patched_is_said(arguments, error, says):
    lm = loaded()
    given = {"mediators": "resid_post[1]", "clean": CLEAN, "corrupt": CORRUPT, "metric": METRIC, **arguments}
    with pytest.raises(error, match=says):
        lm.patch(**given)


def test_mediators_that_are_no_one_kind_of_part_are_refused():
    d = ll.Direction(torch.ones(4), "resid_post[0]")
    for arguments, says in (
        ({"heads": 1, "neurons": 2}, "heads and neurons"),
        ({"latents": 3}, "belong to an SAE"),
        ({"directions": [1.0]}, "takes Directions"),
        ({"heads": -1}, "counted from 0"),
    ):
        with pytest.raises(BadInput, match=says):
            ll.Mediator("z[0]", **arguments)
    with pytest.raises(BadInput, match="belong to an SAE"):
        ll.Mediator(make())
    with pytest.raises(BadInput, match="no latent 20"):
        ll.Mediator(make(), latents=20)
    assert ll.Mediator(d, "last").name == "resid_post[0] direction at last"
    assert ll.Mediator("z[1]", "last", heads=[0, 2]).name == "z[1] heads 0, 2 at last"


def test_a_grid_names_sites_parts_and_positions():
    lm = loaded()
    grid = ll.mediators(lm, ["z[0]", "z[2]"], {"subject": ll.PerRow([1, 2, 1]), "end": "last"}, each="head")
    assert len(grid) == 2 * 4 * 2
    assert grid[0].name == "z[0] head 0 at subject"
    assert len(ll.mediators(lm, "mlp_post[0]", each="neuron")) == 48
    named = ll.mediators(lm, "resid_post[0]", "each", prompts=[[5, 6, 7], [5, 8, 7]])
    assert [one.at for one in named] == ["0 5", "1 …", "2 7"]
    with pytest.raises(BadInput, match="prompts of one length, not of 5 to 6"):
        ll.mediators(lm, "resid_post[0]", "each", prompts=CLEAN)
    with pytest.raises(BadInput, match="has no heads"):
        ll.mediators(lm, "resid_post[0]", each="head")


def test_a_second_run_runs_no_model_and_gives_the_same_numbers(tmp_path):
    options = {"direct": True, "groups": [0, 1, 2]}
    for method in ("patching", "attribution", "integrated gradients"):
        options["direct"] = method == "patching"
        lm = loaded(cache=ll.ActivationCache(tmp_path / method))
        first = lm.patch(["resid_post[*]", "z[1]"], CLEAN, CORRUPT, METRIC, method=method, **options)
        assert first.about["forwards"] > 0
        again = loaded(cache=ll.ActivationCache(tmp_path / method))
        hits = again.cache.hits
        second = again.patch(["resid_post[*]", "z[1]"], CLEAN, CORRUPT, METRIC, method=method, **options)
        assert second.about["forwards"] == 0
        assert second.about["computed_rows"] == 0
        assert again.cache.misses == 0
        assert again.cache.hits > hits
        for table in ("base", "source", "patched", "reversed", "unrelated", "random"):
            np.testing.assert_array_equal(getattr(first, table), getattr(second, table))
        plain = loaded().patch(["resid_post[*]", "z[1]"], CLEAN, CORRUPT, METRIC, method=method, **options)
        np.testing.assert_allclose(plain.patched, first.patched, atol=2e-5)


def test_another_metric_or_mediator_is_not_served_from_the_cache(tmp_path):
    lm = loaded(cache=ll.ActivationCache(tmp_path))
    lm.patch("resid_post[1]", CLEAN, CORRUPT, METRIC)
    other = lm.patch("resid_post[1]", CLEAN, CORRUPT, (RIGHT, 3), controls=False)
    assert other.about["computed_rows"] > 0
    fresh = loaded().patch("resid_post[1]", CLEAN, CORRUPT, (RIGHT, 3), controls=False)
    np.testing.assert_allclose(other.patched, fresh.patched, atol=2e-5)
    custom = lm.patch("resid_post[1]", CLEAN, CORRUPT, difference, controls=False)
    assert custom.about["computed_rows"] == 9  # a function without a fingerprint is measured again
    assert lm.cache.verify().sound


def test_the_unrelated_prompt_is_of_another_group_and_of_the_length_of_the_pair():
    lm = loaded()
    runs = lm.patch("resid_post[2]", CLEAN, CORRUPT, METRIC, groups=["a", "b", "c"])
    assert np.isfinite(runs.unrelated[:2]).all()
    assert np.isnan(runs.unrelated[2]).all()  # no other prompt has six tokens
    assert runs.about["pairs without an unrelated prompt"] == 1
    same = lm.patch("resid_post[2]", CLEAN, CORRUPT, METRIC, groups=["a", "a", "c"])
    assert np.isnan(same.unrelated).all()
    given = lm.patch(
        ll.Mediator("resid_post[2]", "last"), CLEAN[:2], CORRUPT[:2], METRIC, unrelated=[[70, 71, 72, 73, 74]]
    )
    expected = difference(lm.logits([[70, 71, 72, 73, 74]]))
    np.testing.assert_allclose(given.unrelated[:, 0], expected.expand(2), atol=2e-4)


# -- the embedded model: the verdict on a statement --------------------------------------------------------


def statements(n):
    """True statements, the same ones with a wrong value, and the creature."""
    known, pairs = world(), []
    for i, creature in enumerate(CREATURES[:n]):
        attribute = next(a for a in VALUES if (creature, a) not in known.unasked)
        real = known.facts[creature, attribute]
        wrong = [v for v in VALUES[attribute] if v != real][i % 7]
        said = f"True or false? {stem(creature, attribute)}"
        both = ([{"role": "user", "content": f"{said} {value}."}] for value in (real, wrong))
        pairs.append((*both, creature))
    return map(list, zip(*pairs))


def test_the_verdict_travels_from_the_value_to_the_answer(organism):
    clean, corrupt, creature = statements(24)
    grid = ll.mediators(organism, "resid_post[*]", {"creature": 6, "value": -4, "end": "last"})
    found = organism.indirect_effect(grid, clean, corrupt, ("True", "False"), groups=creature)
    frame = found.to_frame().pivot(index="at", columns="block", values="pooled")
    assert found.total.low > 3
    assert found.dropped <= 2
    assert (frame.loc["creature"].abs() < 0.1).all()  # the creature is the same in both: it carries nothing
    assert frame.loc["value", 0] > 0.9
    assert frame.loc["end", 0] < 0.1
    assert frame.loc["value", frame.columns[-1]] < 0.1
    assert frame.loc["end", frame.columns[-1]] > 0.9
    steps = frame.loc["end"].diff().dropna()
    assert (steps > -0.1).all()  # what has arrived stays
    for name in ("resid_post[0] at value", f"resid_post[{frame.columns[-1]}] at end"):
        assert found[name].normalised.low > found[name].random.high
        assert found[name].normalised.low > found[name].unrelated.high


def test_probes_directions_and_latents_can_be_asked_for_their_effect(organism):
    clean, corrupt, creature = statements(20)
    last = organism.layout.n_blocks - 1
    texts = [*clean, *corrupt]
    acts = organism.activations(texts, sites=f"resid_post[{last - 1}]", where="last")
    sweep = ll.probe.fit(acts, [True] * 20 + [False] * 20, groups=creature * 2, n_controls=2)
    probe = sweep.best()
    sae = make(d_in=organism.layout.d_model, site=f"resid_post[{last - 1}]")
    asked = {
        "probe": ll.Mediator(probe, "last"), "mean difference": ll.Mediator(probe.mean_direction, "last"),
        "latent": ll.Mediator(sae, "last", latents=3), "all of it": ll.Mediator(probe.site, "last"),
    }  # fmt: skip
    found = organism.indirect_effect(asked, clean, corrupt, ("True", "False"), groups=creature)
    assert found["all of it"].pooled.value > 0.5
    assert 0.2 < found["mean difference"].pooled.value <= 1.2
    assert found["mean difference"].normalised.low > found["mean difference"].random.high
    assert abs(found["latent"].pooled.value) < found["mean difference"].pooled.value
    for direct in (probe, probe.direction, (sae, 3)):
        assert organism.indirect_effect(direct, clean[:4], corrupt[:4], ("True", "False"), controls=False).n == 4


def test_every_kind_of_probe_can_be_asked_for_its_effect(organism):
    from latentlens.methods.class_probe import fit_classes
    from latentlens.methods.contrast_probe import fit_contrast
    from latentlens.methods.token_probe import fit_tokens

    clean, corrupt, creature = statements(20)
    site, texts, labels = "resid_post[4]", [*clean, *corrupt], [True] * 20 + [False] * 20
    acts = organism.activations(texts, sites=["resid_post[3]", site], where="last")
    tokens = organism.activations(texts, sites=site, where="all")
    x, pairs = acts[site].float(), (clean[:3], corrupt[:3], ("True", "False"))
    asked = {
        "contrast": fit_contrast(x[:20], x[20:], site=site, restarts=2, steps=50),
        "attention": fit_tokens(tokens, labels, site=site, steps=20),
        "several sites": ll.probe.fit(acts, labels, groups=creature * 2, n_controls=1),
        "several classes": fit_classes(acts, labels, site=site, groups=creature * 2, n_controls=1),
    }
    names = {name: [e.name for e in organism.indirect_effect(p, *pairs, controls=False)] for name, p in asked.items()}
    assert [len(v) for v in names.values()] == [1, 1, 2, 2]
    assert names["several classes"] == ["False", "True"]
    assert [name.split()[0] for name in names["several sites"]] == ["resid_post[3]", site]


def test_texts_that_are_not_one_token_are_refused_with_their_pieces(organism):
    with pytest.raises(BadInput, match=r"is \d tokens of this model"):
        patch(organism, "resid_post[0]", ["True"], ["False"], ("True False", "False"))
