"""The ten-part report on planted data, where the answers are known."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from latentlens.errors import BadInput
from latentlens.maths.calibration_scores import (
    best_threshold,
    brier,
    expected_calibration_error,
    reliability,
    temperature,
)
from latentlens.maths.nested_probe import max_statistic
from latentlens.methods.probe_report import probe_report
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

D, GROUPS, PER_GROUP = 12, 50, 4
SITES = (Site("resid_post", 0), Site("resid_post", 1))
QUICK = {"n_permutations": 40, "n_bootstrap": 200, "n_controls": 5, "C": (0.01, 0.1)}


def planted(seed=0, strengths=(0.0, 3.0), copies=1):
    rng = np.random.default_rng(seed)
    n = GROUPS * PER_GROUP
    groups = np.repeat(np.arange(GROUPS), PER_GROUP)
    labels = rng.random(n) < 0.5
    truth = np.eye(D)[0]
    values = {
        s: torch.tensor(rng.normal(size=(n, D)) + a * labels[:, None] * truth, dtype=torch.float32)
        for s, a in zip(SITES, strengths)
    }
    return Activations(values, {"text": np.arange(n)}, {"model": "made up"}), labels, groups


@pytest.fixture(scope="module")
def full():
    acts, labels, groups = planted()
    more, other_labels, _ = planted(1)
    flat, *_ = planted(2, strengths=(0.0, 0.0))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "blue", "green"], 5)) for _ in labels]
    tokens = Activations(
        {s: torch.stack([torch.randn(v.shape, generator=torch.Generator().manual_seed(1)), v], 1).flatten(0, 1)
         for s, v in acts.values.items()},
        {"text": np.repeat(np.arange(len(labels)), 2)},
    )  # fmt: skip
    calls = []

    def effect(direction):
        calls.append(direction)
        along = float(direction.unit[0]) * direction.norm
        return along + 0.1 * np.random.default_rng(0).normal(size=30)

    found = probe_report(
        acts, labels, groups=groups, types=np.arange(len(labels)) % 10, texts=texts, untrained=flat, tokens=tokens,
        others={"twin": (more, other_labels), "turned": (more, ~other_labels)}, effect=effect, seed=0, **QUICK,
    )  # fmt: skip
    return found, calls


def test_all_ten_parts_are_there_and_nothing_is_missing(full):
    found, _ = full
    assert not found.missing
    assert len(found.tables()) == 10
    assert set(found.to_frame()["part"]) == {"folds", "scores", "chance", "controls", "calibration", "layers",
                                             "aggregation", "transfer", "samples", "causal"}  # fmt: skip
    assert "10. does the direction" in found._repr_html_()
    assert "AUROC" in repr(found)


def test_the_planted_site_is_chosen_in_every_fold_and_its_direction_found(full):
    found, _ = full
    assert set(found.table("folds")["site"]) == {"resid_post[1]"}
    assert found.direction.site == SITES[1]
    assert float(found.direction.unit[0]) > 0.95
    assert found.auroc.value > 0.95
    assert found.p == pytest.approx(1 / 41)
    chance = found.table("chance").set_index("site")["p, corrected for sites"]
    assert chance["resid_post[0]"] > 0.05
    layers = found.table("layers").set_index("what")["AUROC"]
    assert layers["resid_post[0]"].covers(0.5)
    for name in ("bag of words", "length", "untrained model, best site"):
        assert layers[name].value < 0.65


def test_selectivity_shuffles_and_calibration_say_what_was_planted(full):
    found, _ = full
    controls = found.table("controls").set_index("what")["value"]
    assert controls["selectivity, AUROC"].value > 0.3
    assert controls["selectivity, accuracy"].value > 0.2
    assert controls["shuffled labels, AUROC"].value == pytest.approx(0.5, abs=0.12)
    calibration = found.table("calibration").set_index("what")["value"]
    assert calibration["Brier, as fitted"].value < 0.12
    scores = found.table("scores").set_index("what")["value"]
    assert scores["balanced accuracy"].value > scores["majority rate"] + 0.2


def test_tokens_transfer_and_samples_order_as_planted(full):
    found, _ = full
    joined = {row["how"]: row["AUROC"].value for row in found.rows["aggregation"]}
    assert joined["last token"] > joined["mean of tokens"]  # the other token is noise
    transfer = {(r["fitted on"], r["scored on"]): r for r in found.rows["transfer"]}
    assert transfer["this", "twin"]["AUROC"].value > 0.95
    assert transfer["this", "twin"]["cosine"] > 0.8
    assert transfer["this", "turned"]["AUROC"].value < 0.05
    assert transfer["this, worst case", "turned"]["cosine"] < -0.8
    samples = {r["training rows"]: r["AUROC over draws"].value for r in found.rows["samples"]}
    assert samples["10% of the training groups"] < samples["100% of the training groups"]
    assert samples["positives at most 5% of training rows"] < samples["100% of the training groups"]


def test_the_causal_part_compares_equal_lengths(full):
    found, calls = full
    assert [round(c.norm, 4) for c in calls] == [round(found.direction.norm, 4)] * 7
    effects = {r["direction"]: r["effect"] for r in found.rows["causal"]}
    assert effects["probe"].value > max(effects[f"random {i}"].value for i in range(5))


def test_parts_without_data_are_named_with_what_to_give():
    acts, labels, groups = planted()
    found = probe_report(acts, labels, groups=groups, **QUICK)
    assert {"aggregation", "transfer", "causal", "untrained model"} <= set(found.missing)
    with pytest.raises(BadInput, match="give others="):
        found.table("transfer")
    with pytest.raises(BadInput, match="the parts are"):
        found.table("beauty")


def test_an_accuracy_of_one_still_has_an_interval_with_a_width():
    acts, labels, groups = planted(strengths=(0.0, 40.0))
    found = probe_report(acts, labels, groups=groups, **QUICK)
    scores = found.table("scores").set_index("what")["value"]
    for name in ("accuracy", "balanced accuracy"):
        assert scores[name].value == 1
        assert 0.85 < scores[name].low < 0.97  # 50 groups, all right


def test_labels_of_groups_do_not_leak():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 5)
    labels = rng.permutation(np.arange(60) % 2 == 0)[groups]
    noise = rng.normal(size=(60, 40))[groups] + 0.1 * rng.normal(size=(300, 40))
    acts = Activations({SITES[0]: torch.tensor(noise, dtype=torch.float32)}, {})
    found = probe_report(acts, labels, groups=groups, **QUICK)
    assert found.auroc.covers(0.5)
    leaky = probe_report(acts, labels, groups=np.arange(300), **QUICK)
    assert leaky.auroc.value > 0.9


def test_t3_calibration_by_hand():
    p, y = [0.9, 0.8, 0.3, 0.2], [1, 0, 1, 0]
    assert brier(p, y) == pytest.approx(0.295)
    assert expected_calibration_error(p, y, bins=2) == pytest.approx(0.30)
    assert reliability(p, y, 2)[1][2:] == (pytest.approx(0.85), 0.5, 2)
    assert best_threshold([1, 2, 3, 4], [0, 0, 1, 1]) == 2.5
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000) * 2
    labels = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_the_maximum_corrects_for_the_sites_tried():
    null = np.array([[0.5, 0.6], [0.7, 0.4], [0.5, 0.5]])
    each, best = max_statistic(np.array([0.55, 0.65]), null)
    np.testing.assert_allclose(each, [(1 + 2) / 4, (1 + 1) / 4])
    assert best == 0.5


@pytest.mark.slow
def test_null_calibration():
    """On labels that mean nothing, over 200 seeds: intervals cover .5 at their rate, p is uniform."""
    covered, ps = [], []
    for seed in range(200):
        acts, labels, groups = planted(seed, strengths=(0.0, 0.0))
        if seed % 2:  # one label a group as well
            labels = np.random.default_rng(seed).permutation(np.arange(GROUPS) % 2 == 0)[groups]
        found = probe_report(
            acts, labels, groups=groups, C=(0.01, 0.1), n_permutations=39, n_bootstrap=300, n_controls=1, seed=seed,
            n_outer=4, n_inner=3,
        )  # fmt: skip
        covered.append(found.auroc.covers(0.5))
        ps.append(found.p)
    assert 0.93 <= np.mean(covered) <= 0.97, np.mean(covered)
    # p lies on a grid of 1/40: spread it over its step before comparing with the uniform distribution
    jitter = np.random.default_rng(0).random(200) / 40
    assert kstest(np.array(ps) - jitter, "uniform").pvalue > 0.05
