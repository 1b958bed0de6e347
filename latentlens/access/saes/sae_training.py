"""Training an SAE on a model's activations: our capture and cache feed SAELens' own trainers."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from latentlens.access.saes.preflight import explained
from latentlens.access.saes.sae import load_sae
from latentlens.errors import BadInput
from latentlens.values.rows import TokenRow
from latentlens.values.sae import SAE
from latentlens.values.sites import Site
from latentlens.values.where import resolve

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

TrainedKind = Literal["topk", "batchtopk", "jumprelu"]

_TEXTS = 128  # captured at a time
_HELD_OUT = 0.02  # share of the texts kept out of training, to measure on
_NORM_BATCHES = 20
#: TransformerLens' names of our points, so that other tools find the site too.
_HOOKS = {"z": "attn.hook_z", "mlp_post": "mlp.hook_post"}


def train_sae(
    lm: LensModel,
    texts: Any,
    site: Any,
    kind: TrainedKind = "topk",
    d_sae: int = 1024,
    k: float = 16,
    *,
    tokens: int | None = None,
    batch: int = 1024,
    lr: float = 1e-3,
    seed: int = 0,
    where: Any = "content",
    out: str | Path | None = None,
    buffer: int = 1 << 19,
    cached: bool = True,
    device: Any = None,
    **options: Any,
) -> SAE:
    """Train an SAE on the states of texts with SAELens' trainer and save it in SAELens' format.

    Activations are captured through the cache and shuffled: all of them, if they are fewer than `buffer`, else the
    texts are read again each epoch, in another order, through a buffer of which half is used before it is refilled.
    Inputs are scaled to a mean norm of sqrt(d); the factor is folded into the weights at the end, so the SAE reads the
    model's own states. The learning rate rises over the first 2% of the steps and falls to 0 over the last 20%.

    Args:
        texts: anything `lm.tokens` reads; 2% of it is held out to measure on.
        site: one site, in any spelling.
        kind: "topk" (k latents per token), "batchtopk" (k on average; saved as JumpReLU with its threshold) or
            "jumprelu" (k on average, by SAELens' quadratic sparsity loss).
        d_sae, k: number of latents, and how many of them are active.
        tokens: activations to train on, repeats included; by default ten passes over the texts.
        batch, lr: activations per step, peak learning rate of Adam.
        seed: of the weights, the order and the held-out texts. The same seed gives the same SAE on one machine.
        where: positions trained on; special tokens are left out by default, as their states are unlike all others.
        out: folder to write (cfg.json, sae_weights.safetensors); SAELens and `load_sae` read it.
        buffer: activations held at once. cached: whether the capture reads and writes the activation cache.
        device: where to train; that of the model by default.
        options: further fields of SAELens' configuration of this kind (aux_loss_coefficient, ...).
    Returns: the SAE, as `load_sae` reads it from the folder. `about` holds explained variance and L0 on the held-out
        texts, the number of dead latents at the end of training, and the recipe.
    Raises: BadInput: unknown kind, fewer texts than two, fewer activations than a batch.
    """
    if kind not in ("topk", "batchtopk", "jumprelu"):
        raise BadInput(f"kind={kind!r}: allowed are 'topk', 'batchtopk' and 'jumprelu'")
    (at,) = _one(lm, site)
    rows = lm.tokens(texts, truncate="right")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    n_held = max(1, round(len(rows) * _HELD_OUT))
    held, trained = [rows[i] for i in order[:n_held]], [rows[i] for i in order[n_held:]]
    if not trained:
        raise BadInput(f"{len(rows)} texts are too few to train an SAE on")
    feed = _Feed(lm, trained, at, where, batch, buffer, seed, cached)
    wanted = tokens or 10 * feed.count
    if wanted < batch or feed.count < batch:
        raise BadInput(f"{feed.count} activations, {wanted} wanted in all: fewer than one batch of {batch}")
    config = _config(lm, at, kind, d_sae, k, rows, where, options)
    config["device"] = str(lm.layout.device if device is None else device)
    theirs = _fit(config, kind, feed, wanted, batch, lr, seed)
    recipe = {"texts": len(trained), "tokens": wanted, "batch": batch, "lr": lr, "seed": seed, "where": str(where)}
    recipe["texts_sha256"] = hashlib.sha256("".join(row.digest for row in trained).encode()).hexdigest()
    theirs.cfg.metadata.training = recipe
    states = _states(lm, held, at, where, cached)
    measured = load_sae(theirs)
    theirs.cfg.metadata.variance_explained = round(explained(measured, states), 4)
    theirs.cfg.metadata.l0 = round(measured.encode_sparse(states).l0, 2)
    if out is not None:
        theirs.save_inference_model(Path(out))
        return load_sae(out)
    with tempfile.TemporaryDirectory(prefix="latentlens-sae-") as folder:
        theirs.save_inference_model(Path(folder))
        found = load_sae(folder)
    return replace(found, about={key: value for key, value in found.about.items() if key != "release"})


def _one(lm: LensModel, site: Any) -> list[Site]:
    found = lm.layout.sites(site)
    if len(found) != 1:
        raise BadInput(f"an SAE is trained at one site; {site!r} names {len(found)}")
    return found


def _states(lm: LensModel, rows: Sequence[TokenRow], site: Site, where: Any, cached: bool) -> Tensor:
    """Float32 states (n, d) of texts."""
    return lm.activations(_kept(rows, where), sites=site, where=where, cached=cached)[site].flatten(1).float()


def _kept(rows: Sequence[TokenRow], where: Any) -> list[TokenRow]:
    """Rows in which there is something to read."""
    return [row for row in rows if where != "content" or not all(row.special)]


class _Feed:
    """Endless shuffled batches of states (batch, d): SAELens calls it a data provider."""

    def __init__(
        self,
        lm: LensModel,
        rows: Sequence[TokenRow],
        site: Site,
        where: Any,
        batch: int,
        buffer: int,
        seed: int,
        cached: bool,
    ) -> None:
        self.lm, self.rows, self.site, self.where, self.cached = lm, rows, site, where, cached
        self.batch, self.buffer = batch, max(buffer, 2 * batch)
        self._draw = torch.Generator().manual_seed(seed)
        self.count = sum(map(len, resolve(where, _kept(rows, where))))
        self._batches = self._whole() if self.count <= self.buffer else self._streamed()

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Tensor:
        return next(self._batches)

    def _whole(self) -> Iterator[Tensor]:
        """All activations are held; each epoch is another permutation of them."""
        states = torch.cat(list(self._captured()))
        while True:
            yield from self._shuffled(states)[0]

    def _streamed(self) -> Iterator[Tensor]:
        """A buffer is filled, shuffled, half used, and filled again; it goes on from epoch to epoch."""
        held: list[Tensor] = []
        size = 0
        while True:
            for states in self._captured():
                held.append(states)
                size += len(states)
                if size >= self.buffer:
                    batches, rest = self._shuffled(torch.cat(held), share=0.5)
                    yield from batches
                    held, size = [rest], len(rest)

    def _captured(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.rows), generator=self._draw).tolist()
        for start in range(0, len(order), _TEXTS):
            yield _states(
                self.lm, [self.rows[i] for i in order[start : start + _TEXTS]], self.site, self.where, self.cached
            )

    def _shuffled(self, states: Tensor, share: float = 1.0) -> tuple[list[Tensor], Tensor]:
        """Whole batches of shuffled states, from a share of them, and what is left over."""
        order = torch.randperm(len(states), generator=self._draw)
        n = int(len(states) * share) // self.batch
        used = [states[order[i * self.batch : (i + 1) * self.batch]] for i in range(n)]
        return used, states[order[n * self.batch :]]


def _config(
    lm: LensModel,
    site: Site,
    kind: str,
    d_sae: int,
    k: float,
    rows: Sequence[TokenRow],
    where: Any,
    options: dict[str, Any],
) -> dict[str, Any]:
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    tap = lm.layout.tap(site)
    metadata = {
        "model_name": lm.name,
        "hook_name": _hook(site),
        "hf_hook_name": f"{tap.name}.{'input' if tap.side == 'in' else 'output'}",
        "prepend_bos": bos is not None and all(row.ids[0] == bos for row in rows),
        "exclude_special_tokens": where == "content",
        "context_size": max(map(len, rows)),
    }
    sparsity: dict[str, Any] = {"k": k if kind == "batchtopk" else int(k)}
    if kind == "jumprelu":
        # inputs have the norm sqrt(d), so codes are of the order of 1: thresholds start there and can move from there
        sparsity = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(k), "l0_coefficient": 1.0}
        sparsity |= {"jumprelu_bandwidth": 2.0, "jumprelu_init_threshold": 1.0, "jumprelu_ste_to_input": True}
    size = {"d_in": lm.layout.width(site), "d_sae": d_sae, "normalize_activations": "expected_average_only_in"}
    return {"architecture": kind, **size, **sparsity, **options, "metadata": metadata}


def _hook(site: Site) -> str:
    if site.block is None:
        return {"final_norm": "ln_final.hook_out", "logits": "unembed.hook_out"}[site.point]
    return f"blocks.{site.block}.{_HOOKS.get(site.point, f'hook_{site.point}')}"


def _fit(config: dict[str, Any], kind: str, feed: _Feed, tokens: int, batch: int, lr: float, seed: int) -> Any:
    """SAELens' trainer over the feed; its randomness is that of the seed, and the global generator is left alone."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    sae_class, config_class = get_sae_training_class(kind)
    steps = tokens // batch
    how = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=lr,
        device=config["device"],
        lr_end=lr / 10,
        lr_warm_up_steps=max(1, steps // 50),
        lr_decay_steps=steps // 5,
        dead_feature_window=max(1, min(1000, steps // 10)),
        feature_sampling_window=max(1, steps // 2),
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=min(_NORM_BATCHES, steps),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theirs = sae_class(config_class.from_dict(config))
        trainer = SAETrainer(how, theirs, feed)
        theirs = trainer.fit()
    theirs.cfg.metadata.num_dead_features = int(trainer.dead_neurons.sum())
    return theirs
