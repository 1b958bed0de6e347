"""The embedded model's tokenizer, packing, training and shipped files."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from latentlens import organism
from latentlens.errors import BadInput, WeightsCorrupt
from latentlens.organism import files, readout
from latentlens.organism.corpus import documents
from latentlens.organism.decoder import Decoder, causal
from latentlens.organism.muon import orthogonalise
from latentlens.organism.packing import WEIGHTS, encode, pack
from latentlens.organism.train import moments, rate, train


@pytest.fixture(scope="module")
def model():
    return readout.load(organism.path())


@pytest.fixture(scope="module")
def tokenizer(model):
    return model.tokenizer


# -- packing, training ---------------------------------------------------------------------------------


def test_token_weights_follow_the_innermost_span(tokenizer):
    text = next(t for t in organism.draw("truth", 20, 0, split="seen") if t.find("fact"))
    (encoded,) = encode(tokenizer, [text])
    assert encoded.kinds.count("verdict") == encoded.kinds.count("fact") == 1
    for token, weight, kind in zip(tokenizer.convert_ids_to_tokens(encoded.ids), encoded.weights, encoded.kinds):
        if token == text.answer and kind != "user":
            assert (kind, weight) == ("verdict", WEIGHTS["verdict"])
        if token == "Ġ" + text.find("fact")[0].strip():
            assert (kind, weight) == ("fact", WEIGHTS["fact"])
        if token == f"Ġ{text.group}":
            assert (kind, weight) == ("statement", 0.0)


def test_packed_documents_do_not_see_each_other(tokenizer):
    rows = next(pack(encode(tokenizer, list(islice(documents(0), 300))), 256, 4, tokenizer.pad_token_id))
    assert (rows.documents >= 0).mean() > 0.95
    decoder = Decoder(len(tokenizer), seed=1)
    torch.nn.init.normal_(decoder.model["layers"][0].self_attn.o_proj.weight, std=0.5)
    second = rows.documents[0] == 1
    packed = decoder(
        *map(torch.from_numpy, (rows.ids[:1], rows.positions[:1])), causal(torch.from_numpy(rows.documents[:1]))
    )
    alone = torch.from_numpy(rows.ids[0, second])[None]
    single = decoder(alone, torch.arange(alone.shape[1])[None], causal(torch.zeros_like(alone)))
    torch.testing.assert_close(packed[0, torch.from_numpy(second)], single[0], atol=1e-5, rtol=1e-4)


def test_muon_updates_have_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_the_rate_is_constant_falls_stays_and_falls_to_zero():
    millions = {0: 1.0, 5.25: 1.0, 9: 0.615, 12.1: 0.297, 15: 0.297, 16.5: 0.149, 18: 0.0}
    assert [rate(done / 18) for done in millions] == pytest.approx(list(millions.values()), abs=1e-3)


def test_training_lowers_the_loss_repeats_itself_and_resumes(tmp_path, tokenizer):
    small = {"tokens": 20 * 480, "rows": 4, "width": 128, "compile": False, "autocast": False, "tokenizer": tokenizer}
    threads = torch.get_num_threads()
    first = train(tmp_path / "a", threads=1, work=tmp_path / "run", checkpoint_every=12, **small)
    again = train(tmp_path / "b", threads=1, device="cpu", **small)
    # The checkpoint of step 12 is still there: the same command continues from it.
    resumed = train(tmp_path / "c", threads=1, work=tmp_path / "run", checkpoint_every=10**6, **small)
    torch.set_num_threads(threads)
    assert len(first) >= 19
    assert np.mean(first[-3:]) < 0.7 * first[0]
    assert first == again == resumed
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in "abc"]
    assert weights[0] == weights[1] == weights[2]
    assert files.verify(tmp_path / "a")


# -- the shipped files ---------------------------------------------------------------------------------


def test_a_flipped_byte_and_a_missing_file_are_noticed(tmp_path):
    copy = shutil.copytree(organism.path(), tmp_path / "weights")
    assert files.verify(copy) == copy
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors has sha256 .* reinstall"):
        files.verify(copy)
    file.unlink()
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors is missing"):
        files.verify(copy)
    (copy / "checksums.json").write_text("{")
    with pytest.raises(WeightsCorrupt, match="cannot read"):
        files.verify(copy)


def test_a_tokenizer_of_another_version_is_noticed(tmp_path):
    copy = shutil.copytree(organism.path(), tmp_path / "weights")
    core = json.loads((copy / "tokenizer.json").read_text())
    last = max(core["model"]["vocab"], key=core["model"]["vocab"].get)
    renamed = {("zzz" if token == last else token): i for token, i in core["model"]["vocab"].items()}
    core["model"]["vocab"] = renamed
    (copy / "tokenizer.json").write_text(json.dumps(core))
    files.write_checksums(copy)
    with pytest.raises(WeightsCorrupt, match="is not the one they were trained with"):
        files.verify(copy)
    del core["model"]["vocab"]["zzz"]
    (copy / "tokenizer.json").write_text(json.dumps(core))
    files.write_checksums(copy)
    with pytest.raises(WeightsCorrupt, match=r"has \d+ tokens, the weights have \d+"):
        files.verify(copy)
    (copy / "config.json").write_text("{}")
    files.write_checksums(copy)
    with pytest.raises(WeightsCorrupt, match="vocab_size"):
        files.verify(copy)


def test_an_untrained_sibling_is_made_once_and_knows_nothing(tmp_path, model):
    from transformers import AutoModelForCausalLM

    made = organism.variant("untrained", folder=tmp_path / "a")
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert organism.variant("untrained", folder=tmp_path / "a") == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    again = organism.variant("untrained", folder=tmp_path / "b")
    assert (made / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (made / "tokenizer.json").read_bytes() == (organism.path() / "tokenizer.json").read_bytes()
    theirs = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
    trained = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in trained.named_parameters()}
    guess = readout.load(made)
    ids = [guess.prompt_ids(t) for t in organism.draw("truth", 20, 0)]
    assert guess.next_logits(ids).softmax(-1).max() < 0.05


def test_the_grouped_query_sibling_computes_the_same_in_another_shape(tmp_path):
    from transformers import AutoModelForCausalLM

    made = organism.variant("gqa", folder=tmp_path / "gqa")
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert organism.variant("gqa", folder=tmp_path / "gqa") == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    theirs = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
    shipped = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    assert (theirs.config.num_attention_heads, theirs.config.num_key_value_heads) == (8, 4)
    tokenizer = readout.load(organism.path()).tokenizer
    for family in ("truth", "topics", "code"):
        text = organism.draw(family, 1, 0)[0]
        ids = tokenizer(text.text, return_tensors="pt", return_token_type_ids=False).input_ids
        with torch.no_grad():
            ours, other = shipped(ids, output_attentions=False).logits, theirs(ids).logits
        torch.testing.assert_close(ours, other, atol=2e-4, rtol=1e-4)


def test_another_architecture_is_trained_by_the_same_command(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM

    small = {"tokens": 4 * 480, "rows": 4, "width": 128, "compile": False, "autocast": False, "tokenizer": tokenizer}
    losses = train(tmp_path / "gpt2", architecture="gpt2", **small)
    assert losses[-1] < losses[0]
    decoder = readout.load(files.verify(tmp_path / "gpt2")).decoder
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", local_files_only=True)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    prompt = torch.tensor([tokenizer("The drun is red. That is").input_ids])
    with torch.no_grad():
        ours = decoder.logits(decoder(prompt, torch.arange(prompt.shape[1])[None], causal(torch.zeros_like(prompt))))
        torch.testing.assert_close(theirs(prompt).logits, ours, atol=1e-4, rtol=1e-4)
    rows = next(pack(encode(tokenizer, list(islice(documents(0), 200))), 128, 1, tokenizer.pad_token_id))
    ids, places = torch.from_numpy(rows.ids), torch.from_numpy(rows.positions)
    whole = decoder(ids, places, causal(torch.from_numpy(rows.documents)))
    first = torch.from_numpy(rows.documents[0] == 0)
    alone = decoder(ids[:, first], places[:, first], causal(torch.zeros_like(ids[:, first])))
    torch.testing.assert_close(whole[:, first], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match="llama, gpt2"):
        train(tmp_path / "other", architecture="rnn", **small)


def test_an_sae_is_checked_against_its_files_and_against_the_weights(tmp_path):
    assert organism.saes()[0] == "middle"
    folder = organism.sae_path()
    copy, weights = shutil.copytree(folder, tmp_path / "sae"), organism.path()
    assert files.verify_sae(copy, weights) == copy
    other = organism.variant("untrained", folder=tmp_path / "untrained")
    with pytest.raises(WeightsCorrupt, match=r"was trained on weights .* train it again"):
        files.verify_sae(copy, other)
    (copy / "cfg.json").write_text("{}")
    with pytest.raises(WeightsCorrupt, match=r"cfg\.json has sha256"):
        files.verify_sae(copy, weights)
    with pytest.raises(BadInput, match="no SAE 'first'; the SAEs are middle"):
        organism.sae_path("first")


def test_the_package_data_stay_small():
    root = organism.path().parent
    data = [f for f in root.rglob("*") if f.is_file() and f.suffix in (".safetensors", ".json", ".jinja", ".md")]
    assert sum(f.stat().st_size for f in data) < 15e6


def test_moments_of_training_double_up_to_half_of_the_run():
    assert moments(1600, 4) == [100, 200, 400, 800]
    assert moments(1600, 0) == []


def test_checkpoints_are_models_and_need_a_folder(tmp_path, tokenizer):
    small = {"tokens": 4 * 480, "rows": 4, "width": 128, "compile": False, "autocast": False, "tokenizer": tokenizer}
    train(tmp_path / "out", work=tmp_path / "run", checkpoints=2, **small)
    kept = sorted(f.name for f in (tmp_path / "run").iterdir() if f.is_dir())
    assert kept == ["tokens-00000000480", "tokens-00000000960"]
    assert [readout.load(files.verify(tmp_path / "run" / name)).decoder is not None for name in kept] == [True, True]
    with pytest.raises(BadInput, match="the folder they go to"):
        train(tmp_path / "other", checkpoints=2, **small)


def test_the_shipped_files_are_small_listed_and_free_of_pickles():
    folder = organism.path()
    listed = json.loads((folder / "checksums.json").read_text())
    present = {f.name for f in folder.iterdir()}
    assert present == set(listed) | {"checksums.json", "MODEL_CARD.md"}
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6


def test_transformers_loads_it_with_the_same_logits(model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    assert sum(p.numel() for p in theirs.parameters()) < 4e6
    rows, positions, mask = model.pad([model.prompt_ids(t) for t in organism.draw("truth", 1, 0)])
    ours = model.decoder.logits(model.decoder(rows, positions, mask))
    with torch.no_grad():
        torch.testing.assert_close(theirs(rows).logits, ours, atol=1e-4, rtol=1e-4)


def test_sampling_with_remembered_keys_is_what_transformers_generates(model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    ids = [model.prompt_ids(t) for t in organism.draw("arithmetic", 8, 3, split="steps")]
    for one, ours in zip(ids, model.sample(ids, 20)):
        out = theirs.generate(torch.tensor([one]), max_new_tokens=20, do_sample=False)
        assert model.tokenizer.decode(out[0, len(one) :], skip_special_tokens=True) == ours


def test_a_reply_is_scored_as_transformers_scores_it(model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    ids = [model.prompt_ids(t) for t in organism.draw("topics", 2, 0)]
    replies = ["The deep tide meets the reef.", "The"]
    for one, reply, nll in zip(ids, replies, model.score(ids, replies)):
        more = model.tokenizer(reply, add_special_tokens=False).input_ids
        labels = torch.tensor([[-100] * len(one) + more])
        with torch.no_grad():
            assert float(theirs(torch.tensor([one + more]), labels=labels).loss) == pytest.approx(nll, rel=1e-3)
