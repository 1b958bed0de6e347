"""`latentlens report`: what the pages of two runs say, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentlens.commands import options

report_app = typer.Typer(help="Pages that ll.report wrote.", no_args_is_help=True)


@report_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Page of one run.")],
    b: Annotated[Path, typer.Argument(help="Page of the other run.")],
    html: Annotated[Path | None, typer.Option(help="Write both, side by side, as a page.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print what agrees, too.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Which numbers differ between two runs, by how much, and what was different about the runs. Exit code 1 if any.

    latentlens report compare monday.html tuesday.html --html difference.html
    """
    from latentlens.views.compare import compare as compared
    from latentlens.views.terminal import print_table

    found = compared(a, b)
    if as_json:
        options.show(
            {
                "differing": len(found.differing),
                "findings": found.to_frame().to_dict("records"),
                "only_a": [one.to_json() for one in found.only_a],
                "only_b": [one.to_json() for one in found.only_b],
                "manifest": {key: list(values) for key, values in found.manifest.items()},
            }
        )
    else:
        table = found.table(only_flagged=not everything)
        title = f"A: {found.a.title}   B: {found.b.title}"
        print_table(title, list(table.columns), table.itertuples(index=False), note=found.note)
        told = found.manifest_table()
        names, note = list(told.columns) or ["entry", "A", "B"], f"{found.same} entries agree"
        print_table("what was different about the runs", names, told.itertuples(index=False), note=note)
    if html:
        print(f"page: {found.write(html)}")
    raise typer.Exit(1 if found.differing else 0)
