"""Tasks asked with and without naming a style: prompts, states and judged answers, for experiments that steer styles.

ask = StyledTasks(lm, ("Python", "Julia"), judge=language_of, valid=is_valid)
ask.prompts(tasks)                          the style left open                     ask.prompts(tasks, "Julia")
ask.states(tasks, "Julia")["resid_post"]    at the last prompt token, through the activation cache
ask.answers(tasks, {"none": None, "+": plan}, seeds)["+"].share("Julia")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.generation.sweep import sweep
from latentlens.errors import BadInput
from latentlens.values.activations import Activations
from latentlens.values.style_effect import UNKNOWN, StyleArm

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: (the style left open, the style named), for requests of programs.
WORDINGS = (
    ("Write a program that {task}.", "Write a program in {style} that {task}."),
    ("Show me a program that {task}.", "Show me a {style} program that {task}."),
)


@dataclass(frozen=True)
class StyledTasks:
    """Asks for tasks in several wordings, task i in wording i modulo their number.

    styles: names as they stand in a prompt. judge: from an answer to the style found in it, or "unknown". valid:
    whether an answer is valid in a style, None where nobody can tell. wordings: pairs (open, named) with `{task}` and
    `{style}`. chat: whether prompts are a user's turn; by default where the tokenizer has a chat template. folder:
    where rows are kept. options: for `ll.sweep`.

    Raises: BadInput: fewer than two styles, or a wording without its places.
    """

    lm: LensModel
    styles: tuple[str, ...]
    judge: Callable[[str], str]
    valid: Callable[[str, str], bool | None] = lambda text, style: None
    wordings: Sequence[tuple[str, str]] = WORDINGS
    chat: bool | None = None
    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter, compare=False)  # forwards, rows run, rows found

    def __post_init__(self) -> None:
        """Check styles and wordings."""
        object.__setattr__(self, "styles", tuple(self.styles))
        if len(set(self.styles)) < 2 or UNKNOWN in self.styles:
            raise BadInput(f"styles={self.styles}: give two different names at least; 'unknown' is no style")
        for pair in self.wordings:
            if len(pair) != 2 or "{task}" not in pair[0] or not all(w in pair[1] for w in ("{task}", "{style}")):
                raise BadInput(f"wording {pair}: give ('... {{task}} ...', '... {{style}} ... {{task}} ...')")
        self.judge("")  # a judge that knows one of the styles not says so now, not after the fitting
        if self.chat is None:
            template = getattr(self.lm.tokenizer, "chat_template", None)
            object.__setattr__(self, "chat", bool(template))

    def prompts(self, tasks: Sequence[str], style: str | None = None, wording: int | None = None) -> list[Any]:
        """One prompt a task. Args: style: named in it; None leaves it open. wording: which; None takes turns."""
        texts = []
        for i, task in enumerate(tasks):
            pair = self.wordings[(i if wording is None else wording) % len(self.wordings)]
            texts.append(pair[0 if style is None else 1].format(task=task, style=style))
        return [[{"role": "user", "content": text}] for text in texts] if self.chat else texts

    def states(
        self, tasks: Sequence[str], style: str | None = None, wording: int | None = None, sites: Any = "resid_post[*]"
    ) -> dict[str, Activations]:
        """States at the last prompt token, one row a task, by point ("resid_post", "z", "mlp_post")."""
        acts = self.lm.activations(self.prompts(tasks, style, wording), sites=sites, where="last")
        self.counts["forwards"] += acts.about["forwards"]
        points = dict.fromkeys(site.point for site in acts.sites)
        return {
            point: Activations({s: v for s, v in acts.values.items() if s.point == point}, acts.labels, acts.about)
            for point in points
        }

    def answers(
        self, tasks: Sequence[str], plans: Mapping[str, Any], seeds: Sequence[int], *, style: str | None = None
    ) -> dict[str, StyleArm]:
        """Answers under every plan, judged, with their nats to the unsteered model: one arm a plan.

        Args: plans: {"arm": plan}. style: named in the prompt (asking in words) or None.
        """
        frame = self._swept(self.prompts(tasks, style), plans, seeds, kl=True, **self.options)
        arms = {}
        for name, rows in frame.groupby("plan", sort=False):
            found = [self.judge(text) for text in rows["text"]]
            valid = [None if s == UNKNOWN else self.valid(text, s) for s, text in zip(found, rows["text"])]
            kl = [float(sum(values)) for values in rows["kl"]]
            prompt, seed = (tuple(rows[column].tolist()) for column in ("prompt_index", "seed"))
            arms[str(name)] = StyleArm(str(name), prompt, seed, tuple(found), tuple(valid), tuple(kl))
        return arms

    def nats(
        self, tasks: Sequence[str], plans: Sequence[Callable[[float], Any]], seeds: Sequence[int]
    ) -> Callable[[list[float | None]], list[list[float] | None]]:
        """The question that `kl_budget_batch` asks, about whole answers: strengths in, mean nats of an answer out.

        Args: plans: per problem, from a strength to the plan that has it. tasks, seeds: the style left open.
        """

        def answered(coeffs: list[float | None]) -> list[list[float] | None]:
            asked = {str(i): plans[i](c) for i, c in enumerate(coeffs) if c is not None}
            arms = self.answers(tasks, asked, seeds)
            return [[arms[str(i)].nats().value] if str(i) in arms else None for i in range(len(coeffs))]

        return answered

    def budgets(
        self,
        tasks: Sequence[str],
        plans: Mapping[Any, Callable[[float], Any]],
        seeds: Sequence[int],
        search: Callable[..., Sequence[Any]],
        **options: Any,
    ) -> dict[Any, Any]:
        """The strength of every arm at which an answer is so many nats from the unsteered model, all searched at once.

        Args: plans: by arm, from a strength to the plan that has it. search: `ll.calibrate.kl_budget_batch`.
            options: of the search: `target` (nats), `low`, `high`, `tol`, `max_iterations`.
        """
        found = search(self.nats(tasks, list(plans.values()), seeds), len(plans), **options)
        return dict(zip(plans, found, strict=True))

    def best_of(self, tasks: Sequence[str], plans: Mapping[str, Any], style: str, seeds: Sequence[int]) -> str:
        """The plan with most valid answers in a style, the first of equals."""
        arms = self.answers(tasks, plans, seeds)
        return max(arms, key=lambda name: arms[name].hit(style).value)

    def telling_tokens(self, tasks: Sequence[str], depth: int = 8) -> dict[str, int]:
        """The token that tells each style: the most frequent one at the first place of the answers where all differ.

        Answers are greedy, the style named. Where they never differ, the first token of the style's name.

        Raises: BadInput: names that begin with the same token.
        """
        runs: dict[str, list[list[int]]] = {}
        for style in self.styles:
            how = {"max_new_tokens": depth, "temperature": 0.0, "stop_ids": ()}
            runs[style] = self._swept(self.prompts(tasks, style), {"none": None}, (0,), **how)["generated"].tolist()
        for place in range(depth):
            each = {s: Counter(ids[place] for ids in of).most_common(1)[0][0] for s, of in runs.items()}
            if len(set(each.values())) == len(each):
                return each
        first = {s: self.lm.tokenizer(" " + s, add_special_tokens=False).input_ids[0] for s in self.styles}
        if len(set(first.values())) < len(first):
            raise BadInput(
                f"neither the answers nor the names of {', '.join(self.styles)} begin with tokens of their own"
            )
        return first

    def _swept(self, prompts: Sequence[Any], plans: Mapping[str, Any], seeds: Sequence[int], **options: Any) -> Any:
        frame = sweep(self.lm, prompts, plans, seeds, folder=self.folder, **options)
        self.counts["rows_run"] += frame.attrs["rows_run"]
        self.counts["rows_found"] += frame.attrs["rows_found"]
        return frame
