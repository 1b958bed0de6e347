"""Batched logistic regression against scikit-learn, column by column."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.batched_logistic import fit_logistic
from latentlens.maths.statistics import auroc


def oracle(x, y, c):
    """Raw-coordinate weights and intercept of one problem: standardise, fit to a tight tolerance, go back."""
    x = x.double().numpy()
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    model = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit((x - mean) / std, y)
    w = model.coef_[0] / std
    return w, model.intercept_[0] - mean @ w


def draw(n, d, n_layers=2, seed=0, spread=10.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_layers, n, d)) * rng.uniform(1 / spread, spread, d) + 3 * rng.normal(size=d)
    y = (x[0, :, 0] - x[0, :, 0].mean()) / x[0, :, 0].std() + rng.normal(size=n) > 0.3
    return torch.tensor(x), torch.tensor(y)


@pytest.mark.parametrize(("n", "d"), [(200, 20), (60, 150), (64, 64)])
def test_every_fold_and_penalty_is_scikit_learns_optimum(n, d):
    x, y = draw(n, d)
    fold = torch.arange(n) % 3
    grid = [1e-3, 0.1, 10.0]
    rows = torch.stack([fold != f for f in range(3) for _ in grid])
    C = torch.tensor(grid * 3)
    found = fit_logistic(x, y.expand(9, n), C, rows, tol=1e-8, max_steps=2000, dtype=torch.float64)
    assert bool(found.arrived.all())
    for layer in range(2):
        for j in range(9):
            w, b = oracle(x[layer, rows[j]], y[rows[j]], float(C[j]))
            logits = x[layer].numpy() @ w + b
            ours = x[layer].numpy() @ found.weights[layer, j].numpy() + float(found.intercepts[layer, j])
            np.testing.assert_allclose(ours, logits, atol=2e-4 * max(1, np.abs(logits).max()))


@pytest.mark.parametrize(("n", "d"), [(800, 60), (120, 400)])
def test_float32_at_the_default_tolerance_orders_held_out_rows_as_the_optimum_does(n, d):
    x, y = draw(n, d, n_layers=1)
    fresh, truth = draw(2000, d, n_layers=1, seed=0)
    fresh = fresh + 0.1 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(1))
    grid = torch.logspace(-4, 2, 7)
    found = fit_logistic(x.float(), y.expand(7, n), grid)
    for j, c in enumerate(grid.tolist()):
        w, _ = oracle(x[0], y, c)
        ours = auroc((fresh[0] @ found.weights[0, j]).numpy(), truth.numpy())
        assert ours == pytest.approx(auroc(fresh[0].numpy() @ w, truth.numpy()), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(6, 40),
    d=st.integers(1, 50),
    log_c=st.floats(-4, 3),
    seed=st.integers(0, 99),
    shift=st.floats(-50, 50),
)
def test_the_gradient_vanishes_at_the_solution(n, d, log_c, seed, shift):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(1, n, d)) + shift)
    y = torch.tensor(rng.permutation(np.arange(n) % 2 == 0))
    found = fit_logistic(x, y[None], torch.tensor([10**log_c]), tol=1e-9, max_steps=3000, dtype=torch.float64)
    z = (x[0] - x[0].mean(0)) / x[0].std(0, correction=0)
    w = found.weights[0, 0] * x[0].std(0, correction=0)
    p = (x[0] @ found.weights[0, 0] + found.intercepts[0, 0]).sigmoid()
    c = 10**log_c
    gradient = w + c * z.T @ (p - y.double())
    scale = float(w.norm() + c * z.norm() * (p - y.double()).norm())
    assert float(gradient.norm()) < 1e-5 * scale + 1e-9
    assert abs(float((p - y.double()).sum())) < 1e-5 * n


def test_a_columns_own_rows_decide_its_scale_and_its_fit():
    x, y = draw(90, 12, n_layers=1)
    rows = torch.ones(1, 90, dtype=torch.bool)
    rows[0, 60:] = False
    alone = fit_logistic(x[:, :60], y[None, :60], torch.tensor([0.1]), tol=1e-9, dtype=torch.float64)
    masked = fit_logistic(x, y[None], torch.tensor([0.1]), rows, tol=1e-9, dtype=torch.float64)
    torch.testing.assert_close(masked.weights, alone.weights)
    other = x.clone()
    other[:, 60:] = 1e6
    assert torch.equal(fit_logistic(other, y[None], torch.tensor([0.1]), rows).weights,
                       fit_logistic(x, y[None], torch.tensor([0.1]), rows).weights)  # fmt: skip


def test_columns_do_not_depend_on_their_company():
    x, y = draw(150, 10, n_layers=1)
    labels = torch.stack([y, ~y, torch.arange(150) % 2 == 0])
    together = fit_logistic(x, labels, torch.tensor([0.01, 0.01, 5.0]), tol=1e-8, dtype=torch.float64)
    for j, c in enumerate((0.01, 0.01, 5.0)):
        alone = fit_logistic(x, labels[j : j + 1], torch.tensor([c]), tol=1e-8, dtype=torch.float64)
        torch.testing.assert_close(together.weights[:, j], alone.weights[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.weights[:, 0], -together.weights[:, 1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("width", [5, 80])
def test_a_constant_feature_has_weight_zero(width):
    x, y = draw(50, width, n_layers=1)
    x[..., 2] = 0.1
    x[..., 3] = 0.0
    found = fit_logistic(x.float(), y[None], torch.tensor([1.0]))
    assert found.weights[0, 0, 2] == found.weights[0, 0, 3] == 0
    assert bool(found.weights.isfinite().all())
    nothing = fit_logistic(torch.full((1, 50, width), 0.3), y[None], torch.tensor([1.0]))
    assert not bool(nothing.weights.any())
    rate = float(y.double().mean())
    assert float(nothing.intercepts[0, 0]) == pytest.approx(np.log(rate / (1 - rate)), abs=1e-4)


def test_a_feature_that_varies_only_among_left_out_rows_has_weight_zero():
    x, y = draw(60, 6, n_layers=1)
    x[0, :40, 1] = 2.0
    rows = torch.arange(60)[None] < 40
    found = fit_logistic(x, y[None], torch.tensor([0.5]), rows | (torch.arange(60)[None] > 99))
    assert found.weights[0, 0, 1] == 0
    two = fit_logistic(x, y.expand(2, 60), torch.tensor([0.5, 0.5]), torch.cat([rows, rows | True]))
    assert two.weights[0, 0, 1] == 0
    assert two.weights[0, 1, 1] != 0


def test_separable_rows_have_a_finite_solution():
    x = torch.cat([torch.randn(30, 5) + 50, torch.randn(30, 5) - 50])[None]
    y = torch.arange(60) < 30
    found = fit_logistic(x, y[None], torch.tensor([100.0]))
    assert bool(found.weights.isfinite().all())
    assert auroc((x[0].double() @ found.weights[0, 0]).numpy(), y.numpy()) == 1


def test_what_cannot_be_fitted_is_refused():
    x, y = draw(20, 3)
    with pytest.raises(TooFewExamples, match="1 of 2 problems"):
        fit_logistic(x, torch.stack([y, y | True]), torch.ones(2))
    with pytest.raises(BadInput, match="positive"):
        fit_logistic(x, y[None], torch.zeros(1))
    with pytest.raises(BadInput, match="layers, n, d"):
        fit_logistic(x[0], y[None], torch.ones(1))
    with pytest.raises(BadInput, match="one mask a column"):
        fit_logistic(x, y[None], torch.ones(1), torch.ones(2, 20))
