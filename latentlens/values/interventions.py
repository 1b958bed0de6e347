"""What may be changed inside a model while it reads and writes: the contract, plans, and their fingerprint.

An intervention is a value: an operation x a site x a selection of positions x a schedule. It knows how to edit
float32 states and nothing of models; access decides where and when it is applied, and evaluates all
interventions of one `lane` together, however many rows of a batch have one of their own.

To add an operation, subclass `Intervention` with a frozen dataclass (see `operations`) that gives its `tensors`
and its `formula`. Plans are applied in the given order: each edit sees what the one before it left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.markup import Shown, facts
from latentlens.values.schedules import ALWAYS, Schedule
from latentlens.values.sites import Site
from latentlens.values.where import Where

Unit = Literal["raw", "norm"]

#: states (n, d) float32; which: the intervention of each state (n,), None when there is one only; order: how many
#: selected positions of its row came before each state (n,), given to positional operations only; and, only to
#: operations that decide once per row, the mean state (n, d) of the positions that they read.
Edit = Callable[..., Tensor]


class Described:
    """A frozen dataclass whose identity is the digest of everything that changes its arithmetic."""

    kinds: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Remember the class, so that a saved plan can name it."""
        super().__init_subclass__(**options)
        Described.kinds[cls.__name__] = cls

    def about(self) -> dict[str, Any]:
        """Its fields; tensors and directions as their digests. Names are left out."""
        mine: Any = self
        return {"kind": type(self).__name__, **{f.name: _described(getattr(self, f.name)) for f in fields(mine)}}

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of `about()`."""
        return hashlib.sha256(json.dumps(self.about(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Described) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention(Described, Shown):
    """An operation at a site, at selected positions, on a schedule.

    site: where in the model; by default the site of the direction. A spelling ("resid_post[4]", -1,
        "model.layers.4"), a pattern or a list stands for one intervention at each site, once a model reads it.
    where: which positions, counted in the unpadded row: "all" (default), "prompt", "response", "last", "first-3",
        indices, a mask, "role:user", "turn:0", or a sum such as "last_prompt+response".
    schedule: how strongly over the generated steps; see `Schedule`.
    """

    site: Any = None
    where: Any = Where("all")  # noqa: RUF009 - frozen, so safe to share
    schedule: Any = ALWAYS

    positional = False  # whether `formula` takes `order` as well
    conditions: ClassVar[Any] = ()  # of a gate: all of them must hold
    reads = None  # the positions of the prompt on which it decides once per row, as a Where; None: it does not

    def __post_init__(self) -> None:
        """Read site, where and schedule."""
        if self.site is None:
            if self._directions():
                object.__setattr__(self, "site", self._directions()[0].site)
            else:
                raise BadInput(f"{type(self).__name__} needs site=, e.g. site='resid_post[4]'")
        object.__setattr__(self, "where", Where.of(self.where))
        object.__setattr__(self, "schedule", Schedule.of(self.schedule))

    # -- what an operation defines --------------------------------------------------------------------

    def tensors(self) -> Mapping[str, Tensor]:
        """Float32 arguments of `formula`; of the same shapes for all interventions of a lane."""
        raise NotImplementedError

    @staticmethod
    def formula(h: Tensor, **tensors: Tensor) -> Tensor:
        """New states (n, d) from float32 states; the tensors come as given or with a leading n."""
        raise NotImplementedError

    def in_raw_units(self, norm: Callable[[Any], float]) -> Self:
        """The same intervention with its strength in raw numbers; `norm` is the median norm at a site."""
        return self

    # -- what follows from it -----------------------------------------------------------------------

    @property
    def lane(self) -> Hashable:
        """Interventions of equal lanes are evaluated together."""
        return (type(self).__name__, *((name, tuple(t.shape)) for name, t in self.tensors().items()))

    @classmethod
    def stacked(cls, items: Sequence[Any]) -> Edit:
        """One function for several interventions of one lane."""
        return _Stacked(cls, items)

    def edit(self, states: Tensor) -> Tensor:
        """New states (n, d) from the states (n, d) of selected positions in order, in float32, schedule aside."""
        order = torch.arange(len(states), device=states.device) if self.positional else None
        return type(self).stacked([self])(states.float(), None, order)

    def at(self, site: Any) -> Self:
        """The same intervention at another site."""
        return replace(self, site=site)

    def scaled(self, schedule: Any) -> Self:
        """The same intervention on another schedule."""
        return replace(self, schedule=schedule)

    @property
    def width(self) -> int | None:
        """Width of the states it fits; None when it fits any."""
        found = self._directions()
        return found[0].vector.numel() if found else None

    def frames(self) -> set[str]:
        """Frames of the directions in it."""
        return {d.frame for d in self._directions()}

    @property
    def bare(self) -> Intervention:
        """What acts once all conditions hold."""
        return self

    def _directions(self) -> list[Direction]:
        found: list[Direction] = []
        for each in fields(self):
            value = getattr(self, each.name, None)
            found += [value] if isinstance(value, Direction) else []
            found += [v for v in value if isinstance(v, Direction)] if isinstance(value, tuple) else []
        return found

    def __repr__(self) -> str:
        given = [(f, getattr(self, f.name)) for f in fields(self) if f.name not in _COMMON]
        own = [_shown(f.name, value) for f, value in given if f.default is MISSING or value != f.default]
        own += [f"at {self.site}", str(self.where)]
        own += [] if self.schedule.constant else [str(self.schedule)]
        return f"{type(self).__name__}({', '.join(own)})"

    def _html_parts(self) -> tuple[Any, ...]:
        about = {"site": self.site, "where": self.where, "schedule": self.schedule, "width": self.width}
        return (facts({**about, "fingerprint": self.fingerprint[:16]}),)


_COMMON = {f.name for f in fields(Intervention)}


@dataclass
class _Stacked:
    """Stacked arguments of one lane, copied to each device once."""

    kind: type[Intervention]
    items: Sequence[Intervention]
    _on: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict)

    def __call__(
        self, states: Tensor, which: Tensor | None, order: Tensor | None, seen: Tensor | None = None
    ) -> Tensor:
        if states.device not in self._on:
            given = [item.tensors() for item in self.items]
            one = {name: torch.stack([tensors[name] for tensors in given]) for name in given[0]}
            self._on[states.device] = {name: t.to(states.device, torch.float32) for name, t in one.items()}
        stacked = self._on[states.device]
        tensors = {name: t[0] if which is None else t[which] for name, t in stacked.items()}
        if self.kind.positional and order is not None:
            return self.kind.formula(states, order=order, **tensors)
        if seen is not None:
            return self.kind.formula(states, seen=seen, **tensors)
        return self.kind.formula(states, **tensors)


def _described(value: Any) -> Any:
    if isinstance(value, (Direction, Described)):
        return value.fingerprint
    if isinstance(value, Where):
        return str(value) if value.kind != "mask" else [value.kind, list(value.args)]
    if isinstance(value, Schedule):
        return [value.start, value.stop, value.every, value.decay, value.table, value.per_sentence, sorted(value.ends)]
    if isinstance(value, Tensor):
        head = f"{tuple(value.shape)}|".encode()
        return hashlib.sha256(head + value.contiguous().float().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, Site):
        return str(value)
    if isinstance(value, Mapping):
        return sorted([key, _described(v)] for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.fingerprint


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Direction):
        return value.name or f"|v|={value.norm:.3g}"
    if isinstance(value, tuple) and value and isinstance(value[0], Direction):
        return "[" + ", ".join(_shown("", d) for d in value) + "]"
    if isinstance(value, Tensor):
        return f"{name}: {tuple(value.shape)}"
    return f"{value:+g}" if name == "coeff" else f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


# -- plans ----------------------------------------------------------------------------------------------

Plan = tuple[Intervention, ...]


def as_plan(steer: Any) -> Plan:
    """One plan from None, one intervention or a sequence of them; applied in the given order.

    Raises: BadInput: something in it is no intervention.
    """
    if steer is None:
        return ()
    given = tuple(steer) if isinstance(steer, Iterable) else (steer,)
    for item in given:
        if not isinstance(item, Intervention):
            raise BadInput(f"steer= takes interventions such as ll.Add(direction, 2.0), not {type(item).__name__}")
    return given


def as_plans(steer: Any, n_rows: int) -> list[Plan]:
    """One plan per row: the same for all, or a list with one plan (None, an intervention, a list) per row.

    A list of interventions is ONE plan for all rows; a list that holds None or lists is one plan per row.

    Raises: BadInput: something is no intervention, or there are not as many plans as rows.
    """
    if not has_plan_per_row(steer):
        return [as_plan(steer)] * n_rows
    if len(steer) != n_rows:
        raise BadInput(f"steer= has {len(steer)} plans for {n_rows} rows: give one plan, or one for each row")
    return [as_plan(one) for one in steer]


def has_plan_per_row(steer: Any) -> bool:
    """Whether it is a list with one plan per row: it holds None or lists, not interventions only."""
    return isinstance(steer, (list, tuple)) and any(one is None or isinstance(one, (list, tuple)) for one in steer)


def plan_fingerprint(plan: Sequence[Intervention]) -> str:
    """Digest of a plan; the empty plan has the empty digest, so clean is clean however it was asked for."""
    if not plan:
        return ""
    return hashlib.sha256("|".join(item.fingerprint for item in plan).encode()).hexdigest()
