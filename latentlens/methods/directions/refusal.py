"""Which of many mean differences mediates refusal: candidates, the score, and the choice.

acts = lm.activations(prompts, sites="resid_post[*]", where="last-5")        # the tokens after the instruction
found = refusal_candidates(acts, harmful)                                    # a direction a position and block
measured = ll.measure_refusal(lm, found, harmful_val, harmless_val, tokens)  # runs the model
choice = select_refusal(found, **measured, n_blocks=lm.layout.n_blocks)
lm.generate(prompts, steer=ll.ProjectOut(choice.direction, site=["resid_pre[*]", "attn_out[*]", "mlp_out[*]"]))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.directions.means import MeanDifference
from latentlens.values.activations import Activations
from latentlens.values.direction_choice import Candidate, DirectionChoice
from latentlens.values.directions import Direction
from latentlens.values.sites import Site
from latentlens.values.state_rows import row_labels


class RefusalMeans:
    """Fitter of `refusal_candidates`: keeps a sum for every class, site and position, and no row."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Site, int], MeanDifference] = {}

    def update(self, acts: Activations, harmful: Any) -> Self:
        """Take the last positions of some texts; one piece may hold one class only.

        Raises: BadInput: texts with different numbers of rows, other sites or positions than before; labels.
        """
        if "text" not in acts.labels:
            raise BadInput("activations without the label 'text': take them from lm.activations(..., where='last-5')")
        texts, counts = np.unique(acts.labels["text"], return_counts=True)
        if len(set(counts.tolist())) > 1:
            raise BadInput(
                f"texts have {counts.min()} to {counts.max()} positions: capture the same last ones of each, "
                "where='last-5'"
            )
        given = harmful.tolist() if hasattr(harmful, "tolist") else list(harmful)
        if len(given) == len(texts) != len(acts):
            place = {text: i for i, text in enumerate(texts.tolist())}
            given = [given[place[text]] for text in acts.labels["text"].tolist()]
        labels = np.array([bool(label) for label in row_labels(given, len(acts))])
        if not len(acts):
            return self
        order = np.lexsort((acts.labels["position"], acts.labels["text"])).reshape(len(texts), -1)
        places = [(site, offset) for site in acts.sites for offset in range(1, order.shape[1] + 1)]
        if self._seen and list(self._seen) != places:
            raise BadInput(f"{len(places)} sites and positions after {len(self._seen)}: give the same every time")
        for site, offset in places:
            rows = order[:, -offset]
            seen = self._seen.setdefault((site, offset), MeanDifference(site, name=f"refusal at {-offset}"))
            seen.update(acts.rows(rows), labels[rows])
        return self

    def finish(self) -> list[Direction]:
        """A direction for every site and position, of all texts taken so far.

        Raises: TooFewExamples: no texts, or one class. BadInput: no difference somewhere.
        """
        if not self._seen:
            raise TooFewExamples("no texts were taken: call update(acts, harmful) first")
        found = []
        for (_, offset), seen in self._seen.items():
            one = seen.finish()
            source = {**one.source, "method": "refusal candidate", "offset": -offset}
            found.append(Direction(one.vector, one.site, one.name, one.frame, source))
        return found


def refusal_candidates(acts: Activations, harmful: Any) -> list[Direction]:
    """A mean difference (harmful minus harmless) for every site and every position counted from the end.

    Args:
        acts: activations with `where="last-k"`: k rows a text, the tokens after the instruction.
        harmful: (n_texts,) bool, by text, or one label a row.
    Returns: directions in the order sites x positions, the last position first; `source` has "offset" (-1 is the last
        token). Means are float64.
    Raises: BadInput: texts with different numbers of rows; labels. TooFewExamples: one class.
    Source: Arditi et al. (arXiv 2406.11717), section 2.3.
    """
    return RefusalMeans().update(acts, harmful).finish()


def select_refusal(
    candidates: Sequence[Direction],
    ablation: ArrayLike,
    kl: ArrayLike,
    induce: ArrayLike,
    *,
    n_blocks: int,
    max_kl: float = 0.1,
    min_induce: float = 0.0,
    deepest: float = 0.8,
) -> DirectionChoice:
    """The candidate whose ablation lowers the refusal score most, of those that harm little and work both ways.

        minimise   mean score of harmful prompts under ablation
        subject to mean KL on harmless prompts <= max_kl,  mean score under addition >= min_induce,
                   block < deepest * n_blocks

    Args:
        candidates: directions, each with its own site.
        ablation, kl, induce: a number a candidate, as `ll.measure_refusal` returns them. NaN is left out.
        n_blocks: of the model.
        max_kl, min_induce, deepest: the constraints; the last fifth of the blocks is left out because directions there
            block the words of a refusal and not the decision.

    Returns: DirectionChoice; of equals the first.
    Raises: BadInput: lengths differ. TooFewExamples: no candidate passes; the message counts why.
    Source: Arditi et al. (arXiv 2406.11717), appendix C; github.com/andyrdt/refusal_direction.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (ablation, kl, induce)]
    if not candidates or any(column.shape != (len(candidates),) for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise BadInput(f"{len(candidates)} candidates with ablation, kl, induce of shapes {shapes}: one number each")
    limits = {"max_kl": max_kl, "min_induce": min_induce, "deepest": deepest, "n_blocks": n_blocks}
    judged = []
    for direction, a, k, i in zip(candidates, *columns, strict=True):
        block = direction.site.block
        if not all(map(math.isfinite, (a, k, i))):
            why = "not a number"
        elif block is not None and block >= deepest * n_blocks:
            why = f"at or behind block {deepest * n_blocks:g}"
        elif k > max_kl:
            why = f"KL above {max_kl:g}"
        elif i < min_induce:
            why = f"induces less than {min_induce:g}"
        else:
            why = ""
        judged.append(Candidate(direction, float(a), float(k), float(i), why))
    kept = [one for one in judged if not one.rejected]
    if not kept:
        reasons = [one.rejected for one in judged]
        counts = "; ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        raise TooFewExamples(f"none of {len(judged)} candidates passes ({counts}): loosen what rejects most")
    return DirectionChoice(min(kept, key=lambda one: one.ablation).direction, tuple(judged), limits)
