"""Steering with trait vectors: where and how strongly, then the dose-response with all its controls; both resumable.

    columns = site_sweep(lm, vectors, [2, 4, 6], questions, judge, coherence)
    chosen  = ll.persona.choose_site(**columns, least_coherence=80)

doses = trait_doses(lm, vector, [1, 2, 3, 4], questions, {"formal": judge, "coherence": other}, "formal",
asked_by="Be very formal.", others={"hostile": vector_of_hostile})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlens.access.judging.judged_sweep import judged_sweep
from latentlens.errors import BadInput
from latentlens.values.column_means import column_means
from latentlens.values.directions import Direction
from latentlens.values.judging import Judge
from latentlens.values.operations import Add
from latentlens.values.trait_doses import TraitDoses
from latentlens.values.traits import asked

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


def site_sweep(
    lm: LensModel,
    vectors: Iterable[Direction],
    strengths: Sequence[float],
    questions: Sequence[str],
    judge: Judge,
    coherence: Judge,
    *,
    about: str = "",
    seeds: Sequence[int] = (0,),
    where: Any = "last_prompt+response",
    folder: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Answers under every vector at every strength, judged: the columns that `persona.choose_site` takes.

    Args: vectors: one a site. strengths: in lengths of each vector. questions: those of the extraction, so that others
        are left for the evaluation. about, seeds, where, folder, options: as for `trait_doses`.
    Returns: sites, strengths, trait, coherence and groups (the question), one value an answer.
    """
    settings = {f"{v.site} at {c:g}": (v, float(c)) for v in vectors for c in strengths}
    if not settings:
        raise BadInput("no setting to try: give at least one vector and one strength")
    plans = {label: Add(v, c, where=where) for label, (v, c) in settings.items()}
    frame = judged_sweep(
        lm, [asked(q) for q in questions], plans, seeds, {"trait": judge, "coherence": coherence}, about=about,
        folder=folder, nll=False, **options,
    )  # fmt: skip
    tried = [settings[label] for label in frame["plan"]]
    return {
        "sites": [v.site for v, _ in tried],
        "strengths": [c for _, c in tried],
        "trait": frame["trait"].to_numpy(),
        "coherence": frame["coherence"].to_numpy(),
        "groups": frame["prompt_index"].tolist(),
    }


def trait_doses(
    lm: LensModel,
    vector: Direction,
    strengths: Sequence[float],
    questions: Sequence[str],
    judges: Mapping[str, Judge],
    trait: str,
    *,
    asked_by: str = "",
    others: Mapping[str, Direction] | None = None,
    about: str | Mapping[str, str] = "",
    draws: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    where: Any = "last_prompt+response",
    folder: str | Path | None = None,
    **options: Any,
) -> TraitDoses:
    """Score a trait under its vector, random directions, other vectors and the plain prompt, strength by strength.

    Every arm answers the same questions with the same seeds: arms and strengths are compared within a question and
    seed, and intervals resample questions.

        h' = h + c v        random and other vectors at the length of v

    Args:
        vector: of the trait. strengths: c > 0, ascending; 0 (no edit) is added.
        questions: user turns that neither vector nor strengths were chosen on.
        judges: `trait` and "coherence" among them; the others count as scores that should not move.
        trait: name of the column. asked_by: system prompt that asks for the trait in words; "" leaves that arm out.
        others: vectors of other traits at the same site. about: what judges judge on, for all or by column.
        draws: random directions. seeds: answers a question. where: positions steered.
        folder: where answers and verdicts are kept. options: as for `ll.sweep`.
    Raises: BadInput: strengths, or no judge of the trait or of coherence. What `judged_sweep` raises.
    """
    grid = [float(c) for c in strengths]
    if not grid or grid[0] <= 0 or any(b <= a for a, b in pairwise(grid)):
        raise BadInput(f"strengths {grid}: positive and ascending; 0 is added")
    missing = {trait, "coherence"} - set(judges)
    if missing:
        raise BadInput(f"judges= lacks {', '.join(sorted(missing))}; it has {', '.join(judges)}")
    arms = {"direction": vector, **{f"random {i}": vector.random_like(i) for i in range(draws)}}
    arms |= {f"vector {name}": other.scaled_to(vector.norm) for name, other in (others or {}).items()}
    plans: dict[str, Any] = {"none": None}
    plans |= {f"{arm} at {c:g}": Add(along, c, where=where) for arm, along in arms.items() for c in grid}
    seeds = list(seeds)
    frame = judged_sweep(
        lm, [asked(q) for q in questions], plans, seeds, judges, about=about, folder=folder, **options
    )  # fmt: skip
    prompted = None
    if asked_by:
        chats = [asked(q, asked_by) for q in questions]
        mine = {trait: judges[trait]}
        said = judged_sweep(lm, chats, {"prompt": None}, seeds, mine, about=about, folder=folder, nll=False, **options)
        prompted = column_means(said[trait], groups=said["prompt_index"].tolist())[0]
    columns = [*judges, "nll"]
    values = {
        label: {name: part[name].to_numpy(dtype=np.float64) for name in columns}
        for label, part in frame.groupby("plan", sort=False)
    }
    groups = frame.loc[frame["plan"] == "none", "prompt_index"].tolist()

    def curve(arm: str, column: str) -> NDArray[np.float64]:
        """(items, strengths), the first without an edit."""
        return np.stack([values["none"][column], *(values[f"{arm} at {c:g}"][column] for c in grid)], axis=1)

    def means(table: NDArray[np.float64]) -> tuple[Any, ...]:
        return tuple(column_means(table, groups=groups))

    score = curve("direction", trait)
    random = [curve(f"random {i}", trait) for i in range(draws)]
    random_nll = [curve(f"random {i}", "nll") for i in range(draws)] or [np.full_like(score, np.nan)]
    return TraitDoses(
        trait=trait,
        strengths=(0.0, *grid),
        unit=f"length of the vector, {vector.norm:.3g}, at {vector.site}",
        direction=means(score),
        random=tuple(means(table) for table in random),
        other_vectors={name: means(curve(f"vector {name}", trait)) for name in others or {}},
        prompted=prompted,
        steps=means(np.diff(score, axis=1)),
        above_random=means(score - (np.mean(random, axis=0) if random else np.nan)),
        off_target={n: means(curve("direction", n)) for n in judges if n not in (trait, "coherence")},
        coherence=means(curve("direction", "coherence")),
        nll=means(curve("direction", "nll")),
        random_nll=means(np.mean(random_nll, axis=0)),
        n=len(groups),
        about={"model": lm.name, "site": str(vector.site), "questions": len(questions), "seeds": seeds,
               "rows run": frame.attrs["rows_run"], "rows found": frame.attrs["rows_found"]},
    )  # fmt: skip
