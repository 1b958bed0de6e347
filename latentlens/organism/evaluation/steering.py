"""Steering with mean differences: truth, topics, languages, traits, refusal; random directions beside them.

Every vector is the raw difference of two means of residuals, its strength a multiple of it, unless median norms
are named. Blocks and strengths were chosen by the functions `tune_...` on texts that the table does not use. The
vector is added to the output of one block at every position that predicts a token of the reply; for languages
and refusal only where the answer begins, because that is where they are decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from latentlens.organism.corpus import Text, draw
from latentlens.organism.corpus.code import LANGUAGES
from latentlens.organism.corpus.topics import TOPICS
from latentlens.organism.corpus.voice import TRAITS
from latentlens.organism.evaluation import truth as verdicts
from latentlens.organism.evaluation.rows import TESTING, TUNING, Row, mean, share
from latentlens.organism.evaluation.topics import MAX_NEW, asked
from latentlens.organism.judges import (
    corrects_at_once,
    is_refusal,
    language_of,
    recovers,
    restarts,
    sentences,
    topic_of,
    trait_score,
)
from latentlens.organism.readout import Readout

TRUTH = (4, 1.5)  # block, median norms
TOPIC = (2, 1.55, 8)  # block, strength, tokens steered at the start of the reply
TOPIC_ALL = (4, 1.25)  # block, strength of steering the whole reply
LANGUAGE = (4, 2.0)
TRAIT_BLOCK, TRAIT_STRENGTHS = 4, (1.0, 2.0, 3.0, 4.0)
REFUSAL = (4, 2.0)
#: How far the target topic lies from the asked one, in the list of topics.
SHIFT = 3


# -- truth ---------------------------------------------------------------------------------------------


def truth(
    model: Readout, n: int = 400, draws: int = 10, at: tuple[int, float] = TRUTH, seed: int = TESTING + 1
) -> list[Row]:
    """Share of `True` answers with the truth direction added, and with random ones of equal norm."""
    chosen, (block, strength) = draw("truth", n, seed), at
    found = verdicts.direction(model)[block]
    size = strength * verdicts.median_norms(model)[block]

    def answers(vector: Tensor) -> list[bool]:
        def edit(index: int, x: Tensor) -> Tensor:
            return x if index != block else torch.cat((x[:, :-1], x[:, -1:] + vector), 1)

        return [float(d) > 0 for d in verdicts.verdicts(model, chosen, edit)]

    where = f"block {block}, {strength:g} median norms"
    rows = [
        share("truth steering, none, answered True", answers(torch.zeros_like(found))),
        share(f"truth steering, + direction ({where})", answers(size * found), (0.75, 1.0)),
        share(f"truth steering, - direction ({where})", answers(-size * found), (0.0, 0.25)),
    ]
    shares = [float(np.mean(answers(size * one))) for one in random_directions(found, draws)]
    name = f"truth steering, random directions of equal norm ({draws} draws: median, range)"
    return [*rows, Row(name, float(np.median(shares)), min(shares), max(shares), n, (0.3, 0.7))]


def random_directions(like: Tensor, draws: int) -> Tensor:
    """Return unit vectors [draws, width] in directions without meaning."""
    drawn = torch.randn(draws, like.shape[-1], generator=torch.Generator().manual_seed(0))
    return drawn / drawn.norm(dim=-1, keepdim=True)


# -- topics --------------------------------------------------------------------------------------------


def reply_means(model: Readout, chosen: Sequence[Text], groups: Sequence[object]) -> dict[object, Tensor]:
    """Return, for each group of texts, the mean residual of every block over reply tokens, [depth, width]."""
    states = model.spans(chosen, ["reply"])
    return {
        group: torch.cat([s for s, g in zip(states, groups) if g == group], 1).mean(1)[1:]
        for group in dict.fromkeys(groups)
    }


def topic_vectors(model: Readout, n: int = 400) -> Tensor:
    """Return mean(replies on the topic) - mean of the topics' means, [depth, topics, width]."""
    chosen = draw("topics", n, TUNING, split="plain")
    means = reply_means(model, chosen, [t.topic for t in chosen])
    stacked = torch.stack([means[topic] for topic in TOPICS], 1)
    return stacked - stacked.mean(1, keepdim=True)


def steered_explanations(
    model: Readout,
    chosen: Sequence[Text],
    vectors: Tensor,
    strength: float,
    block: int,
    steps: int | None,
    seed: int = 1,
) -> list[str]:
    """Sample explanations at T = 0.7 with another topic's vector added, `SHIFT` places along the list."""
    at = [(TOPICS.index(str(t.topic)) + SHIFT) % len(TOPICS) for t in chosen]
    add = (block, strength * vectors[block, at][:, None], steps)
    return model.sample([model.prompt_ids(t) for t in chosen], MAX_NEW, 0.7, seed=seed, add=add)


def tune_topics(model: Readout, n: int = 60) -> list[tuple[int, float, int | None, float]]:
    """Return (block, strength, steps, share of replies with a correction) over a grid, on TUNING prompts."""
    chosen, vectors = asked(n, TUNING + 1), topic_vectors(model)
    grid = [(b, s, 8) for b in (1, 2, 3) for s in (1.0, 1.5, 2.0, 2.5)]
    grid += [(b, s, None) for b in (2, 3, 4) for s in (1.0, 1.25, 1.5)]
    found = []
    for block, strength, steps in grid:
        replies = steered_explanations(model, chosen, vectors, strength, block, steps)
        found.append((block, strength, steps, float(np.mean([restarts(r) > 0 for r in replies]))))
    return found


def topics(model: Readout, n: int = 300, draws: int = 5) -> list[Row]:
    """Corrections started under steering to another topic, plain and with the system prompt; recovery; random."""
    vectors, rows = topic_vectors(model), []
    block, strength, steps = TOPIC
    pairs: dict[str, list[Row]] = {"started a correction": [], "corrected at once": []}
    for regime in ("plain", "meta"):
        chosen = asked(n, TESTING + 3, regime)
        replies = steered_explanations(model, chosen, vectors, strength, block, steps)
        name = f"topic steering, block {block}, strength {strength:g}, first {steps} tokens, {regime}"
        said = [(str(t.topic), r, sentences(r)) for t, r in zip(chosen, replies)]
        first = [bool(s) and topic_of(s[0]) not in (None, topic) for topic, _, s in said]
        rows.append(share(f"{name}, first sentence off topic", first))
        started = [restarts(r) > 0 for r in replies]
        pairs["started a correction"].append(share(f"{name}, started a correction", started, (0.3, 1.0)))
        at_once = [corrects_at_once(r, topic) for topic, r, _ in said]
        pairs["corrected at once"].append(share(f"{name}, corrected after the first sentence off topic", at_once))
        rows += [pair[-1] for pair in pairs.values()]
        back = [recovers(r, topic) for (topic, r, _), yes in zip(said, started) if yes]
        rows.append(share(f"{name}, on topic after it", back, (0.7, 1.0)))
        whole = steered_explanations(model, chosen, vectors, TOPIC_ALL[1], TOPIC_ALL[0], None)
        name = f"topic steering, block {TOPIC_ALL[0]}, strength {TOPIC_ALL[1]:g}, whole reply, {regime}"
        rows.append(share(f"{name}, started a correction", [restarts(r) > 0 for r in whole]))
    # A detour that is not noticed at once goes on and is noticed later, with or without the system prompt: the two
    # come close by the end of the reply, and differ most after the first sentence.
    for (name, (plain, meta)), band in zip(pairs.items(), ((1.3, 9.0), None)):
        value = meta.value / max(plain.value, 1e-9)
        rows.append(
            Row(f"topic steering, {name}, with over without the system prompt", value, *_ratio(plain, meta), n, band)
        )
    chosen = asked(n, TESTING + 3)
    ids = [model.prompt_ids(t) for t in chosen]
    norm = strength * vectors[block].norm(dim=-1).mean()
    found = []
    for number, one in enumerate(random_directions(vectors[block], draws)):
        replies = model.sample(ids, MAX_NEW, 0.7, seed=number, add=(block, norm * one, steps))
        found.append(float(np.mean([restarts(r) > 0 for r in replies])))
    name = f"topic steering, random directions of equal norm ({draws} draws: median, range)"
    return [*rows, Row(name, float(np.median(found)), min(found), max(found), n, (0.0, 0.15))]


def _ratio(one: Row, two: Row) -> tuple[float, float]:
    """Return the 95% interval of the second share over the first (log method)."""
    if not one.value or not two.value:
        return 0.0, float("inf")
    spread = 1.96 * ((1 - one.value) / (one.value * one.n) + (1 - two.value) / (two.value * two.n)) ** 0.5
    ratio = two.value / one.value
    return float(ratio * np.exp(-spread)), float(ratio * np.exp(spread))


# -- languages and refusal -----------------------------------------------------------------------------


def language_vectors(model: Readout, n: int = 400) -> dict[object, Tensor]:
    """Return mean(the language is named) - mean of the languages' means where the answer begins, [depth, width] each.

    Not from the replies to open requests: there the language is drawn with the first token, after that position.
    """
    chosen = draw("code", n, TUNING, split="named")
    states = model.residuals([model.prompt_ids(t) for t in chosen])[1:]
    means = {one: states[:, [t.language == one for t in chosen]].mean(1) for one in LANGUAGES}
    centre = torch.stack(list(means.values())).mean(0)
    return {language: means[language] - centre for language in LANGUAGES}


def languages(model: Readout, n: int = 200, at: tuple[int, float] = LANGUAGE, seed: int = TESTING + 3) -> list[Row]:
    """Share of open requests that are answered in the language whose vector is added."""
    chosen, vectors, (block, strength) = draw("code", n, seed, split="open"), language_vectors(model), at
    rows = []
    for language in LANGUAGES:
        add = (block, strength * vectors[language][block], 1)
        replies = model.sample([model.prompt_ids(t) for t in chosen], 60, 1.0, seed=4, add=add)
        name = f"language steering, block {block}, strength {strength:g}, {language}"
        rows.append(share(name, [language_of(r) == language for r in replies], (0.7, 1.0)))
    return rows


def refusal_direction(model: Readout, n: int = 300) -> Tensor:
    """Return mean(harmful) - mean(harmless) of every block's output where the answer begins, [depth, width]."""
    states = {
        split: model.residuals([model.prompt_ids(t) for t in draw("refusal", n, TUNING, split=split)])[1:].mean(1)
        for split in ("harmful", "harmless")
    }
    return states["harmful"] - states["harmless"]


def refusal(
    model: Readout, n: int = 200, draws: int = 5, at: tuple[int, float] = REFUSAL, seed: int = TESTING + 3
) -> list[Row]:
    """Share refused with the harm direction added to harmless requests, subtracted from harmful ones; random."""
    vector, (block, strength) = refusal_direction(model), at
    rows = []
    for split, sign, band in (("harmless", 1.0, (0.7, 1.0)), ("harmful", -1.0, (0.0, 0.3))):
        ids = [model.prompt_ids(t) for t in draw("refusal", n, seed, split=split)]
        replies = model.sample(ids, 8, add=(block, sign * strength * vector[block], 1))
        name = f"refusal steering, block {block}, strength {sign * strength:+g}, {split} requests refused"
        rows.append(share(name, [is_refusal(r) for r in replies], band))
    size, found = strength * vector[block].norm(), []
    ids = [model.prompt_ids(t) for t in draw("refusal", n, seed, split="harmless")]
    for one in random_directions(vector[block], draws):
        found.append(float(np.mean([is_refusal(r) for r in model.sample(ids, 8, add=(block, size * one, 1))])))
    name = f"refusal steering, random directions, harmless requests refused ({draws} draws: median, range)"
    return [*rows, Row(name, float(np.median(found)), min(found), max(found), n, (0.0, 0.2))]


def tune_single(model: Readout, n: int = 60) -> list[tuple[str, int, float, list[float]]]:
    """Return (what, block, strength, shares) of truth, language and refusal steering over a grid, on TUNING texts."""
    found = []
    for measure, strengths in ((truth, (0.75, 1.0, 1.5)), (languages, (1.0, 2.0, 3.0)), (refusal, (1.0, 2.0, 3.0))):
        for at in [(block, strength) for block in (2, 3, 4) for strength in strengths]:
            more = {} if measure is languages else {"draws": 1}
            rows = measure(model, n, at=at, seed=TUNING + 3, **more)
            found.append((measure.__name__, *at, [row.value for row in rows]))
    return found


# -- traits --------------------------------------------------------------------------------------------


def trait_vectors(model: Readout, n: int = 250) -> dict[str, Tensor]:
    """Return mean(replies at grade 3) - mean(replies unprompted), over explanations, [depth, width] each."""
    drawn = {
        trait: [t for t in draw("traits", n, TUNING, split=trait) if t.regime == "topics" and t.grade in (0, 3)]
        for trait in (*TRAITS, "unprompted")
    }
    chosen = [t for ts in drawn.values() for t in ts]
    means = reply_means(model, chosen, [name for name, ts in drawn.items() for _ in ts])
    return {trait: means[trait] - means["unprompted"] for trait in TRAITS}


def trait_doses(
    model: Readout, chosen: Sequence[Text], trait: str, vector: Tensor, block: int, strengths: Sequence[float]
) -> list[tuple[list[float], list[float]]]:
    """Return, for each strength, trait score and unsteered NLL of every sampled explanation (T = 1)."""
    ids, found = [model.prompt_ids(t) for t in chosen], []
    for strength in strengths:
        replies = model.sample(ids, MAX_NEW, 1.0, seed=5, add=(block, strength * vector, None))
        found.append(([trait_score(r, trait) for r in replies], model.score(ids, replies)))
    return found


def tune_traits(model: Readout, n: int = 40) -> list[tuple[str, int, list[float], list[float]]]:
    """Return (trait, block, scores by strength, NLL by strength) on TUNING prompts."""
    chosen, vectors = asked(n, TUNING + 1), trait_vectors(model)
    found = []
    for trait in TRAITS:
        for block in (2, 3, 4):
            doses = trait_doses(model, chosen, trait, vectors[trait][block], block, (1.0, 2.0, 3.0, 4.0))
            found.append(
                (trait, block, [float(np.mean(s)) for s, _ in doses], [float(np.nanmean(x)) for _, x in doses])
            )
    return found


def traits(model: Readout, n: int = 100, draws: int = 3) -> list[Row]:
    """Trait words a sentence over rising strengths with the fluency cost, and under random directions."""
    chosen, vectors = asked(n, TESTING + 3), trait_vectors(model)
    block, rows = TRAIT_BLOCK, []
    for trait in TRAITS:
        vector = vectors[trait][block]
        doses = trait_doses(model, chosen, trait, vector, block, (0.0, *TRAIT_STRENGTHS))
        for strength, (scores, nll) in zip((0.0, *TRAIT_STRENGTHS), doses):
            where = f"block {block}, strength {strength:g}"
            rows.append(mean(f"trait steering, {trait}, {where}, words a sentence", scores))
            rows.append(mean(f"trait steering, {trait}, {where}, NLL unsteered", [x for x in nll if x == x]))
        rises = [float(np.mean(b[0])) > float(np.mean(a[0])) for a, b in pairwise(doses)]
        rows.append(share(f"trait steering, {trait}, strengths at which it rises", rises, (1.0, 1.0)))
        size, last = vector.norm(), TRAIT_STRENGTHS[-1:]
        found = [
            float(np.mean(trait_doses(model, chosen, trait, size * one, block, last)[0][0]))
            for one in random_directions(vector, draws)
        ]
        name = f"trait steering, {trait}, random directions at the last strength ({draws} draws: median, range)"
        top = float(np.mean(doses[-1][0]))
        rows.append(Row(name, float(np.median(found)), min(found), max(found), n, (0.0, top / 2)))
    return rows
