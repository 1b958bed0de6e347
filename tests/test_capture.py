import threading

import numpy as np
import pytest
import torch
from families import FAMILIES, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinytok import tokenizer

import latentlens as ll
from latentlens.access import forward
from latentlens.errors import (
    BadInput,
    HookNeverFired,
    NonFiniteActivations,
    OutOfMemory,
    SiteNotFound,
    TooLarge,
    WhereNotValid,
)

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24], [33]]


def reference(model, ids):
    """Block outputs and logits of one unpadded row, recorded by plain torch hooks."""
    lm = ll.load(model, cache=False)
    got = []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: got.append((out if torch.is_tensor(out) else out[0])[0]))
        for block in lm.layout.blocks
    ]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return got, logits


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_reads_what_each_row_alone_has(family):
    model = build(family)
    lm = ll.load(model, cache=False)
    acts = lm.activations(ROWS, sites="resid_post[*]")
    for i, ids in enumerate(ROWS):
        blocks, logits = reference(model, ids)
        one = acts.rows(acts.labels["text"] == i)
        for site, expected in zip(one.sites, blocks, strict=True):
            torch.testing.assert_close(one.values[site], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        torch.testing.assert_close(lm.logits([ids], where="all"), logits.float(), rtol=1e-4, atol=1e-3)


def test_stopping_early_pooling_and_skipping_the_head_change_nothing(llama):
    lm = ll.load(llama, cache=False)
    everything = lm.activations(ROWS, sites=["resid_post[*]", "mlp_out[0]", "final_norm", "logits"])
    for site in ("resid_post[0]", "mlp_out[0]", "resid_post[1]"):
        torch.testing.assert_close(lm.activations(ROWS, sites=site)[site], everything[site], rtol=1e-5, atol=1e-5)
    ends = np.flatnonzero(np.diff(np.append(everything.labels["text"], 99)))
    last = lm.activations(ROWS, sites="resid_post[1]", where="last")["resid_post[1]"]
    torch.testing.assert_close(last, everything["resid_post[1]"][torch.as_tensor(ends)], rtol=1e-5, atol=1e-5)
    mean = lm.activations(ROWS, sites="resid_post[1]", where="mean")["resid_post[1]"]
    for i in range(len(ROWS)):
        mine = everything.rows(everything.labels["text"] == i)["resid_post[1]"]
        torch.testing.assert_close(mean[i], mine.float().mean(0), rtol=1e-5, atol=1e-5)


def test_only_the_blocks_that_are_needed_run(llama):
    """The block after the deepest one asked for, and the unembedding, are never called."""
    ran = []
    watched = [*llama.model.layers, llama.model.norm, llama.lm_head]
    handles = [m.register_forward_pre_hook(lambda mod, _args: ran.append(watched.index(mod))) for m in watched]
    lm = ll.load(llama, cache=False)
    lm.activations(ROWS, sites="resid_post[1]")
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_segments_and_spans_are_pooled_one_by_one(llama):
    lm = ll.load(llama, cache=False)
    raw = lm.activations([ROWS[0]], sites="resid_post[0]")["resid_post[0]"]
    cut = lm.activations([ROWS[0]], sites="resid_post[0]", pool=("segments", 3))
    assert list(zip(cut.labels["position"], cut.labels["stop"], strict=True)) == [(0, 3), (3, 6), (6, 7)]
    torch.testing.assert_close(cut["resid_post[0]"][1], raw[3:6].mean(0), rtol=1e-5, atol=1e-6)
    spans = lm.activations([ROWS[0]], sites="resid_post[0]", where=[0, 1, 4], pool="span")
    assert list(zip(spans.labels["position"], spans.labels["stop"], strict=True)) == [(0, 2), (4, 5)]
    torch.testing.assert_close(spans["resid_post[0]"][1], raw[4], rtol=1e-5, atol=1e-6)


def test_rows_are_labelled(llama):
    lm = ll.load(llama, tokenizer=tokenizer(), cache=False)
    frame = lm.activations([[{"role": "user", "content": "cat sat"}], "dog"], sites=0).to_frame()
    assert list(frame.columns) == [
        "text",
        "position",
        "stop",
        "token_id",
        "token",
        "role",
        "turn",
        "generated",
        "special",
    ]
    assert frame.token.tolist() == ["<s>", "<u>", "cat", "sat", "</s>", "<a>", "<s>", "dog"]
    assert frame.role.tolist() == ["", "", "user", "user", "", "", "", ""]
    assert frame.position.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert frame.special.tolist() == [True, True, False, False, True, True, True, False]
    assert not frame.generated.any()


def test_rollouts_are_read_with_their_generated_tokens_marked(llama):
    lm = ll.load(llama, cache=False)
    runs = lm.generate(ROWS, max_new_tokens=4, stop_ids=())
    acts = lm.activations(runs, sites=1, where="response")
    assert len(acts) == 4 * len(ROWS)
    assert acts.labels["generated"].all()
    assert acts.labels["token_id"].tolist() == [i for run in runs for i in run.generated]


def test_heads_come_apart(llama):
    z = ll.load(llama, cache=False).activations(ROWS, sites="z[0]")["z[0]"]
    assert z.shape[1:] == (4, 8)


def test_acts_are_found_by_every_spelling_and_exported(llama):
    lm = ll.load(llama, cache=False)
    acts = lm.activations(ROWS, sites=["resid_post[*]", "mlp_out[0]"], where="last")
    assert torch.equal(acts["resid_post[-1]"], acts["blocks.2.hook_resid_post"])
    assert acts.stack("resid_post[*]").shape == (3, 4, 32)
    with pytest.raises(SiteNotFound, match="Held: "):
        acts["attn_out[0]"]
    with pytest.raises(SiteNotFound, match=r"use acts\.stack"):
        acts["resid_post[*]"]
    data = acts.to_dataset()
    assert data.num_rows == 4
    assert len(data[0]["resid_post[0]"]) == 32
    assert acts.to_frame("resid_post[0]")["resid_post[0]"][0].shape == (32,)
    assert "<table" in acts._repr_html_()
    assert "4 rows of 4 texts" in repr(acts)


def test_output_hidden_states_before_or_after_changes_nothing_of_ours(llama):
    """transformers installs recording hooks at the first such call and they stay."""
    lm = ll.load(llama, cache=False)
    edit = ll.Add(ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post[0]"), 3.0)
    before = lm.activations(ROWS, steer=edit)
    with torch.no_grad():
        llama(torch.tensor([ROWS[0]]), output_hidden_states=True)
    after = lm.activations(ROWS, steer=edit)
    assert all(torch.equal(before.values[s], after.values[s]) for s in before)


def test_an_empty_plan_is_bit_identical_and_an_edit_reaches_what_follows(llama):
    lm = ll.load(llama, cache=False)
    clean = lm.activations(ROWS)
    empty = lm.activations(ROWS, steer=[])
    assert all(torch.equal(clean.values[s], empty.values[s]) for s in clean)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    steered = lm.activations(ROWS, steer=ll.Add(ll.Direction(vector, "resid_post[1]"), 2.0))
    torch.testing.assert_close(steered["resid_post[1]"], clean["resid_post[1]"] + 2 * vector, rtol=1e-5, atol=1e-5)
    assert torch.equal(steered["resid_post[0]"], clean["resid_post[0]"])
    assert not torch.allclose(steered["resid_post[2]"], clean["resid_post[2]"])


def test_an_edit_acts_at_its_positions_only(llama):
    lm = ll.load(llama, cache=False)
    direction = ll.Direction(torch.ones(32), "resid_post[0]")
    clean = lm.activations([ROWS[0]], sites=0)["resid_post[0]"]
    steered = lm.activations([ROWS[0]], sites=0, steer=ll.Add(direction, 1.0, where=[1, -1]))["resid_post[0]"]
    moved = (steered - clean).abs().sum(-1) > 1e-3
    assert moved.nonzero().flatten().tolist() == [1, 6]


def test_edits_at_one_site_add_up_in_their_order(llama):
    lm = ll.load(llama, cache=False)
    a, b = (ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(i)), "resid_post[0]") for i in (1, 2))
    both = lm.activations(ROWS, sites=0, steer=[ll.Add(a, 2.0), ll.Add(b, -1.0)])["resid_post[0]"]
    clean = lm.activations(ROWS, sites=0)["resid_post[0]"]
    torch.testing.assert_close(both, clean + 2 * a.vector - b.vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_in_a_forward_no_hook_is_left_and_the_next_result_is_equal(llama, error):
    lm = ll.load(llama, cache=False)
    handle = llama.model.layers[0].register_forward_hook(lambda *_: None)  # somebody else's
    before, hooks = lm.activations(ROWS), count_hooks(llama)

    def fail(*_):
        raise error("stop")

    bomb = llama.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(error):
        lm.activations(ROWS, steer=ll.Add(ll.Direction(torch.ones(32), "resid_post[0]")))
    bomb.remove()
    assert count_hooks(llama) == hooks
    handle.remove()
    after = lm.activations(ROWS)
    assert all(torch.equal(before.values[s], after.values[s]) for s in before)


def test_eight_threads_with_different_edits_on_one_model_never_mix(llama):
    lm = ll.load(llama, cache=False)
    vectors = [torch.randn(32, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    clean = lm.activations([ROWS[0]], sites="resid_post[1]")["resid_post[1]"]
    wrong, done = [], []

    def work(i):
        edit = ll.Add(ll.Direction(vectors[i], "resid_post[1]"), float(i))
        for _ in range(125):
            got = lm.activations([ROWS[0]], sites="resid_post[1]", steer=edit)["resid_post[1]"]
            if not torch.allclose(got, clean + i * vectors[i], atol=1e-4):
                wrong.append(i)
            done.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(done), wrong) == (1000, [])
    assert count_hooks(llama) == 0


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_halves_the_batch_and_changes_nothing(llama, monkeypatch, error):
    lm = ll.load(llama, cache=False)
    expected = lm.activations(ROWS)
    real, sizes = forward.read, []

    def limited(layout, rows, *args, **kwargs):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise error
        return real(layout, rows, *args, **kwargs)

    monkeypatch.setattr("latentlens.access.capture.read", limited)
    got = lm.activations(ROWS)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    for site in expected:
        torch.testing.assert_close(got.values[site], expected.values[site], rtol=1e-5, atol=1e-5)


def test_one_row_that_does_not_fit_gives_up_with_advice(llama, monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("latentlens.access.capture.read", full)
    with pytest.raises(OutOfMemory, match="quantization='int8'"):
        ll.load(llama, cache=False).activations(ROWS)


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(llama, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("latentlens.access.capture.read", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ll.load(llama, cache=False).activations(ROWS)


def test_a_capture_above_the_ceiling_is_refused_before_anything_runs(llama):
    lm = ll.load(llama, cache=False)
    with pytest.raises(TooLarge, match="max_gib=1e-06"):
        lm.activations(ROWS, max_gib=1e-6)


def test_the_forecast_of_bytes_is_exact(llama):
    lm = ll.load(llama, cache=False)
    sites = ["resid_post[*]", "z[0]", "mlp_post[1]", "final_norm", "logits"]
    for where, pool in (("all", None), ("last", None), ("all", ("segments", 2))):
        told = lm.forecast(ROWS, sites, where, pool)
        acts = lm.activations(ROWS, sites, where, pool)
        assert told.bytes == sum(v.numel() * v.element_size() for v in acts.values.values())
        assert told.rows == len(acts)
        assert told.seconds > 0


def test_not_a_number_is_refused_with_its_site(llama):
    import copy

    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteActivations, match=r"resid_post\[1\]"):
        ll.load(broken, cache=False).activations(ROWS)


def test_rows_with_nan_are_skipped_or_flagged_and_counted_and_never_stored(llama, tmp_path):
    """One token id leads to NaN; it and what comes after it in its text are lost, other texts are not.

    (What comes before it may be lost too: a masked weight of 0 times NaN is NaN in some attention kernels.)
    """
    with torch.no_grad():
        llama.model.embed_tokens.weight[31] = float("nan")
    lm = ll.load(llama, cache=tmp_path / "cache")
    flagged = lm.activations(ROWS, sites=["resid_post[0]", "resid_post[1]"], nonfinite="flag")
    finite = flagged.labels["finite"]
    assert not finite[8:10].any()
    assert finite[flagged.labels["text"] != 1].all()
    assert flagged.about["nonfinite"]["resid_post[0]"] == 32 * int((~finite).sum())
    skipped = lm.activations(ROWS, sites=["resid_post[0]", "resid_post[1]"], nonfinite="skip")
    assert len(skipped) == finite.sum()
    assert all(torch.isfinite(v).all() for v in skipped.values.values())
    assert lm.cache.stats().entries == 0
    with pytest.raises(NonFiniteActivations, match="nonfinite='skip'"):
        lm.activations(ROWS)
    with pytest.raises(BadInput, match="'flag'"):
        lm.activations(ROWS, nonfinite="drop")


def test_an_overflow_of_float16_suggests_bfloat16(llama):
    import copy

    half = copy.deepcopy(llama).half()
    big = ll.Add(ll.Direction(torch.full((32,), 6e4), "resid_post[0]"), 2.0)
    with pytest.raises(NonFiniteActivations, match="bfloat16"):
        ll.load(half, cache=False).activations(ROWS, sites=0, steer=big)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"sites": "resid_post[7]"}, SiteNotFound, "3 blocks: 0-2"),
        ({"sites": "resid_pots[0]"}, SiteNotFound, r"resid_post\[0\]"),
        ({"sites": []}, SiteNotFound, "no site"),
        ({"where": "response"}, WhereNotValid, "nothing was generated"),
        ({"where": "mean", "pool": "last"}, BadInput, "already pools"),
        ({"pool": "max"}, BadInput, "segments"),
        ({"pool": ("segments", 0)}, BadInput, "segments"),
        ({"steer": "add"}, BadInput, "ll.Add"),
        ({"truncate": "middle"}, BadInput, "left"),
    ],
)
def test_bad_arguments_are_named(llama, call, error, says):
    with pytest.raises(error, match=says):
        ll.load(llama, cache=False).activations(ROWS, **call)


def test_an_edit_that_could_not_reach_the_stream_is_refused(llama):
    lm = ll.load(llama, cache=False)
    with pytest.raises(BadInput, match="attn_out"):
        lm.activations(ROWS, steer=ll.Add(ll.Direction(torch.ones(32), "resid_mid[0]")))
    with pytest.raises(BadInput, match="16 entries"):
        lm.activations(ROWS, steer=ll.Add(ll.Direction(torch.ones(16), "resid_post[0]")))


def test_a_hook_that_never_fired_is_an_error(llama, monkeypatch):
    lm = ll.load(llama, cache=False)
    other = ll.load(build("GPT-2"), cache=False)
    monkeypatch.setattr(lm.layout, "tap", other.layout.tap)
    with pytest.raises(HookNeverFired, match=r"transformer\.h\.1"):
        lm.activations(ROWS, sites="resid_post[1]")


def test_compiled_modules_are_refused(llama):
    import copy

    from latentlens.errors import CompiledModel

    model = copy.deepcopy(llama)
    lm = ll.load(model, cache=False)
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(CompiledModel, match="before compiling"):
        lm.activations(ROWS, sites="resid_post[1]")
    with pytest.raises(CompiledModel):
        ll.load(torch.compile(copy.deepcopy(llama), backend="eager"), cache=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(3, 119), min_size=1, max_size=12), min_size=1, max_size=6),
    where=st.sampled_from(["all", "last", 0, -1, "last-2", "first-3"]),
    budget=st.integers(1, 40),
)
def test_any_batch_equals_its_rows_one_by_one(llama, rows, where, budget):
    lm = ll.load(llama, cache=False)
    lm.token_budget = budget
    together = lm.activations(rows, sites=["resid_post[0]", "mlp_post[1]"], where=where)
    alone = [lm.activations([row], sites=["resid_post[0]", "mlp_post[1]"], where=where) for row in rows]
    for site in together:
        torch.testing.assert_close(
            together.values[site], torch.cat([a.values[site] for a in alone]), rtol=1e-4, atol=1e-5
        )
