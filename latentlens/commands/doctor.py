"""`latentlens doctor`: what is installed, what works here, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from latentlens.commands import options
from latentlens.errors import LatentLensError

State = Literal["ok", "note", "problem"]

NEEDED = ("torch", "transformers", "accelerate", "bitsandbytes", "datasets", "scikit-learn", "safetensors")
NEEDED += ("transformer-lens", "sae-lens")
#: Distribution, and what it is for: nothing breaks without them.
OPTIONAL = {
    "anywidget": "the panel in notebooks",
    "kaleido": "figures as PNG and SVG",
    "gguf": "control vectors of repeng and llama.cpp",
    "peft": "LoRA fine-tuning in steering/esr_finetune.py",
    "tree-sitter": "checking programs in C++, Java and Julia",
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, if that is a problem, what to do."""

    what: str
    found: str
    state: State = "ok"
    advice: str = ""


def doctor(as_json: options.AsJson = False) -> None:
    """Versions, devices, quantisation, cache, embedded model; with advice. Exit code 1 if something is a problem.

    latentlens doctor

    latentlens doctor --json
    """
    findings = examine()
    if as_json:
        options.show({"findings": [vars(f) for f in findings], "problems": sum(f.state == "problem" for f in findings)})
    else:
        from latentlens.views.terminal import print_table

        rows = [[f.what, f.found, f.state, f.advice] for f in findings]
        print_table("latentlens doctor", ["what", "found", "", "what to do"], rows)
    raise typer.Exit(any(f.state == "problem" for f in findings))


def examine() -> list[Finding]:
    """Look at everything; a look that fails is itself a finding."""
    looks: tuple[Callable[[], list[Finding]], ...] = (
        _versions, _extras, _browser, _devices, _quantisation, _memory, _cache, _embedded, _hub,
    )  # fmt: skip
    found = []
    for look in looks:
        try:
            found += look()
        except Exception as error:  # a doctor does not die of the patient
            found.append(
                Finding(look.__name__.strip("_"), f"{type(error).__name__}: {error}", "problem", "report this")
            )
    return found


def _versions() -> list[Finding]:
    found = [
        Finding("latentlens", _version("latentlens") or "not installed"),
        Finding("Python", platform.python_version()),
    ]
    for name in NEEDED:
        version = _version(name)
        advice = "" if version else f"pip install {name}"
        found.append(Finding(name, version or "missing", "ok" if version else "problem", advice))
    lens = _version("transformer-lens")
    if lens and int(lens.split(".")[0]) >= 4:
        found.append(
            Finding("transformer-lens", lens, "problem", 'SAELens needs pip install "transformer-lens>=3.9,<4"')
        )
    return found


def _extras() -> list[Finding]:
    found = []
    for name, use in OPTIONAL.items():
        version = _version(name)
        found.append(Finding(f"{name} (optional)", version or f"missing: {use}", "ok" if version else "note",
                             "" if version else f"pip install {name}"))  # fmt: skip
    return found


def _devices() -> list[Finding]:
    import torch

    found = [Finding("CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            found.append(Finding(f"GPU {i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    elif torch.backends.mps.is_available():
        found.append(Finding("GPU", "Apple, through MPS"))
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        advice = "for a GPU install the build of torch that pytorch.org names for your driver"
        found.append(Finding("GPU", f"none in use; {built}", "note", advice))
    return found


def _quantisation() -> list[Finding]:
    """Whether layers of 8 and 4 bits compute on this machine."""
    from latentlens.access.quantisation import faults

    advice = "install a bitsandbytes that fits torch; without it, load unquantised"
    return [
        Finding(f"quantisation {kind}", f"does not run: {fault}", "note", advice)
        if fault
        else Finding(f"quantisation {kind}", "runs")
        for kind, fault in faults().items()
    ]


def _browser() -> list[Finding]:
    """Whether figures can be written as PNG and SVG: kaleido draws them with a browser."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "google-chrome-stable", "msedge")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    if found:
        return [Finding("browser for PNG and SVG", found)]
    advice = "install Chromium or Chrome, run plotly_get_chrome, or set BROWSER_PATH"
    return [Finding("browser for PNG and SVG", "none found on the path", "note", advice)]


def _memory() -> list[Finding]:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return [
        Finding(
            "memory", f"{free:.1f} GiB free", "ok" if free > 1 else "problem", "" if free > 1 else "close something"
        )
    ]


def _cache() -> list[Finding]:
    from latentlens.access.store.cache import ActivationCache

    try:
        cache = ActivationCache()
        cache.ensure_writable()
        stats = cache.stats()
        free = shutil.disk_usage(_existing(Path(cache.folder))).free / 2**30
    except LatentLensError as error:
        return [
            Finding("activation cache", str(error), "problem", "set LATENTLENS_CACHE to a folder that can be written")
        ]
    low = free < 5
    return [
        Finding("activation cache", f"{stats.entries} entries, {stats.bytes / 2**30:.2f} GiB in {stats.folder}"),
        Finding("disk there", f"{free:.1f} GiB free", "note" if low else "ok",
                "`latentlens cache clear`, or LATENTLENS_CACHE on a larger disk" if low else ""),
    ]  # fmt: skip


def _embedded() -> list[Finding]:
    from latentlens import organism

    try:
        organism.path()
    except LatentLensError as error:
        return [Finding("embedded model", str(error), "problem", "reinstall latentlens")]
    found = [Finding("embedded model", "every file matches its checksum")]
    for name in organism.saes():
        try:
            organism.sae_path(name)
            found.append(Finding(f"embedded SAE {name}", "every file matches, and so do the weights"))
        except LatentLensError as error:
            found.append(Finding(f"embedded SAE {name}", str(error), "problem", "reinstall latentlens, or train-sae"))
    return found


def _hub() -> list[Finding]:
    """Whether the hub may be asked, and whether there is a token; never the token itself."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return [
        Finding("model hub", "HF_HUB_OFFLINE is set: local folders only" if offline else "may be asked"),
        Finding("hub token", "set" if token else "not in the environment (needed for gated models only)"),
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _existing(folder.parent)
