"""What does a capture cost, against the plain Hugging Face forward of the same texts?

    python benchmarks/capture.py [--quick]

Floor (1.00): the causal-LM forward of 256 texts of 16-256 tokens, unsorted, in batches of 16, nothing kept.
Model: a random Llama of 8 blocks, d 512, vocabulary 32,000. Every arm runs in every round, the order turned round
by round; reported are medians over rounds of CPU seconds and wall seconds as ratios to the floor of the same
round. Results are also written to benchmarks/results/capture.json with the facts of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import latentlens as ll

BATCH = 16
TARGETS = {"all blocks": 0.45, "middle block": 0.27}


def make(quick: bool) -> tuple[LlamaForCausalLM, list[list[int]]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=32_000,
        max_position_embeddings=512,
    )
    draw = random.Random(0)
    texts = [[draw.randrange(3, 32_000) for _ in range(draw.randint(16, 256))] for _ in range(64 if quick else 256)]
    return LlamaForCausalLM(config).eval(), texts


def plain(model: LlamaForCausalLM, texts: list[list[int]]) -> None:
    """Right-padded batches in the given order, mask passed, logits made and dropped."""
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        width = max(map(len, part))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=False)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 texts, 2 rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print("several minutes; every arm runs in every round", flush=True)
    torch.set_num_threads(args.threads)
    model, texts = make(args.quick)
    bare = ll.load(model, cache=False)
    folder = tempfile.mkdtemp(prefix="latentlens-bench-")
    fresh = iter(range(1000))

    def cold() -> None:
        lm = ll.load(model, cache=Path(folder) / str(next(fresh)))
        lm.activations(texts, sites="resid_post[*]", where="last")

    warm = ll.load(model, cache=Path(folder) / "warm")
    warm.activations(texts, sites="resid_post[*]", where="last")
    arms: dict[str, Callable[[], object]] = {
        "plain forward (floor)": lambda: plain(model, texts),
        "all blocks": lambda: bare.activations(texts, sites="resid_post[*]"),
        "middle block": lambda: bare.activations(texts, sites="resid_post[3]"),
        "last token, all blocks": lambda: bare.activations(texts, sites="resid_post[*]", where="last"),
        "mean, middle block": lambda: bare.activations(texts, sites="resid_post[3]", where="mean"),
        "last token, all blocks, cold cache": cold,
        "last token, all blocks, warm cache": lambda: warm.activations(texts, sites="resid_post[*]", where="last"),
    }
    plain(model, texts[:BATCH])  # warm up allocators and kernels
    bare.activations(texts[:BATCH])
    names, took = list(arms), {name: [] for name in arms}
    for turn in range(2 if args.quick else args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took[name].append(timed(arms[name]))
    floor = took[names[0]]
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens, {args.threads} thread(s), torch {torch.__version__}")
    print(f"{'':<38}{'CPU ratio':>10}{'wall ratio':>12}{'CPU s':>9}   target")
    rows = {}
    for name in names:
        cpu = statistics.median(a[0] / b[0] for a, b in zip(took[name], floor, strict=True))
        wall = statistics.median(a[1] / b[1] for a, b in zip(took[name], floor, strict=True))
        seconds = statistics.median(a[0] for a in took[name])
        goal = f"<= {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:<38}{cpu:>10.3f}{wall:>12.3f}{seconds:>9.2f}   {goal}")
        rows[name] = {"cpu_ratio": cpu, "wall_ratio": wall, "cpu_seconds": seconds, "target": TARGETS.get(name)}
    out = Path(__file__).parent / "results" / "capture.json"
    out.parent.mkdir(exist_ok=True)
    facts = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    facts["threads"] = args.threads
    out.write_text(json.dumps({"facts": facts, "texts": len(texts), "arms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
