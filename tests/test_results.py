"""Result values: what they say about themselves, and that they say it safely."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from latentlens.errors import BadInput, SiteNotFound, TooFewExamples
from latentlens.values.directions import Direction
from latentlens.values.results import Arm, Estimate, ProbeSweep, SiteProbe, SteeringEffect
from latentlens.values.sites import Site


def site_probe(block, auroc=0.8, cv=0.8, weights=(3.0, 4.0), control=True):
    half = Estimate(0.5, 0.4, 0.6, 20)
    return SiteProbe(
        Site("resid_post", block), Estimate(auroc, auroc - 0.1, auroc + 0.1, 90), 0.95, cv, 0.1, half,
        half if control else None, Estimate(auroc - 0.5, 0.2, 0.4, 20) if control else None,
        np.array(weights, dtype=np.float32), -1.0, np.array([1.0, 0.0], dtype=np.float32), "true against false",
        {"seed": 0},
    )  # fmt: skip


def sweep(*probes):
    return ProbeSweep(probes, ("false", "true"), np.arange(200), np.arange(200, 290), (40, 18), {"method": "made up"})


def test_an_estimate_prints_value_interval_level_and_n():
    assert str(Estimate(0.9123, 0.871, 0.9452, 120)) == "0.912 [0.871, 0.945] (95%, n=120)"
    assert Estimate(29.703, 26.204, 33.092, 490).short == "29.7 [26.2, 33.1]"  # a score needs no thousandths
    assert Estimate(math.nan, math.nan, math.nan, 0).short == "nan [nan, nan]"
    assert Estimate(0.5, 0.4, 0.6, 9).covers(0.6)
    assert not Estimate(0.5, 0.4, 0.6, 9).covers(0.61)


def test_results_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Estimate(0.5, 0.4, 0.6, 9).value = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        sweep(site_probe(0)).classes = ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Arm("no edit", 1, 2).k = 2


def test_best_looks_at_cross_validation_and_not_at_the_held_out_score():
    found = sweep(site_probe(0, auroc=0.89, cv=0.70), site_probe(1, auroc=0.70, cv=0.90), site_probe(2, cv=0.90))
    assert found.best().site == Site("resid_post", 1)  # the first of equals, although 0 has a better test score
    assert sweep(site_probe(4, cv=math.nan)).best().site == Site("resid_post", 4)


def test_a_probes_direction_points_to_label_one_and_travels(tmp_path):
    p = site_probe(3)
    assert p.direction.norm == pytest.approx(5.0)
    assert p.direction.site == Site("resid_post", 3)
    assert p.direction.source["intercept"] == -1.0
    assert Direction.load(p.direction.save(tmp_path / "d")) == p.direction
    assert p.mean_direction.source["method"] == "mean difference"
    with pytest.raises(BadInput, match="the same in every row"):
        _ = site_probe(3, weights=(0.0, 0.0)).direction


def test_sites_are_looked_up_by_spelling():
    found = sweep(site_probe(0), site_probe(1))
    assert found["resid_post[1]"].site.block == 1
    assert found["blocks.0.hook_resid_post"].site.block == 0
    with pytest.raises(SiteNotFound, match=r"resid_post\[0\], resid_post\[1\]"):
        found["resid_post[7]"]


def test_frames_hold_every_number_with_its_interval():
    frame = sweep(site_probe(0), site_probe(1, control=False)).to_frame()
    assert frame["site"].tolist() == ["resid_post[0]", "resid_post[1]"]
    for name in ("auroc", "shuffled", "control", "selectivity"):
        assert {name, f"{name}_low", f"{name}_high"} <= set(frame.columns)
    assert pd.isna(frame["control"][1])
    assert frame["n_test"].tolist() == [90, 90]
    table = sweep(site_probe(0), site_probe(1, control=False)).table()
    assert table["control task"][1] == "-"
    assert table["site"].tolist() == ["resid_post[0] *", "resid_post[1]"]


def test_names_given_by_a_user_are_escaped_in_html():
    evil = "<script>alert(1)</script>"
    found = dataclasses.replace(sweep(site_probe(0)), classes=("false", evil))
    assert evil in repr(found)
    assert "<script" not in found._repr_html_()
    effect = SteeringEffect((Arm("no edit", 1, 2),), evil)
    assert "<script" not in effect._repr_html_()
    assert "<table" in effect._repr_html_()


def test_arms_carry_wilson_intervals():
    share = Arm("direction", 8, 10, coeff=1.5).share
    assert (share.value, share.n) == (0.8, 10)
    assert (share.low, share.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert Arm.of("random", [True, False, True], coeff=2, draw=1) == Arm("random", 2, 3, 2, 1)


def test_arms_refuse_impossible_counts_and_unknown_kinds():
    with pytest.raises(BadInput, match="no edit, direction, random, prompt"):
        Arm("placebo", 1, 2)
    with pytest.raises(BadInput):
        Arm("random", 3, 2)
    with pytest.raises(TooFewExamples):
        Arm.of("direction", [])
    with pytest.raises(TooFewExamples):
        SteeringEffect((), "yes")


def test_the_direction_is_compared_with_pooled_random_draws_at_its_own_strength():
    effect = SteeringEffect(
        [
            Arm("no edit", 10, 40), Arm("direction", 30, 40, 1.0), Arm("direction", 35, 40, 2.0),
            Arm("random", 11, 40, 1.0, 0), Arm("random", 9, 40, 1.0, 1), Arm("random", 40, 40, 2.0, 0),
        ],
        "yes",
    )  # fmt: skip
    difference = effect.against("random", 1.0)
    assert difference.value == pytest.approx(30 / 40 - 20 / 80)
    assert difference.n == 120
    assert difference.low > 0.3
    assert effect.against("no edit", 2.0).value == pytest.approx(35 / 40 - 10 / 40)
    assert effect.coeffs == (1.0, 2.0)
    with pytest.raises(TooFewExamples, match="no arm 'prompt' at coeff 1"):
        effect.against("prompt", 1.0)
    assert effect.to_frame()["share"].tolist()[:2] == [0.25, 0.75]
    assert effect.table()["arm"].tolist()[3] == "random direction 0"
