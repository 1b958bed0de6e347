"""Softmax probes, macro-F1 and clusters: numbers by hand, sklearn and torch as oracles."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.clustering import kmeans, matching
from latentlens.maths.softmax_probe import Softmax, accuracy, fit, macro_f1


def test_probabilities_and_one_gradient_step_by_hand():
    probe = Softmax(torch.eye(2)[None], torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))
    x, y = torch.tensor([[[2.0, 1.0]]]), torch.tensor([1])
    assert probe.probabilities(x)[0, 0].tolist() == pytest.approx([0.7311, 0.2689], abs=6e-5)
    after = probe.stepped(x, y, 0.1)
    assert after.weight[0].flatten().tolist() == pytest.approx([0.8538, -0.0731, 0.1462, 1.0731], abs=6e-5)
    assert after.bias[0].tolist() == pytest.approx([-0.0731, 0.0731], abs=6e-5)
    logits = (x @ after.weight.mT + after.bias[:, None])[0, 0]
    assert logits.tolist() == pytest.approx([1.5614, 1.4386], abs=6e-5)
    assert after.probabilities(x)[0, 0].tolist() == pytest.approx([0.5306, 0.4694], abs=6e-5)
    loss = [-float(p.probabilities(x)[0, 0, 1].log()) for p in (probe, after)]
    assert loss == pytest.approx([1.3133, 0.7564], abs=6e-5)


def test_a_step_never_raises_the_loss_of_its_batch_however_long_it_is_asked_to_be():
    torch.manual_seed(0)
    for width in (2, 64, 1024):
        probe = Softmax(torch.randn(3, 4, width), torch.randn(3, 4), torch.zeros(3, width), torch.ones(3, width))
        x, y = torch.randn(3, 5, width) * 10, torch.tensor([0, 3, 1, 1, 2])

        def loss(p, x=x, y=y):
            logits = x.double() @ p.weight.double().mT + p.bias.double()[:, None]
            return -logits.log_softmax(-1)[:, torch.arange(5), y].mean(1)

        before, after = loss(probe), loss(probe.stepped(x, y, 100.0))
        assert (after < before).all()


def test_folding_the_scaler_in_changes_nothing():
    torch.manual_seed(1)
    x = torch.randn(2, 30, 6) * torch.tensor([1, 10, 100, 1e3, 1e-3, 1.0]) + 5
    probe = fit(x, np.arange(30) % 3, 3)
    weight, bias = probe.folded()
    straight = torch.einsum("pnd,pkd->pnk", x, weight) + bias[:, None]
    torch.testing.assert_close(straight.softmax(-1), probe.probabilities(x), atol=1e-4, rtol=1e-3)


def test_training_is_torchs_adamw_step_for_step():
    torch.manual_seed(2)
    x, y = torch.randn(1, 50, 7), torch.randint(0, 3, (50,))
    found = fit(x, y.numpy(), 3, epochs=4, rate=0.01, weight_decay=0.1, seed=5)
    z = (x[0] - x[0].mean(0)) / x[0].std(0, unbiased=False)
    layer = torch.nn.Linear(7, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
    adam, order = torch.optim.AdamW(groups, lr=0.01), torch.Generator().manual_seed(5)
    for _ in range(4):
        for rows in torch.randperm(50, generator=order).split(32):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(layer(z[rows]), y[rows]).backward()
            adam.step()
    torch.testing.assert_close(found.weight[0], layer.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bias[0], layer.bias.detach(), atol=1e-5, rtol=1e-4)


def test_many_labellings_and_sites_at_once_equal_each_alone():
    torch.manual_seed(3)
    x, labels = torch.randn(2, 40, 5), np.random.default_rng(0).integers(0, 3, (3, 40))
    together = fit(x, labels, 3)
    for site in range(2):
        for one in range(3):
            alone = fit(x[site : site + 1], labels[one], 3)
            torch.testing.assert_close(together.weight[3 * site + one], alone.weight[0], atol=1e-6, rtol=1e-5)


def test_planted_classes_are_read_and_shuffled_ones_are_not():
    torch.manual_seed(4)
    y = np.arange(300) % 3
    x = 4 * torch.eye(3, 16)[y] + torch.randn(300, 16)
    probe = fit(x[None, :200], y[:200], 3)
    assert accuracy(y[200:], probe.probabilities(x[None, 200:])[0].argmax(-1)) > 0.9
    wrong = fit(x[None, :200], np.random.default_rng(0).permutation(y[:200]), 3)
    assert accuracy(y[200:], wrong.probabilities(x[None, 200:])[0].argmax(-1)) < 0.6


def test_a_single_class_and_constant_coordinates_are_no_trouble():
    x = torch.ones(1, 4, 3)
    probe = fit(x, [0, 0, 0, 0], 1)
    assert probe.probabilities(x)[0].tolist() == [[1.0]] * 4
    assert torch.isfinite(fit(x, [0, 1, 0, 1], 2).folded()[0]).all()


def test_macro_f1_by_hand_and_against_sklearn():
    y, said = ["cpp", "cpp", "py", "py", "jl", "jl"], ["cpp", "py", "py", "py", "jl", "cpp"]
    assert macro_f1(y, said) == pytest.approx(0.6556, abs=6e-5)
    assert accuracy(y, said) == pytest.approx(0.6667, abs=6e-5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(0, 4, 12), rng.integers(0, 4, 12)
        assert macro_f1(a, b) == pytest.approx(f1_score(a, b, average="macro"))
    assert macro_f1([0, 0], [1, 1]) == 0
    with pytest.raises(TooFewExamples):
        macro_f1([], [])
    with pytest.raises(BadInput, match="one of each a row"):
        macro_f1([0], [0, 1])


def test_clusters_are_numbered_by_size_and_never_empty():
    points = np.array([[0.0, 9], [0, 9.1], [5, 0], [5.1, 0], [5, 0.1], [-7, -7]])
    assert kmeans(points, 3).tolist() == [1, 1, 0, 0, 0, 2]
    assert kmeans(points, 1).tolist() == [0] * 6
    same = np.array([[1.0, 2], [1, 2], [3, 4]])
    assert kmeans(same, 5).tolist() == [0, 0, 1]
    assert kmeans(np.ones((4, 2)), 3).tolist() == [0] * 4
    with pytest.raises(BadInput, match="at least one cluster"):
        kmeans(points, 0)
    with pytest.raises(TooFewExamples):
        kmeans(np.zeros((0, 2)), 1)


def test_matching_undoes_a_renumbering():
    one = np.array([0, 0, 1, 1, 2, 2])
    assert matching(one, np.array([2, 2, 0, 0, 1, 1])).tolist() == [2, 0, 1]
    assert matching(one, np.array([0, 0, 0, 0, 1, 1])).tolist() == [0, -1, 1]


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], [0, -1, 0, 0]])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(BadInput, match="labels must be 4 numbers from 0 to 2"):
        fit(torch.randn(1, 4, 2), labels, 3)
