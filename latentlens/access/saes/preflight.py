"""Does this SAE belong to this model, at this site? Asked before any result is made with it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from latentlens.errors import SAEMismatch, SiteNotFound
from latentlens.values.markup import Shown, table
from latentlens.values.rows import TokenRow
from latentlens.values.sae import SAE
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.access.model import LensModel


Verdict = Literal["ok", "warn", "FAIL"]

_TEXTS = 200
_SCANNED, _MUCH_WORK = 1000, 2e12  # tokens for the comparison of blocks; floating-point operations for all of them
_POOR, _FAR_FROM_CLAIM = 0.3, 0.15  # explained variance: poor at all; below what was claimed
# Another block, scale or centring fits better if it leaves less than this share of the unexplained, and clearly so.
_BETTER, _CLEARLY = 0.75, 0.005


@dataclass(frozen=True)
class Finding:
    """One question with its answer."""

    name: str
    verdict: Verdict
    note: str


@dataclass(frozen=True)
class Preflight(Shown):
    """What `preflight` found; true when nothing failed.

    explained: 1 - sum |x - xhat|^2 / sum |x - mean(x)|^2 over tokens (1 - FVU). l0: active latents per token.
    dead: share of latents that fired for none of `n_tokens`; with few tokens most latents of a large SAE are silent.
    by_site: explained variance at the site and at the others that were tried, on the same thousand tokens.
    """

    sae: str
    model: str
    findings: tuple[Finding, ...]
    explained: float = math.nan
    l0: float = math.nan
    dead: float = math.nan
    n_tokens: int = 0
    by_site: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(f.verdict != "FAIL" for f in self.findings)

    @property
    def fvu(self) -> float:
        """Fraction of variance that the SAE leaves unexplained."""
        return 1.0 - self.explained

    def __bool__(self) -> bool:
        return self.passed

    def to_frame(self) -> pd.DataFrame:
        """One row a finding."""
        import pandas as pd

        return pd.DataFrame([vars(f) for f in self.findings])

    def __str__(self) -> str:
        head = f"preflight of {self.sae} on {self.model}: {'passed' if self.passed else 'FAILED'}"
        return "\n".join([head, *(f"  {f.verdict:<4} {f.name:<16} {f.note}" for f in self.findings)])

    __repr__ = __str__

    def _html_parts(self) -> tuple[Any, ...]:
        return (table([{"": f.verdict, "what": f.name, "note": f.note} for f in self.findings], None),)


def preflight(lm: LensModel, sae: SAE, texts: Any = None, *, site: Any = None, strict: bool = True) -> Preflight:
    """Check that an SAE fits a model, and measure what it explains there.

    Its base model, site and width; whether its texts began with BOS and what it does with special tokens; its
    normalisation; then explained variance, L0 and dead share on the content tokens of ~200 texts, against its own
    claims. The same SAE is tried at the other blocks (the neighbours where all of them are much work), with and without
    recentring, and with rescaled inputs: where one of these leaves clearly less unexplained, the SAE is misplaced.
    Residual streams one block apart can be so alike that this ends in a warning.

    Args:
        texts: by default `lm.reference_texts`. A few hundred of the kind that the SAE was trained on are better.
        site: where it is going to be used, if not at its own site. An SAE that is meant for another block than it was
            trained on will fail here: read the report with strict=False.
        strict: raise if anything fails.
    Raises: SAEMismatch: strict, and something failed; the message is the whole report.
    """
    sae = sae if site is None else replace(sae, site=lm.layout.sites(site)[0])
    findings = [_model(lm, sae)]
    placed = _placed(lm, sae)
    findings.append(placed)
    if placed.verdict == "FAIL":
        return _report(lm, sae, findings, strict)
    rows, bos = _rows(lm, sae, lm.reference_texts if texts is None else texts)
    findings += [bos, _normalisation(sae)]
    here = _states(lm, rows, [sae.site])[sae.site]
    ev = explained(sae, here)
    by_site = _by_site(lm, sae, rows, everywhere=ev < _POOR)
    findings += [_explains(sae, ev, len(here)), _best_site(sae, by_site), *_frame(sae, here, ev)]
    codes = sae.encode_sparse(here)
    l0, dead = codes.l0, 1.0 - len(torch.unique(codes.indices)) / sae.d_sae
    findings += [_activity(sae, l0), _dead(sae, dead, len(here))]
    return _report(lm, sae, findings, strict, explained=ev, l0=l0, dead=dead, n_tokens=len(here), by_site=by_site)


def explained(sae: SAE, states: Tensor) -> float:
    """Share of the variance of states (n, d_in) that the SAE reconstructs: 1 - sum |x - xhat|^2 / sum |x - mean|^2."""
    total = left = 0.0
    states = states.float().flatten(1)
    mean = states.mean(0)
    for x in states.split(1024):
        left += float((x - sae.reconstruct(x.to(sae.device)).float().to(x.device)).square().sum())
        total += float((x - mean).square().sum())
    return 1.0 - left / total if total else math.nan


def _report(lm: LensModel, sae: SAE, findings: Sequence[Finding], strict: bool, **measured: Any) -> Preflight:
    report = Preflight(repr(sae), lm.name, tuple(findings), **measured)
    if strict and not report.passed:
        raise SAEMismatch(f"{report}\nstrict=False returns this report instead of raising.")
    return report


def _model(lm: LensModel, sae: SAE) -> Finding:
    wanted = str(sae.about.get("model_name") or "")
    if not wanted:
        return Finding("base model", "warn", "its configuration names no model; the weights cannot be compared")
    path = str(getattr(lm.model.config, "_name_or_path", "") or "")
    names = {_plain(name): name for name in (lm.name, path) if name and name != type(lm.model).__name__}
    if _plain(wanted) in names:
        return Finding("base model", "ok", f"{wanted}; whether the weights are the same cannot be told")
    if any(_plain(wanted) in name or name in _plain(wanted) for name in names if name):
        return Finding("base model", "warn", f"trained on {wanted}; this is {lm.name}, a variant of it by its name")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return Finding("base model", "FAIL", f"trained on {wanted}; this is {path}")
    return Finding("base model", "warn", f"trained on {wanted}; this is {lm.name}, which names no model of the hub")


def _plain(name: str) -> str:
    """A model's name without its owner, case and signs; TransformerLens calls gpt2 gpt2-small."""
    plain = re.sub(r"[^a-z0-9]", "", name.rstrip("/").split("/")[-1].lower())
    return "gpt2" if plain == "gpt2small" else plain


def _placed(lm: LensModel, sae: SAE) -> Finding:
    try:
        width = lm.layout.width(sae.site)
        module = repr(lm.layout.tap(sae.site))
    except SiteNotFound as error:
        return Finding("site", "FAIL", str(error))
    if width != sae.d_in:
        fits = [p for p in lm.layout.available() if p not in ("final_norm", "logits") and _width(lm, p) == sae.d_in]
        hint = (
            f" Points of width {sae.d_in} here: {', '.join(fits)}." if fits else " No point of this model is as wide."
        )
        return Finding("site", "FAIL", f"it reads {sae.d_in} numbers per token, {sae.site} has {width}.{hint}")
    return Finding("site", "ok", f"{sae.site} = {module}, width {width}")


def _width(lm: LensModel, point: str) -> int | None:
    try:
        return lm.layout.width(lm.layout.sites(f"{point}[*]")[0])
    except SiteNotFound:
        return None


def _rows(lm: LensModel, sae: SAE, texts: Any) -> tuple[list[TokenRow], Finding]:
    """The texts as the SAE was trained to see them: with or without BOS, cut to its context."""
    rows = lm.tokens(texts[:_TEXTS] if isinstance(texts, (list, tuple)) else texts, truncate="right")[:_TEXTS]
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    wanted = sae.about.get("prepend_bos")
    has = bos is not None and all(row.ids[0] == bos for row in rows)
    left_out = "special tokens are left out of every number here"
    if sae.about.get("exclude_special_tokens"):
        left_out += ", as they were in training: read and edit with where='content'"
    if wanted is None:
        note = f"not said whether its texts began with BOS; these {'do' if has else 'do not'}. {left_out}"
        found = Finding("BOS", "warn", note)
    elif wanted and not has and bos is not None:
        rows = [row if row.ids[0] == bos else _with_bos(row, bos) for row in rows]
        note = f"trained with BOS, which lm.tokens does not add here; added for this: do so in your texts. {left_out}"
        found = Finding("BOS", "warn", note)
    elif wanted and bos is None:
        found = Finding("BOS", "warn", f"trained with BOS, which this tokenizer does not have. {left_out}")
    elif not wanted and has:
        rows = [row.cut(slice(1, len(row))) if len(row) > 1 else row for row in rows]
        note = f"trained without BOS, which lm.tokens adds; left out here. Its codes on BOS mean nothing. {left_out}"
        found = Finding("BOS", "warn", note)
    else:
        found = Finding("BOS", "ok", f"texts begin {'with' if wanted else 'without'} BOS. {left_out}")
    context = sae.about.get("context_size")
    return [row.cut(slice(0, int(context))) if context else row for row in rows], found


def _with_bos(row: TokenRow, bos: int) -> TokenRow:
    one = TokenRow((bos,), 1, ("",), (-1,), (True,), row.text)
    return replace(
        row,
        ids=one.ids + row.ids,
        n_prompt=row.n_prompt + 1,
        role=one.role + row.role,
        turn=one.turn + row.turn,
        special=one.special + row.special,
    )


def _normalisation(sae: SAE) -> Finding:
    said = {
        "none": "none, or folded into the weights",
        "layer_norm": "layer_norm, of each input by itself; undone after decoding from the same input",
        "constant_norm_rescale": "each input gets the norm sqrt(d); undone after decoding from the same input",
    }[sae.normalisation]
    centred = "; inputs are recentred, as TransformerLens' centred weights would" if sae.centre else ""
    return Finding("normalisation", "ok", said + centred)


def _by_site(lm: LensModel, sae: SAE, rows: Sequence[TokenRow], everywhere: bool) -> dict[str, float]:
    """Explained variance at every block, on about a thousand tokens; at the neighbours only where that is much work."""
    site, blocks = sae.site, range(lm.layout.n_blocks)
    if site.block is None:
        return {}
    some, n = [], 0
    for row in rows:
        if n < _SCANNED:
            some.append(row)
            n += len(row) - sum(row.special)
    work = 4 * n * sae.d_in * sae.d_sae * len(blocks)
    if work > _MUCH_WORK and not everywhere:
        blocks = range(max(site.block - 1, 0), min(site.block + 2, len(blocks)))
    sites = [at for b in blocks if _same_width(lm, at := Site(site.point, b), site)]
    return {str(at): explained(sae, x) for at, x in _states(lm, some, sites).items()}


def _same_width(lm: LensModel, at: Site, site: Site) -> bool:
    try:
        return lm.layout.width(at) == lm.layout.width(site)
    except SiteNotFound:
        return False


def _states(lm: LensModel, rows: Sequence[TokenRow], sites: Sequence[Site]) -> dict[Site, Tensor]:
    kept = [row for row in rows if not all(row.special)]
    acts = lm.activations(kept, sites=list(sites), where="content")
    return {site: acts[site].flatten(1) for site in sites}


def _explains(sae: SAE, ev: float, n: int) -> Finding:
    claim = sae.about.get("variance_explained")
    said = f"{ev:.3f} of the variance of {n} tokens (FVU {1 - ev:.3f})" + (f"; claimed {claim:.3f}" if claim else "")
    if not ev > 0:
        return Finding("explains", "FAIL", f"{said}: worse than the mean state. Wrong model, site, scale or centring")
    if ev < _POOR or (claim and ev < claim - _FAR_FROM_CLAIM):
        return Finding("explains", "warn", f"{said}: little. The texts may be unlike those it was trained on")
    return Finding("explains", "ok", said)


def _best_site(sae: SAE, by_site: dict[str, float]) -> Finding:
    own = str(sae.site)
    others = {at: explains for at, explains in by_site.items() if at != own}
    if not others:
        return Finding("neighbours", "ok", "no other block of this width to compare with")
    best = max(others, key=others.__getitem__)
    said = ", ".join(f"{at} {explains:.3f}" for at, explains in by_site.items())
    if _fits_better(others[best], by_site[own]):
        return Finding("neighbours", "FAIL", f"{best} fits better than {own}: {said}. Pass site='{best}' to load_sae")
    if others[best] > by_site[own] + _CLEARLY / 5:
        return Finding("neighbours", "warn", f"{best} fits slightly better than {own}: {said}")
    return Finding("neighbours", "ok", f"{own} fits best: {said}")


def _frame(sae: SAE, states: Tensor, ev: float) -> list[Finding]:
    """Would it read these states better recentred, or at another scale?"""
    found = []
    flipped = explained(replace(sae, centre=not sae.centre), states)
    if _fits_better(flipped, ev):
        how = "without recentring (centre=False)" if sae.centre else "recentred (centre=True)"
        found.append(Finding("centring", "FAIL", f"explains {flipped:.3f} {how}: load it so"))
    if sae.normalisation == "none":
        factor = sae.d_in**0.5 / float(states.float().norm(dim=-1).mean())
        scaled = explained(sae, states.float() * factor)
        if _fits_better(scaled, ev):
            note = f"explains {scaled:.3f} of states scaled by {factor:.4g}: pass norm_scaling_factor={factor:.4g}"
            found.append(Finding("scale", "FAIL", f"its normalisation was never folded: {note} to load_sae"))
    return found or [Finding("frame", "ok", "neither recentring nor rescaling the states would fit better")]


def _fits_better(other: float, own: float) -> bool:
    return other > 0 and other > own + _CLEARLY and 1 - other < _BETTER * (1 - own)


def _activity(sae: SAE, l0: float) -> Finding:
    claim = sae.about.get("l0")
    said = f"{l0:.1f} latents per token" + (f"; claimed {claim:.1f}" if claim else "")
    if claim and not claim / 2 <= l0 <= claim * 2:
        return Finding("L0", "warn", f"{said}: more than a factor of two away")
    if l0 == 0:
        return Finding("L0", "FAIL", f"{said}: nothing fires")
    if l0 > sae.d_sae / 2:
        return Finding("L0", "warn", f"{said}: more than half of them, so nothing is sparse here")
    return Finding("L0", "ok", said)


def _dead(sae: SAE, dead: float, n: int) -> Finding:
    claim = sae.about.get("num_dead_features")
    said = f"{dead:.1%} of {sae.d_sae} latents fired for none of {n} tokens"
    said += f"; {claim / sae.d_sae:.1%} were dead after training" if claim is not None else ""
    return Finding("dead", "ok", said)
