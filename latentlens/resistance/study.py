"""A model, an SAE and a task: conditions in, judged answers out.

study = Study(lm, sae, embedded_task(lm), folder="runs/esr")
plain, ablated = study.answers(trials, [Condition("steered"), Condition("ablated", ablated=detectors)])
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.generation.kept_rows import KeptRows
from latentlens.access.generation.sweep import sweep
from latentlens.access.identity import context_digest
from latentlens.errors import BadInput
from latentlens.values.arguments import known_unit
from latentlens.values.attempts import AttemptJudge
from latentlens.values.esr import SCHEDULES, Answers, Condition, Trial
from latentlens.values.interventions import Plan, Unit
from latentlens.values.judging import Case
from latentlens.values.latents import EditLatents
from latentlens.values.sae import SAE

if TYPE_CHECKING:
    from latentlens.access.model import LensModel
    from latentlens.resistance.task import Task
    from latentlens.values.codes import Codes
    from latentlens.values.rows import TokenRow

_UNSTEERED = -1  # latent of trials that are never steered
#: By unit what is believed of thresholds, and where they are looked for; raw as for ESR's 70B run.
BELIEFS = {"norm": ((2.0, 1.0), (0.0, 6.0)), "raw": ((7.0, 5.0), (0.0, 100.0))}


class Study:
    """Where an experiment on one model, SAE and task is run, and where finished rows are kept.

    sae_layer, hook and readout are three things: the block that the SAE was trained on (`sae.site`), the one where its
    latents are added and clamped, and the one where they are read.

    Args:
        lm, sae, task: what is studied.
        hook, readout: sites, in any spelling; by default the SAE's own. ESR's 70B run has an SAE of block 50 at 33.
        unit: of strengths: "norm" for multiples of the median norm of the states at the hook, or "raw" as in ESR.
        prior, bounds: belief about thresholds (mean, standard deviation) and the range searched, in that unit; see
            `BELIEFS`. Raw units mean something else for every SAE.
        folder: finished rows and thresholds; the same study on the same folder runs only what is missing.
    Raises: SiteNotFound. BadInput: several sites, or an SAE of another width.
    """

    def __init__(
        self,
        lm: LensModel,
        sae: SAE,
        task: Task,
        *,
        hook: Any = None,
        readout: Any = None,
        unit: Unit = "norm",
        prior: tuple[float, float] | None = None,
        bounds: tuple[float, float] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.lm, self.sae, self.task = lm, sae, task
        self.unit: Unit = known_unit(unit)
        self.prior, self.bounds = prior or BELIEFS[unit][0], bounds or BELIEFS[unit][1]
        self.hook, read = (self._site(site) for site in (hook, readout))
        self.reading = replace(sae, site=read)
        self.folder = Path(folder) if folder is not None else None
        self.labels: dict[int, str] = dict(task.labels or {})
        self._counted: Counter[str] = Counter()
        self._rows: KeptRows | None = None

    def _site(self, spec: Any) -> Any:
        if spec is None:
            return self.sae.site
        if isinstance(spec, str) and spec.lstrip("-").isdigit():
            spec = int(spec)  # a block, as on a command line
        found = self.lm.layout.sites(spec)
        if len(found) != 1:
            raise BadInput(f"hook and readout are one site each; {spec!r} names {len(found)}")
        if self.lm.layout.width(found[0]) != self.sae.d_in:
            raise BadInput(f"{found[0]} has {self.lm.layout.width(found[0])} entries, the SAE reads {self.sae.d_in}")
        return found[0]

    # -- conditions -------------------------------------------------------------------------------------

    def plan(self, trial: Trial, condition: Condition) -> Plan:
        """The edits of one trial in one condition: clamps first, then the steered latent is added."""
        strength = condition.strength_of(trial)
        off = {j: 0.0 for j in condition.ablated if j != trial.latent or not strength}
        edits: list[EditLatents] = []
        if off:
            edits.append(EditLatents(self.sae, clamp=off, site=self.hook))
        if strength:
            where, schedule = SCHEDULES[condition.schedule]
            how = {"site": self.hook, "where": where, "schedule": schedule, "unit": self.unit}
            edits.append(EditLatents(self.sae, add={trial.latent: strength}, **how))
        return tuple(edits)

    def answers(
        self, trials: Sequence[Trial], conditions: Sequence[Condition], *, max_new_tokens: int | None = None
    ) -> dict[str, Answers]:
        """What the model writes in every condition, judged; all conditions with one meta-prompt share batches.

        Args: trials: replayed in each condition. conditions: of different names. max_new_tokens: by default the task's.
        Returns: by the name of the condition. Trials of one prompt and seed share their randomness across conditions,
            unless a meta-prompt changes the prompt.
        Raises: BadInput: no trial, or names that repeat. And what `lm.generate` raises.
        """
        if not trials or len({c.name for c in conditions}) < len(conditions):
            raise BadInput(
                f"{len(trials)} trials (at least 1), {len(conditions)} conditions, which need different names"
            )
        made: dict[str, Answers] = {}
        for kind in dict.fromkeys(c.meta for c in conditions):
            some = [c for c in conditions if c.meta == kind]
            chats = [self.task.chat(t.prompt, kind, self.subject(t.latent)) for t in trials]
            plans = {c.name: [list(self.plan(t, c)) for t in trials] for c in some}
            frame = self._swept(chats, plans, [[t.seed] for t in trials], max_new_tokens)
            for condition in some:
                rows = frame[frame["plan"] == condition.name]
                made[condition.name] = self._judged(condition, trials, rows["text"], rows["generated"])
        return {c.name: made[c.name] for c in conditions}

    def continued(self, rows: Sequence[TokenRow], plans: Mapping[Any, Any], seed: int = 0) -> dict[Any, list[str]]:
        """What follows some beginnings under each plan, by its label; kept in the folder as answers are."""
        labels = {str(label): label for label in plans}
        frame = self._swept([list(row.ids) for row in rows], {name: plans[labels[name]] for name in labels}, [seed])
        return {labels[name]: some["text"].tolist() for name, some in frame.groupby("plan", sort=False)}

    @property
    def rows(self) -> KeptRows | None:
        """Answers in the folder, opened once for all parts."""
        if self._rows is None and self.folder is not None:
            self._rows = KeptRows(self.folder / "rows")
        return self._rows

    def of_model(self, lm: LensModel) -> Study:
        """The same study of another model, with the same labels, in the same folder."""
        same: dict[str, Any] = {"unit": self.unit, "prior": self.prior, "bounds": self.bounds, "folder": self.folder}
        its = Study(lm, self.sae, self.task, hook=self.hook, readout=self.reading.site, **same)
        its.labels, its._rows, its._counted = self.labels, self.rows, self._counted
        return its

    @property
    def rows_run(self) -> int:
        """Answers written so far, those of tuned models included."""
        return self._counted["run"]

    @property
    def rows_found(self) -> int:
        """Answers that were asked for and lay in the folder."""
        return self._counted["found"]

    def _swept(self, prompts: Any, plans: Mapping[str, Any], seeds: Any, max_new_tokens: int | None = None) -> Any:
        frame = sweep(
            self.lm,
            prompts,
            plans,
            seeds,
            max_new_tokens=max_new_tokens or self.task.max_new_tokens,
            temperature=self.task.temperature,
            folder=self.rows,
        )
        self._counted.update(run=frame.attrs["rows_run"], found=frame.attrs["rows_found"])
        return frame

    def _judged(self, condition: Condition, trials: Sequence[Trial], texts: Any, tokens: Any) -> Answers:
        prompts = tuple(self.task.prompts[t.prompt] for t in trials)
        cases = [Case(p, text, self.subject(t.latent)) for p, text, t in zip(prompts, texts, trials, strict=True)]
        about = {
            "schedule": condition.schedule if condition.steer else "",
            "ablated": condition.ablated,
            "meta": condition.meta,
            "judge": self.task.judge.name,
        }
        return Answers(
            condition.name,
            tuple(trials),
            prompts,
            tuple(texts),
            tuple(tuple(ids) for ids in tokens),
            tuple(self.task.judge.attempts(cases)),
            about,
        )

    def regraded(self, answers: Answers, judge: AttemptJudge) -> Answers:
        """The same answers as another judge sees them."""
        return answers.rejudged(judge.attempts(self.cases(answers)))

    def cases(self, answers: Answers) -> list[Case]:
        """What judges are given of some answers."""
        return [
            Case(prompt, text, self.subject(trial.latent))
            for prompt, text, trial in zip(answers.prompts, answers.texts, answers.trials, strict=True)
        ]

    def subject(self, latent: int) -> str:
        """What judges and meta-prompts are told that a latent is about; empty for an unlabelled one."""
        return self.task.subject(self.labels[latent]) if latent in self.labels else ""

    # -- without steering -------------------------------------------------------------------------------

    def baseline(self, samples: int = 4, seed: int = 0) -> Answers:
        """Answers to every prompt without any edit, `samples` each, prompt by prompt."""
        trials = [Trial(_UNSTEERED, p, seed + s, 0.0) for p in range(len(self.task.prompts)) for s in range(samples)]
        return self.answers(trials, [Condition("unsteered", steer=False)])["unsteered"]

    def conversations(self, answers: Answers, prompts: Sequence[int] | None = None) -> list[TokenRow]:
        """Answers below their own prompts, or below others, as the model would read them."""
        asked = self.lm.tokens([self.task.chat(p) for p in range(len(self.task.prompts))])
        below = answers.prompt_indices if prompts is None else prompts
        return [asked[int(p)].continued(ids) for p, ids in zip(below, answers.tokens, strict=True)]

    def codes(self, rows: Any, where: Any = "all") -> Codes:
        """Latents of texts at the readout site, without edits."""
        return self.lm.latents(self.reading, rows, where)

    # -- what it depends on -----------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """Everything that answers and scores depend on, trials and conditions apart."""
        return {
            "model": context_digest(self.lm._identity.context(hash_weights=True)),
            "sae": self.sae.fingerprint,
            "hook": str(self.hook),
            "unit": self.unit,
            "prompts": list(self.task.prompts),
            "judge": self.task.judge.fingerprint,
            "temperature": self.task.temperature,
            "schedules": {name: [where, str(schedule)] for name, (where, schedule) in SCHEDULES.items()},
        }

    def seconds_per_row(self, latent: int = 0, n: int | None = None) -> float:
        """Measured time of one steered and ablated answer, in a batch of n (by default as large as batches will be).

        Nothing is kept. Small batches are slow for their overhead: measured on a few rows, a forecast is many times
        too long.
        """
        chats = [self.task.chat(p) for p in range(len(self.task.prompts))]
        longest = max(len(row) for row in self.lm.tokens(chats)) + self.task.max_new_tokens
        n = min(max(self.lm.token_budget // longest, 1), 256) if n is None else n
        plan = self.plan(Trial(latent, 0, 0, 1.0), Condition("timed", ablated=((latent + 1) % self.sae.d_sae,)))
        started = time.perf_counter()
        self.lm.generate(
            [chats[i % len(chats)] for i in range(n)],
            self.task.max_new_tokens,
            temperature=self.task.temperature,
            steer=list(plan),
            allow_idle=True,
        )
        return (time.perf_counter() - started) / n

    def __repr__(self) -> str:
        sites = f"{self.sae.name} of {self.sae.site}, hook {self.hook}, readout {self.reading.site}"
        return f"Study({self.lm.name}, {sites}; {len(self.task.prompts)} prompts, judged by {self.task.judge.name})"
