"""A study from what people type: names of a model and an SAE, files of prompts and labels, and who judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.judging.attempt_judges import LikelihoodJudge, SegmentJudge, WrittenJudge
from latentlens.access.judging.judge import LocalJudge
from latentlens.access.judging.judge_endpoint import Endpoint, EndpointJudge, EndpointWriter
from latentlens.access.model import load
from latentlens.access.saes.preflight import preflight
from latentlens.access.saes.sae import load_sae
from latentlens.access.store.verdict_cache import cached
from latentlens.errors import BadInput
from latentlens.organism import sae_path
from latentlens.resistance.study import Study
from latentlens.resistance.task import QUESTIONS, Task, embedded_task, read_labels, read_prompts
from latentlens.values.attempts import ATTEMPT_RUBRIC, CONCRETENESS_RUBRIC, AttemptJudge
from latentlens.values.judging import Judge

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: Padded tokens in one batch of a model of this size: small models are slow for their overhead, not their arithmetic.
_SMALL, _LARGE_BATCH = 50_000_000, 32_768
_NOTE, _OBJECT = "study.json", "an object"


def open_study(
    model: Any = "",
    sae: Any = "",
    *,
    sae_id: str = "",
    hook: Any = None,
    readout: Any = None,
    prompts: str = "",
    labels: str = "",
    judge: str = "",
    other_judges: Sequence[str] = (),
    unit: str = "norm",
    prior: Sequence[float] | None = None,
    bounds: Sequence[float] | None = None,
    max_new_tokens: int = 0,
    folder: str | Path | None = None,
    **how: Any,
) -> Study:
    """Open a model with its SAE and task; nothing at all opens the embedded model with the SAE that ships with it.

    Args:
        model: hub id, folder, or a model object; empty for the embedded one. how: for `ll.load` (quantization,
            device_map, dtype, tokenizer, ...).
        sae, sae_id: as for `ll.load_sae`.
        hook, readout: where latents are added and clamped, and where they are read; the SAE's own site by default.
        prompts: file, a question a line; our own twenty by default. labels: JSON with labels of latents.
        judge: "" for the rule of the embedded model, else "local": the model itself; "likelihood": its likelihoods;
            "local:NAME": another local model; "endpoint:NAME": a model on an OpenAI-compatible server, which reads
            whole answers.
        other_judges: who grades the same answers again, in the same words; likelihoods do in every case.
        unit, prior, bounds: as for `Study`. max_new_tokens: of an answer.
        folder: of the study; what was asked for is noted in it, so that `reopen` needs nothing else.
    Raises: BadInput: an unknown judge, or a model without an SAE. SAEMismatch: the SAE is not of this model.
    """
    asked = {name: value for name, value in locals().items() if name not in ("how", "folder")} | how
    lm = load(model or None, **how)
    if lm.n_parameters < _SMALL:
        lm.token_budget = max(lm.token_budget, _LARGE_BATCH)
    if model and not sae:
        raise BadInput("name the SAE of this model as well: a folder, or a release with its sae_id")
    opened = load_sae(sae or sae_path(), sae_id or None, lm=lm)
    if model:
        preflight(lm, opened)
    task = embedded_task(lm) if not model and not prompts else _task(lm, prompts, labels, judge or "local", folder)
    if other_judges:
        more = tuple(_judges(lm, name, folder)[0] for name in other_judges)
        object.__setattr__(task, "other_judges", task.other_judges + more)
    if max_new_tokens:
        object.__setattr__(task, "max_new_tokens", max_new_tokens)
    belief: Any = {"unit": unit, "prior": tuple(prior) if prior else None, "bounds": tuple(bounds) if bounds else None}
    study = Study(lm, opened, task, hook=hook, readout=readout, folder=folder, **belief)
    _note(study.folder, asked)
    return study


def reopen(folder: str | Path) -> Study:
    """The study that was opened on a folder; on one without any, the embedded model's.

    Raises: BadInput: it was opened on a model object, which a file cannot name. And what `open_study` raises.
    """
    try:
        asked = json.loads((Path(folder) / _NOTE).read_text())
    except (OSError, ValueError):
        asked = {}
    if any(value == _OBJECT for value in asked.values()):
        raise BadInput(f"the study in {folder} was opened on objects: open it in the same way again")
    return open_study(**asked, folder=folder)


def _note(folder: Path | None, asked: dict[str, Any]) -> None:
    if folder is None:
        return
    plain = (str, int, float, bool, list, tuple, type(None))
    kept = {name: value if isinstance(value, plain) else _OBJECT for name, value in asked.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NOTE).write_text(json.dumps(kept, indent=2) + "\n")


def _task(lm: LensModel, prompts: str, labels: str, judge: str, folder: str | Path | None) -> Task:
    names = read_labels(labels) if labels else None
    whole, single = _judges(lm, judge, folder)
    return Task(
        read_prompts(prompts) if prompts else QUESTIONS,
        whole,
        labels=names,
        concreteness=single,
        other_judges=(_judges(lm, "likelihood", folder)[0],) if judge != "likelihood" else (),
    )


def _judges(lm: LensModel, judge: str, folder: str | Path | None) -> tuple[AttemptJudge, Judge | None]:
    """Who judges answers, and who judges labels."""
    kept: Any = (lambda one: cached(one, Path(folder) / "verdicts")) if folder else lambda one: one
    kind, _, name = judge.partition(":")
    if kind == "endpoint" and name:
        endpoint = Endpoint(name)
        reader = WrittenJudge(kept(EndpointWriter(endpoint)), name=name)
        return reader, kept(EndpointJudge(endpoint, CONCRETENESS_RUBRIC, reading="text"))
    if kind == "local":
        other = load(name) if name else lm
        return SegmentJudge(kept(LocalJudge(other, ATTEMPT_RUBRIC))), kept(LocalJudge(other, CONCRETENESS_RUBRIC))
    if judge == "likelihood":
        return SegmentJudge(kept(LikelihoodJudge(lm)), name="likelihood"), None
    raise BadInput(f"judge {judge!r}: allowed are 'local', 'local:NAME', 'likelihood' and 'endpoint:NAME'")


def forecast(study: Study, rows: dict[str, int], latents: Sequence[int] = (0,)) -> list[dict[str, Any]]:
    """Rows and minutes of each part, at the measured speed of a steered answer; an upper bound, kept rows cost nothing.

    What is not in it: other models that judge (each reads every answer once), fine-tuning, and reading answers again.

    Args: rows: part -> answers to write. latents: one of them is steered with for the measurement.
    Returns: one row a part: part, answers, minutes of writing at most; the sum last.
    """
    seconds = study.seconds_per_row(int(latents[0]))
    every = {**rows, "all": sum(rows.values())}
    return [
        {"part": name, "answers": n, "minutes of writing, at most": round(n * seconds / 60, 1)}
        for name, n in every.items()
    ]
