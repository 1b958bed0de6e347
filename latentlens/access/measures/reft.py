"""ReFT-r1: one direction, trained so that adding it makes texts of a concept more likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.editing.steering import own_forward
from latentlens.access.measures.likelihood import answer_nll, answer_positions
from latentlens.access.progress import Progress
from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.rank_one import latents, rank_one_edit, split_top
from latentlens.values.directions import Direction
from latentlens.values.rows import TokenRow
from latentlens.values.where import resolve

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def train_reft(
    lm: LensModel,
    texts: Sequence[Any],
    site: Any,
    *,
    k: int = 8,
    epochs: int = 3,
    lr: float = 0.01,
    l1: float = 0.005,
    batch: int = 8,
    where: Any = "content",
    seed: int = 0,
    name: str = "",
) -> Direction:
    """Train a rank-one intervention on texts that show a concept.

        minimise mean NLL of the answers with h' = h + mean_top-k(max(h . w, 0)) w  +  ramp l1 sum_others max(h . w, 0)

    over unit vectors w by Adam; the ramp rises linearly from 0 to 1 over the steps. The latents of a text decide how
    much is added, so w must both read the concept and write it. The model's own weights stay as they are.

    Args:
        texts: chats that end with an answer that shows the concept, or rollouts.
        site: one site, e.g. "resid_post[4]".
        k: latents averaged.
        epochs, lr, batch: as published, but for batches (of 6 in AxBench).
        l1: weight of the latents that are not among the k largest; per text, summed over positions (ours: AxBench's own
            scaling of this term is not recoverable from the paper).
        where: positions that are read and edited. For what is decided where an answer begins, that position alone
            (`PerRow`, see `likelihood.answer_positions`).
        seed: of w and of the order.
        name: of the direction.

    Returns: a Direction of length the largest latent seen in `texts`, so that `Add(direction, f)` is AxBench's
        "f times the maximal activation"; `source` has the losses of the first and last epoch.
    Raises: TooFewExamples: fewer than two texts. BadInput: a text without an answer, several sites, or numbers that
        make no sense. SiteNotFound, HookNeverFired.
    Source: AxBench, Wu et al. (arXiv 2501.17148), section 4 and github.com/stanfordnlp/axbench.
    """
    rows = lm.tokens(list(texts))
    if len(rows) < 2:
        raise TooFewExamples(f"{len(rows)} text(s): give at least two")
    if epochs < 1 or batch < 1 or not lr > 0 or not l1 >= 0 or k < 1:
        raise BadInput(f"epochs={epochs}, batch={batch}, k={k} (at least 1), lr={lr} (above 0), l1={l1} (0 or more)")
    found = lm.layout.sites(site)
    if len(found) != 1:
        raise BadInput(f"{site!r} names {len(found)} sites: one direction is trained at one site")
    for row in rows:
        answer_positions(row)
    tap, positions = lm.layout.tap(found[0]), resolve(where, rows)
    rng = np.random.default_rng(seed)
    w = torch.randn(lm.layout.width(found[0]), generator=torch.Generator().manual_seed(seed))
    w = (w / w.norm()).to(lm.layout.device).requires_grad_()
    optimiser = torch.optim.Adam([w], lr=lr)
    n_batches = -(-len(rows) // batch)
    losses: list[float] = []
    largest = 0.0
    with own_forward(lm.layout), Progress("ReFT-r1", epochs * n_batches, "step") as bar:
        for epoch in range(epochs):
            order = rng.permutation(len(rows))
            total, largest = 0.0, 0.0
            for step, part in enumerate(np.array_split(order, n_batches)):
                ramp = (epoch * n_batches + step) / max(1, epochs * n_batches - 1)
                begins = epoch == step == 0
                edit = _Edit(w, k, [rows[i] for i in part], [positions[i] for i in part], choose_sign=begins)
                nll = answer_nll(lm.layout, [rows[i] for i in part], [(tap, edit)]).mean()
                (gradient,) = torch.autograd.grad(nll + ramp * l1 * edit.others.mean(), [w])
                w.grad = gradient - (gradient @ w.detach()) * w.detach()  # along the sphere
                optimiser.step()
                with torch.no_grad():
                    w /= w.norm()
                total += float(nll.detach()) * len(part)
                largest = max(largest, edit.largest)
                bar.update(1)
            losses.append(total / len(rows))
    if not largest > 0:
        raise BadInput(f"no state at {found[0]} points along the direction found: train longer, or at another site")
    about = {"method": "ReFT-r1", "k": k, "epochs": epochs, "lr": lr, "l1": l1, "seed": seed, "n": len(rows),
             "loss": [losses[0], losses[-1]], "largest latent": largest, "model": lm.name}  # fmt: skip
    return Direction(w.detach().cpu() * largest, found[0], name or "ReFT-r1", "raw", about)


class _Edit:
    """The intervention of one batch, which remembers what its latents were.

    choose_sign: first give w the sign with the larger latents: where they are all 0, w has no gradient and stays dead.
    """

    def __init__(
        self, w: Tensor, k: int, rows: Sequence[TokenRow], positions: Sequence[Sequence[int]], *, choose_sign: bool
    ) -> None:
        self.w, self.k, self.choose_sign = w, k, choose_sign
        self.mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool, device=w.device)
        for i, at in enumerate(positions):
            self.mask[i, list(at)] = True
        self.others, self.largest = torch.zeros(len(rows)), 0.0

    def __call__(self, states: Tensor) -> Tensor:
        h = states.float()
        if self.choose_sign:
            with torch.no_grad():
                one, other = (latents(h, sign * self.w, self.mask).sum() for sign in (1, -1))
                self.w *= 1 if one >= other else -1
        values = latents(h, self.w, self.mask)
        self.others = split_top(values, self.k)[1]
        self.largest = float(values.detach().max())
        return rank_one_edit(h, self.w, self.k, self.mask).to(states.dtype)
