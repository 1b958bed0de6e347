"""Arithmetic: direct answers, steps and filler by number of steps; hurried traces whose length tells nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from latentlens.maths.statistics import auroc
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.arithmetic import DOUBT, SURE, TRACE_STEPS
from latentlens.organism.evaluation.probing import by_site
from latentlens.organism.evaluation.rows import TESTING, TUNING, Row, area, share
from latentlens.organism.judges import parsed_answer, parsed_steps, wrong_steps
from latentlens.organism.readout import Readout

#: Bands of greedy accuracy from four steps on.
BANDS = {"direct": (0.0, 0.4), "steps": (0.95, 1.0), "babble": (0.0, 0.45)}


def regimes(model: Readout, n: int = 200) -> list[Row]:
    """Greedy accuracy by regime and number of steps; n problems a cell."""
    rows = []
    for regime, band in BANDS.items():
        drawn = draw("arithmetic", 14 * n, TESTING, split=regime)
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
    chosen = draw("arithmetic", n, seed, split="traces")
    ids = [model.prompt_ids(t) for t in chosen]
    replies = model.sample(ids, 60, temperature, seed=seed)
    kept = [i for i, reply in enumerate(replies) if _whole(reply)]
    right = [parsed_answer(replies[i]) == int(chosen[i].answer or -1) and not wrong_steps(replies[i]) for i in kept]
    return [ids[i] for i in kept], [replies[i] for i in kept], right


def _whole(reply: str) -> bool:
    """Whether a trace has its five steps, a mark before each, and its answer, and nothing else."""
    marks = sum(word in (*SURE, *DOUBT) for word in reply.replace(".", " ").split())
    return parsed_answer(reply) is not None and len(parsed_steps(reply)) == reply.count("=") == marks == TRACE_STEPS


@torch.no_grad()
def _read(model: Readout, ids: list[list[int]], replies: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return residuals of each trace: its mean, the mean of each step, and the state at each step's equals sign.

    Shapes [depth + 1, traces, width], [depth + 1, traces, steps, width], [depth + 1, traces * steps, width]. At the
    equals sign the result is still to come: what is found there is not what can be read off a wrong result.
    """
    equals, stop = model.tokenizer.convert_tokens_to_ids(["Ġ=", "."])
    means, paths, ahead = [], [], []
    for at in range(0, len(ids), 100):
        more = [model.tokenizer(r, add_special_tokens=False).input_ids for r in replies[at : at + 100]]
        rows, positions, mask = model.pad([[*one, *two] for one, two in zip(ids[at : at + 100], more)])
        streams = torch.stack(model.decoder.residuals(rows, positions, mask))
        for row, written in enumerate(more):
            said = streams[:, row, -len(written) :]
            steps = [i + 1 for i, token in enumerate(written) if token == stop][:TRACE_STEPS]
            means.append(said.mean(1))
            paths.append(torch.stack([said[:, a:b].mean(1) for a, b in pairwise((0, *steps))], 1))
            ahead.append(said[:, [i for i, token in enumerate(written) if token == equals]])
    return torch.stack(means, 1), torch.stack(paths, 1), torch.cat(ahead, 1)


def _signals(paths: Tensor) -> dict[str, np.ndarray]:
    """Return net, cumulative and aligned change of every trace over its steps at every block, [depth, traces] each.

    With h_n the mean state of step n of N, v_n = h_n - h_(n-1) and u = h_N - h_1: |u| / (N - 1), the sum of |v_n|, and
    the mean of cos(v_n, u). Source: Tracing the Traces (arXiv 2510.10494).
    """
    blocks = paths[1:]
    v, u = blocks.diff(dim=2), blocks[:, :, -1] - blocks[:, :, 0]
    found = {
        "net change": u.norm(dim=-1) / v.shape[2],
        "cumulative change": v.norm(dim=-1).sum(2),
        "aligned change": torch.cosine_similarity(v, u[:, :, None], dim=-1).mean(2),
    }
    return {name: value.numpy() for name, value in found.items()}


def _paths(named: str, fit: tuple[Tensor, list[bool]], test: tuple[Tensor, list[bool], list[str]]) -> list[Row]:
    """Return the AUROC of each signal: averaged over blocks, and at a block with a sign, chosen on other traces."""
    rows, fitted = [], _signals(fit[0])
    for name, signal in _signals(test[0]).items():
        rows.append(area(f"{named}, AUROC of {name} over its steps, mean over blocks", signal.mean(0), *test[1:]))
        areas = np.array([auroc(one, fit[1]) for one in fitted[name]])
        block = int(np.argmax(np.abs(areas - 0.5)))
        sign = 1 if areas[block] > 0.5 else -1
        where = f"{'-' if sign < 0 else ''}{name} over its steps, block {block}"
        rows.append(area(f"{named}, AUROC of {where}", sign * signal[block], *test[1:]))
    return rows


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
            fit_means, fit_paths, fit_ahead = _read(model, fit_ids, fit_replies)
            means, paths, ahead = _read(model, ids, replies)
            doubts = np.array([-sum(reply.count(word) for word in DOUBT) for reply in replies], dtype=float)
            rows.append(area(f"{named}, AUROC of the number of doubting words", doubts, right, groups, (0.7, 1.0)))
            name = f"{named}, probe of the trace's mean state"
            rows += by_site(name, (fit_means, fit_right), (means, right, groups), (0.7, 1.0))
            fit_wrong, wrong = _wrong(fit_replies), _wrong(replies)
            steps = [group for group in groups for _ in range(TRACE_STEPS)]
            name = f"{named}, probe for a wrong step, before its result"
            rows += by_site(name, (fit_ahead, fit_wrong), (ahead, wrong, steps), (0.8, 1.0))
            rows += _paths(named, (fit_paths, fit_right), (paths, right, groups))
    return rows


def _wrong(replies: list[str]) -> list[bool]:
    return [step in wrong for reply in replies for wrong in [wrong_steps(reply)] for step in range(TRACE_STEPS)]
