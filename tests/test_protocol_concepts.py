"""Every method fitted to one concept: what arms there are, what they do to states, and what is measured once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.access.measures.steering_arms import best_arm
from latentlens.access.store.kept_numbers import KeptNumbers
from latentlens.errors import BadInput, TooFewExamples
from latentlens.methods.directions import arms
from latentlens.organism import concepts as embedded
from latentlens.protocols import concepts as protocol
from latentlens.values.activations import Activations
from latentlens.values.sites import Site
from latentlens.values.steering_arms import ArmFits, SteeringArm

STATES = [
    "mean difference (CAA)", "mean-centring", "PCA of pairs, uncentred", "PCA of pairs, centred (trap)", "LDA",
    "affine concept edit (ACE)", "floor on the axis (capping)", "Linear-AcT", "angular", "ITI, heads",
]  # fmt: skip


def planted(n=40, d=8):
    """Pairs that differ by 2 along the first axis at two blocks, shuffled; and heads of which one knows."""
    rng = np.random.default_rng(0)
    y, pair = np.repeat([True, False], n), np.tile(np.arange(n), 2)
    shared = rng.normal(size=(n, d))[pair]
    x = {Site("resid_post", b): torch.tensor(shared + 0.1 * rng.normal(size=(2 * n, d)) + (b + 1)) for b in (0, 1)}
    for values in x.values():
        values[:, 0] += torch.tensor(2.0 * y)
    z = torch.tensor(rng.normal(size=(2 * n, 3, 4)))
    z[:, 1, 0] += torch.tensor(4.0 * y)
    order = rng.permutation(2 * n)
    acts = Activations({**{s: v[order].float() for s, v in x.items()}, Site("z", 0): z[order].float()},
                       {"text": np.arange(2 * n)})  # fmt: skip
    return acts, y[order], pair[order]


def test_every_estimator_of_states_is_an_arm_and_points_to_what_was_planted():
    acts, y, pair = planted()
    fits = ArmFits()
    arms.direction_arms(fits, acts, y, pair, "resid_post[1]")
    assert fits.left_out == {}
    assert [arm.name for arm in fits.found] == STATES
    by_name = {arm.name: arm.plan(1.0) for arm in fits.found}
    for name in ("mean difference (CAA)", "mean-centring", "PCA of pairs, uncentred", "LDA"):
        unit = by_name[name].direction.unit
        assert float(unit[0]) > (0.5 if name == "LDA" else 0.99), name
    assert abs(float(by_name["PCA of pairs, centred (trap)"].direction.unit[0])) < 0.7
    assert {str(edit.site) for edit in by_name["ITI, heads"]} == {"z[0]"}
    assert len(by_name["ITI, heads"]) == 1


def test_pairs_are_found_whatever_the_order_of_the_rows():
    acts, y, pair = planted()
    found = []
    for order in (np.arange(len(y)), np.random.default_rng(3).permutation(len(y))):
        fits = ArmFits()
        arms.direction_arms(fits, acts.rows(order), y[order], pair[order], "resid_post[1]")
        found.append(next(a for a in fits.found if a.name == "PCA of pairs, uncentred").plan(1.0).direction.vector)
    torch.testing.assert_close(*found)
    with pytest.raises(BadInput, match="one row of each side in every pair"):
        arms.direction_arms(ArmFits(), acts, y, np.roll(pair, 1), "resid_post[1]")


def test_a_reference_moves_the_mean_that_is_centred_on():
    acts, y, pair = planted()
    vectors = []
    for reference in (None, torch.full((500, 8), 50.0)):
        fits = ArmFits()
        arms.direction_arms(fits, acts, y, pair, "resid_post[1]", reference=reference)
        vectors.append(next(a for a in fits.found if a.name == "mean-centring").plan(1.0).direction.vector)
    assert float(vectors[0][0]) == pytest.approx(1.0, abs=0.2)
    assert float(vectors[1].mean()) < -30


def test_controls_are_random_directions_and_differences_without_the_concept():
    acts, y, _ = planted()
    fits = ArmFits()
    arms.control_arms(fits, acts, y, "resid_post[1]", random=2, draws=2)
    assert [(a.name, a.draw) for a in fits.found] == [
        (arms.RANDOM, 0), (arms.RANDOM, 1), (arms.HALVES, 0), (arms.SHUFFLED, 0), (arms.HALVES, 1), (arms.SHUFFLED, 1),
    ]  # fmt: skip
    assert {a.role for a in fits.found} == {"control"}
    mean = ll.directions.mean_difference(acts, y, site="resid_post[1]")
    random, other = (a.plan(1.0).direction for a in fits.found[:2])
    assert random.norm == pytest.approx(mean.norm, rel=1e-5)
    assert abs(random.cosine(other)) < 0.999
    assert all(a.plan(1.0).direction.norm < mean.norm for a in fits.found[2:])
    with pytest.raises(TooFewExamples, match="1 row"):
        arms.control_arms(ArmFits(), acts.rows([int(np.flatnonzero(y)[0]), int(np.flatnonzero(~y)[0])]), [1, 0],
                          "resid_post[1]")  # fmt: skip


@pytest.fixture(scope="module")
def formal():
    (concept,) = embedded.concepts(["formal"], n=24, prompts=8)
    return replace(concept, length=16)


def test_effects_on_latents_are_measured_once_for_so_many_vectors(organism, formal, tmp_path, monkeypatch):
    """Four vectors a dimension, at most a thousand; another number of them is another measurement."""
    asked = []

    def measured(lm, sae, prompts, vectors, strength, **options):
        asked.append(tuple(vectors.shape))
        return torch.rand(len(vectors), sae.d_sae, generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(protocol, "measure_effects", measured)
    sae = ll.load_sae(ll.organism.sae_path())
    kept = KeptNumbers(tmp_path)
    fit = lambda: protocol.concept_arms(organism, formal, 3, kept=kept, sae=sae, quick=True)
    names = [arm.name for arm in fit().found]
    assert names[: len(STATES)] == STATES
    assert names[len(STATES) : len(STATES) + 3] == ["SAE decoder row", "SAE-TS", "FGAA"]
    assert names[-1] == arms.SHUFFLED
    fit()
    assert asked == [(min(4 * sae.d_in, 1024), sae.d_in)]
    monkeypatch.setattr(protocol, "EFFECT_VECTORS", 6)
    fit()
    fit()
    assert asked[1:] == [(6, sae.d_in)]


def test_the_arm_that_does_best_is_named_the_first_of_equals(organism, formal, tmp_path):
    """The concept's own direction against two random ones, and a plan of nothing twice."""
    acts, y, _ = protocol.pair_states(organism, formal, "resid_post[3]")
    along = ll.directions.mean_difference(acts, y)
    how = protocol.how_to_act(formal)
    search = lambda ask, n: [ll.KlBudget(1.0, 1.0, 1.0, 0.95, 0.05, 20, (), True)] * n
    made = [SteeringArm(f"random {i}", arms.adding(along.random_like(i), **how)) for i in range(2)]
    made += [SteeringArm("its own", arms.adding(along, **how))]
    kept = KeptNumbers(tmp_path / "n")
    assert best_arm(organism, formal, slice(0, 8), made, kept, search) == "its own"
    same = [SteeringArm(name, lambda c: [ll.Add(along, 1e-6, **how)]) for name in ("one", "two")]
    assert best_arm(organism, formal, slice(0, 8), same, kept, search) == "one"
