"""A concept to steer towards: texts that show it and texts that do not, prompts, and how an answer is scored.

Scores are 0 (no), 1 (somewhat), 2 (clearly), as AxBench's judges give them; a rule is a function of a `Case`, a
`Rubric` is put to a judge model, whose 0 to 100 is divided by 50.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.judging import Case, Rubric

Rule = Callable[[Case], float | bool | None]


@dataclass(frozen=True, eq=False)
class Concept:
    """What is steered towards.

    positive, negative: chats or texts that show the concept and that do not, row by row a pair. read, pool: where their
        states are read, as for `lm.activations`.
    prompts: what is answered, saying nothing of the concept. asked: the same prompts with the concept asked for in
        words; None where that makes no sense.
    score: of an answer, for the concept. task: whether the answer still does what the prompt asked; None: not scored.
        others: scores of what should not change, by name.
    examples, rejected: chats that answer neutral prompts with the concept and without it, for methods that learn from
        answers; by default the pairs.
    act: positions that are steered. steps: steer while so many tokens are predicted; None: throughout.
    begins: words one of which begins an answer that shows the concept, where there are such.
    length: tokens written.

    Raises: TooFewExamples: fewer than two pairs or four prompts. BadInput: sides of different length.
    """

    name: str
    positive: Sequence[Any]
    negative: Sequence[Any]
    prompts: Sequence[Any]
    score: Rule | Rubric
    asked: Sequence[Any] | None = None
    task: Rule | Rubric | None = None
    others: Mapping[str, Rule | Rubric] = field(default_factory=dict)
    examples: Sequence[Any] = ()
    rejected: Sequence[Any] = ()
    read: Any = "last"
    pool: Any = None
    act: Any = "last_prompt+response"
    steps: int | None = None
    begins: tuple[str, ...] = ()
    length: int = 48

    def __post_init__(self) -> None:
        """Check the counts."""
        if len(self.positive) != len(self.negative):
            raise BadInput(
                f"{self.name}: {len(self.positive)} positive, {len(self.negative)} negative texts: give pairs"
            )
        if len(self.positive) < 2 or len(self.prompts) < 4:
            raise TooFewExamples(
                f"{self.name}: {len(self.positive)} pairs and {len(self.prompts)} prompts: at least 2 and 4 are needed"
            )
        if self.asked is not None and len(self.asked) != len(self.prompts):
            raise BadInput(f"{self.name}: {len(self.asked)} prompts in words for {len(self.prompts)} prompts: one each")
        for name in ("examples", "rejected"):
            side = "positive" if name == "examples" else "negative"
            object.__setattr__(self, name, getattr(self, name) or getattr(self, side))
        if len(self.examples) != len(self.rejected):
            raise BadInput(f"{self.name}: {len(self.examples)} examples and {len(self.rejected)} rejected: give pairs")

    def __repr__(self) -> str:
        return f"Concept({self.name!r}: {len(self.positive)} pairs read at {self.read}, {len(self.prompts)} prompts)"


def read_concepts(path: str | Path) -> list[Concept]:
    r"""Concepts from a JSON file: a list of objects with the fields of `Concept`.

        [{"name": "the sea", "positive": [...], "negative": [...], "prompts": [...],
          "ask": "{prompt} Mention the sea.",
          "score": {"regex": "\\b(sea|waves?|ships?)\\b", "clear": 2},
          "task": {"rubric": "Does the answer address the question? ... {prompt} ... {response}"}}]

    A score is {"regex": pattern, "clear": matches that make a 2 (2)} or {"rubric": text}. "ask" makes `asked` from the
    last message of every prompt. A concept without "others" is measured against the scores of all other concepts.

    Raises: BadInput: no such file, no JSON, an unknown or missing field; says where. TooFewExamples.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is no JSON: {error}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise BadInput(f"{path} must hold a list of concepts, each an object with name, positive, negative, ...")
    found = []
    known = {*Concept.__dataclass_fields__, "ask"}
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, concept {number} ({entry.get('name', 'without name')})"
        missing = {"name", "positive", "negative", "prompts", "score"} - entry.keys()
        if missing or entry.keys() - known:
            raise BadInput(f"{place}: missing {sorted(missing)}, unknown {sorted(entry.keys() - known)}")
        given = dict(entry)
        ask = given.pop("ask", None)
        if ask is not None:
            if "{prompt}" not in ask:
                raise BadInput(f"{place}: ask= must contain {{prompt}}")
            given["asked"] = [_asked(prompt, ask) for prompt in given["prompts"]]
        for name in ("score", "task"):
            if name == "score" or given.get(name) is not None:
                given[name] = _rule(given[name], f"{place}, {name}")
        given["others"] = {k: _rule(v, f"{place}, others, {k}") for k, v in given.get("others", {}).items()}
        given["begins"] = tuple(given.get("begins", ()))
        found.append(Concept(**given))
    names = [concept.name for concept in found]
    if len(set(names)) < len(names):
        raise BadInput(f"{path}: two concepts have the same name ({', '.join(names)})")
    scores = {concept.name: concept.score for concept in found}
    for concept in found:
        if not concept.others:
            object.__setattr__(concept, "others", {k: v for k, v in scores.items() if k != concept.name})
    return found


def matches(pattern: str, clear: int = 2) -> Rule:
    """A rule that counts what a pattern matches in the response: 0, 1, or 2 from `clear` matches on.

    Raises: BadInput: no pattern.
    """
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise BadInput(f"{pattern!r} is no regular expression: {error}") from None
    if clear < 1:
        raise BadInput(f"clear={clear}: at least one match makes a 2")

    def rule(case: Case) -> float:
        n = sum(1 for _ in compiled.finditer(case.response))
        return 2.0 if n >= clear else min(n, 1)

    return rule


def _rule(spec: Any, place: str) -> Rule | Rubric:
    if isinstance(spec, dict) and set(spec) <= {"regex", "clear"} and "regex" in spec:
        return matches(spec["regex"], int(spec.get("clear", 2)))
    if isinstance(spec, dict) and set(spec) == {"rubric"}:
        return Rubric(spec["rubric"])
    raise BadInput(f'{place}: give {{"regex": ..., "clear": 2}} or {{"rubric": ...}}, not {spec!r:.80}')


def _asked(prompt: Any, ask: str) -> Any:
    if isinstance(prompt, str):
        return ask.replace("{prompt}", prompt)
    *before, last = prompt
    return [*before, {**last, "content": ask.replace("{prompt}", last["content"])}]
