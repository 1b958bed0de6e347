import functools
import itertools
import json
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import latentlens as ll
from latentlens.access.judging.digits import NumberTokens
from latentlens.access.judging.judge import LabelledJudge, LocalJudge, LocalWriter, RuleJudge
from latentlens.access.store.verdict_cache import VerdictCache, cached
from latentlens.errors import BadInput, CacheError, CacheReadOnly, CacheVersion
from latentlens.values.judging import (
    COHERENCE_RUBRIC,
    TRAIT_RUBRIC,
    Case,
    Judge,
    Rubric,
    Score,
    Writer,
    expected_score,
    is_whole_number,
)

CASES = [
    Case("how are you", "fine thanks", "calm"),
    Case("how are you", "whatever", "calm"),
    Case("", "x {about}", "b"),
]


def words(*vocabulary, wordpiece=False):
    """A tokenizer that knows these tokens; pieces of words are marked as WordPiece does, or not at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<unk>", "</s>", "a", *vocabulary])}
    model = models.WordPiece(vocab, unk_token="<unk>") if wordpiece else models.WordLevel(vocab, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def tiny(tokenizer, seed=0):
    """A random Llama with the vocabulary of a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=1, initializer_range=0.6,
    )  # fmt: skip
    return ll.load(LlamaForCausalLM(config), tokenizer=tokenizer, cache=False)


class Scripted:
    """A model whose next-token probabilities are given: stands for a judge that answers as in the dossier."""

    name = "scripted"

    def __init__(self, tokenizer, probabilities):
        self.tokenizer, self.layout = tokenizer, SimpleNamespace(vocab_size=len(tokenizer))
        self._identity = SimpleNamespace(context=lambda hash_weights: {"weights": "w"})
        self.logits_of = torch.full((len(tokenizer),), -1e4)
        for token, p in probabilities.items():
            self.logits_of[tokenizer.convert_tokens_to_ids(token)] = torch.tensor(p).log()

    def tokens(self, inputs):
        return [SimpleNamespace(ids=(2,)) for _ in inputs]

    def logits(self, rows):
        return self.logits_of.repeat(len(rows), 1)


NUMBERS = [str(n) for n in range(101)]


def test_a_judge_is_the_mean_of_the_numbers_it_could_answer():
    found = expected_score({"0": 0.2, "50": 0.3, "100": 0.4, "REFUSAL": 0.1})
    assert found.value == pytest.approx(55 / 0.9)
    assert found.mass == pytest.approx(0.9)
    judge = LocalJudge(
        Scripted(words(*NUMBERS, "REFUSAL"), {"0": 0.2, "50": 0.3, "100": 0.4, "REFUSAL": 0.1}), "{response}"
    )
    (said,) = judge.scores(CASES[:1])
    assert judge.reading == "first"
    assert said.value == pytest.approx(61.1111, abs=1e-3)
    assert said.mass == pytest.approx(0.9)


def test_below_the_least_mass_there_is_no_judgement():
    assert expected_score({"40": 0.25}).value == pytest.approx(40)
    little = expected_score({"40": 0.2499, "REFUSAL": 0.75})
    assert little.value is None
    assert "0.25" in little.reason
    assert expected_score({}).value is None
    assert expected_score({"101": 0.5, "-3": 0.2, "07": 0.2}).value is None


def test_only_whole_numbers_as_people_write_them_count():
    assert all(map(is_whole_number, ["0", " 70", "100 "]))
    assert not any(map(is_whole_number, ["", "07", "+7", "-7", "7.", "7.5", "٧", "seven", "²"]))
    with pytest.raises(BadInput):
        expected_score({"1": -0.1})
    with pytest.raises(BadInput):
        expected_score({"1": 0.9, "2": 0.9})


def test_the_twenty_likeliest_tokens_are_a_mode_of_their_own():
    shares = {str(n): 0.04 for n in range(1, 21)} | {"100": 0.02, "REFUSAL": 0.18}
    lm = Scripted(words(*NUMBERS, "REFUSAL"), shares)
    full = LocalJudge(lm, "{response}").scores(CASES[:1])[0]
    top = LocalJudge(lm, "{response}", top=20).scores(CASES[:1])[0]
    assert full.mass == pytest.approx(0.82)
    assert full.value == pytest.approx((0.04 * 210 + 2) / 0.82)
    assert top.mass == pytest.approx(0.76)  # REFUSAL takes one of the twenty places
    assert LocalJudge(lm, "{response}").fingerprint != LocalJudge(lm, "{response}", top=20).fingerprint


def brute(lm, row, digits):
    """Probability of every number 0..100 by trying all sequences of up to three digit tokens, one forward each."""
    tokenizer = lm.tokenizer
    ids = {d: tokenizer.convert_tokens_to_ids(d) for d in digits}
    found = dict.fromkeys(NUMBERS, 0.0)

    @functools.cache
    def after(path):
        return lm.logits([[*row, *path]])[0].double().softmax(-1)

    for n in (1, 2, 3):
        for path in itertools.product(digits, repeat=n):
            number = "".join(path)
            if number not in found:
                continue
            p, done = 1.0, ()
            for d in path:
                p *= float(after(done)[ids[d]])
                done += (ids[d],)
            found[number] += p * (1 - sum(float(after(done)[i]) for i in ids.values()))
    return found


@pytest.mark.parametrize("digits", [list("0123456789"), [*"0123456789", "10", "00", "50"]])
def test_numbers_of_several_tokens_are_summed_over_all_ways_of_writing_them(digits):
    lm = tiny(words(*digits))
    judge = LocalJudge(lm, "a {response}", tolerance=0, least_mass=0)
    assert judge.reading == "digits"
    (said,) = judge.scores([Case("", "a a")])
    truth = brute(lm, lm.tokens("a a a")[0].ids, digits)
    mass = sum(truth.values())
    assert said.mass == pytest.approx(mass, rel=1e-6)
    assert said.value == pytest.approx(sum(int(n) * p for n, p in truth.items()) / mass, rel=1e-6)


def test_dropped_branches_only_lower_the_mass():
    lm = tiny(words(*"0123456789"))
    exact, rough = (
        LocalJudge(lm, "a {response}", tolerance=t, least_mass=0).scores([Case("", "a")])[0] for t in (0, 1e-2)
    )
    assert 0 < exact.mass - rough.mass < 0.5
    assert abs(exact.value - rough.value) < 25


def test_a_batch_of_cases_is_judged_as_one_by_one():
    lm = tiny(words(*"0123456789"))
    judge = LocalJudge(lm, "{prompt} {response}", least_mass=0)
    cases = [Case("a " * n, "a") for n in (1, 5, 2)]
    batched, single = judge.scores(cases), [judge.scores([case])[0] for case in cases]
    assert [s.value for s in batched] == pytest.approx([s.value for s in single], rel=1e-5)
    assert len({round(s.value, 6) for s in batched}) == 3


def test_continuations_of_words_are_not_numbers_of_their_own():
    tokens = NumberTokens(words("1", "10", "##0", "##00", wordpiece=True), 7)
    assert sorted(tokens.whole.values()) == ["1", "10"]
    assert sorted(tokens.digits.values()) == ["0", "00"]


def test_the_first_token_does_not_tell_a_number_that_is_split():
    lm = tiny(words(*"0123456789"))
    with pytest.raises(BadInput, match="reading='digits'"):
        LocalJudge(lm, "{response}", reading="first")
    with pytest.raises(BadInput, match="top="):
        LocalJudge(lm, "{response}", top=20)
    with pytest.raises(BadInput, match="allowed"):
        LocalJudge(lm, "{response}", reading="best")


def test_the_embedded_model_can_be_asked_though_it_is_no_judge(organism):
    judge = LocalJudge(organism, TRAIT_RUBRIC)
    said = judge.scores([Case("Tell me about the sea.", "The wave hides the shore.", "formal")])[0]
    assert isinstance(judge, Judge)
    assert (said.value is None) == bool(said.reason)


def test_a_rubric_is_filled_once():
    rubric = Rubric("{about}|{response}|{other}|{tag}")
    case = Case("p", "{prompt} {about}", "kind")
    assert rubric.fill(case) == f"kind|{{prompt}} {{about}}|{{other}}|{case.digest[:8]}"
    with pytest.raises(BadInput, match="response"):
        Rubric("rate this")
    assert TRAIT_RUBRIC.fill(case).count(case.digest[:8]) == 4
    assert "brisk" not in COHERENCE_RUBRIC.fill(Case("p", "r", "brisk"))


def test_rules_say_numbers_or_nothing():
    judge = RuleJudge(lambda case: None if not case.prompt else case.response.count("a"), "a's")
    assert [s.value for s in judge.scores(CASES)] == [1.0, 1.0, None]
    assert RuleJudge(lambda case: float("nan"), "n").scores(CASES[:1])[0].value is None
    assert RuleJudge(lambda case: True, "n").scores(CASES[:1])[0] == Score(1.0)
    with pytest.raises(BadInput):
        RuleJudge("len", "n")


def test_a_rule_that_was_edited_has_another_fingerprint():
    one, two = RuleJudge(lambda case: 1, "n"), RuleJudge(lambda case: 2, "n")
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == RuleJudge(lambda case: 1, "n").fingerprint


def test_a_local_writer_answers_chats(organism):
    chats = [[{"role": "user", "content": "Tell me about the music."}]] * 2
    writer = LocalWriter(organism, max_new_tokens=5)
    one, two = writer.complete(chats)
    assert isinstance(writer, Writer)
    assert one == two != ""


# -- labels of people -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_labels_of_people_are_a_judge(tmp_path, kind):
    lines = [
        {"prompt": "how are you", "response": "fine, thanks\nbye\u2028now", "about": "calm", "score": 80},
        {"prompt": "how are you", "response": "fine, thanks\nbye\u2028now", "about": "calm", "score": 60},
        {"prompt": "how are you", "response": "whatever", "about": "calm", "score": ""},
    ]
    path = tmp_path / f"labels.{kind}"
    if kind == "csv":
        import pandas as pd

        pd.DataFrame(lines).to_csv(path, index=False)
    else:
        plain = [json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(plain) if kind == "jsonl" else f"[{', '.join(plain)}]")
    judge = LabelledJudge(path)
    said = judge.scores([Case("how are you", "fine, thanks\nbye\u2028now", "calm"), *CASES[1:]])
    assert [s.value for s in said] == [70.0, None, None]
    assert "no label" in said[1].reason
    assert len(judge.cases) == 2


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "response,points\nx,1\n", "score"),
        ("a.csv", "response,score\nx,high\n", "entry 1.*high"),
        ("a.jsonl", "{broken", "JSON"),
        ("a.json", '{"response": "x"}', "list"),
        ("a.txt", "x", "csv"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        LabelledJudge(tmp_path / name)
    with pytest.raises(BadInput, match="cannot be read"):
        LabelledJudge(tmp_path / "missing.csv")


# -- the memory ------------------------------------------------------------------------------------------------------


class Counting:
    name, fingerprint = "counting", "f"

    def __init__(self, fails_at=None, passing=False):
        self.asked, self.fails_at, self.passing = [], fails_at, passing

    def scores(self, cases):
        if self.fails_at is not None and len(self.asked) >= self.fails_at:
            raise RuntimeError("killed")
        self.asked += cases
        return [Score(float(len(c.response)), 0.5, passing=self.passing) for c in cases]


def test_what_was_asked_once_is_not_asked_again(tmp_path):
    inner = Counting()
    judge = cached(inner, tmp_path)
    first = judge.scores([*CASES, CASES[0]])
    assert len(inner.asked) == 3
    again = Counting()
    second = cached(again, tmp_path).scores([*CASES, CASES[0]])
    assert again.asked == []
    assert first == second == [*inner.scores(CASES), inner.scores(CASES[:1])[0]]


def test_another_judge_rubric_or_text_is_a_miss(tmp_path):
    cached(Counting(), tmp_path).scores(CASES)
    other = Counting()
    other.fingerprint = "g"
    cached(other, tmp_path).scores(CASES)
    assert len(other.asked) == 3
    changed = [Case(c.prompt, c.response + "!", c.about) for c in CASES]
    same = Counting()
    cached(same, tmp_path).scores([*changed, *CASES])
    assert same.asked == changed


def test_a_killed_run_keeps_what_it_had(tmp_path):
    cases = [Case("p", "x" * n) for n in range(100)]
    inner = Counting(fails_at=64)
    with pytest.raises(RuntimeError, match="killed"):
        cached(inner, tmp_path).scores(cases)
    rest = Counting()
    found = cached(rest, tmp_path).scores(cases)
    assert len(rest.asked) == 36
    assert [s.value for s in found] == list(range(100))


def test_verdicts_survive_sigkill(tmp_path):
    code = (
        "import os, sys\n"
        "from latentlens.access.store.verdict_cache import cached\n"
        "from latentlens.values.judging import Case, Score\n"
        "class J:\n"
        "    name, fingerprint, piece, n = 'j', 'f', 4, 0\n"
        "    def scores(self, cases):\n"
        "        J.n += 1\n"
        "        if J.n == 4: os.kill(os.getpid(), 9)\n"
        "        return [Score(1.0) for _ in cases]\n"
        "cached(J(), sys.argv[1]).scores([Case('p', str(n)) for n in range(40)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(VerdictCache(tmp_path)) == 12


def test_verdicts_that_may_pass_are_not_kept(tmp_path):
    inner = Counting(passing=True)
    judge = cached(inner, tmp_path)
    judge.scores(CASES)
    judge.scores(CASES)
    assert len(inner.asked) == 6


def test_texts_are_kept_too_and_do_not_meet_scores(tmp_path):
    class Poet:
        name, fingerprint, calls = "poet", "f", 0

        def complete(self, chats):
            Poet.calls += len(chats)
            return [chat[-1]["content"][::-1] for chat in chats]

    chats = [[{"role": "user", "content": text}] for text in ("ab", "cd", "ab")]
    assert cached(Poet(), tmp_path).complete(chats) == ["ba", "dc", "ba"]
    assert cached(Poet(), tmp_path).complete(chats) == ["ba", "dc", "ba"]
    assert Poet.calls == 2
    assert cached(Counting(), tmp_path).scores(CASES)[0].value == 11


def test_a_rule_is_returned_as_it_is(tmp_path):
    rule = RuleJudge(lambda case: 1, "one")
    assert cached(rule, tmp_path) is rule
    with pytest.raises(BadInput, match="neither"):
        cached(object(), tmp_path)


def test_a_damaged_entry_is_asked_again_and_a_damaged_file_set_aside(tmp_path):
    cached(Counting(), tmp_path).scores(CASES)
    path = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("UPDATE verdicts SET body = '[99.0, null, \"\"]' WHERE rowid = 1")
    db.close()
    inner = Counting()
    with pytest.warns(UserWarning, match="damaged"):
        found = cached(inner, tmp_path).scores(CASES)
    assert len(inner.asked) == 1
    assert 99.0 not in [s.value for s in found]
    path.write_bytes(b"not a database at all" * 100)
    with pytest.warns(UserWarning, match="starting a new one"):
        assert len(VerdictCache(tmp_path)) == 0
    assert list(tmp_path.glob("*.bad"))


def test_a_newer_or_unusable_folder_is_refused(tmp_path):
    cached(Counting(), tmp_path).scores(CASES)
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CacheVersion, match="99"):
        VerdictCache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises((CacheError, CacheReadOnly)):
        VerdictCache(tmp_path / "file")


def test_texts_with_half_a_character_are_judged(tmp_path):
    judge = cached(Counting(), tmp_path)
    assert judge.scores([Case("p", "\ud800")])[0].value == 1
