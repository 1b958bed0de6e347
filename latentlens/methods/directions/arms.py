"""Every estimator that needs nothing but states, and their controls, as arms of one comparison.

fits = ArmFits()
direction_arms(fits, acts, positive, pairs, "resid_post[3]", where="last_prompt+response")
control_arms(fits, acts, positive, "resid_post[3]", where="last_prompt+response")
doses = dose_arms(lm, prompts, fits.found, kept, ll.calibrate.kl_budget_batch)

What has to run a model (ActAdd, refusal selection, ReFT-r1, COLD, SAE-TS, FGAA) is added by whoever has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.directions.components import pair_component, plane
from latentlens.methods.directions.heads import head_directions
from latentlens.methods.directions.means import concept_edit, lda, mean_centred, mean_difference
from latentlens.methods.directions.transport import linear_transport
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction, as_site
from latentlens.values.operations import Add, Clamp
from latentlens.values.rotations import Rotate
from latentlens.values.sites import Site
from latentlens.values.state_rows import state_rows
from latentlens.values.steering_arms import ArmFits

HALVES, SHUFFLED, RANDOM = "mean difference, no concept", "mean difference, shuffled", "random direction"


def adding(direction: Direction, **options: Any) -> Callable[[float], Add]:
    """From a strength, in median norms of the stream, to the addition of a direction."""
    return lambda c: Add(direction, c, unit="norm", **options)


def direction_arms(
    fits: ArmFits,
    acts: Activations,
    positive: ArrayLike,
    pairs: ArrayLike,
    site: Site | str,
    *,
    reference: Any = None,
    **options: Any,
) -> None:
    """Add an arm for every estimator of directions from states.

    mean difference, mean-centring, PCA of pairs (uncentred, and centred: the trap), LDA, ACE (the strength is its
    amount), a floor on the axis, Linear-AcT (its mix), angular steering (90 exp(-c) degrees from the plane's first
    axis), and the heads of ITI (4c, the best third of them). PCA of pair-centred rows has the axis of the uncentred one
    and is left out.

    Args:
        fits: where arms, times and what could not be fitted go.
        acts: one row a text, at `site`, at other blocks for the plane, and at `z[...]` for heads.
        positive: (n,) bool, by row. pairs: (n,) which pair a row belongs to; one row of each side in every pair.
        site: where all but the heads steer.
        reference: rows (m, d) of texts about anything, which mean-centring takes its mean over as well.
        options: `where`, `schedule`, of the interventions.
    Raises: BadInput: labels that do not fit, or sides that are no pairs.
    """
    y, of = np.asarray(positive, dtype=bool), np.asarray(pairs)
    sides = [np.flatnonzero(side)[np.argsort(of[side], kind="stable")] for side in (y, ~y)]
    if len(y) != len(acts) or len(of) != len(acts) or of[sides[0]].tolist() != of[sides[1]].tolist():
        raise BadInput(f"{len(acts)} rows: give a label and a pair for each, one row of each side in every pair")
    place = as_site(site)
    yes, no = (acts.rows(side) for side in sides)
    heads = Activations({s: v for s, v in acts.values.items() if s.point == "z"}, acts.labels, acts.about)
    add = lambda v: adding(v, **options)

    def centred() -> Any:
        rows, labels = state_rows(acts, place).values, y.astype(int).tolist()
        if reference is not None:
            rows = torch.cat([rows, torch.as_tensor(reference).to(rows)])
            labels = [*labels, *[0] * (len(rows) - len(labels))]
        return add(mean_centred(rows, labels, site=place)[1])

    def edited() -> Any:
        edit = concept_edit(acts, y, site=place, **options)
        return lambda c: replace(edit, amount=c)

    def bounded() -> Any:
        axis = mean_difference(acts, y, site=place)
        return lambda c: Clamp(axis, low=c, unit="norm", **options)

    def moved() -> Any:
        line = linear_transport(no, yes, site=place, **options)
        return lambda c: replace(line, mix=c)

    def turned() -> Any:
        same = [s for s in acts.sites if s.point == place.point]
        b1, b2 = plane([mean_difference(acts, y, site=s) for s in same])
        return lambda c: Rotate(b1, b2, to=90 * math.exp(-c), site=place, **options)

    def inside_heads() -> Any:
        found = head_directions(heads, y, groups=of.tolist(), n_controls=0)
        return lambda c: found.plan(4 * c, max(1, found.score.size // 3), **options)

    fits.add("mean difference (CAA)", lambda: add(mean_difference(acts, y, site=place)))
    fits.add("mean-centring", centred)
    fits.add("PCA of pairs, uncentred", lambda: add(pair_component(yes, no, site=place)))
    fits.add("PCA of pairs, centred (trap)", lambda: add(pair_component(yes, no, site=place, centring="centred")))
    fits.add("LDA", lambda: add(lda(acts, y, site=place)))
    fits.add("affine concept edit (ACE)", edited)
    fits.add("floor on the axis (capping)", bounded)
    fits.add("Linear-AcT", moved)
    fits.add("angular", turned)
    fits.add("ITI, heads", inside_heads)


def control_arms(
    fits: ArmFits,
    acts: Activations,
    positive: ArrayLike,
    site: Site | str,
    *,
    random: int = 5,
    draws: int = 3,
    **options: Any,
) -> None:
    """Add the controls: random directions, and mean differences that hold no concept.

    Two halves of the rows WITHOUT the concept differ by what any two halves differ by. Shuffled labels are no null at
    a common KL: where the concept is what varies most, they still point along it, with a random sign.

    Args: as `direction_arms`. random: directions of the length of the mean difference. draws: of either kind of halves.
    Raises: TooFewExamples: fewer than two rows without the concept. And what `mean_difference` raises.
    """
    y, add = np.asarray(positive, dtype=bool), lambda v: adding(v, **options)
    mean, without = mean_difference(acts, y, site=site), acts.rows(np.flatnonzero(~y))
    n = len(without)
    if n < 2:
        raise TooFewExamples(f"{n} row(s) without the concept: two halves need two")
    for i in range(random):
        fits.add(RANDOM, lambda i=i: add(mean.random_like(i)), "control", i)
    for i in range(draws):
        rng = np.random.default_rng(i)
        half, shuffled = rng.permutation(n) < n // 2, rng.permutation(y)
        fits.add(HALVES, lambda half=half: add(mean_difference(without, half, site=site)), "control", i)
        fits.add(SHUFFLED, lambda other=shuffled: add(mean_difference(acts, other, site=site)), "control", i)
