"""`latentlens demo`: the main job on a real trained model, from check to report, on one screen.

Can the embedded model's residual stream be read for whether a statement is true, and does writing the
direction that was read change the answer? Prompts of creatures that the probe never saw; random
directions of equal norm beside it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from latentlens import organism
from latentlens.access.model import LensModel, load
from latentlens.access.store.cache import ActivationCache
from latentlens.methods import probe
from latentlens.values.activations import Activations
from latentlens.values.operations import Add
from latentlens.values.results import Arm, ProbeSweep, SteeringEffect
from latentlens.values.rollouts import Rollouts
from latentlens.views.figures import by_layer, steering_effect
from latentlens.views.manifest import manifest
from latentlens.views.report import Captioned, Section, report
from latentlens.views.terminal import print_table

N_STATEMENTS, N_PROMPTS, N_RANDOM = 1500, 150, 5
STRENGTHS = (-2.0, -1.5, -1.0, 1.0, 1.5, 2.0)


def run(path: Path, seed: int = 0) -> Path:
    """Run the demo and write its report.

    Args: path: of the HTML page. seed: of statements, split, controls and random directions.
    Returns: the path.
    """
    started = time.perf_counter()
    # On a model this small one thread is as fast, and two OpenMP runtimes (torch's and scikit-learn's) that wait
    # for each other on a busy machine are ten times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(path, seed, started)
    finally:
        torch.set_num_threads(threads)


def _run(path: Path, seed: int, started: float) -> Path:
    with tempfile.TemporaryDirectory(prefix="latentlens-demo-") as folder:
        say("loading the embedded model")
        lm = load(cache=ActivationCache(folder))
        say("checking it: padded = single, cached = full, sdpa = eager, hook = recorded output")
        check = lm.check()
        texts = organism.draw("truth", N_STATEMENTS, seed, split="seen")
        chats = [text.prompt() for text in texts]
        say(f"capturing {N_STATEMENTS} statements at every block, last token")
        first = lm.activations(chats, sites="resid_post[*]", where="last")
        say("the same again, from the cache")
        again = lm.activations(chats, sites="resid_post[*]", where="last")
        say("probing every block, with controls")
        sweep = probe.fit(
            again,
            [text.truth for text in texts],
            groups=[text.group for text in texts],
            seed=seed,
        )
        held_out = [texts[i] for i in sweep.test_rows[:N_PROMPTS]]
        say(f"steering {len(held_out)} prompts of held-out creatures, {len(STRENGTHS)} strengths, with controls")
        effect, samples = steer(lm, first, sweep, [text.prompt() for text in held_out], seed)
    strongest = max(STRENGTHS)
    tell(check.passed, first, again, sweep, effect, strongest)
    best = sweep.best()
    told = manifest(
        lm,
        seed=seed,
        forward_passes={"first capture": first.about["forwards"], "second capture": again.about["forwards"]},
        seconds=round(time.perf_counter() - started, 1),
    )
    difference = effect.against("random", strongest)
    written = report(
        path,
        title="latentlens demo: reading and writing truth",
        question="Can it be read from the residual stream whether a statement is true, and does the direction that "
        "is read change the answer when it is written?",
        highlights={
            f"held-out AUROC at {best.site}": best.auroc,
            f"share of 'True' at strength {strongest:+g}, minus random directions": difference,
            "forward passes of the second capture": again.about["forwards"],
        },
        sections=[
            Section(
                "Reading",
                [
                    f"{N_STATEMENTS} statements about an invented world, read at the last token before the answer. A "
                    f"logistic probe for each block is fitted on {sweep.n_groups[0]} creatures and scored on "
                    f"{sweep.n_groups[1]} others.",
                    by_layer(sweep),
                    Captioned(
                        sweep,
                        "* chosen by cross-validation on the training side. The control task gives every creature "
                        "a fixed random label (Hewitt and Liang 2019, arXiv 1909.03368) on a split of its own, in "
                        "which creatures recur.",
                    ),
                ],
            ),
            Section(
                "Writing",
                [
                    f"The probe's normal at {best.site}, scaled to the median norm of the residual stream there, is "
                    f"added at the last prompt token while the model answers {len(held_out)} prompts about held-out "
                    f"creatures. Beside it: {N_RANDOM} random directions of equal norm.",
                    steering_effect(effect),
                    Captioned(
                        pd.DataFrame(arms(effect), columns=["strength", "probe direction", "random directions"]),
                        f"Share of answers that begin with True, n = {len(held_out)} prompts an arm; for the random "
                        f"directions the least and the greatest of {N_RANDOM}.",
                    ),
                    Captioned(samples, "The first prompts at the strongest setting."),
                ],
            ),
            Section("Is the instrument sound?", [check.to_frame()]),
            Section(
                "What this is not",
                [
                    "The embedded model was trained by this package on text that this package wrote; what is found "
                    "in it was planted. It validates tools and is no evidence about other models."
                ],
            ),
        ],
        manifest=told,
        method="Statements about creatures of an invented world are captured at their last token before the answer. A "
        "logistic probe at every block is scored on creatures that it never saw; shuffled labels and a control task "
        "say what it would reach by chance and by memory. Its normal is then added while the model answers, beside "
        "random directions of equal norm.",
        sources=[
            "Probes: Alain and Bengio 2016, arXiv 1610.01644",
            "Control tasks and selectivity: Hewitt and Liang 2019, arXiv 1909.03368",
            "Directions that steer: Turner et al. 2023, arXiv 2308.10248",
        ],
        results={"steering": effect},
    )
    say(f"report: {written} ({written.stat().st_size / 2**20:.1f} MB, opens offline)")
    return written


def steer(
    lm: LensModel, acts: Activations, sweep: ProbeSweep, chats: list[Any], seed: int
) -> tuple[SteeringEffect, Rollouts]:
    """Share of answers that begin with True: unedited, along the direction, and along random ones."""
    best = sweep.best()
    norm = float(acts[str(best.site)].norm(dim=-1).median())
    direction = best.direction.scaled_to(norm)

    def answers(*edits: Add) -> Rollouts:
        return lm.generate(chats, max_new_tokens=3, steer=edits)

    def count(kind: Any, runs: Rollouts, coeff: float = 0.0, draw: int = 0) -> Arm:
        return Arm.of(kind, [text.startswith("True") for text in runs.texts], coeff, draw)

    found, samples = [count("no edit", answers())], None
    for coeff in STRENGTHS:
        samples = answers(Add(direction, coeff, where="last"))
        found.append(count("direction", samples, coeff))
        for draw in range(N_RANDOM):
            random = direction.random_like(1000 * seed + draw)
            found.append(count("random", answers(Add(random, coeff, where="last")), coeff, draw))
    assert samples is not None
    unit = f"median residual norm at {best.site}"
    return SteeringEffect(tuple(found), "answers that begin with True", unit), samples[:6]


def tell(
    sound: bool, first: Activations, again: Activations, sweep: ProbeSweep, effect: SteeringEffect, at: float
) -> None:
    """Print the closing tables."""
    best = sweep.best().site
    print_table(
        "truth, read from the residual stream",
        ["block", "AUROC held out", "shuffled labels", "selectivity"],
        [
            [
                f"{p.site}{' *' if p.site == best else ''}",
                p.auroc.short,
                p.shuffled.short,
                p.selectivity.short if p.selectivity else "",
            ]
            for p in sweep
        ],
        note=f"95% intervals; {sweep.n_test} statements of {sweep.n_groups[1]} creatures held out; * chosen on others",
    )
    print_table(
        f"share of answers 'True', direction added at {best}",
        ["strength", "probe direction", f"{N_RANDOM} random directions"],
        arms(effect),
        note=f"n = {effect.arms[0].n} prompts an arm; strength in units of the {effect.unit}",
    )
    print_table(
        "in short",
        ["what", "result"],
        [
            ["self-test of the model", "passed" if sound else "FAILED"],
            ["first capture", f"{first.about['forwards']} forward passes, {first.about['seconds']:.2f} s"],
            [
                "second capture, from the cache",
                f"{again.about['forwards']} forward passes, {again.about['seconds']:.2f} s",
            ],
            ["held-out AUROC at the chosen block", str(sweep.best().auroc)],
            [f"effect at {at:+g}, minus random directions", str(effect.against("random", at))],
        ],
    )


def arms(effect: SteeringEffect) -> list[list[str]]:
    """One row a strength: share along the direction, and the range of the random ones."""
    [plain] = effect.of("no edit")
    rows = [["no edit", plain.share.short, ""]]
    for coeff in effect.coeffs:
        [arm] = effect.of("direction", coeff)
        draws = [a.share.value for a in effect.of("random", coeff)]
        rows.append([f"{coeff:+g}", arm.share.short, f"{min(draws):.3f} to {max(draws):.3f}"])
    return rows


def say(text: str) -> None:
    """One line of progress, on standard error, so that the tables alone are on standard output."""
    print(f"· {text}", file=sys.stderr, flush=True)
