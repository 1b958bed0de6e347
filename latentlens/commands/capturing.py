"""`latentlens capture`: activations of texts into the cache, and into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentlens.commands import options


def capture(
    texts: options.Texts = None,
    data: options.Data = None,
    chat: options.Chat = False,
    model: options.Model = None,
    sites: options.Sites = ["resid_post[*]"],  # noqa: B006 - typer copies it
    where: options.Where = "last",
    pool: Annotated[str | None, typer.Option(help="mean, last or span: one row a text.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a .parquet file, or a folder (a Hugging Face dataset).")
    ] = None,
    forecast: Annotated[bool, typer.Option("--forecast", help="Only say what it would take.")] = False,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Read activations, from the cache where it has them.

    latentlens capture "The drun is red." --sites "resid_post[*]" --where last

    latentlens capture --data rows.jsonl --model Qwen/Qwen3-0.6B --sites "resid_post[8:16]" --out acts.parquet
    """
    given = options.inputs(texts, data, chat)
    options.place(out, ".parquet", "")
    lm = options.load(model, dtype, quantization, device_map)
    needed = lm.forecast(given, sites, where, pool)
    if forecast:
        options.show(vars(needed)) if as_json else print(needed)
        return
    acts = lm.activations(given, sites, where, pool)
    if out and out.suffix == ".parquet":
        acts.to_frame(list(acts.sites)).to_parquet(out)
    elif out:
        acts.to_dataset().save_to_disk(str(out))
    about = {key: acts.about[key] for key in ("model", "forwards", "computed_rows", "cached_rows", "seconds")}
    if as_json:
        shapes = {str(site): list(acts[site].shape) for site in acts.sites}
        options.show({"sites": shapes, "rows": len(acts), **about, "out": str(out) if out else None})
        return
    from latentlens.views.terminal import print_table

    lines = [
        [str(site), " x ".join(map(str, acts[site].shape)), float(acts[site].float().flatten(1).norm(dim=-1).median())]
        for site in acts.sites
    ]
    note = (
        f"{about['forwards']} forward passes; {about['computed_rows']} sequences computed, "
        f"{about['cached_rows']} from the cache; {about['seconds']:.1f} s" + (f"; written to {out}" if out else "")
    )
    print_table(f"activations of {lm.name}", ["site", "shape", "median norm"], lines, note=note)
