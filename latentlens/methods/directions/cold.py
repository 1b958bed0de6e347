"""COLD-Steer: the change of states that one step of gradient descent would make, without making it.

    theta' = theta + eps grad L(theta)           L: loss of a few examples
    z' = z - eta (z(theta') - z(theta)) / eps    a directional derivative, by two forwards

`ll.cold_states(lm, examples, prompts, ...)` runs both; here the states become a direction or an edit:
`cold_direction(*ll.cold_states(lm, examples, prompts, site))`.
"""

from __future__ import annotations

from typing import Any

from latentlens.errors import BadInput, TooFewExamples
from latentlens.values.directions import Direction
from latentlens.values.replacements import AddAt
from latentlens.values.sites import Site
from latentlens.values.state_rows import StateRows, same_site, state_rows


def cold_changes(plain: Any, moved: Any, eps: float, *, site: Site | str | None = None) -> StateRows:
    """Minus the derivative of the states along the gradient of the loss, row by row.

        -(z(theta + eps g) - z(theta)) / eps

    Args: plain, moved: Activations, or rows (n, d), of the same tokens. eps: the step between them.
    Raises: BadInput: eps, or rows that do not correspond. NonFiniteActivations.
    """
    if not (eps > 0 and eps < float("inf")):
        raise BadInput(f"eps={eps}: the step between the two models is positive")
    a, b = (state_rows(x, site) for x in (plain, moved))
    place = same_site(a, b)
    if len(a) != len(b):
        raise BadInput(f"{len(a)} plain and {len(b)} moved rows: they must be the same tokens")
    return StateRows(-(b.values - a.values) / eps, place, a.model)


def cold_edit(
    plain: Any, moved: Any, *, eta: float, eps: float, site: Site | str | None = None, **options: Any
) -> AddAt:
    """The edit of ONE prompt, position by position.

        z_t' = z_t - eta (z_t(theta + eps g) - z_t) / eps

    >>> import torch
    >>> edit = cold_edit([[2.0]], [[1.88]], eta=0.1, eps=0.01, site="resid_post[0]")  # z = w x, L = (z - 5)^2 / 2
    >>> round(edit.edit(torch.tensor([[2.0]])).item(), 4)
    3.2

    Args: plain, moved: states of the prompt's positions from the front, (t, d). eta: the step imagined. eps: the step
        made. options: of the intervention; `where="first-t"` by default. Tokens that are generated are left alone, as
        in the published defaults.
    Returns: AddAt.
    Raises: as `cold_changes`; TooFewExamples: no position.
    Source: COLD-Steer, github.com/Ksartik/cold-steer (finite differences).
    """
    changes = cold_changes(plain, moved, eps, site=site)
    if not len(changes):
        raise TooFewExamples("no positions: give the states of at least one")
    given = {"where": f"first-{len(changes)}", **options}
    return AddAt(changes.values.float(), site=changes.site, coeff=eta, **given)


def cold_direction(plain: Any, moved: Any, eps: float, *, site: Site | str | None = None, name: str = "") -> Direction:
    """One vector for all prompts: the mean change of their states. Add eta times it.

    The change depends on the prompt, and this forgets it: a cheap stand-in for `cold_edit` where prompts are alike.

    Args: as `cold_changes`.
    Raises: as `cold_changes`; TooFewExamples: no rows. BadInput: the states did not move.
    """
    changes = cold_changes(plain, moved, eps, site=site)
    if not len(changes):
        raise TooFewExamples("no rows: give the states of at least one token")
    vector = changes.values.mean(0)
    if not bool(vector.any()):
        raise BadInput(f"the states at {changes.site} did not move: the loss does not depend on what comes before them")
    source = {"method": "COLD, mean change", "eps": eps, "n": len(changes), "model": changes.model}
    return Direction(vector.float(), changes.site, name or "COLD", "raw", source)


def unit_kernel(gradients: Any, *, site: Site | str | None = None, name: str = "") -> Direction:
    """COLD with all kernels equal to one: minus the mean gradient of the loss with respect to the states.

        v = -mean_i dL / dz_i

    Args: gradients: (n, d), from `ll.cold_gradients`. The rest as `cold_direction`.
    Raises: TooFewExamples: no rows. BadInput: shapes, or a zero mean. NonFiniteActivations.
    """
    rows = state_rows(gradients, site, what="gradients")
    if not len(rows):
        raise TooFewExamples("no gradients: give at least one")
    vector = -rows.values.mean(0)
    if not bool(vector.any()):
        raise BadInput(f"the gradients at {rows.site} are zero on average: they point nowhere")
    source = {"method": "COLD, unit kernel", "n": len(rows), "model": rows.model}
    return Direction(vector.float(), rows.site, name or "COLD, unit kernel", "raw", source)
