"""Sweeps: prompts x plans x seeds, paired, resumed after a kill, and plans in files."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from families import build

import latentlens as ll
from latentlens.access.generation import kept_rows
from latentlens.access.generation.kept_rows import KeptRows
from latentlens.errors import BadInput, CacheVersion, UnsafeFile

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]
D = 32


def direction(seed, site="resid_post[1]"):
    return ll.Direction(torch.randn(D, generator=torch.Generator().manual_seed(seed)), site, name=f"v{seed}")


PLANS = {"none": None, "add": ll.Add(direction(0), 4.0), "two": [ll.Reflect(direction(1)), ll.Add(direction(2), 2.0)]}


@pytest.fixture(scope="module")
def lm():
    return ll.load(build("Llama"), cache=False)


def test_every_combination_equals_its_own_generate(lm):
    frame = ll.sweep(lm, ROWS, PLANS, seeds=[0, 7], max_new_tokens=5, stop_ids=())
    assert len(frame) == 3 * 3 * 2
    for line in frame.itertuples():
        alone = lm.generate([ROWS[line.prompt_index]], 5, 1, 1.0, line.seed, PLANS[line.plan], stop_ids=())[0]
        assert tuple(line.generated) == alone.generated
        assert (line.text, line.finish, line.n_tokens) == (alone.text, "length", 5)
    assert frame.attrs == {"rows_run": 18, "rows_found": 0}


def test_every_prompt_may_have_seeds_of_its_own(lm):
    both = ll.sweep(lm, ROWS, PLANS, seeds=[0, 7], max_new_tokens=5, stop_ids=())
    own = ll.sweep(lm, ROWS, PLANS, seeds=[[7], [0, 7], (0,)], max_new_tokens=5, stop_ids=())
    assert len(own) == 3 * 4
    for line in own.itertuples():
        same = both[(both.plan == line.plan) & (both.prompt_index == line.prompt_index) & (both.seed == line.seed)]
        assert same["generated"].tolist() == [line.generated]
    assert sorted(zip(own["prompt_index"], own["seed"]))[::3] == [(0, 7), (1, 0), (1, 7), (2, 0)]
    for wrong in ([[0], [1]], [[0], 1, [2]], [], [[0], [], [1]]):
        with pytest.raises(BadInput, match="seeds"):
            ll.sweep(lm, ROWS, PLANS, seeds=wrong, max_new_tokens=5)


def test_divergence_is_that_of_effect_and_is_kept_with_the_rows(lm, tmp_path):
    how = {"seeds": [0, 7], "max_new_tokens": 5, "stop_ids": ()}
    plain = ll.sweep(lm, ROWS, PLANS, folder=tmp_path, **how)
    frame = ll.sweep(lm, ROWS, PLANS, folder=tmp_path, kl=True, **how)
    assert frame.attrs == {"rows_run": 18, "rows_found": 0}, "rows without it do not answer a call that asks for it"
    assert "kl" not in plain
    assert frame["generated"].tolist() == plain["generated"].tolist()
    for line in frame.itertuples():
        alone = lm.generate([ROWS[line.prompt_index]], 5, 1, 1.0, line.seed, PLANS[line.plan], stop_ids=())
        np.testing.assert_allclose(line.kl, alone.effect().kl[0], atol=1e-5)
        assert len(line.kl) == 5
        assert any(line.kl) == (line.plan != "none")
    again = ll.sweep(lm, ROWS, PLANS, folder=tmp_path, kl=True, **how)
    assert again.attrs == {"rows_run": 0, "rows_found": 18}
    assert again["kl"].tolist() == frame["kl"].tolist()


def test_plans_that_do_nothing_are_paired_with_the_clean_rows_token_for_token(lm):
    same = {"none": None, "nothing": ll.Add(direction(0), 0.0), "scale 1": ll.Scale(direction(3), 1.0)}
    frame = ll.sweep(lm, ROWS, same, seeds=range(4), max_new_tokens=6, stop_ids=())
    for _, pair in frame.groupby(["prompt_index", "seed"]):
        assert len({tuple(ids) for ids in pair["generated"]}) == 1


def test_a_second_sweep_runs_only_what_is_missing(lm, tmp_path):
    how = {"max_new_tokens": 5, "stop_ids": (), "folder": tmp_path / "sweep"}
    first = ll.sweep(lm, ROWS, {"none": None}, seeds=[0], **how)
    more = ll.sweep(lm, ROWS, PLANS, seeds=[0, 1], **how)
    assert more.attrs == {"rows_run": 15, "rows_found": 3}
    again = ll.sweep(lm, ROWS, PLANS, seeds=[0, 1], **how)
    assert again.attrs == {"rows_run": 0, "rows_found": 18}
    assert again.equals(more)
    assert first["text"].tolist() == again[(again.plan == "none") & (again.seed == 0)]["text"].tolist()
    other = ll.sweep(lm, ROWS, PLANS, seeds=[0, 1], **{**how, "max_new_tokens": 4})
    assert other.attrs["rows_found"] == 0
    elsewhere = ll.load(build("GPT-2"), cache=False)
    assert ll.sweep(elsewhere, ROWS, PLANS, seeds=[0, 1], **how).attrs["rows_found"] == 0


def test_readings_come_back_from_disk_as_they_were(lm, tmp_path):
    how = {"max_new_tokens": 5, "stop_ids": (), "record": ll.Record("resid_post[*]", last_token=True)}
    memory = ll.sweep(lm, ROWS, PLANS, **how)
    ll.sweep(lm, ROWS, PLANS, folder=tmp_path, **how)
    disk = ll.sweep(lm, ROWS, PLANS, folder=tmp_path, **how)
    assert disk.attrs["rows_run"] == 0
    for name in ("positions", "after resid_post[0]", "after resid_post[2]"):
        for a, b in zip(memory[name], disk[name], strict=True):
            assert np.array_equal(a, b)
    assert memory["after resid_post[1]"][0].shape == (5, D)


def test_a_line_cut_short_by_a_kill_is_dropped_and_run_again(lm, tmp_path):
    how = {"max_new_tokens": 5, "stop_ids": (), "folder": tmp_path}
    whole = ll.sweep(lm, ROWS, PLANS, **how)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = ll.sweep(lm, ROWS, PLANS, **how)
    assert again.attrs == {"rows_run": 1, "rows_found": 8}
    assert again.equals(whole)


def test_a_damaged_line_costs_itself_and_not_what_comes_after_it(lm, tmp_path):
    how = {"max_new_tokens": 5, "stop_ids": (), "folder": tmp_path}
    whole = ll.sweep(lm, ROWS, PLANS, **how)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join([lines[0], b"{not json\n", *lines[2:]]))
    again = ll.sweep(lm, ROWS, PLANS, **how)
    assert again.attrs == {"rows_run": 1, "rows_found": 8}
    assert again.equals(whole)


def test_an_open_folder_is_read_once_and_what_others_append_is_found(lm, tmp_path, monkeypatch):
    how = {"max_new_tokens": 5, "stop_ids": ()}
    ll.sweep(lm, ROWS, PLANS, folder=tmp_path, **how)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(kept_rows.json, "loads", lambda raw: parsed.append(raw) or loads(raw))
    kept = KeptRows(tmp_path)
    assert len(parsed) == len(kept) == 9
    assert ll.sweep(lm, ROWS, PLANS, folder=kept, **how).attrs == {"rows_run": 0, "rows_found": 9}
    assert ll.sweep(lm, ROWS, PLANS, [1], folder=kept, **how).attrs["rows_run"] == 9
    assert ll.sweep(lm, ROWS, PLANS, [0, 1], folder=kept, **how).attrs == {"rows_run": 0, "rows_found": 18}
    assert len(parsed) == 9  # neither what was there nor what it wrote itself is read again
    ll.sweep(lm, ROWS, PLANS, [2], folder=KeptRows(tmp_path), **how)  # somebody else
    parsed.clear()
    found = ll.sweep(lm, ROWS, PLANS, [2], folder=kept, **how)
    assert (found.attrs["rows_run"], len(parsed)) == (0, 9)
    assert found.equals(ll.sweep(lm, ROWS, PLANS, [2], **how))
    (tmp_path / "rows.jsonl").unlink()
    assert ll.sweep(lm, ROWS, PLANS, folder=kept, **how).attrs["rows_found"] == 0


def test_the_same_row_asked_for_twice_is_written_once(lm, tmp_path):
    how = {"max_new_tokens": 5, "stop_ids": ()}
    frame = ll.sweep(lm, [ROWS[0], ROWS[0]], {"a": PLANS["add"], "b": PLANS["add"]}, [3], folder=tmp_path, **how)
    assert frame.attrs == {"rows_run": 1, "rows_found": 3}
    assert len({tuple(ids) for ids in frame["generated"]}) == 1


@pytest.mark.parametrize("after", [1, 3])
def test_killed_at_any_moment_it_goes_on_and_loses_no_finished_batch(tmp_path, after):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch; torch.set_num_threads(1)
        import latentlens as ll
        from latentlens.access.generation import kept_rows as module
        from test_sweep import PLANS, ROWS, build
        lm = ll.load(build("Llama"), cache=False)
        lm.token_budget = 24
        add, done = module.KeptRows.add, []
        def kill(self, batch):
            if len(done) == {after}:
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, batch); done.append(1)
        if "--kill" in sys.argv:
            module.KeptRows.add = kill
        frame = ll.sweep(lm, ROWS, PLANS, seeds=[0, 1], max_new_tokens=5, stop_ids=(), folder={str(tmp_path)!r})
        print(frame.attrs["rows_run"], frame.attrs["rows_found"], frame["text"].tolist())
        """
    )
    killed = subprocess.run([sys.executable, "-c", program, "--kill"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    kept = sum(1 for _ in (tmp_path / "rows.jsonl").open())
    assert 0 < kept < 18
    rest = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split(
        " ", 2
    )
    assert (int(rest[0]), int(rest[1])) == (18 - kept, kept)
    lm = ll.load(build("Llama"), cache=False)
    assert rest[2].strip() == str(ll.sweep(lm, ROWS, PLANS, [0, 1], max_new_tokens=5, stop_ids=())["text"].tolist())


def test_what_a_sweep_cannot_do_is_said(lm, tmp_path):
    with pytest.raises(BadInput, match="seeds= is empty"):
        ll.sweep(lm, ROWS, PLANS, seeds=[])
    with pytest.raises(BadInput, match="look alike"):
        ll.sweep(lm, ROWS, [None, None])
    with pytest.raises(BadInput, match="'label': plan"):
        ll.sweep(lm, ROWS, ll.Add(direction(0)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ll.errors.CacheError, match="cannot keep the sweep"):
        ll.sweep(lm, ROWS, PLANS, max_new_tokens=5, folder=tmp_path / "file")


# -- plans in files -------------------------------------------------------------------------------------


def every_kind():
    from test_steering import plans

    return [item for plan in plans().values() for item in plan]


def test_every_intervention_survives_its_file(tmp_path):
    items = every_kind()
    path = ll.save_plan(items, tmp_path / "plan")
    back = ll.load_plan(path)
    assert [item.fingerprint for item in back] == [item.fingerprint for item in items]
    assert [repr(item) for item in back] == [repr(item) for item in items]
    assert ll.load_plan(ll.save_plan([], tmp_path / "nothing")) == ()


def test_other_files_and_newer_ones_are_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(UnsafeFile):
        ll.load_plan(tmp_path / "x.pt")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"plan": json.dumps({"schema": 9, "plan": []})})
    with pytest.raises(CacheVersion):
        ll.load_plan(tmp_path / "new.safetensors")
    strange = json.dumps({"schema": 1, "plan": [{"is": "Explode", "of": {}}]})
    save_file({"a": torch.zeros(1)}, tmp_path / "strange.safetensors", {"plan": strange})
    with pytest.raises(UnsafeFile, match="Explode"):
        ll.load_plan(tmp_path / "strange.safetensors")
