"""With nothing to find, intervals cover chance at their rate and p-values are uniform."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from latentlens.methods.recoverability import recover
from latentlens.methods.signal_quality import evaluate
from latentlens.values.activations import Activations
from latentlens.values.sites import Site
from latentlens.values.trajectory import Signals

SEEDS = 200
# Coverage is read to within 2%, which needs 600 draws: 200 of them have a standard error of 1.5%.
MANY = 600
FOLD_SEEDS = 400


@pytest.mark.slow
def test_p_values_of_recoverability_are_uniform_and_holdout_intervals_cover_chance():
    p, covered = [], 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        acts = Activations({Site("resid_post", 0): torch.tensor(rng.normal(size=(100, 10)))}, {"text": np.arange(100)})
        y = rng.permutation(np.arange(100) < 50)
        found = recover(acts, y, split="holdout", C=0.1, seed=seed, n_bootstrap=200, n_permutations=19)
        p.append(found.p - rng.random() / 20)  # p takes 20 values: spread each over its step
        covered += found.auroc.covers(0.5)
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.93 <= covered / SEEDS <= 0.97


@pytest.mark.slow
def test_out_of_fold_intervals_of_recoverability_cover_chance_and_published_ones_do_not():
    covered = published = 0
    for seed in range(FOLD_SEEDS):
        rng = np.random.default_rng(seed)
        acts = Activations({Site("resid_post", 0): torch.tensor(rng.normal(size=(100, 10)))}, {"text": np.arange(100)})
        y = rng.permutation(np.arange(100) < 50)
        found = recover(acts, y, split="folds", seed=seed, n_bootstrap=200, n_permutations=100)
        ends = [
            found.auroc.value + (end - found.auroc.value) / found.wider for end in (found.auroc.low, found.auroc.high)
        ]
        covered += found.auroc.covers(0.5)
        published += ends[0] <= 0.5 <= ends[1]
    assert 0.93 <= covered / FOLD_SEEDS <= 0.97
    assert published / FOLD_SEEDS < 0.9


@pytest.mark.slow
def test_intervals_of_signals_that_mean_nothing_cover_chance():
    covered = within = 0
    for seed in range(MANY):
        rng = np.random.default_rng(seed)
        question = np.repeat(np.arange(60), 4)
        noise = rng.normal(size=60)[question] + rng.normal(size=240)
        right = rng.random(60)[question] > rng.random(240)
        lengths = rng.integers(50, 90, 240)
        signals = Signals({"noise": noise}, {}, {"noise": 1}, (), lengths, lengths, "paper")
        one = evaluate(signals, right, groups=question, n_bins=3, n_bootstrap=300, seed=seed)["noise"]
        covered += one.auroc.covers(0.5)
        within += one.within.covers(0.5)
    assert 0.93 <= covered / MANY <= 0.97
    assert 0.93 <= within / MANY <= 0.97
