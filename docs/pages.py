"""Gather the pages of the site in build/docs, where Zensical finds them.

    python docs/pages.py && zensical build --strict         # what `make docs` does

The documents are written to be read in the repository. Here they are copied, links between them are turned into
links between pages, executed notebooks become pages, and the API reference is written from `latentlens.__all__`,
each name on the page of its room: a new public name appears by itself.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import latentlens

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "docs"
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/README.md": "benchmarks.md",
    "latentlens/organism/weights/MODEL_CARD.md": "model_card.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
ENGINE = "at|bare|edit|formula|in_raw_units|lane|positional|reads|scaled|stacked|tensors|width"
PICTURE = re.compile(r"<!-- picture (\w+) (\d+): (.*?) -->", re.S)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)")


class Room(NamedTuple):
    """One page of the reference: file, title, opening words, the modules whose names it shows, what comes first."""

    file: str
    title: str
    opening: str
    modules: str
    first: str = ""


# The longest matching beginning of a module's name decides.
ROOMS = (
    Room("loading", "Loading and capture", "Open a model, read its activations, generate, and keep what was computed.",
         "access values.activations values.sites values.where values.rollouts", "load LensModel Activations"),
    Room("steering", "Steering", "Interventions, when they act, sweeps, what they cost. The formulas are on "
         "[Steering](../steering.md).",
         "values.operations values.replacements values.rotations values.gates values.schedules values.plan_files "
         "values.interventions values.adaptive access.generation.sweep access.measures.doses "
         "access.measures.likelihood access.measures.overhead"),
    Room("directions", "Directions and personas", "Vectors with a site and a frame, how they are found, and other "
         "tools' files. See [Finding a direction](../directions.md).",
         "values.direction values.persona values.trait values.effect_model values.head_directions access.formats "
         "access.measures access.judging.judged_sweep access.editing.preventative access.saes.steered_codes "
         "methods.direction methods.persona"),
    Room("probes", "Probes", "Can it be read? Every fit comes with its controls.",
         "methods.probe methods.class_probe methods.contrast_probe methods.token_probe methods.identity_test "
         "methods.sdm values.probe_report"),
    Room("measuring", "Measuring", "Intention, trajectories, selection, calibration, mediation, resistance, judges.",
         "methods maths resistance values.questions values.judging values.answer_metrics values.concepts "
         "access.judging access.patching access.store.verdict access.measures.style access.measures.writes"),
    Room("saes", "SAEs", "Sparse autoencoders: loading, checking, reading, editing, training. See "
         "[SAE latents](../sae.md).",
         "access.saes methods.latent values.sae values.codes values.latent"),
    Room("results", "Results and errors", "What comes back: frozen values with `to_frame()`, intervals and controls; "
         "and every error by name.", "values errors"),
    Room("views", "Views", "Figures, tables, the report page, the panel.", "views"),
    Room("organism", "The embedded model", "Labelled texts, judges, weights. See [its page](../organism.md).",
         "organism organism_saes"),
)  # fmt: skip


# -- the reference --------------------------------------------------------------------------------


def room_of(module: str) -> Room:
    """The page on which the names of a module of the package stand; Measuring, where no room claims it."""
    inside = module.removeprefix("latentlens.")
    found = [
        (len(beginning), room) for room in ROOMS for beginning in room.modules.split() if inside.startswith(beginning)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else next(r for r in ROOMS if r.file == "measuring")


def names_by_room() -> dict[str, list[str]]:
    """File of the page -> the public names on it, modules after values, in the alphabet."""
    found: dict[str, list[str]] = {room.file: [] for room in ROOMS}
    for name in latentlens.__all__:
        found[room_of(latentlens._LAZY[name][0]).file].append(name)
    for room in ROOMS:
        rank = {name: i for i, name in enumerate(room.first.split())}
        found[room.file].sort(key=lambda name: (inspect.ismodule(getattr(latentlens, name)), name.lower()))
        found[room.file].sort(key=lambda name, rank=rank: rank.get(name, len(rank)))
    return found


def entry(name: str, room: str) -> str:
    """The directive that shows one public name under the words that a user types."""
    module, attribute = latentlens._LAZY[name]
    what = f"{module}.{attribute}" if attribute else module
    lines = [f"::: {what}", "    options:", f'      heading: "ll.{name}"', f'      toc_label: "{name}"']
    if room == "steering":  # what the engine calls, the same in every intervention
        lines.append(f"      filters: {json.dumps(['!^_', f'!^({ENGINE})$'])}")
    return "\n".join(lines)


def reference() -> dict[str, str]:
    """Page -> its text."""
    names = names_by_room()
    return {
        f"reference/{room.file}.md": "\n\n".join(
            [f"# {room.title}", room.opening, *(entry(name, room.file) for name in names[room.file])]
        )
        + "\n"
        for room in ROOMS
    }


# -- documents ------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """Document of the repository -> its page."""
    own = {f"docs/{file.relative_to(ROOT / 'docs').as_posix()}": file for file in (ROOT / "docs").rglob("*.md")}
    found = {document: document.removeprefix("docs/") for document in own} | ELSEWHERE
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[f"notebooks/{file.name}"] = f"notebooks/{file.stem}.md"
    return found


def linked(text: str, document: str, pages: dict[str, str]) -> str:
    """Links between documents as links between pages; a link to a file without a page keeps its words only.

    Raises: LookupError: a link to a file that is not there. (Zensical looks at links between pages only.)
    """

    def one(match: re.Match[str]) -> str:
        picture, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        aim = os.path.normpath(os.path.join(os.path.dirname(document), target))
        if not (ROOT / aim).exists():
            raise LookupError(f"{document} links to {target}, which does not exist")
        if aim in pages and not picture:
            return f"[{words}]({os.path.relpath(pages[aim], os.path.dirname(pages[document]) or '.')}{anchor})"
        return match[0] if aim.startswith("docs/") else words

    return LINK.sub(one, text)


def fenced(text: str) -> str:
    """Indented code as a fence that says its language, where it is code of this library or of a terminal."""

    def one(match: re.Match[str]) -> str:
        code = inspect.cleandoc(match[1])
        end = "\n\n" if match[1].endswith("\n\n") else "\n"
        if re.search(r"\b(ll|lm)\.|^(import|from) ", code, re.M):
            return f"```python\n{code}\n```{end}"
        if re.match(r"\s*(make|python|latentlens|\.venv|pip)\b", code):
            return f"```bash\n{code}\n```{end}"
        return match[0]

    return INDENTED.sub(one, text)


# -- notebooks ------------------------------------------------------------------------------------


def notebook(file: Path, pictures: Path, pages: dict[str, str]) -> str:
    """An executed notebook as Markdown; its pictures are written beside the page."""
    document = f"notebooks/{file.name}"
    parts: list[str] = []
    drawn = count()
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(linked(source, document, pages))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"```python\n{source}\n```")
            outputs = [shown(out, pictures / file.stem, drawn) for out in cell["outputs"]]
            parts += [f'<div class="output" markdown="1">\n\n{text}\n\n</div>' for text in outputs if text]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any], beginning: Path, drawn: Iterator[int]) -> str:
    """One output of a cell: a picture (its file numbered in order), else its HTML, else its text."""
    data = output.get("data", {})
    for kind, suffix in (("image/png", "png"), ("image/svg+xml", "svg")):
        if kind in data:
            raw = "".join(data[kind])
            target = beginning.with_name(f"{beginning.name}_{next(drawn)}.{suffix}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(raw) if suffix == "png" else raw.encode())
            return f"![]({target.name})"
    if "text/html" in data:
        return "".join(data["text/html"]).replace("\n\n", "\n")
    text = "".join(data.get("text/plain", output.get("text", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def illustrated(text: str, page: str, folder: Path) -> str:
    """`<!-- picture 02_intention 1: caption -->` in a document as that notebook's picture, with its caption.

    Raises: LookupError: the notebook has no such picture.
    """

    def one(match: re.Match[str]) -> str:
        found = sorted((folder / "notebooks").glob(f"{match[1]}_{match[2]}.*"))
        if not found:
            raise LookupError(f"{page} asks for picture {match[2]} of notebook {match[1]}, which is not there")
        place = os.path.relpath(found[0], (folder / page).parent)
        caption = " ".join(match[3].split())
        return f"![{caption}]({place})\n\n*{caption} From [the notebook](notebooks/{match[1]}.md).*"

    return PICTURE.sub(one, text)


# -- all of it ------------------------------------------------------------------------------------


def write(folder: Path = PAGES) -> Path:
    """Gather all pages in a folder made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    pages = documents()
    for document, page in sorted(pages.items(), key=lambda pair: not pair[0].endswith(".ipynb")):
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        file = ROOT / document
        if file.suffix == ".ipynb":
            text = notebook(file, target.parent, pages)
        else:
            text = illustrated(linked(fenced(file.read_text()), document, pages), page, folder)
        target.write_text(text)
    for page, text in reference().items():
        (folder / page).parent.mkdir(exist_ok=True)
        (folder / page).write_text(text)
    return folder


if __name__ == "__main__":
    print(write())
