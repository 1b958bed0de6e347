"""Measure every planted effect, with n and a 95% interval, and compare it with its band.

    python -m latentlens.organism.evaluate

Shares carry Wilson intervals over texts, AUROCs bootstrap intervals over creatures; neither covers the
variance between training runs. Whatever is tuned (a layer, a strength) is tuned on texts of another seed.
Exit code 1 if a planted effect is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlens.maths.statistics import auroc, auroc_score_interval, cluster_bootstrap, wilson
from latentlens.organism import readout, texts
from latentlens.organism.corpus import Text
from latentlens.organism.corpus.topics import TOPICS, sentence
from latentlens.organism.corpus.world import CREATURES
from latentlens.organism.decoder import Edit
from latentlens.organism.files import verify
from latentlens.organism.judges import is_correction, parsed_answer, sentences, topic_of
from latentlens.organism.readout import Readout

OPENS, CLOSES = "<!-- table -->", "<!-- end of table -->"
TUNING, TESTING = 5_000, 9_000  # seeds of the texts that choices and measurements are made on
BLOCK, STRENGTH = 4, 1.5  # of truth steering; chosen by `tune_truth` on TUNING texts


@dataclass(frozen=True)
class Row:
    """One measurement: name, value, interval, n, and the band it must lie in (None: reported only)."""

    name: str
    value: float
    low: float
    high: float
    n: int
    band: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether the value lies in its band."""
        return self.band is None or self.band[0] <= self.value <= self.band[1]


def share(name: str, hits: Sequence[bool], band: tuple[float, float] | None = None) -> Row:
    """Return a share with its Wilson interval."""
    k, n = int(sum(hits)), len(hits)
    return Row(name, k / n, *wilson(k, n), n, band)


# -- arithmetic ----------------------------------------------------------------------------------------


def greedy(model: Readout, ids: Sequence[Sequence[int]], max_new: int) -> list[str]:
    """Continue each row greedily by transformers' own `generate`: the way a user would."""
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(model.folder, local_files_only=True)
    rows, _, _ = model.pad(ids)
    lengths = torch.tensor([len(one) for one in ids])
    there = torch.arange(rows.shape[1]) >= rows.shape[1] - lengths[:, None]
    out = theirs.generate(rows, attention_mask=there.long(), max_new_tokens=max_new, do_sample=False)
    return model.tokenizer.batch_decode(out[:, rows.shape[1] :], skip_special_tokens=True)


def arithmetic(model: Readout, n: int = 200) -> list[Row]:
    """Greedy accuracy by regime and number of steps; n problems a cell."""
    rows = []
    for regime in ("direct", "steps"):
        drawn = texts("arithmetic", 14 * n, TESTING, split=regime)
        for count in range(1, 7):
            chosen = [t for t in drawn if t.difficulty == count][:n]
            length = 6 + (7 * count if regime == "steps" else 0)
            replies = greedy(model, [model.prompt_ids(t) for t in chosen], length)
            hits = [parsed_answer(reply) == int(t.answer or -1) for t, reply in zip(chosen, replies)]
            band = ((0.9, 1.0) if regime == "steps" else (0.0, 0.4)) if count >= 4 else None
            rows.append(share(f"arithmetic, {regime}, {count} steps", hits, band))
    return rows


# -- truth ---------------------------------------------------------------------------------------------


def _verdicts(model: Readout, chosen: Sequence[Text], edit: Edit | None = None) -> Tensor:
    """Return logit(True) - logit(False) as the first token of the answer."""
    logits = model.next_logits([model.prompt_ids(t) for t in chosen], edit)
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("True", "False"))
    return logits[:, yes] - logits[:, no]


def truth_answers(model: Readout, n: int = 600) -> list[Row]:
    """Share of right verdicts, seen and held-out facts, affirmative and negated."""
    rows = []
    for split, band in (("seen", (0.9, 1.0)), ("held_out", (0.65, 1.0))):
        drawn = texts("truth", 2 * n, TESTING, split=split)
        right = [(float(d) > 0) == t.truth for t, d in zip(drawn, _verdicts(model, drawn))]
        for negated, name in ((False, "affirmative"), (True, "negated")):
            hits = [r for r, t in zip(right, drawn) if t.negated == negated]
            rows.append(share(f"truth, {split.replace('_', '-')} facts, {name}, answered right", hits, band))
    return rows


def truth_probes(model: Readout, n: int = 1500) -> list[Row]:
    """AUROC of a logistic probe at the assistant token, by layer; tested on other creatures.

    The creatures are halved: the probe is fitted on seen facts of one half and tested on the other half,
    on seen facts, on facts never asked about, and from affirmative to negated statements.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half = set(CREATURES[::2])
    fit = [t for t in texts("truth", 2 * n, TUNING, split="seen") if t.group in half]
    tests = {
        "seen facts": [t for t in texts("truth", n, TESTING, split="seen") if t.group not in half],
        "held-out facts": [t for t in texts("truth", n, TESTING, split="held_out") if t.group not in half],
    }
    tests["affirmative to negated"] = [t for t in tests["seen facts"] if t.negated]
    states = {name: model.residuals([model.prompt_ids(t) for t in chosen]) for name, chosen in tests.items()}
    fitted_on = model.residuals([model.prompt_ids(t) for t in fit])
    labels = np.array([bool(t.truth) for t in fit])
    affirmed = np.array([not t.negated for t in fit])
    bands = {"seen facts": (0.95, 1.0), "held-out facts": (0.75, 1.0), "affirmative to negated": (0.8, 1.0)}
    rows = []
    for name, chosen in tests.items():
        best = []
        for layer in range(len(fitted_on)):
            use = affirmed if name.startswith("affirmative") else np.ones(len(fit), dtype=bool)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
            probe.fit(fitted_on[layer].numpy()[use], labels[use])
            scores = probe.decision_function(states[name][layer].numpy())
            truth, groups = [bool(t.truth) for t in chosen], [str(t.group) for t in chosen]
            value = auroc(scores, truth)
            interval = cluster_bootstrap(auroc, scores, truth, groups=groups, n=500)
            if interval[0] == interval[1]:
                interval = auroc_score_interval(value, len(set(groups)), len(set(groups)))
            site = "embedding" if layer == 0 else f"block {layer - 1}"
            best.append(Row(f"truth probe, {name}, {site}", value, *interval, len(chosen)))
        top = max(best, key=lambda row: row.value)
        rows += [Row(r.name, r.value, r.low, r.high, r.n, bands[name] if r is top else None) for r in best]
    return rows


def truth_direction(model: Readout, n: int = 1000) -> Tensor:
    """Return unit(mean of true - mean of false) of every block's output at the assistant token, [depth, width]."""
    drawn = texts("truth", n, TUNING, split="seen")
    states = model.residuals([model.prompt_ids(t) for t in drawn])[1:]
    true = torch.tensor([bool(t.truth) for t in drawn])
    difference = states[:, true].mean(1) - states[:, ~true].mean(1)
    return difference / difference.norm(dim=-1, keepdim=True)


def median_norms(model: Readout, n: int = 200) -> Tensor:
    """Return the median norm of every block's output at the assistant token, [depth]."""
    drawn = texts("truth", n, TUNING)
    return model.residuals([model.prompt_ids(t) for t in drawn])[1:].norm(dim=-1).median(-1).values


def said_true(model: Readout, chosen: Sequence[Text], block: int, vector: Tensor) -> float:
    """Return the mean chance of True against False with `vector` added at the assistant token."""

    def edit(index: int, x: Tensor) -> Tensor:
        if index != block:
            return x
        x = x.clone()
        x[:, -1] += vector
        return x

    return float(torch.sigmoid(_verdicts(model, chosen, edit)).mean())


def tune_truth(model: Readout) -> list[tuple[int, float, float, float]]:
    """Return (block, strength, said true at +strength, at -strength) over a grid, on TUNING texts."""
    chosen = texts("truth", 200, TUNING + 1)
    directions, norms = truth_direction(model), median_norms(model)
    found = []
    for block in range(len(directions)):
        for strength in (0.25, 0.5, 1.0, 1.5, 2.0):
            vector = strength * norms[block] * directions[block]
            found.append((block, strength, *(said_true(model, chosen, block, sign * vector) for sign in (1.0, -1.0))))
    return found


def truth_steering(model: Readout, n: int = 400, draws: int = 10) -> list[Row]:
    """Share of `True` answers with the truth direction added, and with random ones of equal norm."""
    chosen = texts("truth", n, TESTING + 1)
    directions, norms = truth_direction(model), median_norms(model)
    generator = torch.Generator().manual_seed(0)
    size = STRENGTH * norms[BLOCK]
    zero = torch.zeros_like(directions[BLOCK])

    def answers(vector: Tensor) -> list[bool]:
        def edit(index: int, x: Tensor) -> Tensor:
            return x if index != BLOCK else torch.cat((x[:, :-1], x[:, -1:] + vector), 1)

        return [float(d) > 0 for d in _verdicts(model, chosen, edit)]

    where = f"block {BLOCK}, {STRENGTH:g} median norms"
    rows = [
        share("truth steering, none, answered True", answers(zero)),
        share(f"truth steering, + direction ({where})", answers(size * directions[BLOCK]), (0.75, 1.0)),
        share(f"truth steering, - direction ({where})", answers(-size * directions[BLOCK]), (0.0, 0.25)),
    ]
    shares = []
    for _ in range(draws):
        drawn = torch.randn(zero.shape, generator=generator)
        shares.append(float(np.mean(answers(size * drawn / drawn.norm()))))
    name = f"truth steering, random directions of equal norm ({draws} draws: median, range)"
    rows.append(Row(name, float(np.median(shares)), min(shares), max(shares), n, (0.3, 0.7)))
    return rows


# -- topics --------------------------------------------------------------------------------------------


def topics(model: Readout, n: int = 240) -> list[Row]:
    """Sampled at T = 0.7: sentences on topic, unprompted corrections, and what follows a forced detour."""
    chosen = texts("topics", n, TESTING, split="on_topic")
    plain = [t for t in chosen if t.regime == "plain"]
    replies = model.sample([model.prompt_ids(t) for t in plain], 50, 0.7, seed=1)
    said = [(t.topic, s) for t, reply in zip(plain, replies) for s in sentences(reply) if topic_of(s)]
    rows = [
        share("topics, sentences on the asked topic", [topic_of(s) == topic for topic, s in said], (0.95, 1.0)),
        share(
            "topics, corrections without a detour", [any(map(is_correction, sentences(r))) for r in replies], (0, 0.02)
        ),
    ]
    for regime, band in (("plain", (0.3, 0.7)), ("meta", (0.7, 1.0))):
        some = [t for t in texts("topics", 3 * n, TESTING + 2, split="on_topic") if t.regime == regime][:n]
        rng = Random(TESTING)
        away = [sentence(rng, rng.choice([x for x in TOPICS if x != t.topic])) for t in some]
        replies = model.sample([model.prompt_ids(t, s) for t, s in zip(some, away)], 40, 0.7, seed=2)
        parts = [sentences(reply) for reply in replies]
        noticed = [bool(p) and is_correction(p[0]) for p in parts]
        rows.append(share(f"topics, forced detour noticed at once, {regime}", noticed, band))
        back = [topic_of(p[1]) == t.topic for t, p, yes in zip(some, parts, noticed) if yes and len(p) > 1]
        rows.append(share(f"topics, on topic after the correction, {regime}", back, (0.9, 1.0)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Write the rows as a Markdown table."""
    lines = ["| measured | value | 95% interval | n | band | |", "|---|---|---|---|---|---|"]
    for r in rows:
        band = "" if r.band is None else f"{r.band[0]:.2f} to {r.band[1]:.2f}"
        verdict = "" if r.band is None else ("holds" if r.holds else "MISSING")
        lines.append(f"| {r.name} | {r.value:.3f} | {r.low:.3f} to {r.high:.3f} | {r.n} | {band} | {verdict} |")
    return "\n".join(lines)


def evaluate(folder: Path) -> list[Row]:
    """Run every measurement on the model in `folder`."""
    model = readout.load(verify(folder))
    rows: list[Row] = []
    for measure in (arithmetic, truth_answers, truth_probes, truth_steering, topics):
        rows += measure(model)
    return rows


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table; return 1 if a planted effect is missing, else 0."""
    parser = argparse.ArgumentParser(description="Measure every planted effect of the embedded model.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--card", action="store_true", help="put the table into the folder's MODEL_CARD.md")
    given = parser.parse_args(list(arguments))
    rows = evaluate(given.folder)
    print(table(rows))
    if given.card:
        card = given.folder / "MODEL_CARD.md"
        before, _, rest = card.read_text().partition(OPENS)
        after = rest.partition(CLOSES)[2]
        card.write_text(f"{before}{OPENS}\n{table(rows)}\n{CLOSES}{after}")
    missing = [r.name for r in rows if not r.holds]
    print(f"\n{len(missing)} planted effect(s) missing" + "".join(f"\n  {name}" for name in missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
