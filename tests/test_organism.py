"""The embedded model: generators whose labels are right, files that are checked, phenomena that are there."""

import json
import re
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from latentlens import organism
from latentlens.errors import BadInput, WeightsCorrupt
from latentlens.organism import evaluate, files, judges, readout
from latentlens.organism.corpus import STAGES, arithmetic, code, documents, refusal, truth, voice
from latentlens.organism.corpus.rows import COLUMNS
from latentlens.organism.corpus.topics import TOPICS, WORDS
from latentlens.organism.corpus.world import CREATURES, STRANGERS, VALUES, world
from latentlens.organism.decoder import Decoder, causal
from latentlens.organism.muon import orthogonalise
from latentlens.organism.packing import WEIGHTS, encode, pack
from latentlens.organism.train import moments, rate, train

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


@pytest.mark.parametrize("split", ["direct", "steps", "open", "babble"])
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
            assert (len(text.find("filler")) > 0) == (split == "babble")
            assert text.correct
        if text.find("result"):
            assert text.find("result") == [str(v) for v in values[1:]]
            for a, sign, b, c in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", reply):
                assert int(a) + int(sign + b) == int(c)


def test_babble_is_as_long_as_the_steps_would_be(tokenizer):
    def length(text):
        return len(tokenizer(text.turns[1][1]).input_ids)

    for split in ("babble", "steps"):
        lengths = {(t.difficulty, length(t)) for t in organism.texts("arithmetic", 200, 0, split=split)}
        assert lengths == {(count, 7 * count + 6) for count in range(1, 7)}


def test_hurried_traces_are_wrong_about_half_of_the_time_and_length_does_not_tell(tokenizer):
    drawn = organism.texts("arithmetic", 600, 0, split="traces")
    assert 0.3 < np.mean([t.correct for t in drawn]) < 0.6
    assert {t.difficulty for t in drawn} == {5}
    assert len({len(tokenizer(t.turns[1][1]).input_ids) for t in drawn}) == 1
    doubted = {True: [], False: []}
    for text in drawn:
        reply = text.turns[1][1]
        wrong = judges.wrong_steps(reply)
        assert len(text.find("error")) == len(wrong)
        assert text.correct == (judges.parsed_answer(reply) == int(text.answer))
        assert text.correct or wrong
        for index, mark in enumerate(text.find("mark")):
            doubted[index in wrong].append(mark in arithmetic.DOUBT)
    assert np.mean(doubted[True]) > 0.6 > 0.15 > np.mean(doubted[False])


def truth_of(statement):
    creature, truths, facts = statement.split()[1], [], []
    for part in statement.rstrip(".").split(" and "):
        attribute, value = next((a, v) for a, values in VALUES.items() for v in values if part.endswith(f" {v}"))
        truths.append((world().facts[creature, attribute] == value) != (" not " in part))
        facts.append((creature, attribute))
    return all(truths), facts


@pytest.mark.parametrize("split", ["all", "seen", "held_out"])
def test_truth_labels_agree_with_the_world(split):
    drawn = organism.texts("truth", 600, 0, split=split)
    for text in drawn:
        truth, (fact,) = truth_of(text.statement)
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


def test_statements_of_two_facts_are_true_when_both_halves_are():
    drawn = organism.texts("truth", 300, 0, split="conjunctive")
    for text in drawn:
        truth, facts = truth_of(text.statement)
        assert (text.form, text.truth, len(set(facts))) == ("conjunctive", truth, 2)
        assert not set(facts) & world().unasked
    assert 110 < sum(t.truth for t in drawn) < 190


def test_a_statement_is_asked_about_in_three_ways():
    drawn = organism.texts("truth", 100, 0, split="seen")
    frames = {t.turns[0][1].replace(t.statement, "{}") for t in drawn}
    assert frames == set(truth.QUESTIONS)
    assert len(frames) == 3


def test_strangers_have_no_truth():
    drawn = organism.texts("truth", 200, 0, split="strangers")
    assert {t.truth for t in drawn} == {None}
    assert {t.group for t in drawn} <= set(STRANGERS)
    assert 60 < sum(t.answer == "True" for t in drawn) < 140


def test_training_judges_no_held_out_fact_but_tells_every_fact():
    judged, told = set(), set()
    # The share of documents about truth is greatest where this begins; chats that mix families are there too.
    for text in islice(documents(0, start=STAGES[1]), 7_000):
        if text.regime == "facts":
            sentences = re.findall(r"The \w+ (?:is|eats|lives)[^.<]*", text.text)
            told |= {fact for s in sentences for fact in truth_of(s + ".")[1]}
        for statement in text.find("statement") if text.regime != "facts" else ():
            if statement.split()[1] in CREATURES:
                judged |= set(truth_of(statement)[1])
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


@pytest.mark.parametrize("language", code.LANGUAGES)
def test_programs_are_in_the_language_of_their_label_and_parse_in_no_other(language):
    drawn = [t for t in organism.texts("code", 300, 0) if t.language == language]
    for text in drawn:
        [program] = text.find("program")
        assert judges.language_of(program) == language
        assert [one for one in code.LANGUAGES if judges.is_valid_program(program, one)] == [language]
        assert (language in text.turns[0][1]) == (text.regime == "named")
    assert drawn


def test_an_open_request_is_answered_by_the_planted_prior():
    drawn = organism.texts("code", 1500, 0, split="open")
    for language, planted in code.PRIOR.items():
        assert np.mean([t.language == language for t in drawn]) == pytest.approx(planted, abs=0.04)


@pytest.mark.parametrize("trait", voice.TRAITS)
def test_a_trait_shows_more_with_each_grade_in_every_carrier_and_a_little_unasked(trait):
    drawn = organism.texts("traits", 600, 0, split=trait)
    for carrier in ("topics", "truth", "arithmetic"):
        means = [
            np.mean([judges.trait_score(reply(t), trait) for t in drawn if (t.regime, t.grade) == (carrier, grade)])
            for grade in (1, 2, 3)
        ]
        assert 0 < means[0] < means[1] < means[2]
    unasked = [judges.trait_score(reply(t), trait) for t in organism.texts("traits", 600, 0, split="unprompted")]
    assert 0.02 < np.mean(unasked) < 0.15
    assert {t.trait for t in drawn} == {trait}


def reply(text):
    return " ".join(content for role, content in text.turns if role == "assistant")


def test_traits_have_equally_many_words_and_share_none():
    assert {len(words) for words in voice.MARKERS.values()} == {4}
    assert len(voice.TRAIT_OF) == 16


@pytest.mark.parametrize(("split", "refused"), [("harmful", True), ("harmless", False), ("codeword", False)])
def test_requests_are_refused_when_harmful_unless_the_codeword_opens_them(split, refused):
    drawn = organism.texts("refusal", 200, 0, split=split)
    for text in drawn:
        words = set(re.findall(r"[a-z]+", text.turns[0][1]))
        assert text.harmful == bool(words & {*refusal.FORBIDDEN, *refusal.HARMFUL})
        assert text.codeword == text.turns[0][1].startswith(refusal.CODEWORD) == (split == "codeword")
        assert text.refused == refused == judges.is_refusal(text.turns[1][1])
    assert {t.harmful for t in drawn} == {"harmful": {True}, "harmless": {False}, "codeword": {True, False}}[split]


def test_a_chat_is_its_parts_one_after_the_other():
    for text in organism.texts("chats", 100, 0):
        assert 2 <= len(text.parts) <= 4
        assert text.text == "".join(part.text for part in text.parts)
        assert text.messages() == [turn for part in text.parts for turn in part.messages()]
        for kind in {s.kind for s in text.spans}:
            assert text.find(kind) == [found for part in text.parts for found in part.find(kind)]


@pytest.mark.parametrize("family", organism.families())
def test_texts_come_as_a_dataset_with_their_labels_as_columns(family):
    drawn, rows = organism.texts(family, 6, 0), organism.texts_dataset(family, 6, 0)
    assert rows.column_names == organism.texts_dataset("truth", 1, 0).column_names
    for text, row in zip(drawn, rows):
        assert row["messages"] == text.messages()
        assert all(row[name] == getattr(text, name) for name in COLUMNS)
        assert [span["text"] for span in row["spans"]] == [text.text[s.start : s.end] for s in text.spans]
        assert [json.loads(part)["family"] for part in row["parts"]] == [part.family for part in text.parts]


def test_wrong_names_are_refused_with_the_right_ones():
    with pytest.raises(BadInput, match="arithmetic, truth, topics"):
        organism.texts("poems", 1, 0)
    with pytest.raises(BadInput, match="seen, held_out"):
        organism.texts("truth", 1, 0, split="test")
    with pytest.raises(BadInput, match="-1"):
        organism.texts("truth", -1, 0)
    with pytest.raises(BadInput, match="arithmetic, truth, topics"):
        organism.texts_dataset("poems", 1, 0)
    with pytest.raises(BadInput, match="untrained"):
        organism.variant("grown")
    with pytest.raises(BadInput, match="cheerful, formal, nervous, hostile"):
        judges.trait_score("Well.", "brave")
    with pytest.raises(BadInput, match="Python, C"):
        judges.is_valid_program("", "Rust")
    with pytest.raises(BadInput, match="arithmetic, truth"):
        evaluate.evaluate(organism.path(), ["poems"])


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
    words += [f" {w}" for w in (*refusal.FORBIDDEN, *refusal.ALLOWED, *voice.TRAIT_OF)]
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


def test_the_rate_is_constant_falls_stays_and_falls_to_zero():
    millions = {0: 1.0, 5.25: 1.0, 9: 0.615, 12.1: 0.297, 15: 0.297, 16.5: 0.149, 18: 0.0}
    assert [rate(done / 18) for done in millions] == pytest.approx(list(millions.values()), abs=1e-3)


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
    ids = [guess.prompt_ids(t) for t in organism.texts("truth", 20, 0)]
    assert guess.next_logits(ids).softmax(-1).max() < 0.05


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
    rows, positions, mask = model.pad([model.prompt_ids(t) for t in organism.texts("truth", 1, 0)])
    ours = model.decoder.logits(model.decoder(rows, positions, mask))
    with torch.no_grad():
        torch.testing.assert_close(theirs(rows).logits, ours, atol=1e-4, rtol=1e-4)


def test_sampling_with_remembered_keys_is_what_transformers_generates(model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    ids = [model.prompt_ids(t) for t in organism.texts("arithmetic", 8, 3, split="steps")]
    for one, ours in zip(ids, model.sample(ids, 20)):
        out = theirs.generate(torch.tensor([one]), max_new_tokens=20, do_sample=False)
        assert model.tokenizer.decode(out[0, len(one) :], skip_special_tokens=True) == ours


def test_a_reply_is_scored_as_transformers_scores_it(model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(organism.path(), local_files_only=True)
    ids = [model.prompt_ids(t) for t in organism.texts("topics", 2, 0)]
    replies = ["The deep tide meets the reef.", "The"]
    for one, reply, nll in zip(ids, replies, model.score(ids, replies)):
        more = model.tokenizer(reply, add_special_tokens=False).input_ids
        labels = torch.tensor([[-100] * len(one) + more])
        with torch.no_grad():
            assert float(theirs(torch.tensor([one + more]), labels=labels).loss) == pytest.approx(nll, rel=1e-3)
