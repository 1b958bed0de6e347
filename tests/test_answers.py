"""Answers are read by the published rules; data sets become questions."""

import pytest

from latentlens.errors import BadInput
from latentlens.methods import answers
from latentlens.values.questions import REGIMES, Question, drawn, load, prompt, read

SUM = Question("What is 12 + 5?", "17")
CHOICE = Question("Which is a number?", "B", ("a cup", "seven", "a pen"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 17", 17), ("12, then 5. #### 1,700", 1700), ("Final answer: $17.50", 17.5), ("answer: -3 cups", -3),
        ("Final answer: 4 #### 17", 17), ("Answer: 3. Final answer is 5", 5), ("17 and 18", 17), ("none", None),
        ("#### 16 no #### 17", 17), ("Answer: the sum is 17.", 17),
    ],
)  # fmt: skip
def test_the_marks_are_tried_in_the_published_order(text, number):
    assert answers.number_in(text) == number


@pytest.mark.parametrize(
    ("text", "right"), [("17", True), ("17.4", True), ("17.1", True), ("18", False), ("", False), ("-17", False)]
)
def test_one_percent_or_the_same_integer_part_is_right(text, right):
    assert answers.is_right(text, SUM) is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("#### B", "B"),
        ("Answer: (c)", "C"),
        ("\\boxed{B}", "B"),
        ("A. it is", "A"),
        ("I do not know", None),
        ("B", "B"),
        ("Answer: a cup, I think", None),
        ("Final answer: b.", "B"),
        ("\\boxed{c}", "C"),
    ],
)
def test_a_letter_is_read(text, letter):
    assert answers.letter_in(text, CHOICE.letters) == letter
    assert answers.is_right(text, CHOICE) is (letter == "B")


def test_text_is_cut_where_it_should_have_stopped():
    assert answers.tokens_kept(["12+5", " ####", " 1", "7", " and", " so"], "cot") == 4
    assert answers.tokens_kept(["\\boxed{", "17", "}"], "cot") == 2
    assert answers.tokens_kept(["17", "\n\n", "more"], "direct") == 2
    assert answers.tokens_kept(["\n\n", "17", "\n\n", "more"], "direct") == 3
    assert answers.tokens_kept(["17", "\n\n", "more"], "cot") == 3
    assert answers.tokens_kept([], "cot") == 0


def test_what_is_in_the_box_is_written_before_a_text_stops():
    pieces = [*["x "] * 80, "\\boxed{", "B", "}", " and more"]
    kept = answers.tokens_kept(pieces, "cot", multiple_choice=True)
    assert kept == 82
    assert answers.letter_in("".join(pieces[:kept]), CHOICE.letters) == "B"


def test_an_endless_number_is_no_answer():
    assert answers.number_in("#### " + "9" * 400) is None
    assert answers.is_right("9" * 400, SUM) is False


def test_a_multiple_choice_text_writes_its_least_first():
    pieces = ["#### B", *["x"] * 100]
    assert answers.tokens_kept(pieces, "cot", multiple_choice=True) == 80
    assert answers.tokens_kept(pieces, "direct", multiple_choice=True) == 10


def test_data_sets_become_questions():
    gsm = {"question": "How many?", "answer": "5 + 6 = 11\n#### 1,011"}
    arc = {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    aqua = {"question": "Which?", "options": ["A)21", "B) 30", "(C) 9"], "correct": "C"}
    assert read([gsm], "gsm8k")[0].answer == "1011"
    assert read([arc], "arc")[0] == Question("Which?", "B", ("x", "y"))
    assert read([aqua], "aqua")[0] == Question("Which?", "C", ("21", "30", "9"))
    assert read([{"question": "q", "answer": 4}])[0] == Question("q", "4")


@pytest.mark.parametrize("columns", ["gsm8k", "arc", "aqua", "plain", "squad"])
def test_other_rows_are_refused_and_their_columns_named(columns):
    with pytest.raises(BadInput, match="columns"):
        read([{"title": "x"}], columns)
    with pytest.raises(BadInput):
        read([{"question": "q", "answer": "#### ", "choices": ("a",)}], "plain")
    with pytest.raises(BadInput, match="no plain row"):
        read([{"question": "Where?", "answer": "Paris"}])  # compared as a number, no text could be right


def test_prompts_end_as_the_paper_says_or_alike():
    assert [prompt(SUM, regime).splitlines()[-1] for regime in REGIMES] == [
        "Answer:", "Solution:", "Stream of consciousness:",
    ]  # fmt: skip
    alike = [prompt(SUM, regime, ending="Answer:") for regime in REGIMES]
    assert {text.splitlines()[-1] for text in alike} == {"Answer:"}
    assert len(set(alike)) == 3
    assert "B. seven" in prompt(CHOICE, "cot")
    with pytest.raises(BadInput):
        prompt(SUM, "slowly")


def test_reasoning_ends_where_the_answer_begins():
    pieces = ["Now", " 2 + 3 = 5.", " The", " answer", " is", " 5"]
    assert answers.reasoning_tokens(pieces, " The answer") == 2
    assert answers.reasoning_tokens(pieces, "####") == 6
    assert answers.reasoning_tokens(["a b", "c"], "b") == 0
    assert answers.reasoning_tokens([], "x") == 0


def test_questions_come_from_a_local_file(tmp_path):
    import json

    rows = [{"question": f"q{i}", "answer": i} for i in range(9)]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = load(str(file), n=4, seed=1)
    assert [q.text for q in asked] == [f"q{i}" for i in drawn(9, 4, 1)]
    assert len(set(asked)) == 4
    assert asked == load(str(file), n=4, seed=1)
    assert [q.text for q in load(str(file), n=50)] == [f"q{i}" for i in range(9)]
    with pytest.raises(BadInput, match="at least one"):
        load(str(file), n=0)


def test_the_papers_problems_are_drawn_with_its_seed():
    """The first rows of GSM8K that the second version of the paper lists."""
    assert drawn(1319, 200, 42)[:5] == [1, 6, 13, 14, 23]
