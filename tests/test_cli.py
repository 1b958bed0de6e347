import json

import pytest
from typer.testing import CliRunner

import latentlens as ll
from latentlens.cli import app, main

run = CliRunner().invoke


def test_check_prints_the_table_and_exits_with_the_result():
    done = run(app, ["check"])
    assert done.exit_code == 0
    assert "check of organism: passed" in done.output
    assert "sdpa = eager" in done.output


def test_a_named_error_is_one_line_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["latentlens", "check", "./nowhere"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "BadInput: there is no folder ./nowhere\n"


def test_the_cache_is_counted_verified_and_cleared(llama, tmp_path):
    folder = tmp_path / "cache"
    ll.load(llama, cache=folder).activations([[5, 6, 7]], where="last")
    assert "3 of 1 sequences" in run(app, ["cache", "stats", "--folder", str(folder)]).output
    assert run(app, ["cache", "verify", "--folder", str(folder)]).exit_code == 0
    [shard] = folder.rglob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    done = run(app, ["cache", "verify", "--folder", str(folder)])
    assert done.exit_code == 1
    assert shard.stem[:12] in done.output
    assert run(app, ["cache", "clear", "--folder", str(folder)], input="n\n").exit_code == 1
    assert list(folder.rglob("*.safetensors"))
    assert "removed 3 entries" in run(app, ["cache", "clear", "--folder", str(folder), "--yes"]).output
    assert not list(folder.rglob("*.safetensors"))


def test_one_model_can_be_forgotten_alone(llama, gpt2, tmp_path):
    folder = tmp_path / "cache"
    for model in (llama, gpt2):
        ll.load(model, cache=folder).activations([[5, 6, 7]], where="last")
    done = run(app, ["cache", "clear", "--folder", str(folder), "--model", "GPT2LMHeadModel", "--yes"])
    assert "removed 3 entries" in done.output
    assert ll.load(llama, cache=folder).activations([[5, 6, 7]], where="last").about["forwards"] == 0


def test_the_embedded_model_says_where_it_is():
    done = run(app, ["organism", "path"])
    assert done.exit_code == 0
    assert done.output.strip().endswith("weights")


def test_the_demo_writes_its_report_and_its_tables(tmp_path, monkeypatch):
    """The whole journey on fewer statements; `make demo` runs it in full."""
    monkeypatch.setattr("latentlens.demo.N_STATEMENTS", 400)
    monkeypatch.setattr("latentlens.demo.N_PROMPTS", 20)
    monkeypatch.setattr("latentlens.demo.N_RANDOM", 2)
    monkeypatch.setattr("latentlens.demo.STRENGTHS", (-0.5, 0.5))
    done = run(app, ["demo", "--report", str(tmp_path / "report.html"), "--json"])
    assert done.exit_code == 0, done.output
    assert "0 forward passes" in done.stderr
    told = json.loads(done.stdout)
    assert told["manifest"]["forward passes"]["second capture"] == "0"
    assert any(one["name"].startswith("held-out AUROC") and one["low"] < one["value"] for one in told["findings"])
    page = (tmp_path / "report.html").read_text()
    assert 1e6 < len(page) < 8e6
    assert "random directions of equal norm" in page
    assert str(tmp_path) not in page
