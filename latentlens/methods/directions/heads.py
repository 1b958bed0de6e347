"""ITI: which attention heads know it, in which direction, and by how much they vary along it.

acts = lm.activations(chats, sites="z[*]", where="last")
heads = head_directions(acts, labels, groups=questions)
lm.generate(prompts, steer=heads.plan(alpha=15, k=48))      # z_h + alpha sigma_h theta_h

The site is the INPUT of the attention's output projection, where heads are still apart; its output mixes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.grouped_splits import shuffled, split_by_group
from latentlens.maths.moments import ClassMoments
from latentlens.maths.readouts import logistic, without_rounding
from latentlens.values.activations import Activations
from latentlens.values.head_directions import HeadDirections
from latentlens.values.labelled_rows import group_codes
from latentlens.values.results import Estimate
from latentlens.values.sites import Site
from latentlens.values.state_rows import row_labels, state_rows, two_sides

Theta = Literal["mean difference", "probe"]


class HeadMoments:
    """Fitter of head directions that keeps no row: mean differences and spreads of every head, chosen by separation.

    Held-out accuracy needs the rows: `head_directions` has it.
    """

    def __init__(self, *, positive: Hashable = None) -> None:
        self.positive = positive
        self._seen: dict[Site, ClassMoments] = {}
        self._model = ""

    def update(self, acts: Activations, labels: Any) -> Self:
        """Take activations at sites `z[...]` with one label a row; one piece may hold one class only.

        Raises: BadInput: other sites than `z`, other sites or widths than before. NonFiniteActivations.
        """
        named = row_labels(labels, len(acts))
        sites = _z_sites(acts)
        if self._seen and list(self._seen) != sites:
            raise BadInput(
                f"sites {list(map(str, sites))} after {list(map(str, self._seen))}: give the same every time"
            )
        for site in sites:
            rows = state_rows(acts, site, heads=True)
            self._model = rows.model
            seen = self._seen.setdefault(site, ClassMoments(rows.values.shape[1:], scatter=True))
            seen.add(rows.values, named)
        return self

    def finish(self) -> HeadDirections:
        """Directions and spreads of all rows taken so far.

        Raises: TooFewExamples: no rows, one class. BadInput: more than two classes and no `positive`.
        """
        if not self._seen:
            raise TooFewExamples("no rows were taken: call update(acts, labels) first")
        parts = [_difference(seen, self.positive) for seen in self._seen.values()]
        theta = torch.stack([_unit(difference) for difference, _ in parts])
        sigma = torch.stack([_spread(seen.total().covariance, t) for seen, t in zip(self._seen.values(), theta)])
        within = [_spread(seen.inside, t) for seen, t in zip(self._seen.values(), theta)]
        sizes = torch.stack([difference.norm(dim=-1) for difference, _ in parts])
        separation = torch.where(sizes > 0, sizes / torch.stack(within).clamp_min(1e-12), torch.zeros_like(sizes))
        about = {"method": "ITI, mean difference", "n": parts[0][1], "model": self._model}
        return HeadDirections(
            tuple(self._seen), theta.float(), sigma.float(), separation.numpy(), "separation", about=about
        )


def head_directions(
    acts: Activations,
    labels: Any,
    *,
    groups: Sequence[Any] | None = None,
    theta: Theta = "mean difference",
    positive: Hashable = None,
    C: float = 1.0,
    test_share: float = 0.3,
    n_controls: int = 20,
    seed: int = 0,
) -> HeadDirections:
    """Probe every head, and find its direction and spread.

        accuracy_h   of a logistic probe on held-out groups: what heads are chosen by
        theta_h      = unit(mean(z_h | positive) - mean(z_h | negative)), or the unit normal of the probe
        sigma_h      = std over ALL rows of z_h . theta_h
        steer:       z_h <- z_h + alpha sigma_h theta_h

    Sigma is a spread of projections, not of the states' norms. The probe is fitted on the training side; theta and
    sigma use all rows, as published. The best of hundreds of heads is good by luck as well: `best_of_shuffled` says how
    good.

    Args:
        acts: activations at sites `z[...]`, one row a label (the last token of question and answer in the paper).
        labels: as `mean_difference`.
        groups: (n,) what must not be on both sides of the split: the question. Default: the text.
        theta: the paper's "mean difference" (mass mean shift), or "probe".
        positive: as `mean_difference`.
        C: inverse strength of the probe's penalty.
        test_share: of the groups held out.
        n_controls: draws of shuffled labels; 0 for none.
        seed: of the split and the shuffles.

    Returns: HeadDirections.
    Raises: BadInput: other sites than `z`, blocks with different heads, labels. TooFewExamples: one class, too few
        groups. NonFiniteActivations.
    Source: ITI, Li et al. (arXiv 2306.03341).
    """
    if theta not in ("mean difference", "probe"):
        raise BadInput(f"theta={theta!r}: allowed are 'mean difference' and 'probe'")
    sites, named = _z_sites(acts), row_labels(labels, len(acts))
    yes, _ = two_sides(list(dict.fromkeys(named)), positive)
    y = np.array([label in yes for label in named])
    group = group_codes("groups", groups if groups is not None else acts.labels.get("text"), len(acts))
    split_seed, null_seed = np.random.SeedSequence(seed).generate_state(2)
    split = split_by_group(y, group, test_share, np.random.default_rng(split_seed))
    rng = np.random.default_rng(null_seed)
    labellings = [y, *(shuffled(y, group, split, rng) for _ in range(n_controls))]
    fitter = HeadMoments(positive=positive).update(acts, named).finish()
    x = torch.cat([state_rows(acts, site, heads=True).values.movedim(1, 0) for site in sites])  # (blocks heads, n, d)
    accuracy, normals = _probe(x, labellings, split.train, split.test, C)
    shape = fitter.score.shape
    null = None
    if n_controls:
        best = accuracy[:, 1:].max(0)
        low, high = np.quantile(best, [0.025, 0.975])
        null = Estimate(float(best.mean()), float(low), float(high), n_controls)
    unit, sigma = fitter.theta, fitter.sigma
    if theta == "probe":
        unit = _unit(normals).reshape(*shape, -1).float()
        along = (x @ _unit(normals)[..., None])[..., 0]
        sigma = along.std(1, correction=0).reshape(shape).float()
    about = {**fitter.about, "method": f"ITI, {theta}", "seed": seed, "C": C}
    return HeadDirections(
        fitter.sites, unit, sigma, accuracy[:, 0].reshape(shape), "held-out accuracy", null, len(split.test), about
    )


def _probe(x: Tensor, labellings: list[NDArray], train: NDArray, test: NDArray, C: float) -> tuple[NDArray, Tensor]:
    """Held-out accuracy of every head under every labelling (heads, labellings), and the normals of the first."""
    y = torch.as_tensor(np.stack([one[train] for one in labellings]))
    found = logistic(x[:, train], y, torch.full((len(y),), C, dtype=torch.float64), torch.ones_like(y))
    truth = torch.as_tensor(np.stack([one[test] for one in labellings]))
    right = (found.scores(x[:, test]) > 0) == truth
    return right.double().mean(-1).numpy(), found.weights[:, 0]


def _z_sites(acts: Activations) -> list[Site]:
    if not isinstance(acts, Activations) or not acts.sites or any(site.point != "z" for site in acts.sites):
        held = ", ".join(map(str, acts.sites)) if isinstance(acts, Activations) else type(acts).__name__
        raise BadInput(f"heads are read at the sites z[...]: lm.activations(..., sites='z[*]'). Given: {held}")
    shapes = {tuple(acts[site].shape[1:]) for site in acts.sites}
    if len(shapes) > 1:
        raise BadInput(f"blocks with different heads {sorted(shapes)}: choose sites of one kind")
    return list(acts.sites)


def _difference(seen: ClassMoments, positive: Hashable) -> tuple[Tensor, list[int]]:
    yes, no = two_sides(list(seen.classes), positive)
    a, b = seen.pooled(yes), seen.pooled(no)
    return without_rounding(a.mean - b.mean, a.mean, b.mean), [a.n, b.n]


def _unit(vectors: Tensor) -> Tensor:
    lengths = vectors.norm(dim=-1, keepdim=True)
    return torch.where(lengths > 0, vectors / lengths.clamp_min(1e-300), torch.zeros_like(vectors))


def _spread(covariance: Tensor, theta: Tensor) -> Tensor:
    """sqrt(theta' C theta) of every head, (heads,)."""
    return ((covariance @ theta[..., None])[..., 0] * theta).sum(-1).clamp_min(0).sqrt()
