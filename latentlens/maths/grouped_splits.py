"""Who is on which side: splits, folds and permutations that keep groups together.

Rows of one group (one question, city, template) on both sides of a split let a probe recognise the group: with
random labels and five rows of each question a row-wise split reaches an AUROC of 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentlens.errors import BadInput, TooFewExamples

_SPLITS_TRIED = 200


class Split(NamedTuple):
    """Row indices of the two sides."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def split_by_group(y: NDArray, group: NDArray, test_share: float, rng: np.random.Generator) -> Split:
    """Of many random splits by group, the one whose sides agree best in size and share of positives.

    Args: y: (n,) bool. group: (n,) codes 0, 1, ... test_share: share of rows held out. rng: of the draws.
    Raises: BadInput, TooFewExamples: no split has both classes on both sides.
    """
    n_groups = int(group.max()) + 1
    if not 0 < test_share < 1:
        raise BadInput(f"test_share={test_share}: a share lies between 0 and 1, for instance .3")
    if n_groups < 4:
        raise TooFewExamples(f"{n_groups} group(s) of rows: a grouped split needs at least 2 on each side")
    sizes, positives = np.bincount(group), np.bincount(group, weights=y)
    best, best_gap = None, math.inf
    for _ in range(_SPLITS_TRIED):
        order = rng.permutation(n_groups)
        rows = np.cumsum(sizes[order])
        k = int(np.clip(np.abs(rows - test_share * len(y)).argmin() + 1, 2, n_groups - 2))
        n_test, p_test = int(rows[k - 1]), float(positives[order[:k]].sum())
        n_train, p_train = len(y) - n_test, float(y.sum()) - p_test
        if not (0 < p_test < n_test and 0 < p_train < n_train):
            continue
        gap = abs(n_test / len(y) - test_share) + abs(p_test / n_test - p_train / n_train)
        if gap < best_gap:
            best, best_gap = order[:k], gap
    if best is None:
        of_one, of_zero = len(np.unique(group[y])), len(np.unique(group[~y]))
        raise TooFewExamples(
            f"no split of {n_groups} groups has both classes on both sides: {of_one} group(s) hold label 1, "
            f"{of_zero} hold label 0; each class must be in at least 2"
        )
    test = np.isin(group, best)
    return Split(np.flatnonzero(~test), np.flatnonzero(test))


def grouped_folds(y: NDArray, group: NDArray, rows: NDArray, n_folds: int, seed: int) -> list[Split]:
    """Grouped folds of some rows in which both parts hold both classes; stratified as far as groups allow.

    Raises: TooFewExamples: there is no such fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    yr, gr = y[rows], group[rows]
    k = min(n_folds, len(np.unique(gr[yr])), len(np.unique(gr[~yr])))
    folds = []
    if k >= 2:
        cutter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
        cut = [Split(rows[a], rows[b]) for a, b in cutter.split(yr, yr, gr)]
        folds = [f for f in cut if all(0 < y[side].sum() < len(side) for side in f)]
    if not folds:
        raise TooFewExamples(
            f"the training side ({len(rows)} rows, {len(np.unique(gr))} groups) has no grouped fold with both "
            "classes, so C and the best site cannot be chosen: give more groups, or one C and one site"
        )
    return folds


def split_inside_groups(group: NDArray, test_share: float, rng: np.random.Generator) -> Split | None:
    """Every group with two rows or more gives some to each side; None where no group has two."""
    train, test = [], []
    for g in range(int(group.max()) + 1):
        rows = rng.permutation(np.flatnonzero(group == g))
        k = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
        test.append(rows[:k])
        train.append(rows[k:])
    split = Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)))
    return split if len(split.test) else None


def one_label_a_group(y: NDArray, group: NDArray) -> bool:
    """Whether every group has one label only."""
    return all(0 in (p, n - p) for p, n in zip(np.bincount(group, weights=y), np.bincount(group)))


def shuffled(y: NDArray, group: NDArray, split: Split, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Labels permuted within each side; group by group where every group has one label."""
    together = one_label_a_group(y, group)
    out = y.copy()
    for side in split:
        if together:
            members, first = np.unique(group[side], return_index=True)
            new = dict(zip(members.tolist(), rng.permutation(y[side][first]).tolist()))
            out[side] = [new[g] for g in group[side].tolist()]
        else:
            out[side] = rng.permutation(y[side])
    return out


def permuted(y: NDArray, group: NDArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Labels under the null hypothesis that groups are exchangeable, and rows within a group.

    Groups of the same size swap their labels as a whole, then the labels of a group are shuffled within it: so
    labels stay as clustered as they were. Where every group has one label, groups of any size swap.

    Source: block permutation: Winkler et al., NeuroImage 123 (2015), multi-level exchangeability.
    """
    if one_label_a_group(y, group):
        first = np.unique(group, return_index=True)[1]
        return rng.permutation(y[first])[group]
    out = y.copy()
    members = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    sizes = np.array([len(m) for m in members])
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        for to, source in zip(alike, rng.permutation(alike)):
            out[members[to]] = rng.permutation(y[members[source]])
    return out


def distinct_parts(items: Iterable[Hashable], sizes: Sequence[int], *, what: str = "items") -> list[list[Any]]:
    """Distinct items in the order in which they come, cut into parts of these sizes; no item is in two of them.

    >>> distinct_parts("abacdbe", [2, 1])
    [['a', 'b'], ['c']]

    Args: what: the items are, for the message.
    Raises: TooFewExamples: fewer different items than the parts take.
    """
    found, taken = list(dict.fromkeys(items)), sum(sizes)
    if len(found) < taken:
        raise TooFewExamples(f"{len(found)} different {what}: the parts of {', '.join(map(str, sizes))} take {taken}")
    ends = np.cumsum(sizes).tolist()
    return [found[first:last] for first, last in zip([0, *ends], ends)]
