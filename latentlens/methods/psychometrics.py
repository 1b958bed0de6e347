"""Two heads on frozen activations: one reads a character's traits, one tells characters apart.

    found = psychometrics.fit(acts, sheets, characters, traits=("open", "kind"))      # every site, one split
    best  = found.best()
    edit  = ll.persona_algebra.character(best.directions, {"kind": 0.9})              # training-free steering

The model is never trained. Heads are trained on some characters and judged on others; beside every score stands what a
constant, a linear readout, and sheets dealt to the wrong characters give. The losses, rates and batches of the source
are not published: those below are ours (see `fit`).

Source: Soul Engine (arXiv 2512.07092), dual head on a frozen model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.contrastive import nearest_is_own, supervised_contrastive
from latentlens.maths.cosines import chance_cosine, mean_off_diagonal
from latentlens.maths.regression_scores import mean_squared_error, r_squared
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.column_means import column_means
from latentlens.values.directions import Direction
from latentlens.values.labelled_rows import group_codes
from latentlens.values.psychometrics import Psychometrics, SitePsychometrics
from latentlens.values.results import Estimate
from latentlens.values.sites import Site
from latentlens.values.text_means import text_means

_CHARACTERS = 16  # in a batch, with all their rows
_EVERY = 20  # steps between two looks at the characters kept aside


class Heads(nn.Module):
    """Psychometric head Linear-GELU-Linear-sigmoid, identity head Linear to length 1; on states or on a shared layer.

    With `shared` both read one linear layer, so that each trains it for the other; without it the heads have no weight
    in common, and leaving one out changes nothing for the other.
    """

    def __init__(self, d: int, k: int, hidden: int, width: int, identity: bool, shared: int | None) -> None:
        super().__init__()
        self.shared = nn.Linear(d, shared) if shared else nn.Identity()
        inner = shared or d
        self.traits = nn.Sequential(nn.Linear(inner, hidden), nn.GELU(), nn.Linear(hidden, k), nn.Sigmoid())
        self.identity = nn.Linear(inner, width) if identity else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n, d) -> traits (n, k) in 0..1, identity (n, width) of length 1."""
        z = self.shared(x)
        who = None if self.identity is None else nn.functional.normalize(self.identity(z), dim=-1)
        return self.traits(z), who


def fit(
    acts: Activations, sheets: ArrayLike, characters: Sequence[Any], *, traits: Sequence[str] | None = None,
    sites: Any = None, identity: bool = True, shared: int | None = None, hidden: int = 64, width: int = 64,
    steps: int = 300, rate: float = 1e-3, temperature: float = 0.07, test_share: float = 0.3, n_shuffles: int = 5,
    seed: int = 0,
) -> Psychometrics:  # fmt: skip
    """Train both heads at every site and judge them on characters that they never saw.

        L = mean (head(z) - sheet)^2  +  supervised contrastive loss of the identity head        z: state of an excerpt

    Inputs are standardised on the training rows; AdamW, every step on all rows of 16 characters. How long the heads are
    trained is chosen on a fifth of the training characters, kept aside for that; then they are trained on all.

    Args:
        acts: one or several rows an excerpt (averaged first). Give the last token instead to compare: `where="last"`.
        sheets: (n, k), the traits of each excerpt's character, 0 to 1.
        characters: (n,), whose excerpt it is: the split, and every interval, goes by character.
        traits: names of the columns. sites: which of the activations; all by default.
        identity: train the identity head. shared: width of a layer that both heads read; None: none.
        hidden, width: of the heads. steps: at most. rate, temperature: of the training.
        test_share: of the characters. n_shuffles: refits with sheets dealt to other characters.
        seed: of the split, of the heads, of the batches.
    Raises: BadInput: shapes, or sheets outside 0..1. TooFewExamples: fewer than ten characters.
    """
    chosen = list(acts.sites) if sites is None else acts.expand(sites)
    y = np.asarray(sheets, dtype=np.float64)
    n = len(text_means(acts, chosen[0]))
    if y.ndim != 2 or len(y) != n or not ((y >= 0) & (y <= 1)).all():
        raise BadInput(f"sheets of shape {y.shape} for {n} excerpts: (n, k), every value from 0 to 1")
    names = tuple(traits) if traits is not None else tuple(f"trait {i}" for i in range(y.shape[1]))
    if len(names) != y.shape[1]:
        raise BadInput(f"{len(names)} names for {y.shape[1]} traits")
    who = group_codes("characters", characters, n)
    _one_sheet_each(y, who)
    parts = _split(who, test_share, seed)
    how = {"identity": identity, "shared": shared, "hidden": hidden, "width": width}
    how |= {"steps": steps, "rate": rate, "temperature": temperature}
    found = [_at(site, text_means(acts, site).float(), y, who, parts, names, how, n_shuffles, seed) for site in chosen]
    train, aside, test = (len(set(who[part])) for part in parts)
    return Psychometrics(tuple(found), (train + aside, test), {**how, "seed": seed, "kept aside": aside})


def trait_directions(
    states: Tensor, sheets: ArrayLike, names: Sequence[str], site: Site, about: dict[str, Any] | None = None
) -> dict[str, Direction]:
    """What each trait does to the state, the others held fixed: least squares of the states on the sheets.

        h = b + sum_t y_t v_t        v_t: change of the state from the lowest (0) to the highest (1) value of trait t

    Raises: TooFewExamples: the sheets do not tell the traits apart.
    """
    y = torch.as_tensor(np.asarray(sheets, dtype=np.float64))
    design = torch.cat([torch.ones(len(y), 1, dtype=torch.float64), y], 1)
    if int(torch.linalg.matrix_rank(design)) < design.shape[1]:
        raise TooFewExamples("the sheets do not tell the traits apart: a trait is constant, or follows from the others")
    weights = torch.linalg.lstsq(design, states.double()).solution[1:]
    source = {"method": "regression of states on character sheets", "n": len(y), **(about or {})}
    return {name: Direction(w.float(), site, name, "raw", source) for name, w in zip(names, weights, strict=True)}


def _at(
    site: Site, x: Tensor, y: NDArray, who: NDArray, parts: tuple[NDArray, NDArray, NDArray], names: Sequence[str],
    how: dict[str, Any], n_shuffles: int, seed: int,
) -> SitePsychometrics:  # fmt: skip
    train, aside, test = parts
    both = np.r_[train, aside]
    constant = y[both].mean(axis=0)
    # How long to train is chosen on the characters kept aside; then all training characters are taken together.
    tried = _fitted(x, y, who, train, aside, how, seed)
    steps, (_, _, _, aside_r2) = max(
        ((n, (*said, r_squared(said[1], y[aside], y[train].mean(axis=0)))) for n, said in tried.items()),
        key=lambda one: one[1][-1],
    )
    how = {**how, "steps": steps}
    said_train, said, space = _fitted(x, y, who, both, test, how, seed)[steps]
    rng = np.random.default_rng(seed)
    shuffled = []
    for draw in range(n_shuffles):
        dealt = _dealt(y, who, both, rng)
        _, wrong, _ = _fitted(x, dealt, who, both, test, {**how, "identity": False}, seed + draw)[steps]
        shuffled.append(r_squared(wrong, y[test], constant))

    def interval(statistic: Any, *arrays: NDArray) -> Estimate:
        value = statistic(*arrays)
        if math.isnan(value):
            return Estimate(value, math.nan, math.nan, len(test))
        return Estimate(value, *cluster_bootstrap(statistic, *arrays, groups=who[test], seed=seed), len(test))

    by_trait = {}
    for i, name in enumerate(names):

        def own(p: NDArray, t: NDArray, c: float = float(constant[i])) -> float:
            return r_squared(p, t, [c] if p.ndim == 2 else c)

        by_trait[name] = (interval(mean_squared_error, said[:, i], y[test, i]), interval(own, said[:, i], y[test, i]))
    labels = torch.as_tensor(who[test])
    identity = raw = None
    _, chance = nearest_is_own(x[test], labels)
    if space is not None:
        identity, raw = (
            column_means(nearest_is_own(rows, labels)[0].double().numpy(), groups=who[test].tolist(), seed=seed)[0]
            for rows in (space, x[test] - x[both].mean(0))
        )
    directions = trait_directions(x[both], y[both], names, site)
    vectors = np.stack([d.vector.numpy() for d in directions.values()])
    low, high = (min(shuffled), max(shuffled)) if shuffled else (math.nan, math.nan)
    return SitePsychometrics(
        site, tuple(names), interval(mean_squared_error, said, y[test]),
        interval(lambda p, t: r_squared(p, t, constant), said, y[test]), by_trait,
        mean_squared_error(np.broadcast_to(constant, y[test].shape), y[test]),
        r_squared(said_train, y[both], constant), aside_r2, steps,
        interval(lambda p, t: r_squared(p, t, constant), _ridge(x, y, both, test), y[test]),
        Estimate(float(np.mean(shuffled)) if shuffled else math.nan, low, high, len(shuffled)),
        identity, raw, chance, directions,
        mean_off_diagonal(vectors) if len(vectors) > 1 else math.nan, chance_cosine(x.shape[1]),
    )  # fmt: skip


def _fitted(
    x: Tensor, y: NDArray, who: NDArray, rows: NDArray, asked: NDArray, how: dict[str, Any], seed: int
) -> dict[int, tuple[NDArray, NDArray, Tensor | None]]:
    """Heads trained on `rows`; after every 20 steps what they say of `rows`, and of `asked` with its identities."""
    mean, spread = x[rows].mean(0), x[rows].std(0).clamp_min(1e-6)
    z = (x - mean) / spread
    target, owner = torch.as_tensor(y, dtype=torch.float32), torch.as_tensor(who)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Heads(x.shape[1], y.shape[1], how["hidden"], how["width"], how["identity"], how["shared"])
    optimiser = torch.optim.AdamW(heads.parameters(), lr=how["rate"], weight_decay=0.01)
    rng, everyone = np.random.default_rng(seed), np.unique(who[rows])
    found = {}
    for step in range(1, how["steps"] + 1):
        batch = rows[np.isin(who[rows], rng.permutation(everyone)[:_CHARACTERS])]
        with torch.enable_grad():
            said, space = heads(z[batch])
            loss = ((said - target[batch]) ** 2).mean()
            if space is not None:
                loss = loss + supervised_contrastive(space, owner[batch], how["temperature"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if step % _EVERY == 0 or step == how["steps"]:
            with torch.no_grad():
                train, (said, space) = heads(z[rows])[0], heads(z[asked])
            found[step] = (train.double().numpy(), said.double().numpy(), space)
    return found


def _ridge(x: Tensor, y: NDArray, rows: NDArray, asked: NDArray) -> NDArray:
    """Linear readout, penalty a tenth of the mean variance a row."""
    mean, centre = x[rows].double().mean(0), y[rows].mean(axis=0)
    a = x[rows].double() - mean
    penalty = 0.1 * len(rows) * float(a.var()) * torch.eye(a.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(a.T @ a + penalty, a.T @ torch.as_tensor(y[rows] - centre))
    return ((x[asked].double() - mean) @ weights).numpy() + centre


def _split(who: NDArray, test_share: float, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Rows of the training characters, of a fifth of them kept aside, and of the test characters."""
    everyone = np.unique(who)
    n_test = round(test_share * len(everyone))
    if len(everyone) < 10 or not 0 < n_test < len(everyone) - 4:
        raise TooFewExamples(f"{len(everyone)} characters, {n_test} of them for the test: at least ten are needed")
    order = np.random.default_rng(seed).permutation(everyone)
    test, rest = order[:n_test], order[n_test:]
    aside = rest[: max(2, len(rest) // 5)]
    train = rest[len(aside) :]
    return tuple(np.flatnonzero(np.isin(who, part)) for part in (train, aside, test))  # pyright: ignore


def _dealt(y: NDArray, who: NDArray, rows: NDArray, rng: np.random.Generator) -> NDArray:
    """The sheets of the training characters dealt to each other."""
    everyone = np.unique(who[rows])
    sheet = {one: y[who == one][0] for one in everyone}
    other = dict(zip(everyone, rng.permutation(everyone), strict=True))
    dealt = y.copy()
    for i in rows:
        dealt[i] = sheet[other[who[i]]]
    return dealt


def _one_sheet_each(y: NDArray, who: NDArray) -> None:
    for one in np.unique(who):
        if len(np.unique(y[who == one], axis=0)) > 1:
            raise BadInput("a character has excerpts with different sheets: the traits belong to the character")
