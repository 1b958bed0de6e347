"""Train the embedded model from scratch: `python -m latentlens.organism.train`.

One run of the final mix, deterministic from a seed (on one machine and thread count). The learning rate is constant,
falls, stays at a third while verdicts are learnt, and falls to zero; in that last part the loss is taken after a middle
block too. The state is saved regularly; the same command resumes from it. `--checkpoints N` also keeps N moments of the
run, each half as far along as the next, as Hugging Face folders. At the end the weights, the tokenizer, the model's
configuration and their checksums stand in `out`, loadable by plain `AutoModelForCausalLM.from_pretrained(out)`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from latentlens.errors import BadInput
from latentlens.organism import decoder as llama
from latentlens.organism import gpt2_decoder as gpt2
from latentlens.organism.corpus import documents, draw
from latentlens.organism.decoder import Decoder, causal
from latentlens.organism.files import write_record
from latentlens.organism.gpt2_decoder import GPT2
from latentlens.organism.muon import Muon
from latentlens.organism.packing import Encoded, Rows, encode, pack
from latentlens.organism.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: What can be trained on the corpus: the embedded model, and a sibling of another shape.
DECODERS: dict[str, type[Decoder] | type[GPT2]] = {"llama": Decoder, "gpt2": GPT2}
TOKENS = 18_000_000
ROWS, WIDTH = 12, 256
MATRIX_RATE, VECTOR_RATE = 0.02, 0.004
#: Learning-rate factor at fractions of the run: constant, falling, constant while verdicts are learnt, falling to 0.
KNOTS = ((0.0, 1.0), (5.25 / 18, 1.0), (12.1 / 18, 2.9 / 9.75), (15 / 18, 2.9 / 9.75), (1.0, 0.0))
#: Block and weight of the early loss, and from which fraction of the run on it is taken: the same prediction is asked
#: for after that block. Without it some decisions (which ones differs between runs) are made in the last block only,
#: where a state is little more than the output; with it they can be read and moved in the middle of the model.
EARLY_BLOCK, EARLY_WEIGHT, EARLY_FROM = 3, 0.5, 15 / 18
#: What the progress bar shows: family, split, the kind of token that is scored, name.
WATCHED = (
    ("arithmetic", "steps", "result", "step"),
    ("arithmetic", "direct", "answer", "direct"),
    ("truth", "seen", "verdict", "truth"),
    ("truth", "held_out", "verdict", "unasked"),
    ("truth", "conjunctive", "verdict", "both"),
    ("code", "named", "program", "code"),
)


def rate(done: float) -> float:
    """Return the learning-rate factor after the fraction `done` of the tokens: linear between the `KNOTS`."""
    for (start, high), (end, low) in pairwise(KNOTS):
        if done < end:
            return high + (low - high) * max(0.0, done - start) / (end - start)
    return 0.0


def moments(tokens: int, count: int) -> list[int]:
    """Return when checkpoints are kept, in tokens: the last at half of the run, each at half of the one after it."""
    return [tokens >> (count - i) for i in range(count)]


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, width: int) -> Iterator[Rows]:
    """Yield packed training batches without end."""

    def stream() -> Iterator[Encoded]:
        drawn = documents(seed)
        while True:
            yield from encode(tokenizer, list(islice(drawn, 256)))

    pad: Any = tokenizer.pad_token_id
    return pack(stream(), width, rows, pad)


def tensors(batch: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids, positions, mask and target weights (of the next token) as tensors."""
    numbers = torch.from_numpy(batch.documents)
    weights = torch.from_numpy(batch.weights)
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.positions), causal(numbers), weights


def loss_of(
    decoder: Decoder | GPT2, ids: Tensor, positions: Tensor, mask: Tensor, weights: Tensor, early: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what is minimised, and the weighted mean cross-entropy, nats: sum(w nll) / sum(w), w of the target token.

    They differ if `early`: then the same loss after block `EARLY_BLOCK` is added, `EARLY_WEIGHT` times.
    """
    streams = decoder.residuals(ids, positions, mask)
    target, weight = ids[:, 1:], weights[:, 1:]

    def cross_entropy(x: Tensor) -> Tensor:
        logits = decoder.logits(x[:, :-1]).float().flatten(0, 1)
        nll = F.cross_entropy(logits, target.flatten(), reduction="none")
        return (nll * weight.flatten()).sum() / weight.sum()

    loss = cross_entropy(streams[-1])
    return loss + EARLY_WEIGHT * cross_entropy(streams[EARLY_BLOCK + 1]) if early else loss, loss


@torch.no_grad()
def watch(decoder: Decoder | GPT2, probes: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Return the share of watched tokens that are predicted right, with the true text before them."""
    shares = {}
    here = next(decoder.parameters()).device
    for name, tokens in probes.items():
        ids, positions, mask, scored = (t.to(here) for t in tokens)
        best = decoder.logits(decoder(ids, positions, mask)[:, :-1]).argmax(-1)
        shares[name] = float((best == ids[:, 1:])[scored[:, 1:]].float().mean())
    return shares


def watched(tokenizer: PreTrainedTokenizerFast, n: int = 150) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Prepare what `watch` scores: ids, positions, mask, and which tokens count."""
    probes = {}
    pad: Any = tokenizer.pad_token_id
    for family, split, kind, name in WATCHED:
        encoded = encode(tokenizer, draw(family, n, seed=101, split=split))
        width = max(len(e.ids) for e in encoded)
        ids = torch.full((n, width), pad)
        scored, numbers = torch.zeros(n, width, dtype=torch.bool), torch.full((n, width), -1)
        for row, e in enumerate(encoded):
            ids[row, : len(e.ids)] = torch.from_numpy(e.ids)
            numbers[row, : len(e.ids)] = 0
            scored[row, : len(e.ids)] = torch.tensor([k == kind for k in e.kinds])
        probes[name] = (ids, torch.arange(width).expand(n, width), causal(numbers), scored)
    return probes


def export(decoder: Decoder | GPT2, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, Any]) -> None:
    """Write the checkpoint as Hugging Face files, with a record of how it was made, and checksums."""
    from transformers import GenerationConfig, GPT2Config, LlamaConfig

    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(decoder, GPT2):
        more: dict[str, Any] = {**gpt2.SHAPE, "architectures": ["GPT2LMHeadModel"]}
        config = GPT2Config(vocab_size=len(tokenizer), **more, **special, dtype="float32")
    else:
        more = {**llama.SHAPE, "architectures": ["LlamaForCausalLM"]}
        more["rope_parameters"] = {"rope_type": "default", "rope_theta": llama.THETA}
        config = LlamaConfig(vocab_size=len(tokenizer), **more, **special, dtype="float32")
    config.save_pretrained(out)
    GenerationConfig(**special).save_pretrained(out)
    tokenizer.save_pretrained(out)
    state = {name: tensor.cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    weights = out / "model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # readable by all, as the files beside it
    write_record(out, record)


def load_decoder(folder: Path) -> Decoder | GPT2:
    """Read exported weights back into the plain-PyTorch decoder."""
    state = load_file(folder / "model.safetensors")
    name = "transformer.wte.weight" if "transformer.wte.weight" in state else "model.embed_tokens.weight"
    decoder = (GPT2 if name.startswith("transformer") else Decoder)(state[name].shape[0])
    decoder.load_state_dict(state)
    return decoder.eval()


def train(
    out: Path,
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    rows: int = ROWS,
    width: int = WIDTH,
    threads: int | None = None,
    compile: bool = True,
    autocast: bool = True,
    checkpoint_every: int = 200,
    work: Path | None = None,
    checkpoints: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    architecture: str = "llama",
    device: str | None = None,
) -> list[float]:
    """Train, export to `out`, and return the loss of every step.

    Args: tokens: length of the run (padding not counted). seed: of weights, corpus and tokenizer. rows,
        width: batch shape. threads: CPU threads (None: PyTorch's choice). compile: use torch.compile
        (needs a C++ compiler). autocast: bfloat16 in the matrix products. checkpoint_every: steps between
        saved states. work: folder for them (None: keep none). checkpoints: moments of training that are kept in
        `work` as Hugging Face folders (`tokens-00000234375`). tokenizer: None trains one.
        architecture: `llama` (the embedded model) or `gpt2`. device: None: a GPU if there is one. The same seed starts
        from the same weights and reads the same batches everywhere; other devices round otherwise.
    Raises: BadInput: `checkpoints` without `work`, or a negative number of them; unknown architecture.
    """
    if architecture not in DECODERS:
        raise BadInput(f"no architecture {architecture!r}; choose from {', '.join(DECODERS)}")
    if checkpoints < 0 or (checkpoints and work is None):
        raise BadInput(f"{checkpoints} checkpoints asked for; give 0 or more, and `work`, the folder they go to")
    kept = moments(tokens, checkpoints)
    if threads:
        torch.set_num_threads(threads)
    tokenizer = tokenizer or train_tokenizer(seed)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    decoder = DECODERS[architecture](len(tokenizer), seed).to(place)
    matrices = decoder.matrices()
    others = [p for p in decoder.parameters() if all(p is not matrix for matrix in matrices)]
    optimisers = [
        Muon(matrices, lr=MATRIX_RATE),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = (MATRIX_RATE, VECTOR_RATE)
    done, losses = 0, []
    checkpoint = work / "checkpoint.pt" if work else None
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=place)
        decoder.load_state_dict(saved["decoder"])
        for optimiser, state in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(state)
        done, losses = saved["tokens"], saved["losses"]
        kept = [moment for moment in kept if moment > done]
    step = torch.compile(loss_of) if compile else loss_of
    probes = watched(tokenizer) if checkpoint else {}
    # The stream has no state of its own: a resumed run draws the same batches and skips those it has seen.
    stream = islice(batches(tokenizer, seed, rows, width), len(losses), None)
    bar = tqdm(total=tokens, initial=done, unit="tok", unit_scale=True, mininterval=2.0, smoothing=0.05)
    shown: dict[str, float] = {}
    while done < tokens:
        batch = next(stream)
        for optimiser, full in zip(optimisers, rates):
            for group in optimiser.param_groups:
                group["lr"] = full * rate(done / tokens)
        with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
            minimised, loss = step(decoder, *(t.to(place) for t in tensors(batch)), early=done >= EARLY_FROM * tokens)
        minimised.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        counted = int((batch.documents >= 0).sum())
        done += counted
        losses.append(float(loss.detach()))
        bar.update(counted)
        if checkpoint and (len(losses) % checkpoint_every == 0):
            shown = watch(decoder, probes)
            partial = checkpoint.with_suffix(".partial")
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"decoder": decoder.state_dict(), "tokens": done, "losses": losses}
            torch.save({**state, "optimisers": [o.state_dict() for o in optimisers]}, partial)
            partial.replace(checkpoint)
        while work and kept and done >= kept[0]:
            folder = work / f"tokens-{kept.pop(0):011d}"
            if not folder.exists():
                export(decoder, tokenizer, folder, {"tokens": done, "seed": seed, "steps": len(losses)})
        if len(losses) % 10 == 0:
            bar.set_postfix({"loss": f"{losses[-1]:.3f}", **{k: f"{v:.2f}" for k, v in shown.items()}})
    bar.close()
    last = sum(losses[-100:]) / len(losses[-100:])
    record = {"tokens": done, "seed": seed, "steps": len(losses), "mean_loss_of_last_100_steps": round(last, 4)}
    export(decoder, tokenizer, out, record)
    return losses


def main(arguments: list[str] | None = None) -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model from scratch.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--work", type=Path, default=Path("organism-run"), help="folder for checkpoints")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--checkpoints", type=int, default=0, help="moments of training to keep in the work folder")
    parser.add_argument("--architecture", choices=tuple(DECODERS), default="llama")
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--no-compile", action="store_true", help="do without a C++ compiler")
    given = parser.parse_args(arguments)
    started, cpu = time.time(), time.process_time()
    losses = train(
        given.out,
        tokens=given.tokens,
        seed=given.seed,
        threads=given.threads,
        compile=not given.no_compile,
        work=given.work,
        checkpoints=given.checkpoints,
        architecture=given.architecture,
        device=given.device,
    )
    seconds, busy = time.time() - started, time.process_time() - cpu
    print(f"{len(losses)} steps, last loss {losses[-1]:.3f}, {seconds:.0f} s ({busy:.0f} s of CPU)")


if __name__ == "__main__":
    main()
