"""CCS, attention and multiclass probes on planted data and hand numbers."""

import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.statistics import auroc
from latentlens.methods.class_probe import fit_classes
from latentlens.methods.contrast_probe import ccs_loss, fit_contrast
from latentlens.methods.token_probe import attend, fit_tokens
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

SITE = Site("resid_post", 0)


def test_t9_ccs_loss_by_hand():
    assert float(ccs_loss(torch.tensor([0.8]), torch.tensor([0.3]))) == pytest.approx(0.10)
    assert float(ccs_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == 0


def pairs(seed=0, n=200, d=16, strength=3.0):
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, generator=g) < 0.5
    sign = torch.where(truth, 1.0, -1.0)[:, None]
    axis = torch.eye(d)[0]
    shared = torch.randn(n, d, generator=g)
    yes = shared + strength * sign * axis + 5 * torch.eye(d)[1] + 0.3 * torch.randn(n, d, generator=g)
    no = shared - strength * sign * axis - 5 * torch.eye(d)[1] + 0.3 * torch.randn(n, d, generator=g)
    return yes, no, truth.numpy()


def test_ccs_finds_the_planted_contrast_and_not_the_word():
    yes, no, truth = pairs()
    found = fit_contrast(yes[:100], no[:100], site="resid_post[0]", seed=0)
    assert found.auroc(yes[100:], no[100:], truth[100:]) > 0.95
    assert abs(float(found.direction.unit[0])) > 0.8
    assert abs(float(found.direction.unit[1])) < 0.3  # the word itself went with the means
    assert len(found.losses) == 10
    again = fit_contrast(yes[:100], no[:100], site="resid_post[0]", seed=0)
    assert again.direction == found.direction


def test_ccs_refuses_what_is_no_pair():
    yes, no, _ = pairs()
    with pytest.raises(BadInput, match="row by row a pair"):
        fit_contrast(yes, no[:-1], site=SITE)
    with pytest.raises(TooFewExamples):
        fit_contrast(yes[:1], no[:1], site=SITE)
    with pytest.raises(NonFiniteActivations):
        fit_contrast(yes * torch.nan, no, site=SITE)


def test_t10_attention_by_hand():
    # weights .25 and .75, values 1 and 2: 1.75
    x = torch.tensor([[[0.0, 1.0], [float(np.log(3)), 2.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    q, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    logit, weights = attend(x, mask, q, v, torch.zeros(1), torch.zeros(()))
    assert float(logit) == pytest.approx(1.75)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.25, 0.75, 0.0]))


def needles(n=240, d=10, seed=0):
    """One token of each text is marked (feature 0) and carries the label (feature 1); the others mislead."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2 == 0)
    rows, text = [], []
    for i, y in enumerate(labels):
        x = rng.normal(size=(rng.integers(4, 9), d))
        x[:, 1] *= 3
        x[rng.integers(len(x)), :2] = (6, 2 if y else -2)
        rows.append(x)
        text += [i] * len(x)
    return Activations(
        {SITE: torch.tensor(np.concatenate(rows), dtype=torch.float32)}, {"text": np.array(text)}
    ), labels


def test_attention_finds_the_token_that_the_mean_drowns():
    tokens, labels = needles()
    train, test = np.arange(160), np.arange(160, 240)
    probe = fit_tokens(tokens, labels, site=SITE, rows=train)
    scores = probe.scores(tokens)
    assert auroc(scores[test], labels[test]) > 0.95
    of = tokens.labels["text"]
    mean = np.stack([tokens[SITE].numpy()[of == i].mean(0) for i in range(240)])
    assert auroc(mean[test, 1], labels[test]) < 0.8
    weights = probe.weights(tokens)[:, 0]
    marked = [int(tokens[SITE].numpy()[of == i][:, 0].argmax()) for i in range(240)]
    assert np.mean(weights.argmax(1).numpy() == marked) > 0.9
    assert torch.allclose(weights.sum(1), torch.ones(240))
    assert float(probe.direction.vector[1]) > 0


def test_attention_needs_numbered_texts():
    tokens, labels = needles()
    gap = Activations(tokens.values, {"text": tokens.labels["text"] + 1})
    with pytest.raises(BadInput, match="text 0 has no token"):
        fit_tokens(gap, labels, site=SITE)


def test_shuffled_labels_of_several_classes_stay_as_clustered_as_they_were():
    """States that name the group, and one label a group that means nothing: by chance much is right, or nothing is."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 8)
    labels = rng.permutation(np.arange(30) % 3)[group]
    x = rng.normal(size=(30, 40))[group] + 0.1 * rng.normal(size=(240, 40))
    acts = Activations({SITE: torch.tensor(x)}, {"text": np.arange(240)})
    found = fit_classes(acts, labels, site=SITE, groups=group, n_controls=60, n_bootstrap=50)
    # of 9 held-out groups a third is right by chance, with a spread of sqrt(2 / 81) = .16
    assert found.shuffled.high - found.shuffled.low > 0.4
    assert found.shuffled.covers(1 / 3)


def test_three_classes_are_told_apart_and_shuffled_ones_are_not():
    rng = np.random.default_rng(0)
    labels = np.array(["art", "law", "sport"])[rng.permutation(np.arange(300) % 3)]
    x = rng.normal(size=(300, 8))
    for i, name in enumerate(("art", "law", "sport")):
        x[labels == name, i] += 3
    acts = Activations({SITE: torch.tensor(x)}, {"text": np.arange(300)})
    found = fit_classes(acts, labels, site=SITE, groups=np.arange(300) // 2, n_bootstrap=200, n_controls=5)
    assert found.classes == ("art", "law", "sport")
    assert found.accuracy.value > 0.85
    assert found.auroc.value > 0.95
    assert found.shuffled.value < 0.5
    assert found.confusion.sum() == found.accuracy.n
    assert found.to_frame().loc["art", "art"] == found.confusion[0, 0]
    for i, name in enumerate(found.classes):
        assert int(found.directions[name].vector.argmax()) == i
    named = found.scores(torch.tensor(x)).argmax(1).numpy()
    assert np.mean(np.array(found.classes)[named] == labels) > 0.85
    with pytest.raises(TooFewExamples, match="all 3 classes"):
        fit_classes(acts, labels, site=SITE, groups=(labels == "art").astype(int))
