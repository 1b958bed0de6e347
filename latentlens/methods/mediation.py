"""Which part of a model carries an effect: total, indirect and direct effects from runs in which parts were swapped.

    x: the prompt that is run and edited; x': the one that values are taken from; m: a number read from the answer
    total effect       TE     = m(x') - m(x)
    indirect effect    IE(z)  = m(x | do(z = z_x')) - m(x)          z alone is as in x'
    direct effect      NDE(z) = m(x' | do(z = z_x)) - m(x)          everything but z is as in x'
    normalised         IE(z) / TE = (m_patched - m_x) / (m_x' - m_x)

Denoising edits the corrupt prompt with values of the clean one: z is enough to bring the answer back (sufficient).
Noising edits the clean prompt with values of the corrupt one: without z the answer goes (necessary). Both normalised
effects are 0 where z does nothing and 1 where it does everything.

    runs  = lm.patch(mediators, clean, corrupt, metric)      # access: runs the model
    found = ll.mediation.effects(runs, groups=topics)        # these numbers, with intervals and controls
    lm.indirect_effect(direction, clean, corrupt, metric)    # both in one

Sources: Pearl, Direct and Indirect Effects (2001); The Quest for the Right Mediator (arXiv 2408.01416); Zhang and Nanda
(arXiv 2309.16042) on metrics and corruption; Nanda, Attribution Patching (2023); MIB (arXiv 2504.13151), CPR and CMD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.attribution import integrated as integrated
from latentlens.maths.attribution import normalised as normalised
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.values.mediation import Agreement, Faithfulness, Mediation, Patched
from latentlens.values.results import Estimate


def effects(
    runs: Patched,
    *,
    groups: ArrayLike | None = None,
    least: float | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Mediation:
    """Indirect effects of every mediator, with intervals, and their controls on the same items.

    - effect: the mean of IE. normalised: the mean of IE / TE over items whose |TE| exceeds `least`; the others are
      dropped from it and counted. pooled: sum of IE over sum of TE, which needs no item dropped.
    - direct: the mean of NDE, where the runs have it.
    - unrelated, random: normalised effects of the same patch with the states of a prompt that has nothing to do with
      the pair, and of random changes of equal norm.

    Args:
        runs: from `lm.patch`, or made from numbers measured elsewhere.
        groups: (n,) what is resampled together: topic, template. Default: every item on its own.
        least: smallest |TE| that is divided by; a tenth of the median |TE| by default.
        n_bootstrap, seed, level: of the intervals.
    Raises: BadInput: lengths differ. TooFewExamples: no item, or none with an effect to divide by.
    """
    return Mediation.of(runs, groups=groups, least=least, n_bootstrap=n_bootstrap, seed=seed, level=level)


def agreement(exact: Patched, approximate: Patched, *, seed: int = 0, level: float = 0.95) -> Agreement:
    """How well an approximation (attribution patching, integrated gradients) gives the effects of patching.

    Args: exact, approximate: the same items and mediators by two methods.
    Returns: Pearson and Spearman correlation of the mean effects over mediators, with intervals over items, the slope
        of approximate against exact through 0, and the largest gap.
    Raises: BadInput: other items or mediators. TooFewExamples: fewer than three mediators.
    """
    if exact.names != approximate.names or not np.allclose(exact.base, approximate.base, rtol=1e-4, atol=1e-4):
        raise BadInput("the two runs differ in their mediators or items: patch the same ones by both methods")
    if len(exact.names) < 3:
        raise TooFewExamples(f"{len(exact.names)} mediators: a correlation needs at least 3")
    one, two = exact.indirect, approximate.indirect
    rows = np.arange(len(one))

    def over_items(correlation):
        def statistic(index: NDArray) -> float:
            return correlation(one[index].mean(0), two[index].mean(0))

        low, high = cluster_bootstrap(statistic, rows, seed=seed, level=level) if len(rows) > 1 else (math.nan,) * 2
        return Estimate(statistic(rows), low, high, len(rows), level)

    a, b = one.mean(0), two.mean(0)
    slope = float((a * b).sum() / (a * a).sum()) if a.any() else math.nan
    worst = int(np.abs(a - b).argmax())
    return Agreement(
        over_items(_pearson), over_items(_spearman), slope, exact.names[worst], float(a[worst]), float(b[worst]),
        (exact.method, approximate.method),
    )  # fmt: skip


def faithfulness(sizes: Sequence[float], values: ArrayLike, names: Sequence[str] = ()) -> Faithfulness:
    """How much of the effect a growing set of mediators carries: CPR and CMD of the curve f(size).

        CPR = area under f,  CMD = area under |1 - f|          trapezoids over the share of the model that is patched

    CPR is large where few mediators carry much (it may exceed 1), CMD is small where the set does as the model does.

    Args:
        sizes: increasing shares in [0, 1], such as .001, .002, ..., 1.
        values: f at each, the normalised effect of patching that set together.
        names: of the sets, for the table.
    Raises: BadInput: sizes not increasing, or not as many as values. TooFewExamples: fewer than two.
    Source: MIB (arXiv 2504.13151), section 3; its code integrates from the first size to the last.
    """
    x, f = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.shape != f.shape or x.ndim != 1 or (np.diff(x) <= 0).any():
        raise BadInput(f"sizes {x.shape} must increase, with one value each: values {f.shape}")
    if len(x) < 2:
        raise TooFewExamples("an area needs at least two sizes")
    return Faithfulness(
        tuple(x.tolist()), tuple(f.tolist()), float(np.trapezoid(f, x)), float(np.trapezoid(np.abs(1 - f), x)),
        tuple(names),
    )  # fmt: skip


def _pearson(a: NDArray, b: NDArray) -> float:
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _spearman(a: NDArray, b: NDArray) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(a), rankdata(b))
