"""`latentlens probe`: can a label be read, where, and is it more than luck?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentlens.commands import options
from latentlens.errors import BadInput


def probe(
    data: Annotated[Path, typer.Argument(help="Rows with `text` or `messages`, `label` (two values), and `group`.")],
    model: options.Model = None,
    sites: options.Sites = ["resid_post[*]"],  # noqa: B006 - typer copies it
    where: options.Where = "last",
    pool: Annotated[str | None, typer.Option(help="mean: average over the positions of a text.")] = None,
    chat: options.Chat = False,
    full: Annotated[bool, typer.Option(help="The ten-part report instead of the sweep over sites.")] = False,
    out: Annotated[Path | None, typer.Option(help="Save the best site's direction (.safetensors).")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page.")] = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit a linear probe at every site, with held-out groups, shuffled labels and a control task.

    latentlens probe statements.jsonl --sites "resid_post[*]" --out truth.safetensors --report truth.html
    """
    options.place(out)
    rows = options.rows(data)
    missing = [i for i, row in enumerate(rows, 1) if row.get("label") is None]
    if missing:
        raise BadInput(f"{data}: {len(missing)} rows have no `label`, the first is row {missing[0]}")
    labels = [row["label"] for row in rows]
    groups = [row["group"] for row in rows] if all("group" in row for row in rows) else None
    given = [
        [{"role": "user", "content": r["input"]}] if chat and isinstance(r["input"], str) else r["input"] for r in rows
    ]
    lm = options.load(model, dtype, quantization, device_map)
    acts = lm.activations(given, sites, where, pool)
    if len(acts) != len(rows):
        raise BadInput(f"{len(acts)} activations for {len(rows)} labels: choose one position a text, or --pool mean")
    if full:
        from latentlens.methods.probe_report import probe_report

        texts = [one if isinstance(one, str) else " ".join(turn["content"] for turn in one) for one in given]
        found = probe_report(acts, labels, groups=groups, texts=texts, seed=seed)
        if as_json:
            options.show(
                {"auroc": vars(found.auroc), "p": found.p, "parts": dict(found.rows), "missing": dict(found.missing)}
            )
        else:
            print(found)
        return
    from latentlens.methods.probe import fit
    from latentlens.views.terminal import print_table

    sweep = fit(acts, labels, groups=groups, seed=seed)
    best = sweep.best()
    if out:
        out = best.direction.save(out)
    if as_json:
        table = sweep.to_frame().to_dict("records")
        options.show(
            {"best": str(best.site), "auroc": vars(best.auroc), "sites": table, "out": str(out) if out else None}
        )
    else:
        table = sweep.table()
        note = f"best by cross-validation: {best.site}, held out {best.auroc}" + (f"; saved to {out}" if out else "")
        print_table(f"probe of {data.name}, {lm.name}", list(table.columns), table.itertuples(index=False), note=note)
    if report:
        from latentlens.views.figures import by_layer
        from latentlens.views.report import Section
        from latentlens.views.report import report as write

        write(
            report, title=f"Probe: {data.stem}", question="Where in the model can the label be read?",
            highlights={f"AUROC at {best.site}": best.auroc},
            sections=[Section("By layer", [by_layer(sweep), sweep.table()])],
            manifest={"model": repr(lm), "data": data.name, "rows": len(rows), "seed": seed, "where": where},
        )  # fmt: skip
