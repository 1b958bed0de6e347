"""What choosing among several answers to a question by a signal gains, and what it costs.

Policy      one way of choosing: accuracy, tokens, samples
Selection   all of them on the same questions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Policy:
    """One way of choosing an answer. n counts questions; intervals resample them.

    accuracy: share of questions answered rightly. gain: accuracy minus that of the majority vote, paired.
    tokens: mean tokens written for a question. saved: 1 - tokens / tokens of all samples. samples: mean number begun.
    """

    name: str
    accuracy: Estimate
    gain: Estimate
    tokens: Estimate
    saved: Estimate
    samples: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Selection(Shown):
    """Policies on the same test questions, best read as pairs: each `gain` is against the same majority vote.

    thresholds: of the signal, one a split. n_questions, n_samples: questions in all, samples of each.
    vote: which vote is the fallback and the reference.
    """

    policies: tuple[Policy, ...]
    thresholds: tuple[float, ...]
    n_questions: int
    n_samples: int
    vote: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Policy:
        """One policy by name. Raises: BadInput: not among them."""
        for one in self.policies:
            if one.name == name:
                return one
        raise BadInput(f"no policy {name!r}; there are {', '.join(p.name for p in self.policies)}")

    def __iter__(self) -> Iterator[Policy]:
        return iter(self.policies)

    def to_frame(self) -> pd.DataFrame:
        """One row a policy, numbers with their ends."""
        import pandas as pd

        def ends(name: str, e: Estimate) -> dict[str, float]:
            return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}

        return pd.DataFrame(
            {
                "policy": p.name,
                **ends("accuracy", p.accuracy),
                **ends("gain", p.gain),
                **ends("tokens", p.tokens),
                **ends("saved", p.saved),
                "samples": p.samples,
                "n": p.accuracy.n,
                "note": p.note,
            }
            for p in self.policies
        )

    def table(self) -> pd.DataFrame:
        """The same for people."""
        import pandas as pd

        return pd.DataFrame(
            {
                "policy": p.name,
                "accuracy": p.accuracy.short,
                "minus majority": p.gain.short,
                "tokens": f"{p.tokens.value:.1f}",
                "tokens saved": f"{p.saved.value:.1%} [{p.saved.low:.1%}, {p.saved.high:.1%}]",
                "samples": f"{p.samples:.2f}",
                "note": p.note,
            }
            for p in self.policies
        )

    def __repr__(self) -> str:
        return (
            f"Selection({self.n_questions} questions x {self.n_samples} samples, vote: {self.vote})\n"
            f"{self.table().to_string(index=False)}"
        )
