import math

import pytest
import torch
from families import FAMILIES, build
from scipy import stats
from tinytok import tokenizer

import latentlens as ll
from latentlens.access.generation.sampling import choose, gumbel, row_key
from latentlens.errors import BadInput, ContextTooLong
from latentlens.values.rows import TokenRow
from latentlens.values.where import steered_positions

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW = 6


def slow_reference(lm, ids, seed, sample, temperature, plan):
    """One row, no padding, no cache, no batching: the whole row is recomputed for every token.

    Edits are made by plain torch hooks written here, so neither our hooks nor our masks are trusted.
    """
    row = TokenRow.plain(tuple(ids))
    new: tuple[int, ...] = ()
    for step in range(NEW):
        full = row.continued(new)
        handles = []
        for item in plan:

            def edit(_m, _i, out, item=item, full=full):
                states = out if torch.is_tensor(out) else out[0]
                at = list(steered_positions(item.where, full))
                states = states.clone()
                states[0, at] += item.coeff * item.direction.vector
                return states if torch.is_tensor(out) else (states, *out[1:])

            handles.append(lm.layout.blocks[item.site.block].register_forward_hook(edit))
        with torch.no_grad():
            logits = lm.model(torch.tensor([full.ids]), use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        key = torch.tensor([row_key(ids, seed, sample)])
        new += (int(choose(logits, temperature, key, torch.tensor([step]))),)
    return new


def plans():
    first, second = (
        ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(i)), f"resid_post[{i}]") for i in (0, 1)
    )
    return {
        "none": [],
        "all": [ll.Add(first, 4.0)],
        "prompt": [ll.Add(first, 4.0, where="prompt")],
        "response": [ll.Add(first, 4.0, where="response")],
        "last": [ll.Add(first, 6.0, where="last")],
        "first-2 and a slice": [ll.Add(first, 4.0, where="first-2"), ll.Add(second, 5.0, where=slice(1, None, 2))],
        "indices beyond the prompt": [ll.Add(first, 8.0, where=[0, 8])],
    }


@pytest.mark.parametrize("plan", plans())
@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Falcon", "Gemma2"])
def test_batched_cached_steered_text_equals_the_slow_reference_token_for_token(family, plan):
    lm, steer = ll.load(build(family), cache=False), plans()[plan]
    for temperature in (0.0, 1.0):
        runs = lm.generate(ROWS, NEW, samples=2, temperature=temperature, seed=3, steer=steer, stop_ids=())
        for run in runs:
            expected = slow_reference(lm, run.row.ids, 3, run.sample, temperature, steer)
            assert run.generated == expected, (plan, temperature, run.prompt_index, run.sample)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_alike_alone_and_in_a_batch(family):
    lm = ll.load(build(family), cache=False)
    steer = ll.Add(ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post[1]"), 2.0)
    together = lm.generate(ROWS, NEW, temperature=1.0, seed=1, steer=steer, stop_ids=())
    for run, ids in zip(together, ROWS, strict=True):
        assert run.generated == slow_reference(lm, tuple(ids), 1, 0, 1.0, [steer])


def test_greedy_equals_the_generate_of_transformers(llama):
    lm = ll.load(llama, cache=False)
    for ids in ROWS:
        theirs = llama.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert list(lm.generate([ids], NEW, stop_ids=())[0].generated) == theirs[0, len(ids) :].tolist()


def test_a_row_does_not_depend_on_what_else_is_in_the_batch_or_on_its_size(llama):
    lm = ll.load(llama, cache=False)
    few = lm.generate([ROWS[1]], NEW, samples=3, temperature=1.0, seed=5, stop_ids=())
    lm.token_budget = 40
    many = lm.generate([ROWS[0], ROWS[1], ROWS[1], ROWS[2]], NEW, samples=5, temperature=1.0, seed=5, stop_ids=())
    mine = [run.generated for run in many if run.prompt_index == 1][:3]
    assert mine == [run.generated for run in few]
    assert len({run.generated for run in many if run.prompt_index == 1}) > 1, "samples differ among themselves"
    other = lm.generate([ROWS[1]], NEW, samples=3, temperature=1.0, seed=6, stop_ids=())
    assert mine != [run.generated for run in other]


def test_sampling_draws_from_the_softmax():
    """Chi-square of 20,000 draws against the exact probabilities."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    temperature, n = 0.7, 20_000
    keys = torch.tensor([row_key((1, 2), 0, i) for i in range(n)])
    drawn = choose(logits.expand(n, -1), temperature, keys, torch.zeros(n, dtype=torch.int64))
    seen = torch.bincount(drawn, minlength=5).numpy()
    expected = torch.softmax(logits.double() / temperature, 0).numpy() * n
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_noise_is_gumbel_and_independent_between_tokens_steps_and_rows():
    keys = torch.tensor([row_key((1,), 0, i) for i in range(200)])
    noise = gumbel(keys, torch.zeros(200, dtype=torch.int64), 500)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    later = gumbel(keys, torch.ones(200, dtype=torch.int64), 500)
    for a, b in ((noise, later), (noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(r) < 4 / math.sqrt(a.numel())


def test_text_stops_at_the_end_token_and_says_so(llama):
    lm = ll.load(llama, tokenizer=tokenizer(), cache=False)
    greedy = lm.generate([ROWS[0]], NEW, stop_ids=())[0].generated
    stop = greedy[2]
    run = lm.generate([ROWS[0]], NEW, stop_ids=[stop])[0]
    assert (run.generated, run.finish) == (greedy[: greedy.index(stop) + 1], "eos")
    assert lm.generate([ROWS[0]], 2, stop_ids=[119])[0].finish == "length"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_finish_leave_the_batch_and_do_not_disturb_the_others(family):
    """Stop tokens are chosen so that rows end at every step; the rest must go on as if nothing had happened."""
    lm = ll.load(build(family), cache=False)
    steer = ll.Add(ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post[1]"), 2.0)
    steer = [steer, ll.Add(steer.direction, 1.0, where=slice(2, None, 2))]
    free = lm.generate(ROWS, NEW, samples=3, temperature=1.0, steer=steer, stop_ids=())
    stops = [run.generated[k] for k, run in enumerate(free[:4])]
    cut = lm.generate(ROWS, NEW, samples=3, temperature=1.0, steer=steer, stop_ids=stops)
    assert len({len(run.generated) for run in cut}) > 2
    for a, b in zip(free, cut, strict=True):
        ends = [a.generated.index(stop) + 1 for stop in stops if stop in a.generated]
        assert b.generated == a.generated[: min(ends, default=NEW)]


def test_finished_rows_are_not_computed_any_more(llama):
    lm, sizes = ll.load(llama, cache=False), []
    stop = lm.generate([ROWS[0]], 1, stop_ids=())[0].generated[0]
    handle = llama.model.layers[0].register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[0]))
    lm.generate([ROWS[0], ROWS[0], ROWS[0], ROWS[1]], NEW, stop_ids=[stop])
    handle.remove()
    assert sizes == [4, 1, 1, 1, 1, 1]


def test_rollouts_are_values_with_a_frame_and_a_safe_html(llama):
    lm = ll.load(llama, tokenizer=tokenizer(), cache=False)
    add = ll.Add(ll.Direction(torch.ones(32), "resid_post[0]", name="<script>"), 1.0)
    runs = lm.generate(["cat sat", "dog"], 3, samples=2, steer=add)
    frame = runs.to_frame()
    assert frame[["prompt_index", "sample"]].values.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert "resid_post[0]" in frame.steer[0]
    assert len(runs[1:3]) == 2
    assert runs.texts == [run.text for run in runs]
    assert "<script>" not in runs._repr_html_()
    assert "4 of 2 prompts" in repr(runs)


def test_a_chat_that_ends_with_the_assistant_is_continued(llama):
    lm = ll.load(llama, tokenizer=tokenizer(), cache=False)
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog sat"}]
    assert lm.generate([chat], 2)[0].row.ids == lm.tokens([chat])[0].ids[:-1]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"max_new_tokens": 0}, BadInput, "at least 1"),
        ({"samples": 0}, BadInput, "at least 1"),
        ({"temperature": -1}, BadInput, "greedy"),
        ({"temperature": float("nan")}, BadInput, "greedy"),
        ({"max_new_tokens": 60}, ContextTooLong, "room for 60"),
    ],
)
def test_bad_arguments_are_named(llama, call, error, says):
    with pytest.raises(error, match=says):
        ll.load(llama, cache=False).generate(ROWS, **call)


def test_hooks_are_gone_after_an_interrupt_in_the_middle_of_a_text(llama):
    lm, calls = ll.load(llama, cache=False), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    bomb = llama.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(ROWS, NEW, steer=plans()["all"])
    bomb.remove()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.modules()) == 0
