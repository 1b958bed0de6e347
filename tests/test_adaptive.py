"""Additions that a probe decides on: numbers by hand, rows of one batch, and the slow reference."""

import copy

import pytest
import torch
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import Interpreter

import latentlens as ll
from latentlens.errors import BadInput, WhereNotValid

SITE = "resid_post[0]"
EYE = torch.eye(2)
H = torch.tensor([[2.0, 1.0]])
ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW, D = 6, 32


def close(found, expected):
    assert torch.as_tensor(found).flatten().tolist() == pytest.approx(expected, abs=6e-5)


# -- by hand -------------------------------------------------------------------------------------------


def test_the_hard_and_the_soft_choice_by_hand():
    one = {"vectors": EYE, "weight": EYE, "bias": [0, 0], "coeff": 4.0, "site": SITE}
    close(ll.AdaptiveAdd(**one).edit(H), [6, 1])
    close(ll.AdaptiveAdd(**one, soft=True).edit(H), [4.9242, 2.0758])
    assert ll.AdaptiveAdd(**one).choices(H).tolist() == [0]


def test_the_gate_leaves_uncertain_states_bit_for_bit():
    item = ll.AdaptiveAdd(EYE, EYE, [0, 0], 4.0, threshold=0.73, site=SITE)
    close(item.edit(H), [6, 1])  # p = .7311
    shut = ll.AdaptiveAdd(EYE, EYE, [0, 0], 4.0, threshold=0.74, site=SITE)
    odd = torch.tensor([[2.1, 1.1]])
    assert torch.equal(shut.edit(odd), odd)
    assert shut.choices(torch.tensor([[2.0, 1.0], [5.0, 1.0]])).tolist() == [-1, 0]


def test_ties_go_to_the_lowest_index():
    item = ll.AdaptiveAdd([[1, 0], [0, 1], [5, 5]], torch.zeros(3, 2), [0, 0, 0], site=SITE)
    close(item.edit(H), [3, 1])
    assert item.choices(H).tolist() == [0]


def test_the_push_of_act_by_hand():
    theta, p = torch.tensor([[0.6, 0.8]]), 0.8
    bias = [torch.logit(torch.tensor(p)) - 0.6]  # so that the probe says .8 at [1, 0]
    state = torch.tensor([[1.0, 0.0]])
    close(ll.ShortfallAdd(0.5 * theta, theta, bias, 12.0, site="z[0]").edit(state), [1.72, 0.96])
    constant = ll.ShortfallAdd(0.5 * theta, theta, bias, 15.0, beta=None, site="z[0]")
    close(constant.edit(state), [5.5, 6])  # ITI, whatever the probe says
    more = ll.ShortfallAdd(0.5 * theta, theta, bias, 12.0, beta=1.0, site="z[0]")
    close(more.edit(state), [1 + 12 * 0.5 * 0.6 * 1.2, 12 * 0.5 * 0.8 * 1.2])


def test_probes_of_one_shortfall_read_the_state_as_it_came_in():
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    item = ll.ShortfallAdd(w, w, [0, 0], site="z[0]")
    close(item.edit(torch.zeros(1, 2)), [1.0, 0.0])  # .5 + .5, not .5 + (1 - sigmoid(.5))


@given(seed=st.integers(0, 99), coeff=st.floats(-4, 4, width=32), unit=st.sampled_from(["raw", "norm"]))
@settings(max_examples=25, deadline=None)
def test_one_vector_is_plain_addition_bit_for_bit(seed, coeff, unit):
    torch.manual_seed(seed)
    v, states = torch.randn(9), torch.randn(5, 9)
    plain = ll.Add(ll.Direction(v, SITE), coeff, unit).in_raw_units(lambda site: 3.7)
    for soft in (False, True):
        item = ll.AdaptiveAdd(v[None], torch.randn(1, 9), [0.3], coeff, unit, soft=soft, threshold=1.0, site=SITE)
        assert torch.equal(item.in_raw_units(lambda site: 3.7).edit(states), plain.edit(states))


def test_a_zero_vector_has_no_length_to_give_and_adds_nothing():
    item = ll.AdaptiveAdd([[0, 0], [3, 4]], EYE, [0, 0], 2.0, "norm", site=SITE).in_raw_units(lambda site: 10.0)
    assert torch.equal(item.edit(H), H)
    close(item.edit(torch.tensor([[0.0, 1.0]])), [12, 17])


# -- many at once --------------------------------------------------------------------------------------


def adaptive(seed, site="resid_post[1]", k=3, d=D, **options):
    g = torch.Generator().manual_seed(seed)
    vectors, weight, bias = (torch.randn(*s, generator=g) for s in ((k, d), (k, d), (k,)))
    return ll.AdaptiveAdd(vectors, weight / d**0.5, bias, options.pop("coeff", 4.0), site=site, **options)


def shortfall(seed, site="z[1]", d=D, **options):
    g = torch.Generator().manual_seed(seed)
    vectors, weight, bias = (torch.randn(*s, generator=g) for s in ((4, d), (4, d), (4,)))
    return ll.ShortfallAdd(vectors, weight, bias, options.pop("coeff", 2.0), site=site, **options)


@given(n=st.integers(1, 5), k=st.integers(1, 4), seed=st.integers(0, 99), seen=st.booleans())
@settings(max_examples=25, deadline=None)
def test_many_interventions_of_a_lane_at_once_equal_each_alone(n, k, seed, seen):
    torch.manual_seed(seed)
    reads = "last_prompt" if seen else None
    items = [adaptive(seed + i, k=k, soft=i % 2 == 0, threshold=0.1 * i, reads=reads) for i in range(n)]
    assert len({item.lane for item in items}) == 1
    states, which, read = torch.randn(11, D), torch.randint(0, n, (11,)), torch.randn(11, D)
    more = (read,) if seen else ()
    together = type(items[0]).stacked(items)(states, which, None, *more)
    alone = torch.cat(
        [
            type(items[w]).stacked([items[w]])(states[i : i + 1], None, None, *(r[i : i + 1] for r in more))
            for i, w in enumerate(which.tolist())
        ]
    )
    assert torch.equal(together, alone)
    items = [shortfall(seed + i, beta=None if i % 2 else 0.5) for i in range(n)]
    together = ll.ShortfallAdd.stacked(items)(states, which, None)
    alone = torch.cat([items[w].edit(states[i : i + 1]) for i, w in enumerate(which.tolist())])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_deciding_once_per_row_and_at_every_token_are_lanes_of_their_own():
    assert adaptive(0).lane != adaptive(0, reads="prompt").lane
    assert adaptive(0).lane != adaptive(0, k=2).lane
    assert adaptive(0, reads="prompt").lane == adaptive(1, reads="last_prompt").lane


# -- in a model ----------------------------------------------------------------------------------------


def direction(seed, site="resid_post[1]"):
    return ll.Direction(torch.randn(D, generator=torch.Generator().manual_seed(seed)), site)


def plans():
    gate = ll.Condition(direction(9, "resid_post[0]"), 0.0)
    return {
        "none": [],
        "per token, hard": [adaptive(0)],
        "per token, soft": [adaptive(1, soft=True)],
        "gated by its own certainty": [adaptive(2, threshold=0.6)],
        "in median norms": [adaptive(3, unit="norm", coeff=0.6)],
        "decided at the last prompt token": [adaptive(4, reads="last_prompt")],
        "decided on the mean of the prompt, soft": [adaptive(5, reads="prompt", soft=True)],
        "decided on the prompt, acting on the response": [adaptive(6, reads="first-2", where="response")],
        "decided after an edit at the same site": [ll.Reflect(direction(7)), adaptive(7, reads="last_prompt")],
        "per token after an edit at the same site": [ll.Reflect(direction(7)), adaptive(7)],
        "at every block": [adaptive(8, site="resid_post[*]", coeff=1.5)],
        "decided once at every block": [adaptive(8, site="resid_post[*]", coeff=1.5, reads="last_prompt")],
        "on a schedule": [adaptive(10, reads="prompt", schedule=ll.Schedule(start=1, decay=0.7))],
        "behind a gate": [ll.Gate(adaptive(11, reads="last_prompt"), gate)],
        "two, one of them decided once": [adaptive(12, where="last_prompt+response"), adaptive(13, reads="last")],
        "heads": [shortfall(0)],
        "heads, last prompt token and response": [shortfall(1, "z[0]", where="last_prompt+response"), shortfall(2)],
        "other operations": [ll.Add(direction(3), 4.0)],
    }


@pytest.fixture(scope="module")
def models():
    found = {}
    for family in ("Llama", "GPT-2"):
        lm = ll.load(build(family), cache=False)
        lm.reference_texts = [[3, 4, 5, 6, 7], [8, 9, 10]]
        found[family] = (lm, Interpreter(lm))
    return found


def ready(lm, plan):
    return lm._steered(plan, 1)[1][0]


@pytest.mark.parametrize("plan", plans())
@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_batched_cached_text_equals_the_slow_reference_token_for_token(models, family, plan):
    lm, slow = models[family]
    steer = plans()[plan]
    runs = lm.generate(ROWS, NEW, 2, 1.0, seed=3, steer=steer, stop_ids=(), allow_idle=True)
    for run in runs:
        assert run.generated == slow.generate(run.row.ids, ready(lm, steer), NEW, 1.0, 3, run.sample)


@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_different_plans_in_one_batch_equal_each_row_alone(models, family):
    lm, slow = models[family]
    names, chosen = zip(*plans().items(), strict=True)
    prompts = [ROWS[i % 3] for i in range(len(chosen))]
    together = lm.generate(prompts, NEW, temperature=1.0, seed=1, steer=list(chosen), stop_ids=(), allow_idle=True)
    for name, plan, run in zip(names, chosen, together, strict=True):
        assert run.generated == slow.generate(run.row.ids, ready(lm, plan), NEW, 1.0, 1), name


def test_one_vector_writes_the_same_tokens_as_plain_addition(models):
    lm, _ = models["Llama"]
    v = direction(5)
    one = ll.AdaptiveAdd(v.vector[None], torch.zeros(1, D), [0.0], 0.8, "norm", site=v.site, reads="last_prompt")
    texts = [
        [run.generated for run in lm.generate(ROWS, 12, 3, 1.0, steer=item, stop_ids=())]
        for item in (one, ll.Add(v, 0.8, "norm"))
    ]
    assert texts[0] == texts[1]
    assert texts[0] != [run.generated for run in lm.generate(ROWS, 12, 3, 1.0, stop_ids=())]


def test_captured_states_show_the_edit_of_the_row_that_was_decided_on_its_prompt(models):
    lm, slow = models["Llama"]
    plan = [adaptive(4, reads="last_prompt", where="response")]
    runs = lm.generate(ROWS, NEW, temperature=1.0, seed=2, steer=plan, stop_ids=())
    acts = lm.activations(runs, sites="resid_post[1]", steer=plan)
    site = acts.sites[0]
    for i, run in enumerate(runs):
        _, found = slow.forward(run.row.continued(run.generated), ready(lm, plan), [site])
        torch.testing.assert_close(acts[site][acts.labels["text"] == i], found[site], atol=1e-4, rtol=1e-4)


def test_other_peoples_generate_is_steered_alike_padded_with_beams_and_without_a_cache(models):
    lm, _ = models["Llama"]
    plan = [adaptive(4, reads="last_prompt", where="last_prompt+response")]
    ours = [list(run.generated) for run in lm.generate(ROWS, NEW, steer=plan, stop_ids=())]
    width = max(map(len, ROWS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in ROWS])
    mask = (torch.arange(width)[None] >= torch.tensor([[width - len(row)] for row in ROWS])).long()
    for options in ({}, {"use_cache": False}):
        with lm.steer(plan):
            out = lm.model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, **options
            )
        assert out[:, width:].tolist() == ours


def test_a_prompt_read_in_chunks_is_followed_where_the_decision_lies_in_one_of_them(models):
    lm, _ = models["Llama"]
    plan = [adaptive(4, reads="last_prompt", where="last_prompt")]
    ids, whole = torch.tensor([ROWS[2]]), lm.logits([ROWS[2]], steer=plan)
    with torch.no_grad():
        with lm.steer(plan, prompt_width=5):
            half = lm.model(ids[:, :3], use_cache=True)
            rest = lm.model(ids[:, 3:], past_key_values=half.past_key_values)
        torch.testing.assert_close(rest.logits[0, -1:], whole, atol=1e-4, rtol=1e-4)
        late = lm.steer([adaptive(4, reads="prompt")], prompt_width=5)
        with pytest.raises(BadInput, match="AdaptiveAdd decides once per row"), late:
            lm.model(ids[:, :3], use_cache=True)


def test_low_precision_models_decide_and_add_in_float32_with_one_cast():
    lm = ll.load(copy.deepcopy(build("Llama")).to(torch.bfloat16), cache=False)
    clean = lm.activations(ROWS[:1], sites="resid_post[1]")["resid_post[1]"]
    for item in (adaptive(3), adaptive(3, soft=True, threshold=0.4)):
        steered = lm.activations(ROWS[:1], sites="resid_post[1]", steer=item)["resid_post[1]"]
        assert torch.equal(steered, item.edit(clean.float()).to(torch.bfloat16))


def test_steered_rows_meet_the_cache_under_their_own_plan(tmp_path):
    lm = ll.load(build("Llama"), cache=ll.ActivationCache(tmp_path))
    first = lm.activations(ROWS, steer=adaptive(0))
    assert lm.activations(ROWS, steer=adaptive(0)).about["forwards"] == 0
    other = lm.activations(ROWS, steer=adaptive(0, reads="last_prompt"))
    assert other.about["computed_rows"] == 3
    assert not torch.equal(first["resid_post[1]"], other["resid_post[1]"])


# -- identity, files, faults ---------------------------------------------------------------------------


def test_fingerprints_tell_every_field_apart():
    base = {"vectors": EYE, "weight": EYE, "bias": torch.zeros(2), "site": SITE}
    items = [ll.AdaptiveAdd(**base)]
    for changed in (
        {"vectors": 2 * EYE},
        {"weight": 2 * EYE},
        {"bias": torch.ones(2)},
        {"coeff": 2.0},
        {"unit": "norm"},
        {"soft": True},
        {"threshold": 0.5},
        {"reads": "prompt"},
        {"reads": "last"},
        {"where": "last"},
        {"site": "resid_post[1]"},
        {"schedule": ll.Schedule(stop=3)},
    ):
        items.append(ll.AdaptiveAdd(**base | changed))
    items += [ll.ShortfallAdd(**base), ll.ShortfallAdd(**base, beta=None), ll.ShortfallAdd(**base, beta=1.0)]
    assert len({item.fingerprint for item in items}) == len(items)


def test_plans_survive_their_file(tmp_path):
    plan = (
        adaptive(0, reads="last_prompt", threshold=0.5, where="last_prompt+response", schedule=ll.Schedule(decay=0.9)),
        ll.Gate(adaptive(1, soft=True), ll.Condition(direction(1, "resid_post[0]"))),
        shortfall(0, beta=None),
    )
    path = ll.save_plan(plan, tmp_path / "plan")
    back = ll.load_plan(path)
    assert back == plan
    assert [item.fingerprint for item in back] == [item.fingerprint for item in plan]


def test_they_say_what_they_are():
    assert repr(adaptive(0, reads="last_prompt", threshold=0.5, coeff=0.2, unit="norm")) == (
        "AdaptiveAdd(3 vectors, hard, +0.2, in median norms, p>=0.5, decided on last_prompt, at resid_post[1], all)"
    )
    assert repr(shortfall(0, coeff=12.0)) == "ShortfallAdd(4 probes, +12, beta=0, at z[1], all)"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ll.AdaptiveAdd(EYE[0], EYE, [0, 0], site=SITE), "one row a vector"),
        (lambda: ll.AdaptiveAdd(EYE, EYE[:1], [0, 0], site=SITE), "must both be"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0, 0], site=SITE), "bias must be 2"),
        (lambda: ll.AdaptiveAdd(EYE * float("nan"), EYE, [0, 0], site=SITE), "finite"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0], "much", site=SITE), "not a number"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0], threshold=1.5, site=SITE), "0 to 1"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0], unit="sigma", site=SITE), "allowed are"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0], reads="here", site=SITE), "cannot read where"),
        (lambda: ll.AdaptiveAdd(EYE, EYE, [0, 0]), "needs site="),
        (lambda: ll.ShortfallAdd(EYE, EYE[:1], [0, 0], site="z[0]"), "must both be"),
        (lambda: ll.ShortfallAdd(EYE, EYE, [0, 0], beta="x", site="z[0]"), "not a number"),
    ],
)
def test_wrong_arguments_get_one_clear_error(make, says):
    with pytest.raises((BadInput, WhereNotValid), match=says):
        make()


def test_a_plan_that_does_not_fit_the_model_or_the_prompt_is_refused(models):
    lm, _ = models["Llama"]
    with pytest.raises(BadInput, match="16 entries"):
        lm.generate(ROWS, 2, steer=adaptive(0, d=16))
    with pytest.raises(WhereNotValid, match="AdaptiveAdd reads where=role:user: nothing in prompt 0"):
        lm.generate(ROWS, 2, steer=adaptive(0, reads="role:user"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
