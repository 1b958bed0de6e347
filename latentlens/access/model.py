"""LensModel: the one door to a model. Four verbs (tokens, logits, activations, generate) and `check`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.cache import ActivationCache
from latentlens.access.capture import NonFinite, Outcome, Plan, capture, forecast_bytes, select
from latentlens.access.forecast import Forecast, available_memory, forecast
from latentlens.access.forward import check_plan
from latentlens.access.generate import Decoding, Request, generate
from latentlens.access.identity import Identity, context_digest, package_versions
from latentlens.access.layout import Layout, SiteSpec
from latentlens.access.loading import Loaded, Quantization, load_model, new_cache
from latentlens.access.progress import Progress
from latentlens.access.tokens import RowReader, Truncate
from latentlens.errors import BadInput, CheckFailed, TooLarge, WhereNotValid
from latentlens.values.activations import LABELS, Activations
from latentlens.values.interventions import as_plan, plan_fingerprint
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site
from latentlens.values.where import resolve

if TYPE_CHECKING:
    from latentlens.access.check import CheckReport


def load(
    model: Any = None,
    *,
    revision: str | None = None,
    dtype: Any = None,
    quantization: Quantization = None,
    device_map: Any = None,
    tokenizer: Any = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
    cache: ActivationCache | str | Path | bool = True,
    check: bool = False,
) -> LensModel:
    """Open a causal language model.

    Args:
        model: nothing for the embedded organism, a Hugging Face hub id, a local folder, or a model object, which
            is used as it is (nothing is wrapped, nothing enters its state dict; only `eval()` is called).
        revision: branch, tag or commit on the hub.
        dtype: "float32", "bfloat16", "float16" or a torch.dtype; the checkpoint's own by default.
        quantization: "int8" or "nf4" (bitsandbytes).
        device_map: as in transformers; by default the accelerator if there is one, else the CPU.
        tokenizer: a tokenizer, or where to find one; the model's own by default.
        attn: attention implementation ("sdpa", "eager", "flash_attention_2").
        trust_remote_code: allow Python code that comes with the model to run.
        cache: True for the shared activation cache in the user's cache folder, False for none, a folder, or
            an ActivationCache (`readonly=True` reads from a folder that cannot be written).
        check: run the parity self-test and raise CheckFailed if it does not pass.
    Raises: BadInput, UnsupportedArchitecture, UnsafeFile, CompiledModel, WeightsCorrupt, CheckFailed, CacheReadOnly.

    >>> lm = load()
    >>> acts = lm.activations("the cat", sites="resid_post[*]", where="last")
    """
    if isinstance(cache, (str, Path)):
        cache = ActivationCache(cache)
    elif cache is True:
        cache = ActivationCache()
    if cache and not cache.readonly:
        cache.ensure_writable()  # better now than after minutes of loading and computing
    name = None
    if model is None:
        from latentlens import organism

        model, name = organism.path(), "organism"
    loaded = load_model(
        model,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        device_map=device_map,
        tokenizer=tokenizer,
        attn=attn,
        trust_remote_code=trust_remote_code,
    )
    lm = LensModel(loaded, cache or None, name=name)
    if check:
        report = lm.check()
        if not report.passed:
            raise CheckFailed(f"the parity self-test of {lm.name} failed:\n{report}")
    return lm


class LensModel:
    """A Hugging Face causal language model with a lens on it. Made by `ll.load`.

    Attributes:
        model, tokenizer: the Hugging Face objects, untouched.
        layout: where the sites are. cache: the activation cache, or None.
        token_budget: padded tokens per forward pass; raise it on large accelerators.
    """

    def __init__(self, loaded: Loaded, cache: ActivationCache | None, *, name: str | None = None) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.name = name or loaded.name
        self.layout = Layout(loaded.model)
        self.cache = cache
        self.quantization = loaded.quantization
        self.trust_remote_code = loaded.trust_remote_code
        on_cpu = all(p.device.type in ("cpu", "meta") for p in loaded.model.parameters())
        self.token_budget = 4096 if on_cpu else 32768
        self._reader = RowReader(loaded.tokenizer, self.layout.vocab_size, self.layout.max_positions)
        self._identity = Identity(loaded.model, loaded.source, loaded.quantization)
        self._new_cache = new_cache(loaded.model)

    # -- the verbs ------------------------------------------------------------------------------------

    def tokens(self, inputs: Any, *, truncate: Truncate = None) -> list[TokenRow]:
        """Labelled token rows exactly as the model would read them.

        Args: inputs: a text, a chat, token ids, rollouts, or a list or dataset column of these.
        Raises: BadInput, NoChatTemplate, ContextTooLong.
        """
        return self._reader.rows(inputs, truncate=truncate)

    def logits(self, inputs: Any, *, where: Any = "last", steer: Any = None, truncate: Truncate = None) -> Tensor:
        """The model's own next-token logits (softcapping and scaling included), float32, (n_rows, vocab).

        The unembedding is applied to the selected positions only.
        """
        acts = self.activations(inputs, sites="logits", where=where, steer=steer, truncate=truncate, cached=False)
        return acts["logits"].float()

    def activations(
        self,
        inputs: Any,
        sites: SiteSpec = "resid_post[*]",
        where: Any = "all",
        pool: Any = None,
        *,
        steer: Any = None,
        truncate: Truncate = None,
        max_gib: float | None = None,
        cached: bool = True,
        nonfinite: NonFinite = "raise",
    ) -> Activations:
        """Values at sites for selected positions, each row labelled, read from the cache where it has them.

        Nothing that was not asked for is computed: the pass stops after the deepest block, skips the
        unembedding, and pools on the device.

        Args:
            inputs: a text, a chat, token ids, rollouts, or a list or dataset column of these. A chat that ends
                with the user gets the header of the answer, as for `generate`, so "last" is where the answer begins.
            sites: e.g. "resid_post[*]", "mlp_out[8:16]", ["z[3]", "final_norm"], "blocks.5.hook_resid_post",
                "model.layers.5", or a block index.
            where: positions in the unpadded row: "last", "prompt", "response", "all", "mean" (all, averaged), ...
            pool: None (one row a position), "last", "mean", "span", or ("segments", k). Means are float32.
            steer: interventions in force; sites are read after the edits made there.
            truncate: "left" or "right" to cut rows that exceed the context instead of raising.
            max_gib: ceiling on the size of the result; half of the free memory by default.
            cached: False neither reads nor writes the cache.
            nonfinite: what to do with rows that hold NaN or infinity: "raise", "skip" them, or "flag" them in a
                label `finite`. Their number stands in `about["nonfinite"]`; they are never stored.
        Raises: SiteNotFound, WhereNotValid, BadInput, ContextTooLong, TooLarge, OutOfMemory,
            NonFiniteActivations, HookNeverFired, CacheError.
        """
        if nonfinite not in ("raise", "skip", "flag"):
            raise BadInput(f"nonfinite={nonfinite!r}: allowed are 'raise', 'skip' and 'flag'")
        plan = self._plan(inputs, sites, where, pool, steer, truncate)
        cache = self.cache if cached else None
        self._refuse_too_large(plan, max_gib)
        context = self._identity.context(plan_fingerprint(plan.steer), hash_weights=cache is not None)
        outcome = capture(
            self.layout,
            plan,
            cache,
            context,
            token_budget=self.token_budget,
            progress=lambda total: Progress("capture", total, "tok"),
            nonfinite=nonfinite,
        )
        values = {site: self._shaped(site, outcome.values[site]) for site in plan.sites}
        labels = self._labels(plan)
        if nonfinite == "raise":
            return Activations(values, labels, self._about(context, outcome))
        finite = torch.stack([value.isfinite().flatten(1).all(1) for value in values.values()]).all(0).numpy()
        acts = Activations(values, {**labels, "finite": finite}, self._about(context, outcome))
        return acts.rows(finite) if nonfinite == "skip" else acts

    def forecast(
        self, inputs: Any, sites: SiteSpec = "resid_post[*]", where: Any = "all", pool: Any = None, **options: Any
    ) -> Forecast:
        """Bytes, seconds and peak memory that `activations` with the same arguments would take."""
        plan = self._plan(inputs, sites, where, pool, options.get("steer"), options.get("truncate"))
        return forecast(self.layout, plan, self.token_budget)

    def generate(
        self,
        prompts: Any,
        max_new_tokens: int = 64,
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        steer: Any = None,
        *,
        stop_ids: Sequence[int] | None = None,
        truncate: Truncate = None,
    ) -> Rollouts:
        """Continue prompts, KV-cached and batched; `samples` continuations of each.

        A row depends on its own prompt, `seed` and sample index only, whatever else is in the batch, and two runs
        that differ only in `steer` share their randomness (they are paired).

        Args:
            temperature: 0 is greedy (every sample is then the same).
            steer: interventions, applied in the given order.
            stop_ids: token ids that end a row; the model's end-of-text tokens by default.
        Raises: BadInput, ContextTooLong, OutOfMemory, HookNeverFired.
        """
        if max_new_tokens < 1 or samples < 1:
            raise BadInput(f"max_new_tokens={max_new_tokens} and samples={samples} must be at least 1")
        if not temperature >= 0:
            raise BadInput(f"temperature={temperature} must be 0 (greedy) or more")
        plan = as_plan(steer)
        check_plan(self.layout, plan)
        rows = self._reader.rows(prompts, truncate=truncate, continue_last=True, room=max_new_tokens)
        requests = [Request(row, seed, sample) for row in rows for sample in range(samples)]
        stops = frozenset(self._stop_ids() if stop_ids is None else stop_ids)
        keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        how = Decoding(max_new_tokens, temperature, stops, self.token_budget, self._new_cache, keep)
        with Progress("generate", len(requests) * max_new_tokens, "tok") as bar:
            texts = generate(self.layout, requests, plan, how, bar.update)
        items = []
        for i, (request, ids) in enumerate(zip(requests, texts, strict=True)):
            finish = "eos" if ids and ids[-1] in stops else "length"
            prompt = request.row.text or self._reader.decode(request.row.ids)
            text = self._reader.decode(ids)
            items.append(
                Rollout(prompt, request.row, ids, text, i // samples, request.sample, seed, temperature, plan, finish)
            )
        return Rollouts(tuple(items), {"model": self.name, "weights": self._identity.known_weights()})

    def check(self, texts: Sequence[str] | None = None) -> CheckReport:
        """Parity self-test: padded = single, cached = full, sdpa = eager, hook = recorded output.

        Returns: a table with a number, a tolerance and pass or fail for each.
        """
        from latentlens.access.check import check

        return check(self, texts)

    # -- what the verbs share -----------------------------------------------------------------------

    def _plan(self, inputs: Any, sites: SiteSpec, where: Any, pool: Any, steer: Any, truncate: Truncate) -> Plan:
        if isinstance(where, str) and where == "mean":
            if pool not in (None, "mean"):
                raise BadInput(f"where='mean' already pools; it does not go with pool={pool!r}")
            where, pool = "all", "mean"
        plan = as_plan(steer)
        check_plan(self.layout, plan)
        found = self.layout.sites(sites)
        rows = self._reader.rows(inputs, truncate=truncate)
        try:
            positions = resolve(where, rows)
        except WhereNotValid as error:
            raise WhereNotValid(f"{error} (of {len(rows)} rows)") from None
        kind, selections = select(positions, rows, pool)
        return Plan(tuple(rows), tuple(found), tuple(selections), kind, plan)

    def _refuse_too_large(self, plan: Plan, max_gib: float | None) -> None:
        size = forecast_bytes(plan, self.layout)
        ceiling = available_memory() // 2 if max_gib is None else int(max_gib * 2**30)
        if size > ceiling:
            limit = f"max_gib={max_gib:g}" if max_gib is not None else "half of the free memory"
            raise TooLarge(
                f"this capture would hold {size / 2**30:.3g} GiB, more than {limit} "
                f"({ceiling / 2**30:.3g} GiB). Ask for fewer sites or positions, pool=, or raise max_gib."
            )

    def _shaped(self, site: Site, value: Tensor) -> Tensor:
        heads = self.layout.heads(site.block) if site.point == "z" and site.block is not None else None
        return value if heads is None else value.unflatten(-1, heads)

    def _labels(self, plan: Plan) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {name: [] for name in LABELS}
        for i, (row, chosen) in enumerate(zip(plan.rows, plan.selections, strict=True)):
            if plan.pool:
                first = np.array([s.positions[0] for s in chosen])
                last = np.array([s.positions[-1] for s in chosen])
            else:
                first = last = np.concatenate([np.array(s.positions) for s in chosen])
            columns["text"].append(np.full(len(first), i))
            columns["position"].append(first)
            columns["stop"].append(last + 1)
            columns["token_id"].append(np.array(row.ids)[last])
            columns["role"].append(np.array(row.role, dtype=object)[last])
            columns["turn"].append(np.array(row.turn)[last])
            columns["generated"].append(last >= row.n_prompt)
            columns["special"].append(np.array(row.special)[last])
        labels = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
        labels["token"] = np.array(self._reader.decode_each(labels["token_id"].tolist()), dtype=object)
        return {name: labels[name] for name in LABELS}

    def _about(self, context: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        return {
            "model": self.name,
            "n_blocks": self.layout.n_blocks,
            "context": context,
            "context_digest": context_digest(context),
            "forwards": outcome.forwards,
            "computed_rows": outcome.computed_rows,
            "cached_rows": outcome.cached_rows,
            "nonfinite": {str(site): n for site, n in outcome.nonfinite.items()},
            "trust_remote_code": self.trust_remote_code,
            "seconds": outcome.seconds,
            "versions": package_versions(),
        }

    def _stop_ids(self) -> list[int]:
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        found = set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return sorted(found)

    # -- shown to people ----------------------------------------------------------------------------

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.model.parameters())

    def __repr__(self) -> str:
        layout, dtype = self.layout, next(iter(self.model.parameters())).dtype
        size = f"{self.n_parameters / 1e9:.2f}B" if self.n_parameters > 5e8 else f"{self.n_parameters / 1e6:.2f}M"
        about = [f"{layout.n_blocks} blocks", f"d={layout.d_model}", f"{size} weights"]
        about.append(str(dtype).removeprefix("torch."))
        if self.quantization:
            about.append(self.quantization)
        kind = type(self.model).__name__
        return f"LensModel({self.name}: {kind}, {', '.join(about)}; blocks at {layout.blocks_path})"

    def _repr_html_(self) -> str:
        sites = "".join(
            f"<tr><td>{escape(point)}</td><td style='text-align:left'><code>{escape(module)}</code></td></tr>"
            for point, module in self.layout.table()
        )
        head = "<tr><th>site</th><th>module</th></tr>"
        return f"<div><code>{escape(repr(self))}</code><table>{head}{sites}</table></div>"
