"""Fine-tuning on masked rows: all weights of a small model, or low-rank adapters (peft) of a large one.

tuned = tune(lm, rows, epochs=4, lora=Lora(), folder="runs/tuned")
tuned.lm.generate(...)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from latentlens.access.identity import context_digest
from latentlens.access.model import load
from latentlens.access.progress import Progress
from latentlens.access.quantisation import unpacked
from latentlens.errors import BadInput
from latentlens.values.masked_rows import IGNORED, MaskedRow

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_RECORD = "tuning.json"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on all linear layers but the unembedding. Source of the values: ESR (arXiv 2602.06941)."""

    rank: int = 32
    alpha: int = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class Tuned:
    """The tuned model, the training loss of every step, and that on held-out rows (NaN without any), nats a token."""

    lm: LensModel
    losses: tuple[float, ...]
    held_out: float

    def __repr__(self) -> str:
        losses = f"last loss {self.losses[-1]:.3f}, held out {self.held_out:.3f}"
        return f"Tuned({self.lm.name}: {len(self.losses)} steps, {losses})"

    def close(self) -> None:
        """Take the adapters out of a quantised model, which then is what it was; of other models there is a copy."""
        if self.lm.quantization and _has_adapters(self.lm.model):
            model: Any = self.lm.model
            model.unload()


def tune(
    lm: LensModel,
    rows: Sequence[MaskedRow],
    *,
    epochs: int = 4,
    batch: int = 8,
    lr: float = 2e-4,
    warmup: int = 10,
    lora: Lora | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    folder: str | Path | None = None,
    name: str = "",
) -> Tuned:
    """Fine-tune a copy of a model; AdamW, linear warm-up and cosine decay, gradients clipped at norm 1.

        loss = mean over learnt tokens of -log p(token | what comes before)

    Args:
        lm: left as it is, unless it is quantised: then its adapters are put into the model itself, until `close`.
            Adapters that a copy brings along are merged into it first.
        rows: what is learnt of each text.
        epochs, batch, lr, warmup: of the optimiser; batch in rows, warmup in steps.
        lora: adapters instead of all weights; needs peft (`pip install latentlens[finetune]`).
        held_out: share of the rows that are not trained on. seed: of order, dropout and adapters.
        folder: where the result is kept; the same call finds it there and trains nothing.
        name: of the tuned model.
    Raises: BadInput: fewer rows than two, all weights of a quantised model or one that has adapters already, or peft is
        not installed.
    """
    if len(rows) < 2 or epochs < 1 or batch < 1:
        raise BadInput(f"{len(rows)} rows (at least 2), epochs={epochs} and batch={batch} (at least 1)")
    if lm.quantization and lora is None:
        raise BadInput(f"the weights of a {lm.quantization} model cannot be trained: use lora=Lora()")
    if lm.quantization and _has_adapters(lm.model):
        raise BadInput(
            f"{lm.name} holds adapters already, and shares its weights with what was tuned: close() that first"
        )
    config = _config(lm, rows, epochs, batch, lr, warmup, lora, held_out, seed)
    place = Path(folder) if folder is not None else None
    if place is not None and (found := _kept(lm, place, config, lora, name)) is not None:
        return found
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    n_held = min(round(held_out * len(rows)), len(rows) - 1)
    tested, trained = [rows[i] for i in order[:n_held]], [rows[i] for i in order[n_held:]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _adapted(lm, lora)
        with _trainable(model, bool(lm.quantization)):
            losses = _train(model, trained, epochs, batch, lr, warmup, seed)
            with torch.no_grad():
                parts = [_loss(model, tested[i : i + batch]) for i in range(0, len(tested), batch)]
            tested_loss = sum(float(total) for total, _ in parts) / sum(n for _, n in parts) if parts else math.nan
            if place is not None:  # inside: asking bitsandbytes for a state dict unpacks its weights on a CPU
                place.mkdir(parents=True, exist_ok=True)
                model.save_pretrained(place)
                record = {"config": config, "losses": losses, "held_out": tested_loss}
                (place / _RECORD).write_text(json.dumps(record) + "\n")  # last: what lacks it is made again
    return Tuned(_opened(lm, model, name), tuple(losses), tested_loss)


def _train(
    model: Any, rows: Sequence[MaskedRow], epochs: int, batch: int, lr: float, warmup: int, seed: int
) -> list[float]:
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    steps = epochs * math.ceil(len(rows) / batch)
    rise = min(warmup, max(1, steps // 4))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    random, losses = torch.Generator().manual_seed(seed + 1), []
    model.train()
    try:
        with Progress("fine-tune", steps, "step") as bar:
            for _ in range(epochs):
                order = torch.randperm(len(rows), generator=random).tolist()
                for start in range(0, len(order), batch):
                    total, n = _loss(model, [rows[i] for i in order[start : start + batch]])
                    (total / n).backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimiser.step()
                    schedule.step()
                    optimiser.zero_grad()
                    losses.append(float(total.detach()) / n)
                    bar.update(1)
    finally:
        model.eval()
        for p in weights:
            p.grad = None
    return losses


def _loss(model: Any, rows: Sequence[MaskedRow]) -> tuple[Tensor, int]:
    """Summed negative log likelihood of the learnt tokens, and how many there are. Padded on the right."""
    width = max(len(row.ids) for row in rows)
    device = next(model.parameters()).device
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels, there = torch.full((len(rows), width), IGNORED), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], labels[i, :n], there[i, :n] = torch.tensor(row.ids), torch.tensor(row.labels), 1
    logits = model(input_ids=ids.to(device), attention_mask=there.to(device), use_cache=False).logits[:, :-1]
    wanted = labels[:, 1:].to(logits.device)
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total, int((wanted != IGNORED).sum())


def _adapted(lm: LensModel, lora: Lora | None) -> Any:
    """A copy whose weights can be trained; with adapters, only these can."""
    if lora is None:
        return _copied(lm).requires_grad_(True)
    peft = _peft()
    model = lm.model.requires_grad_(False) if lm.quantization else _copied(lm)
    how = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, how)


def _copied(lm: LensModel) -> Any:
    """A copy; adapters in it become part of its weights."""
    model: Any = copy.deepcopy(lm.model)
    return model.merge_and_unload() if _has_adapters(model) else model


def _has_adapters(model: Any) -> bool:
    return any(hasattr(module, "_disable_adapters") for module in model.modules())


@contextlib.contextmanager
def _trainable(model: Any, quantised: bool) -> Iterator[None]:
    """A quantised model is large: its activations are computed again on the way back instead of being kept."""
    if not quantised:
        yield
        return
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        with unpacked(model):
            yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


def _opened(lm: LensModel, model: Any, name: str) -> LensModel:
    model.requires_grad_(False)
    tuned = load(model, tokenizer=lm.tokenizer, cache=lm.cache or False)
    tuned.quantization, tuned.name = lm.quantization, name or f"{lm.name}, tuned"
    tuned.reference_texts, tuned.token_budget = lm.reference_texts, lm.token_budget
    return tuned


def _kept(lm: LensModel, place: Path, config: str, lora: Lora | None, name: str) -> Tuned | None:
    """What an earlier, finished call left in the folder; None for another call's or none."""
    try:
        record = json.loads((place / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    if record["config"] != config:
        return None
    if lora is not None:
        base = lm.model if lm.quantization else _copied(lm)
        with unpacked(base) if lm.quantization else contextlib.nullcontext():
            model = _peft().PeftModel.from_pretrained(base, str(place)).eval()
    else:
        kind: Any = type(lm.model)
        model = kind.from_pretrained(place, dtype=next(lm.model.parameters()).dtype)
        model = model.to(lm.layout.device).eval()
    return Tuned(_opened(lm, model, name), tuple(record["losses"]), float(record["held_out"]))


def _config(lm: LensModel, rows: Sequence[MaskedRow], *how: Any) -> str:
    texts = hashlib.sha256(repr([(row.ids, row.labels) for row in rows]).encode()).hexdigest()
    context = context_digest(lm._identity.context(hash_weights=True))
    settings = [asdict(one) if isinstance(one, Lora) else one for one in how]
    return hashlib.sha256(json.dumps([context, texts, settings]).encode()).hexdigest()


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise BadInput("adapters need peft: pip install 'latentlens[finetune]'") from None
    return peft
