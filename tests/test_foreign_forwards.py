"""`with lm.steer(...)`: other people's code is steered exactly as our own verbs steer."""

import copy
import threading

import pytest
import torch
from families import build
from interpreter import Interpreter
from tinytok import tokenizer

import latentlens as ll
from latentlens.errors import BadInput, HookNeverFired

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW, D = 6, 32


def direction(seed, site="resid_post[1]"):
    return ll.Direction(torch.randn(D, generator=torch.Generator().manual_seed(seed)), site)


@pytest.fixture(scope="module", params=["Llama", "GPT-2"])
def lm(request):
    model = copy.deepcopy(build(request.param))
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return ll.load(model, cache=False)


def padded(rows, side="left"):
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


SCOPES = {
    "all": {},
    "prompt": {"where": "prompt"},
    "response": {"where": "response"},
    "last": {"where": "last"},
    "first-2": {"where": "first-2"},
    "index 8": {"where": [1, 8]},
    "decay": {"schedule": ll.Schedule(decay=0.5, start=1)},
}
HOW = {
    "cached": {},
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt in chunks": {"prefill_chunk_size": 3},
    "prompt in chunks, one token left": {"prefill_chunk_size": 6},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("scope", SCOPES)
def test_transformers_generate_is_steered_as_ours(lm, scope, how):
    plan = [ll.Add(direction(0), 6.0, **SCOPES[scope]), ll.Clamp(direction(1, "resid_post[0]"), low=0.5)]
    ours = lm.generate(ROWS, NEW, steer=plan, stop_ids=())
    with lm.steer(plan):
        theirs = lm.model.generate(**padded(ROWS), max_new_tokens=NEW, do_sample=False, **HOW[how])
    assert [tuple(row) for row in theirs[:, -NEW:].tolist()] == [run.generated for run in ours]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("where", ["all", "response", "prompt"])
def test_beams_are_steered_like_the_slow_reference(lm, where, use_cache):
    """The sum of log-probabilities that beam search reports is that of its text under a full steered recomputation."""
    plans = [[ll.Add(direction(0), 5.0, where=where)], [ll.Reflect(direction(1))], [ll.Add(direction(2), 3.0)]]
    with lm.steer(plans):
        out = lm.model.generate(
            **padded(ROWS),
            max_new_tokens=NEW,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            length_penalty=0.0,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
    slow = Interpreter(lm)
    for i, (text, score) in enumerate(zip(out.sequences, out.sequences_scores.tolist(), strict=True)):
        row = lm.tokens([ROWS[i // 3]])[0].continued(tuple(text[-NEW:].tolist()))
        logits, _ = slow.forward(row, lm._steered(plans[i // 3], 1)[1][0])
        chosen = logits[row.n_prompt - 1 : -1].log_softmax(-1)
        total = float(chosen[torch.arange(NEW), text[-NEW:]].sum())
        assert score == pytest.approx(total, abs=1e-4)


def test_several_sampled_sequences_of_a_prompt_share_its_plan(lm):
    plans = [[ll.Add(direction(0), 50.0)], None, [ll.Add(direction(2), 50.0)]]
    torch.manual_seed(0)
    with lm.steer(plans):
        out = lm.model.generate(**padded(ROWS), max_new_tokens=2, do_sample=True, num_return_sequences=2, top_k=1)
    ours = lm.generate(ROWS, 2, steer=plans, stop_ids=())
    assert [tuple(row) for row in out[:, -2:].tolist()] == [run.generated for run in ours for _ in range(2)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_plain_forward_is_steered_wherever_its_padding_is(lm, side):
    plan = [[ll.Add(direction(0), 4.0, where="last")], [ll.Reflect(direction(1))], None]
    batch = padded(ROWS, side)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), lm.steer(plan):
        logits = lm.model(**batch).logits
    expected = lm.logits(ROWS, where="all", steer=plan)
    torch.testing.assert_close(logits[batch["attention_mask"].bool()], expected, atol=2e-5, rtol=1e-4)


def test_your_own_decoding_loop_is_followed(lm):
    plan = ll.Add(direction(0), 6.0, where="response", schedule=ll.Schedule(every=2, start=1))
    text, cache, ids = [], None, torch.tensor([ROWS[0]])
    with torch.no_grad(), lm.steer(plan):
        for _ in range(NEW):
            out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            text.append(int(ids))
    assert tuple(text) == lm.generate(ROWS[:1], NEW, steer=plan, stop_ids=())[0].generated


def test_a_prompt_read_in_pieces_by_your_own_code_needs_its_width(lm):
    plan = ll.Add(direction(0), 6.0, where="last")
    ids = torch.tensor([ROWS[0]])

    def run(**options):
        with torch.no_grad(), lm.steer(plan, **options):
            cache = lm.model(input_ids=ids[:, :4], use_cache=True).past_key_values
            return lm.model(input_ids=ids[:, 4:], past_key_values=cache).logits[:, -1]

    with pytest.raises(BadInput, match="prompt_width"):
        run(allow_idle=True)
    torch.testing.assert_close(run(prompt_width=7), lm.logits(ROWS[:1], steer=plan), atol=2e-5, rtol=1e-4)


def test_several_prompts_in_one_with(lm):
    plan = ll.Add(direction(0), 6.0, where="last")
    with torch.no_grad(), lm.steer(plan):
        each = torch.cat([lm.model(torch.tensor([row])).logits[:, -1] for row in ROWS])
    torch.testing.assert_close(each, lm.logits(ROWS, steer=plan), atol=2e-5, rtol=1e-4)


def test_our_verbs_inside_take_the_surrounding_plan_once_and_first(lm):
    outer, inner = ll.Add(direction(0), 5.0), ll.Clamp(direction(1), to=2.0)
    with lm.steer(outer):
        acts = lm.activations(ROWS, steer=inner)
        text = lm.generate(ROWS, NEW, steer=inner, stop_ids=())
    expected = lm.activations(ROWS, steer=[outer, inner])
    for site in acts:
        assert torch.equal(acts[site], expected[site])
    assert text.texts == lm.generate(ROWS, NEW, steer=[outer, inner], stop_ids=()).texts


def test_steered_verbs_never_meet_clean_cache_rows(tmp_path):
    lm = ll.load(build("Llama"), cache=ll.ActivationCache(tmp_path))
    clean = lm.activations(ROWS)
    with lm.steer(ll.Add(direction(0), 5.0)):
        steered = lm.activations(ROWS)
        assert steered.about["forwards"] > 0
    assert not torch.equal(clean["resid_post[1]"], steered["resid_post[1]"])
    again = lm.activations(ROWS)
    assert again.about["forwards"] == 0
    assert torch.equal(again["resid_post[1]"], clean["resid_post[1]"])


def test_nested_steers_apply_in_order(lm):
    a, b = ll.Add(direction(0), 5.0), ll.Clamp(direction(0), to=1.0)
    with torch.no_grad(), lm.steer(a), lm.steer(b):
        nested = lm.model(torch.tensor([ROWS[0]])).logits[:, -1]
    torch.testing.assert_close(nested, lm.logits(ROWS[:1], steer=[a, b]), atol=2e-5, rtol=1e-4)


def test_a_pipeline_is_steered():
    from transformers import pipeline

    model = copy.deepcopy(build("Llama"))
    model.generation_config.eos_token_id = None
    lm = ll.load(model, tokenizer=tokenizer(), cache=False)
    plan = ll.Add(direction(0), 8.0)
    pipe = pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer)
    prompt = lm.tokenizer.decode([5, 6, 7, 8])
    plain = pipe(prompt, max_new_tokens=NEW, do_sample=False, return_full_text=False)[0]["generated_text"]
    with lm.steer(plan):
        steered = pipe(prompt, max_new_tokens=NEW, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert steered != plain
    ids = tuple(lm.tokenizer(prompt).input_ids)
    ours = lm.generate([list(ids)], NEW, steer=plan, stop_ids=())[0]
    assert steered.strip() == ours.text.strip()


def test_a_decoder_whose_forward_another_tool_has_replaced_is_followed():
    model = copy.deepcopy(build("GPT-2"))  # calls its decoder with token ids by position
    lm = ll.load(model, cache=False)
    plan, expected = (
        ll.Add(direction(0), 4.0, where="last"),
        lm.logits(ROWS[:1], steer=ll.Add(direction(0), 4.0, where="last")),
    )
    original = model.transformer.forward
    model.transformer.forward = lambda *args, **kwargs: original(*args, **kwargs)
    with torch.no_grad(), lm.steer(plan):
        logits = model(torch.tensor([ROWS[0]])).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_gates_decide_per_row_in_other_peoples_forwards(lm):
    read = direction(4, "resid_post[0]")
    scores = lm.activations(ROWS, sites="resid_post[0]", where="prompt", pool="mean")["resid_post[0]"]
    threshold = float(read.project(scores).sort().values[1:].mean())  # between the two highest
    plan = ll.Gate(ll.Add(direction(0), 6.0), ll.Condition(read, threshold))
    ours = lm.generate(ROWS, NEW, steer=plan, stop_ids=())
    with lm.steer(plan):
        theirs = lm.model.generate(**padded(ROWS), max_new_tokens=NEW, do_sample=False)
    assert [tuple(row) for row in theirs[:, -NEW:].tolist()] == [run.generated for run in ours]
    clean = lm.generate(ROWS, NEW, stop_ids=())
    fired = read.project(scores) > threshold
    assert fired.sum() == 1
    for run, plain, on in zip(ours, clean, fired.tolist(), strict=True):
        assert on or run.generated == plain.generated


def test_nothing_stays_behind_and_exceptions_pass(lm):
    before = set(lm.model.state_dict())
    with pytest.raises(KeyboardInterrupt), lm.steer(ll.Add(direction(0), 2.0)):
        raise KeyboardInterrupt
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert set(lm.model.state_dict()) == before
    with pytest.raises(HookNeverFired), lm.steer(ll.Add(direction(0), 2.0)):
        pass
    with lm.steer(ll.Add(direction(0), 2.0), allow_idle=True):
        pass


def test_wrong_numbers_of_plans_and_packed_rows_are_refused(lm):
    with pytest.raises(BadInput, match="2 plans for a batch of 3"), lm.steer([[ll.Add(direction(0))], None]):
        lm.model(**padded(ROWS))
    with pytest.raises(BadInput, match="2 plans, this call 3 rows"), lm.steer([[ll.Add(direction(0))], None]):
        lm.activations(ROWS)


def test_threads_with_different_steers_do_not_see_each_other(lm):
    expected, wrong = {}, []
    plans = [ll.Add(direction(i), 4.0) for i in range(4)]
    for i, plan in enumerate(plans):
        expected[i] = lm.logits(ROWS[:1], steer=plan)

    def work(i):
        for _ in range(15):
            with torch.no_grad(), lm.steer(plans[i]):
                got = lm.model(torch.tensor([ROWS[0]])).logits[:, -1]
            if not torch.allclose(got, expected[i], atol=2e-5, rtol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
