"""The G-ACT experiment as a user runs it: once, again from what is kept, and with inputs that cannot work."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentlens import organism
from latentlens.errors import BadInput, TooFewExamples

SCRIPT = Path(__file__).parent.parent / "steering" / "gact.py"


def run(tmp_path, *options):
    env = {**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache"), "TERMINAL_WIDTH": "200"}
    command = [sys.executable, str(SCRIPT), *options, "--folder", str(tmp_path / "runs")]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_the_experiment_moves_every_language_and_the_second_run_is_kept(tmp_path):
    first = run(tmp_path, "--quick")
    assert first.returncode == 0, first.stderr[-2000:]
    moved = re.findall(r"^(\S+): valid answers ([\d.]+) .*steered ([\d.]+) \[", first.stdout, re.M)
    assert [name for name, *_ in moved] == ["Python", "C++", "Java", "Julia"]
    for name, before, after in moved:
        assert float(after) > 0.7, (name, before, after)
        assert float(after) > float(before)
    for word in ("G-ACT, permuted", "random 2", "ACT heads", "neuron, contrast", "asked in words", "without signal"):
        assert word in first.stdout
    assert (tmp_path / "runs" / "gact.html").stat().st_size > 100_000
    second = run(tmp_path, "--quick")
    assert "'rows_run': 0" in second.stdout
    assert "'forwards': 0" in second.stdout
    table = re.compile(r"Valid answers in the target, at.*?\n\n", re.S)
    assert table.search(second.stdout).group() == table.search(first.stdout).group()


@pytest.mark.slow
def test_any_model_with_styles_told_by_patterns_and_wordings_of_ones_own(tmp_path):
    """The embedded model as a folder, two of its languages told by their first words; no answer is invalid."""
    (tmp_path / "patterns.json").write_text(json.dumps({"Python": r"\bdef\b", "Julia": r"\bfunction\b"}))
    wordings = [["Write a program that {task}.", "Write a program in {style} that {task}."]]
    (tmp_path / "wordings.json").write_text(json.dumps(wordings))
    files = ["--patterns", str(tmp_path / "patterns.json"), "--wordings", str(tmp_path / "wordings.json")]
    more = ["--quick", "--length", "16", "--where", "last_prompt", "--k", "2"]
    done = run(tmp_path, "--model", organism.path(), "--styles", "Python,Julia", *files, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    moved = dict(re.findall(r"^(\S+): valid answers .*steered ([\d.]+) \[", done.stdout, re.M))
    assert list(moved) == ["Python", "Julia"]
    assert all(float(after) > 0.6 for after in moved.values())
    assert "Steering the style of answers: Python, Julia" in (tmp_path / "runs" / "gact.html").read_text()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gact_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"styles": "Python,Rust"}, "no signs of 'Rust'"),
        ({"styles": "Python"}, "two different names"),
        ({"tasks": "few"}, "2 different tasks"),
        ({"styles": "formal,casual", "patterns": "patterns"}, "no pattern for casual"),
        ({"wordings": "wordings"}, "wording"),
    ],
)
def test_inputs_that_cannot_work_are_refused_before_anything_is_fitted(script, options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few").write_text("adds 1 and 2\nadds 1 and 2\ncounts 4 times\n")
    Path("patterns").write_text(json.dumps({"formal": "Sir"}))
    Path("wordings").write_text(json.dumps([["Do it.", "Do it."]]))
    given = {"model": None, "styles": "Python,Julia", "patterns": "", "tasks": "", "wordings": "", "k": 3, "m": 4}
    more = {"nats": 0.3, "where": "", "length": 0, "quick": True, "seed": 0, "folder": tmp_path / "runs"}
    with pytest.raises((BadInput, TooFewExamples), match=says):
        script.main(**given | more | options)
