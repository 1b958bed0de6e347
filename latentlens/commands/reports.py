"""`latentlens report`: the numbers that a page keeps, and what the pages of two runs say side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentlens.commands import options

report_app = typer.Typer(help="Pages that ll.report wrote.", no_args_is_help=True)


def record(page: Path) -> dict[str, Any]:
    """What a page keeps for machines, ready for `options.show`.

    Raises: BadInput: the page is not there, or is no report.
    """
    from latentlens.views.compare import read

    run = read(page)
    return {
        "page": str(page),
        "title": run.title,
        "question": run.question,
        "findings": [one.to_json() for one in run.findings],
        "manifest": dict(run.manifest),
    }


@report_app.command()
def show(
    page: Annotated[Path, typer.Argument(help="Page of a run: of an experiment, the demo, or ll.report.")],
    as_json: options.AsJson = False,
) -> None:
    """The numbers of a page, with interval and n, and its manifest; as JSON for other programs.

    latentlens report show runs/esr/esr.html

    latentlens report show runs/esr/esr.html --json
    """
    from latentlens.views.compare import read
    from latentlens.views.terminal import print_table

    told = record(page)
    if as_json:
        options.show(told)
        return
    lines = [[one.table, one.row, one.name, one.short, "" if one.n is None else one.n] for one in read(page).findings]
    print_table(told["title"], ["table", "row", "what", "value", "n"], lines, note=told["question"])
    print_table(
        "how to repeat this", ["entry", "value"], [[key, str(told["manifest"][key])] for key in told["manifest"]]
    )


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
    written = found.write(html) if html else None
    if as_json:
        options.show(
            {
                "differing": len(found.differing),
                "findings": found.to_frame().to_dict("records"),
                "only_a": [one.to_json() for one in found.only_a],
                "only_b": [one.to_json() for one in found.only_b],
                "manifest": {key: list(values) for key, values in found.manifest.items()},
                "page": None if written is None else str(written),
            }
        )
    else:
        table = found.table(only_flagged=not everything)
        title = f"A: {found.a.title}   B: {found.b.title}"
        print_table(title, list(table.columns), table.itertuples(index=False), note=found.note)
        told = found.manifest_table()
        names, note = list(told.columns) or ["entry", "A", "B"], f"{found.same} entries agree"
        print_table("what was different about the runs", names, told.itertuples(index=False), note=note)
        if written is not None:
            print(f"page: {written}")
    raise typer.Exit(1 if found.differing else 0)
