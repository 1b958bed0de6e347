"""The activation cache: what is put comes back bit for bit, a superset serves a subset, and nothing else."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlens.access.store import cache as cache_module
from latentlens.access.store import shards as shards_module
from latentlens.access.store.cache import ActivationCache, RowKey, Selection
from latentlens.access.store.shards import DTYPES
from latentlens.errors import BadInput, CacheError, CacheReadOnly, UnsafeFile

MODEL = {"model": "Tiny", "weights": "w1"}


def key(sequence="s", site="resid_post[5]", context="ctx"):
    return RowKey(context, sequence, site)


def values(n, width=8, seed=0, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fetch(cache, k, selection):
    [hit] = cache.lookup([(k, selection)])
    return None if hit is None else cache.read([hit])[0]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def same_mean(a, b):
    """Equal numbers, and NaN in the same places: the bits inside a computed NaN mean nothing."""
    return a.dtype == b.dtype == torch.float32 and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def cache(tmp_path):
    return ActivationCache(tmp_path / "cache")


# -- what comes back ------------------------------------------------------------------------------

N_TOKENS = (1, 4, 9)


@st.composite
def selections(draw, sequence, pools=("", "mean")):
    n = N_TOKENS[sequence]
    positions = draw(st.sets(st.integers(0, n - 1), min_size=1))
    positions = tuple(range(n)) if draw(st.booleans()) else tuple(sorted(positions))
    return Selection(draw(st.sampled_from(pools)), positions, n)


@st.composite
def histories(draw):
    one = st.integers(0, len(N_TOKENS) - 1).flatmap(
        lambda s: st.tuples(st.just(s), selections(s), st.sampled_from(["a[0]", "b[1]"]))
    )
    puts = draw(st.lists(st.lists(one, min_size=1, max_size=4), min_size=1, max_size=3))
    return puts, draw(st.lists(one, min_size=1, max_size=8))


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(sorted(DTYPES)), width=st.integers(1, 5), history=histories(), seed=st.integers(0, 99))
def test_a_cache_answers_like_a_dictionary_that_knows_supersets(tmp_path_factory, dtype, width, history, seed):
    puts, requests = history
    generator = torch.Generator().manual_seed(seed)
    truth = {}  # (sequence, site) -> every bit of every position, NaN payloads included
    for s, n in enumerate(N_TOKENS):
        for site in ("a[0]", "b[1]"):
            raw = torch.randint(0, 256, (n, width * DTYPES[dtype].itemsize), dtype=torch.uint8, generator=generator)
            truth[s, site] = raw.view(DTYPES[dtype])

    def expected(s, selection, site):
        rows = truth[s, site][list(selection.positions)]
        return rows.float().mean(0, keepdim=True) if selection.pool else rows

    cache = ActivationCache(tmp_path_factory.mktemp("cache"))
    oracle = {}
    for rows in puts:
        cache.put(MODEL, [(key(f"s{s}", site), sel, expected(s, sel, site)) for s, sel, site in rows])
        for s, sel, site in rows:
            oracle.setdefault((s, site), []).append(sel)
    asked = [(key(f"s{s}", site), sel) for s, sel, site in requests]
    for opened in (cache, ActivationCache(cache.folder, readonly=True)):
        hits = opened.lookup(asked)
        for (s, sel, site), hit in zip(requests, hits, strict=True):
            stored = oracle.get((s, site), [])
            served = any(
                (not old.pool and set(sel.positions) <= set(old.positions))
                or (old.pool == sel.pool and old.positions == sel.positions)
                for old in stored
            )
            assert (hit is not None) == served
        held = [(request, hit) for request, hit in zip(requests, hits, strict=True) if hit is not None]
        for (request, _), got in zip(held, opened.read([hit for _, hit in held]), strict=True):
            want = expected(*request)
            assert same_mean(got, want) if request[1].pool else same_bits(got, want)
        for pool in ("", "mean"):
            group = [(request, hit) for request, hit in held if request[1].pool == pool]
            if group:
                stacked = opened.read_stacked([hit for _, hit in group])
                want = torch.cat([expected(*request) for request, _ in group])
                assert same_mean(stacked, want) if pool else same_bits(stacked, want)


def test_a_subset_never_serves_a_superset(cache):
    cache.put(MODEL, [(key(), Selection("", (1, 3), 5), values(2))])
    assert not cache.has(key(), Selection("", (1, 2, 3), 5))
    assert not cache.has(key(), Selection.all(5))
    assert not cache.has(key(), Selection("mean", (1, 2), 5))
    assert cache.has(key(), Selection("mean", (1, 3), 5))


def test_a_mean_serves_only_the_same_mean(cache):
    cache.put(MODEL, [(key(), Selection("mean", (1, 2, 3), 5), values(1))])
    assert cache.has(key(), Selection("mean", (1, 2, 3), 5))
    assert not cache.has(key(), Selection("mean", (1, 2), 5))
    assert not cache.has(key(), Selection("", (1, 2, 3), 5))


OTHERS = [
    key(context="steered"),
    key(sequence="t"),
    key(site="resid_post[6]"),
    key(context="ct", sequence="xs"),
    key(context="ctxs", sequence=""),
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_context_sequence_or_site_is_a_miss(cache, other):
    cache.put(MODEL, [(key(), Selection.all(3), values(3))])
    assert fetch(cache, other, Selection.all(3)) is None
    assert (cache.hits, cache.misses) == (0, 1)


def test_a_row_of_another_length_is_a_miss(cache):
    cache.put(MODEL, [(key(), Selection.all(3), values(3))])
    assert not cache.has(key(), Selection("", (0, 1), 4))


def test_stacked_rows_come_in_the_order_of_the_hits_across_shards(cache):
    kept = {i: values(3, seed=i) for i in range(9)}
    for i in kept:
        cache.put(MODEL, [(key(f"s{i}"), Selection.all(3), kept[i])])
    order = [5, 0, 8, 8, 2, 7]
    picks = Selection("", (0, 2), 3)
    hits = cache.lookup([(key(f"s{i}"), picks) for i in order])
    assert same_bits(cache.read_stacked(hits), torch.cat([kept[i][[0, 2]] for i in order]))


def test_rows_read_own_their_memory(cache):
    cache.put(MODEL, [(key(), Selection.all(50), values(50))])
    row = fetch(cache, key(), Selection.last(50))
    assert row.untyped_storage().nbytes() == row.nbytes
    row.zero_()
    assert same_bits(fetch(cache, key(), Selection.last(50)), values(50)[-1:])


def test_the_same_rows_are_stored_once(cache):
    row = (key(), Selection.all(3), values(3))
    cache.put(MODEL, [row, row])
    before = cache.stats()
    cache.put(MODEL, [row])
    cache.put(MODEL, [(key(), Selection.all(3), values(3, seed=1))])  # first come, first kept
    assert (before.entries, before.shards) == (1, 1)
    assert cache.stats().bytes == before.bytes
    assert same_bits(fetch(cache, key(), Selection.all(3)), values(3))


def test_pooled_rows_may_be_stored_beside_all_positions(cache):
    cache.put(MODEL, [(key(), Selection.all(4), values(4))])
    cache.put(MODEL, [(key(), Selection.last(4), values(4)[-1:])])
    assert cache.stats().entries == 2


def test_shards_are_plain_safetensors_with_one_contiguous_tensor_per_site(cache):
    rows = [(key(f"s{i}", site), Selection.all(3), values(3, seed=i)) for i in range(4) for site in ("a[0]", "b[0]")]
    cache.put(MODEL, rows)
    [path] = cache.folder.glob("shards/*/*.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        assert [file.get_tensor(name).shape for name in file.keys()] == [(12, 8), (12, 8)]  # noqa: SIM118
        about = json.loads(file.metadata()["latentlens"])
        assert same_bits(file.get_tensor("0"), torch.cat([values(3, seed=i) for i in range(4)]))
    assert [tensor["site"] for tensor in about["tensors"]] == ["a[0]", "b[0]"]
    assert about["description"] == MODEL


def test_reading_one_row_verifies_only_its_chunk_and_only_once(cache, monkeypatch):
    width = 4096  # 16 KiB a row: four rows a chunk
    cache.put(MODEL, [(key(site=site), Selection.all(64), values(64, width)) for site in ("a[0]", "b[0]")])
    hashed = []
    real = shards_module.hashlib.sha256
    monkeypatch.setattr(shards_module.hashlib, "sha256", lambda data=b"": hashed.append(len(data)) or real(data))
    fetch(cache, key(site="b[0]"), Selection("", (9,), 64))
    assert hashed.count(shards_module.CHUNK) == 1
    fetch(cache, key(site="b[0]"), Selection("", (9, 10), 64))
    assert hashed.count(shards_module.CHUNK) == 1
    fetch(cache, key(site="b[0]"), Selection("", (0, 63), 64))
    assert hashed.count(shards_module.CHUNK) == 3


def test_keys_of_any_characters_stay_apart_and_inside_the_folder(cache, tmp_path):
    strings = ["../../x", "a/b", "a\x00b", "a" * 300, "ключ", "", "/etc/passwd", "a\\u0000b", "\ud800", "..", "CON"]
    rows = [
        (key(s, t), Selection.all(1), values(1, seed=i * 99 + j))
        for i, s in enumerate(strings)
        for j, t in enumerate(strings)
    ]
    cache.put(MODEL, rows)
    for context in strings[:5]:
        cache.put({"model": context}, [(key(context=context), Selection.all(1), values(1))])
    assert cache.stats().entries == len(rows) + 5
    for k, selection, value in rows:
        assert same_bits(fetch(cache, k, selection), value)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    names = {p.name for p in cache.folder.rglob("*") if p.is_file()} - {"index.sqlite"}
    assert all(len(name) == 64 + len(".safetensors") for name in names)
    assert cache.verify().sound


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "positions", "n"),
    [
        ("max", (0,), 1),
        ("", (), 3),
        ("", (3,), 3),
        ("", (-1,), 3),
        ("", (1, 0), 3),
        ("", (0, 0), 3),
        ("", (0, 2, 1, 3), 4),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(pool, positions, n):
    with pytest.raises(BadInput):
        Selection(pool, positions, n)


@pytest.mark.parametrize(
    ("selection", "tensor"),
    [
        (Selection.all(3), torch.zeros(2, 4)),
        (Selection.all(3), torch.zeros(3)),
        (Selection.all(3), torch.zeros(3, 4, dtype=torch.int64)),
        (Selection.all(3), torch.zeros(3, 0)),
        (Selection("mean", (0, 1), 3), torch.zeros(2, 4)),
        (Selection("mean", (0, 1), 3), torch.zeros(1, 4, dtype=torch.bfloat16)),
    ],
)
def test_a_tensor_that_does_not_fit_its_selection_is_refused_and_nothing_is_stored(cache, selection, tensor):
    with pytest.raises(BadInput):
        cache.put(MODEL, [(key("fine"), Selection.all(1), values(1)), (key(), selection, tensor)])
    assert cache.stats().entries == 0


def test_two_contexts_in_one_put_and_a_context_that_is_no_json_are_refused(cache):
    with pytest.raises(BadInput, match="contexts"):
        cache.put(MODEL, [(key(context=c), Selection.all(1), values(1)) for c in "ab"])
    with pytest.raises(BadInput, match="JSON"):
        cache.put({"model": object()}, [(key(), Selection.all(1), values(1))])


def test_stacking_rows_of_different_width_is_refused(cache):
    cache.put(MODEL, [(key(site=f"s[{w}]"), Selection.all(2), values(2, w)) for w in (3, 4)])
    hits = cache.lookup([(key(site=f"s[{w}]"), Selection.all(2)) for w in (3, 4)])
    with pytest.raises(BadInput, match="width"):
        cache.read_stacked(hits)


def test_a_file_is_not_taken_for_a_cache_folder(tmp_path):
    for name, error in (("x.pt", UnsafeFile), ("x.npy", UnsafeFile), ("x.txt", CacheError)):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(error):
            ActivationCache(tmp_path / name)


def test_a_cache_opened_readonly_serves_and_refuses_every_change(cache):
    cache.put(MODEL, [(key(), Selection.all(3), values(3))])
    before = {p: p.stat().st_mtime_ns for p in cache.folder.rglob("*")}
    reader = ActivationCache(cache.folder, readonly=True)
    assert same_bits(fetch(reader, key(), Selection.all(3)), values(3))
    changes = (
        reader.ensure_writable,
        reader.clear,
        reader.evict,
        lambda: reader.forget(model="Tiny"),
        lambda: reader.verify(repair=True),
        lambda: reader.put(MODEL, [(key("t"), Selection.all(3), values(3))]),
    )
    for change in changes:
        with pytest.raises(CacheReadOnly):
            change()
    assert {p: p.stat().st_mtime_ns for p in cache.folder.rglob("*")} == before


def test_a_cache_that_does_not_exist_is_empty_and_is_not_created_by_looking(tmp_path):
    cache = ActivationCache(tmp_path / "none")
    assert fetch(cache, key(), Selection.all(1)) is None
    assert cache.stats().entries == 0
    assert cache.verify().sound
    assert not (tmp_path / "none").exists()


def test_the_folder_comes_from_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTLENS_CACHE", str(tmp_path / "here"))
    assert ActivationCache().folder == tmp_path / "here"
    assert ActivationCache(tmp_path / "there").folder == tmp_path / "there"


# -- housekeeping ---------------------------------------------------------------------------------


def fill(cache, n, *, context="ctx", about=MODEL, width=1024):
    """n shards of about 12 KiB, a minute of use apart, the first the oldest."""
    for i in range(n):
        cache.put(about, [(key(f"s{i}", context=context), Selection.all(3), values(3, width, seed=i))])
    age(cache, {f"s{i}": 1000.0 + 60 * i for i in range(n)}, context)


def age(cache, used, context="ctx"):
    for sequence, moment in used.items():
        [hit] = cache._index.find([(key(sequence, context=context), Selection.all(3))], set())
        cache._index.write(
            lambda db, m=moment, h=hit: db.execute("UPDATE shards SET last_used=? WHERE name=?", (m, h.shard))
        )


def held(cache, n, context="ctx"):
    return [i for i in range(n) if cache.has(key(f"s{i}", context=context), Selection.all(3))]


def test_eviction_removes_the_least_recently_used_and_reading_counts_as_use(cache):
    fill(cache, 6)
    one = cache.stats().bytes / 6
    fetch(cache, key("s0"), Selection.last(3))
    freed = cache.evict(max_gib=3.5 * one / 2**30)
    assert held(cache, 6) == [0, 4, 5]
    assert freed >= 2.9 * one
    assert len(list(cache.folder.glob("shards/*/*.safetensors"))) == 3
    assert cache.verify().sound


def test_a_put_keeps_to_the_ceiling_but_never_evicts_what_it_has_just_written(tmp_path):
    cache = ActivationCache(tmp_path, max_gib=1e-9)
    for i in range(3):
        cache.put(MODEL, [(key(f"s{i}"), Selection.all(3), values(3))])
        assert held(cache, 3) == [i]


def test_use_is_noted_at_most_once_a_minute(cache, monkeypatch):
    fill(cache, 1)
    touches = []
    monkeypatch.setattr(cache._index, "touch", lambda names, now: touches.append(names))
    clock = time.time()
    for later in (0, 1, 59, 61, 62):
        monkeypatch.setattr(cache_module.time, "time", lambda later=later: clock + later)
        fetch(cache, key("s0"), Selection.all(3))
    assert len(touches) == 2


def test_forget_removes_one_model_or_one_context_and_leaves_the_others(cache):
    fill(cache, 2)
    fill(cache, 2, context="c2", about={"model": "Other", "weights": "w2"})
    fill(cache, 2, context="c3", about={"model": "Tiny", "weights": "w3"})
    assert cache.forget(model="w1") == 2
    assert [held(cache, 2, context) for context in ("ctx", "c2", "c3")] == [[], [0, 1], [0, 1]]
    assert cache.forget(context="c2") == 2
    assert cache.forget(model="Tiny") == 2
    assert cache.stats().entries == 0
    assert not list(cache.folder.glob("shards/*/*.safetensors"))
    with pytest.raises(BadInput):
        cache.forget()


def test_clear_removes_everything_and_the_cache_goes_on(cache):
    fill(cache, 3)
    assert cache.clear() == 3
    assert not [p for p in cache.folder.rglob("*") if p.is_file() and p.name != "index.sqlite"]
    fill(cache, 1)
    assert held(cache, 1) == [0]


def test_stats_count_entries_sequences_bytes_per_model_and_hits(cache):
    rows = [(key(f"s{i}", site), Selection.all(3), values(3)) for i in range(4) for site in ("a[0]", "b[0]")]
    cache.put(MODEL, rows)
    cache.put({"model": "<b>Other</b>"}, [(key(context="c2"), Selection.all(3), values(3))])
    cache.lookup([(key(f"s{i}", "a[0]"), Selection.all(3)) for i in range(6)])
    stats = cache.stats()
    assert (stats.entries, stats.sequences, stats.shards, stats.hits, stats.misses) == (9, 5, 2, 4, 2)
    assert stats.bytes == sum(p.stat().st_size for p in cache.folder.glob("shards/*/*")) == sum(stats.models.values())
    assert set(stats.models) == {"Tiny", "<b>Other</b>"}
    assert "<b>" not in stats._repr_html_()
    assert "9 of 5 sequences" in str(stats)


def test_leftovers_are_collected_once_no_commit_can_still_want_them(cache):
    fill(cache, 1)
    [shard] = cache.folder.glob("shards/*/*.safetensors")
    orphan = shard.with_name("0" * 64 + ".safetensors")
    temporary = shard.with_name(".123-abc.tmp")
    for path in (orphan, temporary):
        path.write_bytes(b"left by a killed process")
    cache.evict()
    assert all(path.exists() for path in (orphan, temporary))  # they may belong to a commit in progress
    for path in (orphan, temporary, shard):
        os.utime(path, (1000, 1000))
    assert set(cache.verify().stale) == {orphan.name, temporary.name}
    assert cache.evict() == 48
    assert [path.exists() for path in (orphan, temporary, shard)] == [False, False, True]


def test_many_threads_share_one_cache(cache):
    barrier = threading.Barrier(6)

    def work(worker):
        barrier.wait()
        for i in range(8):
            cache.put(MODEL, [(key(f"s{i}"), Selection.all(3), values(3, seed=i))])
            assert same_bits(fetch(cache, key(f"s{i}"), Selection.last(3)), values(3, seed=i)[-1:])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert (cache.stats().entries, cache.stats().shards) == (8, 8)
    assert (cache.hits, cache.misses) == (48, 0)


def test_a_thousand_keys_at_ten_sites_are_looked_up_quickly(cache):
    sites = [f"resid_post[{i}]" for i in range(10)]
    one = values(1, 4)
    rows = [(key(f"{i:064x}", site), Selection.last(9), one) for site in sites for i in range(1000)]
    cache.put(MODEL, rows)
    asked = [(k, selection) for k, selection, _ in rows]
    best = min(_cpu_seconds(lambda: cache.lookup(asked)) for _ in range(3))
    assert best < 0.3  # about 0.06 s on an idle core
    assert all(hit is not None for hit in cache.lookup(asked))


def _cpu_seconds(action):
    start = time.process_time()
    action()
    return time.process_time() - start
