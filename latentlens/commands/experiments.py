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

#: Command -> script, and what `--help` says about it.
EXPERIMENTS = {
    "esr": ("steering/esr.py", "Endogenous steering resistance: does the model notice, and which latents carry it?"),
    "persona": ("steering/persona_vectors.py", "Persona vectors: extract, steer, monitor, screen."),
    "gact": ("steering/gact.py", "G-ACT: steer the language of programs, against its baselines."),
    "methods": ("steering/method_bench.py", "All direction estimators at one KL budget."),
    "intention": ("probes/intention_collapse.py", "Intention metrics in three regimes of answering."),
    "trajectory": ("probes/trajectory_signals.py", "Latent-trajectory signals of correctness, with their nulls."),
    "concepts": ("probes/concepts.py", "A concept probe with the ten-part report."),
    "mediation": ("probes/mediation.py", "Causal mediation: which sites and positions carry an effect?"),
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
    for name, (file, about) in EXPERIMENTS.items():
        app.command(name, help=about, context_settings=passed_on, rich_help_panel="Experiments")(_runner(name, file))


def _runner(name: str, file: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        path = script(file)
        found: Any = spec_from_file_location(f"latentlens_experiment_{path.stem}", path)
        sys.modules[found.name] = module = module_from_spec(found)
        found.loader.exec_module(module)
        experiment = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        experiment.command()(module.main)
        experiment(context.args, prog_name=f"latentlens {name}")

    return run
