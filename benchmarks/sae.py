"""What does editing SAE latents cost, inside a model and by itself?

    python benchmarks/sae.py [--quick] [--rounds 3] [--threads 1] [--no-peers]

Inside (1.00 = the plain causal-LM forward of 16 x 128 tokens): a random Llama of 8 blocks, d 512, vocabulary 32,000,
and SAEs of 16,384 latents at the residual stream after block 3, of which 32 are ablated. Peers: a torch hook that
encodes, edits and decodes with the SAE of SAELens, error term kept; and SAELens through TransformerLens' bridge.

By itself (1.00 = one encoding as a plain matrix product, of 2,048 states): encoding, 32 latents, edits, decoding.

Every arm runs in every round, the order turned round by round, and the floor runs once more right before each arm;
reported are medians over rounds of CPU and wall seconds as ratios to that floor, so the floor's own line shows the
noise. Results: benchmarks/results/sae.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import latentlens as ll
from latentlens.values.codes import Codes
from latentlens.values.latents import EditLatents, ablate
from latentlens.values.sae import SAE

D, LATENTS, EDITED, K, BLOCK = 512, 16_384, 32, 64, 3
INSIDE_TARGETS = {"relu, ablate 32": 1.05, "jumprelu, ablate 32": 1.05}
ALONE_TARGETS = {"topk, ablate 32": 1.4}
DECODE_TARGET = 0.03


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": D, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**size, vocab_size=32_000, max_position_embeddings=512)).eval()


def make_sae(kind: Any, states: Tensor) -> SAE:
    """Unit decoder rows, the encoder their transpose; biases or thresholds such that about K latents fire."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(LATENTS, D, generator=draw), dim=-1)
    mean = states.mean(0)
    level = float((((states[:256] - mean) @ rows.T).flatten()).quantile(1 - K / LATENTS)) if kind != "topk" else 0.0
    bias = torch.full((LATENTS,), -level if kind in ("relu", "gated") else 0.0)
    parts: dict[str, Any] = {"threshold": torch.full((LATENTS,), level)} if kind == "jumprelu" else {}
    parts |= {"k": K} if kind == "topk" else {}
    parts |= {"r_mag": torch.zeros(LATENTS), "b_mag": torch.zeros(LATENTS)} if kind == "gated" else {}
    return SAE(kind, rows.T.contiguous(), bias, rows, mean, site=f"resid_post[{BLOCK}]", **parts)  # type: ignore[arg-type]


def theirs_of(sae: SAE) -> Any:
    """The same SAE as an object of SAELens."""
    import sae_lens

    name = {"relu": "standard"}.get(sae.kind, sae.kind)
    metadata = {"model_name": "llama", "hook_name": f"blocks.{BLOCK}.hook_out"}
    config = {"architecture": name, "d_in": D, "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    theirs = sae_lens.SAE.from_dict({**config, "metadata": metadata, **({"k": sae.k} if sae.k else {})})
    weights = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    weights |= {"threshold": sae.threshold} if sae.threshold is not None else {}
    theirs.load_state_dict(weights)
    return theirs


def spliced(theirs: Any, latents: list[int]) -> Callable[[Any, Any, Any], Tensor]:
    """A torch hook: encode, edit, decode twice, error term kept, as users of SAELens write it on plain models."""

    def hook(_module: Any, _inputs: Any, out: Any) -> Tensor:
        states = out if torch.is_tensor(out) else out[0]
        plain = theirs.decode(theirs.encode(states))
        codes = theirs.encode(states)
        codes[..., latents] = 0.0
        return states + theirs.decode(codes) - plain

    return hook


def bridge_arms(model: LlamaForCausalLM, theirs: Any, ids: Tensor, latents: list[int]) -> dict[str, Callable]:
    """SAELens' own splice on TransformerLens' bridge, over a copy (the bridge changes the model it is given)."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    tokenizer = ll.load(cache=False).tokenizer  # the bridge wants one; it is not used
    bridge = SAETransformerBridge.boot_transformers("llama", hf_model=copy.deepcopy(model), tokenizer=tokenizer)

    def zero(codes: Tensor, hook: Any) -> Tensor:
        codes[..., latents] = 0.0
        return codes

    def run() -> None:
        bridge.add_sae(theirs, use_error_term=True)
        try:
            bridge.run_with_hooks(ids, fwd_hooks=[(bridge.get_sae_hook_name(theirs), zero)])
        finally:
            bridge.reset_saes()

    return {"TransformerLens bridge, plain": lambda: bridge(ids), "SAELens on the bridge, relu": run}


def inside(model: LlamaForCausalLM, peers: bool) -> dict[str, Callable[[], object]]:
    ids = torch.randint(3, 32_000, (16, 128), generator=torch.Generator().manual_seed(0))
    lm = ll.load(model, cache=False)
    states = lm.activations(ids[:4], sites=f"resid_post[{BLOCK}]")[f"resid_post[{BLOCK}]"]
    latents = list(range(0, LATENTS, LATENTS // EDITED))[:EDITED]
    saes = {kind: make_sae(kind, states) for kind in ("relu", "jumprelu", "gated", "topk")}

    def plain() -> None:
        model(ids, use_cache=False)

    def steered(*plan: Any) -> Callable[[], None]:
        def run() -> None:
            with lm.steer(*plan):
                model(ids, use_cache=False)

        return run

    arms: dict[str, Callable[[], object]] = {"plain forward (floor)": plain}
    arms |= {f"{kind}, ablate 32": steered(ablate(sae, latents)) for kind, sae in saes.items()}
    arms["topk, add to 32"] = steered(EditLatents(saes["topk"], add=dict.fromkeys(latents, 4.0)))
    each = [[ablate(saes["relu"], range(32 * i, 32 * i + 32))] for i in range(16)]
    arms["relu, 32 other latents in each of 16 rows"] = steered(each)
    if peers:
        theirs = theirs_of(saes["relu"])

        def hooked() -> None:
            handle = lm.layout.blocks[BLOCK].register_forward_hook(spliced(theirs, latents))
            try:
                model(ids, use_cache=False)
            finally:
                handle.remove()

        arms["torch hook with SAELens' encode and decode, relu"] = hooked
        try:
            arms |= bridge_arms(model, theirs, ids, latents)
        except Exception as error:
            print(f"SAELens on the bridge does not run here: {type(error).__name__}: {error}")
    return arms


def alone(model: LlamaForCausalLM, peers: bool) -> dict[str, Callable[[], object]]:
    lm = ll.load(model, cache=False)
    ids = torch.randint(3, 32_000, (16, 128), generator=torch.Generator().manual_seed(0))
    states = lm.activations(ids, sites=f"resid_post[{BLOCK}]")[f"resid_post[{BLOCK}]"]
    latents = list(range(0, LATENTS, LATENTS // EDITED))[:EDITED]
    saes = {kind: make_sae(kind, states) for kind in ("relu", "jumprelu", "gated", "topk")}
    relu = saes["relu"]
    arms: dict[str, Callable[[], object]] = {"one encoding, matrix product (floor)": lambda: states @ relu.W_enc}
    arms |= {f"{kind}, encode": lambda sae=sae: sae.encode(states) for kind, sae in saes.items()}
    arms["jumprelu, encode 32 latents"] = lambda: saes["jumprelu"].encode(states, latents)
    for kind, sae in saes.items():
        edit = EditLatents.stacked([ablate(sae, latents)])
        arms[f"{kind}, ablate 32"] = lambda edit=edit: edit(states, None, None)
    dense = relu.encode(states)
    codes = Codes.from_dense(dense)
    print(f"{codes.l0:.1f} of {LATENTS} latents active per state (relu)")
    arms["decode, dense"] = lambda: relu.decode(dense)
    arms["decode, active latents only"] = lambda: relu.decode_sparse(codes)
    if peers:
        for kind in ("relu", "jumprelu", "topk"):
            theirs = theirs_of(saes[kind])
            arms[f"SAELens, encode ({kind})"] = lambda theirs=theirs: theirs.encode(states)
        hook = spliced(theirs_of(relu), latents)
        arms["SAELens, ablate 32 with the error term (relu)"] = lambda: hook(None, None, states)
    return arms


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    with torch.no_grad():
        work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    title: str, arms: dict[str, Callable[[], object]], targets: dict[str, float], rounds: int
) -> dict[str, Any]:
    names, took = list(arms), {name: [] for name in arms}
    for name in names:
        timed(arms[name])  # kernels, allocators, and what is copied or stacked once
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            floor = timed(arms[names[0]])
            took[name].append((floor, timed(arms[name])))
    print(f"{title}\n{'':<52}{'CPU ratio':>10}{'wall ratio':>12}{'CPU s':>9}   target")
    rows = {}
    for name in names:
        cpu, wall = (statistics.median(arm[i] / floor[i] for floor, arm in took[name]) for i in (0, 1))
        seconds = statistics.median(arm[0] for _, arm in took[name])
        goal = f"<= {targets[name]}" if name in targets else ""
        print(f"{name:<52}{cpu:>10.3f}{wall:>12.3f}{seconds:>9.3f}   {goal}", flush=True)
        rows[name] = {"cpu_ratio": cpu, "wall_ratio": wall, "cpu_seconds": seconds, "target": targets.get(name)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true", help="without SAELens")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    model, rounds = make_model(), 2 if args.quick else args.rounds
    with torch.no_grad():
        tables = {
            "inside": measure("inside the model", inside(model, not args.no_peers), INSIDE_TARGETS, rounds),
            "alone": measure("by itself", alone(model, not args.no_peers), ALONE_TARGETS, rounds),
        }
    of_dense = tables["alone"]["decode, active latents only"]["cpu_seconds"]
    of_dense /= tables["alone"]["decode, dense"]["cpu_seconds"]
    print(f"decoding through the active latents only: {of_dense:.4f} of a dense decoding (target <= {DECODE_TARGET})")
    facts = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": args.threads,
    }
    out = Path(__file__).parent / "results" / "sae.json"
    out.parent.mkdir(exist_ok=True)
    found = {"facts": facts, "rounds": rounds, "sparse_of_dense_decode": of_dense, **tables}
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
