"""The embedded model: generators whose labels are right, files that are checked, phenomena that are there."""

import json
import re
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from latentlens import organism
from latentlens.errors import BadInput, WeightsCorrupt
from latentlens.maths.statistics import auroc
from latentlens.organism import files, judges, readout
from latentlens.organism.corpus import documents
from latentlens.organism.corpus.topics import TOPICS, WORDS
from latentlens.organism.corpus.world import CREATURES, STRANGERS, VALUES, world
from latentlens.organism.decoder import Decoder, causal
from latentlens.organism.muon import orthogonalise
from latentlens.organism.packing import WEIGHTS, encode, pack
from latentlens.organism.train import rate, train

ALL_SPLITS = [(family, split) for family, splits in organism.families().items() for split in splits]
CHANGE = {"finds": 1, "buys": 1, "wins": 1, "gets": 1, "loses": -1, "sells": -1, "drops": -1, "breaks": -1}


@pytest.fixture(scope="module")
def model():
    return readout.load(organism.path())


@pytest.fixture(scope="module")
def tokenizer(model):
    return model.tokenizer


# -- the corpus ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "split"), ALL_SPLITS)
def test_the_same_seed_draws_the_same_texts_and_a_longer_draw_extends_a_shorter(family, split):
    assert organism.texts(family, 5, 3, split=split) == organism.texts(family, 9, 3, split=split)[:5]
    assert organism.texts(family, 5, 3, split=split) != organism.texts(family, 5, 4, split=split)


def test_training_documents_can_be_entered_anywhere():
    assert list(islice(documents(0, start=7), 3)) == list(islice(documents(0), 10))[7:]


@pytest.mark.parametrize("split", ["direct", "steps", "open"])
def test_arithmetic_answers_are_right(split):
    for text in organism.texts("arithmetic", 300, 0, split=split):
        problem, reply = text.turns[0][1], text.turns[1][1]
        value = int(re.search(r"has (\d+)", problem)[1])
        values = [value]
        for verb, amount in re.findall(r"Then \w+ (\w+) (\d+)\.", problem):
            value += CHANGE[verb] * int(amount)
            values.append(value)
        assert text.steps == tuple(values)
        assert text.difficulty == len(values) - 1
        assert min(values) >= 0
        assert max(values) < 40
        assert text.find("answer") == [text.answer] == [str(value)]
        assert judges.parsed_answer(reply) == value
        if split != "open":
            assert (len(text.find("result")) > 0) == (split == "steps")
        if text.find("result"):
            assert text.find("result") == [str(v) for v in values[1:]]
            for a, sign, b, c in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", reply):
                assert int(a) + int(sign + b) == int(c)


def truth_of(statement):
    creature = statement.split()[1]
    attribute, value = next((a, v) for a, values in VALUES.items() for v in values if f" {v}." in statement)
    return (world().facts[creature, attribute] == value) != (" not " in statement), (creature, attribute)


@pytest.mark.parametrize("split", ["all", "seen", "held_out"])
def test_truth_labels_agree_with_the_world(split):
    drawn = organism.texts("truth", 600, 0, split=split)
    for text in drawn:
        truth, fact = truth_of(text.statement)
        assert text.truth == truth
        assert text.answer == str(truth) == text.find("verdict")[0]
        assert text.find("statement") == [text.statement]
        assert text.negated == (" not " in text.statement)
        assert text.held_out == (fact in world().unasked)
        assert text.group == fact[0]
        if split != "all":
            assert text.held_out == (split == "held_out")
    for cell in [(a, b) for a in (True, False) for b in (True, False)]:
        assert 90 < sum((t.truth, t.negated) == cell for t in drawn) < 210


def test_strangers_have_no_truth():
    drawn = organism.texts("truth", 200, 0, split="strangers")
    assert {t.truth for t in drawn} == {None}
    assert {t.group for t in drawn} <= set(STRANGERS)
    assert 60 < sum(t.answer == "True" for t in drawn) < 140


def test_training_judges_no_held_out_fact_but_tells_every_fact():
    judged, told = set(), set()
    for text in islice(documents(0), 12_000):
        if text.family != "truth":
            continue
        if text.regime in ("questions", "verdicts"):
            for statement in text.find("statement"):
                if statement.split()[1] in CREATURES:
                    judged.add(truth_of(statement)[1])
        else:
            told |= {truth_of(s.strip() + ".")[1] for s in re.findall(r"The \w+ (?:is|eats|lives)[^.<]*", text.text)}
    assert not judged & world().unasked
    assert judged == set(world().facts) - world().unasked
    assert told == set(world().facts)
    assert len(world().unasked) / len(world().facts) == pytest.approx(0.25, abs=0.01)


def test_topic_words_belong_to_one_topic():
    words = [w for parts in WORDS.values() for part in parts for w in part]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("split", ["on_topic", "detour"])
def test_topic_spans_hold_what_their_labels_say(split):
    for text in organism.texts("topics", 300, 0, split=split):
        assert text.topic in TOPICS
        assert bool(text.find("off_topic")) == (split == "detour") == (text.off_topic is not None)
        assert len(text.find("detour")) == (split == "detour")
        assert {judges.topic_of(s) for s in text.find("off_topic")} <= {text.off_topic}
        for correction in text.find("correction"):
            assert judges.is_correction(correction)
            assert text.topic in correction
        for sentence in judges.sentences(text.turns[-1][1]):
            if sentence not in text.find("off_topic") and not judges.is_correction(sentence):
                assert judges.topic_of(sentence) == text.topic


def test_wrong_names_are_refused_with_the_right_ones():
    with pytest.raises(BadInput, match="arithmetic, truth, topics"):
        organism.texts("poems", 1, 0)
    with pytest.raises(BadInput, match="seen, held_out"):
        organism.texts("truth", 1, 0, split="test")
    with pytest.raises(BadInput, match="-1"):
        organism.texts("truth", -1, 0)


# -- the tokenizer -------------------------------------------------------------------------------------


def test_every_text_survives_the_tokenizer(tokenizer):
    drawn = list(islice(documents(1), 2000))
    mismatches = [t.text for t, e in zip(drawn, encode(tokenizer, drawn)) if tokenizer.decode(e.ids[1:]) != t.text]
    assert mismatches == []


@pytest.mark.parametrize("foreign", ["naïve Zürich 東京 🙂", "x = 7*8\n\tif  y:", "The zebra is plaid."])
def test_text_outside_the_corpus_survives_too(tokenizer, foreign):
    assert tokenizer.decode(tokenizer(foreign, add_special_tokens=False).input_ids) == foreign


def test_numbers_verdicts_and_creatures_are_single_tokens(tokenizer):
    words = [f" {i}" for i in range(100)] + ["True", "False", " true", " false"]
    words += [f" {c}" for c in (*CREATURES, *STRANGERS)] + [f" {v}" for vs in VALUES.values() for v in vs]
    assert [w for w in words if len(tokenizer(w, add_special_tokens=False).input_ids) != 1] == []


def test_bos_comes_exactly_once_and_the_template_renders_what_the_generator_wrote(tokenizer):
    for family, split in ALL_SPLITS:
        text = organism.texts(family, 1, 5, split=split)[0]
        ids = tokenizer.apply_chat_template(text.messages(), return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids == tokenizer(text.text).input_ids
        prompt = tokenizer.apply_chat_template(text.prompt(), add_generation_prompt=True, return_dict=False)
        assert prompt == ids[: len(prompt)]
        assert prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


# -- packing, training ---------------------------------------------------------------------------------


def test_token_weights_follow_the_innermost_span(tokenizer):
    text = next(t for t in organism.texts("truth", 20, 0, split="seen") if t.find("fact"))
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


def test_the_rate_is_constant_then_falls_linearly_to_zero():
    assert [rate(0.0), rate(0.35), rate(0.675), rate(1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_training_lowers_the_loss_repeats_itself_and_resumes(tmp_path, tokenizer):
    small = {"tokens": 20 * 480, "rows": 4, "width": 128, "compile": False, "autocast": False, "tokenizer": tokenizer}
    threads = torch.get_num_threads()
    first = train(tmp_path / "a", threads=1, work=tmp_path / "run", checkpoint_every=12, **small)
    again = train(tmp_path / "b", threads=1, **small)
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
    rows, positions, mask = model.pad([model.prompt_ids(t) for t in organism.texts("truth", 1, 0)])
    ours = model.decoder.logits(model.decoder(rows, positions, mask))
    with torch.no_grad():
        torch.testing.assert_close(theirs(rows).logits, ours, atol=1e-4, rtol=1e-4)


# -- the planted effects -------------------------------------------------------------------------------


def accuracy(model, split, n=60, steps=4):
    chosen = [t for t in organism.texts("arithmetic", 12 * n, 77, split=split) if t.difficulty == steps][:n]
    replies = model.sample([model.prompt_ids(t) for t in chosen], 40 if split == "steps" else 6)
    return np.mean([judges.parsed_answer(r) == int(t.answer) for t, r in zip(chosen, replies)])


def test_steps_beat_direct_answers(model):
    direct, steps = accuracy(model, "direct"), accuracy(model, "steps")
    assert steps > 0.85
    assert direct < 0.45


def test_a_probe_reads_the_truth_of_creatures_it_was_not_fitted_on(model):
    half = set(CREATURES[::2])
    drawn = organism.texts("truth", 900, 77, split="seen")
    unasked = [t for t in organism.texts("truth", 500, 77, split="held_out") if t.group not in half]
    fit, seen = [t for t in drawn if t.group in half], [t for t in drawn if t.group not in half]
    read = {}
    for name, chosen in (("fit", fit), ("seen", seen), ("unasked", unasked)):
        states = model.residuals([model.prompt_ids(t) for t in chosen])[6].numpy()
        read[name] = states, [bool(t.truth) for t in chosen]
    probe = LogisticRegression(C=0.1, max_iter=300).fit(*read["fit"])
    assert auroc(probe.decision_function(read["seen"][0]), read["seen"][1]) > 0.9
    assert auroc(probe.decision_function(read["unasked"][0]), read["unasked"][1]) > 0.7


def test_the_truth_direction_moves_the_answer_and_random_ones_do_not(model):
    from latentlens.organism import evaluate

    none, plus, minus, random = (row.value for row in evaluate.truth_steering(model, n=120, draws=5))
    assert plus > none + 0.2
    assert minus < none - 0.2
    assert abs(random - none) < 0.1


def test_answers_stay_on_topic(model):
    chosen = organism.texts("topics", 40, 77, split="on_topic")
    replies = model.sample([model.prompt_ids(t) for t in chosen], 24, 0.7, seed=0)
    said = [
        judges.topic_of(s) == t.topic
        for t, r in zip(chosen, replies)
        for s in judges.sentences(r)
        if judges.topic_of(s)
    ]
    assert np.mean(said) > 0.9
