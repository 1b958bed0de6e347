from dataclasses import replace

import pytest
import torch

from latentlens.access.saes.preflight import SAEMismatch, _frame, explained, preflight
from latentlens.errors import LatentLensError
from latentlens.organism import draw
from latentlens.values.sae import SAE
from latentlens.values.sites import Site

SITE = Site("resid_post", 5)


@pytest.fixture(scope="module")
def texts():
    return [t.text for family in ("truth", "topics", "arithmetic") for t in draw(family, 25, 0)]


@pytest.fixture(scope="module")
def sae(organism, texts):
    return principal(organism.activations(texts, sites=SITE, where="content")[SITE])


def principal(states, rank=40, site=SITE, **options):
    """The first principal components of states as an SAE: a ReLU latent for each end of each."""
    states = states.float()
    mean = states.mean(0)
    _, _, components = torch.pca_lowrank(states - mean, rank, niter=4)
    both = torch.cat([components, -components], 1)
    about = {"model_name": "organism", "prepend_bos": True, **options.pop("about", {})}
    return SAE("relu", both, torch.zeros(2 * rank), both.T.contiguous(), mean, site=site, about=about, **options)


def changed(sae, **changes):
    return replace(sae, **changes)


def verdicts(report):
    return {f.name: f.verdict for f in report.findings}


def test_an_sae_at_its_site_passes_with_its_numbers(organism, sae, texts):
    report = preflight(organism, sae, texts)
    assert report
    assert report.explained > 0.8
    assert report.l0 == pytest.approx(40, abs=1)
    assert report.n_tokens > 500
    assert len(report.by_site) == organism.layout.n_blocks
    assert max(report.by_site, key=report.by_site.get) == str(SITE)
    frame = report.to_frame()
    assert list(frame.columns) == ["name", "verdict", "note"]
    assert "passed" in repr(report)
    assert "<table" in report._repr_html_()


def test_explained_variance_by_hand():
    """x = 0, 2 and reconstructions 0, 1: left 1, total 2"""
    sae = SAE("relu", torch.ones(1, 1), torch.zeros(1), torch.tensor([[0.5]]), torch.zeros(1), site=SITE)
    assert explained(sae, torch.tensor([[0.0], [2.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize("block", [0, 4])
def test_an_sae_at_another_block_is_caught_and_the_right_one_named(organism, sae, texts, block):
    with pytest.raises(SAEMismatch, match=rf"resid_post\[5\] fits better than resid_post\[{block}\]"):
        preflight(organism, changed(sae, site=Site("resid_post", block)), texts)


def test_an_sae_of_recentred_states_is_caught(organism, texts):
    """GPT-2's states vary much along the ones vector, which a centred SAE never saw"""
    states = organism.activations(texts, sites=SITE, where="content")[SITE]
    centred = principal(states - states.mean(-1, keepdim=True))
    states = states + 10 * torch.randn(len(states), 1, generator=torch.Generator().manual_seed(0))
    right = changed(centred, centre=True)
    (wrong,) = _frame(centred, states, explained(centred, states))
    assert (wrong.verdict, "centre=True" in wrong.note) == ("FAIL", True)
    assert [f.verdict for f in _frame(right, states, explained(right, states))] == ["ok"]
    assert preflight(organism, right, texts)


def test_wrong_width_site_and_model_are_named(organism, sae, texts):
    small = SAE("relu", torch.ones(7, 3), torch.zeros(3), torch.ones(3, 7), torch.zeros(7), site=SITE)
    with pytest.raises(SAEMismatch, match="reads 7 numbers per token"):
        preflight(organism, small, texts)
    with pytest.raises(SAEMismatch, match="no block 40"):
        preflight(organism, changed(sae, site=Site("resid_post", 40)), texts)
    report = preflight(organism, changed(sae, about={"model_name": "gpt2"}), texts, strict=False)
    assert verdicts(report)["base model"] == "warn"
    assert verdicts(report)["BOS"] == "warn"


def test_noise_fails_and_the_error_is_the_report(organism, texts):
    noise = SAE("relu", torch.randn(128, 64), torch.zeros(64), torch.randn(64, 128), torch.zeros(128), site=SITE)
    with pytest.raises(LatentLensError, match="worse than the mean state"):
        preflight(organism, noise, texts)
    report = preflight(organism, noise, texts, strict=False)
    assert not report
    assert len(report.by_site) == organism.layout.n_blocks


def test_bos_is_added_or_left_out_as_the_sae_was_trained(organism, sae, texts):
    for wanted, said in ((True, "texts begin with BOS"), (False, "left out here")):
        report = preflight(organism, changed(sae, about={"prepend_bos": wanted}), texts, strict=False)
        note = next(f.note for f in report.findings if f.name == "BOS")
        assert said in note


def test_claims_are_compared(organism, sae, texts):
    about = {**sae.about, "variance_explained": 0.999, "l0": 3.0}
    report = preflight(organism, changed(sae, about=about), texts, strict=False)
    assert verdicts(report)["L0"] == "warn"
    assert "claimed 0.999" in str(report)
