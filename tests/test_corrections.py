"""Latents around a correction: regions by hand, planted activations recovered, traces aligned."""

import math

import numpy as np
import pytest

from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.corrections import OUTSIDE, aligned, region_means, region_test, token_regions
from latentlens.values.attempts import attempts

TEXT = "The reef. Wait, no. The drum."


def spans(text, size=4):
    return [(i, min(i + size, len(text))) for i in range(0, len(text), size)]


def test_tokens_get_the_region_of_their_last_character():
    first, second = attempts(TEXT)
    cut = [(0, 3), (3, 8), (8, 9), (9, 14), (14, 18), (18, 19), (19, 23), (23, 29), (29, 29)]
    found = token_regions(cut, (first, second))
    assert found.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, OUTSIDE]
    with pytest.raises(BadInput, match="between two"):
        token_regions(cut, (first,))


def test_everything_before_the_last_attempt_is_off_topic():
    parts = attempts("A b. Wait, no. C d. Sorry, no. E f.")
    found = token_regions([(0, 4), (5, 14), (15, 19), (20, 30), (31, 35)], parts)
    assert found.tolist() == [0, 0, 0, 1, 2]


def test_region_means_are_means_and_nan_where_there_is_no_token():
    values = [[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]
    found = region_means(values, [0, 0, 2])
    assert found[0].tolist() == [2.0, 1.0]
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [5.0, 5.0]
    assert region_means(values, [0, 0, 2], "max")[0].tolist() == [3.0, 2.0]
    with pytest.raises(BadInput, match="'max'"):
        region_means(values, [0, 0, 2], "sum")
    assert np.isnan(region_means(values, [OUTSIDE] * 3)).all()


def test_a_planted_difference_is_found_and_none_in_noise():
    draw = np.random.default_rng(0)
    base = draw.random(40)
    names = {"latents": "x", "unit": "episode", "names": ("off topic", "after")}
    up = region_test(base + 1 + 0.1 * draw.random(40), base, **names)
    assert up.wilcoxon < 1e-6
    assert up.t < 1e-6
    assert up.d > 2
    assert up.delta > 0.9
    assert up.ratio > 2
    same = region_test(base, draw.permutation(base), **names)
    assert same.wilcoxon > 0.01
    assert abs(same.d) < 1e-9


def test_pairs_that_lack_a_region_are_left_out_and_too_few_give_nan():
    names = {"latents": "x", "unit": "episode", "names": ("a", "b")}
    found = region_test([1.0, math.nan, 3.0], [0.0, 1.0, math.nan], **names)
    assert (found.n, found.mean_first) == (1, 1.0)
    assert math.isnan(found.t)
    with pytest.raises(BadInput, match="one mean a pair"):
        region_test([1.0], [1.0, 2.0], **names)


def test_traces_are_aligned_on_the_correction():
    """each episode is 1 up to its correction and 0 from it on, wherever that is"""
    starts = [3, 7, 5]
    series = {"x": [np.r_[np.ones(s), np.zeros(4)] for s in starts]}
    found = aligned(series, starts, [1, 2, 2], {"x": 0.1}, before=6, after=6)
    values = dict(zip(found.offsets, found.series["x"], strict=True))
    assert [values[o].value for o in (-3, -1, 0, 3)] == [1.0, 1.0, 0.0, 0.0]
    assert [values[o].n for o in (-6, -4, -3, 3, 4)] == [1, 2, 3, 3, 0]
    assert math.isnan(values[5].value)
    assert found.to_frame().shape == (13, 6)
    with pytest.raises(TooFewExamples, match="correction"):
        aligned(series, [], [], {})
    with pytest.raises(BadInput, match="episodes"):
        aligned(series, [1], [1], {})
