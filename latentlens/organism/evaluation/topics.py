"""Explanations: on topic, hardly ever corrected unasked, detours noticed, and off-topic readable at the full stop."""

from __future__ import annotations

from random import Random

from torch import Tensor

from latentlens.organism.corpus import Text, draw
from latentlens.organism.corpus.topics import TOPICS, sentence
from latentlens.organism.evaluation.probing import by_site
from latentlens.organism.evaluation.rows import TESTING, TUNING, Row, share
from latentlens.organism.judges import is_correction, restarts, sentences, topic_of
from latentlens.organism.readout import Readout

MAX_NEW = 60


def asked(n: int, seed: int, regime: str = "plain") -> list[Text]:
    """Draw n requests for an explanation, without (`plain`) or with (`meta`) the system prompt."""
    return [t for t in draw("topics", 5 * n, seed, split="on_topic") if t.regime == regime][:n]


def unsteered(model: Readout, n: int = 600) -> list[Row]:
    """Sentences on the asked topic, and replies with a correction, at T = 0.7 and 1."""
    rows = []
    for temperature in (0.7, 1.0):
        chosen = asked(n, TESTING)
        replies = model.sample([model.prompt_ids(t) for t in chosen], MAX_NEW, temperature, seed=1)
        said = [(t.topic, s) for t, reply in zip(chosen, replies) for s in sentences(reply) if topic_of(s)]
        on_topic = [topic_of(s) == topic for topic, s in said]
        rows.append(share(f"topics, T={temperature:g}, sentences on the asked topic", on_topic, (0.95, 1.0)))
        started = [restarts(r) > 0 for r in replies]
        rows.append(share(f"topics, T={temperature:g}, replies with a correction", started, (0.0, 0.01)))
    return rows


def detours(model: Readout, n: int = 240) -> list[Row]:
    """What follows a detour that the prompt forces: noticed at once, and back on topic."""
    rows = []
    for regime, band in (("plain", (0.3, 0.7)), ("meta", (0.7, 1.0))):
        some = asked(n, TESTING + 2, regime)
        rng = Random(TESTING)
        away = [sentence(rng, rng.choice([x for x in TOPICS if x != t.topic])) for t in some]
        replies = model.sample([model.prompt_ids(t, s) for t, s in zip(some, away)], 40, 0.7, seed=2)
        parts = [sentences(reply) for reply in replies]
        noticed = [bool(p) and is_correction(p[0]) for p in parts]
        rows.append(share(f"topics, forced detour noticed at once, {regime}", noticed, band))
        back = [topic_of(p[1]) == t.topic for t, p, yes in zip(some, parts, noticed) if yes and len(p) > 1]
        rows.append(share(f"topics, on topic after the correction, {regime}", back, (0.9, 1.0)))
    return rows


def stopped(n: int, seed: int) -> tuple[list[tuple[Text, str]], list[bool], list[str]]:
    """Return n requests, each with a reply up to a full stop; whether its last sentence is off topic; asked topics.

    Up to two sentences on topic stand before it; half of the sentences are off topic.
    """
    rng, found, labels = Random(seed), [], []
    chosen = asked(n, seed)
    for t in chosen:
        topic, off = str(t.topic), rng.random() < 0.5
        before = [sentence(rng, topic) for _ in range(rng.randint(0, 2))]
        last = sentence(rng, rng.choice([x for x in TOPICS if x != topic]) if off else topic)
        found.append((t, " ".join([*before, last])))
        labels.append(off)
    return found, labels, [str(t.topic) for t in chosen]


def sentence_ends(model: Readout, n: int, seed: int) -> tuple[Tensor, list[bool], list[str]]:
    """Return the residuals at the full stop of n sentences, whether each is off topic, and the asked topics."""
    drawn, labels, groups = stopped(n, seed)
    return model.residuals([model.prompt_ids(t, start) for t, start in drawn]), labels, groups


def off_topic(model: Readout, n: int = 600) -> list[Row]:
    """AUROC of a probe for off-topic at the sentence end; also fitted on half of the topics, tested on the rest."""
    states, labels, groups = sentence_ends(model, 2 * n, TUNING)
    test = sentence_ends(model, n, TESTING)
    rows = by_site("topics, off-topic probe at sentence end", (states, labels), test, (0.95, 1.0), (4, 5))
    half = set(TOPICS[::2])
    use = [i for i, g in enumerate(groups) if g in half]
    other = [i for i, g in enumerate(test[2]) if g not in half]
    fitted = states[:, use], [labels[i] for i in use]
    tested = test[0][:, other], [test[1][i] for i in other], [test[2][i] for i in other]
    return rows + by_site("topics, off-topic probe, asked topics not fitted on", fitted, tested)
