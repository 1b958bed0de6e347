"""How strongly an intervention acts as generation goes on.

Step n of a position is how many tokens had been generated when it is read: 0 for the whole prompt, 1 for the
first generated token, 2 for the second. A schedule turns a step into a factor g, and an edit becomes
h' = h + g * (edit(h) - h); for an added vector that is a factor on its coefficient. It depends on the position only,
so a cached decode and a recomputation of the whole row agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlens.errors import BadInput

#: A callable is asked for the steps 0 .. TABULATED - 1 once; later steps keep its last value.
TABULATED = 4096


@dataclass(frozen=True)
class Schedule:
    """A factor per step: g(n) = 1[start <= n < stop] * 1[(n - start) % every == 0] * decay^(n - start) * table[n].

    start, stop: steps at which it acts (stop excluded; None: never stops). Steps from 1 on leave the prompt alone.
    every: it acts at every k-th step. decay: factor per step.
    table: factors of the steps 0, 1, ...; later steps keep the last one.
    per_sentence: factors of the generated sentences 0, 1, ... (the last one stays); the prompt counts as sentence 0.

    >>> Schedule(decay=0.5).factors(np.arange(4)).tolist()
    [1.0, 0.5, 0.25, 0.125]

    Raises: BadInput: numbers that are not finite, an empty range, an empty table.
    """

    start: int = 0
    stop: int | None = None
    every: int = 1
    decay: float = 1.0
    table: tuple[float, ...] | None = None
    per_sentence: tuple[float, ...] | None = None
    ends: frozenset[int] = frozenset()  # token ids that end a sentence; filled in by the model that uses it

    def __post_init__(self) -> None:
        """Check every number."""
        if self.start < 0 or self.every < 1 or (self.stop is not None and self.stop <= self.start):
            raise BadInput(f"{self} never acts: it takes 0 <= start < stop and every >= 1")
        for name in ("table", "per_sentence"):
            values = getattr(self, name)
            if values is None:
                continue
            values = tuple(float(v) for v in values)
            if not values or not all(map(math.isfinite, values)):
                raise BadInput(f"{name}={values[:5]} of a schedule must be finite numbers, at least one")
            object.__setattr__(self, name, values)
        if not math.isfinite(self.decay):
            raise BadInput(f"decay={self.decay} is not a finite number")

    @classmethod
    def of(cls, spec: Any) -> Schedule:
        """Read None (constant), a Schedule, a sequence of factors, or a function from step to factor.

        Raises: BadInput: none of these.
        """
        if spec is None:
            return ALWAYS
        if isinstance(spec, Schedule):
            return spec
        if isinstance(spec, Callable):
            return cls(table=tuple(float(spec(n)) for n in range(TABULATED)))
        if isinstance(spec, (Sequence, np.ndarray)) and not isinstance(spec, str):
            return cls(table=tuple(spec))
        raise BadInput(
            f"cannot read schedule={spec!r}: write ll.Schedule(start=, stop=, every=, decay=, per_sentence=), "
            "a list of factors, or a function from the step to a factor"
        )

    @property
    def constant(self) -> bool:
        """Whether it is 1 everywhere."""
        return self == ALWAYS

    def factors(self, steps: np.ndarray, sentences: np.ndarray | None = None) -> np.ndarray:
        """Factor of every step, float32, of the same shape.

        Args: steps: from 0. sentences: index of the generated sentence at each of them (needed by `per_sentence`).
        """
        since = np.maximum(steps - self.start, 0)
        factor = np.power(self.decay, since, dtype=np.float64) if self.decay != 1.0 else np.ones(steps.shape)
        acts = (steps >= self.start) & (since % self.every == 0)
        if self.stop is not None:
            acts &= steps < self.stop
        if self.table is not None:
            factor = factor * np.asarray(self.table)[np.minimum(steps, len(self.table) - 1)]
        if self.per_sentence is not None and sentences is not None:
            factor = factor * np.asarray(self.per_sentence)[np.minimum(sentences, len(self.per_sentence) - 1)]
        return np.where(acts, factor, 0.0).astype(np.float32)

    def __str__(self) -> str:
        parts = [
            f"{k}={getattr(self, k)}" for k in ("start", "stop", "every", "decay") if getattr(self, k) != _DEFAULT[k]
        ]
        if self.table is not None:
            parts.append(f"table of {len(self.table)}")
        if self.per_sentence is not None:
            parts.append(f"per_sentence={list(self.per_sentence)}")
        return f"Schedule({', '.join(parts)})"

    __repr__ = __str__


_DEFAULT = {"start": 0, "stop": None, "every": 1, "decay": 1.0}
ALWAYS = Schedule()
