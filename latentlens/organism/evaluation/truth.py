"""Truth: verdicts on seen and held-out facts, and probes at the answer and at the end of a bare statement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentlens.organism.corpus import Text, draw
from latentlens.organism.corpus.text import BOS
from latentlens.organism.corpus.world import CREATURES
from latentlens.organism.decoder import Edit
from latentlens.organism.evaluation.probing import by_site
from latentlens.organism.evaluation.rows import TESTING, TUNING, Row, mean, share
from latentlens.organism.readout import Readout


def verdicts(model: Readout, chosen: Sequence[Text], edit: Edit | None = None) -> Tensor:
    """Return logit(True) - logit(False) as the first token of the answer."""
    logits = model.next_logits([model.prompt_ids(t) for t in chosen], edit)
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("True", "False"))
    return logits[:, yes] - logits[:, no]


def answers(model: Readout, n: int = 600) -> list[Row]:
    """Share of right verdicts: seen and held-out facts, affirmative, negated and about two facts."""
    rows = []
    for split, band in (("seen", (0.9, 1.0)), ("held_out", (0.65, 1.0)), ("conjunctive", (0.85, 1.0))):
        drawn = draw("truth", (1 if split == "conjunctive" else 2) * n, TESTING, split=split)
        right = [(float(d) > 0) == t.truth for t, d in zip(drawn, verdicts(model, drawn))]
        for form in ("affirmative", "negated", "conjunctive"):
            hits = [r for r, t in zip(right, drawn) if t.form == form]
            if hits:
                rows.append(share(f"truth, {split.replace('_', '-')} facts, {form}, answered right", hits, band))
    drawn = draw("truth", n, TESTING, split="strangers")
    chances = torch.sigmoid(verdicts(model, drawn)).tolist()
    return [*rows, mean("truth, strangers, chance of True", chances, (0.3, 0.7))]


def _at_answer(model: Readout, chosen: Sequence[Text]) -> Tensor:
    return model.residuals([model.prompt_ids(t) for t in chosen])


def _at_end(model: Readout, chosen: Sequence[Text]) -> Tensor:
    lines = [f"{BOS}{t.statement}" for t in chosen]
    return model.residuals([model.tokenizer(line, add_special_tokens=False).input_ids for line in lines])


def probes(model: Readout, n: int = 1500) -> list[Row]:
    """AUROC of a logistic probe by site, where the answer begins and at the full stop of a bare statement.

    The creatures are halved: the probe is fitted on seen facts of one half and tested on the other half,
    on seen facts, on facts never asked about, and from affirmative to negated statements.
    """
    half = set(CREATURES[::2])
    fit = [t for t in draw("truth", 2 * n, TUNING, split="seen") if t.group in half]
    seen = [t for t in draw("truth", n, TESTING, split="seen") if t.group not in half]
    unasked = [t for t in draw("truth", n, TESTING, split="held_out") if t.group not in half]
    affirmed = [i for i, t in enumerate(fit) if not t.negated]
    negated = [i for i, t in enumerate(seen) if t.negated]
    rows = []
    for where, read in (("answer", _at_answer), ("statement end", _at_end)):
        bands = ((0.95, 1.0), (0.75, 1.0), (0.8, 1.0)) if where == "answer" else ((0.9, 1.0), (0.9, 1.0), (0.8, 1.0))
        states, labels = read(model, fit), [bool(t.truth) for t in fit]
        on_seen = read(model, seen)
        for (name, chosen), band in zip((("seen facts", seen), ("held-out facts", unasked)), bands):
            found = on_seen if chosen is seen else read(model, chosen)
            test = found, [bool(t.truth) for t in chosen], [str(t.group) for t in chosen]
            rows += by_site(f"truth probe at {where}, {name}", (states, labels), test, band)
        fitted = states[:, affirmed], [labels[i] for i in affirmed]
        test = on_seen[:, negated], [bool(seen[i].truth) for i in negated], [str(seen[i].group) for i in negated]
        rows += by_site(f"truth probe at {where}, affirmative to negated", fitted, test, bands[2])
    return rows


def direction(model: Readout, n: int = 1000) -> Tensor:
    """Return unit(mean of true - mean of false) of every block's output where the answer begins, [depth, width]."""
    drawn = draw("truth", n, TUNING, split="seen")
    states = _at_answer(model, drawn)[1:]
    true = torch.tensor([bool(t.truth) for t in drawn])
    difference = states[:, true].mean(1) - states[:, ~true].mean(1)
    return difference / difference.norm(dim=-1, keepdim=True)


def median_norms(model: Readout, n: int = 200) -> Tensor:
    """Return the median norm of every block's output where the answer begins, [depth]."""
    return _at_answer(model, draw("truth", n, TUNING))[1:].norm(dim=-1).median(-1).values
