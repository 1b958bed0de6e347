"""The activation cache under kills, contention, full disks, flipped bits and foreign files.

Processes are forked from the warm test process: importing torch anew for each of a hundred kills would take
minutes.
"""

import os
import pickle
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlens.access.store import shards as shards_module
from latentlens.access.store.cache import ActivationCache, RowKey, Selection
from latentlens.errors import CacheCorrupt, CacheError, CacheReadOnly, CacheVersion

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:activation cache", "ignore:the index", "ignore:.*(quarantine|schema 7)"),
]
MODEL = {"model": "Tiny", "weights": "w1"}
SITES = ("resid_post[0]", "resid_post[1]")
POINTS = ("drafted", "writing", "written", "synced", "renamed", "folder synced", "inserted", "committed")
ALL = Selection.all(4)


def rows(shard, *, writer=0, sequences=5, width=16):
    """The rows of one commit: some sequences at two sites."""
    generator = torch.Generator().manual_seed(1000 * writer + shard)
    return [
        (RowKey("ctx", f"{shard}/{s}", site), ALL, torch.randn(4, width, generator=generator))
        for s in range(sequences)
        for site in SITES
    ]


def asked(shard, **kind):
    return [(key, selection) for key, selection, _ in rows(shard, **kind)]


def holds(cache, shard, **kind):
    """Whether all rows of a commit are held; a part of them is a broken promise."""
    hits = cache.lookup(asked(shard, **kind))
    assert all(hits) or not any(hits), f"half of commit {shard} is there"
    return all(hits)


def intact(cache, shard, **kind):
    hits = cache.lookup(asked(shard, **kind))
    stored = cache.read([hit for hit in hits if hit is not None])
    return len(stored) == len(hits) and all(
        got is not None and torch.equal(got, value)
        for got, (_, _, value) in zip(stored, rows(shard, **kind), strict=True)
    )


def forked(work, *arguments):
    """Run work in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # OpenMP does not survive a fork
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_every_row_once(cache, shards):
    """Read with an independent connection: one entry per row, one file per shard, every digest valid."""
    report = cache.verify()
    assert report.sound, str(report)
    with sqlite3.connect(cache.folder / "index.sqlite") as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone()[0] == sum(len(rows(i)) for i in shards)
        named = {name for (name,) in db.execute("SELECT name FROM shards")}
    assert named <= {p.name.removesuffix(".safetensors") for p in files(cache)}


def files(cache):
    return sorted(cache.folder.glob("shards/*/*.safetensors"))


@pytest.fixture
def cache(tmp_path):
    return ActivationCache(tmp_path / "cache")


# -- killed processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_1_killed_at_a_commit_point_nothing_promised_is_lost_and_a_rerun_completes(cache, point):
    def die(reached):
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        doomed = ActivationCache(cache.folder)
        doomed._step = die
        doomed.put(MODEL, rows(1))

    cache.put(MODEL, rows(0))
    assert status(forked(work)) == -signal.SIGKILL
    assert intact(cache, 0)
    assert holds(cache, 1) == (point == "committed")
    cache.put(MODEL, rows(1))
    assert intact(cache, 1)
    assert_every_row_once(cache, (0, 1))


def test_2_killed_at_fifty_random_times_a_worker_redoes_at_most_its_last_commit(cache):
    plan, chance, started, promised = range(40), random.Random(0), [], []
    began, told = os.pipe()
    done, acknowledged = os.pipe()

    def work():
        worker = ActivationCache(cache.folder)
        for shard in plan:
            if not holds(worker, shard):
                os.write(told, bytes([shard]))
                worker.put(MODEL, rows(shard))
                os.write(acknowledged, bytes([shard]))

    for reader in (began, done):
        os.set_blocking(reader, False)
    for _ in range(50):
        child = forked(work)
        time.sleep(chance.random() * 0.06)
        os.kill(child, signal.SIGKILL)
        status(child)
        started += read_all(began)
        promised += read_all(done)
        assert all(holds(cache, shard) for shard in promised)
    assert status(forked(work)) == 0
    started += read_all(began)
    assert len(started) <= len(plan) + 50
    assert len(promised) == len(set(promised))
    assert all(intact(cache, shard) for shard in plan)
    assert_every_row_once(cache, plan)


def read_all(pipe):
    try:
        return list(os.read(pipe, 65536))
    except BlockingIOError:
        return []


def test_1_bytes_are_durable_before_the_name_and_the_name_before_the_index(cache, monkeypatch):
    """Kills cannot show a missing fsync, only a power cut can: so the order of the calls is checked."""
    cache.put(MODEL, rows(0))
    calls, fsync, replace = [], os.fsync, os.replace
    names = {os.stat(cache.folder / "shards").st_ino: "sync parent"}  # only when the folder is new

    def synced(descriptor):
        calls.append(names.get(os.fstat(descriptor).st_ino, "sync file"))
        fsync(descriptor)

    def replaced(source, target):
        calls.append("rename")
        names[os.stat(os.path.dirname(target)).st_ino] = "sync folder"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    cache._step = lambda point: calls.append(point) if point in ("written", "inserted") else None
    cache.put(MODEL, rows(1))
    assert calls == ["written", "sync file", "rename", "sync folder", "sync parent", "inserted"]


# -- several writers ------------------------------------------------------------------------------


def test_3_two_writers_of_differing_bytes_never_mix_and_never_fail(cache):
    plan = range(60)

    def work(writer):
        mine = ActivationCache(cache.folder)
        for shard in plan:
            mine.put(MODEL, rows(shard, writer=writer))

    assert [status(child) for child in [forked(work, 0), forked(work, 1)]] == [0, 0]
    for shard in plan:  # the first to commit has it, whole
        assert intact(cache, shard, writer=0) != intact(cache, shard, writer=1)
    assert_every_row_once(cache, plan)


def test_4_eight_processes_on_one_plan_commit_every_shard_once(cache):
    plan = list(range(12))

    def work(worker):
        mine = ActivationCache(cache.folder)
        for shard in random.Random(worker).sample(plan, len(plan)):
            if not holds(mine, shard):
                mine.put(MODEL, rows(shard))

    assert [status(child) for child in [forked(work, i) for i in range(8)]] == [0] * 8
    assert all(intact(cache, shard) for shard in plan)
    assert_every_row_once(cache, plan)
    assert cache.stats().shards == len(files(cache)) == len(plan)


def test_a_file_collected_before_its_commit_is_written_again(cache):
    cache.put(MODEL, rows(0))
    before = files(cache)

    def collect(point):
        if point == "folder synced" and not collected:
            [path] = set(files(cache)) - set(before)
            path.unlink()
            collected.append(path)

    collected = []
    cache._step = collect
    cache.put(MODEL, rows(1))
    assert collected
    assert intact(cache, 1)


def test_rows_that_another_process_stored_during_a_commit_are_not_stored_twice(cache):
    other = ActivationCache(cache.folder)
    cache._step = lambda point: other.put(MODEL, rows(0)[:-1]) if point == "synced" else None
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)
    assert_every_row_once(cache, [0])
    other = ActivationCache(cache.folder)
    cache._step = lambda point: other.put(MODEL, rows(1, writer=1)) if point == "synced" else None
    cache.put(MODEL, rows(1))
    assert intact(cache, 1, writer=1)
    assert cache.stats().shards == len(files(cache)) == 3  # the late file is gone again


def test_a_forked_child_and_its_parent_use_the_same_object(cache):
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)

    def work():
        assert intact(cache, 0)
        cache.put(MODEL, rows(1))

    assert status(forked(work)) == 0
    assert intact(cache, 1)


# -- disks ----------------------------------------------------------------------------------------


def test_5_a_full_disk_is_a_clear_error_and_the_next_put_works(cache):
    cache.put(MODEL, rows(0))

    def work():
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(CacheError, match=r"\d+ bytes needed, \d+ bytes free"):
            cache.put(MODEL, rows(1, width=4096))
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert not holds(cache, 1)
        assert len(files(cache)) == 1
        assert not list(cache.folder.rglob(".*.tmp"))
        assert cache.verify().sound
        cache.put(MODEL, rows(1, width=4096))

    assert status(forked(work)) == 0
    assert intact(cache, 0)
    assert intact(cache, 1, width=4096)


def test_5_a_disk_that_fills_up_under_the_index_leaves_neither_rows_nor_file(cache):
    cache.put(MODEL, rows(0))
    many = [
        (RowKey("ctx", f"t{i}", "long" * 75), Selection.all(1), torch.ones(1, 1)) for i in range(300)
    ]  # the index repeats the long site per row, the shard names it once

    def work():
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = (cache.folder / "index.sqlite").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
        with pytest.raises(CacheError, match="bytes free"):
            cache.put(MODEL, many)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert not any(cache.lookup([(key, selection) for key, selection, _ in many]))
        assert len(files(cache)) == 1
        cache.put(MODEL, many)

    assert status(forked(work)) == 0
    assert cache.verify().sound
    assert all(cache.lookup([(key, selection) for key, selection, _ in many]))


def test_5_a_disk_known_to_be_too_small_is_refused_before_anything_is_written(cache, monkeypatch):
    cache.put(MODEL, rows(0))
    monkeypatch.setattr(shards_module.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(CacheError, match=r"\d+ bytes needed, 10 bytes free"):
        cache.put(MODEL, rows(1))
    with pytest.raises(CacheError, match="11 bytes needed, 10 bytes free"):
        cache.require_room(11)
    cache.require_room(10)
    assert len(files(cache)) == 1


def test_6_a_folder_that_cannot_be_written_still_serves():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        cache = ActivationCache(Path(folder, "cache"))
        cache.put(MODEL, rows(0))
        for path in [cache.folder, *cache.folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def work():
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            reader = ActivationCache(cache.folder)
            assert intact(reader, 0)
            assert reader.stats().entries == len(rows(0))
            assert reader.verify().sound
            for change in (reader.ensure_writable, lambda: reader.put(MODEL, rows(1))):
                with pytest.raises(CacheReadOnly):
                    change()
            with pytest.raises(CacheReadOnly):
                ActivationCache(cache.folder / "below").ensure_writable()

        child = status(forked(work))
        for path in [cache.folder, *cache.folder.rglob("*")]:
            path.chmod(0o755)
        assert child == 0


# -- damaged files --------------------------------------------------------------------------------


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_7_twenty_flipped_bits_are_twenty_named_shards_and_none_is_returned(cache):
    for shard in range(25):
        cache.put(MODEL, rows(shard))
    chance = random.Random(1)
    damaged = chance.sample(files(cache), 20)
    for path in damaged:
        flip(path, chance.randrange(8 * path.stat().st_size))
    report = cache.verify()
    assert {name for name, _ in report.damaged} == {path.name.removesuffix(".safetensors") for path in damaged}
    assert not report.sound
    assert all(path.name in str(report) for path in damaged)

    everything = [row for shard in range(25) for row in rows(shard)]
    hits = cache.lookup([(key, selection) for key, selection, _ in everything])
    found = cache.read(hits)
    lost = {hit.shard for hit, got in zip(hits, found, strict=True) if got is None}
    assert lost == {path.name.removesuffix(".safetensors") for path in damaged}
    assert all(got is None or torch.equal(got, value) for got, (_, _, value) in zip(found, everything, strict=True))
    assert sum(holds(cache, shard) for shard in range(25)) == 5
    for shard in range(25):
        cache.put(MODEL, rows(shard))
    assert all(intact(cache, shard) for shard in range(25))
    assert_every_row_once(cache, range(25))


def test_7_a_bit_that_flips_after_the_rows_were_read_is_seen_too(cache):
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)
    [path] = files(cache)
    flip(path, 8 * path.stat().st_size - 3)
    hits = cache.lookup(asked(0))
    with pytest.raises(CacheCorrupt):
        cache.read_stacked(hits)
    assert not holds(cache, 0)
    assert len(list(cache.folder.glob("quarantine/*.bad"))) == 1


def test_7_verify_finds_a_bit_flipped_without_a_trace_in_the_file_times(cache):
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)
    [path] = files(cache)
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 4]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [name for name, _ in cache.verify().damaged] == [path.name.removesuffix(".safetensors")]


def test_damage_is_reported_by_a_warning_and_counts_as_a_miss(cache):
    cache.put(MODEL, rows(0))
    [path] = files(cache)
    flip(path, 8 * path.stat().st_size - 1)
    hits = cache.lookup(asked(0)[-2:])
    with pytest.warns(UserWarning, match=path.name):
        assert None in cache.read(hits)
    assert cache.hits + cache.misses == 2
    assert cache.misses > 0


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1, -200])
@pytest.mark.parametrize("opened", [False, True])
def test_8_a_truncated_or_empty_shard_is_detected_and_its_rows_are_put_again(cache, length, opened):
    cache.put(MODEL, rows(0))
    assert not opened or intact(cache, 0)  # a map of a file cut short would crash the process when touched
    [path] = files(cache)
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    assert [name for name, _ in cache.verify().damaged] == [path.name.removesuffix(".safetensors")]
    assert cache.read(cache.lookup(asked(0))) == [None] * len(rows(0))
    assert not holds(cache, 0)
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)
    assert_every_row_once(cache, [0])


@pytest.mark.parametrize("opened", [False, True])
def test_9_a_deleted_shard_is_missing_and_never_zeros(cache, opened):
    cache.put(MODEL, rows(0))
    assert not opened or intact(cache, 0)
    [path] = files(cache)
    path.unlink()
    assert cache.verify().missing == (path.name.removesuffix(".safetensors"),)
    hits = cache.lookup(asked(0))
    with pytest.raises(CacheCorrupt):
        cache.read_stacked(hits)
    assert cache.read(hits) == [None] * len(hits)
    assert not holds(cache, 0)
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)


def test_a_damaged_shard_of_a_readonly_cache_is_missing_without_being_moved(cache):
    cache.put(MODEL, rows(0))
    [path] = files(cache)
    os.truncate(path, 10)
    reader = ActivationCache(cache.folder, readonly=True)
    assert reader.read(reader.lookup(asked(0))) == [None] * len(rows(0))
    assert not holds(reader, 0)
    assert path.exists()


def test_repair_takes_out_what_is_damaged_and_keeps_the_rest(cache):
    for shard in range(4):
        cache.put(MODEL, rows(shard))
    spoiled, deleted, *_ = files(cache)
    flip(spoiled, 8 * spoiled.stat().st_size - 1)
    deleted.unlink()
    assert not cache.verify(repair=True).sound
    assert cache.verify().sound
    assert sum(holds(cache, shard) for shard in range(4)) == 2


# -- a damaged index ------------------------------------------------------------------------------


def delete(path):
    path.unlink()


def scribble(path):
    path.write_bytes(b"no database" * 1000)


def empty(path):
    path.write_bytes(b"")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def drop_a_table(path):
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE entries")


@pytest.mark.parametrize("damage", [delete, scribble, empty, cut, drop_a_table])
def test_10_a_lost_or_damaged_index_is_built_again_from_the_shards(cache, damage):
    for shard in range(5):
        cache.put(MODEL, rows(shard))
    flip(files(cache)[0], 200)  # a header: this shard cannot say what it holds
    damage(cache.folder / "index.sqlite")
    with pytest.warns(UserWarning, match="built again from 4 shards"):
        assert sum(holds(cache, shard) for shard in range(5)) == 4
    for shard in range(5):
        cache.put(MODEL, rows(shard))
    assert all(intact(cache, shard) for shard in range(5))
    assert_every_row_once(cache, range(5))


def test_10_a_damaged_index_where_nothing_can_be_written_is_a_clear_error(cache):
    cache.put(MODEL, rows(0))
    for damage in (scribble, delete):
        damage(cache.folder / "index.sqlite")
        with pytest.raises(CacheCorrupt, match="built again"):
            ActivationCache(cache.folder, readonly=True).lookup(asked(0))


def test_10_bits_flipped_in_the_index_never_return_wrong_rows(cache):
    for shard in range(3):
        cache.put(MODEL, rows(shard))
    index = cache.folder / "index.sqlite"
    sound, chance = index.read_bytes(), random.Random(2)
    for _ in range(40):
        index.write_bytes(sound)
        for _ in range(20):
            flip(index, chance.randrange(8 * len(sound)))
        for shard in range(3):
            try:
                found = [(hit, row) for hit, row in zip(cache.lookup(asked(shard)), rows(shard), strict=True) if hit]
                values = cache.read([hit for hit, _ in found])
            except CacheError:
                continue
            assert all(got is None or torch.equal(got, row[2]) for got, (_, row) in zip(values, found, strict=True))
        for use in (cache.stats, cache.verify, lambda: cache.put(MODEL, rows(4)), lambda: cache.verify(repair=True)):
            try:
                use()
            except CacheError:
                continue


def test_10_an_index_entry_that_names_another_row_is_not_believed(cache):
    cache.put(MODEL, rows(0))
    with sqlite3.connect(cache.folder / "index.sqlite") as db:
        db.execute("UPDATE entries SET base = base + 4 WHERE site = ? AND base < 16", (SITES[0],))
    assert cache.verify().disagreements == 4
    stored = cache.read(cache.lookup(asked(0)))
    assert sum(got is None for got in stored) == 4
    assert all(got is None or torch.equal(got, row[2]) for got, row in zip(stored, rows(0), strict=True))
    cache.put(MODEL, rows(0))
    assert intact(cache, 0)


def test_10_an_index_entry_that_names_another_site_is_not_believed(cache):
    cache.put(MODEL, rows(0))
    with sqlite3.connect(cache.folder / "index.sqlite") as db:
        db.execute("UPDATE entries SET tensor = 1 - tensor")
    assert cache.read(cache.lookup(asked(0))) == [None] * len(rows(0))


def test_a_good_file_put_in_place_of_a_damaged_one_is_not_quarantined(cache):
    cache.put(MODEL, rows(0))
    [path] = files(cache)
    good, late = path.read_bytes(), ActivationCache(cache.folder)
    flip(path, 8 * path.stat().st_size - 1)
    verify = shards_module.Shard.verify

    def healed_meanwhile(shard, number, needed=None):
        try:
            verify(shard, number, needed)
        finally:
            path.with_name("new").write_bytes(good)
            path.with_name("new").replace(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module.Shard, "verify", healed_meanwhile)
        assert None in late.read(late.lookup([one for one in asked(0) if one[0].site == SITES[1]]))
    assert intact(late, 0)
    assert not list(cache.folder.glob("quarantine/*"))


def test_10_the_journal_of_a_killed_process_does_not_spoil_a_new_index(cache):
    def work():
        doomed = ActivationCache(cache.folder)
        doomed._step = lambda point: os.kill(os.getpid(), signal.SIGKILL) if point == "inserted" else None
        doomed.put(MODEL, [(RowKey("ctx", f"t{i}", "long" * 100), ALL, torch.ones(4, 1)) for i in range(9000)])

    cache.put(MODEL, rows(0))
    assert status(forked(work)) == -signal.SIGKILL
    journal = cache.folder / "index.sqlite-journal"
    assert journal.exists()
    (cache.folder / "index.sqlite").unlink()
    assert intact(cache, 0)
    assert cache.verify().sound


# -- versions and foreign files -------------------------------------------------------------------


def test_11_an_index_of_a_newer_latentlens_is_refused_by_version(cache):
    cache.put(MODEL, rows(0))
    with sqlite3.connect(cache.folder / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    for use in (lambda: cache.lookup(asked(0)), lambda: cache.put(MODEL, rows(1)), cache.stats):
        with pytest.raises(CacheVersion, match="schema 99, this latentlens reads up to 1"):
            use()


def test_11_a_shard_of_a_newer_latentlens_is_refused_by_version_and_left_alone(cache, monkeypatch):
    cache.put(MODEL, rows(0))
    monkeypatch.setattr(shards_module, "SCHEMA", 7)
    cache.put(MODEL, rows(1))
    monkeypatch.undo()
    cache.close()
    with pytest.raises(CacheVersion, match="schema 7, this latentlens reads up to 1"):
        cache.read(cache.lookup(asked(1)))
    (cache.folder / "index.sqlite").unlink()
    assert intact(cache, 0)
    assert not holds(cache, 1)
    assert len(files(cache)) == 2


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def as_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload))


def as_torch(path, payload):
    torch.save(payload, path)


def as_numpy(path, payload):
    with open(path, "wb") as file:
        np.save(file, np.array([payload], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("save", [as_pickle, as_torch, as_numpy])
def test_26_a_pickle_in_place_of_a_shard_is_refused_and_not_executed(cache, tmp_path, save):
    canary = tmp_path / "executed"
    cache.put(MODEL, rows(0))
    [path] = files(cache)
    save(path, Payload(canary))
    save(path.with_name("activations.pt"), Payload(canary))
    report = cache.verify()
    assert [name for name, _ in report.damaged] == [path.name.removesuffix(".safetensors")]
    assert report.foreign == (f"{path.parent.name}/activations.pt",)
    assert cache.read(cache.lookup(asked(0))) == [None] * len(rows(0))
    (cache.folder / "index.sqlite").unlink()
    assert not holds(cache, 0)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()  # the payload would have worked
