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


MARKS, TEXTS = ["1", "2", "3"], ["x", "y", "z"]
ROWS = {
    "gsm8k": lambda i: {"question": f"What is {i} + 2?", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"},
    "aqua": lambda i: {"question": f"What is {i}?", "options": ["A)1", "B)2", "C)3"], "correct": "B"},
    "arc": lambda i: {
        "question": f"Which {i}?", "answerKey": "2",
        "choices": {"text": TEXTS[: 2 + i % 2], "label": MARKS[: 2 + i % 2]},  # not always as many
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("columns", ROWS)
def test_the_intention_experiment_asks_any_model_the_rows_of_public_data_sets(columns, tmp_path):
    import json

    import torch
    import transformers

    from latentlens import organism

    config = transformers.LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(organism.path()).save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(ROWS[columns](i)) for i in range(6)))
    done = subprocess.run(
        [sys.executable, str(PROBES / "intention_collapse.py"), "--model", str(tmp_path / "model"),
         "--columns", columns, "--data", str(tmp_path / "rows.jsonl"), "--n", "6", "--folder", str(tmp_path / "runs")],
        capture_output=True, text=True, env={**os.environ, "LATENTLENS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout
    assert ("probability of the choices" in done.stdout) == (columns != "gsm8k")
