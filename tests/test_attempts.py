"""Attempts: where a text says that it starts over, what a judge's JSON says, and degraded answers."""

import json

import numpy as np
import pytest

from latentlens.access.judging.attempt_judges import LikelihoodJudge, SegmentJudge, WrittenJudge, read_attempts
from latentlens.access.judging.judge import RuleJudge
from latentlens.errors import BadInput
from latentlens.values.attempts import RESTART, AttemptJudge, attempts, clauses, repeats_itself
from latentlens.values.judging import Case, Judge

RESTARTS = [
    "Wait, I should talk about the sea.", "Sorry, let me return to the music.", "Wait, that's not right.",
    "Actually, no, that is wrong.", "Actually, I should explain knitting.", "Let me start over.", "Let me try again.",
    "Okay, let me start again from the beginning.", "I made a mistake.", "I apologize for the confusion.",
    "I apologise.", "My apologies.", "I got off track.", "I seem to have drifted away from the question.",
    "Hold on, that makes no sense.", "Oops, wrong subject.", "Scratch that.", "Back to the question:", "No, wait.",
    "On second thought, use a pan.", "I'm sorry, that was about whales.", "That's not what you asked.",
    "That isn't right.", "That was wrong.", "Hmm, wait. I digress.", "Wait - I was asked about salt.",
    "Wait a minute, this is wrong.", "Wait that is wrong", "I am getting sidetracked", "Sorry about that.",
]  # fmt: skip
NO_RESTARTS = [
    "Wait for the water to boil.", "Wait until it is done.", "Wait 5 minutes.", "Wait a minute before serving.",
    "Wait, then stir.", "Waiting, you should stir.", "Actually, the ocean is deep.", "Let me explain how it works.",
    "The sorry state of the road.", "That's right, use a pan.", "That is correct.", "Hold on to the rail.",
    "I apologetically left.", "Back to the wall.", "No, the sea is deep.", "Correction fluid is white.",
    "Let me begin by saying", "That's what you need", "I was going to the shop.", "Hang on the wall.",
]  # fmt: skip


@pytest.mark.parametrize("text", RESTARTS)
def test_a_restart_is_recognised_at_the_start_of_a_sentence(text):
    assert RESTART.match(text)
    assert len(attempts("The reef is deep. " + text + " The drum echoes.")) == 2


@pytest.mark.parametrize("text", NO_RESTARTS)
def test_elaboration_and_instructions_are_no_restart(text):
    assert not RESTART.match(text)
    assert len(attempts("The reef is deep. " + text)) == 1


def test_attempts_cover_the_text_and_know_where_the_answer_proper_begins():
    text = "The reef is deep. It shines.  Wait, I made a mistake. Let me start over. The drum echoes. It is loud."
    first, second = attempts(text)
    assert first.text == "The reef is deep. It shines."
    assert text[second.start : second.content] == "Wait, I made a mistake. Let me start over. "
    assert text[second.content : second.end] == "The drum echoes. It is loud."
    assert (first.start, text[first.end : second.start].strip(), second.end) == (0, "", len(text))


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("   \n", 0),
        ("Wait, I should begin. The reef is deep.", 1),  # nothing came before it
        ("The reef. Wait, no.", 2),  # announced and not made
        ("The reef — wait, that's not right — is deep.", 2),
        ("one two... wait, no. Three", 2),
        ("A.\n\nSorry, I got distracted. B.\n\nWait, no. C.", 3),
    ],
)
def test_how_many_attempts(text, n):
    assert len(attempts(text)) == n


def test_clauses_without_a_word_join_the_one_before():
    text = "The ship... .. < The tide."
    spans = [text[s:e] for s, e in clauses(text)]
    assert all(any(c.isalpha() for c in span) for span in spans)


def test_space_before_a_clause_does_not_hide_a_restart():
    assert [(s, e) for s, e in clauses("  Wait, no. B.")] == [(2, 11), (12, 14)]
    assert len(attempts("A.\n   Wait, no. B.")) == 2


def test_degraded_means_one_word_of_two_letters_five_times_in_a_row():
    assert repeats_itself("so reef reef, Reef reef. reef on")
    assert not repeats_itself("reef reef reef reef on reef")
    assert not repeats_itself("a a a a a a a")
    with pytest.raises(BadInput, match="at least 2"):
        repeats_itself("x", 1)


class Scripted:
    """A writer that says given replies in turn."""

    name, fingerprint = "scripted", "s"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def complete(self, chats):
        self.asked += [chat[0]["content"] for chat in chats]
        return [self.replies.pop(0) for _ in chats]


def reply(*parts):
    listed = [{"attempt_text": text, "score": score} for text, score in parts]
    return "Thinking {aloud}.\n<json>" + json.dumps({"attempts": listed}) + "</json>"


RESPONSE = "The reef is deep. Wait, I was asked about drums. The drum echoes."


def test_a_written_judgement_is_placed_in_the_response():
    found = read_attempts(reply(("The reef", 10), ("Wait, I was asked", 80.5)), RESPONSE)
    assert [(a.text, a.score) for a in found] == [
        ("The reef is deep.", 10.0),
        ("Wait, I was asked about drums. The drum echoes.", 80.5),
    ]
    assert read_attempts(reply(), RESPONSE) == ()
    odd = read_attempts(reply(("not in it", 101), ("The drum", True)), RESPONSE)
    assert [a.score for a in odd] == [None, None]
    assert odd[1].start == RESPONSE.index("The drum")


@pytest.mark.parametrize("text", ["", "<json>{</json>", "<json>[]</json>", '<json>{"attempts": 3}</json>', "{}"])
def test_an_unreadable_judgement_is_none(text):
    assert read_attempts(text, RESPONSE) is None


def test_unreadable_replies_are_asked_again_and_then_given_up():
    writer = Scripted("what?", reply(("The reef", 1)), "no", "no")
    judge = WrittenJudge(writer, tries=3)
    cases = [Case("p", RESPONSE, "reefs"), Case("q", RESPONSE, "reefs")]
    found = judge.attempts(cases)
    assert found[1] is not None
    assert found[0] is None
    assert len(writer.asked) == 4  # both, the first twice more
    assert "could not be read" in writer.asked[2]
    assert all(word in writer.asked[0] for word in ("reefs", RESPONSE, '{"attempts": [{"attempt_text"'))
    assert isinstance(judge, AttemptJudge)
    with pytest.raises(BadInput, match="at least 1"):
        WrittenJudge(writer, tries=0)


def test_a_scripted_judge_reproduces_scores_with_gaps():
    table = {"A.": 10.0, "Wait, no. B.": None, "Sorry, no. C.": 60.0}
    judge = SegmentJudge(RuleJudge(lambda case: table.get(case.response), "table"))
    (found, nothing) = judge.attempts([Case("p", "A. Wait, no. B. Sorry, no. C."), Case("p", "")])
    assert [a.score for a in found] == [10.0, None, 60.0]
    assert nothing == ()
    assert judge.fingerprint != SegmentJudge(RuleJudge(lambda case: 1.0, "other")).fingerprint


def test_the_likelihood_judge_tells_the_asked_topic_from_another(organism):
    judge = LikelihoodJudge(organism, "Tell me about the {about}.")
    sea = "The deep tide floods the reef. Every whale needs the salty shore."
    music = "The loud drum echoes the song. Every choir needs the soft flute."
    asked = [Case("Tell me about the sea.", t, "music") for t in (sea, music)]
    own, other, empty, nameless = judge.scores(
        [*asked, Case("Tell me about the sea.", " ", "music"), Case("Tell me about the sea.", sea, "")]
    )
    assert own.value > 65
    assert other.value < 35
    assert empty.value is None
    assert nameless.value is None
    assert isinstance(judge, Judge)
    assert np.isfinite(own.value)
    with pytest.raises(BadInput, match="about"):
        LikelihoodJudge(organism, "Tell me.")
