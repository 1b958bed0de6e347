"""Steered generation and capture against a slow reference that recomputes everything, row by row."""

import copy

import pytest
import torch
from families import FAMILIES, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreter import Interpreter

import latentlens as ll
from latentlens.errors import BadInput, HookNeverFired
from latentlens.values.sites import Site

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW = 6
D = 32


def direction(seed, site="resid_post[1]", d=D):
    return ll.Direction(torch.randn(d, generator=torch.Generator().manual_seed(seed)), site)


def ready(lm, plan):
    return lm._steered(plan, 1)[1][0]


def plans():
    """One plan for each operation, scope, schedule and gate."""
    a, b, c = direction(0), direction(1), direction(2, "resid_post[0]")
    weight = torch.rand(D, generator=torch.Generator().manual_seed(3)) + 0.5
    return {
        "none": [],
        "add everywhere": [ll.Add(a, 4.0)],
        "add in median norms": [ll.Add(a, 0.7, unit="norm")],
        "norm-preserving add": [ll.NormPreservingAdd(a, 4.0)],
        "relative add": [ll.RelativeAdd(a, 0.6)],
        "clamp": [ll.Clamp(a, to=3.0)],
        "floor and cap": [ll.Clamp(a, low=1.0), ll.Clamp(c, high=-0.5)],
        "scale": [ll.Scale(a, -2.0)],
        "project out of every block": [ll.ProjectOut([a, b], site="resid_post[*]")],
        "concept edit": [ll.ConceptEdit(a, b.vector, 1.5)],
        "rotate to": [ll.Rotate(a, b, to=70)],
        "rotate by": [ll.Rotate(a, b, by=120, only_if_positive=True)],
        "slerp": [ll.Slerp(a, 0.4)],
        "reflect": [ll.Reflect(a)],
        "affine": [ll.Affine(weight, b.vector, 0.8, site="resid_post[0]")],
        "patch": [ll.Patch(torch.stack([a.vector, b.vector]), site="resid_post[0]", where="first-2")],
        "add at the front": [ll.AddAt(torch.stack([a.vector, b.vector]), 2.0, site="resid_post[0]", where="first-2")],
        "patch the response": [ll.Patch(torch.stack([a.vector, b.vector]), site=0, where="response")],
        "prompt": [ll.Add(a, 4.0, where="prompt")],
        "response": [ll.Add(a, 4.0, where="response")],
        "last": [ll.Add(a, 6.0, where="last")],
        "first-2 and a slice": [ll.Add(a, 4.0, where="first-2"), ll.Add(c, 5.0, where=slice(1, None, 2))],
        "indices beyond the prompt": [ll.Add(a, 8.0, where=[0, 8])],
        "last prompt token and response": [ll.Add(a, 4.0, where="last_prompt+response")],
        "content": [ll.Add(a, 4.0, where="content")],
        "decay": [ll.Add(a, 6.0, schedule=ll.Schedule(decay=0.6))],
        "from step 2 to 4": [ll.Add(a, 6.0, schedule=ll.Schedule(start=2, stop=4))],
        "every second step": [ll.Scale(a, 3.0, schedule=ll.Schedule(every=2, start=1))],
        "callable": [ll.Clamp(a, to=5.0, schedule=lambda n: 1.0 if n % 3 else 0.5)],
        "sites inside a block": [ll.Add(direction(5, "attn_out[0]"), 2.0), ll.Scale(direction(6, "mlp_out[1]"), 0.0)],
        "block input and output": [ll.Add(direction(7, "resid_pre[1]"), 3.0), ll.Reflect(a), ll.Add(b, 2.0)],
        "gate per row": [ll.Gate(ll.Add(a, 6.0), ll.Condition(c, 0.0))],
        "gate per token": [ll.Gate(ll.Add(a, 6.0), ll.Condition(c, 0.0, latched=False))],
        "gate on the last prompt token, two deep": [
            ll.Gate(ll.Gate(ll.Add(a, 6.0), ll.Condition(c, 0.3, "cosine", above=False)), ll.Condition(c, where="last"))
        ],
        "gate with a schedule": [ll.Gate(ll.Add(a, 6.0, schedule=ll.Schedule(decay=0.5)), ll.Condition(c, -9.0))],
    }


@pytest.fixture(scope="module")
def models():
    return {}


def open_model(models, family):
    if family not in models:
        lm = ll.load(build(family), cache=False)
        lm.reference_texts = [[3, 4, 5, 6, 7], [8, 9, 10]]
        models[family] = (lm, Interpreter(lm))
    return models[family]


@pytest.mark.parametrize("plan", plans())
@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_batched_cached_text_equals_the_slow_reference_token_for_token(models, family, plan):
    lm, slow = open_model(models, family)
    steer = plans()[plan]
    for temperature in (0.0, 1.0):
        runs = lm.generate(ROWS, NEW, 2, temperature, seed=3, steer=steer, stop_ids=(), allow_idle=True)
        prepared = ready(lm, steer)
        for run in runs:
            expected = slow.generate(run.row.ids, prepared, NEW, temperature, 3, run.sample)
            assert run.generated == expected, (temperature, run.prompt_index, run.sample)


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Falcon", "Gemma2", "OPT", "GPT-NeoX"])
def test_different_plans_in_one_batch_equal_each_row_alone(models, family):
    lm, slow = open_model(models, family)
    names, chosen = zip(*plans().items(), strict=True)
    prompts = [ROWS[i % 3] for i in range(len(chosen))]
    together = lm.generate(prompts, NEW, temperature=1.0, seed=1, steer=list(chosen), stop_ids=(), allow_idle=True)
    for name, plan, run in zip(names, chosen, together, strict=True):
        assert run.steer == tuple(plan)
        assert run.generated == slow.generate(run.row.ids, ready(lm, plan), NEW, 1.0, 1), name


def test_rows_that_finish_early_leave_the_others_with_their_own_plans(models):
    lm, slow = open_model(models, "Llama")
    stops = set(range(0, lm.layout.vocab_size, 4))
    steer = [[ll.Add(direction(i), 4.0), ll.Clamp(direction(i + 1), low=1.0)] for i in range(24)]
    steer[5] = [ll.Add(direction(5), 4.0)]
    steer[7] = [ll.Add(direction(7), 4.0), ll.Add(direction(1), 3.0, where="response", schedule=ll.Schedule(decay=0.8))]
    prompts = [ROWS[i % 3] for i in range(24)]
    runs = lm.generate(prompts, 12, temperature=1.0, seed=4, steer=steer, stop_ids=stops, allow_idle=True)
    assert len({len(run.generated) for run in runs}) > 4
    for run, plan in zip(runs, steer, strict=True):
        full = slow.generate(run.row.ids, ready(lm, plan), 12, 1.0, 4)
        end = next((i + 1 for i, token in enumerate(full) if token in stops), 12)
        assert run.generated == full[:end]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_plan_per_row(family):
    lm = ll.load(build(family), cache=False)
    slow, a, b = Interpreter(lm), direction(0), direction(1, "resid_post[0]")
    plan = [[ll.Add(a, 2.0)], [ll.Clamp(b, low=1.0), ll.Reflect(a)], None]
    together = lm.generate(ROWS, NEW, temperature=1.0, seed=1, steer=plan, stop_ids=())
    for run, one in zip(together, plan, strict=True):
        assert run.generated == slow.generate(run.row.ids, ready(lm, one), NEW, 1.0, 1)


# -- random plans ---------------------------------------------------------------------------------------

numbers = st.floats(-4, 4, allow_nan=False, width=32)
seeds = st.integers(0, 20)
wheres = st.sampled_from(
    [
        "all",
        "prompt",
        "response",
        "last",
        "first-2",
        "last-2",
        "last_prompt+response",
        0,
        [1, 7],
        slice(1, None, 2),
        "content",
    ]
)
schedules = st.sampled_from(
    [
        None,
        ll.Schedule(decay=0.7),
        ll.Schedule(start=1),
        ll.Schedule(stop=3),
        ll.Schedule(every=2),
        [1.0, 0.5, 0.0, 2.0],
    ]
)
sites = st.sampled_from(
    ["resid_post[0]", "resid_post[1]", "resid_pre[1]", "attn_out[0]", "mlp_out[1]", "resid_post[*]"]
)


@st.composite
def interventions(draw):
    a, b = direction(draw(seeds)), direction(100 + draw(seeds))
    common = {"where": draw(wheres), "schedule": draw(schedules), "site": draw(sites)}
    x = draw(numbers)
    item = draw(
        st.sampled_from(
            [
                lambda: ll.Add(a, x, **common),
                lambda: ll.NormPreservingAdd(a, x, **common),
                lambda: ll.RelativeAdd(a, x / 4, **common),
                lambda: ll.Clamp(a, to=x, **common),
                lambda: ll.Clamp(a, low=x, **common),
                lambda: ll.Scale(a, x, **common),
                lambda: ll.ProjectOut([a, b], **common),
                lambda: ll.ConceptEdit(a, b.vector, x, **common),
                lambda: ll.Rotate(a, b, by=90 * x, **common),
                lambda: ll.Slerp(a, abs(x) / 4, **common),
                lambda: ll.Reflect(a, **common),
                lambda: ll.Patch(torch.stack([a.vector, b.vector]), **common),
            ]
        )
    )()
    if draw(st.booleans()) and draw(st.booleans()):
        read = direction(200 + draw(seeds), "resid_pre[0]")
        item = ll.Gate(item, ll.Condition(read, draw(numbers) / 8, latched=draw(st.booleans())))
    return item


@given(
    steer=st.lists(st.one_of(st.none(), st.lists(interventions(), max_size=4)), min_size=3, max_size=3),
    greedy=st.booleans(),
    lengths=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_plans_per_row_equal_the_reference_in_text_and_states(models, steer, greedy, lengths):
    lm, slow = open_model(models, "Llama")
    steer = [[] if plan is None else plan for plan in steer]
    prompts = [[3 + (5 * i + 7 * n) % 60 for n in range(length)] for i, length in enumerate(lengths)]
    temperature = 0.0 if greedy else 1.0
    try:
        runs = lm.generate(prompts, 4, temperature=temperature, seed=2, steer=steer, stop_ids=(), allow_idle=True)
    except ll.errors.WhereNotValid:  # an index outside a short prompt
        return
    want = Site("resid_post", 1)
    acts = lm.activations(runs, sites=want, steer=steer)
    for i, (run, plan) in enumerate(zip(runs, steer, strict=True)):
        prepared = ready(lm, plan)
        assert run.generated == slow.generate(run.row.ids, prepared, 4, temperature, 2)
        _, found = slow.forward(run.row.continued(run.generated), prepared, [want])
        mine = acts[want][acts.labels["text"] == i]
        scale = float(found[want].abs().max())
        torch.testing.assert_close(mine, found[want].reshape(-1, D), atol=1e-5 * max(scale, 1.0), rtol=1e-4)


# -- what must not change -------------------------------------------------------------------------------


def test_an_empty_plan_is_bit_identical_to_no_hooks(models):
    lm, _ = open_model(models, "Llama")
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        plain = lm.model(ids).logits
        with lm.steer([]):
            steered = lm.model(ids).logits
    assert torch.equal(plain, steered)
    assert torch.equal(lm.logits(ROWS), lm.logits(ROWS, steer=[[], None, []]))


def test_rows_without_a_plan_are_bit_identical_to_an_unsteered_batch(models):
    lm, _ = open_model(models, "Llama")
    clean = lm.activations(ROWS, sites="resid_post[*]")
    mixed = lm.activations(ROWS, sites="resid_post[*]", steer=[None, [ll.Add(direction(0), 5.0)], None])
    other = clean.labels["text"] != 1
    for site in clean:
        assert torch.equal(clean[site][other], mixed[site][other])
    assert not torch.equal(clean["resid_post[1]"], mixed["resid_post[1]"])


def test_plans_per_row_meet_the_cache_row_by_row(tmp_path):
    lm = ll.load(build("Llama"), cache=ll.ActivationCache(tmp_path))
    a, b = ll.Add(direction(0), 5.0), ll.Add(direction(1), 5.0)
    one = lm.activations(ROWS, steer=a)
    assert one.about["computed_rows"] == 3
    per_row = lm.activations(ROWS, steer=[[a], [b], None])
    assert per_row.about["computed_rows"] == 2, "row 0 has the same plan as before"
    again = lm.activations(ROWS, steer=[[a], [b], None])
    assert again.about["forwards"] == 0
    clean = lm.activations(ROWS)
    assert clean.about["computed_rows"] == 2, "the row without a plan is clean"
    for site in per_row:
        assert torch.equal(per_row[site], again[site])


def test_low_precision_models_are_edited_in_float32_with_one_cast():
    lm = ll.load(copy.deepcopy(build("Llama")).to(torch.bfloat16), cache=False)
    small = direction(0).scaled_to(1e-3)
    clean = lm.activations(ROWS[:1], sites="resid_post[1]")["resid_post[1]"]
    item = ll.Rotate(direction(0), direction(1), by=20)
    steered = lm.activations(ROWS[:1], sites="resid_post[1]", steer=[ll.Add(small, 1.0), item])["resid_post[1]"]
    first = (clean.float() + small.vector).to(torch.bfloat16)
    assert torch.equal(steered, item.edit(first).to(torch.bfloat16))


# -- faults ---------------------------------------------------------------------------------------------


def test_an_edit_that_never_acts_is_an_error_unless_told_otherwise(models):
    lm, _ = open_model(models, "Llama")
    late = ll.Add(direction(0), schedule=ll.Schedule(start=50))
    with pytest.raises(HookNeverFired, match="never acted"):
        lm.generate(ROWS, 4, steer=late, stop_ids=())
    with pytest.raises(HookNeverFired, match="never acted"):
        lm.generate(ROWS, 4, steer=[[ll.Add(direction(0))], [late], None], stop_ids=())
    assert len(lm.generate(ROWS, 4, steer=late, stop_ids=(), allow_idle=True)) == 3


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (ll.Add(ll.Direction(torch.ones(16), "resid_post[0]")), "16 entries"),
        (ll.Add(ll.Direction(torch.ones(D), "resid_mid[0]")), "read but not edited"),
        (ll.Add(ll.Direction(torch.ones(D), "resid_post[0]", frame="centred")), "to_raw"),
        (ll.Gate(ll.Add(direction(0, "resid_post[0]")), ll.Condition(direction(1))), "before its condition"),
        (ll.Gate(ll.Add(direction(0)), ll.Condition(direction(1, "resid_post[0]"), site="resid_post[*]")), "one site"),
        (ll.Gate(ll.Add(direction(0)), ll.Condition(ll.Direction(torch.ones(5), "resid_post[0]"))), "5 entries"),
        ([[ll.Add(direction(0))]], "1 plans for 3 rows"),
        ("loud", "not str"),
        (ll.Add(direction(0), schedule=ll.Schedule(per_sentence=(1.0,))), "tokenizer"),
        (ll.Add(direction(0), unit="norm"), "reference_texts"),
    ],
)
def test_plans_that_do_not_fit_are_refused_with_advice(plan, says):
    lm = ll.load(build("Llama"), cache=False)
    with pytest.raises((BadInput, ll.errors.SiteNotFound), match=says):
        lm.generate(ROWS, 2, steer=plan)


def test_a_site_beyond_the_model_is_refused_by_name(models):
    lm, _ = open_model(models, "Llama")
    with pytest.raises(ll.errors.SiteNotFound, match="no block 40"):
        lm.generate(ROWS, 2, steer=ll.Add(direction(0, "resid_post[40]")))


def test_hooks_are_gone_after_an_exception_inside_an_edit(models, monkeypatch):
    lm, _ = open_model(models, "Llama")
    before = lm.logits(ROWS)
    monkeypatch.setattr(ll.Reflect, "formula", staticmethod(lambda h, u: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        lm.generate(ROWS, 2, steer=ll.Reflect(direction(0)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(lm.logits(ROWS), before)
