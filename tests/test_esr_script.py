"""The whole protocol from its command line: forecast first, every part, killed and resumed, nothing written twice."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEERING = Path(__file__).parent.parent / "steering"
PARTS = ("boosts", "meta_prompts", "corrections", "detection", "finetune")
HEADINGS = (
    "Forecast", "Latents to steer with", "Off-topic detectors", "Conditions, persistent steering", "McNemar p",
    "Conditions, transient steering", "Headline:", "Dose of ablation", "Sufficiency", "Strengths around",
    "Meta-prompts", "Latents around corrections", "Agreement of judges", "Saying so against doing better",
    "New prompts", "Corrections taught", "Beside the published run",
)  # fmt: skip


def command(name, *options):
    return [sys.executable, str(STEERING / f"{name}.py"), *options]


def tables(printed):
    """What was found, without times and counts of this run."""
    start = printed.index("Latents to steer with")
    return re.sub(r"\d+\.\d+ minutes.*|\d+ answers written.*", "", printed[start:], flags=re.S)


@pytest.mark.slow
def test_the_protocol_is_killed_resumed_and_then_writes_nothing(tmp_path):
    env = {**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    how = ["--quick", "--latents", "10", "--per-latent", "3", "--folder", str(tmp_path / "runs")]
    rows = tmp_path / "runs" / "rows" / "rows.jsonl"
    first = subprocess.Popen(command("esr", *how), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    while first.poll() is None and not (rows.is_file() and rows.read_bytes().count(b"\n") > 300):
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = rows.read_bytes().count(b"\n")
    done = [subprocess.run(command("esr", *how), capture_output=True, text=True, env=env, check=True) for _ in range(2)]
    resumed, again = (run.stdout for run in done)
    found = int(re.search(r"(\d+) found in", resumed)[1])
    assert found >= kept > 300
    assert "\n0 answers written" in again
    assert tables(again) == tables(resumed)
    assert all(heading in resumed for heading in HEADINGS)
    assert resumed.index("Forecast") < resumed.index("Latents to steer with")
    page = (tmp_path / "runs" / "esr.html").read_text()
    assert page.count("plotly-graph-div") or page.count('"data"') >= 8
    for part in PARTS:
        small = ["--latents", "10", "--folder", str(tmp_path / "runs")]
        small += ["--shares", "0.5", "--epochs", "1"] if part == "finetune" else []
        subprocess.run(command(f"esr_{part}", *small), capture_output=True, text=True, env=env, check=True)
        assert (tmp_path / "runs" / f"esr_{part}.html").stat().st_size > 100_000


@pytest.mark.parametrize("name", ["esr", *(f"esr_{part}" for part in PARTS)])
def test_help_says_what_an_experiment_asks(name):
    shown = subprocess.run(command(name, "--help"), capture_output=True, text=True, check=True).stdout
    assert "--folder" in shown


def test_wrong_arguments_are_refused_with_a_sentence(tmp_path):
    for options, words in (
        (["--judge", "people", "--prompts", __file__], "allowed are"),
        (["--prompts", str(tmp_path / "none.txt"), "--judge", "likelihood"], "cannot be read"),
        (["--hook-layer", "40"], "no block 40"),
        (["--rule", "best", "--quick"], "allowed are"),
    ):
        done = subprocess.run(command("esr", *options, "--folder", str(tmp_path)), capture_output=True, text=True)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr
