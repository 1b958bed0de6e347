"""Run the notebooks and write the .ipynb files that readers see.

    python notebooks/execute.py                  # all of them: what `make notebooks` does
    python notebooks/execute.py 01 03            # those that begin so
    python notebooks/execute.py --no-pictures    # without a browser: figures are left out

The source of a notebook is its script (`# %%` cells, jupytext's percent format); the .ipynb beside it is the executed
copy, with figures as pictures. Cells tagged `hub` need a model hub: they are shown and not run.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
LIMIT = 300_000  # bytes of an .ipynb: small enough to be read in a diff and shown by a forge
SECONDS = 120
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
PICTURES = """
import plotly.io as pio
pio.renderers["svg"].width = 900
pio.renderers.default = "svg"
"""
NO_PICTURES = "import plotly.io as pio; pio.renderers.default = 'json'"
WIDGET = "application/vnd.jupyter.widget-view+json"  # progress bars
SVG = "image/svg+xml"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def sources() -> list[Path]:
    """The scripts, in order."""
    return sorted(HERE.glob("[0-9]*.py"))


def run(source: Path, *, pictures: bool) -> tuple[Any, float]:
    """Execute one notebook in a folder and with a cache of its own.

    Returns: it, and the seconds of a processor that it took (whatever else the machine is doing).
    """
    book = jupytext.read(source)
    nbformat.validate(book)
    runs = [cell for cell in book.cells if not _needs_hub(cell)]
    setup = nbformat.v4.new_code_cell(PICTURES if pictures else NO_PICTURES)
    started = _used()
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"LATENTLENS_CACHE": f"{folder}/cache", "PYTHONPATH": str(HERE.parent)} | QUIET
        part = nbformat.v4.new_notebook(cells=[setup, *runs], metadata=book.metadata)
        where = {"metadata": {"path": folder}}
        NotebookClient(part, timeout=10 * SECONDS, kernel_name="python3", resources=where).execute(env=env)
    return _tidied(book), _used() - started


def _used() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _needs_hub(cell: Any) -> bool:
    return "hub" in cell.metadata.get("tags", [])


def _tidied(book: Any) -> Any:
    """Without progress bars, times, random ids and widgets, so that a second run gives the same file."""
    for i, cell in enumerate(book.cells):
        cell["id"] = f"cell-{i}"
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [
            out for out in cell.outputs if out.get("name") != "stderr" and WIDGET not in out.get("data", {})
        ]
        for out in cell.outputs:
            if "execution_count" in out:
                out["execution_count"] = None
            if SVG in out.get("data", {}):
                picture = out["data"][SVG]
                for uid in set(re.findall(r'id="defs-([0-9a-f]{6})"', picture)):
                    picture = picture.replace(uid, f"{i:06x}")
                out["data"] = {SVG: picture}
            if "text" in out:
                out["text"] = ANSI.sub("", out["text"])
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return book


def main(asked: list[str]) -> None:
    """Run those asked for, write their .ipynb."""
    pictures = "--no-pictures" not in asked
    begins = tuple(a for a in asked if not a.startswith("-")) or ("",)
    for source in sources():
        if source.name.startswith(begins):
            book, seconds = run(source, pictures=pictures)
            target = source.with_suffix(".ipynb")
            nbformat.write(book, target)
            print(f"{target.name}: {seconds:.0f} CPU-s, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
