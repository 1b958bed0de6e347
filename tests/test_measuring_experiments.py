"""The experiments run from one command, and a second run reads everything from the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBES = Path(__file__).parent.parent / "probes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("intention_collapse", ["--n", "40"], ["accuracy", "H, same last words", "recoverability", "trained in"]),
        ("trajectory_signals", ["--n", "25", "--temperature", "1.5"], ["page"]),
    ],
)
def test_an_experiment_runs_twice_and_the_second_time_no_model_is_run(name, options, words, tmp_path):
    command = [sys.executable, str(PROBES / f"{name}.py"), *options, "--folder", str(tmp_path / "runs")]
    env = {**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache")}
    first, second = (subprocess.run(command, capture_output=True, text=True, env=env, check=True) for _ in range(2))
    assert all(word in first.stdout for word in words)
    assert not first.stdout.splitlines()[-1].startswith("0 forward passes")
    assert second.stdout.splitlines()[-1].startswith("0 forward passes, 0 texts written")
    assert (tmp_path / "runs" / f"{name}.html").stat().st_size > 1000
