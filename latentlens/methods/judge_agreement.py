"""Do two judges say the same of the same cases?

cases = ll.LabelledJudge("labels.csv").cases
ll.judge_agreement(people.scores(cases), judge.scores(cases), names=("people", "judge"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.agreement import cohen_kappa, percent_agreement, spearman, with_interval
from latentlens.values.judging import Score
from latentlens.values.labelled_rows import group_codes
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class JudgeAgreement(Shown):
    """Two judges on the cases that both judged.

    names: of the two. same: share on which both are on the same side of `limit`; kappa: the same beyond chance;
    weighted_kappa: quadratic, over the whole numbers said; spearman: whether they order the cases alike. bias: mean of
    the second minus the first. left_out: cases that (first, second) did not judge. shares: at or above the limit.
    """

    names: tuple[str, str]
    limit: float
    same: Estimate
    kappa: Estimate
    weighted_kappa: Estimate
    spearman: Estimate
    bias: Estimate
    left_out: tuple[int, int]
    shares: tuple[float, float]

    def to_frame(self) -> pd.DataFrame:
        """One row a statistic."""
        import pandas as pd

        rows = {
            f"same side of {self.limit:g}": self.same,
            "Cohen's kappa of that": self.kappa,
            "kappa, quadratic": self.weighted_kappa,
            "Spearman": self.spearman,
            f"{self.names[1]} minus {self.names[0]}": self.bias,
        }
        return pd.DataFrame({"statistic": list(rows), "value": list(rows.values())})

    def __repr__(self) -> str:
        one, two = self.left_out
        return (
            f"JudgeAgreement({self.names[0]} and {self.names[1]}: kappa {self.kappa.short} at {self.limit:g}, Spearman "
            f"{self.spearman.short}; n={self.same.n}, not judged {one} and {two})"
        )


def judge_agreement(
    first: Sequence[Score],
    second: Sequence[Score],
    *,
    names: tuple[str, str] = ("first", "second"),
    limit: float = 50.0,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> JudgeAgreement:
    """Agreement of two judges, with intervals and with what they left out.

    Args: first, second: what each said of the same cases, in one order. names: for people. limit: the score from which
        on a case counts as showing the trait. groups: what intervals resample together, such as the prompt. seed.
    Raises: BadInput: different numbers of cases. TooFewExamples: fewer than two cases that both judged.
    """
    if len(first) != len(second):
        raise BadInput(f"{len(first)} and {len(second)} scores: the same cases, in one order")
    a, b = (np.array([np.nan if s.value is None else s.value for s in side]) for side in (first, second))
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2:
        raise TooFewExamples(f"{int(both.sum())} of {len(a)} cases were judged by both: at least two are needed")
    group = group_codes("groups", groups, len(a))[both]
    left_out = int(np.isnan(a).sum()), int(np.isnan(b).sum())
    a, b = a[both], b[both]

    def estimate(statistic: Callable[..., float], x: Any, y: Any, **options: Any) -> Estimate:
        return Estimate(*with_interval(statistic, x, y, groups=group, seed=seed, **options), len(x))

    yes = a >= limit, b >= limit
    whole = np.rint(a).astype(int), np.rint(b).astype(int)
    classes = np.arange(min(map(min, whole)), max(map(max, whole)) + 1)
    return JudgeAgreement(
        names,
        limit,
        estimate(percent_agreement, *yes),
        estimate(cohen_kappa, *yes),
        estimate(cohen_kappa, *whole, weights="quadratic", classes=classes),
        estimate(spearman, a, b),
        estimate(lambda x, y: float((y - x).mean()), a, b),
        left_out,
        (float(yes[0].mean()), float(yes[1].mean())),
    )
