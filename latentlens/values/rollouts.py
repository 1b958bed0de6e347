"""What a model wrote: prompt, generated tokens, seed, and the interventions that were in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, overload

from latentlens.values.interventions import Intervention
from latentlens.values.rows import TokenRow

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rollout:
    """One continuation of one prompt.

    row: the prompt as the model read it. generated: token ids, the end-of-text token included when it
    was sampled. text: their decoding without special tokens. finish: "eos" or "length".
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


@dataclass(frozen=True)
class Rollouts(Sequence[Rollout]):
    """Rollouts in the order prompt x sample. `runs.texts`, `runs[3]`, `runs.to_frame()`."""

    items: tuple[Rollout, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> Rollouts: ...
    def __getitem__(self, index: int | slice) -> Rollout | Rollouts:
        if isinstance(index, slice):
            return Rollouts(self.items[index], self.about)
        return self.items[index]

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

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{r.prompt_index}.{r.sample}</td><td style='text-align:left'>{escape(r.prompt)}</td>"
            f"<td style='text-align:left'><b>{escape(r.text)}</b></td></tr>"
            for r in self.items[:12]
        )
        return f"<div><code>{escape(repr(self))}</code><table>{rows}</table></div>"
