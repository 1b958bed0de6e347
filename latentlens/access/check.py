"""The parity self-test: is what latentlens reads and writes on this model what the model really does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentlens.access.forward import gather, read
from latentlens.access.generation.generate import Decoding, Request, generate
from latentlens.access.hooks import Tap, hooked
from latentlens.values.markup import Shown, table
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.access.model import LensModel

# Relative drift allowed, measured against the largest value: rounding of one dtype through a whole model.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 0.06, torch.float16: 0.02}
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Finding:
    """One comparison: the largest relative difference, what is allowed, and whether it passed.

    value is NaN where the comparison does not apply to this model; the note says why.
    """

    name: str
    value: float
    allowed: float
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class CheckReport(Shown):
    """The findings of `lm.check()`; true when all passed."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(f.passed for f in self.findings)

    def __bool__(self) -> bool:
        return self.passed

    def to_frame(self) -> pd.DataFrame:
        """One row a comparison."""
        import pandas as pd

        return pd.DataFrame([vars(f) for f in self.findings])

    def __str__(self) -> str:
        lines = [f"check of {self.model}: {'passed' if self.passed else 'FAILED'}"]
        for f in self.findings:
            lines.append(f"  {'ok  ' if f.passed else 'FAIL'} {f.name:<46} {f.value:9.2e} <= {f.allowed:.0e}  {f.note}")
        return "\n".join(lines)

    __repr__ = __str__

    def _html_parts(self) -> tuple[Any, ...]:
        shown = [
            {
                "": f.passed,
                "comparison": f.name,
                "found": f"{f.value:.2e}",
                "allowed": f"{f.allowed:.0e}",
                "note": f.note,
            }
            for f in self.findings
        ]
        return (table(shown, None),)


def check(lm: LensModel, texts: Sequence[str] | None = None) -> CheckReport:
    """Compare latentlens with the plain model on a few rows of different lengths.

    1. hook = recorded block output: our capture of a padded batch against each row run alone, unpadded, through
       the plain model with nothing but torch hooks that record.
    2. padded = single: next-token logits of a left-padded batch against each row alone.
    3. cached = full: greedy tokens of a cached, batched decode against a full recomputation of each row.
    4. sdpa = eager: block outputs under both attention implementations.

    Args: texts: at least two of different lengths; by default token ids from the middle of the vocabulary.
    """
    rows = lm.tokens(list(texts)) if texts is not None else _rows(lm)
    dtype = next(p.dtype for p in lm.model.parameters() if p.dtype.is_floating_point)
    allowed = _TOLERANCE.get(dtype, 0.06) if lm.quantization is None else 0.1
    findings = [
        _hooks(lm, rows, allowed),
        _padding(lm, rows, allowed),
        _cached(lm, rows, allowed),
        _attention(lm, rows, allowed),
    ]
    return CheckReport(lm.name, tuple(findings))


def _rows(lm: LensModel) -> list[TokenRow]:
    """Four rows of 3 to 33 ids, away from the special tokens that sit at the ends of a vocabulary.

    33 = 1 mod 32 is the padded width at which fully masked rows have corrupted sdpa prefills.
    """
    vocab = lm.layout.vocab_size
    longest = min(33, (lm.layout.max_positions or 64) - _NEW_TOKENS)
    ids = [vocab // 4 + (i * 7) % max(vocab // 2, 1) for i in range(longest)]
    return [TokenRow.plain(tuple(ids[:n])) for n in sorted({3, 7, max(longest // 2, 1), longest})]


def _hooks(lm: LensModel, rows: Sequence[TokenRow], allowed: float) -> Finding:
    layout = lm.layout
    sites = [Site("resid_post", b) for b in range(layout.n_blocks)]
    ours = read(layout, rows, sites, lambda w: gather(w, [[range(len(r))] for r in rows], False))
    worst, at = 0.0, 0
    for row in rows:
        plain = _recorded(lm, row)
        for site, theirs in zip(sites, plain, strict=True):
            worst = max(worst, _relative(ours[site][at : at + len(row)], theirs))
        at += len(row)
    return Finding("hook on a padded batch = recorded block output", worst, allowed, worst <= allowed)


def _padding(lm: LensModel, rows: Sequence[TokenRow], allowed: float) -> Finding:
    layout, device = lm.layout, lm.layout.device
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row.ids)
        mask[i, width - len(row) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if layout.accepts_position_ids:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    with torch.no_grad():
        padded = lm.model(**inputs).logits[:, -1]
        alone = torch.cat([_plain(lm, row)[:, -1] for row in rows])
    worst = _relative(padded, alone)
    return Finding("left-padded batch = single rows (logits)", worst, allowed, worst <= allowed)


def _cached(lm: LensModel, rows: Sequence[TokenRow], rounding: float) -> Finding:
    """Share of greedy tokens that differ, counting only those that rounding cannot turn over.

    A token counts when the two highest logits are further apart than twice the rounding allowed elsewhere.
    """
    name = "cached batched decode = full recomputation (tokens)"
    how = Decoding(_NEW_TOKENS, 0.0, frozenset(), lm.token_budget, lm._new_cache)
    texts = generate(lm.layout, [Request(row, 0, 0) for row in rows], how)
    wrong = total = 0
    for row, text in zip(rows, texts, strict=True):
        logits = _plain(lm, TokenRow.plain(row.ids + text))[0, len(row) - 1 : -1].float()
        top = logits.topk(2, -1)
        margin = (top.values[:, 0] - top.values[:, 1]) / logits.abs().amax(-1).clamp(min=1e-9)
        sure = margin > 2 * rounding
        differ = top.indices[:, 0].cpu() != torch.tensor(text)
        wrong += int((differ & sure.cpu()).sum())
        total += int(sure.sum())
    note = f"{total} tokens of {len(rows) * _NEW_TOKENS} with a clear winner"
    return Finding(name, wrong / max(total, 1), 0.0, wrong == 0, note)


def _attention(lm: LensModel, rows: Sequence[TokenRow], allowed: float) -> Finding:
    name = "sdpa = eager (block outputs)"
    model: Any = lm.model
    now = getattr(model.config, "_attn_implementation", None)
    if now not in ("sdpa", "eager") or not hasattr(model, "set_attn_implementation"):
        return Finding(name, float("nan"), allowed, True, f"not compared: attention is {now}")
    if not getattr(lm.model, "_supports_sdpa", False):
        return Finding(name, float("nan"), allowed, True, "not compared: the model has no sdpa attention")
    other = "eager" if now == "sdpa" else "sdpa"
    mine = [_recorded(lm, row) for row in rows]
    try:
        model.set_attn_implementation(other)
        theirs = [_recorded(lm, row) for row in rows]
    finally:
        model.set_attn_implementation(now)
    worst = max(_relative(a, b) for x, y in zip(mine, theirs, strict=True) for a, b in zip(x, y, strict=True))
    note = "no difference at all: this model may choose its attention when it is built" if worst == 0 else ""
    return Finding(name, worst, allowed, worst <= allowed, note)


def _recorded(lm: LensModel, row: TokenRow) -> list[Tensor]:
    """Every block's output for one row alone, each (token, d): the reference."""
    got: list[Tensor] = []
    calls = [
        (Tap(block, "out", path), lambda states: got.append(states[0].clone()))
        for block, path in zip(lm.layout.blocks, lm.layout.block_paths, strict=True)
    ]
    with hooked(calls):
        _plain(lm, row)
    return got


def _plain(lm: LensModel, row: TokenRow) -> Tensor:
    """Logits (1, token, vocab) of the plain model for one row, with nothing passed but its tokens."""
    ids = torch.tensor([row.ids], device=lm.layout.device)
    with torch.no_grad():
        return lm.model(input_ids=ids, use_cache=False).logits


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float().to(a.device)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
