"""Which steering methods work, at the same KL, and at what price?

    python steering/method_bench.py                                       # the embedded model, four concepts
    python steering/method_bench.py --quick                               # fewer methods, prompts and strengths
    python steering/method_bench.py --model MODEL --concepts concepts.json [--sae FOLDER] [--judge MODEL]

Every method finds its direction from the same pairs of texts, at one block, and is brought to the strength at which the
p95 of the per-token KL to the unsteered model is one nat over 20 greedy tokens of eight prompts that are not scored.
There the answers to other prompts are scored: the concept, the task, what should not change, and how likely the
unsteered model finds them. Then AxBench's score: the strength (multiples of the budget's) is chosen on half of the
prompts, the harmonic mean of concept, task and fluency taken from the other half. The block is the one at which the
MEAN DIFFERENCE does best on the eight prompts, which favours it. A second run on the same folder writes nothing.
`concepts.json`: see `ll.read_concepts`.

Controls: no edit; asked in words; random directions; the mean difference of two halves of the texts WITHOUT the
concept; and that of shuffled labels, which is no null: where the concept is what varies most in the texts, shuffled
labels still point along it, with a random sign, and a KL budget forgives the length that they lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.access.kept_numbers import KeptNumbers
from latentlens.access.likelihood import answer_positions
from latentlens.access.steering_arms import dose_arms, scored_answers, time_arms
from latentlens.errors import BadInput, LatentLensError
from latentlens.maths.answer_grades import harmonic_mean
from latentlens.organism.concepts import DEFAULT
from latentlens.organism.concepts import concepts as embedded
from latentlens.values.steering_arms import SteeringArm
from latentlens.views.terminal import print_table

UNSCORED = 8  # prompts at which strengths and the block are chosen
HALVES, SHUFFLED = "mean difference, no concept", "mean difference, shuffled"
d, budget = ll.directions, ll.calibrate.kl_budget_batch


def arms(lm: ll.LensModel, concept: ll.Concept, block: int, sae: Any, quick: bool, kept: KeptNumbers):
    """Every method fitted to the concept at the block, and why some could not be."""
    n, site = len(concept.positive), f"resid_post[{block}]"
    texts, y, pair = [*concept.positive, *concept.negative], np.repeat([True, False], n), np.tile(np.arange(n), 2)
    acts = lm.activations(texts, sites=["resid_post[*]", "z[*]"], where=concept.read, pool=concept.pool)
    heads = ll.Activations({s: v for s, v in acts.values.items() if s.point == "z"}, acts.labels, acts.about)
    yes, no, how = acts.rows(y), acts.rows(~y), plan_options(concept)
    add = lambda v: lambda c: ll.Add(v, c, unit="norm", **how)
    mean = d.mean_difference(acts, y, site=site)
    found: list[SteeringArm] = []
    left_out: dict[str, str] = {}

    def fit(name: str, make: Callable[[], Callable[[float], Any]], role: Any = "method", draw: int = 0) -> None:
        start = time.perf_counter()
        try:
            found.append(SteeringArm(name, make(), role, draw, time.perf_counter() - start))
        except LatentLensError as error:
            left_out[name] = str(error)

    def centring():
        other = lm.activations(lm.reference_texts, sites=site, where="content", pool="mean", truncate="right")[site]
        rows = torch.cat([yes[site], no[site], other.to(yes[site])])
        return add(d.mean_centred(rows, [1] * n + [0] * (len(rows) - n), site=site)[1])

    def one_pair():
        a, b = (lm.activations(x[0], sites=site)[site] for x in (concept.asked or concept.positive, concept.prompts))
        m = min(len(a), len(b))
        return lambda c: d.act_add(a[:m], b[:m], coeff=c, site=site)

    def inside_heads():
        chosen = d.head_directions(heads, y, groups=pair, n_controls=0)
        return lambda c: chosen.plan(4 * c, max(1, chosen.score.size // 3), **how)

    def refusal_style():
        if not concept.begins or concept.read != "last":
            raise BadInput("needs pairs of prompts, and a word that begins an answer with the concept")
        half = n // 2
        train, tokens = [*concept.positive[:half], *concept.negative[:half]], ll.refusal_tokens(lm, concept.begins)
        last = lm.activations(train, sites="resid_post[*]", where="last-3")
        them = d.refusal_candidates(last, [True] * half + [False] * half)
        measured = ll.measure_refusal(lm, them, concept.positive[half:][:24], concept.negative[half:][:24], tokens)
        return add(d.select_refusal(them, **measured, n_blocks=lm.layout.n_blocks).direction)

    def angular():
        b1, b2 = d.plane([d.mean_difference(acts, y, site=s) for s in acts.sites if s.point == "resid_post"])
        return lambda c: ll.Rotate(b1, b2, to=90 * math.exp(-c), site=site, **how)

    def trained():  # where it will be added: at the answer's beginning, or everywhere
        examples = list(concept.examples[:80])
        begins = ll.PerRow([answer_positions(row)[0] - 1 for row in lm.tokens(examples)])
        return add(ll.train_reft(lm, examples, site, where=begins if concept.act == "last_prompt" else "content"))

    def cold():
        them = concept.examples[:10], concept.prompts[:UNSCORED]
        return add(d.cold_direction(*ll.cold_states(lm, *them, site, rejected=concept.rejected[:10], where="last")))

    def kernel():
        return add(d.unit_kernel(ll.cold_gradients(lm, concept.examples[:10], site, rejected=concept.rejected[:10])))

    edit = d.concept_edit(acts, y, site=site, **how)
    fit("mean difference (CAA)", lambda: add(d.mean_difference(acts, y, site=site)))
    fit("mean-centring", centring)
    fit("PCA of pairs, uncentred", lambda: add(d.pair_component(yes, no, site=site)))
    fit("PCA of pairs, centred (trap)", lambda: add(d.pair_component(yes, no, site=site, centring="centred")))
    fit("LDA", lambda: add(d.lda(acts, y, site=site)))
    fit("affine concept edit (ACE)", lambda: lambda c: replace(edit, amount=c))
    fit("floor on the axis (capping)", lambda: lambda c: ll.Clamp(mean, low=c, unit="norm", **how))
    fit(
        "Linear-AcT",
        lambda: (lambda line: lambda c: replace(line, mix=c))(d.linear_transport(no, yes, site=site, **how)),
    )
    fit("angular", angular)
    fit("ITI, heads", inside_heads)
    if not quick:
        probe = {"groups": pair, "sites": site, "n_controls": 1, "n_bootstrap": 20}
        fit("probe normal", lambda: add(ll.probe.fit(acts, y, **probe).best().direction))
        fit("ActAdd, one pair", one_pair)
        fit("refusal-style selection", refusal_style)
        fit("ReFT-r1", trained)
        fit("COLD, finite difference", cold)
        fit("COLD, unit kernel", kernel)
    if sae is not None:
        codes = [lm.latents(sae, side, where=concept.read) for side in (concept.positive, concept.negative)]
        best = int(ll.latents.detectors(*map(ll.latents.pooled, codes)).auroc.argmax())
        vectors = torch.randn(4 * sae.d_in, sae.d_in, generator=torch.Generator().manual_seed(0))
        prompts, more = list(concept.prompts[:2]), {"max_new_tokens": 24, "where": concept.act}
        key = ["effects", acts.about["context_digest"], sae.fingerprint, prompts, more]
        effects = kept.tensor(key, lambda: ll.measure_effects(lm, sae, prompts, vectors, 1.0, **more))
        model = d.EffectFit(sae.site).update(vectors, effects).finish()
        fit("SAE decoder row", lambda: add(d.latent_direction(sae, best)))
        fit("SAE-TS", lambda: add(model.latent(best)))
        fit("FGAA", lambda: add(d.feature_guided(*codes, model, densest=0.5)))
    for i in range(5):
        fit("random direction", lambda i=i: add(mean.random_like(i)), "control", i)
    for i in range(3):
        rng = np.random.default_rng(i)
        fit(HALVES, lambda rng=rng: add(d.mean_difference(no, rng.permutation(n) < n // 2, site=site)), "control", i)
        fit(SHUFFLED, lambda rng=rng: add(d.mean_difference(acts, rng.permutation(y), site=site)), "control", i)
    return found, left_out


def plan_options(concept: ll.Concept) -> dict[str, Any]:
    return {"where": concept.act, "schedule": ll.Schedule(stop=concept.steps) if concept.steps else None}


def best_block(lm: ll.LensModel, concept: ll.Concept, blocks: Sequence[int], kept: KeptNumbers, **how: Any) -> int:
    """Where the mean difference scores best at the budget and at 1.4 times it, on the unscored prompts."""
    texts, y = [*concept.positive, *concept.negative], np.repeat([True, False], len(concept.positive))
    sites, more = [f"resid_post[{b}]" for b in blocks], plan_options(concept)
    acts = lm.activations(texts, sites=sites, where=concept.read, pool=concept.pool)
    vectors = [d.mean_difference(acts, y, site=site) for site in sites]
    tried = [SteeringArm(str(b), lambda c, v=v: ll.Add(v, c, unit="norm", **more)) for b, v in zip(blocks, vectors)]
    first = slice(0, UNSCORED)
    doses = dose_arms(lm, concept.prompts[first], tried, kept, budget)
    frame = scored_answers(lm, concept, first, tried, doses, (1, 1.41), kept=kept, **how)
    frame["harmonic"] = harmonic_mean(frame["score"], frame["task"], frame["fluency"])
    return int(frame[frame["role"] == "method"].groupby("method", sort=False)["harmonic"].mean().idxmax())


def trained_sae(lm: ll.LensModel, block: int, folder: Path) -> Any:
    """An SAE of the embedded model at the block; that of other weights is left alone."""
    weights = lm.activations(["the"], sites=f"resid_post[{block}]").about["context_digest"]
    place = folder / f"sae-{block}-{weights[:8]}"
    if not (place / "cfg.json").exists():
        texts = [t.messages() or t.text for f in ll.organism.families() for t in ll.organism.texts(f, 300, 21)]
        ll.train_sae(lm, texts, f"resid_post[{block}]", "topk", d_sae=512, k=16, tokens=300_000, out=str(place))
    return ll.load_sae(str(place))


def main(
    model: Annotated[str, typer.Option(help="hub id or folder; the embedded model by default")] = "",
    concepts: Annotated[str, typer.Option(help="a .json file; or names of the embedded model's: sea,formal,...")] = "",
    sae: Annotated[str, typer.Option(help="folder of an SAE; one is trained for the embedded model")] = "",
    judge: Annotated[str, typer.Option(help="model that answers rubrics; the steered one by default")] = "",
    block: Annotated[int, typer.Option(help="where to steer; -1: where the mean difference does best")] = -1,
    prompts: Annotated[int, typer.Option(help="prompts scored, for the embedded model")] = 24,
    temperature: float = 1.0,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="where answers and numbers are kept")] = Path("runs/method_bench"),
    quick: Annotated[bool, typer.Option(help="two concepts, 12 prompts, three strengths, the cheap methods")] = False,
) -> None:
    """Compare the methods and write a page."""
    torch.set_num_threads(1)
    lm, kept = ll.load(model or None, cache=ll.ActivationCache(folder / "cache")), KeptNumbers(folder / "numbers")
    if concepts.endswith(".json"):
        chosen = ll.read_concepts(concepts)
    elif model and not concepts:
        raise typer.BadParameter("--model needs --concepts FILE.json: the names are of the embedded model's")
    else:
        names = concepts.split(",") if concepts else DEFAULT[1:3] if quick else DEFAULT
        chosen = embedded(names, 60 if quick else 120, UNSCORED + (12 if quick else prompts), seed)
    factors, depth = (0.5, 1, 1.41) if quick else (0.5, 1, 1.41, 2), lm.layout.n_blocks
    blocks = sorted({round(b) for b in np.linspace(depth / 6, depth - 2, 3 if quick else 6)})
    how = {"seeds": [seed], "temperature": temperature, "folder": folder / "answers"}
    how["judge"] = ll.load(judge) if judge else None
    frames, spent, missing, seconds, slower = [], [], {}, {}, {}
    for concept in chosen:
        at = block if block >= 0 else best_block(lm, concept, blocks, kept, **how)
        used = ll.load_sae(sae) if sae else None if quick or model else trained_sae(lm, at, folder)
        found, left_out = arms(lm, concept, at, used, quick, kept)
        doses = dose_arms(lm, concept.prompts[:UNSCORED], found, kept, budget)
        rest = slice(UNSCORED, None)
        frames.append(scored_answers(lm, concept, rest, found, doses, factors, kept=kept, **how))
        slower = slower or time_arms(lm, concept.prompts[:16], found, doses, kept)
        for arm, dose in zip(found, doses, strict=True):
            spent.append({"concept": concept.name, "block": at, "method": arm.name, "draw": arm.draw, **vars(dose)})
            seconds.setdefault(arm.name, []).append(arm.seconds)
        for name, reason in left_out.items():
            missing.setdefault(name, {})[concept.name] = reason
        print(f"{concept!r}: block {at}, {len(found)} arms, {frames[-1].attrs['rows_run']} answers written")
    frame = pd.concat(frames, ignore_index=True)
    bench = ll.method_bench(
        frame, slowdown=slower, fit_seconds={name: float(np.mean(took)) for name, took in seconds.items()},
        left_out=missing, seed=seed, about={"model": repr(lm), "budget": "p95 of KL = 1 nat over 20 greedy tokens"},
    )  # fmt: skip
    shown = bench.table()[
        ["method", "harmonic mean", "concept", "above random", "off target", "nats a token", "time a token"]
    ]
    note = f"* control; at least {min(s.concept.n for s in bench.scores)} answers a row; 95% intervals; scores 0 to 2"
    print_table("steering methods, best harmonic mean first", list(shown), shown.values.tolist(), note=note)
    for name, reasons in missing.items():
        print(f"left out: {name} ({'; '.join(f'{k}: {v}' for k, v in reasons.items())})")
    first, columns = frame[(frame["prompt"] == 0) & (frame["draw"] == 0)], ["concept", "method", "factor", "text"]
    columns += ["score", "task", "fluency", "mean nll"]
    even = first[first["factor"] == 1]
    own = [bench[m].factors[c] == f for m, c, f in zip(first["method"], first["concept"], first["factor"])]
    best = next(one for one in bench.scores if one.role == "method")
    page = ll.report(
        folder / "method_bench.html",
        title="Steering methods at the same KL",
        question="Which steering methods work, at the same KL to the unsteered model, and at what price?",
        method="\n\n".join(" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[2:]),
        sources=["AxBench, arXiv 2501.17148", "steering-lite, github.com/wassname/steering-lite", "docs/directions.md"],
        highlights={f"harmonic mean, {best.method}": best.harmonic, "random": bench["random direction"].harmonic},
        sections=[
            ll.Section("Methods", [ll.plots.method_bench(bench), bench]),
            ll.Section("By concept, at the budget", [bench.by_concept()]),
            ll.Section("Written at the budget, first prompt", [even[columns].reset_index(drop=True)]),
            ll.Section("Written at the strength chosen, first prompt", [first[own][columns].reset_index(drop=True)]),
            ll.Section("Strengths", [ll.Captioned(pd.DataFrame(spent), "coeff spends the KL; 1 nat was asked for.")]),
            ll.Section("Left out", [f"{k}: {c}: {v}" for k, of in missing.items() for c, v in of.items()]),
        ],
        manifest=ll.manifest(lm, seed=seed, temperature=temperature, factors=factors),
    )  # fmt: skip
    print(f"{kept.made} measured, {kept.found} taken from {folder}; page: {page}")


if __name__ == "__main__":
    typer.run(main)
