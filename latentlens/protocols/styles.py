"""G-ACT and its rivals fitted to every style that a list of tasks can be answered in.

fits, tables = fit_styles(ask, tasks, tokens)                     clusters, heads and neurons, from the states alone
fits, scores = refine(ask, fits, stream, testing)                 probes taught by judged answers
plans = fits["Julia"].arms(sites=4, where="last_prompt")          from a strength to the plan that has it, by arm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from latentlens.access.measures.style_runs import StyledTasks
from latentlens.access.measures.writes import token_writes
from latentlens.errors import BadInput
from latentlens.methods import act, gact, neurons
from latentlens.methods.neurons import NeuronAttribution
from latentlens.values.act_heads import ActHeads
from latentlens.values.activations import Activations
from latentlens.values.gact import ClusterSteering

if TYPE_CHECKING:
    import pandas as pd

_SITES = ("resid_post[*]", "z[*]", "mlp_post[*]")
#: ACT and neurons are tried at so many times the strength of the vectors: their own unit is smaller.
_LONGER = 10


@dataclass(frozen=True, eq=False)
class StyleFit:
    """What was fitted for one target style.

    clusters: with probes fitted on states alone. online: the same with refined probes. heads: of ACT. neuron: that
    writes most towards the style's token; against: most towards it rather than towards the other styles' tokens.
    """

    clusters: ClusterSteering
    heads: ActHeads
    neuron: NeuronAttribution
    against: NeuronAttribution
    online: ClusterSteering

    def arms(self, sites: int = 4, where: Any = "last_prompt+response") -> dict[str, Callable[[float], Any]]:
        """From a strength to the plan that has it, by arm; strengths of an arm mean nothing for another."""
        one, wrong = self.online, np.roll(range(self.online.k), 1).tolist()
        return {
            "G-ACT": lambda c: one.plan(c, sites, where=where),
            "G-ACT, soft": lambda c: one.plan(c, sites, soft=True, where=where),
            "G-ACT, permuted": lambda c: one.plan(c, sites, where=where, order=wrong),
            "mean difference": lambda c: one.mean_plan(c, sites, where=where),
            "ACT heads": lambda c: self.heads.plan(_LONGER * c, where=where),
            "neuron": lambda c: self.neuron.plan(_LONGER * c, where=where),
            "neuron, contrast": lambda c: self.against.plan(_LONGER * c, where=where),
        }

    def random(self, strength: float, draws: int = 3, sites: int = 4, where: Any = "last_prompt+response") -> dict:
        """Plans of random directions as long as the mean difference at a strength, by arm."""
        return {f"random {i}": self.online.mean_plan(strength, sites, where=where, random=i) for i in range(draws)}


def contrast(states: Mapping[str, Activations], target: str) -> Tensor:
    """Differences of a style to the mean of all others, (sites, prompts, d): `gact.differences` by name.

    Raises: BadInput: no such style.
    """
    if target not in states:
        raise BadInput(f"no states of {target!r}; there are {', '.join(states)}")
    return gact.differences(states[target], [acts for style, acts in states.items() if style != target])


def fit_styles(
    ask: StyledTasks, tasks: Sequence[str], tokens: Sequence[int], *, k: int = 3, seed: int = 42
) -> tuple[dict[str, StyleFit], pd.DataFrame, pd.DataFrame]:
    """Clusters with probes, ACT's heads and two neurons, for every style as the target.

    Args: tokens: one a style, by which its answers are told (`ask.telling_tokens`). k: clusters. seed: of all of it.
    Returns: fits by style; a table of how stable clusters are and how well heads read; a table of how brittle the
        choice of a neuron is under another wording of the same tasks.
    Raises: what `lm.activations`, `gact.fit` and `act.fit` raise.
    """
    import pandas as pd

    opened, named = ask.states(tasks, sites=_SITES), {s: ask.states(tasks, s, sites=_SITES) for s in ask.styles}
    wordings = {w[0]: ask.states(tasks, None, i, _SITES)["mlp_post"] for i, w in enumerate(ask.wordings)}
    writes, found, stable, brittle = token_writes(ask.lm, tokens), {}, [], []
    for i, target in enumerate(ask.styles):
        others = [j for j in range(len(ask.styles)) if j != i]
        d = contrast({s: acts["resid_post"] for s, acts in named.items()}, target)
        clusters = gact.fit(opened["resid_post"], d, k=k, heads=opened["z"], seed=seed)
        heads = act.fit(named[target]["z"], [named[ask.styles[j]]["z"] for j in others], k=k, seed=seed)
        neuron, against = (neurons.attribution(opened["mlp_post"], writes, i, against=b) for b in ((), others))
        found[target] = StyleFit(clusters, heads, neuron, against, clusters)
        again = gact.stability(d, clusters.k, seed=seed)
        stable.append({
            "target": target, "prompts": "+".join(map(str, clusters.sizes)),
            "lowest cosine to the mean": float(clusters.cosines().min()), "Rand, other seeds": again.seeds,
            "Rand, other prompts": again.samples, "matched cosine": again.matched, "ACT accuracy": heads.accuracy,
            "without signal": heads.control,
        })  # fmt: skip
        each = {name: neurons.attribution(acts, writes, i, against=others) for name, acts in wordings.items()}
        top = [f"{one.sites[place]} {neuron}" for one in (neuron, against) for place, neuron, _ in one.ranked(1)]
        worded = neurons.agreement(each).iloc[0, 2:].to_dict() if len(each) > 1 else {}
        brittle.append({"target": target, "largest neuron": top[0], "against the others": top[1], **worded})
    return found, pd.DataFrame(stable), pd.DataFrame(brittle)


def refine(
    ask: StyledTasks, found: Mapping[str, StyleFit], stream: Sequence[str], testing: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, StyleFit], pd.DataFrame]:
    """Probes taught by judged answers to prompts that name the style, and their scores on prompts they never saw.

    Beside the refined probes stand those that begin from nothing, and those taught shuffled clusters.

    Args: stream: tasks whose answers teach, one after another. testing: tasks of the scores. seed: of the answers and
        the shuffle.
    Returns: the fits with refined probes in `online`; a table, mean of the sites and the worst of them.
    """
    import pandas as pd

    shown, held = ask.states(stream)["resid_post"].stack(), ask.states(testing)["resid_post"]
    stream_of, test_of = ({s: ask.states(t, s)["resid_post"] for s in ask.styles} for t in (stream, testing))
    judged = {s: ask.answers(stream, {"asked": None}, [seed], style=s)["asked"].style for s in ask.styles}
    online, rows, order = {}, [], np.random.default_rng(seed).permutation(len(stream))
    for target, one in found.items():
        d, truth = contrast(stream_of, target), one.clusters.nearest(contrast(test_of, target))
        blank = gact.forgotten(one.clusters)
        starts = {
            "refined": (one.clusters, d), "refined from nothing": (blank, d), "clusters shuffled": (blank, d[:, order])
        }  # fmt: skip
        made = {name: gact.taught(start, shown, of, judged[target], target) for name, (start, of) in starts.items()}
        online[target], row = replace(one, online=made["refined"]), {"target": target}
        for name, steering in {"fitted": one.clusters, **made}.items():
            f1 = [score for _, score in gact.evaluate(steering, held, truth)]
            row[name] = f"{np.mean([e.value for e in f1]):.3f}, worst {min(f1, key=lambda e: e.value).short}"
        seen = made["refined"].about["refinement"]
        rows.append({**row, "taught / refused / unknown": f"{seen.learnt} / {seen.refused} / {seen.unknown}"})
    return online, pd.DataFrame(rows)
