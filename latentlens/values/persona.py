"""What is found on the way from a trait to its vector.

Reply           one answer with what two judges said of it
Contrast        answers for and against a trait, in pairs
PersonaVectors  one direction a site, with how far it repeats itself in halves of the questions
SiteChoice      where to steer, from a sweep
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from latentlens.errors import SiteNotFound
from latentlens.values.directions import Direction, as_site
from latentlens.values.markup import Shown
from latentlens.values.results import Estimate
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site
from latentlens.values.traits import Trait, asked

if TYPE_CHECKING:
    import pandas as pd


class Reply(NamedTuple):
    """One answer: as the model read it (prompt and answer), as text, and its two scores; None: not judged."""

    row: TokenRow
    text: str
    trait: float | None
    coherence: float | None


class Pair(NamedTuple):
    """Two answers to one question under the two instructions of a pair."""

    pair: int
    question: int
    sample: int
    positive: Reply
    negative: Reply


@dataclass(frozen=True, eq=False)
class Contrast(Shown):
    """Answers for and against a trait, paired by instruction, question and sample.

    dropped: reason -> how many pairs were left out by it; a pair can have several. asked: how many there were.
    """

    trait: Trait
    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    asked: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Count the pairs where nobody has."""
        object.__setattr__(self, "pairs", tuple(self.pairs))
        object.__setattr__(self, "asked", self.asked or len(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def rows(self) -> list[TokenRow]:
        """What to capture: the positive answers in order, then the negative ones."""
        return [p.positive.row for p in self.pairs] + [p.negative.row for p in self.pairs]

    @property
    def alone(self) -> list[list[dict[str, str]]]:
        """The same answers as chats without the instruction, in the order of `rows`: capture them at `role:assistant`.

        What is read there is in the answer itself; in `rows` it may be the instruction that still stands above it.
        """
        replies = [(p.question, p.positive) for p in self.pairs] + [(p.question, p.negative) for p in self.pairs]
        return [[*asked(self.trait.questions[q]), {"role": "assistant", "content": reply.text}] for q, reply in replies]

    @property
    def questions(self) -> list[int]:
        """The question of each pair."""
        return [p.question for p in self.pairs]

    def to_frame(self) -> pd.DataFrame:
        """One row an answer: side, pair, question, sample, trait, coherence, text."""
        import pandas as pd

        sides = [("positive", p.positive, p) for p in self.pairs] + [("negative", p.negative, p) for p in self.pairs]
        return pd.DataFrame(
            {
                "side": side,
                "pair": p.pair,
                "question": p.question,
                "sample": p.sample,
                "trait": reply.trait,
                "coherence": reply.coherence,
                "text": reply.text,
            }
            for side, reply, p in sides
        )

    def __repr__(self) -> str:
        left = f"; {self.asked - len(self)} of {self.asked} dropped" if self.asked > len(self) else ""
        why = f" ({', '.join(f'{n} {reason}' for reason, n in self.dropped.items() if n)})" if left else ""
        return f"Contrast({self.trait.name}: {len(self)} pairs of answers{left}{why})"


@dataclass(frozen=True, eq=False)
class PersonaVectors(Shown):
    """The vector of a trait at every site that was captured.

    directions: site -> mean of the positive answers minus mean of the negative ones, at its own length.
    where: what each answer's state is: "response", "prompt" or "last_prompt".
    stability: site -> cosine between vectors from two random halves of the questions, mean and spread over draws.
    n: pairs of answers. chance: expected |cosine| of random directions, sqrt(2 / (pi d)).
    """

    name: str
    directions: Mapping[Site, Direction]
    where: str
    stability: Mapping[Site, Estimate]
    n: int
    chance: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Direction:
        """The direction at one site.

        Raises: SiteNotFound.
        """
        wanted = as_site(site)
        if wanted not in self.directions:
            raise SiteNotFound(f"no vector at {wanted}. Held: {', '.join(map(str, self.directions))}")
        return self.directions[wanted]

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions.values())

    def __len__(self) -> int:
        return len(self.directions)

    def to_frame(self) -> pd.DataFrame:
        """One row a site: length of the vector, stability, pairs."""
        import pandas as pd

        return pd.DataFrame(
            {
                "site": str(site),
                "norm": direction.norm,
                "cosine of halves": self.stability.get(site),
                "pairs": self.n,
            }
            for site, direction in self.directions.items()
        )

    def __repr__(self) -> str:
        return f"PersonaVectors({self.name}, {self.where} mean: {len(self)} sites, {self.n} pairs of answers)"


@dataclass(frozen=True, eq=False)
class SiteChoice(Shown):
    """Where a vector moves its trait most while the text stays coherent.

    site, strength: the choice. rows: one mapping a (site, strength): trait and coherence as Estimates, `coherent`.
    least_coherence: what was demanded of the mean.
    """

    site: Site
    strength: float
    rows: Sequence[Mapping[str, Any]]
    least_coherence: float

    def to_frame(self) -> pd.DataFrame:
        """One row a site and strength; the choice is marked."""
        import pandas as pd

        frame = pd.DataFrame(list(self.rows))
        frame["chosen"] = [r["site"] == str(self.site) and r["strength"] == self.strength for r in self.rows]
        return frame

    def __repr__(self) -> str:
        best = next(r for r in self.rows if r["site"] == str(self.site) and r["strength"] == self.strength)
        return (
            f"SiteChoice({self.site} at strength {self.strength:g}: trait {best['trait'].short}, coherence "
            f"{best['coherence'].short}; of {len(self.rows)} settings with coherence >= {self.least_coherence:g})"
        )
