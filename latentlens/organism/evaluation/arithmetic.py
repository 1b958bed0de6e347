"""Arithmetic: direct answers, steps and filler by number of steps; hurried traces whose length tells nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentlens.organism.corpus import texts
from latentlens.organism.corpus.arithmetic import DOUBT, TRACE_STEPS
from latentlens.organism.evaluation.probing import by_site
from latentlens.organism.evaluation.rows import TESTING, TUNING, Row, area, share
from latentlens.organism.judges import parsed_answer, wrong_steps
from latentlens.organism.readout import Readout

#: Bands of greedy accuracy from four steps on.
BANDS = {"direct": (0.0, 0.4), "steps": (0.95, 1.0), "babble": (0.0, 0.45)}


def regimes(model: Readout, n: int = 200) -> list[Row]:
    """Greedy accuracy by regime and number of steps; n problems a cell."""
    rows = []
    for regime, band in BANDS.items():
        drawn = texts("arithmetic", 14 * n, TESTING, split=regime)
        for count in range(1, 7):
            chosen = [t for t in drawn if t.difficulty == count][:n]
            length = 6 + (0 if regime == "direct" else 7 * count)
            replies = model.sample([model.prompt_ids(t) for t in chosen], length)
            hits = [parsed_answer(reply) == int(t.answer or -1) for t, reply in zip(chosen, replies)]
            rows.append(share(f"arithmetic, {regime}, {count} steps", hits, band if count >= 4 else None))
    return rows


def sampled_traces(
    model: Readout, n: int, seed: int, temperature: float
) -> tuple[list[list[int]], list[str], list[bool]]:
    """Sample one hurried trace for each problem; return prompts, traces, and whether each is right throughout.

    Traces that do not parse as five steps and an answer are left out.
    """
    chosen = texts("arithmetic", n, seed, split="traces")
    ids = [model.prompt_ids(t) for t in chosen]
    replies = model.sample(ids, 60, temperature, seed=seed)
    kept = [
        i
        for i, reply in enumerate(replies)
        if parsed_answer(reply) is not None and reply.count("=") == reply.count(",") == 5
    ]
    right = [parsed_answer(replies[i]) == int(chosen[i].answer or -1) and not wrong_steps(replies[i]) for i in kept]
    return [ids[i] for i in kept], [replies[i] for i in kept], right


@torch.no_grad()
def _read(model: Readout, ids: list[list[int]], replies: list[str]) -> tuple[Tensor, Tensor]:
    """Return the residuals of each trace: the mean over its tokens, and those at the comma of each of its steps.

    At the comma the word that follows a step is still to come: doubt found there is the model's own.
    """
    comma = model.tokenizer.convert_tokens_to_ids(",")
    means, commas = [], []
    for at in range(0, len(ids), 100):
        more = [model.tokenizer(r, add_special_tokens=False).input_ids for r in replies[at : at + 100]]
        rows, positions, mask = model.pad([[*one, *two] for one, two in zip(ids[at : at + 100], more)])
        streams = torch.stack(model.decoder.residuals(rows, positions, mask))
        for row, written in enumerate(more):
            means.append(streams[:, row, -len(written) :].mean(1))
            here = (rows[row] == comma).nonzero()[-TRACE_STEPS:, 0]
            commas.append(streams[:, row, here])
    return torch.stack(means, 1), torch.cat(commas, 1)


def traces(model: Readout, n: int = 600) -> list[Row]:
    """Share of sampled hurried traces that are right, and what tells them apart: length, log-probability, states."""
    rows = []
    for temperature in (1.0, 0.8):
        ids, replies, right = sampled_traces(model, n, TESTING, temperature)
        named = f"traces, T={temperature:g}"
        groups = [str(i) for i in range(len(right))]
        rows.append(share(f"{named}, right", right, (0.2, 0.8)))
        lengths = np.array([len(model.tokenizer(r, add_special_tokens=False).input_ids) for r in replies])
        rows.append(area(f"{named}, AUROC of length", lengths.astype(float), right, groups, (0.45, 0.55)))
        likely = -np.array(
            [x for at in range(0, len(ids), 200) for x in model.score(ids[at : at + 200], replies[at : at + 200])]
        )
        rows.append(area(f"{named}, AUROC of mean log-probability", likely, right, groups))
        if temperature == 1.0:
            fit_ids, fit_replies, fit_right = sampled_traces(model, 2 * n, TUNING, temperature)
            (fit_means, fit_commas), (means, commas) = _read(model, fit_ids, fit_replies), _read(model, ids, replies)
            doubts = np.array([-sum(reply.count(word) for word in DOUBT) for reply in replies], dtype=float)
            rows.append(area(f"{named}, AUROC of the number of doubting words", doubts, right, groups))
            name = f"{named}, probe of the trace's mean state"
            rows += by_site(name, (fit_means, fit_right), (means, right, groups), (0.65, 1.0))
            fit_wrong, wrong = _wrong(fit_replies), _wrong(replies)
            steps = [group for group in groups for _ in range(TRACE_STEPS)]
            name = f"{named}, probe for a wrong step, before its word"
            rows += by_site(name, (fit_commas, fit_wrong), (commas, wrong, steps), (0.8, 1.0))
    return rows


def _wrong(replies: list[str]) -> list[bool]:
    return [step in wrong for reply in replies for wrong in [wrong_steps(reply)] for step in range(TRACE_STEPS)]
