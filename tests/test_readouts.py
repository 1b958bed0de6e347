"""Linear readouts against hand numbers and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from latentlens.errors import BadInput
from latentlens.maths import readouts
from latentlens.maths.statistics import auroc

POSITIVE = [(2, 2), (6, 2), (4, 1), (4, 3)]
NEGATIVE = [(-2, 0), (2, 0), (0, -1), (0, 1)]
X8 = torch.tensor([*POSITIVE, *NEGATIVE], dtype=torch.float64)[None]
Y8 = (torch.arange(8) < 4)[None]
ALL8, ONE = torch.ones(1, 8, dtype=torch.bool), torch.ones(1)


def test_t8_mean_difference_and_lda_by_hand():
    theta = readouts.mean_difference(X8, Y8, ONE, ALL8)
    np.testing.assert_allclose(theta.weights[0, 0], [4, 2])
    assert float(theta.intercepts[0, 0]) == pytest.approx(-(4 * 2 + 2 * 1))  # 0 at the midpoint (2, 1)
    w = readouts.lda(X8, Y8, ONE, ALL8, shrinkage=0)
    np.testing.assert_allclose(w.weights[0, 0], [2, 4])
    cosine = w.weights[0, 0] @ theta.weights[0, 0] / w.weights[0, 0].norm() / theta.weights[0, 0].norm()
    assert float(cosine) == pytest.approx(0.8)
    for found in (theta, w):
        assert auroc(found.scores(X8)[0, 0].numpy(), Y8[0].numpy()) == 1


def draw(n=150, d=12, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(2, n, d)) * rng.uniform(0.2, 5, d) + 3)
    y = torch.tensor(x[0, :, 0].numpy() - 3 + rng.normal(size=n) * 2 > 0.5)
    return x, y


def test_plain_lda_is_scikit_learns():
    x, y = draw()
    found = readouts.lda(x, y[None], ONE, torch.ones(1, 150, dtype=torch.bool), shrinkage=0)
    for layer in range(2):
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[layer].numpy(), y.numpy())
        # theirs divides the covariance by n too, and weighs classes by their priors
        np.testing.assert_allclose(found.weights[layer, 0], theirs.coef_[0], rtol=1e-8)
        assert float(found.intercepts[layer, 0]) == pytest.approx(theirs.intercept_[0])


def test_the_share_of_shrinkage_is_ledoit_and_wolfs():
    for n, d in ((150, 12), (30, 60)):
        x, _ = draw(n, d)
        z, *_ = readouts._standard(x)
        values, _ = readouts._covariance(z)
        ours = readouts._ledoit_wolf(z, values)
        for layer in range(2):
            assert float(ours[layer]) == pytest.approx(ledoit_wolf(z[layer].numpy(), assume_centered=True)[1])


def test_shrunken_lda_is_the_dense_formula():
    x, y = draw(40, 60)
    found = readouts.lda(x, y[None], ONE, torch.ones(1, 40, dtype=torch.bool), shrinkage=0.3)
    z, _, std = readouts._standard(x)
    labels = y.numpy()
    for layer in range(2):
        rows = z[layer].numpy()
        means = [rows[labels == side].mean(0) for side in (True, False)]
        centred = np.where(labels[:, None], rows - means[0], rows - means[1])
        within = centred.T @ centred / 40
        s = 0.7 * within + 0.3 * np.trace(within) / 60 * np.eye(60)
        w = np.linalg.solve(s, means[0] - means[1])
        np.testing.assert_allclose(found.weights[layer, 0] * std[layer, 0], w, rtol=1e-5, atol=1e-8)


def test_ridge_is_scikit_learns():
    x, y = draw()
    rows = torch.ones(2, 150, dtype=torch.bool)
    rows[1, :50] = False
    found = readouts.ridge(x, y.expand(2, 150), torch.tensor([0.1, 0.01]), rows)
    for j, alpha in enumerate((10, 100)):
        part, labels = x[1, rows[j]], y[rows[j]].numpy()
        mean, std = part.mean(0), part.std(0, correction=0)
        theirs = Ridge(alpha=alpha).fit(((part - mean) / std).numpy(), np.where(labels, 1, -1))
        np.testing.assert_allclose(found.weights[1, j] * std, theirs.coef_, rtol=1e-6)
        ours = found.scores(x)[1, j].numpy()
        np.testing.assert_allclose(ours, theirs.predict(((x[1] - mean) / std).numpy()), atol=1e-6)


def test_the_sparse_probe_reads_the_planted_latents_only():
    rng = np.random.default_rng(1)
    y = np.arange(200) % 2 == 0
    codes = rng.exponential(size=(200, 50)) * (rng.random((200, 50)) < 0.2)
    codes[:, 7] += 3 * y
    codes[:, 31] += 2 * ~y
    x, all_rows = torch.tensor(codes)[None], torch.ones(1, 200, dtype=torch.bool)
    found = readouts.sparse(2)(x, torch.tensor(y)[None], ONE, all_rows)
    assert found.weights[0, 0].nonzero()[:, 0].tolist() == [7, 31]
    assert found.weights[0, 0, 7] > 0 > found.weights[0, 0, 31]
    one = readouts.sparse(1)(x, torch.tensor(y)[None], ONE, all_rows)
    assert one.weights[0, 0].nonzero()[:, 0].tolist() == [7]
    with pytest.raises(BadInput, match="at least one"):
        readouts.sparse(0)


@pytest.mark.parametrize("fit", [readouts.logistic, readouts.mean_difference, readouts.lda, readouts.ridge,
                                 readouts.sparse(3)])  # fmt: skip
def test_rows_left_out_do_not_matter_and_turned_labels_turn_the_direction(fit):
    x, y = draw()
    rows = torch.arange(150)[None] < 100
    found = fit(x, y[None], ONE, rows)
    other = x.clone()
    other[:, 100:] = 1e4
    torch.testing.assert_close(fit(other, y[None], ONE, rows).weights, found.weights, rtol=1e-6, atol=1e-9)
    turned = fit(x, ~y[None], ONE, rows)
    torch.testing.assert_close(turned.weights, -found.weights, rtol=1e-3, atol=1e-5)
    assert auroc(found.scores(x)[0, 0].numpy(), y.numpy()) > 0.75


@pytest.mark.parametrize("fit", [readouts.logistic, readouts.mean_difference, readouts.lda, readouts.ridge])
def test_a_constant_feature_has_weight_zero(fit):
    x, y = draw()
    x[..., 4] = 0.1
    found = fit(x, y[None], ONE, torch.ones(1, 150, dtype=torch.bool))
    assert not bool(found.weights[..., 4].any())
    assert bool(found.weights.isfinite().all())
