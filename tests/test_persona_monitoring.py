import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.persona_monitoring import auroc_estimate, drift, monitor, projections, separation
from latentlens.methods.persona_screening import finetune_shift, projection_difference
from latentlens.values.activations import Activations
from latentlens.values.directions import Direction
from latentlens.values.sites import Site

SITE = Site("resid_post", 3)
V = Direction(torch.tensor([1.0, 3.0]), SITE, "v")


def acts(rows, text=None, turn=None, site=SITE):
    values = torch.tensor(np.asarray(rows), dtype=torch.float32)
    labels = {"text": np.arange(len(values)) if text is None else np.asarray(text)}
    if turn is not None:
        labels["turn"] = np.asarray(turn)
    return Activations({site: values}, labels)


def test_a_projection_is_the_coordinate_along_the_direction():
    assert projections(acts([[3, 1], [1, 3]]), V) == pytest.approx([1.8974, 3.1623], abs=1e-4)
    assert projections(acts([[2, 0], [4, 2], [1, 3]], text=[0, 0, 1]), V) == pytest.approx([1.8974, 3.1623], abs=1e-4)


def test_finetuning_shift_and_projection_difference_are_those_of_the_dossier():
    base, tuned = [[1, 1], [2, 0]], [[2, 3], [3, 1]]
    assert finetune_shift(base, tuned, V).mean.value == pytest.approx(1.7393, abs=1e-4)
    assert finetune_shift(acts(base), acts(tuned), V).mean.value == pytest.approx(1.7393, abs=1e-4)
    found = projection_difference([[2, 2], [1, 5]], [[1, 1], [1, 1]], V)
    assert found.values == pytest.approx([1.2649, 3.7947], abs=1e-4)
    assert found.mean.value == pytest.approx(2.5298, abs=1e-4)
    assert projection_difference([3.0, 5.0], [1.0, 1.0], V).mean.value == 3


def test_sides_that_do_not_match_are_refused():
    with pytest.raises(BadInput, match="the same prompts"):
        finetune_shift([[1, 1]], [[1, 1], [2, 2]], V)
    with pytest.raises(BadInput, match="give"):
        finetune_shift([[1, 1, 1]], [[1, 1, 1]], V)
    with pytest.raises(TooFewExamples):
        finetune_shift(np.zeros(0), np.zeros(0), V)


def test_groups_that_repeat_make_a_shift_less_certain():
    rng = np.random.default_rng(0)
    base = rng.normal(size=20)
    tuned, groups = np.repeat(base + rng.normal(1, 1, 20), 10), np.repeat(np.arange(20), 10)
    base = np.repeat(base, 10)
    rows, grouped = (finetune_shift(base, tuned, V, groups=g).mean for g in (None, groups))
    assert grouped.high - grouped.low > 2 * (rows.high - rows.low)


def planted(strength, n=120, d=16, seed=0):
    """Texts of which half carry a direction; random states besides."""
    rng = np.random.default_rng(seed)
    direction = np.eye(d)[0]
    labels = np.arange(n) % 2 == 1
    states = rng.normal(size=(n, d)) + strength * labels[:, None] * direction
    return acts(states), Direction(torch.tensor(direction), SITE, "planted"), labels


def test_a_planted_trait_is_separated_and_random_directions_are_not():
    a, v, y = planted(2.0, n=2000)
    (row,) = separation(a, [v], y, groups=np.arange(2000) // 4).rows
    assert row["auroc"].value == pytest.approx(0.9214, abs=0.02)  # Phi(2 / sqrt 2)
    assert row["auroc"].low > row["random"].high
    null = [separation(a, [v], y, draws=1).rows[0]["auroc"] for a, v, y in (planted(0.0, seed=s) for s in range(20))]
    assert sum(e.covers(0.5) for e in null) >= 17


def test_length_alone_is_shown_beside():
    a, v, y = planted(0.5)
    found = separation(a, [v], y, lengths=np.where(y, 20, 10) + np.arange(120) % 3)
    assert found.length.value == 1
    assert found.length.low < 1  # the interval has a width though every resample repeats the 1
    with pytest.raises(TooFewExamples):
        separation(a, [v], [True] * 120)
    with pytest.raises(BadInput, match="no vectors"):
        separation(a, [], y)


def test_a_perfect_score_has_the_interval_of_its_groups():
    y, scores = np.arange(40) < 20, -np.arange(40.0)
    by_row = auroc_estimate(scores, y, np.arange(40))
    by_group = auroc_estimate(scores, y, np.arange(40) // 5)
    assert by_row.value == by_group.value == 1
    assert by_group.low < by_row.low < 1


def test_correlation_within_a_kind_can_be_absent_where_the_whole_is_high():
    kinds, covered = np.repeat([0, 1, 2], 60), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = kinds * 5 + rng.normal(size=180), kinds * 3 + rng.normal(size=180)
        found = monitor(x, y, groups=np.arange(180) % 30, kinds=kinds)
        covered += found.within.covers(0)
        assert found.pearson.low > 0.8
        assert found.pearson.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert covered >= 17
    linked = monitor(x, kinds * 3 + 0.5 * (x - kinds * 5), kinds=kinds)
    assert linked.within.value == pytest.approx(1)


def test_answers_without_a_score_are_left_out():
    found = monitor([1, 2, 3, 4], [1, np.nan, 3, 4], kinds=list("abcd"))
    assert found.pearson.n == 3
    assert found.kind == ("a", "c", "d")
    assert np.isnan(monitor([1, 1, 1], [1, 2, 3]).pearson.value)
    with pytest.raises(TooFewExamples, match="three"):
        monitor([1, 2], [1, 2])
    with pytest.raises(BadInput, match="one each"):
        monitor([1, 2, 3], [1, 2])


def test_drift_is_the_mean_projection_of_each_turn():
    """Two conversations; turns of 2, 1 and 1 tokens; projections 1, 2, 4 and 2, 3, 5 along the first axis."""
    v = Direction(torch.tensor([2.0, 0.0]), SITE)
    rows = [[0, 9], [2, 9], [2, 0], [4, 0], [2, 0], [2, 1], [3, 0], [5, 0]]
    found = drift(acts(rows, text=[0] * 4 + [1] * 4, turn=[1, 1, 3, 5] * 2), v)
    assert [e.value for e in found.by_turn] == [1.5, 2.5, 4.5]
    assert found.slope.value == pytest.approx(1.5)
    assert found.turns == (1, 2, 3)
    shorter = drift(acts(rows[:7], text=[0] * 4 + [1] * 3, turn=[1, 1, 3, 5, 1, 1, 3]), v)
    assert shorter.turns == (1, 2)
    with pytest.raises(TooFewExamples, match="needs two"):
        drift(acts(rows[:4], text=[0] * 4, turn=[1, 1, 3, 5]), v)
