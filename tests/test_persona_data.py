import json

import numpy as np
import pandas as pd
import pytest

import latentlens as ll
from latentlens.access.measures.trait_writing import write_trait
from latentlens.errors import BadInput
from latentlens.organism.corpus.topics import TOPICS

GOOD = {
    "antonym": "curt",
    "pairs": [[f"Be warm {i}.", f"Be cold {i}."] for i in range(3)],
    "questions": [f"What about {i}?" for i in range(9)],
}


class Scripted:
    name, fingerprint = "scripted", "s"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def complete(self, chats):
        self.asked += chats
        return [self.replies.pop(0) for _ in chats]


# -- traits written by a model -----------------------------------------------------------------------------------------


def test_a_trait_is_written_from_its_description():
    writer = Scripted(f"Here it is:\n```json\n{json.dumps(GOOD)}\n```\nEnjoy {{it}}!")
    trait = write_trait(writer, "warm", "friendly", pairs=2, questions=8)
    assert trait.pairs == (("Be warm 0.", "Be cold 0."), ("Be warm 1.", "Be cold 1."))
    assert trait.questions == tuple(f"What about {i}?" for i in (0, 2, 4, 6))
    assert trait.evaluation == tuple(f"What about {i}?" for i in (1, 3, 5, 7))
    assert trait.system("negative") == "You are a curt assistant. Be cold 0."
    assert '"warm"' in writer.asked[0][0]["content"]
    assert "friendly" in writer.asked[0][0]["content"]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("no", "no JSON object"),
        ("{broken", "no JSON object"),
        (json.dumps({**GOOD, "questions": "one"}), "questions"),
        (json.dumps({**GOOD, "pairs": [["one"]]}), "pairs"),
        (json.dumps({**GOOD, "questions": ["same"] * 9}), "1 different questions"),
    ],
)
def test_a_reply_that_cannot_be_used_is_shown_with_what_is_wrong(reply, says):
    writer = Scripted(reply, json.dumps(GOOD))
    assert write_trait(writer, "warm", "friendly", pairs=2, questions=8).name == "warm"
    assert says in writer.asked[1][-1]["content"]
    with pytest.raises(BadInput, match=f"2 tries.*{says}"):
        write_trait(Scripted(reply, reply), "warm", "friendly", pairs=2, questions=8, tries=2)


# -- screening ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vector(organism):
    """From texts that no test uses: very formal minus plain."""
    means = {}
    for split in ("formal", "unprompted"):
        drawn = [t for t in ll.organism.draw("traits", 150, 77, split=split) if t.grade in (0, 3)]
        acts = organism.activations([t.messages() for t in drawn], "resid_post[4]", "role:assistant", "mean")
        means[split] = acts["resid_post[4]"].mean(0)
    return ll.Direction(means["formal"] - means["unprompted"], "resid_post[4]", "formal")


def training_rows(n=12):
    """Prompts with plain answers, and in every second row a formal one."""
    drawn = {split: iter(ll.organism.draw("traits", 400, 5, split=split)) for split in ("formal", "unprompted")}
    rows = []
    for i in range(n):
        split = "formal" if i % 2 else "unprompted"
        text = next(t for t in drawn[split] if t.regime == "topics" and t.grade in (0, 3))
        rows.append({"prompt": text.messages()[-2]["content"], "response": text.messages()[-1]["content"], "id": i})
    return rows


def test_rows_with_the_trait_stand_out(organism, vector):
    import datasets

    rows = training_rows()
    found = ll.screen(organism, datasets.Dataset.from_list(rows), vector, max_new_tokens=40, piece=5)
    assert found.column_names == [
        "prompt", "response", "id", "own_response", "train_projection", "own_projection", "difference",
    ]  # fmt: skip
    assert ll.probe is not None
    by_row = np.array(found["difference"])
    assert by_row[1::2].min() > by_row[::2].max()
    summary = ll.persona_screening.projection_difference(
        found["train_projection"], found["own_projection"], vector, groups=found["prompt"]
    )
    assert summary.mean.value == pytest.approx(by_row.mean())


def test_pieces_and_kinds_of_data_do_not_matter(organism, vector):
    rows = training_rows(6)
    own = [f"Every {t} needs the deep whale." for t in TOPICS[:6]]
    rows = [{**row, "mine": text} for row, text in zip(rows, own)]
    one = ll.screen(organism, rows, vector, own="mine")
    two = ll.screen(organism, pd.DataFrame(rows), vector, own="mine", piece=1)
    chats = [
        {"prompt": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}],
         "mine": r["mine"]} for r in rows
    ]  # fmt: skip
    three = ll.screen(organism, chats, vector, own="mine")
    assert one["own_response"].tolist() == own
    for other in (two, three):
        assert other["difference"].to_numpy() == pytest.approx(one["difference"].to_numpy(), abs=1e-4)


def test_an_empty_answer_has_no_projection(organism, vector):
    rows = [
        {"prompt": "Tell me about the sea.", "response": text, "mine": "Near the wave is the reef."}
        for text in ("", "The wave.")
    ]
    found = ll.screen(organism, rows, vector, own="mine")
    assert np.isnan(found["train_projection"][0])
    assert np.isnan(found["difference"][0])
    assert np.isfinite(found["difference"][1])


def test_columns_that_are_missing_or_taken_are_named(organism, vector):
    row = {"prompt": "Tell me about the sea.", "response": "The wave."}
    with pytest.raises(BadInput, match="'question'"):
        ll.screen(organism, [row], vector, prompt="question")
    with pytest.raises(BadInput, match="'answer'"):
        ll.screen(organism, pd.DataFrame([row]), vector, response="answer")
    with pytest.raises(BadInput, match="already"):
        ll.screen(organism, [{**row, "difference": 1}], vector)
    with pytest.raises(BadInput, match="no rows"):
        ll.screen(organism, [], vector)
    with pytest.raises(BadInput, match="mappings"):
        ll.screen(organism, ["text"], vector)
