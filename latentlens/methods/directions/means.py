"""Directions from means: one class against another, a class against everything, a reference point and a direction.

    mean_difference     v = mean(positive) - mean(negative)            CAA, DiffMean, persona vectors
    mean_centred        v_c = mean(class c) - mean(all rows)           mean-centring, for every class
    lda                 v = S^-1 (mean(positive) - mean(negative))     whitened by the spread inside the classes
    concept_edit        h' = h - proj_r h + proj_r mean(negative) + a r                                   ACE
    act_add             v_t = h_t(prompt) - h_t(other prompt), position by position                    ActAdd

A fitter (`MeanDifference`, `MeanCentring`, `LinearDiscriminant`, `ConceptMeans`) takes the rows in pieces,
`update(x, labels)`, and gives the same at `finish()` whatever the pieces were.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.moments import ClassMoments
from latentlens.maths.readouts import lda as lda_readout
from latentlens.maths.readouts import oas_share, whitened_difference, without_rounding
from latentlens.values.directions import Direction
from latentlens.values.operations import ConceptEdit
from latentlens.values.replacements import AddAt
from latentlens.values.sites import Site
from latentlens.values.state_rows import StateRows, row_labels, same_site, state_rows, two_sides


class MeanDifference:
    """Fitter of `mean_difference`: keeps a sum for every class and no row.

    >>> fitter = MeanDifference("resid_post[3]")
    >>> found = fitter.update([[3.0, 1.0], [1.0, 1.0]], [1, 0]).update([[1.0, 3.0], [1.0, -1.0]], [1, 0]).finish()
    >>> found.vector.tolist()
    [1.0, 2.0]
    """

    _scatter = False

    def __init__(
        self, site: Site | str | None = None, *, positive: Hashable = None, name: str = "", frame: str = "raw"
    ) -> None:
        self.site, self.positive, self.name, self.frame = site, positive, name, frame
        self._seen: ClassMoments | None = None
        self._model = ""

    def update(self, x: Any, labels: Any) -> Self:
        """Take rows with their labels; one piece may hold one class only.

        Raises: BadInput: shapes, another width or site than before. NonFiniteActivations.
        """
        rows = state_rows(x, self.site, frame=self.frame)
        return self._update(rows, row_labels(labels, len(rows)))

    def finish(self) -> Direction:
        """The direction of all rows taken so far.

        Raises: TooFewExamples: no rows, or one class only. BadInput: more than two classes and no `positive`, or two
            classes with the same mean.
        """
        _, _, difference, source = self._sides()
        return self._direction(difference, {"method": "mean difference", **source})

    def _update(self, rows: StateRows, labels: list[Hashable]) -> Self:
        if self._seen is None:
            self._seen = ClassMoments(rows.values.shape[1:], scatter=self._scatter)
            self.site, self._model = rows.site, rows.model
        self._seen.add(rows.values, labels)
        return self

    def _classes(self) -> ClassMoments:
        if self._seen is None or not self._seen.n:
            raise TooFewExamples("no rows were taken: call update(x, labels) first")
        return self._seen

    def _sides(self) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Mean of the positive side, of the negative side, their difference, and what to say of them."""
        seen = self._classes()
        yes, no = two_sides(list(seen.classes), self.positive)
        positive, negative = seen.pooled(yes), seen.pooled(no)
        difference = without_rounding(positive.mean - negative.mean, positive.mean, negative.mean)
        source = {"positive": str(yes[0]), "negative": ", ".join(map(str, no)), "n": [positive.n, negative.n]}
        return positive.mean, negative.mean, difference, source

    def _direction(self, vector: Tensor, source: dict[str, Any]) -> Direction:
        if not vector.any():
            raise BadInput(f"both sides have the same mean at {self.site}: the contrast has no direction there")
        about = {**source, **({"model": self._model} if self._model else {})}
        name = self.name or f"{source['method']} {source.get('positive', '')}".strip()
        assert self.site is not None
        return Direction(vector.float(), self.site, name, self.frame, about)  # pyright: ignore[reportArgumentType]


def mean_difference(
    x: Any,
    labels: Any,
    *,
    site: Site | str | None = None,
    positive: Hashable = None,
    name: str = "",
    frame: str = "raw",
) -> Direction:
    """Difference of the means of two classes.

        v = mean(h | positive) - mean(h | negative)

    At the answer letter of paired prompts this is CAA, over response tokens a persona vector, on instruction tokens
    DiffMean or a refusal direction. It is not normalised: its length is the distance of the means.

    >>> rows = [[3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [1.0, -1.0]]
    >>> mean_difference(rows, [1, 1, 0, 0], site="resid_post[3]").vector.tolist()
    [1.0, 2.0]

    Args:
        x: Activations, or rows (n, d). Where texts have several rows long ones count more: pool first (`pool="mean"`).
        labels: (n,) bool, numbers or names. Of two the larger (True, 1, last in the alphabet) is positive.
        site: which site of the activations; where a tensor comes from.
        positive: the label that the direction points to, against all other rows.
        name: of the direction.
        frame: of a tensor's rows; centred rows give a centred direction, which is refused where the stream is raw.

    Returns: a Direction at that site.
    Raises: TooFewExamples: one class. BadInput: shapes, labels, or no difference. NonFiniteActivations.
    Source: CAA, Rimsky et al. (arXiv 2312.06681); Marks and Tegmark (arXiv 2310.06824).
    """
    return MeanDifference(site, positive=positive, name=name, frame=frame).update(x, labels).finish()


class MeanCentring(MeanDifference):
    """Fitter of `mean_centred`."""

    def finish(self) -> dict[Hashable, Direction]:  # type: ignore[override]
        """A direction for every class that differs from the mean of all rows.

        Raises: TooFewExamples: no rows, or one class only. BadInput: no class differs.
        """
        seen = self._classes()
        two_sides(list(seen.classes), next(iter(seen.classes)))  # two classes at least
        everything, found = seen.pooled(list(seen.classes)), {}
        for label, one in sorted(seen.classes.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])):
            vector = without_rounding(one.mean - everything.mean, one.mean, everything.mean)
            source = {"method": "mean-centring", "positive": str(label), "n": [one.n, everything.n]}
            if vector.any():
                found[label] = self._direction(vector, source)
        if not found:
            raise BadInput(f"all classes have the same mean at {self.site}: there is no direction")
        return found


def mean_centred(
    x: Any, labels: Any, *, site: Site | str | None = None, name: str = "", frame: str = "raw"
) -> dict[Hashable, Direction]:
    """Mean of each class minus the mean of all rows.

        v_c = mean(h | c) - mean(h)

    With two classes of equal size it is half of the mean difference; with several it needs no negative class, and
    what all texts have in common is gone. A class that makes up most of the rows is measured against itself.

    Args: as `mean_difference`, with any number of classes.
    Returns: a Direction a class, in sorted order; a class whose mean is that of all rows has none.
    Raises: as `mean_difference`.
    Source: Jorgensen et al. (arXiv 2312.03813).
    """
    return MeanCentring(site, name=name, frame=frame).update(x, labels).finish()


class LinearDiscriminant(MeanDifference):
    """Fitter of `lda` with a given share of shrinkage, or OAS'; keeps one (d, d) scatter.

    Ledoit and Wolf's share needs fourth powers of standardised rows, which no single pass can give: `lda` has it.
    """

    _scatter = True

    def __init__(
        self,
        site: Site | str | None = None,
        *,
        shrinkage: float | str = "oas",
        positive: Hashable = None,
        name: str = "",
        frame: str = "raw",
    ) -> None:
        super().__init__(site, positive=positive, name=name, frame=frame)
        if shrinkage != "oas" and (isinstance(shrinkage, str) or not 0 <= shrinkage <= 1):
            raise BadInput(f"shrinkage={shrinkage!r}: a share from 0 to 1, or 'oas' ('ledoit-wolf': use lda)")
        self.shrinkage = shrinkage

    def finish(self) -> Direction:
        """The direction of all rows taken so far.

        Raises: as `MeanDifference.finish`; TooFewExamples: fewer than two rows on a side.
        """
        _, _, difference, source = self._sides()
        n1, n0 = source["n"]
        _enough(n1, n0)
        total = self._classes().total()
        covariance, n = total.covariance, total.n
        std = covariance.diagonal().clamp_min(0).sqrt()
        std[std <= 1e-6 * total.mean.abs()] = torch.inf
        std[std == 0] = torch.inf
        values, vectors = torch.linalg.eigh(covariance / std / std[:, None])
        values = values.clamp_min(0)[None]
        share = oas_share(values, n) if self.shrinkage == "oas" else torch.tensor([float(self.shrinkage)]).double()
        half = (difference / std)[None, None]
        between = torch.tensor([n1 * n0 / n**2], dtype=torch.float64)
        w = whitened_difference(values, vectors[None], half, between, share)[0, 0] / std
        return self._direction(w, {"method": "lda", "shrinkage": float(share[0]), **source})


def lda(
    x: Any,
    labels: Any,
    *,
    site: Site | str | None = None,
    shrinkage: float | str = "ledoit-wolf",
    positive: Hashable = None,
    name: str = "",
    frame: str = "raw",
) -> Direction:
    """Mean difference whitened by the covariance inside the classes: linear discriminant analysis.

        v = S^-1 (mean(positive) - mean(negative)),   S shrunk in standardised coordinates (see `maths.readouts.lda`)

    It reads better than the mean difference and often steers worse: it points where the classes overlap least, and not
    to where the other class lies.

    Args: as `mean_difference`. shrinkage: "ledoit-wolf" (needs all rows at once), "oas", or a share; 0 is plain LDA,
        defined where there are more rows than dimensions.
    Raises: as `mean_difference`; TooFewExamples: fewer than two rows on a side.
    Source: Marks and Tegmark (arXiv 2310.06824), "IID mass mean".
    """
    if shrinkage != "ledoit-wolf":
        fitter = LinearDiscriminant(site, shrinkage=shrinkage, positive=positive, name=name, frame=frame)
        return fitter.update(x, labels).finish()
    rows = state_rows(x, site, frame=frame)
    named = row_labels(labels, len(rows))
    fitter = MeanDifference(rows.site, positive=positive, name=name, frame=frame)._update(rows, named)
    *_, source = fitter._sides()
    _enough(*source["n"])
    yes, _ = two_sides(list(dict.fromkeys(named)), positive)
    y = torch.tensor([[label in yes for label in named]])
    found = lda_readout(rows.values[None], y, torch.ones(1), torch.ones_like(y))
    return fitter._direction(found.weights[0, 0], {"method": "lda", "shrinkage": "ledoit-wolf", **source})


class ConceptMeans(MeanDifference):
    """Fitter of `concept_edit`."""

    def finish(self, amount: float = 0.0, **options: Any) -> ConceptEdit:  # type: ignore[override]
        """The edit of all rows taken so far.

        Args: amount: a. options: `where`, `schedule`, of the intervention.
        Raises: as `MeanDifference.finish`.
        """
        _, reference, difference, source = self._sides()
        direction = self._direction(difference, {"method": "mean difference", **source})
        return ConceptEdit(direction, reference.float(), amount, **options)


def concept_edit(
    x: Any,
    labels: Any,
    amount: float = 0.0,
    *,
    site: Site | str | None = None,
    positive: Hashable = None,
    frame: str = "raw",
    **options: Any,
) -> ConceptEdit:
    """Affine concept editing: the reference point and the direction from the rows, as an intervention.

        h' = h - proj_r h + proj_r r0 + a r,   r = mean(positive) - mean(negative),   r0 = mean(negative)

    amount 0 puts every state where the negative class is on average, 1 where the positive class is; directional
    ablation (r0 = 0) puts it where neither is, unless the negative mean happens to be orthogonal to r.

    Args: as `mean_difference`. amount: a. options: `where`, `schedule`, of the intervention.
    Returns: ConceptEdit.
    Raises: as `mean_difference`.
    Source: ACE, Marshall et al. (arXiv 2411.09003).
    """
    fitter = ConceptMeans(site, positive=positive, frame=frame).update(x, labels)
    return fitter.finish(amount, **options)


def act_add(prompt: Any, other: Any, *, coeff: float = 1.0, site: Site | str | None = None, **options: Any) -> AddAt:
    """ActAdd: the difference of ONE pair of prompts, position by position, added to the front of another prompt.

        v_t = h_t(prompt) - h_t(other),    h_t' = h_t + c v_t    for the first positions t of the text

    Positions are counted in the unpadded row, so left padding does not move them; tokens that are generated are
    left alone. The paper pads the shorter prompt with spaces: do so before capturing, so that both have as many tokens.

    Args:
        prompt, other: states of all positions of one prompt each, (t, d), from the front (`where="all"`).
        coeff: c.
        site: as in `mean_difference`.
        options: of the intervention; `where="first-t"` by default.

    Returns: AddAt.
    Raises: BadInput: different lengths, or states of several texts. NonFiniteActivations.
    Source: Turner et al. (arXiv 2308.10248).
    """
    sides = [state_rows(x, site, what="positions") for x in (prompt, other)]
    place = same_site(*sides)
    for x in (prompt, other):
        if hasattr(x, "labels") and len(set(x.labels.get("text", [0]))) > 1:
            raise BadInput("ActAdd takes ONE pair of prompts: capture each by itself, or use mean_difference")
    if len(sides[0]) != len(sides[1]) or not len(sides[0]):
        raise BadInput(
            f"{len(sides[0])} and {len(sides[1])} positions: pad the shorter prompt with spaces before capturing, as "
            "the paper does, so that position t of one stands beside position t of the other"
        )
    vectors = (sides[0].values - sides[1].values).float()
    return AddAt(vectors, site=place, coeff=coeff, **{"where": f"first-{len(vectors)}", **options})


def _enough(n1: int, n0: int) -> None:
    if min(n1, n0) < 2:
        raise TooFewExamples(f"{n1} and {n0} rows: LDA needs two on each side, to see how they spread")
