"""Can a concept be read from the residual stream, where, and is it more than words, luck or memory?

    python probes/concepts.py                                     # truth of statements, the embedded model
    python probes/concepts.py --model MODEL --data rows.jsonl --answers " True" " False"

`rows.jsonl`: one object a line with `text` and `label` (two values), and, where there are such, `group` (what must not
be on both sides) and `twin` (any name: kept apart as a data set to transfer to). All ten parts of the probe report:
nested grouped cross-validation, scores, permutation test, control task, calibration, sites and baselines, how tokens
are joined, transfer, sample sizes, and a causal check: the direction is added at its site and the log odds of the two
answers are read. Then the same sites by four other probes. A second run on the same folder runs no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens import organism
from latentlens.methods.probe_report import probe_report
from latentlens.views import figures as plots
from latentlens.views.terminal import print_table


def statements(n: int, seed: int):
    """Plain statements to examine, negated ones to transfer to: (prompt, text, label, group, twin)."""
    rows = [t for t in organism.draw("truth", 4 * n, seed) if t.form in ("affirmative", "negated")]
    rows = [(t.prompt(), t.statement, bool(t.truth), t.group, "negated" if t.negated else None) for t in rows]
    return [r for r in rows if r[4] is None][:n] + [r for r in rows if r[4]][:n]


def from_file(path: str):
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    return [(d["text"], d["text"], d["label"], d.get("group", i), d.get("twin")) for i, d in enumerate(lines)]


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    data: Annotated[str, typer.Option(help="rows.jsonl; statements of the embedded world by default")] = "",
    answers: Annotated[tuple[str, str], typer.Option(help="continuations for label 1 and 0")] = ("True", "False"),
    n: int = 400,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="cache and report")] = Path("runs/concepts"),
) -> None:
    """Run the report and write its page."""
    torch.set_num_threads(1)
    lm = ll.load(model or None, cache=ll.ActivationCache(folder / "cache"))
    rows = from_file(data) if data else statements(n, seed)
    sites = ["resid_pre[0]", "resid_post[*]"]
    main_rows = [r for r in rows if r[4] is None]
    prompts, texts, labels, groups, _ = map(list, zip(*main_rows, strict=True))
    forwards = 0

    def read(model, inputs, **options):
        nonlocal forwards
        found = model.activations(inputs, **options)
        forwards += found.about["forwards"]
        return found

    acts = read(lm, prompts, sites=sites, where="last")
    torch.manual_seed(seed)
    blank = ll.load(type(lm.model)(lm.model.config), tokenizer=lm.tokenizer, cache=lm.cache)
    twins = {name: [r for r in rows if r[4] == name] for name in sorted({r[4] for r in rows} - {None})}
    others = {k: (read(lm, [r[0] for r in v], sites=sites, where="last"), [r[2] for r in v]) for k, v in twins.items()}
    one, zero = (lm.tokenizer(a, add_special_tokens=False).input_ids[0] for a in answers)
    asked = prompts[:60]

    def odds(*plan):
        logits = read(lm, asked, sites="logits", where="last", steer=plan or None)["logits"].float()
        return (logits[:, one] - logits[:, zero]).numpy()

    plain = odds()

    def effect(direction):
        norm = float(acts[str(direction.site)].float().norm(dim=-1).median())
        return odds(ll.Add(direction.scaled_to(norm), 1.0, where="last")) - plain

    found = probe_report(
        acts, labels, groups=groups, texts=texts, tokens=read(lm, prompts, sites=sites, where="all"), others=others,
        untrained=read(blank, prompts, sites=sites, where="last"), effect=effect, seed=seed,
    )  # fmt: skip
    kinds = []
    for method in ("logistic", "mean difference", "lda", "ridge", "sparse"):
        best = ll.probe.fit(acts, labels, groups=groups, method=method, seed=seed).best()
        cosine = best.direction.cosine(found.direction) if best.site == found.direction.site else np.nan
        kinds.append([method, str(best.site), best.auroc.short, best.shuffled.short,
                      "-" if best.selectivity is None else best.selectivity.short, cosine])  # fmt: skip
    # cosine: to the direction of the report
    columns = ["probe", "site chosen", "AUROC held out", "shuffled labels", "selectivity", "cosine"]
    kinds = pd.DataFrame(kinds, columns=columns)
    for heading, frame in {**found.tables(), "other probes": kinds}.items():
        shown = frame.map(
            lambda v: v.short if isinstance(v, ll.Estimate) else f"{v:.3g}" if isinstance(v, float) else v
        )
        print_table(heading, list(shown), shown.values.tolist())
    page = ll.report(
        folder / "concepts.html",
        title="Concept probe",
        question=f"Can {found.classes[1]!r} be told from {found.classes[0]!r} in the residual stream, and where?",
        highlights={"AUROC, whole procedure": found.auroc, "permutation p": (f"{found.p:.3g}", "best of all sites")},
        sections=[ll.Section("Where, and is it more than words?", [plots.sites_and_joins(found)]),
                  ll.Section("Are its probabilities to be believed?", [plots.calibration_curve(found)]),
                  *(ll.Section(h, [f]) for h, f in {**found.tables(), "Other probes": kinds}.items())],
        manifest=ll.manifest(lm, rows=len(labels), forwards=forwards, **found.about),
    )  # fmt: skip
    print(f"AUROC {found.auroc}, p={found.p:.3g}, {found.direction}; {forwards} forward passes; page: {page}")


if __name__ == "__main__":
    typer.run(main)
