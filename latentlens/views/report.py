"""One self-contained page: what was asked, what was found, with what, and what the model wrote.

    ll.report("page.html", title="Truth", question="Where can truth be read?",
              method="A logistic probe at every block, on held-out creatures.", sources=["Alain and Bengio 2016"],
              highlights={"AUROC": best.auroc},
              sections=[ll.Section("Reading", [ll.plots.by_layer(sweep), sweep])],
              manifest=ll.manifest(lm, seed=0))

The page opens offline and carries everything, the numbers for machines included (`latentlens report compare A B`). What
a model wrote is shown and never run: the template escapes it, characters that hide or reorder text are written out, and
a content security policy lets no script run but the page's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.markup import Html, Shown, table
from latentlens.values.results import Estimate
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.visible import visible
from latentlens.views.findings import Finding, findings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMAT = 1  # of the numbers kept in the page
_OPEN_AT_FIRST = 3
_LARGE = 8_000_000  # bytes; larger pages are slow to open and refused by mail
_TOP = 30  # pixels left above a figure whose title stands in the page


@dataclass(frozen=True)
class Captioned:
    """A figure, table, text or list of rollouts with a line below that says how to read it."""

    content: Any
    caption: str


@dataclass(frozen=True)
class Beside:
    """Blocks side by side, one below the other on a narrow screen; each under its own heading.

    blocks: heading -> block.
    """

    blocks: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in order.

    blocks: plotly figures; result values (anything with `table()` or `to_frame()`), whose numbers are kept for
        comparisons; pandas frames; `Rollouts` (or a list of `Rollout`); plain text; Html of `plots.highlight` and its
        like; any of these as `Captioned`, or several as `Beside`.
    """

    title: str
    blocks: Sequence[Any] = ()


def report(
    path: str | Path,
    *,
    title: str,
    question: str,
    sections: Iterable[Section],
    manifest: Mapping[str, Any],
    highlights: Mapping[str, Any] | None = None,
    method: str = "",
    sources: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page, atomically. The same arguments give the same bytes.

    Args:
        path: where to write; folders are made.
        title: of the page.
        question: the one sentence that the page answers.
        sections: what was done and found, in order.
        manifest: what a reader needs to repeat it, from `ll.manifest(lm, seed=..., ...)`. Values may be mappings and
            lists.
        highlights: the few numbers to see first, by name.
        method: how it was done, in a few sentences.
        sources: what the method comes from, one citation an item.
        results: what to keep for comparisons beside the highlights and the result values among the blocks: Estimates,
            numbers, words, frames or result values, by name.

    Returns: the path written.
    Raises: BadInput: a block of a kind that a page cannot show.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    figures: list[dict[str, Any]] = []
    sections = list(sections)
    shown = [{"title": s.title, "blocks": [_block(b, figures) for b in s.blocks]} for s in sections]
    data = _json_in_html(figures)
    told = [(str(k), _plain(v)) for k, v in manifest.items()]
    kept = [one.to_json() for one in _kept(highlights or {}, sections, results or {})]
    record = {"format": FORMAT, "title": title, "question": question, "manifest": dict(told), "findings": kept}
    # Unguessable from inside the page: text that contained its own digest would change it.
    nonce = hashlib.sha256((data + repr(shown) + repr(record) + method + repr(sources)).encode("utf-8", "replace"))
    env = Environment(
        loader=PackageLoader("latentlens.views", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda v: Markup(v) if isinstance(v, (Markup, Html)) else visible(str(v)),
    )  # fmt: skip
    page = env.get_template("report.html.jinja").render(
        title=title,
        question=question,
        highlights=[(name, *_headline(value)) for name, value in (highlights or {}).items()],
        sections=shown,
        method=method,
        sources=list(sources),
        manifest=told,
        record=Markup(_json_in_html(record)),
        nonce=nonce.hexdigest()[:32],
        plotly=Markup(_plotly_js()) if figures else Markup(""),
        figures=Markup(data),
    )
    return _write(Path(path), page)


def _block(block: Any, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template needs to draw one block."""
    if isinstance(block, Captioned):
        return {**_block(block.content, figures), "caption": block.caption}
    if isinstance(block, Html):
        return {"kind": "html", "html": block, "caption": ""}
    if isinstance(block, str):
        return {"kind": "text", "paragraphs": block.strip().split("\n\n"), "caption": ""}
    if isinstance(block, Beside):
        sides = [{"title": title, "block": _block(one, figures)} for title, one in block.blocks.items()]
        return {"kind": "beside", "sides": sides, "caption": ""}
    if hasattr(block, "to_plotly_json"):
        return _figure(block, figures)
    if runs := _runs(block):
        return {"kind": "rollouts", "runs": [_run(r) for r in runs], "open": _OPEN_AT_FIRST, "caption": ""}
    if isinstance(block, Shown) and block.shows_itself:
        return {"kind": "html", "html": block.inside(), "caption": ""}
    made = getattr(block, "table", None) or getattr(block, "to_frame", None)
    if made is not None or (hasattr(block, "columns") and hasattr(block, "itertuples")):
        return {"kind": "html", "html": table(block if made is None else made(), None), "caption": ""}
    raise BadInput(
        f"a report cannot show a {type(block).__name__}: give a plotly figure, a result value, a pandas frame, "
        "Rollouts, text, or one of these as Captioned(...)"
    )


def _runs(block: Any) -> Sequence[Rollout]:
    """The rollouts that a block consists of; none if it is something else."""
    if isinstance(block, Rollouts) or (isinstance(block, Sequence) and all(isinstance(r, Rollout) for r in block)):
        return block
    return ()


def _kept(highlights: Mapping[str, Any], sections: Sequence[Section], results: Mapping[str, Any]) -> list[Finding]:
    """What is kept for machines: highlights, result values and frames among the blocks, and what was given."""
    found = []
    for name, value in highlights.items():
        found += findings("highlights", {name: value[0] if isinstance(value, tuple) else value})
    for section in sections:
        for block in _flat(section.blocks):
            is_picture = isinstance(block, (str, Rollouts)) or getattr(block, "shows_itself", False)
            if is_picture or not (hasattr(block, "to_frame") or hasattr(block, "itertuples")):
                continue
            kind = type(block).__name__
            found += findings(section.title if kind == "DataFrame" else f"{section.title}: {kind}", block)
    for name, value in results.items():
        is_table = hasattr(value, "to_frame") or hasattr(value, "itertuples") or isinstance(value, Mapping)
        found += findings(name if is_table else "results", value if is_table else {name: value})
    return list({one.key: one for one in found}.values())


def _flat(blocks: Iterable[Any]) -> Iterable[Any]:
    for block in blocks:
        block = block.content if isinstance(block, Captioned) else block
        yield from _flat(block.blocks.values()) if isinstance(block, Beside) else [block]


def _figure(figure: Figure, figures: list[dict[str, Any]]) -> dict[str, Any]:
    drawn = _shown(json.loads(str(figure.to_json())))
    layout = drawn["layout"]
    layout.pop("width", None)  # the page decides; height stays the figure's
    # The title becomes text of the page, which wraps on a narrow screen; plotly's is cut off.
    title = layout.pop("title", {})
    title = title if isinstance(title, dict) else {"text": title}
    heading, subtitle = _unmarked(title.get("text", "")), _unmarked(title.get("subtitle", {}).get("text", ""))
    height = layout.get("height", 450)
    if heading:
        freed = max(layout.get("margin", {}).get("t", 100) - _TOP, 0)
        height -= freed
        layout |= {"height": height, "margin": {**layout.get("margin", {}), "t": _TOP}}
    figures.append({"data": drawn["data"], "layout": layout, "heading": heading, "subtitle": subtitle})
    about = {"number": len(figures) - 1, "height": int(height), "heading": heading, "subtitle": subtitle}
    return {"kind": "figure", **about, "caption": ""}


def _unmarked(text: str) -> str:
    """Plain text of a plotly label, which has a small HTML of its own."""
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"<br\s*/?>", "\n", text)))


def _shown(value: Any) -> Any:
    """Every text in a figure with its hidden characters written out."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {k: _shown(v) for k, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list) else value


def _run(run: Rollout) -> dict[str, Any]:
    return {
        "prompt": run.prompt,
        "text": run.text,
        "steer": "; ".join(map(repr, run.steer)) or "no edit",
        "facts": f"prompt {run.prompt_index}, sample {run.sample}, seed {run.seed}, temperature {run.temperature:g}, "
        f"{len(run.generated)} tokens, ended by {run.finish}",
    }


def _headline(value: Any) -> tuple[str, str]:
    """Large figure and small print of a highlight."""
    if isinstance(value, Estimate):
        size = max(abs(value.value), abs(value.low), abs(value.high))
        shown, low, high = (f"{x:.{3 if size < 0.1 else 2}f}" for x in (value.value, value.low, value.high))
        return shown, f"{value.level:.0%} interval {low} to {high}, n={value.n}"
    if isinstance(value, tuple) and len(value) == 2:
        return str(value[0]), str(value[1])
    return str(value), ""


def _plain(value: Any) -> Any:
    """Nested mappings stay mappings for the template; everything else becomes lines of text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value)) if any(" " in str(v) for v in value) else ", ".join(map(str, value))
    return str(value)


def _json_in_html(value: Any) -> str:
    """JSON that no HTML parser can leave: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _write(path: Path, page: str) -> Path:
    size = len(page.encode("utf-8"))
    if size > _LARGE:
        warnings.warn(
            f"{path} has {size / 1e6:.1f} MB, more than {_LARGE / 1e6:.0f}: give fewer rollouts and shorter tables, "
            "and keep the whole of them in a file beside it",
            stacklevel=3,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(page, encoding="utf-8", newline="\n")
    unfinished.replace(path)
    return path
