import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_kinds import KINDS, NORMALISATIONS, make

from latentlens.errors import BadInput
from latentlens.values.interventions import as_plan, plan_fingerprint
from latentlens.values.latents import EditLatents, ablate
from latentlens.values.sae import SAE

H = torch.tensor([[2.0, 1.0]])
#: kinds x normalisations x decoder-norm rescaling (topk) x centring
FLAVOURS = [
    (kind, normalisation, rescale, centre)
    for kind, normalisation, rescale, centre in itertools.product(KINDS, NORMALISATIONS, (False, True), (False, True))
    if kind == "topk" or not rescale
]


@pytest.fixture
def by_hand():
    """methods/steering.md 1.2"""
    return SAE(
        "relu",
        torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]]),
        torch.tensor([0.0, -0.5, 0.0]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        torch.tensor([0.1, 0.2]),
        site="resid_post[0]",
        apply_b_dec_to_input=False,
    )


def slow(sae, h, add=(), clamp=(), low=(), high=()):
    """Encode, edit, decode; encode again, decode: what SAELens users write, with the error term."""
    codes = sae.encode(h)
    edited = codes.clone()
    for j, c in dict(clamp).items():
        edited[:, j] = c
    for j, m in dict(low).items():
        edited[:, j] = edited[:, j].clamp(min=m)
    for j, m in dict(high).items():
        edited[:, j] = edited[:, j].clamp(max=m)
    for j, a in dict(add).items():
        edited[:, j] += a
    return h + sae.decode(edited, like=h) - sae.decode(codes, like=h)


def close(a, b, tolerance=2e-5):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def test_encoding_and_decoding_by_hand(by_hand):
    codes = by_hand.encode(H)
    assert codes.tolist() == [[2.0, 0.5, 0.0]]
    close(by_hand.decode(codes), torch.tensor([[2.1, 0.7]]))
    close(H - by_hand.reconstruct(H), torch.tensor([[-0.1, 0.3]]))
    assert by_hand.encode(torch.tensor([[5.0, 5.0]])).tolist() == [[5.0, 4.5, 0.0]]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"add": {2: 5.0}}, [5.0, 5.0]),
        ({"clamp": {1: 0.0}}, [2.0, 0.5]),
        ({"clamp": {2: 0.0}}, [2.0, 1.0]),
        ({"add": {2: 5.0}, "clamp": {1: 0.0}}, [5.0, 4.5]),
        ({"add": {1: 3.0}, "clamp": {1: 0.0}}, [2.0, 3.5]),  # the add survives a clamp of the same latent
        ({"add": [(2, 2.0), (2, 3.0)]}, [5.0, 5.0]),  # duplicate adds sum
        ({"low": {1: 1.0}}, [2.0, 1.5]),
        ({"low": {1: 0.2}}, [2.0, 1.0]),
        ({"high": {0: 1.5}}, [1.5, 1.0]),
        ({"low": {0: 2.5}, "high": {0: 3.0}, "add": {0: 1.0}}, [3.5, 1.0]),
    ],
)
def test_edits_by_hand(by_hand, edit, expected):
    close(EditLatents(by_hand, **edit).edit(H), torch.tensor([expected]))


def test_ablating_a_silent_latent_returns_the_state_bit_for_bit(by_hand):
    h = torch.cat([H, torch.tensor([[-0.0, 0.3]])])
    new = ablate(by_hand, [2]).edit(h)
    assert torch.equal(new.view(torch.int32), h.view(torch.int32))


@settings(max_examples=60, deadline=None)
@given(
    flavour=st.sampled_from(FLAVOURS),
    seed=st.integers(0, 10_000),
    edits=st.dictionaries(
        st.integers(0, 19), st.tuples(st.sampled_from(["add", "clamp", "low", "high"]), st.floats(-3, 3)), min_size=1
    ),
)
def test_the_closed_form_is_the_difference_of_two_decodings_for_every_kind(flavour, seed, edits):
    kind, normalisation, rescale, centre = flavour
    sae = make(kind, seed=seed, normalisation=normalisation, rescale_by_decoder_norm=rescale, centre=centre)
    h = 3 * torch.randn(7, 6, generator=torch.Generator().manual_seed(seed)) + 1
    given_edits = {what: {j: a for j, (w, a) in edits.items() if w == what} for what in ("add", "clamp", "low", "high")}
    close(EditLatents(sae, **given_edits).edit(h), slow(sae, h, **given_edits))


@pytest.mark.parametrize("kind", KINDS)
def test_ablating_all_latents_leaves_what_the_sae_does_not_explain(kind):
    sae, h = make(kind), torch.randn(9, 6)
    close(ablate(sae, range(20)).edit(h), h - sae.reconstruct(h) + sae.b_dec)


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_that_lost_the_competition_is_set_from_zero(kind):
    """Its code is 0 whatever its pre-activation was, so clamping to c adds c decoder rows."""
    sae, h = make(kind), torch.randn(40, 6)
    codes = sae.encode(h)
    silent = (codes[:, 3] == 0).nonzero().flatten()
    assert len(silent)
    new = EditLatents(sae, clamp={3: 2.0}).edit(h)
    close(new[silent], h[silent] + 2.0 * sae.decoder([3]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_many_different_edits_in_one_call_equal_each_row_alone(kind, data):
    """different latents, numbers and operations in one batch, evaluated at once"""
    normalisation = data.draw(st.sampled_from(NORMALISATIONS))
    sae = make(kind, normalisation=normalisation)
    amounts = st.dictionaries(st.integers(0, 19), st.floats(-4, 4), max_size=4)
    items = []
    for _ in range(data.draw(st.integers(1, 6))):
        add, clamp, low = data.draw(amounts), data.draw(amounts), data.draw(amounts)
        low = {j: m for j, m in low.items() if j not in clamp}
        items.append(EditLatents(sae, add=add, clamp=clamp, low=low or ({0: 0.1} if not (add or clamp) else None)))
    which = torch.tensor(data.draw(st.lists(st.integers(0, len(items) - 1), min_size=1, max_size=12)))
    h = torch.randn(len(which), 6, generator=torch.Generator().manual_seed(1))
    together = EditLatents.stacked(items)(h, which, None)
    alone = torch.cat([items[i].edit(h[row : row + 1]) for row, i in enumerate(which.tolist())])
    close(together, alone)
    assert len({item.lane for item in items}) == 1


def test_edits_of_different_saes_or_of_one_with_other_weights_are_different_lanes():
    lanes = {ablate(make(seed=s), [0]).lane for s in range(3)} | {ablate(make("topk"), [0]).lane}
    assert len(lanes) == 4
    assert ablate(make(seed=0), [0]).lane == EditLatents(make(seed=0), add={5: 1.0}).lane


def test_only_the_latents_needed_are_computed(monkeypatch):
    seen = []
    whole = SAE.encode
    monkeypatch.setattr(SAE, "encode", lambda self, x, *rest: seen.append(self.d_sae) or whole(self, x, *rest))
    h = torch.randn(3, 6)
    ablate(make("jumprelu"), [3, 7]).edit(h)
    assert seen == [2]
    EditLatents(make("topk"), add={3: 1.0}).edit(h)  # an addition encodes nothing, even where latents compete
    assert seen == [2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_sae_of_another_type_edits_float32_states(kind, dtype):
    sae = make(kind, dtype=dtype)
    h = torch.randn(9, 6)
    new = EditLatents(sae, clamp={1: 1.5}, add={2: 1.0}).edit(h)
    assert new.dtype == torch.float32
    codes = sae.encode(h)
    assert codes.dtype == dtype
    expected = h + (1.5 - codes[:, 1:2].float()) * sae.decoder([1]).float() + sae.decoder([2]).float()
    close(new, expected)


def test_weights_are_shared_by_all_edits_and_moved_once():
    sae = make()
    assert EditLatents(sae, add={0: 1.0}).sae is sae
    assert sae.to("cpu") is sae
    assert sae.to("meta") is sae.to("meta")
    assert sae.to("cpu", torch.float64) is sae.to("cpu", torch.float64)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({}, "does nothing: give add"),
        ({"add": {}}, "does nothing"),
        ({"add": {20: 1.0}}, "no latent 20 in an SAE of 20 latents"),
        ({"clamp": {-1: 1.0}}, "no latent -1"),
        ({"add": {1: float("nan")}}, "finite"),
        ({"add": {1.5: 1.0}}, "latent indices"),
        ({"add": 3.0}, "give"),
        ({"clamp": {1: 0.0}, "low": {1: 1.0}}, "cannot have a bound"),
        ({"low": {1: 2.0}, "high": {1: 1.0}}, "above"),
        ({"add": {1: 1.0}, "unit": "norms"}, "allowed are"),
        ({"clamp": [(1, 0.0), (1, 1.0)]}, "twice"),
    ],
)
def test_edits_that_say_nothing_or_contradict_themselves_are_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        EditLatents(make(), **edit)


def test_an_edit_acts_at_the_saes_site_unless_told_otherwise():
    """the resistance runs apply a layer-50 SAE at layer 33"""
    sae = make(site="resid_post[50]")
    assert str(ablate(sae, [1]).site) == "resid_post[50]"
    assert str(ablate(sae, [1], site="resid_post[33]").site) == "resid_post[33]"
    assert ablate(sae, [1]).width == 6


def test_fingerprints_change_with_the_sae_the_latents_and_the_numbers():
    sae = make()
    base = EditLatents(sae, add={1: 2.0})
    others = [
        EditLatents(sae, add={1: 2.5}),
        EditLatents(sae, add={2: 2.0}),
        EditLatents(sae, clamp={1: 2.0}),
        EditLatents(make(seed=1), add={1: 2.0}),
        EditLatents(make(normalisation="layer_norm"), add={1: 2.0}),
        EditLatents(sae, add={1: 2.0}, site="resid_post[2]"),
        EditLatents(sae, add={1: 2.0}, where="last"),
    ]
    prints = {plan_fingerprint(as_plan(item)) for item in [base, *others]}
    assert len(prints) == len(others) + 1
    same = EditLatents(make(about={"release": "other name"}), add=[(1, 1.0), (1, 1.0)])
    assert same.fingerprint == base.fingerprint
    about = base.about()
    assert about["sae"] == sae.fingerprint
    assert about["add"] == [[1, 2.0]]


def test_additions_can_be_given_in_median_norms():
    sae = make()
    item = EditLatents(sae, add={1: 0.5, 4: 1.0}, unit="norm").in_raw_units(lambda site: 8.0)
    h = torch.randn(1, 6)
    rows = sae.decoder([1, 4])
    units = rows / rows.norm(dim=-1, keepdim=True)
    close(item.edit(h), h + 4.0 * units[0] + 8.0 * units[1])
    with pytest.raises(BadInput, match="rescales"):
        EditLatents(make(normalisation="layer_norm"), add={1: 1.0}, unit="norm")


def test_an_edit_prints_what_it_does():
    text = repr(EditLatents(make(), add={7: 4.0}, clamp={1: 0.0}, low={2: 0.5}, where="response"))
    assert text == "EditLatents(7+4, 1=0, 2>=0.5, relu, at resid_post[1], response)"
    assert "... 27 more" in repr(ablate(make(d_sae=40), range(32)))
