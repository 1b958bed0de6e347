"""Many logistic regressions on the same rows at once: layers x folds x penalties x labellings.

    minimise  |w|^2 / 2 + C sum_i m_i log(1 + exp(-y_i (w . z_i + b))),    z = (x - mean) / std

`mean` and `std` are those of the rows with m_i > 0 of that problem, b is free. A problem is a column: its
labels y, its rows m and its C. All columns of a layer share every product with the activations, so fifty
problems cost little more than one:

- one product gives the logits of all search directions, one the gradients; the line search (a root of the
  slope, which is monotone) needs none;
- steps are preconditioned L-BFGS. The preconditioner is the Hessian at w = 0, whose eigenvectors all
  columns of a layer share: `V (C k L + 1)^-1 V'` with L, V of one Gram matrix a layer and k the mean of
  p (1 - p), updated as the fit sharpens;
- with fewer rows than features the fit is made in the coordinates of the rows, which is exact.

Columns that have arrived are dropped, so late steps are spent on the hard ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latentlens.errors import BadInput, TooFewExamples

_MEMORY = 10  # pairs that L-BFGS remembers
_FLAT = 1e-6  # a spread below this share of the largest entry is rounding
_CHUNK = 1 << 25  # bytes of activations worked on at a time: one layer where layers are large


class LogisticFits(NamedTuple):
    """Solutions in raw coordinates: logit = x . weights + intercept.

    weights: (layers, columns, d), 0 where a feature is constant. intercepts: (layers, columns). steps:
    (layers, columns), iterations taken. arrived: (layers, columns), whether the tolerance was reached.
    """

    weights: Tensor
    intercepts: Tensor
    steps: Tensor
    arrived: Tensor


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    C: Tensor,
    rows: Tensor | None = None,
    *,
    tol: float = 1e-3,
    max_steps: int = 200,
    dtype: torch.dtype = torch.float32,
) -> LogisticFits:
    """Fit every column at every layer.

    Args:
        x: (layers, n, d), finite.
        labels: (columns, n), True for the positive class; read only where the column has the row.
        C: (columns,), inverse strength of the penalty, positive.
        rows: (columns, n), bool: which rows a column is fitted on. None: all.
        tol: a column has arrived when a step moves its logits by less than this share of their spread (root
            mean square over its rows).
        max_steps: iterations at most.
        dtype: of the arithmetic; float64 for coefficients to six digits.

    Returns: LogisticFits in float64.
    Raises: BadInput: shapes do not agree, C not positive. TooFewExamples: a column with one class.
    Source: L-BFGS: Nocedal, Mathematics of Computation 35 (1980). Bound of the Hessian: Böhning and Lindsay,
        Annals of the Institute of Statistical Mathematics 40 (1988).
    """
    if x.ndim != 3 or labels.ndim != 2 or labels.shape[1] != x.shape[1] or C.shape != labels.shape[:1]:
        raise BadInput(
            f"x {tuple(x.shape)}, labels {tuple(labels.shape)}, C {tuple(C.shape)}: they must be "
            "(layers, n, d), (columns, n) and (columns,)"
        )
    if not bool((C > 0).all()):
        raise BadInput(f"C must be positive; the least is {float(C.min()):g}")
    if rows is not None and rows.shape != labels.shape:
        raise BadInput(f"rows {tuple(rows.shape)} for labels {tuple(labels.shape)}: one mask a column")
    mask = torch.ones(labels.shape, dtype=torch.float64) if rows is None else rows.to(torch.float64)
    yes = (mask * labels).sum(1)
    alone = (yes == 0) | (yes == mask.sum(1))
    if bool(alone.any()):
        raise TooFewExamples(f"{int(alone.sum())} of {len(alone)} problems have rows of one class only")
    labels, mask, C = (t.to(x.device) for t in (labels.bool(), mask, C.to(torch.float64)))
    n, d = x.shape[1:]
    at_a_time = max(1, _CHUNK // (n * d * dtype.itemsize))
    parts = [_fit(part, labels, mask, C, tol, max_steps, dtype) for part in x.split(at_a_time)]
    return LogisticFits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _fit(
    x: Tensor, labels: Tensor, mask: Tensor, C: Tensor, tol: float, max_steps: int, dtype: torch.dtype
) -> LogisticFits:
    """Standardise, choose feature or row coordinates, and come back to raw coordinates."""
    used = mask.sum(0) > 0
    if not bool(used.all()):
        x, labels, mask = x[:, used], labels[:, used], mask[:, used]
    masks, of = mask.unique(dim=0, return_inverse=True)  # as many as folds: few
    everyone = torch.ones(1, x.shape[1], dtype=torch.float64, device=x.device)
    if x.shape[2] < int(masks.sum(1).min()):
        z, mean, std = _standardised(x, everyone, dtype)
        values, vectors = torch.linalg.eigh((z.mT @ z).double())
        spread = _spread(z, masks).to(dtype)[:, of]
        gram = values.clamp_min(0).to(dtype) / x.shape[1], vectors.to(dtype)
        w, b, steps, arrived = _solve(z, labels, mask.to(dtype), C.to(dtype), *gram, spread, tol, max_steps)
        weights = w.double() / std
        return LogisticFits(weights, b.double() - (weights * mean).sum(-1), steps, arrived)
    # Fewer rows than features: one problem in row coordinates for each distinct set of rows.
    shape, new = (len(x), len(labels)), {"device": x.device}
    weights = torch.zeros(*shape, x.shape[2], dtype=torch.float64, **new)
    intercepts = torch.zeros(shape, dtype=torch.float64, **new)
    steps, arrived = torch.zeros(shape, dtype=torch.int64, **new), torch.zeros(shape, dtype=torch.bool, **new)
    for fold in range(len(masks)):
        at, on = (of == fold).nonzero()[:, 0], masks[fold] > 0
        z, mean, std = _standardised(x[:, on], everyone[:, on], dtype)
        values, vectors = torch.linalg.eigh((z @ z.mT).double())
        scale = values.clamp_min(0).sqrt()
        inverse = torch.where(values > values[:, -1:] * 1e-12, 1 / scale, torch.zeros_like(scale))
        gram = (scale.square() / int(on.sum())).to(dtype), None
        ones, c = everyone[:, on].to(dtype).expand(len(at), -1), C[at].to(dtype)
        found = _solve((vectors * scale[:, None]).to(dtype), labels[at][:, on], ones, c, *gram, None, tol, max_steps)
        w = (found[0].double() * inverse[:, None]) @ vectors.mT @ z.double() / std
        weights[:, at], intercepts[:, at] = w, found[1].double() - (w * mean).sum(-1)
        steps[:, at], arrived[:, at] = found[2], found[3]
    return LogisticFits(weights, intercepts, steps, arrived)


def _spread(z: Tensor, masks: Tensor) -> Tensor:
    """Std of the rows of each mask, (layers, masks, d); 0 where a feature does not vary among them."""
    share = (masks / masks.sum(1, keepdim=True)).to(z.dtype)
    var = (share @ z.square()).double() - (share @ z).double().square()
    least = (_FLAT * z.abs().amax(1, keepdim=True).double()).square()
    return torch.where(var > least, var, torch.zeros_like(var)).sqrt()


def _standardised(x: Tensor, share: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and std 1; constant ones become 0 and have std inf. Moments (layers, 1, d), float64."""
    share = share / share.sum()
    mean = torch.empty(len(x), 1, x.shape[2], dtype=torch.float64, device=x.device)
    std, z = torch.empty_like(mean), torch.empty(x.shape, dtype=dtype, device=x.device)
    for i, layer in enumerate(x):  # one layer at a time in float64
        exact = layer.double()
        mean[i] = share @ exact
        exact = exact - mean[i]
        std[i] = (share @ exact.square()).sqrt()
        std[i, std[i] <= _FLAT * layer.abs().amax(0).double()[None]] = torch.inf
        z[i] = exact / std[i]
    return z, mean, std


def _solve(
    z: Tensor, labels: Tensor, mask: Tensor, C: Tensor, values: Tensor, vectors: Tensor | None, std: Tensor | None,
    tol: float, max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Weights (layers, columns, d) in the coordinates of z, intercepts, steps, arrived.

    values, vectors: of the Gram matrix over n; vectors None: it is diagonal already. std: (layers, columns, d),
    of the column's own rows: its penalty is |std w|^2 / 2, and where it is 0 the weight stays 0.
    """
    n_layers, n, d = z.shape
    n_columns = len(labels)
    y, m, c = labels.T.to(z.dtype), mask.T.contiguous(), C  # y: 0 or 1, (n, columns)
    penalty = torch.ones(n_layers, d, n_columns, dtype=z.dtype, device=z.device) if std is None else std.mT.square()
    free = penalty > 0
    size = m.sum(0)
    rate = (m * y).sum(0) / size
    w = torch.zeros(n_layers, d, n_columns, dtype=z.dtype, device=z.device)
    b = rate.logit().expand(n_layers, n_columns).clone()
    logits = b[:, None].expand(-1, n, -1).clone()
    out_w, out_b = w.clone(), b.clone()
    out_steps = torch.zeros(n_layers, n_columns, dtype=torch.int64, device=z.device)
    out_arrived = torch.zeros(n_layers, n_columns, dtype=torch.bool, device=z.device)
    at = torch.arange(n_columns, device=z.device)
    pairs: list[tuple[Tensor, ...]] = []  # step of w, of b, change of their gradients, 1 / their product
    gw, gb, kappa = _gradient(z, logits, w, y, m, c, size, penalty, free)
    for step in range(1, max_steps + 1):
        pw, pb = _direction(gw, gb, pairs, c * kappa * size, values, vectors, free)
        dz = torch.baddbmm(pb[:, None], z, pw)
        t = _line_search(logits, dz, w, pw, y, m, c, penalty)
        moved = t.square() * (m * dz.square()).sum(1) / size
        w, b, logits = w + t[:, None] * pw, b + t * pb, logits + t[:, None] * dz
        spread = (m * logits.square()).sum(1) / size - ((m * logits).sum(1) / size).square()
        done = moved <= tol**2 * spread.clamp_min(0) + 1e-24
        out_w[:, :, at], out_b[:, at] = w, b
        out_steps[:, at], out_arrived[:, at] = step, done
        rest = ~done.all(0)
        if not bool(rest.any()):
            break
        new_w, new_b, kappa = _gradient(z, logits, w, y, m, c, size, penalty, free)
        sw, sb, dw, db = t[:, None] * pw, t * pb, new_w - gw, new_b - gb
        product = (sw * dw).sum(1) + sb * db
        pairs = [*pairs[-_MEMORY + 1 :], (sw, sb, dw, db, torch.where(product > 0, 1 / product, 0 * product))]
        gw, gb = new_w, new_b
        if int(rest.sum()) <= 0.7 * len(rest):  # fewer columns repay the copy
            at, y, m, c, size = at[rest], y[:, rest], m[:, rest], c[rest], size[rest]
            w, b, logits, penalty, free = (v[..., rest] for v in (w, b, logits, penalty, free))
            gw, gb, kappa = gw[..., rest], gb[..., rest], kappa[..., rest]
            pairs = [tuple(v[..., rest] for v in pair) for pair in pairs]
    return out_w.mT, out_b, out_steps, out_arrived


def _gradient(
    z: Tensor, logits: Tensor, w: Tensor, y: Tensor, m: Tensor, c: Tensor, size: Tensor, penalty: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the weights and the intercept, and the mean of p (1 - p) over each column's rows."""
    p = logits.sigmoid()
    kappa = ((p - p.square()) * m).sum(1) / size
    residual = (p - y) * m
    residual *= c
    return (z.mT @ residual + penalty * w) * free, residual.sum(1), kappa.clamp_min(1e-8)


def _direction(
    gw: Tensor, gb: Tensor, pairs: list[tuple[Tensor, ...]], weight: Tensor, values: Tensor, vectors: Tensor | None,
    free: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two-loop recursion around the shared preconditioner; a descent direction."""
    qw, qb, alphas = gw, gb, []
    for sw, sb, dw, db, rho in reversed(pairs):
        alpha = rho * ((sw * qw).sum(1) + sb * qb)
        qw, qb = torch.addcmul(qw, alpha[:, None], dw, value=-1), qb - alpha * db
        alphas.append(alpha)
    inverse = 1 / (weight[:, None] * values[:, :, None] + 1)
    qw = qw * inverse if vectors is None else vectors @ ((vectors.mT @ qw) * inverse)
    qw, qb = qw * free, qb / weight
    for (sw, sb, dw, db, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = alpha - rho * ((dw * qw).sum(1) + db * qb)
        qw, qb = torch.addcmul(qw, beta[:, None], sw), qb + beta * sb
    return -qw, -qb


def _line_search(
    logits: Tensor, dz: Tensor, w: Tensor, pw: Tensor, y: Tensor, m: Tensor, c: Tensor, penalty: Tensor
) -> Tensor:
    """Step lengths where the slope along the direction is near 0: (layers, columns).

    The slope grows with t, so its sign says on which side of the minimum t is, and no value of the objective
    (in which float32 would lose the difference) is needed. A few evaluations of element-wise cost.
    """
    linear, square = (penalty * w * pw).sum(1), (penalty * pw.square()).sum(1)
    weighted = c * m * dz

    def slope(t: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.addcmul(logits, t[:, None], dz).sigmoid_()
        first = ((p - y) * weighted).sum(1) + linear + t * square
        return first, ((p - p.square()) * weighted * dz).sum(1) + square

    start = slope(torch.zeros_like(linear))[0].abs()
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    for _ in range(8):
        first, second = slope(t)
        near = first.abs() <= 0.3 * start
        if bool(near.all()):
            break
        low, high = torch.where(first < 0, t, low), torch.where(first > 0, t, high)
        newton = t - first / second.clamp_min(1e-30)
        middle = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (newton < 4 * t)
        t = torch.where(near, t, torch.where(inside, newton, middle))
    return t
