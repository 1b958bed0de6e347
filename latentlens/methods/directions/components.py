"""Directions from contrast pairs by their main axis (RepE, repeng), and the plane of angular steering.

    uncentred       first right singular vector of the differences D = positive - negative: the axis of sum D D'
    pair-centred    PCA of both sides after each pair has lost its own mean (repeng's pca_center): the same axis, since
                    the rows are D/2 and -D/2 and their mean is 0
    centred         PCA of the differences (repeng's pca_diff with scikit-learn): TRAP. It takes the mean of the
                    differences away first, so what all pairs have in common, the concept, cannot be found; what is left
                    is how pairs differ from each other

An axis has no sign: the one is taken that most pairs agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.moments import Moments
from latentlens.values.directions import Direction
from latentlens.values.sites import Site
from latentlens.values.state_rows import StateRows, check_direction, same_site, state_rows

Centring = Literal["uncentred", "pair-centred", "centred"]

# Two axes whose variances agree to this share cannot be told apart.
_TIE = 1e-9


class PairComponent:
    """Fitter of `pair_component`: keeps the mean and one (d, d) scatter of the differences.

    The sign is that of the mean difference; `MajoritySign` counts the pairs in a second pass.
    """

    def __init__(
        self,
        site: Site | str | None = None,
        *,
        centring: Centring = "uncentred",
        normalise: bool = False,
        name: str = "",
        frame: str = "raw",
    ) -> None:
        self.site, self.centring, self.normalise, self.name, self.frame = site, centring, normalise, name, frame
        self._seen: Moments | None = None
        _known(centring)

    def update(self, positive: Any, negative: Any) -> Self:
        """Take pairs: row i of one side belongs to row i of the other.

        Raises: BadInput: shapes, sites, or sides of different length. NonFiniteActivations.
        """
        differences = _differences(positive, negative, self.site, self.frame, self.normalise)
        if self._seen is None:
            self._seen, self.site = Moments(differences.values.shape[1:], scatter=True), differences.site
        self._seen.add(differences.values)
        return self

    def finish(self) -> Direction:
        """The unit axis of all pairs taken so far, signed by their mean.

        Raises: TooFewExamples: no pair; fewer than two when centred. BadInput: no variance, or no first axis.
        """
        seen = self._seen
        if seen is None or not seen.n:
            raise TooFewExamples("no pairs were taken: call update(positive, negative) first")
        matrix = seen.covariance if self.centring == "centred" else seen.second_moment
        values, vectors = torch.linalg.eigh(matrix)
        first = _first(values.flip(0), vectors.flip(1).mT, seen.n, self.centring)
        assert self.site is not None
        about = _about(self.centring, self.normalise, seen.n, values)
        return _signed(first, float(seen.mean @ first), self.site, self.name, self.frame, about)


class MajoritySign:
    """Second pass: gives a direction the sign that most pairs agree with.

    >>> axis = Direction(torch.tensor([-1.0, 0.0]), "resid_post[3]")
    >>> signed = MajoritySign(axis).update([[2.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]).finish()
    >>> signed.vector.tolist()
    [1.0, -0.0]
    """

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.agree, self.disagree = 0, 0

    def update(self, positive: Any, negative: Any) -> Self:
        """Take pairs, as `PairComponent.update`."""
        differences = _differences(positive, negative, self.direction.site, self.direction.frame, False)
        check_direction(self.direction, differences, frame=self.direction.frame)
        along = differences.values @ self.direction.vector.double()
        self.agree += int((along > 0).sum())
        self.disagree += int((along < 0).sum())
        return self

    def finish(self) -> Direction:
        """The direction, turned round if more pairs disagree than agree; of equals it stays as it was.

        Raises: TooFewExamples: no pair was taken.
        """
        pairs = self.agree + self.disagree
        if not pairs:
            raise TooFewExamples("no pairs were taken: call update(positive, negative) first")
        turned = self.direction.vector if self.agree >= self.disagree else -self.direction.vector
        agree = max(self.agree, self.disagree) / pairs
        source = {**self.direction.source, "pairs that agree with the sign": agree}
        return Direction(turned, self.direction.site, self.direction.name, self.direction.frame, source)


def pair_component(
    positive: Any,
    negative: Any,
    *,
    site: Site | str | None = None,
    centring: Centring = "uncentred",
    normalise: bool = False,
    name: str = "",
    frame: str = "raw",
) -> Direction:
    """Main axis of contrast pairs, of length 1, signed by the majority of the pairs.

        D_i = h_i(positive) - h_i(negative)
        uncentred, pair-centred   u = argmax sum_i (u . D_i)^2
        centred                   u = argmax sum_i (u . (D_i - mean D))^2

    >>> pairs = torch.tensor([[2, 0.1], [2, -0.1], [2.2, 0.3], [1.8, -0.3]])
    >>> for centring in ("uncentred", "centred"):  # the mean difference is (2, 0)
    ...     found = pair_component(pairs, 0 * pairs, site="resid_post[3]", centring=centring)
    ...     print([round(v, 4) for v in found.vector.tolist()])
    [1.0, 0.0076]
    [0.5257, 0.8507]

    Args:
        positive, negative: Activations, or rows (n, d), at the last token of each text; row by row a pair.
        site: as in `mean_difference`.
        centring: see above; "centred" is here to reproduce results that were obtained with it.
        normalise: give every difference the length 1 first, so that no pair rules by its size.
        name: of the direction.
        frame: of a tensor's rows.

    Returns: a unit Direction; `source` says which share of the pairs agrees with the sign, and which share of the
        (un)centred variance the axis has.
    Raises: TooFewExamples: no pair; fewer than two when centred. BadInput: shapes, no variance, or two axes with the
        same variance. NonFiniteActivations.
    Source: RepE, Zou et al. (arXiv 2310.01405), which shuffles the order inside pairs before it centres, and so comes
        close to the uncentred axis; repeng (github.com/vgel/repeng) for the other two.
    """
    _known(centring)
    differences = _differences(positive, negative, site, frame, normalise)
    d, n = differences.values, len(differences)
    if not n:
        raise TooFewExamples("no pairs: give at least one row on each side")
    centred = d - d.mean(0) if centring == "centred" else d
    _, sizes, vectors = torch.linalg.svd(centred, full_matrices=False)
    values = sizes.square() / n
    first = _first(values, vectors, n, centring)
    about = _about(centring, normalise, n, values)
    found = _signed(first, float(d.mean(0) @ first), differences.site, name, frame, about)
    counter = MajoritySign(found)
    return counter.update(d, torch.zeros_like(d)).finish() if bool((d @ first).any()) else found


def plane(
    candidates: Sequence[Direction], *, choose: Literal["similar", "long"] = "similar"
) -> tuple[Direction, Direction]:
    """The plane of angular steering, from directions of one concept found at several sites.

        b1 = the candidate with the largest mean cosine to all of them ("similar"), or the longest ("long")
        b2 = first principal component of the candidates (centred), with b1 taken out of it

    ll.Rotate(*plane(candidates), to=30, site="resid_post[*]")

    Args: candidates: two or more, e.g. the mean differences of all blocks. The published code gives every state the
        length 1 before it takes means. choose: how b1 is found.
    Returns: (b1, b2), both of length 1, orthogonal, at the site of b1.
    Raises: TooFewExamples: fewer than two. BadInput: widths or frames differ, or all are parallel.
    Source: Vu and Nguyen (arXiv 2510.26243); github.com/lone17/angular-steering, where b2 is orthogonalised in use.
    """
    if len(candidates) < 2:
        raise TooFewExamples(f"{len(candidates)} candidate(s): a plane needs directions from at least two sites")
    if len({(c.vector.numel(), c.frame) for c in candidates}) > 1:
        raise BadInput("the candidates differ in width or frame: convert with to_raw()")
    if choose not in ("similar", "long"):
        raise BadInput(f"choose={choose!r}: allowed are similar and long")
    units = torch.stack([c.unit.double() for c in candidates])
    vectors = torch.stack([c.vector.double() for c in candidates])
    scores = (units @ units.mT).mean(1) if choose == "similar" else vectors.norm(dim=1)
    b1 = candidates[int(scores.argmax())]
    _, sizes, axes = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    u = b1.unit.double()
    across = axes[0] - (axes[0] @ u) * u
    if sizes[0] <= 1e-9 * vectors.norm() or float(across.norm()) < 1e-6:
        raise BadInput("all candidates are parallel: they span no plane. Take directions of more sites")
    about = {"method": "angular plane", "chosen": choose, "candidates": [str(c.site) for c in candidates]}
    first = Direction(u, b1.site, f"b1 {b1.name}".strip(), b1.frame, {**about, "of": b1.name})
    second = Direction(across / across.norm(), b1.site, f"b2 {b1.name}".strip(), b1.frame, about)
    return first, second


def _differences(positive: Any, negative: Any, site: Any, frame: str, normalise: bool) -> StateRows:
    a, b = (state_rows(x, site, frame=frame, what="pairs") for x in (positive, negative))
    place = same_site(a, b)
    if len(a) != len(b):
        raise BadInput(f"{len(a)} positive and {len(b)} negative rows: they must be pairs, row by row")
    d = a.values - b.values
    if normalise:
        lengths = d.norm(dim=1, keepdim=True)
        if bool((lengths == 0).any()):
            raise BadInput(f"{int((lengths == 0).sum())} of {len(d)} pairs do not differ: they cannot be normalised")
        d = d / lengths
    return StateRows(d, place, a.model)


def _known(centring: str) -> None:
    if centring not in get_args(Centring):
        raise BadInput(f"centring={centring!r}: allowed are {', '.join(get_args(Centring))}")


def _first(values: Tensor, vectors: Tensor, n: int, centring: str) -> Tensor:
    """First axis, from variances in descending order and axes as rows."""
    if centring == "centred" and n < 2:
        raise TooFewExamples("one pair: centred PCA takes away all there is; it needs at least two")
    top = float(values[0])
    if top <= 0:
        what = "all differences are equal, so centring leaves nothing" if centring == "centred" else "no pair differs"
        raise BadInput(f"there is no axis: {what}")
    if len(values) > 1 and top - float(values[1]) <= _TIE * top:
        raise BadInput("two axes have the same variance: there is no first one. Give more pairs")
    return vectors[0]


def _signed(axis: Tensor, along: float, site: Any, name: str, frame: str, about: dict[str, Any]) -> Direction:
    return Direction(axis if along >= 0 else -axis, site, name or f"{about['method']}", frame, about)


def _about(centring: str, normalise: bool, n: int, values: Tensor) -> dict[str, Any]:
    share = float(values.max() / values.sum())
    return {"method": f"PCA of pairs, {centring}", "normalise": normalise, "pairs": n, "share of variance": share}
