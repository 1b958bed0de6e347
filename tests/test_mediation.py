"""Effects of swapped parts: hand-computed numbers, planted effects, and what is undefined."""

import math

import numpy as np
import pytest

import latentlens as ll
from latentlens.errors import BadInput, NotAligned, TooFewExamples
from latentlens.maths.attribution import nodes
from latentlens.maths.clustered_means import clustered_ratios
from latentlens.maths.statistics import cluster_bootstrap
from latentlens.methods import mediation
from latentlens.values.alignment import align
from latentlens.values.rows import TokenRow


def runs(shares, n=40, seed=0, **more):
    """Items with total effects around 2, of which mediator k carries shares[k]."""
    rng = np.random.default_rng(seed)
    base, total = rng.normal(0, 1, n), rng.normal(2, 0.5, n)
    patched = base[:, None] + total[:, None] * np.array(shares)
    return mediation.Patched(base, base + total, patched, [f"z{k}" for k in range(len(shares))], **more)


def test_attribution_and_integrated_gradients_of_a_square_are_those_worked_out_by_hand():
    gradient = lambda a: 2 * a  # m(a) = a^2 from 1 to 3: the exact effect is 8
    assert mediation.integrated(gradient, 1.0, 3.0, 1, "left") == 4.0  # attribution patching
    assert mediation.integrated(gradient, 1.0, 3.0, 10, "left") == pytest.approx(7.6)
    assert mediation.integrated(gradient, 1.0, 3.0, 10, "midpoint") == pytest.approx(8.0)


def test_integrated_gradients_of_a_cubic_close_in_on_the_exact_effect_with_the_square_of_the_steps():
    error = [abs(mediation.integrated(lambda a: 3 * a**2, 0.0, 2.0, k) - 8.0) for k in (5, 10, 20)]
    assert error[0] / error[1] == pytest.approx(4, rel=1e-6)
    assert error[1] / error[2] == pytest.approx(4, rel=1e-6)


def test_rules_and_steps_that_do_not_exist_are_refused():
    with pytest.raises(BadInput, match="left, midpoint"):
        nodes(3, "right")
    with pytest.raises(BadInput, match="steps=0"):
        nodes(0)


def test_the_normalised_effect_is_that_of_geometry_of_truth():
    assert mediation.normalised(0.27, -0.6, 0.5) == pytest.approx(0.790909, abs=1e-6)


def test_an_item_without_a_total_effect_has_no_normalised_effect():
    got = mediation.normalised([[1.0, 2.0], [5.0, 6.0]], [0.0, 4.0], [2.0, 4.05], least=0.1)
    assert got[0].tolist() == [0.5, 1.0]
    assert np.isnan(got[1]).all()


def test_faithfulness_has_the_areas_of_mib():
    sizes = np.array([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]) / 100
    found = mediation.faithfulness(sizes, [0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.1, 1.0])
    assert found.cpr == pytest.approx(0.97125)
    assert found.cmd == pytest.approx(0.10775)
    with pytest.raises(BadInput, match="increase"):
        mediation.faithfulness([0.5, 0.2], [0, 1])
    with pytest.raises(TooFewExamples, match="two sizes"):
        mediation.faithfulness([0.5], [1])


def test_planted_shares_are_recovered_and_absent_under_the_control():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.3, (40, 3))
    made = runs([0.0, 0.4, 1.0])
    made = mediation.Patched(
        made.base, made.source, made.patched + noise, made.names,
        random=made.base[:, None] + rng.normal(0, 0.3, (40, 3)),
    )  # fmt: skip
    found = mediation.effects(made, groups=np.arange(40) // 2)
    for name, share in (("z0", 0.0), ("z1", 0.4), ("z2", 1.0)):
        assert found[name].normalised.covers(share)
        assert found[name].pooled.covers(share)
        assert found[name].random.covers(0.0)
    assert found.strongest(1)[0].name == "z2"
    assert found["z1"].unrelated is None
    assert found.n == 40


def test_effects_are_means_and_ratios_of_the_items():
    made = mediation.Patched([0.0, 1.0], [2.0, 5.0], [[1.0], [4.0]], ["z"], reversed=[[0.5], [2.0]])
    found = mediation.effects(made)
    assert found["z"].effect.value == pytest.approx((1 + 3) / 2)
    assert found["z"].normalised.value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["z"].pooled.value == pytest.approx(4 / 6)
    assert found["z"].direct.value == pytest.approx((0.5 + 1.0) / 2)  # m(x' | do(z = z_x)) - m(x)
    assert found.total.value == pytest.approx(3.0)


def test_items_with_a_vanishing_denominator_are_dropped_and_counted():
    made = runs([0.5])
    source = made.source.copy()
    source[:3] = made.base[:3] + 1e-6
    wild = made.patched.copy()
    wild[:3] += 7.0  # would be a normalised effect of millions
    found = mediation.effects(mediation.Patched(made.base, source, wild, made.names))
    assert found.dropped == 3
    assert found["z0"].normalised.n == 37
    assert found["z0"].normalised.value == pytest.approx(0.5)
    assert found["z0"].effect.n == 40
    assert mediation.effects(made, least=0.0).dropped == 0


def test_without_any_total_effect_there_is_nothing_to_mediate():
    with pytest.raises(TooFewExamples, match="does not tell the clean prompts from the corrupt ones"):
        mediation.effects(mediation.Patched([1.0, 2.0], [1.0, 2.0], [[1.0], [2.0]], ["z"]))
    with pytest.raises(TooFewExamples, match="no items"):
        mediation.effects(mediation.Patched([], [], np.zeros((0, 1)), ["z"]))


def test_one_item_has_a_value_and_no_interval():
    found = mediation.effects(mediation.Patched([0.0], [2.0], [[1.0]], ["z"]))
    assert found["z"].normalised.value == 0.5
    assert math.isnan(found["z"].normalised.low)


def test_shapes_modes_and_names_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match=r"\(items, mediators\) = \(2, 1\)"):
        mediation.Patched([0.0, 1.0], [1.0, 2.0], [[1.0, 2.0]], ["z"])
    with pytest.raises(BadInput, match="denoising, noising"):
        mediation.Patched([0.0], [1.0], [[1.0]], ["z"], mode="both")
    with pytest.raises(BadInput, match="no mediator 'y'"):
        mediation.effects(runs([0.5]))["y"]


def test_columns_have_the_intervals_of_the_cluster_bootstrap():
    rng = np.random.default_rng(0)
    x, y, groups = rng.normal(size=(30, 2)), rng.normal(2, 1, 30), np.arange(30) // 3
    means = clustered_ratios(x, groups=groups, seed=3)
    for k in range(2):
        ends = cluster_bootstrap(lambda v: float(v.mean()), x[:, k], groups=groups, seed=3)
        assert (means.low[k], means.high[k]) == pytest.approx(ends)
    ratio = clustered_ratios(x, y, groups=groups, seed=3)
    ends = cluster_bootstrap(lambda v, w: float(v.sum() / w.sum()), x[:, 1], y, groups=groups, seed=3)
    assert ratio.value[1] == pytest.approx(x[:, 1].sum() / y.sum())
    assert (ratio.low[1], ratio.high[1]) == pytest.approx(ends)


def test_a_row_that_is_nan_in_a_column_counts_in_the_others():
    x = np.array([[1.0, 1.0], [3.0, np.nan], [5.0, 2.0]])
    found = clustered_ratios(x)
    assert found.n.tolist() == [3, 2]
    assert found.value.tolist() == [3.0, 1.5]
    only = clustered_ratios(np.array([[1.0], [np.nan], [np.nan]]))
    assert only.value[0] == 1.0
    assert math.isnan(only.low[0])


def test_agreement_is_one_with_itself_and_small_against_noise():
    exact = runs([0.0, 0.2, 0.5, 0.9, 1.0])
    same = mediation.agreement(exact, mediation.Patched(exact.base, exact.source, exact.patched, exact.names))
    assert (same.pearson.value, same.spearman.value, same.slope) == pytest.approx((1, 1, 1))
    doubled = mediation.Patched(
        exact.base, exact.source, exact.base[:, None] + 2 * exact.indirect, exact.names, method="attribution"
    )
    assert mediation.agreement(exact, doubled).slope == pytest.approx(2)
    assert mediation.agreement(exact, doubled).worst == "z4"
    with pytest.raises(BadInput, match="differ in their mediators or items"):
        mediation.agreement(exact, runs([0.0, 0.2, 0.5, 0.9, 1.0], seed=1))
    with pytest.raises(TooFewExamples, match="at least 3"):
        mediation.agreement(runs([0, 1]), runs([0, 1]))


def row(*ids):
    return TokenRow.plain(ids)


def test_rows_of_one_length_align_position_by_position_and_others_are_refused():
    assert align(row(1, 2, 3), row(1, 9, 3)) == {0: 0, 1: 1, 2: 2}
    with pytest.raises(NotAligned, match=r"pair 4 has 3 and 4 tokens.*differ from position 1 on.*align='right'"):
        align(row(1, 2, 3), row(1, 9, 2, 3), item=4)


def test_rows_of_different_lengths_align_as_told():
    short, long = row(1, 2, 3), row(1, 9, 9, 2, 3)
    assert align(short, long, "left") == {0: 0, 1: 1, 2: 2}
    assert align(short, long, "right") == {0: 2, 1: 3, 2: 4}
    assert align(long, short, "right") == {2: 0, 3: 1, 4: 2}
    assert align(short, long, [(0, 0), (-1, -1)]) == {0: 0, 2: 4}
    assert align(short, long, {1: 3}) == {1: 3}
    with pytest.raises(BadInput, match="outside rows of 3 and 5"):
        align(short, long, [(0, 5)])
    with pytest.raises(BadInput, match="align='middle'"):
        align(short, long, "middle")
    with pytest.raises(BadInput, match="give pairs"):
        align(short, long, [1, 2])


def test_tables_name_every_mediator_and_its_controls():
    made = runs([0.2, 0.7], mode="noising", random=np.zeros((40, 2)), unrelated=np.full((40, 2), np.nan))
    found = mediation.effects(made)
    frame = found.to_frame()
    assert frame["mediator"].tolist() == ["z0", "z1"]
    assert {"normalised", "pooled_low", "random_high", "n", "dropped"} <= set(frame)
    assert found["z0"].unrelated.n == 0
    assert math.isnan(found["z0"].unrelated.value)
    assert "noising" in repr(found)
    assert "<table" in found._repr_html_()
    assert len(made.to_frame()) == 80
    assert ll.mediation is mediation
