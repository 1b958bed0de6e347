"""How many dimensions a cloud of points fills, counted in several ways.

    spectrum                  eigenvalues of the sample covariance
    participation_ratio       (sum l)^2 / sum l^2            a smooth count
    participation_error       its standard error, whole groups left out in turn
    components_for            fewest components that hold a share of the variance
    marchenko_pastur          eigenvalues above what noise alone would give
    two_nn, levina_bickel     intrinsic dimension from distances to neighbours

No estimate exceeds the number of points minus one: with fewer points than dimensions it counts points, not
dimensions. Compare clouds of equal size, or subsample.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples

# Distances below this are duplicates: the ratio to them has no meaning.
_SAME = 1e-10


def spectrum(points: ArrayLike) -> NDArray[np.float64]:
    """Eigenvalues of the sample covariance (divided by n - 1), descending.

    Args: points: (n, d).
    Returns: (min(n - 1, d),), not negative.
    Raises: TooFewExamples: fewer than two points. NonFiniteActivations. BadInput: not a matrix.
    """
    x = _points(points, 2)
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    return singular[: min(len(x) - 1, x.shape[1])] ** 2 / (len(x) - 1)


def participation_ratio(points: ArrayLike) -> float:
    """Participation ratio of the centred points.

        PR = (sum_i l_i)^2 / sum_i l_i^2       l: `spectrum`

    d for a round cloud of many points, 1 on a line; NaN where the points do not vary.

    Args: points: (n, d).
    Raises: as `spectrum`.
    """
    return participation_of(spectrum(points), scale=_scale(points))


def participation_of(eigenvalues: ArrayLike, *, scale: float = 0.0) -> float:
    """Participation ratio of eigenvalues; NaN if all are zero, up to rounding of numbers as large as `scale`."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    total = values.sum() if len(values) else 0.0
    if total <= (1e-7 * scale) ** 2:
        return math.nan
    share = values / total
    return float(1 / (share**2).sum())


def participation_error(points: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Standard error of the participation ratio: the jackknife, leaving out one group at a time.

        se^2 = (G - 1) / G sum_g (PR_g - mean PR)^2       PR_g: without group g

    Drawing points with replacement would repeat some and so lower the ratio itself.

    Args: points: (n, d). groups: (n,); None makes every row its own.
    Returns: NaN where the ratio of a remainder is undefined.
    Raises: TooFewExamples: fewer than three groups. BadInput, NonFiniteActivations: as `spectrum`.
    """
    x = _points(points, 3)
    codes = np.arange(len(x)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(codes) != len(x):
        raise BadInput(f"{len(codes)} groups for {len(x)} points: give one a point")
    count = int(codes.max()) + 1
    if count < 3:
        raise TooFewExamples(f"{count} groups: leaving one out in turn needs at least 3")
    x = x - x.mean(axis=0)
    products = x @ x.T  # PR = (trace)^2 / |.|_F^2 of the centred products, so no further decomposition is needed
    floor = (1e-7 * _scale(points)) ** 2
    found = np.empty(count)
    for g in range(count):
        kept = np.flatnonzero(codes != g)
        part = products[np.ix_(kept, kept)]
        means = part.mean(axis=0)
        part = part - means - means[:, None] + means.mean()
        trace = float(np.trace(part))
        found[g] = trace**2 / float((part**2).sum()) if len(kept) > 1 and trace > floor else math.nan
    return float(np.sqrt((count - 1) / count * ((found - found.mean()) ** 2).sum()))


def components_for(points: ArrayLike, share: float = 0.9) -> float:
    """Fewest principal components that together hold `share` of the variance; NaN where nothing varies.

    Args: points: (n, d). share: above 0, at most 1.
    Returns: a whole number as a float, at most min(n - 1, d).
    Raises: as `spectrum`; BadInput: another share.
    """
    if not 0 < share <= 1:
        raise BadInput(f"share={share}: a share of the variance lies above 0 and at most at 1, for instance .9")
    values = spectrum(points)
    if values.sum() <= (1e-7 * _scale(points)) ** 2:
        return math.nan
    reached = np.cumsum(values) / values.sum()
    # A share met exactly must not be missed by rounding.
    return float(min(np.searchsorted(reached, share * (1 - 1e-12)) + 1, len(values)))


def marchenko_pastur(
    eigenvalues: ArrayLike, n_points: int, n_dimensions: int, *, inverted: bool = False
) -> NDArray[np.float64]:
    """Eigenvalues above the edge of pure noise.

        keep l > s2 (1 + sqrt(g))^2,   s2 = median of the eigenvalues,   g = d / n

    s2 is the rough estimate of the source: the median lies below the noise variance, the further the larger g is.

    Args:
        eigenvalues: of a sample covariance.
        n_points: n. n_dimensions: d.
        inverted: use 1 / g where g exceeds 1, as the published code does; the textbook edge does not.

    Returns: those kept, in their order; may be empty.
    Raises: TooFewExamples: no eigenvalue.
    Source: Marchenko and Pastur 1967; use on latent states: arXiv 2601.01011.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if not len(values) or n_points < 1 or n_dimensions < 1:
        raise TooFewExamples(f"{len(values)} eigenvalues of {n_points} points in {n_dimensions} dimensions: no edge")
    ratio = n_dimensions / n_points
    if inverted and ratio > 1:
        ratio = 1 / ratio
    return values[values > np.median(values) * (1 + math.sqrt(ratio)) ** 2]


def two_nn(points: ArrayLike) -> float:
    """Intrinsic dimension from the two nearest neighbours of each point.

        dim = n / sum_i ln(r2_i / r1_i)        the maximum-likelihood form

    Points with a duplicate (r1 below 1e-10) are left out.

    Args: points: (n, d).
    Returns: the estimate; NaN when all ratios are 1 (a regular lattice).
    Raises: TooFewExamples: fewer than three points, or fewer than two without a duplicate.
    Source: Facco et al., Scientific Reports 7 (2017) 12140.
    """
    nearest = _neighbours(points, 2)
    apart = nearest[nearest[:, 0] > _SAME]
    if len(apart) < 2:
        raise TooFewExamples(f"{len(apart)} of {len(nearest)} points differ from their neighbour: TwoNN needs 2")
    total = float(np.log(apart[:, 1] / apart[:, 0]).sum())
    return len(apart) / total if total > 0 else math.nan


def levina_bickel(points: ArrayLike, k: int = 20, *, averaged: str = "inverse") -> float:
    """Intrinsic dimension from the k nearest neighbours of each point.

        m_i = [ 1 / (k - 1) sum_{j<k} ln(T_k / T_j) ]^-1        T_j: distance to the j-th neighbour

    Args:
        points: (n, d).
        k: neighbours; lowered to n - 1.
        averaged: "inverse" averages 1 / m_i over points (MacKay and Ghahramani's correction, less biased);
            "plain" averages m_i, as in the original article.

    Raises: TooFewExamples: fewer than four points, or fewer than two without a duplicate. BadInput: k below 3.
    Source: Levina and Bickel, NIPS 2004; MacKay and Ghahramani 2005.
    """
    if k < 3:
        raise BadInput(f"k={k}: Levina-Bickel needs at least 3 neighbours")
    if averaged not in ("inverse", "plain"):
        raise BadInput(f"averaged={averaged!r}: allowed are 'inverse' and 'plain'")
    x = _points(points, 4)
    nearest = _neighbours(x, min(k, len(x) - 1))
    apart = nearest[nearest[:, 0] > _SAME]
    if len(apart) < 2:
        raise TooFewExamples(f"{len(apart)} of {len(nearest)} points differ from their neighbours: 2 are needed")
    inverse = np.log(apart[:, -1:] / apart[:, :-1]).mean(axis=1)
    if averaged == "inverse":
        mean = float(inverse.mean())
        return 1 / mean if mean > 0 else math.nan
    kept = inverse[inverse > 0]
    return float((1 / kept).mean()) if len(kept) else math.nan


def _points(points: ArrayLike, least: int) -> NDArray[np.float64]:
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2:
        raise BadInput(f"points of shape {x.shape}: give (n, d)")
    if len(x) < least:
        raise TooFewExamples(f"{len(x)} point(s): at least {least} are needed")
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x).all(axis=1)
        raise NonFiniteActivations(f"{int(bad.sum())} of {len(x)} points hold NaN or infinity")
    return x


def _scale(points: ArrayLike) -> float:
    x = np.asarray(points, dtype=np.float64)
    return float(np.abs(x).max()) if x.size else 0.0


def _neighbours(points: ArrayLike, k: int) -> NDArray[np.float64]:
    """Distances to the k nearest other points, ascending: (n, k)."""
    from scipy.spatial.distance import cdist

    x = _points(points, k + 1)
    found = np.empty((len(x), k))
    step = max(1, (1 << 22) // len(x))
    for first in range(0, len(x), step):
        # Differences first, then squares: subtracting squared norms would lose near neighbours to rounding.
        gaps = cdist(x[first : first + step], x)
        gaps[np.arange(len(gaps)), np.arange(first, first + len(gaps))] = np.inf
        found[first : first + step] = np.sort(np.partition(gaps, k - 1, axis=1)[:, :k], axis=1)
    return found
