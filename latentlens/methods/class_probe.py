"""A probe of more than two classes: one logistic readout a class, against the rest.

found = fit_classes(acts, topics, groups=ids, site="resid_post[4]")
found.accuracy, found.auroc          # held out, with intervals
found.directions["sport"]            # ready to steer with
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentlens.errors import TooFewExamples
from latentlens.maths import readouts
from latentlens.maths.statistics import auroc_rows, cluster_bootstrap
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction, as_site
from latentlens.values.labelled_rows import classes_of, finite_rows, group_codes
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ClassProbe(Shown):
    """One readout a class. accuracy: of the highest score; auroc: mean over classes against the rest; shuffled:
    accuracy after refitting on permuted labels, mean and spread over draws; majority: share of the largest class;
    confusion: (true, named) counts. All on held-out groups.
    """  # fmt: skip

    classes: tuple[str, ...]
    directions: Mapping[str, Direction]
    intercepts: tuple[float, ...]
    accuracy: Estimate
    auroc: Estimate
    shuffled: Estimate
    majority: float
    confusion: NDArray[np.intp]
    about: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, values: Tensor) -> Tensor:
        """(..., d) -> (..., classes): log odds of each class against the rest."""
        weights = torch.stack([self.directions[c].vector for c in self.classes])
        return values.float() @ weights.T + torch.tensor(self.intercepts)

    def to_frame(self) -> pd.DataFrame:
        """The confusion matrix, a row a true class."""
        import pandas as pd

        return pd.DataFrame(self.confusion, index=list(self.classes), columns=list(self.classes))

    def __repr__(self) -> str:
        return (
            f"ClassProbe({len(self.classes)} classes: accuracy {self.accuracy}, majority {self.majority:.3f}, shuffled "
            f"labels {self.shuffled.short}, AUROC {self.auroc.short})"
        )


def fit_classes(
    acts: Activations, labels: Sequence[Any], *, site: Site | str, groups: Sequence[Any] | None = None, C: float = 0.1,
    test_share: float = 0.3, n_bootstrap: int = 1000, n_controls: int = 20, seed: int = 0, level: float = 0.95,
) -> ClassProbe:  # fmt: skip
    """Fit every class against the rest, on whole groups, and score the held-out ones.

    Args: acts, labels, groups: as `probe.fit`, with any number of classes. site: one. C: inverse penalty.
    Raises: TooFewExamples: no split has every class on both sides. BadInput, NonFiniteActivations.
    """
    place, n = as_site(site), len(acts)
    y, names = classes_of(labels, n)
    group = group_codes("groups", groups if groups is not None else acts.labels.get("text"), n)
    x, rng = finite_rows(acts, place)[None], np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    for _ in range(200):
        test = np.isin(group, rng.permutation(n_groups)[: max(1, round(test_share * n_groups))])
        if len(set(y[test])) == len(set(y[~test])) == len(names):
            break
    else:
        raise TooFewExamples(f"no split of {n_groups} groups has all {len(names)} classes on both sides")

    rows = torch.as_tensor(~test), torch.as_tensor(test)

    def fitted(target: NDArray) -> readouts.Readouts:
        each = torch.as_tensor(np.stack([target[~test] == c for c in range(len(names))]))
        strength = torch.full((len(names),), C, dtype=torch.float64)
        return readouts.logistic(x[:, rows[0]], each, strength, torch.ones_like(each))

    found = fitted(y)
    scores, truth = found.scores(x[:, rows[1]])[0].numpy(), y[test]
    right = scores.argmax(axis=0) == truth

    def area(s: NDArray, t: NDArray) -> float:
        return float(np.mean(auroc_rows(s.T, np.stack([t == c for c in range(len(names))]))))

    ends = [
        cluster_bootstrap(statistic, *arrays, groups=group[test], n=n_bootstrap, seed=seed, level=level)
        for statistic, arrays in ((lambda r: float(r.mean()), (right,)), (area, (scores.T, truth)))
    ]
    null = []
    for _ in range(n_controls):
        drawn = y.copy()
        drawn[~test] = rng.permutation(y[~test])
        null.append(float((fitted(drawn).scores(x[:, rows[1]])[0].argmax(0).numpy() == truth).mean()))
    confusion = np.zeros((len(names), len(names)), dtype=np.intp)
    np.add.at(confusion, (truth, scores.argmax(axis=0)), 1)
    low, high = np.quantile(null, [(1 - level) / 2, (1 + level) / 2])
    about = {"method": "logistic probe, one against the rest", "C": C, "seed": seed}
    directions = {
        name: Direction(w.float(), place, f"probe {name} against the rest", "raw", about)
        for name, w in zip(names, found.weights[0])
    }
    return ClassProbe(
        names, directions, tuple(found.intercepts[0].tolist()),
        Estimate(float(right.mean()), *ends[0], len(truth), level),
        Estimate(area(scores.T, truth), *ends[1], len(truth), level),
        Estimate(float(np.mean(null)), float(low), float(high), n_controls, level),
        float(np.bincount(truth).max() / len(truth)), confusion, {**about, "n_train": int((~test).sum())},
    )  # fmt: skip
