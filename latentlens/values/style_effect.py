"""In which style a model answers, by arm of an experiment: shares, validity, and what the steering cost.

StyleArm          one arm: the style that a judge found in every answer, whether the answer is valid, nats to the base
StyleEffect       arms of one target style, compared prompt by prompt
arms_by_target, pooled_difference    several of them side by side, and at once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.statistics import cluster_bootstrap, difference_of_proportions, wilson
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"


@dataclass(frozen=True)
class StyleArm:
    """Answers under one plan.

    name: of the arm. prompt, seed: of each answer; answers of other arms with the same pair are its partners. style:
    what the judge found, "unknown" where nothing. valid: whether it parses as its style; None where nobody can tell.
    kl: nats of each answer to the unsteered model, summed over its tokens; empty where it was not measured.
    """

    name: str
    prompt: tuple[int, ...]
    seed: tuple[int, ...]
    style: tuple[str, ...]
    valid: tuple[bool | None, ...] = ()
    kl: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Every column has one value an answer."""
        for name in ("prompt", "seed", "style", "valid", "kl"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lengths = {len(self.prompt), len(self.seed), len(self.style), *(len(c) for c in (self.valid, self.kl) if c)}
        if len(lengths) > 1:
            raise BadInput(f"arm {self.name!r}: columns of {sorted(lengths)} answers")
        if not self.style:
            raise TooFewExamples(f"arm {self.name!r} has no answer")

    @property
    def n(self) -> int:
        """Answers."""
        return len(self.style)

    def share(self, style: str) -> Estimate:
        """Share of answers in a style (or "unknown"), of all answers, with Wilson's interval."""
        return _share(sum(one == style for one in self.style), self.n)

    def shares(self, styles: Sequence[str]) -> dict[str, Estimate]:
        """Shares of the styles and of "unknown"."""
        return {style: self.share(style) for style in (*styles, UNKNOWN)}

    def validity(self, style: str) -> Estimate:
        """Share valid among the answers in a style that can be judged; NaN where there are none."""
        judged = [v for v, one in zip(self.valid, self.style) if one == style and v is not None]
        return _share(sum(judged), len(judged))

    def hits(self, style: str) -> np.ndarray:
        """(n,) bool: in the style, and not known to be invalid."""
        valid = self.valid or (None,) * self.n
        return np.array([one == style and v is not False for one, v in zip(self.style, valid)])

    def hit(self, style: str) -> Estimate:
        """Share of answers in the style that are not known to be invalid."""
        return _share(int(self.hits(style).sum()), self.n)

    def nats(self, seed: int = 0, level: float = 0.95) -> Estimate:
        """Mean KL of an answer to the unsteered model, interval by prompt; NaN where it was not measured."""
        if not self.kl:
            return Estimate(float("nan"), float("nan"), float("nan"), 0, level)
        kl = np.array(self.kl)
        try:
            ends = cluster_bootstrap(np.mean, kl, groups=self.prompt, seed=seed, level=level)
        except TooFewExamples:
            ends = (float("nan"), float("nan"))
        return Estimate(float(kl.mean()), *ends, len(kl), level)


@dataclass(frozen=True)
class StyleEffect(Shown):
    """What the arms did towards one target style. styles: all that the judge can find. base: name of the unsteered arm.

    Raises: TooFewExamples: no arm, or no base. BadInput: two arms of one name.
    """

    target: str
    styles: tuple[str, ...]
    arms: tuple[StyleArm, ...]
    base: str = "no edit"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names."""
        object.__setattr__(self, "styles", tuple(self.styles))
        object.__setattr__(self, "arms", tuple(self.arms))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise BadInput(f"arms must have names of their own: {names}")
        if self.base not in names:
            raise TooFewExamples(f"no arm {self.base!r} to compare with; there are {names}")

    def __getitem__(self, name: str) -> StyleArm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise BadInput(f"no arm {name!r}; there are {', '.join(arm.name for arm in self.arms)}")

    def difference(self, one: str, other: str, *, n: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
        """Share of valid answers in the target under one arm minus that under another.

        Pairs of answers to the same prompt with the same seed; whole prompts are resampled. Where all pairs differ by
        the same (mostly: none differs) no resample can, and the ends are Newcombe's for independent shares: wider.

        Raises: BadInput: the arms share no pair. TooFewExamples: one prompt.
        """
        return pooled_difference([self], one, other, n=n, seed=seed, level=level)

    def to_frame(self) -> pd.DataFrame:
        """One row an arm: share of the target and of every other style, unknown, valid, hits, nats."""
        import pandas as pd

        rows = []
        for arm in self.arms:
            rows.append(
                {
                    "target": self.target,
                    "arm": arm.name,
                    "n": arm.n,
                    "valid and in the target": arm.hit(self.target),
                    "in the target": arm.share(self.target),
                    "valid of those": arm.validity(self.target),
                    "nats an answer": arm.nats(),
                    **{f"share {s}": e for s, e in arm.shares(self.styles).items()},
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        parts = [f"{arm.name} {arm.hit(self.target).short}" for arm in self.arms]
        return f"StyleEffect(valid answers in {self.target}: {'; '.join(parts)})"


def pooled_difference(
    effects: Sequence[StyleEffect], one: str, other: str, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Share of valid answers in the target under one arm minus that under another, over several targets at once.

    Pairs as in `StyleEffect.difference`; a prompt is resampled with its answers for all targets.

    Raises: BadInput: arms of some target share no pair. TooFewExamples: one prompt.
    """
    moved, prompts, counts = [], [], [0, 0]
    for effect in effects:
        sides = [dict(zip(zip(a.prompt, a.seed), a.hits(effect.target))) for a in (effect[one], effect[other])]
        pairs = sorted(sides[0].keys() & sides[1].keys())
        if not pairs:
            raise BadInput(f"{one!r} and {other!r} have no prompt and seed in common")
        moved += [float(sides[0][pair]) - float(sides[1][pair]) for pair in pairs]
        prompts += [prompt for prompt, _ in pairs]
        counts = [k + sum(bool(side[pair]) for pair in pairs) for k, side in zip(counts, sides)]
    if np.ptp(moved) == 0:
        ends = difference_of_proportions(counts[0], len(moved), counts[1], len(moved), level)[1:]
    else:
        ends = cluster_bootstrap(np.mean, moved, groups=prompts, n=n, seed=seed, level=level)
    return Estimate(float(np.mean(moved)), *ends, len(moved), level)


def arms_by_target(effects: Sequence[StyleEffect]) -> pd.DataFrame:
    """One row an arm: for every target the share of valid answers in it; then, over all targets, the share of answers
    of unknown style, the share valid of those in the target, and the mean nats of an answer.

    Arms that stand in some effects only have no share in the others.
    """
    import pandas as pd

    rows = []
    for name in dict.fromkeys(arm.name for effect in effects for arm in effect.arms):
        there = [(e, arm) for e in effects for arm in e.arms if arm.name == name]
        unknown = sum(style == UNKNOWN for _, arm in there for style in arm.style)
        judged = [v for e, arm in there for v, s in zip(arm.valid, arm.style) if s == e.target and v is not None]
        nats = [arm.nats().value for _, arm in there]
        rows.append(
            {
                "arm": name,
                **{e.target: arm.hit(e.target) for e, arm in there},
                "unknown": _share(unknown, sum(arm.n for _, arm in there)),
                "valid": _share(sum(judged), len(judged)),
                "nats": float(np.mean(nats)),
            }
        )
    targets = list(dict.fromkeys(effect.target for effect in effects))
    return pd.DataFrame(rows, columns=["arm", *targets, "unknown", "valid", "nats"])


def _share(k: int, n: int, level: float = 0.95) -> Estimate:
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, level)
    return Estimate(k / n, *wilson(k, n, level), n, level)
