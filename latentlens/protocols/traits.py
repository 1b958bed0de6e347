"""Traits with their judges: those of the embedded model, judged by rule, or any from files, judged by a model.

given = judged_traits(lm, ["formal", "hostile"])                  one or the other, as a script is told
given = embedded_traits(["formal", "hostile"])
given = traits_from_files(["steering/traits/formal.json"], lm)                                   judged by lm itself
given = traits_from_files(files, lm, judge="gpt-4.1-mini", url="https://api.openai.com/v1")      judged by a server
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentlens.access.judging.judge import LocalJudge, RuleJudge
from latentlens.access.judging.judge_endpoint import Endpoint, EndpointJudge
from latentlens.access.model import load
from latentlens.errors import BadInput
from latentlens.organism import personas
from latentlens.values.judging import COHERENCE_RUBRIC, TRAIT_RUBRIC, Case, Judge, Score
from latentlens.values.traits import Trait

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


class MeanJudge:
    """A judge of several traits at once: the mean of what the judge of each says; none where one says none."""

    def __init__(self, traits: Mapping[str, Trait], judges: Mapping[str, Judge]) -> None:
        self.traits, self.judges = dict(traits), {name: judges[name] for name in traits}
        self.name = f"mean of {', '.join(traits)}"
        self.is_rule = all(getattr(judge, "is_rule", False) for judge in self.judges.values())

    @property
    def fingerprint(self) -> str:
        """Covers the judges and what each judges on."""
        parts = [[name, self.traits[name].about, judge.fingerprint] for name, judge in self.judges.items()]
        return hashlib.sha256(json.dumps(["mean", parts]).encode()).hexdigest()

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """One score a case, whatever the case says that it is judged on."""
        said = [
            judge.scores([Case(case.prompt, case.response, self.traits[name].about) for case in cases])
            for name, judge in self.judges.items()
        ]
        return [_mean(scores) for scores in zip(*said, strict=True)]

    def __repr__(self) -> str:
        return f"MeanJudge({', '.join(self.traits)})"


@dataclass(frozen=True)
class JudgedTraits:
    """Traits by name, the judge of each, and the judge of coherence."""

    traits: Mapping[str, Trait]
    judges: Mapping[str, Judge]
    coherence: Judge

    @property
    def columns(self) -> dict[str, Judge]:
        """All judges by column: a trait each, and "coherence"."""
        return {**self.judges, "coherence": self.coherence}

    @property
    def about(self) -> dict[str, str]:
        """What the judge of each trait judges on."""
        return {name: trait.about for name, trait in self.traits.items()}

    def mean(self, names: Sequence[str]) -> MeanJudge:
        """The judge of several of the traits at once.

        Raises: BadInput: no such trait.
        """
        missing = [name for name in names if name not in self.traits]
        if missing or not names:
            raise BadInput(f"no trait {(missing or [''])[0]!r}; the traits are {', '.join(self.traits)}")
        return MeanJudge({name: self.traits[name] for name in names}, self.judges)

    @property
    def first(self) -> Trait:
        """The first trait, whose questions serve where one set is asked in all roles."""
        return next(iter(self.traits.values()))


def judged_traits(
    lm: LensModel,
    names: Sequence[str] | None,
    files: Sequence[str | Path] | None = None,
    *,
    judge: str = "",
    url: str = "",
    budget: int | None = None,
) -> JudgedTraits:
    """Traits of the embedded model by name, judged by rule; or, where `names` is None, those of the files.

    Args: lm, files, judge, url, budget: as `traits_from_files`.
    Raises: as `embedded_traits` and `traits_from_files`.
    """
    if names is not None:
        return embedded_traits(names)
    return traits_from_files(files or [], lm, judge=judge, url=url, budget=budget)


def embedded_traits(names: Sequence[str]) -> JudgedTraits:
    """Traits of the embedded model, judged by rules.

    Raises: BadInput: the model has no such trait.
    """
    traits = {name: personas.trait(name) for name in names}
    judges = {name: RuleJudge(personas.percent(name), f"{name} words") for name in traits}
    return JudgedTraits(traits, judges, RuleJudge(personas.coherence, "on the topic"))


def traits_from_files(
    files: Sequence[str | Path], lm: LensModel, *, judge: str = "", url: str = "", budget: int | None = None
) -> JudgedTraits:
    """Traits from files, judged by a model: the one examined, another one, or one on a server.

    Args: files: as `Trait.load` reads them. lm: judges where no judge is named; it likes its own text. judge: hub id or
        folder, or with `url` the model's name on an OpenAI-compatible server. budget: requests it may be sent.
    Raises: BadInput: no file, two traits of one name, or a trait without questions to evaluate with.
    """
    traits = [Trait.load(file) for file in files]
    if not traits:
        raise BadInput("name a trait file, such as --traits steering/traits/formal.json (docs/persona.md)")
    if len({trait.name for trait in traits}) < len(traits):
        raise BadInput(f"two files with one trait: {', '.join(trait.name for trait in traits)}")
    bare = [trait.name for trait in traits if not trait.evaluation]
    if bare:
        raise BadInput(f"{bare[0]} has no questions to evaluate with: add a list `evaluation` to its file")
    if url:
        server = Endpoint(judge, url, budget=budget)
        rate, fluent = EndpointJudge(server, TRAIT_RUBRIC), EndpointJudge(server, COHERENCE_RUBRIC)
    else:
        by = load(judge) if judge else lm
        rate, fluent = LocalJudge(by, TRAIT_RUBRIC), LocalJudge(by, COHERENCE_RUBRIC)
    return JudgedTraits({t.name: t for t in traits}, {t.name: rate for t in traits}, fluent)


def _mean(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores if score.value is not None]
    if len(values) == len(scores):
        return Score(sum(values) / len(values))
    none = next(score for score in scores if score.value is None)
    return Score(None, reason=none.reason, passing=none.passing)
