"""Training through SAELens (imported once: 10-25 s), on the embedded model; and what needs a trained SAE."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

import latentlens as ll
from latentlens.access.saes.preflight import SAEMismatch, explained, preflight
from latentlens.access.saes.sae import encode, load_sae
from latentlens.access.saes.sae_training import _Feed, train_sae
from latentlens.errors import BadInput
from latentlens.methods import latents
from latentlens.organism import draw
from latentlens.values.sites import Site

SITE = Site("resid_post", 3)


@pytest.fixture(scope="module", autouse=True)
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


@pytest.fixture(scope="module")
def texts():
    return [t.text for family in ("truth", "topics", "arithmetic") for t in draw(family, 200, 1)]


@pytest.fixture(scope="module")
def others():
    return [t.text for family in ("truth", "topics", "arithmetic") for t in draw(family, 25, 99)]


@pytest.fixture(scope="module")
def folder(organism, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("saes") / "topk"
    train_sae(organism, texts, "resid_post[3]", "topk", 512, 16, tokens=120_000, batch=512, out=out)
    return out


@pytest.fixture(scope="module")
def sae(folder):
    return load_sae(folder)


def test_a_trained_sae_explains_texts_it_has_not_seen(organism, sae, others):
    states = organism.activations(others, sites=SITE, where="content")[SITE]
    assert explained(sae, states) > 0.9
    assert sae.encode_sparse(states).l0 == pytest.approx(16, abs=0.2)
    assert sae.about["variance_explained"] == pytest.approx(explained(sae, states), abs=0.02)
    assert sae.about["training"]["tokens"] == 120_000


def test_saelens_reads_what_was_trained_and_computes_the_same(organism, folder, sae, others, sae_lens):
    theirs = sae_lens.SAE.load_from_disk(folder)
    x = organism.activations(others[:10], sites=SITE, where="all")[SITE]
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), theirs.encode(x), atol=1e-3, rtol=1e-4)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert str(load_sae(folder, lm=organism).site) == "resid_post[3]"
    metadata = {**theirs.cfg.metadata.to_dict(), "hook_name": None}
    assert metadata["hf_hook_name"] == "model.layers.3.output"


def test_preflight_passes_where_it_was_trained_and_names_the_block_where_it_was_not(organism, sae, others):
    report = preflight(organism, sae, others)
    assert report
    assert "claimed" in str(report)
    assert "warn" not in {f.verdict for f in report.findings}
    last = Site("resid_post", organism.layout.n_blocks - 1)
    with pytest.raises(SAEMismatch, match=rf"fits better than resid_post\[{last.block}\]"):
        preflight(organism, replace(sae, site=last), others)
    near = preflight(organism, replace(sae, site=Site("resid_post", 2)), others, strict=False)
    assert near.explained < report.explained  # one block apart may be too alike to refuse, but not to see


@pytest.fixture(scope="module")
def batchtopk(organism, texts):
    return train_sae(organism, texts, 3, "batchtopk", 256, 12, tokens=60_000, batch=256)


def test_preflight_catches_a_norm_that_was_never_folded(organism, batchtopk, others):
    sae, states = batchtopk, organism.activations(others, sites=SITE, where="content")[SITE]
    s = organism.layout.d_model**0.5 / float(states.norm(dim=-1).mean())  # what training had folded in
    unfolded = replace(sae, W_enc=sae.W_enc / s, W_dec=sae.W_dec * s, b_dec=sae.b_dec * s)
    with pytest.raises(SAEMismatch, match="never folded") as refused:
        preflight(organism, unfolded, others)
    assert float(re.search(r"norm_scaling_factor=([\d.]+\d)", str(refused.value))[1]) == pytest.approx(s, rel=0.02)


def test_batchtopk_and_jumprelu_reach_the_wanted_sparsity_and_are_read_as_jumprelu(organism, texts, batchtopk):
    jumprelu = train_sae(organism, texts, 3, "jumprelu", 256, 12, tokens=60_000, batch=256)
    for found, kind in ((batchtopk, "batchtopk"), (jumprelu, "jumprelu")):
        assert found.kind == "jumprelu"
        assert found.about["training_architecture"] == kind
        assert 6 < found.about["l0"] < 24
        assert found.about["variance_explained"] > 0.8
        assert "release" not in found.about  # it was not saved


def test_the_same_seed_gives_the_same_sae_and_leaves_the_global_generator_alone(organism, texts):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    few = {"tokens": 4096, "batch": 256, "d_sae": 64, "k": 4}
    a, b, c = (train_sae(organism, texts[:60], SITE, seed=seed, **few) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_streamed_and_held_activations_are_the_same_rows(organism, texts):
    """a buffer smaller than an epoch: shuffled, never dropped before it comes round again"""
    rows = organism.tokens(texts[:40])
    held = _Feed(organism, rows, SITE, "content", 64, 1 << 20, 0, False)
    everything = {tuple(x.tolist()) for x in organism.activations(rows, sites=SITE, where="content")[SITE][:, :4]}
    streamed = _Feed(organism, rows, SITE, "content", 64, 512, 0, False)
    seen = {tuple(x.tolist()) for _ in range(held.count // 16) for x in next(streamed)[:, :4]}
    assert all(batch.shape == (64, 128) for batch in (next(held), next(streamed)))
    assert len(seen & everything) > 0.95 * len(everything)
    assert held.count == streamed.count == len(organism.activations(rows, sites=SITE, where="content"))


def test_training_reads_the_activations_that_the_cache_holds(texts, tmp_path):
    lm = ll.load(cache=tmp_path / "cache")
    few = {"tokens": 1024, "batch": 256, "d_sae": 32, "k": 4}
    train_sae(lm, texts[:40], SITE, **few)
    assert lm.activations(lm.tokens(texts[:40]), sites=SITE, where="content").about["forwards"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gated"}, "'topk', 'batchtopk'"),
        ({"site": "resid_post[*]"}, "at one site"),
        ({"texts": ["one"]}, "too few"),
        ({"batch": 1 << 20}, "fewer than one batch"),
    ],
)
def test_what_cannot_be_trained_is_refused(organism, texts, change, message):
    arguments = {"texts": texts[:20], "site": SITE, **change}
    with pytest.raises(BadInput, match=message):
        train_sae(organism, **arguments)


# -- from texts to latents and back to texts -------------------------------------------------------------


def test_texts_are_encoded_piece_by_piece_with_their_labels(organism, sae, others):
    codes = encode(organism, sae, others, where="content")
    acts = organism.activations(others, sites=SITE, where="content")
    torch.testing.assert_close(codes.dense(), sae.encode(acts[SITE]), atol=1e-3, rtol=1e-4)
    for name, column in acts.labels.items():
        assert (codes.labels[name] == column).all(), name
    assert codes.about["model"] == "organism"


def test_a_topic_latent_is_found_by_its_detector_and_reads_as_the_topic(organism, sae):
    found = draw("topics", 160, 3)
    topic = found[0].topic
    codes = latents.pooled(encode(organism, sae, [t.text for t in found], where="content"))
    mask = torch.tensor([t.topic == topic for t in found]).numpy()
    result = latents.detectors(codes.rows(mask), codes.rows(~mask))
    assert result.beyond_chance
    assert result.estimate(result.best(1)[0]).low > 0.8
