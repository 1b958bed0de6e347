"""The experiments of the repository as commands: `latentlens esr --quick` runs `steering/esr.py --quick`.

They are plain scripts over the library with a function `main`, meant to be read and changed. They lie beside the
package in a checkout and inside it in a wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import typer

from latentlens.errors import BadInput

#: Command -> script, what the list of commands says about it, and examples for its `--help`.
EXPERIMENTS = {
    "esr": (
        "steering/esr.py",
        "Endogenous steering resistance: does the model notice, and which latents carry it?",
        ("--quick", "--model MODEL --sae RELEASE --sae-id ID --labels labels.json --judge endpoint:NAME"),
    ),
    "persona": (
        "steering/persona_vectors.py",
        "Persona vectors: extract, steer, monitor, screen.",
        ("--only formal,cheerful", "--model MODEL --traits formal.json --judge NAME --judge-url URL"),
    ),
    "gact": (
        "steering/gact.py",
        "G-ACT: steer the language of programs, against its baselines.",
        ("--quick", "--model MODEL --styles formal,casual --patterns styles.json --wordings wordings.json"),
    ),
    "methods": (
        "steering/method_bench.py",
        "All direction estimators at one KL budget.",
        ("--quick", "--model MODEL --concepts concepts.json --sae FOLDER"),
    ),
    "intention": (
        "probes/intention_collapse.py",
        "Intention metrics in three regimes of answering.",
        ("--n 100", "--model MODEL --data allenai/ai2_arc --subset ARC-Challenge --columns arc"),
    ),
    "trajectory": (
        "probes/trajectory_signals.py",
        "Latent-trajectory signals of correctness, with their nulls.",
        ("--n 60 --samples 4", "--model MODEL --data openai/gsm8k --size 500 --tokens 8192"),
    ),
    "concepts": (
        "probes/concepts.py",
        "A concept probe with the ten-part report.",
        ("--n 200", '--model MODEL --data rows.jsonl --answers " True" " False"'),
    ),
    "mediation": (
        "probes/mediation.py",
        "Causal mediation: which sites and positions carry an effect?",
        ("--n 40", "--model MODEL --data pairs.jsonl"),
    ),
}


def script(name: str) -> Path:
    """Where an experiment's script lies.

    Raises: BadInput: it is neither beside nor inside the package.
    """
    package = Path(__file__).parents[1]
    for root in (package.parent, package / "experiments"):
        if (root / name).is_file():
            return root / name
    raise BadInput(f"{name} is not in this installation: reinstall latentlens, or take it from the repository")


def add_to(app: typer.Typer) -> None:
    """Add a command for every experiment; its arguments, `--help` included, are the script's own."""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    for name, (_, about, _) in EXPERIMENTS.items():
        app.command(name, help=about, context_settings=passed_on, rich_help_panel="Experiments")(_runner(name))


def parameters(name: str) -> list[Any]:
    """The parameters of an experiment's script, as click has them.

    Raises: BadInput: as `script`.
    """
    return typer.main.get_command(_app(name)).params


def _runner(name: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        _app(name)(context.args, prog_name=f"latentlens {name}", default_map=context.default_map)

    return run


def _app(name: str) -> typer.Typer:
    """The script's `main` as a command line of its own."""
    file, _, examples = EXPERIMENTS[name]
    path = script(file)
    found: Any = spec_from_file_location(f"latentlens_experiment_{path.stem}", path)
    sys.modules[found.name] = module = module_from_spec(found)
    found.loader.exec_module(module)
    experiment = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    experiment.command(epilog="\n\n".join(f"latentlens {name} {words}" for words in examples))(module.main)
    return experiment
