"""From judged answers to the vector of a trait, and to the place where it steers.

    kept    = persona.keep(contrast)                                     # pairs that show the contrast
    acts    = lm.activations(kept.rows, where="response", pool="mean")
    vectors = persona.extract(kept, acts)                                # one direction a site
    chosen  = persona.choose_site(frame, trait="formal", coherence="coherence")

Source: Persona Vectors (arXiv 2507.21509); github.com/safety-research/persona_vectors, read in the copy
dxnlp/persona_vectors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.cosines import chance_cosine
from latentlens.values.activations import Activations
from latentlens.values.column_means import column_means
from latentlens.values.directions import Direction, as_site
from latentlens.values.persona import Contrast, PersonaVectors, Reply, SiteChoice
from latentlens.values.results import Estimate
from latentlens.values.text_means import text_means


def keep(contrast: Contrast, *, trait: float = 50.0, coherence: float = 50.0) -> Contrast:
    """Pairs of answers in which the contrast shows.

        kept:  positive trait >= 50,  negative trait < 50,  both coherent >= 50,  all four judged

    Args: contrast: judged answers. trait, coherence: the limits.
    Returns: the pairs kept, and how many were dropped by which reason.
    Raises: TooFewExamples: none is left; the message has the counts.
    Source: persona_vectors, `generate_vec.py`.
    """
    reasons: Counter[str] = Counter()
    kept = []
    for pair in contrast.pairs:
        why = {
            "positive answer without the trait": _below(pair.positive.trait, trait),
            "negative answer with the trait": _not_below(pair.negative.trait, trait),
            "incoherent answer": _below(pair.positive.coherence, coherence)
            or _below(pair.negative.coherence, coherence),
            "answer that was not judged": any(_missing(r) for r in (pair.positive, pair.negative)),
        }
        reasons.update(reason for reason, holds in why.items() if holds)
        if not any(why.values()):
            kept.append(pair)
    if not kept:
        counts = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        raise TooFewExamples(
            f"no pair of {len(contrast)} shows the trait {contrast.trait.name!r}: {counts or 'no pairs'}. Look at "
            "contrast.to_frame(): the model may not follow the instructions, or the judge may not see the trait"
        )
    return Contrast(contrast.trait, tuple(kept), dict(reasons), contrast.asked, contrast.about)


def extract(
    contrast: Contrast, acts: Activations, *, where: str = "response", halves: int = 20, seed: int = 0
) -> PersonaVectors:
    """The vector of a trait at every site: difference of means, each answer counting once.

        v = mean_i a(positive_i) - mean_i a(negative_i),      a(answer) = mean over its tokens

    Answers of any lengths weigh alike; rows that are not pooled yet are averaged per answer first. The vector is not
    normalised.

    Args:
        contrast: the pairs.
        acts: of `contrast.rows`, in that order: `lm.activations(contrast.rows, where="response", pool="mean")`. For the
            prompt variants `where="prompt"` (averaged) or `where="last_prompt"`.
        where: what `acts` were read at, for the record.
        halves, seed: random halves of the questions, for `stability`.
    Raises: BadInput: rows of other texts. NonFiniteActivations. TooFewExamples: no pairs.
    Source: arXiv 2507.21509, section 2; variants prompt_avg_diff, prompt_last_diff, response_avg_diff.
    """
    n = len(contrast)
    if not n:
        raise TooFewExamples("no pairs of answers: nothing to take a difference of")
    questions = np.asarray(contrast.questions)
    directions, stability = {}, {}
    splits = _halves(questions, halves, seed)
    chance, name = math.nan, contrast.trait.name
    for site in acts.sites:
        states = text_means(acts, site, 2 * n)
        difference = states[:n] - states[n:]
        vector = difference.mean(0)
        if not vector.any():
            continue  # as at the embedding of the last prompt token: the same on both sides
        source = {
            "method": "persona vector",
            "trait": name,
            "read at": where,
            "pairs": n,
            "model": acts.about.get("model", ""),
        }
        directions[site] = Direction(vector.float(), site, name, "raw", source)
        chance = chance_cosine(vector.numel())
        cosines = [_cosine(difference[one].mean(0), difference[other].mean(0)) for one, other in splits]
        if cosines:
            low, high = np.quantile(cosines, [0.025, 0.975])
            stability[site] = Estimate(float(np.mean(cosines)), float(low), float(high), len(cosines))
    if not directions:
        raise BadInput(f"both sides of {name!r} have the same means at every site")
    return PersonaVectors(name, directions, where, stability, n, chance, {**contrast.about, **acts.about})


def choose_site(
    sites: Sequence[Any], strengths: ArrayLike, trait: ArrayLike, coherence: ArrayLike, *,
    groups: Sequence[Any] | None = None, least_coherence: float = 50.0, seed: int = 0,
) -> SiteChoice:  # fmt: skip
    """The site and strength with the highest trait score among those whose text stays coherent.

        (site, strength) = argmax mean trait   over settings with   mean coherence >= least_coherence

    What coherence is acceptable is not published; 50 is the limit that pairs are filtered with.

    Args:
        sites, strengths, trait, coherence: one value an answer; NaN where it was not judged.
        groups: what intervals resample together, such as the question.
        least_coherence: of the mean.
    Raises: BadInput: lengths differ. TooFewExamples: no setting stays coherent.
    Source: arXiv 2507.21509, layer selection.
    """
    labels = [str(as_site(site)) for site in sites]
    c, t, fluent = (np.asarray(x, dtype=np.float64) for x in (strengths, trait, coherence))
    group = np.arange(len(labels)) if groups is None else np.asarray([str(g) for g in groups])
    if len({len(labels), len(c), len(t), len(fluent), len(group)}) > 1:
        raise BadInput("sites, strengths, trait, coherence and groups must have one value an answer each")
    rows: list[dict[str, Any]] = []
    for site, strength in dict.fromkeys(zip(labels, c.tolist(), strict=True)):
        mine = np.array([label == site for label in labels]) & (c == strength)
        both = column_means(np.stack([t[mine], fluent[mine]], 1), groups=group[mine], seed=seed)
        coherent = bool(both[1].value >= least_coherence)
        rows.append({"site": site, "strength": strength, "trait": both[0], "coherence": both[1], "coherent": coherent})
    able = [row for row in rows if row["coherent"] and not math.isnan(row["trait"].value)]
    if not able:
        most = max((row["coherence"].value for row in rows), default=math.nan)
        raise TooFewExamples(
            f"no setting of {len(rows)} has a mean coherence of {least_coherence:g} or more (highest: {most:.3g}): try "
            "smaller strengths"
        )
    best = max(able, key=lambda row: row["trait"].value)
    return SiteChoice(as_site(best["site"]), best["strength"], tuple(rows), least_coherence)


def rises(scores: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0) -> tuple[Estimate, ...]:
    """Mean paired change from each strength to the next.

        step_k = mean_i (score[i, k + 1] - score[i, k])

    Args: scores: (items, strengths), strengths ascending; an item shares its randomness under all of them.
        groups: (items,), what intervals resample together.
    Returns: one Estimate a step; the trait rises where its interval lies above 0.
    Raises: BadInput: fewer than two strengths.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise BadInput(f"scores of shape {table.shape}: one row an item, one column a strength, at least two")
    return tuple(column_means(np.diff(table, axis=1), groups=groups, seed=seed))


def _halves(questions: np.ndarray, draws: int, seed: int) -> list[tuple[Any, Any]]:
    """Row masks of two halves of the questions; of the rows where there is one question."""
    unit = questions if len(set(questions.tolist())) > 1 else np.arange(len(questions))
    names = np.unique(unit)
    if len(names) < 2:
        return []
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        half = np.isin(unit, rng.permutation(names)[: len(names) // 2])
        found.append((torch.as_tensor(half), torch.as_tensor(~half)))
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def _below(score: float | None, limit: float) -> bool:
    return score is not None and score < limit


def _not_below(score: float | None, limit: float) -> bool:
    return score is not None and score >= limit


def _missing(reply: Reply) -> bool:
    return reply.trait is None or reply.coherence is None
