"""One arm of a comparison: from a strength to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentlens.values.interventions import as_plan, plan_fingerprint
from latentlens.values.method_bench import Role


@dataclass(frozen=True)
class SteeringArm:
    """A method, ready to be dosed.

    name: of the method. plan: from a strength, above 0, to an intervention or a list of them. role: "method" or
    "control". draw: which of several random ones. seconds: that it took to find, the states aside.
    """

    name: str
    plan: Callable[[float], Any]
    role: Role = "method"
    draw: int = 0
    seconds: float = 0.0

    def fingerprint(self, strength: float = 1.0) -> str:
        """Digest of the plan at a strength."""
        return plan_fingerprint(as_plan(self.plan(strength)))


@dataclass(frozen=True)
class Dose:
    """The strength of an arm that spends a KL budget: coeff, what it spends, and whether it was found."""

    coeff: float
    kl: float
    bracketed: bool = True
    converged: bool = True
