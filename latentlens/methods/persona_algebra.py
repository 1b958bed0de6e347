"""Sums, differences and angles of trait vectors.

    mix(vectors, {"formal": 1.0, "hostile": -0.5})        sum_t w_t v_t
    character(vectors, {"openness": 0.9, ...})            sum_t 2 (value_t - .5) v_t; None for a neutral character
    without(v, others)                                    v minus its part in the span of others
    orthogonalise(vectors)                                the nearest set of orthogonal vectors
    shared(vectors), remove_shared(vectors)               what all of them have in common, and the rest
    cosine_map(vectors)                                   all angles, beside chance

Everything is computed in float64 and lengths are kept unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.cosines import chance_cosine, cosine_matrix, mean_off_diagonal
from latentlens.values.cosine_map import CosineMap
from latentlens.values.directions import Direction

_GONE = 1e-6  # share of its length below which nothing of a vector is left


def mix(vectors: Mapping[str, Direction], weights: Mapping[str, float], *, name: str = "") -> Direction:
    """Weighted sum of trait vectors.

        v = sum_t w_t v_t

    Args: vectors: at one site, at their own lengths. weights: of some or all of them; the others count 0.
    Raises: BadInput: an unknown name, different sites, widths or frames, or a sum that is zero.
    """
    unknown = set(weights) - set(vectors)
    if unknown or not weights:
        raise BadInput(f"no vector {min(unknown, default='')!r} to weigh; held: {', '.join(vectors)}")
    stacked, first = _stacked({trait: vectors[trait] for trait in weights})
    total = torch.tensor([float(w) for w in weights.values()], dtype=torch.float64) @ stacked
    if float(total.norm()) <= _GONE * float(stacked.norm(dim=-1).max()):
        raise BadInput("the weighted vectors cancel out: nothing is left to steer with")
    said = " ".join(f"{w:+g} {trait}" for trait, w in weights.items())
    return _like(first, total, name or said, "mix", dict(weights))


def character(
    vectors: Mapping[str, Direction], sheet: Mapping[str, float], *, renormalise: bool = True, name: str = "character"
) -> Direction | None:
    """The direction of a character sheet: traits from 0 to 1, .5 neutral.

        v = sum_t 2 (value_t - .5) v_t        then, with `renormalise`, to the mean length of the trait vectors

    A neutral character has no direction: None, which as a plan is no edit. Renormalised, a mild sheet points where a
    strong one does and is as long; without it the sheet's extremeness is the dose.

    >>> from torch import tensor
    >>> character({"o": Direction(tensor([2.0, 0.0]), "resid_post[0]")}, {"o": 0.5}) is None
    True

    Args: vectors: trait -> vector. sheet: trait -> value from 0 to 1; traits left out are neutral.
    Raises: BadInput: an unknown trait or a value outside 0..1.
    Source: Soul Engine (arXiv 2512.07092), training-free variant; the no-op for a neutral sheet is ours.
    """
    if any(not 0 <= value <= 1 for value in sheet.values()):
        raise BadInput("a character sheet holds values from 0 to 1; .5 is neutral")
    weights = {trait: 2 * (value - 0.5) for trait, value in sheet.items()}
    unknown = set(weights) - set(vectors)
    if unknown:
        raise BadInput(f"no vector for {min(unknown)!r}; held: {', '.join(vectors)}")
    used = {trait: weight for trait, weight in weights.items() if weight}
    if not used:
        return None
    found = mix(vectors, used, name=name)
    if not renormalise:
        return found
    return found.scaled_to(sum(v.norm for v in vectors.values()) / len(vectors))


def without(direction: Direction, others: Sequence[Direction]) -> Direction:
    """What is left of a direction outside the span of others.

        v' = v - Q Q' v        Q: orthonormal basis of the others

    Raises: BadInput: nothing is left, or different sites, widths or frames. TooFewExamples: no others.
    """
    if not others:
        raise TooFewExamples("without() needs at least one other direction")
    stacked, _ = _stacked({str(i): d for i, d in enumerate([direction, *others])})
    basis = _basis(stacked[1:])
    left = stacked[0] - basis @ (basis.T @ stacked[0])
    if float(left.norm()) <= _GONE * direction.norm:
        raise BadInput(f"{direction} lies in the span of the others: nothing is left of it")
    removed = 1 - float(left.norm()) ** 2 / direction.norm**2
    return _like(direction, left, direction.name, "orthogonalised", {"share removed": removed})


def orthogonalise(vectors: Mapping[str, Direction]) -> dict[str, Direction]:
    """The orthogonal set that is nearest to the vectors' directions; no order, unlike Gram-Schmidt.

        U' = (U U')^(-1/2) U        U: unit vectors (k, d); each keeps its length

    Raises: BadInput: vectors that depend on each other linearly.
    Source: Loewdin, J. Chem. Phys. 18 (1950) 365: the symmetric orthogonalisation moves the set least.
    """
    stacked, _ = _stacked(vectors)
    unit = stacked / stacked.norm(dim=-1, keepdim=True)
    values, sides = torch.linalg.eigh(unit @ unit.T)
    if float(values.min()) < _GONE:
        raise BadInput("the vectors depend on each other linearly: leave one out")
    turned = (sides * values.rsqrt()) @ sides.T @ unit
    lengths = stacked.norm(dim=-1, keepdim=True)
    return {
        name: _like(vectors[name], row, name, "orthogonalised", {"against": len(vectors) - 1})
        for name, row in zip(vectors, turned * lengths, strict=True)
    }


def shared(vectors: Mapping[str, Direction], *, name: str = "shared") -> Direction:
    """What the vectors have in common: the mean of their unit vectors.

        s = 1/k sum_t v_t / |v_t|        |s| = 1: all point the same way; |s| near 1/sqrt(k): nothing shared

    Raises: TooFewExamples: fewer than two. BadInput: they cancel out.
    """
    if len(vectors) < 2:
        raise TooFewExamples(f"{len(vectors)} vector(s): what is shared needs two")
    stacked, first = _stacked(vectors)
    mean = (stacked / stacked.norm(dim=-1, keepdim=True)).mean(0)
    if float(mean.norm()) <= _GONE:
        raise BadInput("the vectors cancel out: they share nothing")
    return _like(first, mean, name, "shared component", {"of": list(vectors)})


def remove_shared(vectors: Mapping[str, Direction]) -> dict[str, Direction]:
    """Every vector without its part along the shared component.

        v_t' = v_t - (v_t . s) s / |s|^2

    Raises: as `shared`; BadInput: a vector that is nothing but shared.
    """
    common = shared(vectors)
    return {name: without(vector, [common]) for name, vector in vectors.items()}


def cosine_map(vectors: Mapping[str, Direction]) -> CosineMap:
    """All angles between vectors, beside the |cosine| that random directions have.

        chance = sqrt(2 / (pi d))

    Args: vectors: name -> direction, at one site or at several of equal width.
    Raises: TooFewExamples: fewer than two. BadInput: different widths or frames.
    """
    if len(vectors) < 2:
        raise TooFewExamples(f"{len(vectors)} direction(s): an angle needs two")
    stacked, _ = _stacked(vectors, same_site=False)
    rows = stacked.numpy()
    sites = {name: str(d.site) for name, d in vectors.items()}
    return CosineMap(
        tuple(vectors), cosine_matrix(rows), chance_cosine(rows.shape[1]), mean_off_diagonal(rows), {"sites": sites}
    )


def _stacked(vectors: Mapping[str, Direction], *, same_site: bool = True) -> tuple[Tensor, Direction]:
    if not vectors:
        raise TooFewExamples("no vectors were given")
    found = list(vectors.values())
    sites, widths = {str(d.site) for d in found}, {d.vector.numel() for d in found}
    if len(widths) > 1 or len({d.frame for d in found}) > 1:
        raise BadInput(f"vectors of different widths ({sorted(widths)}) or frames cannot be combined")
    if same_site and len(sites) > 1:
        raise BadInput(f"vectors of different sites cannot be combined: {', '.join(sorted(sites))}")
    return torch.stack([d.vector.double() for d in found]), found[0]


def _basis(rows: Tensor) -> Tensor:
    """(d, r) orthonormal, r the rank of the rows."""
    u, sizes, _ = torch.linalg.svd((rows / rows.norm(dim=-1, keepdim=True)).T, full_matrices=False)
    return u[:, sizes > _GONE * sizes.max()]


def _like(like: Direction, vector: Tensor, name: str, method: str, about: Mapping[str, object]) -> Direction:
    return replace(like, vector=vector.float(), name=name, source={"method": method, **about})
