"""What a model wrote: prompt, generated tokens, seed, and the interventions that were in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

from latentlens.errors import BadInput
from latentlens.values.interventions import Intervention
from latentlens.values.markup import Shown, facts, table
from latentlens.values.rows import TokenRow
from latentlens.values.where import Where

if TYPE_CHECKING:
    import pandas as pd

    from latentlens.values.activations import Activations
    from latentlens.values.effects import EditEffect


@dataclass(frozen=True)
class Record:
    """What to read while a model writes, in the same pass.

    sites: as for `activations`. where: positions of the prompt and of what is written; by default the response.
    edits: read "after" the edits at the site, "before" them, or "both".
    last_token: run one more forward, so that the last sampled token has its activation too.
    sae, latents: instead of the states at the SAE's site, the values of some of its latents (all by default).
    """

    sites: Any = ()
    where: Any = "response"
    edits: Literal["after", "before", "both"] = "after"
    last_token: bool = False
    sae: Any = None
    latents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Read `where`, check `edits`."""
        if self.edits not in ("after", "before", "both"):
            raise BadInput(f"edits={self.edits!r}: allowed are 'after', 'before' and 'both'")
        object.__setattr__(self, "where", Where.of(self.where))
        if self.latents is not None:
            object.__setattr__(self, "latents", tuple(self.latents))

    @classmethod
    def of(cls, spec: Any) -> Record | None:
        """Read None, a Record, or sites."""
        return spec if spec is None or isinstance(spec, Record) else cls(spec)


@dataclass(frozen=True)
class Keep:
    """Which texts go on being written: a question asked of every batch each `every` tokens.

    ask: is handed the `Rollouts` of a batch as far as they are written, with what has been read of every token so far,
        and says for each of them whether to go on (True) or to stop it there. All samples of a prompt are in one batch;
        those that are finished or stopped already are among them, and what is said of those is ignored.
    every: tokens from one question to the next. last: tokens after which nothing is asked, nor read for it, any more.
    record: what is read for the question, as for `lm.generate`, whose own `record=` is then left out.
    name: what a resumed `ll.sweep` knows the question by: another question needs another name.

    Raises: BadInput: not callable, or no whole number of tokens.
    """

    ask: Callable[[Rollouts], Sequence[bool]]
    every: int = 16
    last: int | None = None
    record: Any = None
    name: str = ""

    def __post_init__(self) -> None:
        """Check them."""
        if not callable(self.ask):
            raise BadInput(f"Keep takes a function of Rollouts, not {type(self.ask).__name__}")
        for name in ("every", "last"):
            tokens = getattr(self, name)
            if not (name == "last" and tokens is None) and (type(tokens) is not int or tokens < 1):
                raise BadInput(f"{name}={tokens!r}: a whole number of tokens, at least 1")
        object.__setattr__(self, "record", Record.of(self.record))


@dataclass(frozen=True)
class Rollout(Shown):
    """One continuation of one prompt.

    row: the prompt as the model read it. generated: token ids, the end-of-text token included when it
    was sampled. text: their decoding without special tokens. finish: "eos", "length", "stopped" (by `Keep`), or
    "open" (not finished yet, as `Keep.ask` sees it).
    """

    prompt: str
    row: TokenRow
    generated: tuple[int, ...]
    text: str
    prompt_index: int
    sample: int
    seed: int
    temperature: float
    steer: tuple[Intervention, ...] = ()
    finish: str = "length"

    @property
    def full_row(self) -> TokenRow:
        """Prompt and generated tokens as one row, for capture."""
        return self.row.continued(self.generated)

    def _html_head(self) -> str:
        return f"Rollout({len(self.generated)} tokens, ended by {self.finish})"

    def _html_parts(self) -> tuple[Any, ...]:
        how = f"prompt {self.prompt_index}, sample {self.sample}, seed {self.seed}, temperature {self.temperature:g}"
        return (facts({"prompt": self.prompt, "text": self.text, "steer": list(self.steer) or "no edit", "how": how}),)


@dataclass(frozen=True)
class Rollouts(Sequence[Rollout], Shown):
    """Rollouts in the order prompt x sample. `runs.texts`, `runs[3]`, `runs.to_frame()`, `runs.effect()`.

    readings: what was recorded while they were written, as Activations labelled by rollout (`text`): "after" and
        "before" the edits, "latents".
    """

    items: tuple[Rollout, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    readings: Mapping[str, Activations] = field(default_factory=dict, repr=False)
    measure: Callable[[Sequence[int]], EditEffect] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> Rollouts: ...
    def __getitem__(self, index: int | slice) -> Rollout | Rollouts:
        if not isinstance(index, slice):
            return self.items[index]
        kept, measure = range(len(self))[index], self.measure
        again = None if measure is None else lambda which: measure([kept[i] for i in which])
        return Rollouts(self.items[index], self.about, measure=again)

    def effect(self) -> EditEffect:
        """How often each edit fired, |delta| against |h|, and the KL of every token to the unsteered model.

        Each rollout is read twice more, with its edits and without.

        Raises: BadInput: these rollouts did not come from a model that is still there.
        """
        if self.measure is None:
            raise BadInput("these rollouts have no model to measure them with: take them from lm.generate")
        return self.measure(range(len(self)))

    @property
    def texts(self) -> list[str]:
        """The generated texts."""
        return [run.text for run in self.items]

    def to_frame(self) -> pd.DataFrame:
        """One row a rollout: prompt, sample, seed, text, token ids, finish, steer."""
        import pandas as pd

        return pd.DataFrame(
            {
                "prompt_index": [r.prompt_index for r in self.items],
                "prompt": [r.prompt for r in self.items],
                "sample": [r.sample for r in self.items],
                "seed": [r.seed for r in self.items],
                "text": [r.text for r in self.items],
                "generated": [list(r.generated) for r in self.items],
                "finish": [r.finish for r in self.items],
                "steer": ["; ".join(map(repr, r.steer)) for r in self.items],
            }
        )

    def __repr__(self) -> str:
        prompts = len({r.prompt_index for r in self.items})
        tokens = sum(len(r.generated) for r in self.items)
        return f"Rollouts({len(self)} of {prompts} prompts, {tokens} tokens generated)"

    def _html_parts(self) -> tuple[Any, ...]:
        rows = [
            {
                "prompt": run.prompt,
                "sample": run.sample,
                "text": run.text,
                "steer": "; ".join(map(repr, run.steer)) or "–",
            }
            for run in self.items
        ]
        return (table(rows),)
