"""The command line. Heavy modules are imported inside the commands that use them, so `--help` is instant."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlens.commands import experiments, options
from latentlens.commands.capturing import capture
from latentlens.commands.config import configured
from latentlens.commands.doctor import doctor
from latentlens.commands.probing import probe
from latentlens.commands.reports import record, report_app
from latentlens.commands.steering import steer, sweep
from latentlens.errors import LatentLensError

app = typer.Typer(
    help="Look into and steer the latent space of language models.\n\n"
    "Every command takes --config FILE (TOML): a table named as the command, keys named as the arguments. "
    "latentlens --install-completion completes commands and options in your shell.",
    epilog="Exit codes: 0 done; 1 the answer is no (a check failed, something is damaged or missing); "
    "2 the command or its input was wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (capture, probe, steer, sweep, doctor):
    app.command()(command)
experiments.add_to(app)
cache_app = typer.Typer(help="The activation cache that every module shares.", no_args_is_help=True)
organism_app = typer.Typer(help="The embedded model: where it is, how good, how it was made.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(organism_app, name="organism")
app.add_typer(report_app, name="report")

Folder = Annotated[Path | None, typer.Option(help="Cache folder; by default LATENTLENS_CACHE or the user's cache.")]


def main() -> None:
    """Run the command line; errors that latentlens names are shown in one line, without a traceback."""
    try:
        words, defaults = configured(sys.argv[1:], typer.main.get_command(app), experiments.parameters)
        app(words, default_map=defaults)
    except LatentLensError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | KeyError) else 1)


@app.command()
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("demo_report.html"),
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Check the embedded model, probe it, steer it, and write a report. About two minutes on two cores.

    latentlens demo

    latentlens demo --report truth.html --seed 1 --json
    """
    from latentlens.demo import run

    if not as_json:
        run(report, seed)
        return
    with contextlib.redirect_stdout(sys.stderr):  # the tables are for people
        page = run(report, seed)
    options.show(record(page))


@app.command()
def check(
    model: Annotated[str | None, typer.Argument(help="Hub id or folder; the embedded model if left out.")] = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Parity self-test: is what latentlens reads and writes what the model does? Exit code 1 if not.

    latentlens check

    latentlens check Qwen/Qwen3-0.6B --quantization nf4 --json
    """
    report = options.load(model, dtype, quantization, device_map, cache=False).check()
    if as_json:
        options.show({"model": report.model, "passed": report.passed, "findings": report.to_frame().to_dict("records")})
    else:
        print(report)
    raise typer.Exit(0 if report.passed else 1)


@cache_app.command()
def stats(folder: Folder = None, as_json: options.AsJson = False) -> None:
    """Entries, bytes and models held.

    latentlens cache stats

    latentlens cache stats --folder runs/cache --json
    """
    from latentlens.access.store.cache import ActivationCache

    found = ActivationCache(folder, readonly=True).stats()
    options.show(vars(found)) if as_json else print(found)


@cache_app.command()
def verify(
    folder: Folder = None,
    repair: Annotated[bool, typer.Option(help="Set aside what is damaged.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare every stored byte with its digest. Exit code 1 if something is damaged or missing.

    latentlens cache verify

    latentlens cache verify --folder runs/cache --repair
    """
    from latentlens.access.store.cache import ActivationCache

    report = ActivationCache(folder, readonly=not repair).verify(repair=repair)
    options.show({**vars(report), "sound": report.sound}) if as_json else print(report)
    raise typer.Exit(0 if report.sound else 1)


@cache_app.command()
def clear(
    folder: Folder = None,
    model: Annotated[str | None, typer.Option(help="Only what this model (class or weights digest) left.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove stored activations; they are computed again when needed.

    latentlens cache clear

    latentlens cache clear --model Qwen3ForCausalLM --yes
    """
    from latentlens.access.store.cache import ActivationCache

    cache = ActivationCache(folder)
    if not yes:
        typer.confirm(f"Remove activations in {cache.folder}?", abort=True, err=True)
    removed = cache.clear() if model is None else cache.forget(model=model)
    options.show({"removed": removed, "folder": str(cache.folder)}) if as_json else print(f"removed {removed} entries")


@organism_app.command()
def path() -> None:
    """Folder of the embedded model, checksums verified; any Hugging Face tool can load it.

    latentlens organism path
    """
    from latentlens import organism

    print(organism.path())


@organism_app.command()
def evaluate(
    folder: Annotated[Path | None, typer.Option(help="Folder of the model; the embedded one if left out.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure this family; may be repeated.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Put the table into the folder's model card.")] = False,
) -> None:
    """Measure every planted effect with n and interval (eight minutes). Exit code 1 when one is missing.

    latentlens organism evaluate

    latentlens organism evaluate --only truth --only topics
    """
    from latentlens.organism.evaluate import main as run

    given = [*(["--folder", str(folder)] if folder else []), *(["--only", *only] if only else [])]
    raise typer.Exit(run([*given, *(["--card"] if card else [])]))


@organism_app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the trained model.")],
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and order.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; another number rounds differently.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder to resume from; OUTPUT-run if left out.")] = None,
    checkpoints: Annotated[int, typer.Option(help="Keep so many moments of the run as models of their own.")] = 0,
) -> None:
    """Train the embedded model from scratch: about an hour on one core. The same command resumes.

    latentlens organism train runs/mine --seed 1
    """
    from latentlens.organism.train import train as run

    at = work or output.with_name(f"{output.name}-run")
    run(output, seed=seed, threads=threads, work=at, checkpoints=checkpoints)


@organism_app.command()
def train_sae(
    name: Annotated[list[str] | None, typer.Option(help="middle or late; may be repeated; all if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for their folders; the package's if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of texts and weights.")] = 0,
) -> None:
    """Train the SAEs of the embedded model from the activation cache (five minutes each).

    latentlens organism train-sae --name middle --out runs/saes
    """
    from latentlens.access.model import load
    from latentlens.organism import SAES
    from latentlens.organism_saes.train import train as run

    for sae in run(load(), out or SAES, name or (), seed=seed).values():
        print(sae)


@organism_app.command()
def evaluate_sae(
    name: Annotated[list[str] | None, typer.Option(help="Measure this SAE; may be repeated.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Put the table into the SAEs' card.")] = False,
) -> None:
    """Measure the SAEs: what they keep, latents of concepts, restarts with latents ablated (four minutes).

    latentlens organism evaluate-sae --name late
    """
    from latentlens.access.model import load
    from latentlens.organism import SAES
    from latentlens.organism_saes.card import evaluate as run

    raise typer.Exit(run(load(), name or (), card=SAES / "SAE_CARD.md" if card else None))
