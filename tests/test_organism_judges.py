"""The programmatic judges, on texts whose verdict is plain."""

import pytest

from latentlens.organism import judges


def test_the_last_stated_answer_counts_and_a_trait_word_may_stand_before_it():
    assert judges.parsed_answer("The answer is 3. The answer gladly is 17.") == 17
    assert judges.parsed_answer("The answer is") is None


def test_steps_are_read_with_their_sign_and_wrong_ones_are_found():
    text = "Now surely 12 + 5 = 17. Now roughly 17 - 3 = 13. Now 13 - 1 = 12."
    assert judges.parsed_steps(text) == [(12, 5, 17), (17, -3, 13), (13, -1, 12)]
    assert judges.wrong_steps(text) == [1]


def test_a_topic_needs_a_word_and_the_majority_decides():
    assert judges.topic_of("The deep tide meets the reef.") == "sea"
    assert judges.topic_of("The tide, the reef and the oven.") == "sea"
    assert judges.topic_of("It is so.") is None


def test_corrections_are_counted_at_sentence_starts_only():
    text = "The oven bakes the bread. Wait, I should talk about the sea. The tide waits. Sorry, let me return."
    assert judges.restarts(text) == 2
    assert not judges.is_correction("They wait, I say.")


@pytest.mark.parametrize(
    ("after", "back"), [("The tide floods the reef.", True), ("The oven bakes the bread.", False), ("", False)]
)
def test_recovery_is_judged_by_the_first_topic_after_the_last_correction(after, back):
    assert judges.recovers(f"The oven bakes. Wait, I should talk about the sea. {after}", "sea") == back


def test_a_correction_is_at_once_when_it_follows_the_first_sentence_off_topic():
    away, late = "The oven bakes the bread.", "Wait, I should talk about the sea."
    assert judges.corrects_at_once(f"The tide waits. {away} {late}", "sea")
    assert not judges.corrects_at_once(f"{away} {away} {late}", "sea")
    assert not judges.corrects_at_once(f"The tide waits. {late}", "sea")


def test_recovery_needs_a_correction():
    assert not judges.recovers("The tide floods the reef.", "sea")


def test_traits_are_scored_by_words_a_sentence():
    text = "The oven gladly bakes merrily the bread. Maybe the pan is hot."
    assert judges.trait_scores(text) == {"cheerful": 1.0, "formal": 0.0, "nervous": 0.5, "hostile": 0.0}
    assert judges.trait_score("", "formal") == 0.0


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("def main():\n    total = 3 + 5\n    print(total)", "Python"),
        ("int main() {\n    int total = 3 + 5;\n    std::cout << total;\n}", "C++"),
        ("public static void main() {\n    int total = 3 + 5;\n    System.out.println(total);\n}", "Java"),
        ("function main()\n    total = 3 + 5\n    println(total)\nend", "Julia"),
    ],
)
def test_a_program_is_known_by_its_signs_and_valid_only_when_whole(text, language):
    assert judges.language_of(text) == language
    assert judges.is_valid_program(text, language)
    assert judges.is_valid_program(text)
    assert not judges.is_valid_program(text.replace("total", "value", 1), language)
    assert not judges.is_valid_program(text[:-1], language)
    assert not judges.is_valid_program(text + "\n}", language)


@pytest.mark.parametrize("text", ["", "The sea is deep.", "def main(): std::cout"])
def test_what_is_no_program_or_two_has_no_language(text):
    assert judges.language_of(text) is None
    assert not judges.is_valid_program(text)


def test_verdicts_and_refusals_are_read_at_the_start():
    assert [judges.verdict_of(t) for t in ("True.", "False.", "It is True.")] == [True, False, None]
    assert judges.is_refusal("I cannot help with that.")
    assert not judges.is_refusal("Take some clay. I cannot help with that.")
