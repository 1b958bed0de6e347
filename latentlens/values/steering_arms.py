"""Arms of a comparison: from a strength to a plan; how they were fitted, and which could not be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from latentlens.errors import LatentLensError
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


@dataclass
class ArmFits:
    """Arms of one concept as they are fitted, each timed; a method that cannot be fitted is left out with its reason.

    >>> fits = ArmFits()
    >>> fits.add("nothing", lambda: lambda strength: [])
    >>> [arm.name for arm in fits.found]
    ['nothing']
    """

    found: list[SteeringArm] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Callable[[float], Any]], role: Role = "method", draw: int = 0) -> None:
        """Fit an arm: `make` finds what is needed and returns the way from a strength to a plan.

        Of errors only ours are caught: a method that this concept or model does not allow is no failure of the others.
        """
        start = time.perf_counter()
        try:
            plan = make()
        except LatentLensError as error:
            self.left_out[name] = str(error)
        else:
            self.found.append(SteeringArm(name, plan, role, draw, time.perf_counter() - start))


@dataclass(frozen=True)
class Dose:
    """The strength of an arm that spends a KL budget: coeff, what it spends, and whether it was found."""

    coeff: float
    kl: float
    bracketed: bool = True
    converged: bool = True
