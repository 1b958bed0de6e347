"""Texts stopped while they are written: the others stay the same, token for token, and the batch shrinks."""

import numpy as np
import pytest
import torch
from families import build

import latentlens as ll
from latentlens.access.batching import grouped_batches
from latentlens.errors import BadInput

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
NEW, SAMPLES = 14, 3


@pytest.fixture(scope="module", params=["Llama", "GPT-2", "Mamba"])
def lm(request):
    return ll.load(build(request.param), cache=False)


def direction(seed):
    return ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(seed)), "resid_post[1]")


def odd(run):
    return (run.prompt_index + run.sample) % 2 == 1


def write(lm, keep=None, **options):
    options = {"stop_ids": (), "seed": 3, "record": ll.Record("resid_post[1]", last_token=True), **options}
    return lm.generate(ROWS, NEW, SAMPLES, 1.0, keep=keep, **options)


@pytest.mark.parametrize("stops", [(), range(0, 120, 5)])
def test_survivors_are_unchanged_and_the_others_are_cut(lm, stops):
    plan = [[ll.Add(direction(0), 3.0)], None, [ll.Reflect(direction(1))]]
    plain = write(lm, stop_ids=stops, steer=plan, allow_idle=True)
    cut = write(
        lm, ll.Keep(lambda runs: [not odd(run) for run in runs], 4), stop_ids=stops, steer=plan, allow_idle=True
    )
    for one, two in zip(plain, cut, strict=True):
        if odd(one) and len(one.generated) > 4:
            assert two.generated == one.generated[:4]
            assert two.finish == "stopped"
        else:
            assert (two.generated, two.finish) == (one.generated, one.finish)
    before, after = plain.readings["after"], cut.readings["after"]
    for i, run in enumerate(cut):
        mine = after["resid_post[1]"][after.labels["text"] == i]
        whole = before["resid_post[1]"][before.labels["text"] == i]
        assert len(mine) == len(run.generated)
        torch.testing.assert_close(mine, whole[: len(mine)], atol=3e-5, rtol=1e-4)


def test_what_is_asked_shows_the_texts_so_far_with_the_states_of_all_their_tokens(lm):
    seen = []

    def ask(runs):
        read = runs.readings["after"]
        assert np.bincount(read.labels["text"]).tolist() == [len(run.generated) for run in runs]
        seen.append({(run.prompt_index, run.sample): run.generated for run in runs})
        assert {run.finish for run in runs} == {"open"}
        return [True] * len(runs)

    runs = write(lm, ll.Keep(ask, 5))
    assert [{len(text) for text in texts.values()} for texts in seen] == [{5}, {10}]
    assert {(run.prompt_index, run.sample): run.generated[:10] for run in runs} == seen[1]


def test_stopped_texts_are_shown_as_such_and_are_not_written_again(lm):
    finishes = []

    def ask(runs):
        finishes.append([run.finish for run in runs])
        return [run.sample != len(finishes) - 1 for run in runs]  # sample 0 first, then sample 1, then sample 2

    runs = write(lm, ll.Keep(ask, 4))
    assert finishes[1].count("stopped") == 3
    assert finishes[2].count("stopped") == 6
    assert sorted(len(run.generated) for run in runs) == [4] * 3 + [8] * 3 + [12] * 3
    assert {run.finish for run in runs} == {"stopped"}


def test_rows_that_are_stopped_leave_the_batch():
    lm = ll.load(build("Llama"), cache=False)
    sizes = []
    handle = lm.layout.blocks[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    write(lm, ll.Keep(lambda runs: [run.sample == 0 for run in runs], 4), record=None)
    handle.remove()
    assert sizes[:5] == [9] * 5
    assert sizes[5:] == [3] * (len(sizes) - 5)


def test_all_samples_of_a_prompt_are_asked_about_together_however_small_the_batches():
    lm = ll.load(build("Llama"), cache=False)
    lm.token_budget = 25
    asked = []
    runs = write(lm, ll.Keep(lambda runs: asked.append([r.prompt_index for r in runs]) or [True] * len(runs), 8))
    assert sorted(asked) == [[0] * 3, [1] * 3, [2] * 3]
    assert [run.generated for run in runs] == [run.generated for run in write(lm)]


def test_groups_go_into_batches_whole_within_the_budget():
    lengths, groups = [4, 4, 9, 4, 2, 2], ["a", "a", "b", "a", "c", "c"]
    found = grouped_batches(lengths, groups, 18)
    assert sorted(i for batch in found for group in batch for i in group) == list(range(6))
    for batch in found:
        rows = [i for group in batch for i in group]
        assert len(batch) == 1 or len(rows) * max(lengths[i] for i in rows) <= 18


def test_what_is_read_for_the_question_is_read_no_longer_than_it_is_asked():
    lm = ll.load(build("Llama"), cache=False)
    asked = []

    def ask(runs):
        asked.append(runs.readings["after"].labels["text"])
        return [True] * len(runs)

    runs = write(lm, ll.Keep(ask, 4, last=8, record="resid_post[1]"), record=None)
    assert [np.bincount(text).tolist() for text in asked] == [[4] * 9, [8] * 9]
    assert not runs.readings
    assert [run.generated for run in runs] == [run.generated for run in write(lm, record=None)]
    with pytest.raises(BadInput, match="read twice"):
        write(lm, ll.Keep(ask, 4, record="resid_post[1]"))


def test_a_sweep_asks_about_all_seeds_of_a_prompt_and_resumes(tmp_path):
    lm, asked = ll.load(build("Llama"), cache=False), []

    def ask(runs):
        asked.append(sorted((run.prompt_index, run.seed) for run in runs))
        return [run.seed == 1 for run in runs]

    how = {"max_new_tokens": NEW, "folder": tmp_path, "stop_ids": ()}
    plain = ll.sweep(lm, ROWS, {"none": None}, [0, 1, 2], **how)
    keep = ll.Keep(ask, 4, name="seed 1")
    found = ll.sweep(lm, ROWS, {"none": None}, [0, 1, 2], keep=keep, **how)
    assert found.attrs["rows_run"] == 9
    assert {pair for some in asked for pair in some} == {(i, seed) for i in range(3) for seed in range(3)}
    for (_, full), (_, short) in zip(plain.iterrows(), found.iterrows(), strict=True):
        goes_on = short["seed"] == 1
        assert short["generated"] == (full["generated"] if goes_on else full["generated"][:4])
        assert short["finish"] == ("length" if goes_on else "stopped")
    assert ll.sweep(lm, ROWS, {"none": None}, [0, 1, 2], keep=keep, **how).attrs["rows_run"] == 0
    assert ll.sweep(lm, ROWS, {"none": None}, [0, 1, 2], **how).attrs["rows_run"] == 0  # unstopped rows are kept apart
    assert ll.sweep(lm, ROWS, {"none": None}, [0, 1], keep=keep, **how).attrs["rows_run"] == 6  # other company
    assert ll.sweep(lm, ROWS[:1], {"none": None}, [0, 1, 2], keep=keep, **how).attrs["rows_run"] == 0
    with pytest.raises(BadInput, match="needs a name"):
        ll.sweep(lm, ROWS, {"none": None}, [0, 1], keep=ll.Keep(ask, 4), **how)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (lambda: ll.Keep(lambda runs: [True]), "1 answers|answers for 9"),
        (lambda: ll.Keep("no"), "takes a function"),
        (lambda: ll.Keep(len, 0), "at least 1"),
        (lambda: ll.Keep(len, True), "at least 1"),
        (lambda: ll.Keep(len, 4, last=0), "last=0"),
    ],
)
def test_what_cannot_be_kept_is_said(lm, keep, says):
    with pytest.raises(BadInput, match=says):
        lm.generate(ROWS, 20, 3, 1.0, stop_ids=(), keep=keep())
