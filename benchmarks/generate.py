"""What does steered generation cost, against plain `generate` of transformers on the same batch?

    python benchmarks/generate.py [--quick]

Floor (1.00): greedy `model.generate` of 64 new tokens for 16 prompts of 16-48 tokens, left-padded in one batch.
Models: a random Llama of 8 blocks, d 512, and one of GPT-2 small's shape. Every arm runs in every round, the order
turned round by round; reported are medians over rounds of CPU seconds and wall seconds as ratios to the floor of the
same round. Peers are run where they are installed: steering-vectors, nnsight, TransformerLens, and a bare hook by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import latentlens as ll

BATCH = 16
TARGETS = {"one edit": 1.05, "16 different edits, one batch": 1.05}


def make(name: str) -> Any:
    torch.manual_seed(0)
    if name == "GPT-2 small":
        model: Any = GPT2LMHeadModel(GPT2Config())
    else:
        config = LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            vocab_size=32_000,
            max_position_embeddings=512,
        )
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def arms(model: Any, prompts: list[list[int]], new: int) -> dict[str, Callable[[], object]]:
    lm, batch = ll.load(model, cache=False), padded(prompts)
    middle = lm.layout.n_blocks // 2
    site, d = f"resid_post[{middle}]", lm.layout.d_model
    vectors = [torch.randn(d, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)]
    edits = [ll.Add(ll.Direction(v, site), 2.0) for v in vectors]
    block = lm.layout.blocks[middle]

    def plain(**options: Any) -> Any:
        return model.generate(**{**batch, **options}, max_new_tokens=new, do_sample=False)

    def ours(rows: list[list[int]], steer: Any) -> Any:
        return lm.generate(rows, new, steer=steer, stop_ids=())

    def with_steer() -> Any:
        with lm.steer(edits[0]):
            return plain()

    def by_hand() -> Any:
        def add(_m: Any, _a: Any, out: Any) -> Any:
            return out + 2.0 * vectors[0] if torch.is_tensor(out) else (out[0] + 2.0 * vectors[0], *out[1:])

        handle = block.register_forward_hook(add)
        try:
            return plain()
        finally:
            handle.remove()

    found: dict[str, Callable[[], object]] = {
        "plain generate (floor)": plain,
        "no edit": lambda: ours(prompts, None),
        "one edit": lambda: ours(prompts, edits[0]),
        "16 different edits, one batch": lambda: ours(prompts, [[edit] for edit in edits]),
        "lm.steer around generate": with_steer,
        "16 separate runs": lambda: [ours([row], edit) for row, edit in zip(prompts, edits, strict=True)],
        "peer: a bare hook, one edit": by_hand,
    }
    if importlib.util.find_spec("steering_vectors"):
        from steering_vectors import SteeringVector

        theirs = SteeringVector({middle: 2.0 * vectors[0]}, "decoder_block")

        def steering_vectors() -> Any:
            with theirs.apply(model):
                return plain()

        found["peer: steering-vectors, one edit"] = steering_vectors
    if importlib.util.find_spec("nnsight"):
        found["peer: nnsight, one edit"] = nnsight_arm(model, lm.layout.block_paths[middle], vectors[0], batch, new)
    if importlib.util.find_spec("transformer_lens"):
        found["peer: TransformerLens bridge, one edit"] = bridge_arm(model, middle, vectors[0], batch, new)
    return found


def any_tokenizer() -> Any:
    """Some peers do not start without one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<pad>", name_or_path="any")


def nnsight_arm(model: Any, path: str, vector: torch.Tensor, batch: dict[str, torch.Tensor], new: int) -> Any:
    import warnings

    warnings.simplefilter("ignore")
    from nnsight import LanguageModel

    wrapped: Any = LanguageModel(model, tokenizer=any_tokenizer())
    block = wrapped
    for part in path.split("."):
        block = block[int(part)] if part.isdigit() else getattr(block, part)

    def run() -> Any:
        with wrapped.generate(batch, max_new_tokens=new, do_sample=False) as tracer:
            for _ in tracer.all():
                block.output[:] = block.output + 2.0 * vector

    return run


def bridge_arm(model: Any, middle: int, vector: torch.Tensor, batch: dict[str, torch.Tensor], new: int) -> Any:
    bridge: Any = ll.load(model, tokenizer=any_tokenizer(), cache=False).to_transformer_lens()
    name = f"blocks.{middle}.hook_out"

    def run() -> Any:
        with bridge.hooks(fwd_hooks=[(name, lambda states, hook: states + 2.0 * vector)]):
            return bridge.hf_generate(
                batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=new, do_sample=False
            )

    return run


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(name: str, rounds: int, new: int) -> dict[str, Any]:
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 32_000) for _ in range(draw.randint(16, 48))] for _ in range(BATCH)]
    work = arms(make(name), prompts, new)
    for arm in list(work):
        try:
            work[arm]()
        except Exception as error:  # a peer that does not run on these versions
            if not arm.startswith("peer"):
                raise
            print(f"{arm}: does not run here ({type(error).__name__}: {str(error).splitlines()[0][:90]})")
            del work[arm]
    names, took = list(work), {arm: [] for arm in work}
    for turn in range(rounds):
        for arm in names[turn % len(names) :] + names[: turn % len(names)]:
            took[arm].append(timed(work[arm]))
    print(f"\n{name}: {BATCH} prompts, {new} new tokens, torch {torch.__version__}")
    print(f"{'':<42}{'CPU ratio':>10}{'wall ratio':>12}{'CPU s':>9}   target")
    rows = {}
    for arm in names:
        pairs = list(zip(took[arm], took[names[0]], strict=True))
        cpu, wall = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
        seconds = statistics.median(a[0] for a in took[arm])
        goal = f"<= {TARGETS[arm]}" if arm in TARGETS else ""
        print(f"{arm:<42}{cpu:>10.3f}{wall:>12.3f}{seconds:>9.2f}   {goal}")
        rows[arm] = {"cpu_ratio": cpu, "wall_ratio": wall, "cpu_seconds": seconds, "target": TARGETS.get(arm)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 new tokens, 2 rounds")
    parser.add_argument("--model", action="append", help='"Llama, 8 blocks, d 512" or "GPT-2 small"; both by default')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = args.model or ["Llama, 8 blocks, d 512", "GPT-2 small"]
    found = {name: measure(name, 2 if args.quick else args.rounds, 16 if args.quick else 64) for name in models}
    out = Path(__file__).parent / "results" / "generate.json"
    out.parent.mkdir(exist_ok=True)
    facts = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    out.write_text(json.dumps({"facts": {**facts, "threads": args.threads}, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
