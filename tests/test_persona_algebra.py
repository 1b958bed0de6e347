import numpy as np
import pytest
import torch

from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.cosines import chance_cosine, cosine_matrix, mean_off_diagonal
from latentlens.methods.persona_algebra import (
    character,
    cosine_map,
    mix,
    orthogonalise,
    remove_shared,
    shared,
    without,
)
from latentlens.values.directions import Direction


def direction(*values, site="resid_post[3]", frame="raw"):
    return Direction(torch.tensor(values, dtype=torch.float32), site, str(values), frame)


OCEAN = {"open": direction(2, 0, 0), "careful": direction(0, 4, 0), "kind": direction(0, 0, 3)}


def test_a_mix_is_the_weighted_sum():
    found = mix(OCEAN, {"open": 1.5, "kind": -2})
    assert found.vector.tolist() == [3, 0, -6]
    assert found.name == "+1.5 open -2 kind"
    with pytest.raises(BadInput, match="'brave'"):
        mix(OCEAN, {"brave": 1})
    with pytest.raises(BadInput, match="cancel"):
        mix({"a": direction(1, 2), "b": direction(-1, -2)}, {"a": 1, "b": 1})
    with pytest.raises(BadInput, match="different sites"):
        mix({"a": direction(1, 2), "b": direction(1, 2, site="resid_post[4]")}, {"a": 1, "b": 1})


def test_a_character_sheet_is_centred_at_one_half():
    plain = character(OCEAN, {"open": 1.0, "careful": 0.25}, renormalise=False)
    assert plain.vector.tolist() == [2, -2, 0]
    found = character(OCEAN, {"open": 1.0, "careful": 0.25})
    assert found.norm == pytest.approx(3)  # mean length of 2, 4 and 3
    assert found.cosine(plain) == pytest.approx(1)
    mild = character(OCEAN, {"open": 0.6, "careful": 0.45})
    assert mild.norm == pytest.approx(3)


def test_a_neutral_character_is_no_edit():
    assert character(OCEAN, {"open": 0.5, "careful": 0.5, "kind": 0.5}) is None
    assert character(OCEAN, {}) is None
    with pytest.raises(BadInput, match="0 to 1"):
        character(OCEAN, {"open": 1.5})
    with pytest.raises(BadInput, match="'brave'"):
        character(OCEAN, {"brave": 0.5, "open": 1.0})


def test_what_lies_in_the_span_of_others_is_taken_out():
    found = without(direction(3, 4, 5), [direction(1, 0, 0), direction(1, 1, 0), direction(2, 2, 0)])
    assert found.vector.tolist() == pytest.approx([0, 0, 5], abs=1e-6)
    assert found.source["share removed"] == pytest.approx(0.5)
    with pytest.raises(BadInput, match="nothing is left"):
        without(direction(3, 4, 0), [direction(1, 0, 0), direction(1, 1, 0)])
    with pytest.raises(TooFewExamples):
        without(direction(3, 4, 0), [])


def test_orthogonalised_vectors_are_orthogonal_and_nearest():
    rng = np.random.default_rng(0)
    base = rng.normal(size=16)
    given = {str(i): direction(*(rng.normal(size=16) + base)) for i in range(4)}
    found = orthogonalise(given)
    rows = np.stack([d.vector.numpy() for d in found.values()])
    assert np.abs(cosine_matrix(rows) - np.eye(4)).max() < 1e-5
    assert [d.norm for d in found.values()] == pytest.approx([d.norm for d in given.values()], rel=1e-5)
    unit = np.stack([d.unit.numpy() for d in given.values()]).astype(float)
    distance = np.linalg.norm(rows / np.linalg.norm(rows, axis=1, keepdims=True) - unit)
    gram_schmidt = np.linalg.qr(unit.T)[0].T
    gram_schmidt *= np.sign((gram_schmidt * unit).sum(1, keepdims=True))
    assert distance < np.linalg.norm(gram_schmidt - unit)
    with pytest.raises(BadInput, match="linearly"):
        orthogonalise({"a": direction(1, 2), "b": direction(2, 4)})


def test_a_planted_common_part_is_found_and_removed():
    rng = np.random.default_rng(1)
    common = rng.normal(size=64)
    given = {str(i): direction(*(rng.normal(size=64) + 2 * common)) for i in range(5)}
    found = shared(given)
    assert found.cosine(direction(*common)) > 0.9
    assert found.norm > 0.85
    left = remove_shared(given)
    assert max(abs(v.cosine(found)) for v in left.values()) < 1e-5
    assert cosine_map(left).mean < cosine_map(given).mean / 3
    random = {str(i): direction(*rng.normal(size=64)) for i in range(5)}
    assert shared(random).norm == pytest.approx(5**-0.5, abs=0.1)


def test_chance_is_what_random_directions_have():
    assert chance_cosine(896) == pytest.approx(0.02666, abs=5e-6)
    rng = np.random.default_rng(2)
    assert mean_off_diagonal(rng.normal(size=(200, 64))) == pytest.approx(chance_cosine(64), rel=0.03)


def test_a_cosine_map_has_all_pairs():
    found = cosine_map({"x": direction(1, 0), "y": direction(1, 1), "z": direction(-1, 0)})
    assert found.cosines == pytest.approx(np.array([[1, 0.7071, -1], [0.7071, 1, -0.7071], [-1, -0.7071, 1]]), abs=1e-4)
    assert found.mean == pytest.approx((1 + 2 * 0.7071) / 3, abs=1e-4)
    assert found.to_frame().loc["x", "z"] == -1
    with pytest.raises(TooFewExamples):
        cosine_map({"x": direction(1, 0)})
    with pytest.raises(BadInput, match="widths"):
        cosine_map({"x": direction(1, 0), "y": direction(1, 0, 0)})
    with pytest.raises(BadInput, match="zero"):
        cosine_matrix([[1, 0], [0, 0]])
