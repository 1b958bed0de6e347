"""Neurons that write towards a token: attribution, how it depends on the wording, and the perturbation of one.

    c_i = a_i (W_down[i] . u_t)     a_i: activation of neuron i, W_down[i]: what it writes, u_t: unembedding of token t

    found = neurons.attribution(acts, token_writes(lm, [token]))     acts at mlp_post, one row a prompt
    lm.generate(prompts, steer=found.plan(2.0))                      scales the neuron, and so its row of W_down
    neurons.agreement({"write": found_a, "show": found_b})           brittleness: the same neurons in another wording?

Source: the static attribution that G-ACT compares with (arXiv 2506.18887); it perturbs the neuron that adds most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction
from latentlens.values.markup import Shown
from latentlens.values.operations import Scale
from latentlens.values.sites import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class NeuronAttribution(Shown):
    """Contributions of every neuron to a token.

    sites: at mlp_post. mean: per site (neurons,), over the prompts. top: per prompt the neuron of the largest |c| as
    (place in sites, neuron).
    """

    sites: tuple[Site, ...]
    mean: tuple[Tensor, ...]
    top: tuple[tuple[int, int], ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def ranked(self, n: int = 10) -> list[tuple[int, int, float]]:
        """(place, neuron, mean contribution) of the n largest mean contributions by size; of equals the earlier."""
        flat = torch.cat(list(self.mean))
        starts = np.cumsum([0, *(len(m) for m in self.mean)])
        order = torch.argsort(flat.abs(), descending=True, stable=True)[:n].tolist()
        places = [int(np.searchsorted(starts, i, side="right")) - 1 for i in order]
        return [(place, i - int(starts[place]), float(flat[i])) for place, i in zip(places, order)]

    def plan(self, strength: float = 1.0, n: int = 1, **options: Any) -> list[Scale]:
        """Scale the n neurons that contribute most: a_i times 1 + s for those that write towards the token, 1 - s else.

        Scaling the activation is scaling the neuron's row of the down projection, for the tokens selected.

        Args: options: `where`, `schedule`.
        """
        found = []
        for place, neuron, value in self.ranked(n):
            unit = torch.zeros(len(self.mean[place]))
            unit[neuron] = 1.0
            name = f"neuron {neuron}"
            factor = 1 + strength if value > 0 else 1 - strength
            found.append(Scale(Direction(unit, self.sites[place], name, "raw", dict(self.about)), factor, **options))
        return found

    def to_frame(self) -> pd.DataFrame:
        """The ten largest: site, neuron, mean contribution, share of prompts in which it is the largest."""
        import pandas as pd

        first = {one: self.top.count(one) / len(self.top) for one in set(self.top)}
        rows = [[str(self.sites[p]), i, c, first.get((p, i), 0.0)] for p, i, c in self.ranked()]
        return pd.DataFrame(rows, columns=["site", "neuron", "mean contribution", "largest in"])

    def __repr__(self) -> str:
        place, neuron, value = self.ranked(1)[0]
        share = self.top.count((place, neuron)) / len(self.top)
        return (
            f"NeuronAttribution({sum(map(len, self.mean))} neurons; largest: {neuron} at {self.sites[place]}, mean "
            f"contribution {value:+.3g}, the largest in {share:.0%} of {len(self.top)} prompts)"
        )


def attribution(
    acts: Activations, writes: Mapping[Site, Tensor], token: int = 0, *, against: Sequence[int] = ()
) -> NeuronAttribution:
    """Contributions of every neuron to one token's logit, straight through the unembedding.

    Args:
        acts: at mlp_post sites, one row a prompt.
        writes: from `token_writes`, rows of tokens.
        token: which row.
        against: rows whose mean is subtracted: contributions to the token rather than to these. Without it, a neuron
            that raises all of them alike comes first.
    Raises: BadInput: a site that `writes` lacks, or of another width. TooFewExamples: no prompt.
    """
    if not len(acts):
        raise TooFewExamples("attribution needs one prompt at least")
    mean, best, about = [], [], {"method": "neuron attribution", "token": token, "against": list(against)}
    for site in acts.sites:
        if site not in writes or writes[site].shape[-1] != acts[site].shape[-1]:
            raise BadInput(
                f"writes has nothing for the {acts[site].shape[-1]} neurons at {site}: token_writes(lm, [id])"
            )
        towards = writes[site][token].float()
        towards = towards - writes[site][list(against)].float().mean(0) if len(against) else towards
        found = acts[site].float() * towards
        mean.append(found.mean(0))
        best.append(found.abs().max(dim=1))
    sizes, which = torch.stack([b.values for b in best]), torch.stack([b.indices for b in best])
    place = sizes.argmax(0)
    top = tuple((int(p), int(which[p, i])) for i, p in enumerate(place))
    return NeuronAttribution(acts.sites, tuple(mean), top, about)


def agreement(found: Mapping[str, NeuronAttribution], n: int = 10) -> pd.DataFrame:
    """How alike the attributions of several wordings of the same prompts are, a row a pair.

    Returns: columns one, other, `same top neuron` (share of prompts), `overlap of the n largest` (Jaccard index of the
        means), `rank of one's best in other`.
    Raises: TooFewExamples: fewer than two wordings. BadInput: other prompts or sites.
    """
    import pandas as pd

    names = list(found)
    if len(names) < 2:
        raise TooFewExamples(f"{len(names)} wording: agreement compares two at least")
    rows = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = found[one], found[other]
            if a.sites != b.sites or len(a.top) != len(b.top):
                raise BadInput(f"{one} and {other} hold other sites, or {len(a.top)} and {len(b.top)} prompts")
            mine, theirs = ([(p, i) for p, i, _ in x.ranked(n)] for x in (a, b))
            every = [(p, i) for p, i, _ in b.ranked(sum(map(len, b.mean)))]
            same = float(np.mean([x == y for x, y in zip(a.top, b.top)]))
            overlap = len(set(mine) & set(theirs)) / len(set(mine) | set(theirs))
            rows.append([one, other, same, overlap, every.index(mine[0]) + 1])
    columns = ["one", "other", "same top neuron", f"overlap of the {n} largest", "rank of one's best in other"]
    return pd.DataFrame(rows, columns=columns)
