"""One self-contained page: what was asked, what was found, with what, and what the model wrote.

    report("page.html", title="Truth", question="Where can truth be read?",
           highlights={"AUROC": best.auroc.short},
           sections=[Section("Reading", [by_layer(sweep), sweep.table()])],
           manifest={"model": lm.name, "seed": 0})

The page opens offline and carries everything. What a model wrote is shown and never run: the template
escapes it, characters that hide or reorder text are written out, and a content security policy lets no
script run but the page's own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.results import Estimate
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.visible import visible

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

_OPEN_AT_FIRST = 3
_TOP = 30  # pixels left above a figure whose title stands in the page


@dataclass(frozen=True)
class Captioned:
    """A figure, table, text or list of rollouts with a line below that says how to read it."""

    content: Any
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in order.

    blocks: plotly figures, pandas frames, `Rollouts` (or a list of `Rollout`), plain text, or any of these
    as `Captioned`.
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
) -> Path:
    """Write the page, atomically. The same arguments give the same bytes.

    Args:
        path: where to write; folders are made.
        title: of the page.
        question: the one sentence that the page answers.
        sections: what was done and found, in order.
        manifest: what a reader needs to repeat it: model, weights digest, versions, seeds, cache hits,
            commands. Values may be mappings and lists.
        highlights: the few numbers to see first, by name.

    Returns: the path written.
    Raises: BadInput: a block of a kind that a page cannot show.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    figures: list[dict[str, Any]] = []
    shown = [{"title": s.title, "blocks": [_block(b, figures) for b in s.blocks]} for s in sections]
    data = _json_in_html(figures)
    # Unguessable from inside the page: text that contained its own digest would change it.
    nonce = hashlib.sha256((data + repr(shown) + repr(manifest) + title + question).encode("utf-8", "replace"))
    env = Environment(
        loader=PackageLoader("latentlens.views", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda v: v if isinstance(v, Markup) else visible(str(v)),
    )  # fmt: skip
    page = env.get_template("report.html.jinja").render(
        title=title,
        question=question,
        highlights=[(name, *_headline(value)) for name, value in (highlights or {}).items()],
        sections=shown,
        manifest=[(str(k), _plain(v)) for k, v in manifest.items()],
        nonce=nonce.hexdigest()[:32],
        plotly=Markup(_plotly_js()) if figures else Markup(""),
        figures=Markup(data),
    )
    return _write(Path(path), page)


def _block(block: Any, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template needs to draw one block."""
    if isinstance(block, Captioned):
        return {**_block(block.content, figures), "caption": block.caption}
    if isinstance(block, str):
        return {"kind": "text", "paragraphs": block.strip().split("\n\n"), "caption": ""}
    if hasattr(block, "to_plotly_json"):
        return _figure(block, figures)
    if hasattr(block, "columns") and hasattr(block, "itertuples"):
        return _table(block)
    if isinstance(block, Rollouts) or (
        isinstance(block, Sequence) and block and all(isinstance(r, Rollout) for r in block)
    ):
        return {"kind": "rollouts", "runs": [_run(r) for r in block], "open": _OPEN_AT_FIRST, "caption": ""}
    raise BadInput(
        f"a report cannot show a {type(block).__name__}: give a plotly figure, a pandas frame (result.to_frame() or "
        ".table()), Rollouts, text, or one of these as Captioned(...)"
    )


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
    figures.append({"data": drawn["data"], "layout": layout})
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


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in frame.dtypes]
    return {
        "kind": "table",
        "columns": list(zip(map(str, frame.columns), numeric)),
        "rows": list(zip(*(_column(frame.iloc[:, i]) for i in range(len(numeric))))),
        "numeric": numeric,
        "caption": "",
    }


def _column(values: Iterable[Any]) -> list[str]:
    """Cells of one column; a column of whole numbers with gaps (pandas makes it float) stays whole."""
    values = list(values)
    floats = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    whole = bool(floats) and all(v.is_integer() for v in floats) and max(map(abs, floats)) > 1
    return [_cell(v, whole) for v in values]


def _cell(value: Any, whole: bool) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, Estimate):
        return value.short
    if isinstance(value, float):  # numpy's float64 is one
        return f"{value:.0f}" if whole else f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return str(value)


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
        return f"{value.value:.2f}", f"{value.level:.0%} interval {value.low:.2f} to {value.high:.2f}, n={value.n}"
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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(page, encoding="utf-8", newline="\n")
    unfinished.replace(path)
    return path
