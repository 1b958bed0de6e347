"""The SAEs of the embedded model: what they keep, which concepts have a latent, and what ablating some of them does."""

from types import SimpleNamespace

import numpy as np
import pytest

import latentlens as ll
from latentlens.errors import BadInput
from latentlens.organism_saes import ablation, card, concepts, train
from latentlens.organism_saes.fidelity import fidelity


@pytest.fixture(scope="module", params=ll.organism.saes())
def sae(request):
    return ll.load_sae(ll.organism.sae_path(request.param))


@pytest.fixture(scope="module")
def middle():
    return ll.load_sae(ll.organism.sae_path("middle"))


def test_every_shipped_sae_fits_the_shipped_model_and_is_of_its_recipe(organism, sae):
    assert ll.preflight(organism, sae).passed
    recipe = train.RECIPES[sae.name]
    assert sae.site == ll.Site("resid_post", recipe.block)
    assert sae.d_sae == recipe.d_sae


def test_its_reconstruction_keeps_the_loss_and_the_state_itself_loses_nothing(organism, sae):
    found = fidelity(organism, sae, 25)
    assert found.clean < found.replaced < found.zeroed
    # A reconstruction can be luckier than the state on some texts: the interval may reach beyond 1, the value does not.
    assert 0.9 < found.recovered.low < found.recovered.value < 1
    assert found.explained > 0.9
    same = SimpleNamespace(site=sae.site, codes=sae.codes, device="cpu", reconstruct=lambda x: x)
    exact = fidelity(organism, same, 25)
    assert exact.replaced == pytest.approx(exact.clean, abs=1e-6)
    assert (exact.explained, exact.recovered.value) == pytest.approx((1.0, 1.0), abs=1e-5)


def test_topics_languages_and_off_topic_have_a_latent_and_a_random_one_does_not_know(organism, middle):
    found = {one.concept: one for one in concepts.best(organism, middle, 150)}
    assert len(found) == 22
    for name, one in found.items():
        assert one.typical < 0.65
        if name.startswith(card.MUST):
            assert one.auroc.value > 0.85 > one.chance


def test_labels_without_meaning_have_no_latent(organism, middle):
    given = concepts.ends(organism, 200, 3)
    labels = list(np.random.default_rng(0).permutation(given.labels[concepts.OFF_TOPIC]))
    found = concepts.detectors(concepts.codes(organism, middle, given), labels)
    assert found.auroc.max() < found.null_high + 0.05


def test_ablating_the_off_topic_latents_lowers_restarts_and_random_ones_do_not(organism, middle, monkeypatch):
    monkeypatch.setattr(ablation, "N_SETS", 2)
    arms = {arm.name: arm for arm in ablation.ablation(organism, middle, n=40, n_seeds=1)}
    assert arms["not steered"].share.value < 0.05
    assert arms["no ablation"].share.value > 0.2
    assert arms["off-topic latents"].share.value < arms["no ablation"].share.value / 2
    assert arms["off-topic latents"].change.high < 0
    for name in ("matched random latents 1", "matched random latents 2"):
        assert arms[name].change.high >= 0
        assert arms["off-topic latents"].share.value < arms[name].share.value
        assert not set(arms[name].latents) & set(arms["off-topic latents"].latents)


def test_what_is_ablated_tells_and_what_is_random_does_not(organism, sae):
    them, others = ablation.off_topic_latents(organism, sae, 400)
    given = concepts.ends(organism, 400, 77)
    found = concepts.detectors(concepts.codes(organism, sae, given), given.labels[concepts.OFF_TOPIC])
    assert 0 < len(them) <= ablation.MOST
    assert found.auroc[them].min() > 0.85
    for one in others:
        assert len(one) == len(them)
        assert found.auroc[one].max() < 0.6


def test_an_sae_before_the_steered_block_is_refused(organism, middle):
    early = SimpleNamespace(site=ll.Site("resid_post", 0))
    with pytest.raises(BadInput, match="before the steered block"):
        ablation.ablation(organism, early, n=2)


def test_what_is_missing_fails_the_command_and_the_card_gets_the_table(monkeypatch, tmp_path, capsys):
    from latentlens.organism.evaluate import CLOSES, OPENS
    from latentlens.organism.evaluation.rows import share

    page = tmp_path / "SAE_CARD.md"
    page.write_text(f"before {OPENS} an earlier table {CLOSES} after")
    for hits, code in (([True] * 5, 0), ([False] * 5, 1)):
        monkeypatch.setattr(card, "measure", lambda lm, name, hits=hits: [share(f"{name} latent", hits, (0.9, 1.0))])
        assert card.evaluate(None, ["middle"], card=page) == code
        assert "middle latent" in page.read_text()
        assert "an earlier table" not in page.read_text()
    assert "1 of what must hold missing" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_trains_what_it_names(organism, tmp_path):
    found = train.train(organism, tmp_path, ["middle"], tokens=30_000, n=200)
    assert list(found) == ["middle"]
    assert sorted(f.name for f in (tmp_path / "middle").iterdir()) == [
        "cfg.json",
        "checksums.json",
        "sae_weights.safetensors",
        "trained_on.json",
    ]
    with pytest.raises(BadInput, match="choose from middle, late"):
        train.train(organism, tmp_path, ["first"])
