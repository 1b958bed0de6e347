"""What a reader needs to repeat a run, collected: model, weights, versions, command, cache, commit."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from latentlens.access.identity import package_versions

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: Entries that differ between two runs of the same thing; a comparison does not hold them against anybody.
OF_THE_RUN = ("written", "seconds", "command", "activation cache")
_SECRET = re.compile("(key|token|secret|password)$", re.IGNORECASE)


def manifest(lm: LensModel | None = None, **more: Any) -> dict[str, Any]:
    """The manifest of a run, for `ll.report`.

        ll.report("page.html", ..., manifest=ll.manifest(lm, seed=seed, strengths=STRENGTHS))

    Model, weights (hub id and commit, or digest), dtype, attention and quantisation; the cache's hits and misses since
    the model was opened; versions; the commit of latentlens where it runs from a checkout; the command line; when.

    Args: lm: the model. more: whatever else was chosen: seeds, strengths, numbers of rows; it comes first.
    """
    about: dict[str, Any] = {key.replace("_", " "): value for key, value in more.items()}
    if lm is not None:
        context = lm.context
        about |= {"model": repr(lm), "weights": context["weights"], "attention": context["attention"]}
        about |= {"quantisation": context["quantization"]} if context["quantization"] else {}
        about |= {"adapters": context["adapters"]} if context["adapters"] else {}
        if lm.cache is not None:
            about["activation cache"] = f"{lm.cache.hits} hits, {lm.cache.misses} misses"
    version = platform.python_version()
    about["versions"] = {"python": version, "platform": platform.platform(terse=True), **package_versions()}
    if commit := _commit():
        about["latentlens commit"] = commit
    about["command"] = _command()
    about["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return about


def _command() -> str:
    """The command line as it was typed, as far as Python knows it, without what looks like a secret."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):  # that ipykernel is loaded says nothing: widgets load it in scripts too
        return "a notebook"
    first = sys.argv[0] if sys.argv else ""
    program = (
        "python -c" if first in ("", "-c") else "latentlens" if first.endswith("__main__.py") else Path(first).name
    )
    shown, hide = [], False
    for word in sys.argv[1:]:
        name, is_set, _ = word.partition("=")
        secret = name.startswith("-") and bool(_SECRET.search(name))
        shown.append("***" if hide else f"{name}=***" if secret and is_set else quote(word))
        hide = secret and not is_set
    return " ".join([program, *shown])


def _commit() -> str:
    """Commit of the checkout that this file is tracked in, "+ changes" if edited since, or that pip installed."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        ask = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], **ask)
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", ":/latentlens"], **ask).stdout
        return f"{head} + changes" if changed.strip() else head
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        read = distribution("latentlens").read_text("direct_url.json") or "{}"
    except PackageNotFoundError:
        return ""
    return str(json.loads(read).get("vcs_info", {}).get("commit_id", ""))[:12]
