"""Judges that need no network: rules, labels of people in a file, and a local model; and a local writer.

    RuleJudge(lambda case: case.response.count("!"), "exclamations")
    LabelledJudge("labels.csv")                              # what people said, as a judge to compare others with
    LocalJudge(lm, TRAIT_RUBRIC)                             # expected whole number from a model's logits
    LocalWriter(lm)

For an OpenAI-compatible server see `judge_endpoint`; for a memory on disk `verdict_cache.cached`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

from latentlens.access.identity import context_digest
from latentlens.access.judging.digits import DigitTrie, NumberTokens
from latentlens.errors import BadInput
from latentlens.values.judging import LEAST_MASS, Case, Rubric, Score, expected_score

if TYPE_CHECKING:
    from torch import Tensor

    from latentlens.access.model import LensModel

Reading = Literal["auto", "first", "digits"]
_ROWS = 32  # rows of logits held at a time


class RuleJudge:
    """A judge that is a function: `function(case)` returns a number, a bool, or None for "cannot say".

    Args:
        function: from a `Case` to its score, on any scale.
        name: for people.
        version: raise it when what the function calls has changed; its own code is in the fingerprint already.
    """

    is_rule = True

    def __init__(self, function: Callable[[Case], float | bool | None], name: str, version: str = "") -> None:
        if not callable(function):
            raise BadInput(f"a rule is a function of a case, not {type(function).__name__}")
        self.function, self.name = function, name
        code = getattr(function, "__code__", None)
        about = _code(code) if code is not None else [type(function).__module__, type(function).__qualname__]
        self.fingerprint = _digest(["rule", name, version, about])

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """One score a case."""
        said = (self.function(case) for case in cases)
        return [Score(None, reason="the rule does not apply") if value is None else Score(value) for value in said]

    def __repr__(self) -> str:
        return f"RuleJudge({self.name})"


class LabelledJudge:
    """What people said, read from a file: a judge to compare other judges with.

    Args: path: `.csv` with a header, or `.jsonl` with one object a line. Fields: `response`, `score`, and where they
        matter `prompt` and `about`; other fields are left alone. An empty score is none. Several lines on one case
        (several people) are averaged.
    Raises: BadInput: no such file or field, or a score that is no number.
    """

    is_rule = True

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.name = path.name
        self._labels: dict[str, list[float]] = {}
        self.cases: list[Case] = []
        for number, line in enumerate(_lines(path), start=1):
            if line.get("response") is None or "score" not in line:
                raise BadInput(f"{path}, entry {number}: fields `response` and `score` are needed; it has {list(line)}")
            case = Case(str(line.get("prompt") or ""), str(line["response"]), str(line.get("about") or ""))
            if case.digest not in self._labels:
                self.cases.append(case)
            held = self._labels.setdefault(case.digest, [])
            if line["score"] not in (None, ""):
                held.append(_number(line["score"], f"{path}, entry {number}"))
        self.fingerprint = _digest(["labels", self._labels])

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """The label of each case; none for cases that the file does not hold."""
        found = [self._labels.get(case.digest) for case in cases]
        return [Score(sum(f) / len(f)) if f else Score(None, reason="no label in the file") for f in found]

    def __repr__(self) -> str:
        return f"LabelledJudge({self.name}: {len(self.cases)} cases)"


class LocalJudge:
    """A local model as a judge: the mean of the whole numbers it could answer, weighted by their probability.

        score = sum_n p(n) n / sum_n p(n)        n in 0..100;  none when sum_n p(n) < least_mass

    Args:
        lm: from `ll.load`.
        rubric: the question; `TRAIT_RUBRIC` and `COHERENCE_RUBRIC` are ours.
        reading: where p(n) comes from.
            "first": the distribution of the first token of the answer, as the persona paper reads it. Every number
                from 0 to 100 must be one token.
            "digits": exact over all ways of writing a number in tokens, its end included; branches below `tolerance`
                are not followed, and what they could hold is taken off the mass.
            "auto": "first" where the numbers are single tokens, else "digits".
        top: count only the so many likeliest first tokens (an API shows 20); None: the full softmax.
        least_mass: with less probability on numbers there is no judgement.
        tolerance: of "digits".
    Raises: BadInput: no tokenizer, or "first" with a tokenizer that splits numbers.
    Source: Persona Vectors (arXiv 2507.21509): first token, top 20, mass .25.
    """

    def __init__(
        self,
        lm: LensModel,
        rubric: Rubric | str,
        *,
        name: str = "",
        reading: Reading = "auto",
        top: int | None = None,
        least_mass: float = LEAST_MASS,
        tolerance: float = 1e-4,
    ) -> None:
        if lm.tokenizer is None:
            raise BadInput("a judge reads texts: load its model with a tokenizer")
        if reading not in ("auto", "first", "digits"):
            raise BadInput(f"reading={reading!r}: allowed are 'auto', 'first' and 'digits'")
        self.lm, self.rubric, self.name = lm, Rubric.of(rubric), name or f"{lm.name} as judge"
        self.top, self.least_mass, self.tolerance = top, least_mass, tolerance
        self._tokens = NumberTokens(lm.tokenizer, lm.layout.vocab_size)
        split = self._tokens.split_numbers()
        if reading == "first" and split:
            raise BadInput(
                f"this tokenizer writes {split[0]} (and {len(split) - 1} more of 0..100) in several tokens, so the "
                "first token does not tell the number: use reading='digits', which sums over all ways of writing it"
            )
        if top is not None and (reading == "digits" or split):
            raise BadInput("top= is for numbers that are single tokens, with reading='first'")
        self.reading: Reading = reading if reading != "auto" else "digits" if split else "first"

    @property
    def fingerprint(self) -> str:
        """Covers the weights in force, the rubric and the reading."""
        settings = [self.reading, self.top, self.least_mass, self.tolerance]
        template = getattr(self.lm.tokenizer, "chat_template", None)
        return _digest(["local", _model_key(self.lm), template, self.rubric.text, settings])

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """One score a case, in batches.

        Raises: what `lm.logits` raises: ContextTooLong, OutOfMemory.
        """
        rows = [row.ids for row in self.lm.tokens([_question(self.lm, self.rubric.fill(case)) for case in cases])]
        if self.reading == "digits":
            tables = DigitTrie(self._tokens, self._ask, self.tolerance).probabilities(rows)
        else:
            tables = self._ask(rows, lambda p: self._tokens.first(p, self.top))
        return [expected_score(table, least_mass=self.least_mass) for table in tables]

    def _ask(self, rows: Sequence[Sequence[int]], read: Callable[[Tensor], Any]) -> list[Any]:
        """What `read` takes from the next-token probabilities after each row."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: list[Any] = [None] * len(rows)
        for at in range(0, len(rows), _ROWS):
            part = order[at : at + _ROWS]
            logits = self.lm.logits([list(rows[i]) for i in part])
            for i, p in zip(part, logits.double().softmax(-1).cpu(), strict=True):
                found[i] = read(p)
        return found

    def __repr__(self) -> str:
        return f"LocalJudge({self.name}, reading={self.reading!r}, top={self.top})"


class LocalWriter:
    """A local model that answers chats.

    Args: lm: from `ll.load`. max_new_tokens, temperature, seed: as for `lm.generate`.
    """

    def __init__(
        self, lm: LensModel, *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int = 0, name: str = ""
    ) -> None:
        self.lm, self.name = lm, name or lm.name
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed

    @property
    def fingerprint(self) -> str:
        """Covers the weights in force and how they are sampled."""
        template = getattr(self.lm.tokenizer, "chat_template", None)
        return _digest(["writer", _model_key(self.lm), template, self.max_new_tokens, self.temperature, self.seed])

    def complete(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """One text a chat.

        Raises: what `lm.generate` raises.
        """
        prompts = [[dict(message) for message in chat] for chat in chats]
        return self.lm.generate(prompts, self.max_new_tokens, temperature=self.temperature, seed=self.seed).texts

    def __repr__(self) -> str:
        return f"LocalWriter({self.name}, temperature={self.temperature})"


def _question(lm: LensModel, text: str) -> Any:
    """A chat where the tokenizer has a template, else the text."""
    return [{"role": "user", "content": text}] if getattr(lm.tokenizer, "chat_template", None) else text


def _model_key(lm: LensModel) -> str:
    return context_digest(lm._identity.context(hash_weights=True))


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"labels {path} cannot be read: {error}") from None
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if path.suffix not in (".jsonl", ".json"):
        raise BadInput(f"labels in {path.name}: give a .csv with a header or a .jsonl with one object a line")
    try:
        listed = json.loads(text) if path.suffix == ".json" else [json.loads(n) for n in text.split("\n") if n.strip()]
    except json.JSONDecodeError as error:
        raise BadInput(f"labels {path}: not JSON ({error})") from None
    if not isinstance(listed, list) or not all(isinstance(line, dict) for line in listed):
        raise BadInput(f"labels {path}: one object a line, or a list of objects")
    return listed


def _number(value: Any, place: str) -> float:
    try:
        found = Score(float(value)).value
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise BadInput(f"{place}: score {value!r} is not a number")
    return found


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
