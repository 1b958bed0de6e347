"""LensModel: the one door to a model. Four verbs (tokens, logits, activations, generate) and `check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.capture import NonFinite, Outcome, Plan, capture, forecast_bytes, select
from latentlens.access.editing.plans import prepare, prepare_all
from latentlens.access.editing.steering import in_force, own_forward, steering
from latentlens.access.forecast import Forecast, available_memory, forecast
from latentlens.access.generation.generate import Request
from latentlens.access.generation.runs import decoding, run
from latentlens.access.identity import Identity, context_digest, package_versions
from latentlens.access.labels import labels_of
from latentlens.access.layout import Layout, SiteSpec
from latentlens.access.loading import Loaded, Quantization, load_model, new_cache
from latentlens.access.progress import Progress
from latentlens.access.reference import TEXTS, median_norm, sentence_ends
from latentlens.access.store.cache import ActivationCache
from latentlens.access.tokens import RowReader, Truncate
from latentlens.errors import BadInput, CheckFailed, TooLarge, WhereNotValid
from latentlens.values.activations import Activations
from latentlens.values.interventions import Plan as Steered
from latentlens.values.interventions import as_plans, has_plan_per_row
from latentlens.values.markup import Shown, table
from latentlens.values.rollouts import Keep, Record, Rollouts
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site
from latentlens.values.where import resolve

if TYPE_CHECKING:
    from latentlens.access.check import CheckReport
    from latentlens.values.codes import Codes
    from latentlens.values.layer_lens import LayerLens
    from latentlens.values.mediation import Mediation, Patched
    from latentlens.values.sae import SAE
    from latentlens.views.panel.panel import Panel


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


class LensModel(Shown):
    """A Hugging Face causal language model with a lens on it. Made by `ll.load`.

    Attributes:
        model, tokenizer: the Hugging Face objects, untouched.
        layout: where the sites are. cache: the activation cache, or None.
        token_budget: padded tokens per forward pass; raise it on large accelerators.
        reference_texts: texts on which `median_norm` measures the size of states.
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
        self.reference_texts: Any = list(TEXTS) if name is None else _organism_texts()
        self._norms: dict[Any, float] = {}
        self._ends: frozenset[int] | None = None

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
            steer: interventions in force: one plan for all rows, or a list with one plan per row. Sites are read
                after the edits made there.
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
        context = self._identity.context(hash_weights=cache is not None)
        with own_forward(self.layout):
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

    def latents(self, sae: SAE, inputs: Any, where: Any = "all", **options: Any) -> Codes:
        """Codes of an SAE at its own site, one labelled row per selected token, through the cache and kept sparse.

        Args: sae: from `ll.load_sae`. inputs, where, options: as for `activations`.
        Raises: what `activations` raises.
        """
        from latentlens.access.saes.sae import encode

        return encode(self, sae, inputs, where, **options)

    def logit_lens(self, inputs: Any, sites: Any = ("resid_pre[0]", "resid_post[*]"), **options: Any) -> LayerLens:
        """What the model would say next if it stopped after each block: its own final norm and unembedding, everywhere.

        Args: inputs, sites, options: as for `access.logit_lens.logit_lens` (`where`, `k`, `watch`, `steer`, ...).
        """
        from latentlens.access.logit_lens import logit_lens

        return logit_lens(self, inputs, sites, **options)

    def explore(self, text: Any, **options: Any) -> Panel:
        """A panel in a notebook: the text as tokens, what each holds, and sliders that change what is written next.

        Args: text, options: as for `views.panel.panel.explore` (`directions`, `sae`, `length`, `chat`, ...).
        """
        from latentlens.views.panel.panel import explore  # the one step up: people look for it here

        return explore(self, text, **options)

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
        record: Any = None,
        stop_ids: Sequence[int] | None = None,
        truncate: Truncate = None,
        allow_idle: bool = False,
        keep: Keep | None = None,
    ) -> Rollouts:
        """Continue prompts, KV-cached and batched; `samples` continuations of each.

        A row depends on its own prompt, plan, `seed` and sample index only, whatever else is in the batch, and two
        runs that differ only in `steer` share their randomness (they are paired).

        Args:
            temperature: 0 is greedy (every sample is then the same).
            steer: one plan (an intervention or a list, applied in order) for all prompts, or a list with one plan
                (None, an intervention or a list) per prompt: [[a], [b, c], None]. They run in one batch.
            record: sites, or a `Record`, to read while the text is written; see `Rollouts.readings`.
            stop_ids: token ids that end a row; the model's end-of-text tokens by default.
            allow_idle: do not raise when an intervention never acts.
            keep: an `ll.Keep`: a question asked while texts are written, which stops some; the others stay the same.
        Raises: BadInput, ContextTooLong, OutOfMemory, HookNeverFired.
        """
        if max_new_tokens < 1 or samples < 1:
            raise BadInput(f"max_new_tokens={max_new_tokens} and samples={samples} must be at least 1")
        if not temperature >= 0:
            raise BadInput(f"temperature={temperature} must be 0 (greedy) or more")
        rows = self._reader.rows(prompts, truncate=truncate, continue_last=True, room=max_new_tokens)
        given, ready = self._steered(steer, len(rows))
        requests = [Request(row, seed, n, plan) for row, plan in zip(rows, ready, strict=True) for n in range(samples)]
        how = decoding(self, max_new_tokens, temperature, stop_ids, allow_idle)
        prompt = [i for i in range(len(rows)) for _ in range(samples)]
        return run(self, requests, prompt, [given[i] for i in prompt], how, Record.of(record), keep=keep)

    def patch(self, mediators: Any, clean: Any, corrupt: Any, metric: Any, **options: Any) -> Patched:
        """The metric of prompts run with parts of their state as in another prompt: `access.patching.patch`.

        Args: mediators: sites, Directions, probes, (sae, latent) or `ll.Mediator`s. clean, corrupt: prompts in pairs.
            metric: a pair (right, wrong) of tokens, an `ll.LogitDifference`, or a function of logits. options: `mode`,
            `method`, `align`, `direct`, `controls`, ...
        """
        from latentlens.access.patching.patching import patch

        return patch(self, mediators, clean, corrupt, metric, **options)

    def indirect_effect(self, mediators: Any, clean: Any, corrupt: Any, metric: Any, **options: Any) -> Mediation:
        """What directions, latents, probes, heads or sites carry of an effect, with intervals and controls.

            lm.indirect_effect(probe, true_statements, false_statements, ("True", "False"), groups=creatures)

        Args: as for `patch`; further options: `groups`, `least`, `level`, `seed`.
        """
        from latentlens.access.patching.patching import indirect_effect

        return indirect_effect(self, mediators, clean, corrupt, metric, **options)

    @contextmanager
    def steer(self, *plan: Any, prompt_width: int | None = None, allow_idle: bool = False) -> Iterator[LensModel]:
        """Edit every forward of the model inside the `with`, whoever runs it.

            with lm.steer(ll.Add(direction, 2.0)):
                lm.model.generate(**inputs)             # transformers, a pipeline, your own loop
                lm.activations(texts)                   # and our verbs, which add their own steer= after it

        Left and right padding, beams, several sequences per prompt, static caches, prefill in chunks and no cache at
        all are followed; single tokens after the prompt count as generated.

        Args:
            plan: interventions; or one list with a plan per prompt of the batch.
            prompt_width: columns of the prompt, when your own code reads it in chunks.
            allow_idle: do not raise when an intervention never acts.
        Raises: BadInput, SiteNotFound, HookNeverFired, CompiledModel.
        """
        given = plan[0] if len(plan) == 1 else plan
        plans = as_plans(given, len(given) if has_plan_per_row(given) else 1)
        ready = prepare_all(plans, self._ready)
        with steering(
            self.layout,
            ready,
            special_ids=self._reader.special_ids,
            prompt_width=prompt_width,
            allow_idle=allow_idle,
        ):
            yield self

    def median_norm(self, site: Any) -> float:
        """Median norm of the states at a site over the content tokens of `reference_texts`: the unit of unit="norm".

        Read through the cache; special tokens, whose norms are often a hundred times larger, are left out.
        """
        (found,) = self.layout.sites(site)
        if found not in self._norms:
            self._norms[found] = median_norm(self, found)
        return self._norms[found]

    def check(self, texts: Sequence[str] | None = None) -> CheckReport:
        """Parity self-test: padded = single, cached = full, sdpa = eager, hook = recorded output.

        Returns: a table with a number, a tolerance and pass or fail for each.
        """
        from latentlens.access.check import check

        return check(self, texts)

    def to_transformer_lens(self) -> Any:
        """A TransformerLens `TransformerBridge` over a copy of the model, with equal activations under its site names.

        Raises: BadInput: transformer_lens is not installed, or the model is quantised or offloaded. CheckFailed.
        """
        from latentlens.access.transformer_lens import to_transformer_lens

        return to_transformer_lens(self)

    # -- what the verbs share -----------------------------------------------------------------------

    def _plan(self, inputs: Any, sites: SiteSpec, where: Any, pool: Any, steer: Any, truncate: Truncate) -> Plan:
        if isinstance(where, str) and where == "mean":
            if pool not in (None, "mean"):
                raise BadInput(f"where='mean' already pools; it does not go with pool={pool!r}")
            where, pool = "all", "mean"
        found = self.layout.sites(sites)
        rows = self._reader.rows(inputs, truncate=truncate)
        _, plans = self._steered(steer, len(rows))
        try:
            positions = resolve(where, rows)
        except WhereNotValid as error:
            raise WhereNotValid(f"{error} (of {len(rows)} rows)") from None
        kind, selections = select(positions, rows, pool)
        return Plan(tuple(rows), tuple(found), tuple(selections), kind, tuple(plans) if any(plans) else ())

    def _steered(self, steer: Any, n_rows: int) -> tuple[list[Steered], list[Steered]]:
        """The plan of every row, those of surrounding `steer`s first: as given, and made ready for this model."""
        given = as_plans(steer, n_rows)
        ready = prepare_all(given, self._ready)
        for around in reversed(in_force(self.model)):
            if n_rows % len(around):
                raise BadInput(f"the surrounding steer has {len(around)} plans, this call {n_rows} rows")
            each = n_rows // len(around)
            ready = [(*around[i // each], *plan) for i, plan in enumerate(ready)]
        return given, ready

    def _ready(self, plan: Steered) -> Steered:
        return prepare(self.layout, plan, self.median_norm, self._sentence_ends)

    def _sentence_ends(self) -> frozenset[int]:
        if self._ends is None:
            self._ends = sentence_ends(self.tokenizer, self.layout.vocab_size)
        return self._ends

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
        first, last = [], []
        for chosen in plan.selections:
            positions = [s.positions for s in chosen] if plan.pool else [(p,) for s in chosen for p in s.positions]
            first.append(np.array([p[0] for p in positions]))
            last.append(np.array([p[-1] for p in positions]))
        return labels_of(self._reader, plan.rows, first, last)

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

    # -- shown to people ----------------------------------------------------------------------------

    @property
    def context(self) -> dict[str, Any]:
        """What the cache knows the model by: class, weights (digest, or hub id and commit), dtype, attention, ..."""
        return self._identity.context()

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

    def _html_parts(self) -> tuple[Any, ...]:
        return (table([{"site": point, "module": module} for point, module in self.layout.table()], None),)


def _organism_texts() -> list[Any]:
    """Chats of the embedded model's own kind: it knows no other words."""
    from latentlens.organism.corpus import FAMILIES, draw

    return [text.messages() or text.text for family in FAMILIES for text in draw(family, 12, 0)]
