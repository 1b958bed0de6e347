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

_MEMORY = 6  # pairs that L-BFGS remembers
_FLAT = 1e-6  # a spread below this share of the largest entry is rounding
_SLOPE = 0.1  # of the slope at 0 that a line search may leave
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
    tol: float = 2e-3,
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
    if x.shape[2] < int(masks.sum(1).min()):
        z, mean, std = _standardised(x, dtype)
        values, vectors = torch.linalg.eigh(_gram(z), UPLO="U")
        spread = _spread(z, masks)[:, of]
        gram = values.clamp_min(0) / x.shape[1], vectors
        w, b, steps, arrived = _solve(z, labels, mask.to(dtype), C.to(dtype), *gram, spread, tol, max_steps)
        weights = w.double() / std
        return LogisticFits(weights, b.double() - (weights * mean).sum(-1), steps, arrived)
    # Fewer rows than features: one problem in row coordinates for each distinct set of rows.
    shape, on_device = (len(x), len(labels)), x.device
    weights = torch.zeros(*shape, x.shape[2], dtype=torch.float64, device=on_device)
    intercepts = torch.zeros(shape, dtype=torch.float64, device=on_device)
    steps, arrived = (
        torch.zeros(shape, dtype=torch.int64, device=on_device),
        torch.zeros(shape, dtype=torch.bool, device=on_device),
    )
    for fold in range(len(masks)):
        at, on = (of == fold).nonzero()[:, 0], masks[fold] > 0
        z, mean, std = _standardised(x[:, on], dtype)
        values, vectors = torch.linalg.eigh((z @ z.mT).double())
        scale = values.clamp_min(0).sqrt()
        inverse = torch.where(values > values[:, -1:] * 1e-12, 1 / scale, torch.zeros_like(scale))
        gram = (scale.square() / int(on.sum())).to(dtype), None
        every = torch.ones(len(at), int(on.sum()), dtype=dtype, device=on_device)
        rotated = (vectors * scale[:, None]).to(dtype)
        found = _solve(rotated, labels[at][:, on], every, C[at].to(dtype), *gram, None, tol, max_steps)
        w = (found[0].double() * inverse[:, None]) @ vectors.mT @ z.double() / std
        weights[:, at], intercepts[:, at] = w, found[1].double() - (w * mean).sum(-1)
        steps[:, at], arrived[:, at] = found[2], found[3]
    return LogisticFits(weights, intercepts, steps, arrived)


def _gram(z: Tensor, block: int = 224) -> Tensor:
    """Upper triangle of z'z, by blocks of rows: half the work. Below it: zeros."""
    d = z.shape[2]
    out = torch.zeros(len(z), d, d, dtype=z.dtype, device=z.device)
    for i in range(0, d, block):
        out[:, i : i + block, i:] = z[..., i : i + block].mT @ z[..., i:]
    return out


def _spread(z: Tensor, masks: Tensor) -> Tensor:
    """Std of the rows of each mask, (layers, masks, d); 0 where a feature does not vary among them."""
    share = (masks / masks.sum(1, keepdim=True)).to(z.dtype)
    power = share @ z.square()
    var = power - (share @ z).square()
    # Below this the difference of the two is rounding.
    rounding = 10 * torch.finfo(z.dtype).eps * power
    return torch.where(var > rounding, var, torch.zeros_like(var)).sqrt()


def _standardised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and std 1; constant ones become 0 and have std inf. Moments (layers, 1, d), float64."""
    n = x.shape[1]
    first = x[:, :1].to(dtype)  # a shift: the sums below then lose nothing to a large common mean
    z = x.to(dtype) - first
    every = torch.full((1, n), 1 / n, dtype=dtype, device=x.device)
    moved = every @ z
    z -= moved
    mean, std = first.double() + moved.double(), (every @ z.square()).double().sqrt()
    std[std <= _FLAT * mean.abs()] = torch.inf
    std[std == 0] = torch.inf
    z /= std.to(dtype)
    return z, mean, std


def _solve(
    z: Tensor, labels: Tensor, mask: Tensor, C: Tensor, values: Tensor, vectors: Tensor | None, std: Tensor | None,
    tol: float, max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Weights (layers, columns, d) in the coordinates of z, intercepts, steps, arrived.

    values, vectors: of the Gram matrix over n; vectors None: it is diagonal already. std: (layers, columns, d),
    of the column's own rows: its penalty is |std w|^2 / 2, and where it is 0 the weight stays 0. Columns come
    before rows and features everywhere: so few of them still make a quick product.
    """
    n_layers, _, d = z.shape
    y, m, c = labels.to(z.dtype), mask, C
    shape = (n_layers, len(labels))
    penalty = torch.ones(*shape, d, dtype=z.dtype, device=z.device) if std is None else std.square()
    free = penalty > 0
    size = m.sum(1)
    w = torch.zeros(*shape, d, dtype=z.dtype, device=z.device)
    b = ((m * y).sum(1) / size).logit().expand(shape).clone()
    logits = b[..., None].expand(-1, -1, z.shape[1]).clone()
    out_w, out_b = w.clone(), b.clone()
    out_steps = torch.zeros(shape, dtype=torch.int64, device=z.device)
    out_arrived = torch.zeros(shape, dtype=torch.bool, device=z.device)
    at = torch.arange(len(labels), device=z.device)
    pairs: list[tuple[Tensor, ...]] = []  # step of w, of b, change of their gradients, 1 / their product
    gw, gb, kappa = _gradient(z, logits, w, y, m, c, size, penalty, free)
    for step in range(1, max_steps + 1):
        pw, pb = _direction(gw, gb, pairs, c * kappa * size, values, vectors, free)
        dz = torch.baddbmm(pb[..., None], pw, z.mT)
        slope = (gw * pw).sum(-1) + gb * pb
        t = _line_search(
            logits, dz, slope, (penalty * w * pw).sum(-1), (penalty * pw.square()).sum(-1), y, c[:, None] * m
        )
        w, b, logits = torch.addcmul(w, t[..., None], pw), b + t * pb, torch.addcmul(logits, t[..., None], dz)
        moved = t.square() * _dot(m, dz.square()) / size
        spread = _dot(m, logits.square()) / size - (_dot(m, logits) / size).square()
        done = moved <= tol**2 * spread.clamp_min(0) + 1e-24
        out_w[:, at], out_b[:, at] = w, b
        out_steps[:, at], out_arrived[:, at] = step, done
        rest = ~done.all(0)
        if not bool(rest.any()):
            break
        new_w, new_b, kappa = _gradient(z, logits, w, y, m, c, size, penalty, free)
        sw, sb, dw, db = t[..., None] * pw, t * pb, new_w - gw, new_b - gb
        product = (sw * dw).sum(-1) + sb * db
        pairs = [*pairs[-_MEMORY + 1 :], (sw, sb, dw, db, torch.where(product > 0, 1 / product, 0 * product))]
        gw, gb = new_w, new_b
        if int(rest.sum()) <= 0.8 * len(rest):  # fewer columns repay the copy
            at, y, m, c, size = at[rest], y[rest], m[rest], c[rest], size[rest]
            w, b, logits, penalty, free = (v[:, rest] for v in (w, b, logits, penalty, free))
            gw, gb, kappa = gw[:, rest], gb[:, rest], kappa[:, rest]
            pairs = [tuple(v[:, rest] for v in pair) for pair in pairs]
    return out_w, out_b, out_steps, out_arrived


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over rows of a (columns, n) with b (layers, columns, n)."""
    return torch.linalg.vecdot(a.expand_as(b), b)


def _gradient(
    z: Tensor, logits: Tensor, w: Tensor, y: Tensor, m: Tensor, c: Tensor, size: Tensor, penalty: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the weights and the intercept, and the mean of p (1 - p) over each column's rows."""
    p = logits.sigmoid()
    kappa = _dot(m, p - p.square()) / size
    residual = p.sub_(y).mul_(c[:, None] * m)
    return torch.addcmul(residual @ z, penalty, w).mul_(free), residual.sum(-1), kappa.clamp_min(1e-8)


def _direction(
    gw: Tensor, gb: Tensor, pairs: list[tuple[Tensor, ...]], weight: Tensor, values: Tensor, vectors: Tensor | None,
    free: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two-loop recursion around the shared preconditioner; a descent direction."""
    qw, qb, alphas = gw, gb, []
    for sw, sb, dw, db, rho in reversed(pairs):
        alpha = rho * (torch.linalg.vecdot(sw, qw) + sb * qb)
        qw, qb = torch.addcmul(qw, alpha[..., None], dw, value=-1), qb - alpha * db
        alphas.append(alpha)
    inverse = 1 / (weight[..., None] * values[:, None] + 1)
    qw = qw * inverse if vectors is None else ((qw @ vectors) * inverse) @ vectors.mT
    qw, qb = qw * free, qb / weight
    for (sw, sb, dw, db, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = alpha - rho * (torch.linalg.vecdot(dw, qw) + db * qb)
        qw, qb = torch.addcmul(qw, beta[..., None], sw), qb + beta * sb
    return -qw, -qb


def _line_search(
    logits: Tensor, dz: Tensor, start: Tensor, linear: Tensor, square: Tensor, y: Tensor, weight: Tensor
) -> Tensor:
    """Step lengths where the slope along the direction is near 0: (layers, columns).

    The slope grows with t, so its sign says on which side of the minimum t is, and no value of the objective
    (in which float32 would lose the difference) is needed. A few evaluations of element-wise cost. start: slope
    at 0; linear, square: derivatives of the penalty along the direction.
    """
    weighted = weight * dz
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    for _ in range(8):
        p = torch.addcmul(logits, t[..., None], dz).sigmoid_()
        first = torch.linalg.vecdot(p - y, weighted) + linear + t * square
        near = first.abs() <= _SLOPE * start.abs()
        if bool(near.all()):
            break
        second = torch.linalg.vecdot(p.sub_(p.square()).mul_(dz), weighted) + square
        low, high = torch.where(first < 0, t, low), torch.where(first > 0, t, high)
        newton = t - first / second.clamp_min(1e-30)
        middle = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        inside = (newton > low) & (newton < high) & (newton < 4 * t)
        t = torch.where(near, t, torch.where(inside, newton, middle))
    return t
