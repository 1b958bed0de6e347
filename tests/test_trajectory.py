"""Trajectories: by hand, by brute force, and what is invariant."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths import paths as geometry
from latentlens.methods import trajectory
from latentlens.values.activations import Activations
from latentlens.values.sites import Site

A = [(0, 0), (3, 4), (6, 0)]
B = [(0, 0), (1, 0), (2, 0)]


def acts_of(*texts, segment=10):
    """One text: (n_sites, N, d). Rows as a capture with pool=("segments", 10) labels them."""
    sites = [Site("resid_post", i) for i in range(len(texts[0]))]
    values = {s: torch.tensor(np.concatenate([t[i] for t in texts]), dtype=torch.float32) for i, s in enumerate(sites)}
    counts = [len(t[0]) for t in texts]
    position = np.concatenate([5 + segment * np.arange(n) for n in counts])
    labels = {"text": np.repeat(np.arange(len(texts)), counts), "position": position, "stop": position + segment}
    return Activations(values, labels)


def paths_of(*texts):
    return trajectory.paths(acts_of(*(np.asarray(t, dtype=float) for t in texts)))


def test_signals_of_two_layers_by_hand():
    """T4."""
    code, paper = (trajectory.signals(paths_of([A, B]), net=net) for net in ("code", "paper"))
    assert code.per_layer["net"][0].tolist() == pytest.approx([3, 1])
    assert code["net"][0] == pytest.approx(2.0)
    assert paper.per_layer["net"][0].tolist() == pytest.approx([2, 2 / 3])
    assert paper["net"][0] == pytest.approx(1.333333, abs=1e-6)
    assert code.per_layer["cumulative"][0].tolist() == pytest.approx([10, 2])
    assert code["cumulative"][0] == pytest.approx(6)
    assert code.per_layer["aligned"][0].tolist() == pytest.approx([0.6, 1.0])
    assert code["aligned"][0] == pytest.approx(0.8)


def test_the_default_net_change_is_the_papers():
    assert trajectory.signals(paths_of([A, B])).net == "paper"
    with pytest.raises(BadInput, match="paper"):
        trajectory.signals(paths_of([A, B]), net="both")


def test_chain_of_embedding_by_hand():
    """T5."""
    states = torch.tensor([[(2.0, 0.0), (1.0, 1.0), (-1.0, 2.0)]])
    changes = geometry.layer_changes(states.numpy())
    assert changes.length[0] == pytest.approx([0.392232, 0.620174], abs=1e-6)
    assert changes.angle[0] == pytest.approx([0.386051, 0.613949], abs=1e-6)
    found = trajectory.chain_of_embedding(states)
    assert found.mag[0] == pytest.approx(0.506203, abs=1e-6)
    assert found.ang[0] == pytest.approx(0.5, abs=1e-6)
    assert found.coe_r[0] == pytest.approx(0.006203, abs=1e-6)
    assert found.coe_c[0] == pytest.approx(0.503087, abs=1e-6)
    with pytest.raises(BadInput):
        trajectory.chain_of_embedding(states[:, :1])


def test_output_confidence_by_hand():
    """T6."""
    found = trajectory.output_confidence(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log())
    assert found["margin"][0] == pytest.approx(0.25)
    assert found["entropy"][0] == pytest.approx(1.213008, abs=1e-6)
    assert found["perplexity"][0] == pytest.approx(2)


def test_more_confidence_points_to_right_in_every_baseline():
    one = trajectory.signals(paths_of([A, B]))
    sure, unsure = (torch.tensor([p]).log() for p in ([0.9, 0.05, 0.05], [0.4, 0.3, 0.3]))
    high, low = (one.add(**trajectory.output_confidence(x)) for x in (sure, unsure))
    for name in ("margin", "entropy", "perplexity"):
        assert high.oriented(name)[0] > low.oriented(name)[0]


def test_more_confidence_over_the_response_points_to_right_too():
    two = trajectory.signals(paths_of([A, B], [A, B]))
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]]).log()
    found = two.add(**trajectory.output_scores(Activations({Site("logits"): logits}, {"text": np.array([0, 1])})))
    for name in ("p_max", "ppl", "mean_entropy"):
        assert found.oriented(name)[0] > found.oriented(name)[1], name


def test_output_scores_average_over_the_response():
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1 - 1e-9, 1e-9]]).log()
    acts = Activations({Site("logits"): logits}, {"text": np.array([4, 4, 9])})
    found = trajectory.output_scores(acts)
    assert found["p_max"] == pytest.approx([0.625, 1.0])
    assert found["ppl"] == pytest.approx([(math.log(2) + math.log(4 / 3)) / 2, 0], abs=1e-6)
    assert found["mean_entropy"] == pytest.approx([(1 + 0.811278) / 2, 0], abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 999))
def test_mean_step_along_the_whole_is_net_change_of_the_code(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d))
    steps, whole = np.diff(x, axis=0), x[-1] - x[0]
    net = geometry.displacement(x).reach / (n - 1)
    assert (geometry.speed(x) * geometry.cosine(steps, whole[None])).mean() == pytest.approx(net)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 9), st.integers(0, 999))
def test_no_signal_sees_the_order_of_steps(n, seed):
    """Shuffling steps is no null for these signals: it changes nothing. Shuffling segments is."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    steps = rng.permutation(np.diff(x, axis=0))
    other = x[0] + np.concatenate([np.zeros((1, 4)), np.cumsum(steps, axis=0)])
    assert np.array(geometry.displacement(other)) == pytest.approx(np.array(geometry.displacement(x)))


def test_torch_agrees_on_alignment_zero_vectors_included():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    a[0] = b[1] = 0
    expected = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=-1, eps=1e-8)
    assert geometry.cosine(a, b) == pytest.approx(expected.numpy())


def test_two_segments_are_always_straight_and_one_has_no_signal():
    found = trajectory.signals(paths_of([A[:2], B[:2]], [A[:1], B[:1]]), net="code")
    assert found["aligned"][0] == pytest.approx(1)
    assert found["net"][0] == pytest.approx(found["cumulative"][0])
    for name in ("net", "cumulative", "aligned"):
        assert math.isnan(found[name][1])
    assert np.isfinite(found["layer_mag"]).all()


def test_a_text_that_stands_still_moves_nowhere():
    found = trajectory.signals(paths_of(np.ones((2, 4, 3))))
    assert [found[name][0] for name in ("net", "cumulative", "aligned", "layer_mag")] == [0, 0, 0, 0]


def test_paths_are_sorted_and_count_their_tokens():
    acts = acts_of(np.array([A, B], float), np.array([B, A], float))
    mixed = acts.rows(np.array([5, 1, 3, 0, 4, 2]))
    one, other = trajectory.paths(acts), trajectory.paths(mixed)
    assert all((x == y).all() for x, y in zip(one, other, strict=True))
    assert other.n_tokens.tolist() == [30, 30]
    assert other.starts[1].tolist() == [5, 15, 25]
    assert len(other[1:]) == 1
    assert other[np.array([False, True])].texts.tolist() == [1]
    assert "2 texts of 3 to 3 points at 2 sites" in repr(other)


def test_layers_can_be_read_one_by_one():
    found = trajectory.signals(paths_of([A, B]), net="code")
    first = found.layer(Site("resid_post", 0))
    assert first["net"].tolist() == pytest.approx([3])
    with pytest.raises(BadInput):
        found.layer(Site("resid_post", 7))
    with pytest.raises(BadInput):
        found["nonsense"]
    with pytest.raises(BadInput):
        found.add(margin=[1.0, 2.0])


def test_between_cuts_at_marks():
    tokens = ["<q>", "A", " b", ".\n", "C", "\n", "\n", "D"]
    assert trajectory.between(tokens, start=1) == [1, 2, 4, 7]
    assert trajectory.between(tokens, ("\n", "C"), start=0) == [0, 1, 2, 7]


def test_what_is_no_path_is_refused():
    with pytest.raises(BadInput):
        trajectory.paths(Activations({Site("resid_post", 0): torch.zeros(3, 2)}, {"text": np.zeros(3)}))
    with pytest.raises(NonFiniteActivations):
        paths_of([[(math.nan, 0), (0, 0)]])
    with pytest.raises(BadInput):
        paths_of(np.zeros((1, 3, 2, 2)))


# -- the path itself ------------------------------------------------------------------------------


def test_speed_and_curvature_of_a_square():
    square = paths_of([[(0, 0), (2, 0), (2, 2), (0, 2)]])
    assert trajectory.speed(square)[0][0] == pytest.approx([2, 2, 2])
    assert trajectory.curvature(square)[0][0] == pytest.approx([math.pi / 2] * 2)
    line = paths_of([[(0, 0), (1, 1), (2, 2), (1, 1)]])
    assert trajectory.curvature(line)[0][0] == pytest.approx([0, math.pi], abs=1e-3)


def test_a_walk_turns_by_a_right_angle_and_noise_about_a_point_by_two_thirds_of_pi():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 60, 800))
    assert trajectory.curvature(paths_of(noise))[0].mean() == pytest.approx(2 * math.pi / 3, abs=0.03)
    assert trajectory.curvature(paths_of(noise.cumsum(1)))[0].mean() == pytest.approx(math.pi / 2, abs=0.03)


def test_drift_by_hand():
    states = torch.tensor([(9.0, 9.0), (3.0, 0.0), (5.0, 0.0), (9.0, 9.0), (0.0, 4.0)])
    labels = {
        "text": np.zeros(5, int),
        "turn": np.array([0, 1, 1, 2, 3]),
        "role": np.array(["user", "assistant", "assistant", "user", "assistant"], dtype=object),
    }
    frame = trajectory.drift(Activations({Site("resid_post", 0): states}, labels))
    assert frame["turn"].tolist() == [1, 3]
    assert frame["distance"].tolist() == pytest.approx([0, math.sqrt(32)])
    assert frame["relative"].tolist() == pytest.approx([0, math.sqrt(2)])
    assert frame["cosine"].tolist() == pytest.approx([1, 0])
    assert frame["n_tokens"].tolist() == [2, 1]
    everybody = trajectory.drift(Activations({Site("resid_post", 0): states}, labels), role=None)
    assert everybody["turn"].tolist() == [0, 1, 2, 3]
    assert everybody["step"][1] == pytest.approx(math.hypot(5, 9))
    with pytest.raises(BadInput):
        trajectory.drift(Activations({Site("resid_post", 0): states}, labels), role="system")


# -- several signals as one -----------------------------------------------------------------------


def test_a_combination_is_fitted_on_calibration_texts_only():
    rng = np.random.default_rng(0)
    found = trajectory.signals(paths_of(*rng.normal(size=(60, 2, 5, 4))))
    y, half = rng.random(60) < 0.5, np.arange(60) < 30
    score = trajectory.combine(found, y, half)
    assert trajectory.combine(found, np.where(half, y, ~y), half) == pytest.approx(score)
    weights, expected = [], np.zeros(60)
    for name in ("net", "cumulative", "aligned"):
        s = found.oriented(name)
        weights.append(abs(np.corrcoef(s[half], y[half])[0, 1]))
        expected += weights[-1] * (s - s[half].mean()) / s[half].std()
    assert score == pytest.approx(expected / sum(weights))
    with pytest.raises(TooFewExamples):
        trajectory.combine(found, np.ones(60, bool), half)
    with pytest.raises(BadInput):
        trajectory.combine(found, y, np.arange(60))


def test_a_truncated_path_is_what_can_be_known_early():
    rng = np.random.default_rng(0)
    long, short = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 2, 3))
    cut = trajectory.truncated(paths_of(long, short), 4)
    assert cut.n_points.tolist() == [4, 2]
    assert cut.n_tokens.tolist() == [40, 20]
    assert trajectory.signals(cut)["net"].tolist() == trajectory.signals(paths_of(long[:, :4], short))["net"].tolist()
    with pytest.raises(BadInput):
        trajectory.truncated(cut, 0)


def test_segments_of_single_tokens_are_their_means_and_may_end_early():
    rng = np.random.default_rng(0)
    acts = Activations(
        {Site("resid_post", 0): torch.tensor(rng.normal(size=(12, 3)), dtype=torch.float32)},
        {"text": np.repeat([0, 1], [7, 5]), "position": np.r_[np.arange(4, 11), np.arange(2, 7)]},
    )
    tokens = trajectory.paths(acts)
    found = trajectory.pooled(tokens, 3, [7, 4])
    assert found.n_points.tolist() == [3, 2]
    np.testing.assert_allclose(found.states[0][0, 1], tokens.states[0][0, 3:6].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.states[0][0, 2], tokens.states[0][0, 6], rtol=1e-6)
    np.testing.assert_allclose(found.states[1][0, 1], tokens.states[1][0, 3], rtol=1e-6)
    assert found.n_tokens.tolist() == [7, 4]
    assert found.starts[0].tolist() == [4, 7, 10]
    for size, lengths in ((0, None), (2, [8, 1]), (2, [1]), (2, [0, 1])):
        with pytest.raises(BadInput, match="lengths"):
            trajectory.pooled(tokens, size, lengths)
