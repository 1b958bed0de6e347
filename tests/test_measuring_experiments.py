"""The experiments run from one command, and a second run reads everything from the cache."""

import os
import re
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
        ("concepts", ["--n", "120"], ["selectivity", "untrained model", "share of label 1"]),
        ("identity", ["--n", "120", "--halvings", "3"], ["gap, shuffled"]),
        ("mediation", ["--n", "24", "--steps", "3"], ["unrelated prompt", "mean difference", "integrated gradients"]),
    ],
)
def test_an_experiment_runs_twice_and_the_second_time_no_model_is_run(name, options, words, tmp_path):
    command = [sys.executable, str(PROBES / f"{name}.py"), *options, "--folder", str(tmp_path / "runs")]
    env = {**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache")}
    first, second = (subprocess.run(command, capture_output=True, text=True, env=env, check=True) for _ in range(2))
    assert all(word in first.stdout for word in words)
    counted = [re.findall(r"(\d+) (?:forward passes|texts written)", run.stdout) for run in (first, second)]
    assert int(counted[0][0]) > 0
    assert set(counted[1]) == {"0"}
    assert (tmp_path / "runs" / f"{name}.html").stat().st_size > 1000
