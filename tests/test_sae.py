"""SAEs as SAELens computes and writes them. `sae_lens` is imported once, in a fixture (10-25 s)."""

import itertools
import json
import pickle
import warnings

import pytest
import torch
from sae_kinds import KINDS, NORMALISATIONS, make
from safetensors.torch import save_file

from latentlens.access.saes.sae import load_sae
from latentlens.errors import BadInput, SiteNotFound, UnsafeFile
from latentlens.values.codes import Codes
from latentlens.values.sae import SAE

THEIR_KINDS = {"relu": "standard", "jumprelu": "jumprelu", "gated": "gated", "topk": "topk"}
CASES = [
    (kind, normalisation, apply, rescale)
    for kind, normalisation, apply, rescale in itertools.product(KINDS, NORMALISATIONS, (True, False), (False, True))
    if kind == "topk" or not rescale
]


@pytest.fixture(scope="module")
def lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


def build(lens, kind, normalisation="none", apply=True, rescale=False, *, metadata=None, dtype="float32"):
    """An SAE of SAELens with random weights, decoder norms far from one, and thresholds of either sign."""
    metadata = {"model_name": "tiny", "hook_name": "blocks.2.hook_resid_post", "prepend_bos": False, **(metadata or {})}
    options = {"architecture": THEIR_KINDS[kind], "d_in": 6, "d_sae": 20, "dtype": dtype, "device": "cpu"}
    options |= {"normalize_activations": normalisation, "apply_b_dec_to_input": apply, "metadata": metadata}
    if kind == "topk":
        options |= {"k": 4, "rescale_acts_by_decoder_norm": rescale}
    theirs = lens.SAE.from_dict(options)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return theirs


@pytest.mark.parametrize(("kind", "normalisation", "apply", "rescale"), CASES)
def test_a_folder_of_saelens_encodes_decodes_and_edits_as_saelens_does(
    lens, tmp_path, kind, normalisation, apply, rescale
):
    from latentlens.values.latents import EditLatents

    theirs = build(lens, kind, normalisation, apply, rescale)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert (ours.kind, ours.normalisation, ours.d_in, ours.d_sae) == (kind, normalisation, 6, 20)
    x = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)  # an SAE with normalisation forgets its input here
        edited = theirs.encode(x).index_fill(1, torch.tensor([3, 7]), 0.0)
        spliced = x + theirs.decode(edited) - decoded
    assert 0 < float((codes > 0).float().mean()) < 1
    torch.testing.assert_close(ours.encode(x), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode(x, [7, 0, 7]), codes[:, [7, 0, 7]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(codes, like=x), decoded, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode_sparse(codes, like=x), decoded, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_sparse(x).dense(), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(EditLatents(ours, clamp={3: 0, 7: 0}).edit(x), spliced, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_what_is_trained_loads_from_the_object_the_checkpoint_and_the_inference_folder(lens, tmp_path, architecture):
    """BatchTopK becomes a JumpReLU SAE with one threshold; TopK folds its decoder norms."""
    from sae_lens.registry import get_sae_training_class

    sae_class, cfg_class = get_sae_training_class(architecture)
    extra = {"k": 3} if architecture != "jumprelu" else {}
    theirs = sae_class(cfg_class(d_in=6, d_sae=20, **extra))
    theirs.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
    with torch.no_grad():
        theirs.W_dec.copy_(torch.randn(20, 6) * (torch.rand(20, 1) + 0.5))
        theirs.W_enc.copy_(torch.randn(6, 20))
        if architecture == "batchtopk":
            theirs.topk_threshold.fill_(0.5)
    theirs.save_inference_model(tmp_path / "inference")
    theirs.save_model(tmp_path / "checkpoint")
    reference = lens.SAE.load_from_disk(tmp_path / "inference")
    x = torch.randn(30, 6)
    with torch.no_grad():
        expected = reference.decode(reference.encode(x))
    assert float(expected.abs().mean()) > 0.1
    for ours in (load_sae(tmp_path / "inference"), load_sae(tmp_path / "checkpoint"), load_sae(theirs)):
        assert ours.kind == ("topk" if architecture == "topk" else "jumprelu")
        torch.testing.assert_close(ours.reconstruct(x), expected, atol=1e-4, rtol=1e-4)
    assert str(load_sae(tmp_path / "inference").site) == "mlp_out[0]"
    assert load_sae(tmp_path / "inference").about["training_architecture"] == architecture


def test_an_sae_in_bfloat16_is_as_close_to_saelens_as_bfloat16_allows(lens, tmp_path):
    theirs = build(lens, "relu", dtype="bfloat16")
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.dtype == torch.bfloat16
    x = torch.randn(20, 6)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x).detach(), atol=1e-2, rtol=2e-2)
    assert load_sae(tmp_path, dtype="float32").dtype == torch.float32


def test_the_unknown_release_is_named_with_its_neighbours_and_the_hub_need_not_be_reachable(lens):
    with pytest.raises(BadInput, match=r"Nearest: .*gemma-scope-2b-pt-res"):
        load_sae("gemma-scope-2b-pt-re", "x")
    with pytest.raises(BadInput, match=r"not found|Valid IDs"):
        load_sae("gpt2-small-res-jb", "no such id")
    with pytest.raises(BadInput, match="give its path"):  # tests run without the hub
        load_sae("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


def test_the_registrys_claims_are_kept_and_its_placeholders_are_not(lens):
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from latentlens.access.saes.sae import _claims

    known = get_pretrained_saes_directory()
    jb = _claims(known["gpt2-small-res-jb"], "blocks.11.hook_resid_pre")
    assert jb["model_name"] == "gpt2-small"
    assert 0.5 < jb["variance_explained"] < 1
    bare = next(entry for entry in known.values() if 1.0 in entry.expected_var_explained.values())
    sae_id = next(i for i, v in bare.expected_var_explained.items() if v == 1.0)
    assert "variance_explained" not in _claims(bare, sae_id)
    assert _claims(None, "x") == {}


def bridged(model):
    """The model as latentlens has it, and TransformerLens' bridge over a copy."""
    from tinytok import tokenizer

    import latentlens as ll
    from latentlens.access.transformer_lens import to_transformer_lens

    lm = ll.load(model, cache=False, tokenizer=tokenizer())
    return lm, to_transformer_lens(lm)


def test_an_ablation_gives_the_logits_of_saelens_on_transformer_lens_bridge(lens, llama):
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    from latentlens.values.latents import ablate

    lm, bridge = bridged(llama)
    bridge.__class__, bridge._acts_to_saes, bridge._transcoder_output_hooks = SAETransformerBridge, {}, {}
    options = {"architecture": "standard", "d_in": 32, "d_sae": 64, "dtype": "float32", "device": "cpu"}
    theirs = lens.SAE.from_dict({**options, "metadata": {"hook_name": "blocks.1.hook_resid_post"}})
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    bridge.add_sae(theirs, use_error_term=True)

    def zero(codes, hook):
        codes[..., [3, 4, 5]] = 0.0
        return codes

    ids = [5, 6, 7, 8, 9]
    with torch.no_grad():
        expected = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(bridge.get_sae_hook_name(theirs), zero)])[0]
    found = lm.logits([ids], where="all", steer=ablate(load_sae(theirs), [3, 4, 5]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert float((found - lm.logits([ids], where="all")).abs().max()) > 0.1


def test_recentring_makes_hugging_face_states_those_of_transformer_lens_centred_gpt2(lens, gpt2):
    from dataclasses import replace

    lm, bridge = bridged(gpt2)
    bridge.enable_compatibility_mode(disable_warnings=True)
    ids = [5, 6, 7, 8, 9]
    centred = bridge.run_with_cache(torch.tensor([ids]))[1]["blocks.1.hook_resid_post"][0]
    plain = lm.activations([ids], sites="resid_post[1]")["resid_post[1]"]
    assert float((plain - centred).abs().max()) > 0.01
    sae = make(d_in=32, d_sae=64)
    torch.testing.assert_close(replace(sae, centre=True).encode(plain), sae.encode(centred), atol=1e-5, rtol=1e-5)


# -- without SAELens ------------------------------------------------------------------------------------


def write(folder, sae, config, name="sae_weights.safetensors", file="cfg.json", **renamed):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    state = {n: t.contiguous() for n in names if (t := getattr(sae, n)) is not None}
    save_file(renamed or state, folder / name)
    (folder / file).write_text(json.dumps(config))
    return folder


def flat(**changes):
    """A configuration from before SAELens 6."""
    config = {"d_in": 6, "d_sae": 20, "dtype": "float32", "hook_point": "blocks.8.hook_resid_pre"}
    return {**config, "model_name": "gpt2-small", "activation_fn_str": "relu", **changes}


def test_configurations_from_before_version_6_are_read(tmp_path):
    sae = load_sae(write(tmp_path / "a", make(), flat(context_size=128)))
    assert (str(sae.site), sae.about["prepend_bos"], sae.about["context_size"]) == ("resid_pre[8]", True, 128)
    topk = flat(activation_fn_str="topk", activation_fn_kwargs={"k": 5})
    assert load_sae(write(tmp_path / "b", make(), topk)).k == 5
    with pytest.raises(BadInput, match="tanh-relu"):
        load_sae(write(tmp_path / "c", make(), flat(activation_fn_str="tanh-relu")))


def test_saes_of_centred_models_recentre_their_inputs(tmp_path):
    """res-jb: TransformerLens' residual is the Hugging Face one minus its mean over d_model"""
    config = flat(model_from_pretrained_kwargs={"center_writing_weights": True})
    plain, centred = load_sae(write(tmp_path / "a", make(), flat())), load_sae(write(tmp_path / "b", make(), config))
    assert centred.centre
    assert not plain.centre
    x = torch.randn(5, 6) + 3
    mean = x.mean(-1, keepdim=True)
    torch.testing.assert_close(centred.encode(x), plain.encode(x - mean))
    torch.testing.assert_close(centred.reconstruct(x) - mean, plain.reconstruct(x - mean))
    assert "recentres" in repr(centred)
    assert not load_sae(tmp_path / "b", centre=False).centre
    both = [make(normalisation="layer_norm", centre=c) for c in (True, False)]
    torch.testing.assert_close(both[0].reconstruct(x) - mean, both[1].reconstruct(x - mean))
    neurons = flat(hook_point="blocks.8.mlp.hook_post", model_from_pretrained_kwargs={"center_writing_weights": True})
    assert not load_sae(write(tmp_path / "c", make(), neurons)).centre


def test_an_unfolded_norm_is_refused_and_folded_when_the_factor_is_given(tmp_path):
    folder = write(tmp_path / "a", make(), flat(normalize_activations="expected_average_only_in"))
    with pytest.raises(BadInput, match="norm_scaling_factor="):
        load_sae(folder)
    x, folded = torch.randn(5, 6), load_sae(folder, norm_scaling_factor=0.5)
    torch.testing.assert_close(folded.encode(x), make().encode(0.5 * x))
    torch.testing.assert_close(folded.reconstruct(x), make().reconstruct(0.5 * x) / 0.5)
    whitened = flat(normalize_activations="covariance_whitening")
    with pytest.raises(BadInput, match="covariance_whitening"):
        load_sae(write(tmp_path / "b", make(), whitened))


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.5.hook_resid_post", "resid_post[5]"),
        ("blocks.5.hook_out", "resid_post[5]"),
        ("blocks.5.attn.hook_z", "z[5]"),
        ("model.layers.5.output", "resid_post[5]"),
        ("model.layers.5", "resid_post[5]"),
        ("layers.5", "resid_post[5]"),
        ("transformer.h.5", "resid_post[5]"),
        ("gpt_neox.layers.5.input", "resid_pre[5]"),
        ("mlp_out[5]", "mlp_out[5]"),
    ],
)
def test_hook_names_of_all_spellings_become_sites(tmp_path, hook, site):
    assert str(load_sae(write(tmp_path, make(), flat(hook_point=None, hf_hook_name=hook))).site) == site


def test_a_hook_that_only_a_model_can_read_asks_for_the_model(tmp_path, llama):
    import latentlens as ll

    folder = write(tmp_path, make(), flat(hook_point="model.layers.1.mlp"))
    with pytest.raises(SiteNotFound, match="pass lm="):
        load_sae(folder)
    assert str(load_sae(folder, lm=ll.load(llama, cache=False)).site) == "mlp_out[1]"
    assert str(load_sae(folder, site="mlp_out[2]").site) == "mlp_out[2]"
    with pytest.raises(SiteNotFound, match="pass site="):
        load_sae(write(tmp_path / "none", make(), flat(hook_point=None)))


def test_sparsify_folders_compute_as_sparsify_does(tmp_path):
    sae = make("topk", k=4)
    weights = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    weights = {name: t.contiguous() for name, t in weights.items()}
    config = {"expansion_factor": 3, "normalize_decoder": True, "num_latents": 20, "k": 4, "d_in": 6, "signed": False}
    folder = write(tmp_path / "layers.3", sae, config, "sae.safetensors", **weights)
    found, x = load_sae(folder), torch.randn(9, 6)
    assert str(found.site) == "resid_post[3]"
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    top = pre.topk(4)
    torch.testing.assert_close(found.encode(x), torch.zeros(9, 20).scatter(1, top.indices, top.values))
    torch.testing.assert_close(found.reconstruct(x), found.encode(x) @ sae.W_dec + sae.b_dec)
    with pytest.raises(BadInput, match="signed"):
        load_sae(write(tmp_path / "layers.4", sae, {**config, "signed": True}, "sae.safetensors", **weights))


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"])
def test_dictionary_learning_folders_are_read_once_their_weights_are_safetensors(tmp_path, name):
    sae = make("jumprelu" if "Batch" in name else "topk" if "TopK" in name else "relu")
    trainer = {"dict_class": name, "activation_dim": 6, "dict_size": 20, "k": 4, "layer": 2, "lm_name": "org/tiny"}
    bias = "bias" if name == "AutoEncoder" else "b_dec"
    weights = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "decoder.weight": sae.W_dec.T, bias: sae.b_dec}
    if sae.threshold is not None:
        weights["threshold"] = torch.tensor(0.4)
        sae = make("jumprelu", about={})
        object.__setattr__(sae, "threshold", torch.full((20,), 0.4))
    weights = {key: t.contiguous() for key, t in weights.items()}
    config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    found = load_sae(write(tmp_path, sae, config, "ae.safetensors", "config.json", **weights))
    x = torch.randn(9, 6)
    torch.testing.assert_close(found.encode(x), sae.encode(x))
    assert (str(found.site), found.about["context_size"]) == ("resid_post[2]", 128)


def test_dictionary_learnings_jumprelu_subtracts_no_decoder_bias(tmp_path):
    sae, x = make("jumprelu", apply_b_dec_to_input=False), torch.randn(9, 6)
    config = {"trainer": {"dict_class": "JumpReluAutoEncoder", "layer": 2}}
    found = load_sae(write(tmp_path, sae, config, "ae.safetensors", "config.json"))
    torch.testing.assert_close(found.encode(x), sae.encode(x))
    config["trainer"]["submodule_name"] = "attn_out_layer_2"
    with pytest.raises(SiteNotFound, match="pass site="):
        load_sae(write(tmp_path, sae, config, "ae.safetensors", "config.json"))


def test_pickles_are_refused_and_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for name in ("ae.pt", "sae_weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    (tmp_path / "cfg.json").write_text(json.dumps(flat()))
    with pytest.raises(UnsafeFile):
        load_sae(tmp_path)
    with pytest.raises(UnsafeFile, match="pickle"):
        load_sae(tmp_path / "ae.pt")
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(UnsafeFile, match="never opened"):
        load_sae(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (flat(architecture="temporal"), "'temporal' cannot be read: known are"),
        (flat(hook_head_index=3), "head 3"),
        (flat(finetuning_scaling_factor=True), "scaling factor"),
        (flat(architecture="gated"), "no weights 'b_gate'"),
        (flat(dtype="float99"), "float99"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused(tmp_path, config, message):
    with pytest.raises(BadInput, match=message):
        load_sae(write(tmp_path, make(), config))


def test_what_is_no_sae_is_refused_with_advice(tmp_path):
    for given, message in (
        (tmp_path, "holds no SAE"),
        (tmp_path / "no", "no folder"),
        (3, "give a folder"),
        ("release", "load_sae\\(release, sae_id\\)"),
    ):
        with pytest.raises(BadInput, match=message):
            load_sae(given)


# -- the value ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.ones(20, 5)}, "W_dec"),
        ({"b_enc": torch.ones(3)}, "b_enc must have shape"),
        ({"kind": "jumprelu"}, "needs threshold"),
        ({"kind": "gated"}, "needs b_mag and r_mag"),
        ({"kind": "abstopk"}, "of kind"),
        ({"k": 21, "kind": "topk"}, "k=21"),
        ({"normalisation": "whitening"}, "whitening"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    from dataclasses import replace

    with pytest.raises(BadInput, match=message):
        replace(make(), **change)


def test_a_normalising_sae_decodes_only_with_its_inputs():
    sae = make(normalisation="layer_norm")
    with pytest.raises(BadInput, match="like=x"):
        sae.decode(sae.encode(torch.randn(2, 6)))


def test_states_of_another_width_are_refused_and_heads_are_laid_side_by_side():
    sae = make()
    with pytest.raises(BadInput, match="reads 6 numbers per token, not 5"):
        sae.encode(torch.randn(2, 5))
    x = torch.randn(4, 6)
    assert torch.equal(sae.encode(x.view(4, 2, 3)), sae.encode(x))


def test_a_decoder_row_is_a_direction_at_the_saes_site():
    sae = make("topk", rescale_by_decoder_norm=True)
    found = sae.direction(3)
    assert str(found.site) == "resid_post[1]"
    assert found.norm == pytest.approx(1.0, abs=1e-6)
    assert found.source["latent"] == 3
    assert make(centre=True).direction(3).frame == "centred"
    torch.testing.assert_close(make().direction(3).vector, make().W_dec[3])


def test_sparse_codes_hold_what_dense_codes_hold():
    dense = torch.randn(7, 20).relu()
    dense[2] = 0
    codes = Codes.from_dense(dense, labels={"text": torch.arange(7).numpy()})
    assert torch.equal(codes.dense(), dense)
    assert torch.equal(codes.dense([5, 0, 5]), dense[:, [5, 0, 5]])
    assert codes.counts.tolist() == (dense > 0).sum(1).tolist()
    kept = codes.rows([6, 2, 2, 0])
    assert torch.equal(kept.dense(), dense[[6, 2, 2, 0]])
    assert kept.labels["text"].tolist() == [6, 2, 2, 0]
    assert torch.equal(Codes.concatenated([codes, kept]).dense(), torch.cat([dense, dense[[6, 2, 2, 0]]]))
    assert len(codes.rows([])) == 0
    with pytest.raises(BadInput, match="no latent 20"):
        codes.dense([20])


def test_an_empty_batch_encodes_to_nothing():
    for kind in KINDS:
        assert make(kind).encode(torch.zeros(0, 6)).shape == (0, 20)
        assert len(make(kind).encode_sparse(torch.zeros(0, 6))) == 0


def test_a_zero_state_is_not_turned_into_nan():
    for normalisation in NORMALISATIONS:
        sae = make(normalisation=normalisation)
        assert torch.isfinite(sae.reconstruct(torch.zeros(2, 6))).all()


def test_fingerprints_ignore_names_and_sites():
    assert make().fingerprint == make(site="mlp_out[0]", about={"release": "x"}).fingerprint
    options = [{"apply_b_dec_to_input": False}, {"centre": True}, {"normalisation": "layer_norm"}, {"seed": 1}]
    changed = {make(**option).fingerprint for option in [*options, {"dtype": torch.bfloat16}]}
    changed |= {make(k).fingerprint for k in KINDS} | {make("topk", k=5).fingerprint}
    changed |= {make("topk", rescale_by_decoder_norm=True).fingerprint}
    assert len(changed) == len(options) + 1 + len(KINDS) + 2
    assert make() == make()
    assert isinstance(make(), SAE)
