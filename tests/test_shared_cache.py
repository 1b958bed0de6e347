"""The cache as a user meets it: through lm.activations."""

import copy
import os

import numpy as np
import pytest
import torch
from families import build
from tinytok import tokenizer

import latentlens as ll
from latentlens.access.identity import Identity, context_digest
from latentlens.errors import CacheError, CacheReadOnly, NonFiniteActivations

ROWS = [[5, 6, 7, 8, 9], [30, 31, 32], [20, 21, 22, 23]]


@pytest.fixture
def lm(llama, tmp_path):
    return ll.load(llama, tokenizer=tokenizer(), cache=tmp_path / "cache")


def same(a, b, tolerance=0.0):
    assert a.sites == b.sites
    for site in a:
        torch.testing.assert_close(a.values[site], b.values[site], rtol=tolerance, atol=tolerance)
    assert a.to_frame().equals(b.to_frame())


@pytest.mark.parametrize(("where", "pool"), [("all", None), ("last", None), ("mean", None), ("all", ("segments", 2))])
def test_a_second_call_runs_nothing_and_returns_the_same_bits(lm, where, pool):
    first = lm.activations(ROWS, ["resid_post[*]", "z[1]", "logits"], where, pool)
    again = lm.activations(ROWS, ["resid_post[*]", "z[1]", "logits"], where, pool)
    assert first.about["forwards"] > 0
    assert (again.about["forwards"], again.about["cached_rows"]) == (0, 3)
    same(first, again)
    same(first, lm.activations(ROWS, ["resid_post[*]", "z[1]", "logits"], where, pool, cached=False), 1e-5)


def test_another_process_and_another_copy_of_the_model_are_served(llama, lm, tmp_path):
    first = lm.activations(ROWS)
    other = ll.load(copy.deepcopy(llama), tokenizer=tokenizer(), cache=tmp_path / "cache").activations(ROWS)
    assert other.about["forwards"] == 0
    same(first, other)


def test_ten_new_prompts_after_a_hundred_compute_ten(lm):
    draw = np.random.default_rng(0)
    texts = [[*draw.integers(6, 26, size=draw.integers(3, 12)).tolist(), i % 100] for i in range(110)]
    assert lm.activations(texts[:100], where="last").about["computed_rows"] == 100
    more = lm.activations(texts, where="last")
    assert (more.about["computed_rows"], more.about["cached_rows"]) == (10, 100)
    same(more, lm.activations(texts, where="last", cached=False), 1e-5)


def test_repeated_texts_cost_one_row(lm):
    acts = lm.activations([ROWS[0]] * 4 + [ROWS[1]], where="last")
    assert acts.about["computed_rows"] == 2
    assert len(acts) == 5
    again = lm.activations([ROWS[1]] + [ROWS[0]] * 3, where="last")
    assert again.about["forwards"] == 0
    assert torch.equal(again["resid_post[0]"][1], acts["resid_post[0]"][0])


def test_a_superset_serves_a_subset(lm):
    lm.activations(ROWS, sites="resid_post[*]", where="all")
    for where, pool in (("last", None), ([0, 1], None), ("mean", None), ("all", ("segments", 2)), ("first-2", "mean")):
        part = lm.activations(ROWS, sites="resid_post[1]", where=where, pool=pool)
        assert part.about["forwards"] == 0, (where, pool)
        same(part, lm.activations(ROWS, sites="resid_post[1]", where=where, pool=pool, cached=False), 1e-5)


def test_only_the_sites_that_are_lacking_are_computed(lm):
    lm.activations(ROWS, sites=["resid_post[0]", "resid_post[1]"], where="last")
    before = lm.cache.stats().entries
    acts = lm.activations(ROWS, sites="resid_post[*]", where="last")
    assert acts.about["computed_rows"] == 3
    assert lm.cache.stats().entries == before + 3
    same(acts, lm.activations(ROWS, sites="resid_post[*]", where="last", cached=False), 1e-5)


def test_steered_never_meets_clean(lm):
    direction = ll.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), "resid_post[0]")
    seen = []
    for steer in (
        None,
        ll.Add(direction, 1.0),
        ll.Add(direction, 2.0),
        ll.Add(direction, 1.0, where="last"),
        [ll.Add(direction, 1.0)] * 2,
        ll.Add(direction.scaled_to(3.0), 1.0),
        ll.Add(ll.Direction(direction.vector, "resid_post[1]"), 1.0),
    ):
        acts = lm.activations(ROWS, sites="resid_post[2]", steer=steer)
        assert acts.about["forwards"] > 0, steer
        assert lm.activations(ROWS, sites="resid_post[2]", steer=steer).about["forwards"] == 0
        seen.append(acts["resid_post[2]"])
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert lm.activations(ROWS, sites="resid_post[2]", steer=[]).about["forwards"] == 0, "an empty plan is clean"


def test_what_an_edit_selects_in_a_rollout_is_part_of_the_key(lm):
    """The same tokens, given whole or partly generated: an edit of the response must not meet the other."""
    run = lm.generate([ROWS[0]], 3, stop_ids=())
    whole = [list(run[0].row.ids + run[0].generated)]
    edit = ll.Add(ll.Direction(torch.ones(32), "resid_post[0]"), 3.0, where="response")
    plain = lm.activations(whole, sites=1, steer=edit)
    steered = lm.activations(run, sites=1, steer=edit)
    assert not torch.allclose(plain["resid_post[1]"], steered["resid_post[1]"])


def test_rows_of_equal_tokens_and_different_roles_are_not_merged_under_an_edit_by_role(lm):
    chat = lm.tokens([[{"role": "user", "content": "cat sat"}]])[0]
    plain = lm.tokens([list(chat.ids)])[0]
    assert (plain.ids, plain.n_prompt) == (chat.ids, chat.n_prompt)
    edit = ll.Add(ll.Direction(torch.ones(32), "resid_post[0]"), 3.0, where="role:user")
    both = lm.activations([chat, plain], sites=0, steer=edit, cached=False)
    clean = lm.activations([chat, plain], sites=0, cached=False)
    moved = (both["resid_post[0]"] - clean["resid_post[0]"]).abs().sum(-1) > 1e-3
    assert moved.tolist() == [role == "user" for role in (*chat.role, *plain.role)]


def changed(model, field):
    model = copy.deepcopy(model)
    if field == "a weight":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    elif field == "dtype":
        model = model.to(torch.bfloat16)
    elif field == "attention":
        model.set_attn_implementation("eager")
    elif field == "config":
        model.config.rms_norm_eps = 1e-3
    elif field == "a buffer":
        model.model.rotary_emb.inv_freq *= 1.5
    elif field == "an adapter":
        model.model.layers[0]._disable_adapters, model.model.layers[0].active_adapters = False, ["default"]
    elif field == "an adapter switched off":
        model.model.layers[0]._disable_adapters, model.model.layers[0].active_adapters = True, ["default"]
    elif field == "mode":
        model.train()
    return model


CHANGES = ("a weight", "dtype", "attention", "config", "a buffer", "mode", "an adapter", "an adapter switched off")


def test_whatever_changes_the_model_changes_the_key(llama):
    models = [llama, copy.deepcopy(llama)] + [changed(llama, field) for field in CHANGES]
    keys = [context_digest(Identity(m, None, None).context()) for m in models]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 1 + len(CHANGES)


def test_quantisation_and_versions_change_the_key(llama, monkeypatch):
    def key(quantization=None):
        return context_digest(Identity(llama, None, quantization).context())

    keys = {key(), key("int8"), key("nf4")}
    monkeypatch.setattr("latentlens.access.identity._major_minor", lambda package: "99.0")
    keys.add(key())
    monkeypatch.undo()
    monkeypatch.setattr("latentlens.access.identity.SCHEMA", 99)
    keys.add(key())
    assert len(keys) == 5


def test_tokens_positions_pool_and_site_change_the_key_and_batch_size_and_threads_do_not(lm):
    base = {"inputs": ROWS, "sites": "resid_post[1]", "where": "last"}
    lm.activations(**base)
    for change in (
        {"inputs": [[5, 6, 7, 8, 10]]},
        {"sites": "resid_post[0]"},
        {"sites": "mlp_out[1]"},
        {"where": 0},
        {"where": "mean"},
    ):
        assert lm.activations(**(base | change)).about["forwards"] > 0, change
    lm.token_budget = 8
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert lm.activations(**base).about["forwards"] == 0
    finally:
        torch.set_num_threads(threads)


def test_weights_are_hashed_only_when_a_cache_needs_it(llama, lm, monkeypatch):
    hashed = []
    monkeypatch.setattr("latentlens.access.identity.weights_digest", lambda model: hashed.append(1) or "digest")
    bare = ll.load(llama, cache=False)
    assert bare.activations(ROWS).about["context"]["weights"] == "not hashed"
    assert bare.generate(ROWS, 2).about["weights"] == "not hashed"
    assert lm.activations(ROWS, cached=False).about["context"]["weights"] == "not hashed"
    assert hashed == []
    for _ in range(3):
        assert lm.activations(ROWS).about["context"]["weights"] == "digest"
    assert lm.generate(ROWS, 2).about["weights"] == "digest"
    assert hashed == [1]


def test_the_key_follows_weights_that_are_changed_in_place_or_through_data(llama, lm):
    first = lm.activations(ROWS, sites=1)
    for touch in (
        lambda w: w.mul_(1.01),
        lambda w: w.data.add_(0.01),  # leaves torch's version counter alone
    ):
        with torch.no_grad():
            touch(llama.model.layers[0].mlp.down_proj.weight)
        now = lm.activations(ROWS, sites=1)
        assert now.about["forwards"] > 0
        assert not torch.equal(now["resid_post[1]"], first["resid_post[1]"])


def test_the_path_of_a_model_is_in_no_key_and_no_file(llama, tmp_path):
    contexts = []
    for name in ("one", "two"):
        llama.save_pretrained(tmp_path / name)
        lm = ll.load(tmp_path / name, tokenizer=tokenizer(), cache=tmp_path / "cache")
        contexts.append(lm.activations(ROWS, where="last").about)
    assert contexts[0]["context_digest"] == contexts[1]["context_digest"]
    assert contexts[1]["forwards"] == 0
    for file in (tmp_path / "cache").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_a_changed_folder_is_another_model(llama, tmp_path):
    llama.save_pretrained(tmp_path / "saved")
    lm = ll.load(tmp_path / "saved", tokenizer=tokenizer(), cache=tmp_path / "cache")
    lm.activations(ROWS, where="last")
    other = changed(llama, "a weight")
    other.save_pretrained(tmp_path / "saved")
    acts = ll.load(tmp_path / "saved", tokenizer=tokenizer(), cache=tmp_path / "cache").activations(ROWS, where="last")
    assert acts.about["forwards"] > 0


def test_weights_overwritten_on_disk_after_loading_do_not_name_the_loaded_model(llama, tmp_path):
    """The digest of the files is asked late; by then a trainer may have saved over them."""
    llama.save_pretrained(tmp_path / "saved")
    lm = ll.load(tmp_path / "saved", tokenizer=tokenizer(), cache=tmp_path / "cache")
    changed(llama, "a weight").save_pretrained(tmp_path / "saved")
    lm.activations(ROWS, where="last")
    fresh = ll.load(tmp_path / "saved", tokenizer=tokenizer(), cache=tmp_path / "cache")
    assert fresh.activations(ROWS, where="last").about["forwards"] > 0


def test_damaged_rows_are_computed_again(lm):
    first = lm.activations(ROWS, sites=1)
    [shard] = (lm.cache.folder / "shards").rglob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 4
    shard.write_bytes(raw)
    lm.cache.close()
    with pytest.warns(UserWarning, match="damaged|digest|match"):
        again = lm.activations(ROWS, sites=1)
    assert again.about["computed_rows"] > 0
    same(first, again, 1e-6)
    assert lm.activations(ROWS, sites=1).about["forwards"] == 0


def test_nothing_of_a_broken_batch_is_stored(llama, tmp_path):
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    lm = ll.load(llama, cache=tmp_path / "cache")
    with pytest.raises(NonFiniteActivations):
        lm.activations(ROWS)
    assert lm.cache.stats().entries == 0


def test_what_was_computed_before_an_interrupt_is_kept(lm, llama, monkeypatch):
    monkeypatch.setattr("latentlens.access.capture._COMMIT_BYTES", 1)
    lm.token_budget, calls = 5, []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    bomb = llama.model.layers[0].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        lm.activations(ROWS, where="last")
    bomb.remove()
    assert lm.activations(ROWS, where="last").about["cached_rows"] == 2


def test_a_cache_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(CacheError):
        ll.load("no/such-model", cache=blocked / "cache")


def test_a_read_only_cache_is_read_and_never_written(llama, lm, tmp_path):
    lm.activations(ROWS, where="last")
    files = sorted((tmp_path / "cache").rglob("*"))
    readonly = ll.ActivationCache(tmp_path / "cache", readonly=True)
    reader = ll.load(llama, cache=readonly)
    assert reader.activations(ROWS, where="last").about["forwards"] == 0
    assert reader.activations(ROWS, where="all").about["forwards"] > 0
    assert sorted((tmp_path / "cache").rglob("*")) == files
    with pytest.raises(CacheReadOnly):
        readonly.ensure_writable()


def test_no_secret_and_no_home_path_is_stored(lm, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_8f3a")
    acts = lm.activations(["cat sat"], where="last")
    lm.cache.stats()
    shown = repr(acts.about) + repr(lm) + str(capsys.readouterr())
    stored = b"".join(f.read_bytes() for f in lm.cache.folder.rglob("*") if f.is_file())
    assert "hf_canary_8f3a" not in shown
    assert b"hf_canary_8f3a" not in stored
    assert os.path.expanduser("~").encode() + b"/" not in stored


def test_families_do_not_share_entries(tmp_path):
    for family in ("Llama", "GPT-2", "Mistral", "Qwen2"):
        lm = ll.load(build(family), cache=tmp_path / "cache")
        assert lm.activations(ROWS, where="last").about["forwards"] > 0
    assert len(lm.cache.stats().models) == 4
