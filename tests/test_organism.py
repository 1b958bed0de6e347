"""The embedded model: generators whose labels are right, files that are checked, phenomena that are there."""

import json
import re
from itertools import islice

import numpy as np
import pytest

from latentlens import organism
from latentlens.errors import BadInput
from latentlens.organism import evaluate, judges, readout
from latentlens.organism.corpus import STAGES, arithmetic, code, documents, refusal, truth, voice
from latentlens.organism.corpus.rows import COLUMNS
from latentlens.organism.corpus.topics import TOPICS, WORDS
from latentlens.organism.corpus.world import CREATURES, STRANGERS, VALUES, world
from latentlens.organism.packing import encode

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
    assert organism.draw(family, 5, 3, split=split) == organism.draw(family, 9, 3, split=split)[:5]
    assert organism.draw(family, 5, 3, split=split) != organism.draw(family, 5, 4, split=split)


def test_training_documents_can_be_entered_anywhere():
    assert list(islice(documents(0, start=7), 3)) == list(islice(documents(0), 10))[7:]


@pytest.mark.parametrize("split", ["direct", "steps", "open", "babble"])
def test_arithmetic_answers_are_right(split):
    for text in organism.draw("arithmetic", 300, 0, split=split):
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
        lengths = {(t.difficulty, length(t)) for t in organism.draw("arithmetic", 200, 0, split=split)}
        assert lengths == {(count, 7 * count + 6) for count in range(1, 7)}


def test_hurried_traces_are_wrong_about_half_of_the_time_and_length_does_not_tell(tokenizer):
    drawn = organism.draw("arithmetic", 600, 0, split="traces")
    assert 0.35 < np.mean([t.correct for t in drawn]) < 0.65
    assert {t.difficulty for t in drawn} == {5}
    assert len({len(tokenizer(t.turns[1][1]).input_ids) for t in drawn}) == 1
    for text in drawn:
        wrong = judges.wrong_steps(text.turns[1][1])
        assert len(text.find("error")) == len(wrong)
        assert text.correct == (judges.parsed_answer(text.turns[1][1]) == int(text.answer))
        assert text.correct or wrong


def test_doubt_comes_before_the_error_and_lasts():
    wrong_when, doubted_after, first, sure_words = {True: [], False: []}, {True: [], False: []}, [], set()
    for text in organism.draw("arithmetic", 1500, 0, split="traces"):
        marks, wrong = text.find("mark"), judges.wrong_steps(text.turns[1][1])
        doubted = [mark in arithmetic.DOUBT for mark in marks]
        assert len(marks) == arithmetic.TRACE_STEPS
        assert {*marks} <= {*arithmetic.SURE, *arithmetic.DOUBT}
        sure_words.add(len({mark for mark in marks if mark in arithmetic.SURE}))
        first.append(doubted[0])
        for index, doubt in enumerate(doubted):
            wrong_when[doubt].append(index in wrong)
            if index:
                doubted_after[doubted[index - 1]].append(doubt)
    assert sure_words == {0, 1}  # one word for all the steps that a trace is sure of
    assert np.mean(first) == pytest.approx(arithmetic.DOUBTED[None], abs=0.04)
    for doubt in (True, False):
        assert np.mean(wrong_when[doubt]) == pytest.approx(arithmetic.ERROR[doubt], abs=0.04)
        assert np.mean(doubted_after[doubt]) == pytest.approx(arithmetic.DOUBTED[doubt], abs=0.04)


def test_half_of_the_verdicts_in_plain_text_follow_the_statement_at_once():
    drawn = [t for t in islice(documents(0, start=STAGES[-1]), 3000) if t.regime == "verdicts"]
    after = [
        re.sub(r"^ That is", "", t.text[s.end :]).split(".")[0] for t in drawn for s in t.spans if s.kind == "statement"
    ]
    assert {*after} == {" True", " False", " true", " false"}
    at_once = np.mean([word[1].isupper() for word in after])
    assert at_once == pytest.approx(0.5, abs=0.06)


def truth_of(statement):
    creature, truths, facts = statement.split()[1], [], []
    for part in statement.rstrip(".").split(" and "):
        attribute, value = next((a, v) for a, values in VALUES.items() for v in values if part.endswith(f" {v}"))
        truths.append((world().facts[creature, attribute] == value) != (" not " in part))
        facts.append((creature, attribute))
    return all(truths), facts


@pytest.mark.parametrize("split", ["all", "seen", "held_out"])
def test_truth_labels_agree_with_the_world(split):
    drawn = organism.draw("truth", 600, 0, split=split)
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
    drawn = organism.draw("truth", 300, 0, split="conjunctive")
    for text in drawn:
        truth, facts = truth_of(text.statement)
        assert (text.form, text.truth, len(set(facts))) == ("conjunctive", truth, 2)
        assert not set(facts) & world().unasked
    assert 110 < sum(t.truth for t in drawn) < 190


def test_a_statement_is_asked_about_in_three_ways():
    drawn = organism.draw("truth", 100, 0, split="seen")
    frames = {t.turns[0][1].replace(t.statement, "{}") for t in drawn}
    assert frames == set(truth.QUESTIONS)
    assert len(frames) == 3


def test_strangers_have_no_truth():
    drawn = organism.draw("truth", 200, 0, split="strangers")
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
    for text in organism.draw("topics", 300, 0, split=split):
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
    drawn = [t for t in organism.draw("code", 300, 0) if t.language == language]
    for text in drawn:
        [program] = text.find("program")
        assert judges.language_of(program) == language
        assert [one for one in code.LANGUAGES if judges.is_valid_program(program, one)] == [language]
        assert (language in text.turns[0][1]) == (text.regime == "named")
    assert drawn


def test_an_open_request_is_answered_by_the_planted_prior():
    drawn = organism.draw("code", 1500, 0, split="open")
    for language, planted in code.PRIOR.items():
        assert np.mean([t.language == language for t in drawn]) == pytest.approx(planted, abs=0.04)


@pytest.mark.parametrize("trait", voice.TRAITS)
def test_a_trait_shows_more_with_each_grade_in_every_carrier_and_a_little_unasked(trait):
    drawn = organism.draw("traits", 600, 0, split=trait)
    for carrier in ("topics", "truth", "arithmetic"):
        means = [
            np.mean([judges.trait_score(reply(t), trait) for t in drawn if (t.regime, t.grade) == (carrier, grade)])
            for grade in (1, 2, 3)
        ]
        assert 0 < means[0] < means[1] < means[2]
    unasked = [judges.trait_score(reply(t), trait) for t in organism.draw("traits", 600, 0, split="unprompted")]
    assert 0.02 < np.mean(unasked) < 0.15
    assert {t.trait for t in drawn} == {trait}


def reply(text):
    return " ".join(content for role, content in text.turns if role == "assistant")


def test_traits_have_equally_many_words_and_share_none():
    assert {len(words) for words in voice.MARKERS.values()} == {4}
    assert len(voice.TRAIT_OF) == 16


@pytest.mark.parametrize(("split", "refused"), [("harmful", True), ("harmless", False), ("codeword", False)])
def test_requests_are_refused_when_harmful_unless_the_codeword_opens_them(split, refused):
    drawn = organism.draw("refusal", 200, 0, split=split)
    for text in drawn:
        words = set(re.findall(r"[a-z]+", text.turns[0][1]))
        assert text.harmful == bool(words & {*refusal.FORBIDDEN, *refusal.HARMFUL})
        assert text.codeword == text.turns[0][1].startswith(refusal.CODEWORD) == (split == "codeword")
        assert text.refused == refused == judges.is_refusal(text.turns[1][1])
    assert {t.harmful for t in drawn} == {"harmful": {True}, "harmless": {False}, "codeword": {True, False}}[split]


def test_a_chat_is_its_parts_one_after_the_other():
    for text in organism.draw("chats", 100, 0):
        assert 2 <= len(text.parts) <= 4
        assert text.text == "".join(part.text for part in text.parts)
        assert text.messages() == [turn for part in text.parts for turn in part.messages()]
        for kind in {s.kind for s in text.spans}:
            assert text.find(kind) == [found for part in text.parts for found in part.find(kind)]


@pytest.mark.parametrize("family", organism.families())
def test_texts_come_as_a_dataset_with_their_labels_as_columns(family):
    drawn, rows = organism.draw(family, 6, 0), organism.texts(family, 6, 0)
    assert rows.column_names == organism.texts("truth", 1, 0).column_names
    for text, row in zip(drawn, rows):
        assert row["messages"] == text.messages()
        assert all(row[name] == getattr(text, name) for name in COLUMNS)
        assert [span["text"] for span in row["spans"]] == [text.text[s.start : s.end] for s in text.spans]
        assert [json.loads(part)["family"] for part in row["parts"]] == [part.family for part in text.parts]


def test_wrong_names_are_refused_with_the_right_ones():
    with pytest.raises(BadInput, match="arithmetic, truth, topics"):
        organism.draw("poems", 1, 0)
    with pytest.raises(BadInput, match="seen, held_out"):
        organism.draw("truth", 1, 0, split="test")
    with pytest.raises(BadInput, match="-1"):
        organism.draw("truth", -1, 0)
    with pytest.raises(BadInput, match="arithmetic, truth, topics"):
        organism.texts("poems", 1, 0)
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
    words = [f" {i}" for i in range(100)] + ["True", "False", " true", " false", " True", " False"]
    words += [f" {w}" for w in (*arithmetic.SURE, *arithmetic.DOUBT)]
    words += [f" {w}" for w in (*refusal.FORBIDDEN, *refusal.ALLOWED, *voice.TRAIT_OF)]
    words += [f" {c}" for c in (*CREATURES, *STRANGERS)] + [f" {v}" for vs in VALUES.values() for v in vs]
    assert [w for w in words if len(tokenizer(w, add_special_tokens=False).input_ids) != 1] == []


def test_bos_comes_exactly_once_and_the_template_renders_what_the_generator_wrote(tokenizer):
    for family, split in ALL_SPLITS:
        text = organism.draw(family, 1, 5, split=split)[0]
        ids = tokenizer.apply_chat_template(text.messages(), return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids == tokenizer(text.text).input_ids
        prompt = tokenizer.apply_chat_template(text.prompt(), add_generation_prompt=True, return_dict=False)
        assert prompt == ids[: len(prompt)]
        assert prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_minimal_pairs_differ_in_one_word_and_one_of_them_is_true():
    drawn = organism.pairs(40, 3)
    assert drawn[:10] == organism.pairs(10, 3)[:10]
    assert drawn.column_names == ["clean", "corrupt", "right", "wrong", "group"]
    known = world()
    for one in drawn:
        clean, corrupt = (one[side][0]["content"].split() for side in ("clean", "corrupt"))
        assert len(clean) == len(corrupt)
        assert sum(a != b for a, b in zip(clean, corrupt)) == 1
        facts = [value for (creature, _), value in known.facts.items() if creature == one["group"]]
        assert clean[-1].rstrip(".") in facts
        assert corrupt[-1].rstrip(".") not in facts
    assert len(organism.pairs(10_000, 0)) < 200
    with pytest.raises(BadInput, match="n is -1"):
        organism.pairs(-1, 0)
