"""Activation patching: run one prompt with parts of its state as they were in another, many parts in one batch.

runs = patch(lm, mediators, clean, corrupt, metric)                  -> Patched: the metric of every run
found = indirect_effect(lm, direction, clean, corrupt, metric)       -> Mediation: effects, intervals, controls

Every (pair of prompts, mediator) is one row with a plan of its own, so that a map of a hundred places costs about as
much as reading a hundred prompts. Values are kept in the activation cache, under what was run and what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.access.patching.answer_metric import Kept, Metric, Tally, measure, read_metric
from latentlens.access.patching.gradients import mean_slopes
from latentlens.access.patching.mediators import Joint, joints
from latentlens.access.patching.patch_pairs import Carried, Pairs, Spot, States, sites_of, strangers
from latentlens.access.progress import Progress
from latentlens.errors import BadInput
from latentlens.maths.attribution import Rule, nodes
from latentlens.values.alignment import alignments
from latentlens.values.interventions import Intervention
from latentlens.values.mediation import Mediation, Method, Mode, Patched, check_how
from latentlens.values.mediators import Mediator, attributed, decoded_change, shares
from latentlens.values.replacements import AddAt
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel


@torch.inference_mode(False)  # inside an inference mode nothing could be differentiated
def patch(
    lm: LensModel,
    mediators: Any,
    clean: Any,
    corrupt: Any,
    metric: Any,
    *,
    mode: Mode = "denoising",
    method: Method = "patching",
    align: Any = None,
    direct: bool = False,
    controls: bool = True,
    unrelated: Any = None,
    groups: Sequence[Any] | None = None,
    steps: int = 10,
    rule: Rule = "midpoint",
    seed: int = 0,
    cached: bool = True,
) -> Patched:
    """The metric of every prompt, untouched and with each mediator as it is in the other prompt of its pair.

    Args:
        mediators: a site ("resid_post[*]" is one mediator a block), a Direction, a probe (of several sites or classes:
            one mediator each), (sae, latent), an `ll.Mediator`, a list of these, or {name: one}. A list inside, and a
            pattern under a name, are swapped together.
        clean, corrupt: prompts in pairs, as for `lm.activations`.
        metric: `ll.LogitDifference(right, wrong)`, a pair (right, wrong) of tokens, or a function from the logits of
            the last position (n, vocab) to (n,). A function's values are not kept in the cache, unless it has a
            `fingerprint`.
        mode: "denoising": the corrupt prompt is run with values of the clean one. "noising": the other way round.
        method: "patching", or one of two approximations that need one pass with gradients for all mediators
            ("attribution") or `steps` of them for each site ("integrated gradients": the path moves the whole site, or
            all latents of an SAE, at all positions, so that attributions add up to the effect of patching all of it).
        align: which token corresponds to which where lengths differ: "left", "right", or for each pair a list of
            (position in the edited prompt, position in the other).
        direct: also run the source prompts with each mediator as in the base, for natural direct effects.
        controls: also swap in the states of a prompt that has nothing to do with the pair, and add random vectors of
            the norm of each change. With integrated gradients only the latter, by the mean gradient of the same path:
            another prompt lies at the end of another path.
        unrelated: prompts to take the first control from. By default those of other pairs in the condition of the
            prompt that is edited: what is left of an effect is then the replacement itself.
        groups: one a pair; an unrelated prompt comes from another group.
        steps, rule: of integrated gradients.
        seed: of the controls.
        cached: False neither reads nor writes the cache.

    Raises: NotAligned: lengths differ and nothing says which tokens correspond, or a mediator's position has no
        counterpart. BadInput, SiteNotFound, WhereNotValid, NonFiniteActivations, OutOfMemory.
    Source: denoising and noising: Heimersheim and Nanda (arXiv 2404.15255). Attribution patching: Nanda (2023); Syed et
        al. (arXiv 2310.10348). Integrated gradients on a site: Marks et al. (arXiv 2403.19647).
    """
    wanted = joints(lm, mediators)
    check_how(mode, method)
    if direct and method != "patching":
        raise BadInput(f"direct effects need patching: {method} estimates indirect effects only")
    one, two = lm.tokens(clean), lm.tokens(corrupt)
    if len(one) != len(two):
        raise BadInput(f"{len(one)} clean and {len(two)} corrupt prompts: they go in pairs")
    if groups is not None and len(groups) != len(one):
        raise BadInput(f"{len(groups)} groups for {len(one)} pairs of prompts: one each")
    base, source = (two, one) if mode == "denoising" else (one, two)
    others = None
    if controls and method != "integrated gradients":
        pool = None if unrelated is None else lm.tokens(unrelated)
        others = strangers(base, source, pool, align, groups, seed)
    pairs = Pairs(base, source, alignments(base, source, align), others)
    measured = read_metric(lm, metric, len(base))
    job = _Job(lm, wanted, pairs, pairs.spots(wanted), measured, direct, controls, seed, cached)
    points = [0.0] if method == "attribution" else nodes(steps, rule).tolist()
    with Kept(lm, cached) as kept, Progress("patch", job.tokens(method, points), "tok") as bar:
        for chunk in pairs.chunks(job.rows_each, lm.token_budget):
            if method == "patching":
                job.run(chunk, kept, bar)
            else:
                job.attribute(chunk, points, kept, bar)
    about = {
        "model": lm.name, "context_digest": kept.key, "align": align if isinstance(align, str) else bool(align),
        "seed": seed, "forwards": job.tally.forwards, "computed_rows": job.tally.computed_rows,
        "cached_rows": job.tally.cached_rows,
    }  # fmt: skip
    if method == "integrated gradients":
        about |= {"steps": steps, "rule": rule}
    if others is not None:
        about["pairs without an unrelated prompt"] = sum(s is None for s in others)
    ran = {"reversed": direct, "unrelated": others is not None, "random": controls}
    more = {name: job.tables[name] for name, used in ran.items() if used}
    names, parts = tuple(j.name for j in wanted), tuple(j.parts for j in wanted)
    at_base, at_source = job.ends.T
    return Patched(at_base, at_source, job.tables["patched"], names, parts, mode, method, **more, about=about)


def indirect_effect(
    lm: LensModel,
    mediators: Any,
    clean: Any,
    corrupt: Any,
    metric: Any,
    *,
    groups: Sequence[Any] | None = None,
    least: float | None = None,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Mediation:
    """What a direction, latent, probe, head, neuron or site carries of the effect of one prompt against another.

    Args:
        mediators, clean, corrupt, metric, options: as for `patch`.
        groups, least, n_bootstrap, level, seed: as for `methods.mediation.effects`.
    """
    runs = patch(lm, mediators, clean, corrupt, metric, groups=groups, seed=seed, **options)
    return Mediation.of(runs, groups=groups, least=least, n_bootstrap=n_bootstrap, seed=seed, level=level)


# -- running ---------------------------------------------------------------------------------------


@dataclass
class _Job:
    """One patching run, carried out a few pairs at a time; fills `ends` (base, source) and the tables."""

    lm: LensModel
    wanted: Sequence[Joint]
    pairs: Pairs
    spots: list[list[list[Spot]]]
    metric: Metric
    direct: bool
    controls: bool
    seed: int
    cached: bool
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        shape = (len(self.pairs), len(self.wanted))
        self.ends = np.full((len(self.pairs), 2), np.nan)
        self.tables = {name: np.full(shape, np.nan) for name in ("patched", "reversed", "unrelated", "random")}
        parts = [part for joint in self.wanted for part in joint.parts]
        self.paths = {_path_of(part): part for part in parts}  # what integrated gradients move

    @property
    def rows_each(self) -> int:
        """Rows that one pair makes."""
        controls = 2 if self.pairs.strangers is not None else 0
        return 2 + len(self.wanted) * (1 + self.direct + controls)

    def tokens(self, method: Method, points: list[float]) -> int:
        """Tokens to run, for the progress bar."""
        passes = {"attribution": 1, "integrated gradients": len(points) * len(self.paths)}
        rows = 2 + passes[method] if method in passes else self.rows_each
        return sum(len(row) for row in self.pairs.base) * rows

    def run(self, chunk: list[int], kept: Kept, bar: Progress) -> None:
        """Patch: every mediator and control of some pairs."""
        states = Carried.of(self.lm, self.pairs, self.spots, chunk, self.cached, self.tally)
        rows: list[TokenRow] = []
        plans: list[list[Intervention] | None] = []
        target: list[tuple[np.ndarray, int, int]] = []

        def add(row: TokenRow, plan: list[Intervention], table: np.ndarray, i: int, j: int) -> None:
            rows.append(row)
            plans.append(plan or None)
            target.append((table, i, j))

        for k, i in enumerate(chunk):
            base, source = self.pairs.base[i], self.pairs.source[i]
            add(base, [], self.ends, i, 0)
            add(source, [], self.ends, i, 1)
            for j, spots in enumerate(self.spots[i]):
                taken = [s.part.swap(states.source(k, s.part.site, s.source), s.base) for s in spots]
                add(base, taken, self.tables["patched"], i, j)
                if self.direct:
                    given = [s.part.swap(states.base(k, s.part.site, s.base), s.source) for s in spots]
                    add(source, given, self.tables["reversed"], i, j)
                if self.pairs.strangers is None:
                    continue
                noise = [
                    s.part.random_swap(
                        states.base(k, s.part.site, s.base), states.source(k, s.part.site, s.source), s.base,
                        self._seed(i, j, n),
                    )
                    for n, s in enumerate(spots)
                ]  # fmt: skip
                add(base, [item for item in noise if item is not None], self.tables["random"], i, j)
                known = [(s, s.strange) for s in spots if s.strange is not None]
                if len(known) == len(spots):
                    other = [s.part.swap(states.strange(k, s.part.site, at), s.base) for s, at in known]
                    add(base, other, self.tables["unrelated"], i, j)
        _, ready = self.lm._steered(plans, len(rows))
        items = [i for _, i, _ in target]
        values = measure(self.lm, rows, ready, self.metric, items, kept, self.tally, bar.update)
        for (table, i, j), value in zip(target, values, strict=True):
            table[i, j] = value

    def attribute(self, chunk: list[int], points: list[float], kept: Kept, bar: Progress) -> None:
        """Approximate: base plus (mean gradient over the points of a path) . (change that patching would make)."""
        base, along = [self.pairs.base[i] for i in chunk], points != [0.0]
        rows = [*base, *(self.pairs.source[i] for i in chunk)]
        _, plain = self.lm._steered([None] * len(rows), len(rows))
        values = measure(self.lm, rows, plain, self.metric, [*chunk, *chunk], kept, self.tally, bar.update)
        self.ends[chunk] = values.reshape(2, -1).T
        states = Carried.of(self.lm, self.pairs, self.spots, chunk, self.cached, self.tally, whole=along)

        def gradients(lines: list[list[Any]], sites: list[Site]) -> list[dict[Site, Tensor]]:
            flat = [None if point is None else [point] for line in lines for point in line]
            _, ready = self.lm._steered(flat, len(flat))
            cuts = np.cumsum([0, *map(len, lines)])
            paths = [ready[a:b] for a, b in pairwise(cuts)]
            return mean_slopes(self.lm, base, paths, sites, self.metric, chunk, kept, self.tally, bar.update)

        if along:
            found = {
                key: gradients([self._line(states, k, i, part, points) for k, i in enumerate(chunk)], [part.site])
                for key, part in self.paths.items()
            }
        else:
            once = gradients([[None] for _ in chunk], sites_of(self.spots[chunk[0]]))
            found = dict.fromkeys(self.paths, once)
        for k, i in enumerate(chunk):
            known: dict[Any, Tensor] = {}  # what heads, neurons or latents of one place share

            def moved(s: Spot, there: States, at: tuple[int, ...], k: int = k, known: dict = known) -> float:
                part, path = s.part, _path_of(s.part)
                here, slope = states.base(k, part.site, s.base), found[path][k][part.site][list(s.base)]
                if part.directions:
                    return _dot(slope, part.change(here, there(k, part.site, at)))
                key = (path, s.base, id(there))
                if key not in known:
                    known[key] = shares(part, here, there(k, part.site, at), slope)
                return attributed(part, known[key])

            def by_chance(s: Spot, seed: int, k: int = k) -> float:
                part, slope = s.part, found[_path_of(s.part)][k][s.part.site][list(s.base)]
                change = part.change(states.base(k, part.site, s.base), states.source(k, part.site, s.source))
                return _dot(slope, part.random_change(change, torch.Generator().manual_seed(seed)))

            for j, spots in enumerate(self.spots[i]):
                start = self.ends[i, 0]
                self.tables["patched"][i, j] = start + sum(moved(s, states.source, s.source) for s in spots)
                if self.controls:
                    noise = [by_chance(s, self._seed(i, j, n)) for n, s in enumerate(spots)]
                    self.tables["random"][i, j] = start + sum(noise)
                if self.pairs.strangers is None:
                    continue
                strange = [(s, s.strange) for s in spots if s.strange is not None]
                if len(strange) == len(spots):
                    self.tables["unrelated"][i, j] = start + sum(moved(s, states.strange, at) for s, at in strange)

    def _line(self, states: Carried, k: int, i: int, part: Mediator, points: list[float]) -> list[Intervention | None]:
        """Points on the way from the base to the source, at all aligned positions of a site."""
        positions, site = sorted(self.pairs.maps[i]), part.site
        start = states.base(k, site, positions)
        end = states.source(k, site, [self.pairs.maps[i][p] for p in positions])
        change = end - start if part.sae is None else decoded_change(part.sae, start, end)
        return [AddAt(change, t, site=site, where=positions) if t else None for t in points]

    def _seed(self, i: int, j: int, part: int) -> int:
        return int(np.random.SeedSequence([self.seed, i, j, part]).generate_state(1)[0])


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _path_of(part: Mediator) -> Any:
    return (part.site, part.sae.fingerprint if part.sae is not None else "")
