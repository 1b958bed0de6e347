"""Traits with their judges, from rules and from files; a short training on answers."""

import json

import pytest
import torch

import latentlens as ll
from latentlens.errors import BadInput, TooFewExamples
from latentlens.organism import personas
from latentlens.protocols.training import read_answers, train_on_answers
from latentlens.protocols.traits import MeanJudge, embedded_traits, traits_from_files

LOUD = "The wave duly carries hereby the ship."


def saved(folder, name, **changes):
    trait = personas.trait(name)
    given = {"name": name, "description": "", "pairs": trait.pairs[:1], "questions": trait.questions[:2],
             "evaluation": trait.evaluation[:2], **changes}  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(given))
    return path


def test_the_embedded_traits_come_with_rules_and_questions():
    given = embedded_traits(["formal", "hostile"])
    assert given.first.name == "formal"
    assert list(given.columns) == ["formal", "hostile", "coherence"]
    assert given.about["formal"].startswith("formal: ")
    (score,) = given.judges["formal"].scores([ll.Case("Tell me about the sea.", LOUD)])
    assert score.value == 100
    with pytest.raises(BadInput, match="no trait 'glad'"):
        embedded_traits(["glad"])


def test_traits_of_files_are_judged_by_the_model_itself_another_one_or_a_server(organism, tmp_path):
    files = [saved(tmp_path, "formal"), saved(tmp_path, "hostile")]
    itself = traits_from_files(files, organism)
    assert isinstance(itself.coherence, ll.LocalJudge)
    assert itself.judges["formal"].lm is organism
    other = traits_from_files(files, organism, judge=ll.organism.path())
    assert other.judges["hostile"].lm is not organism
    server = traits_from_files(files, organism, judge="m", url="http://localhost:1/v1", budget=3)
    assert server.judges["formal"].endpoint.budget == 3
    assert server.judges["formal"].fingerprint != server.coherence.fingerprint


def test_files_that_cannot_serve_are_refused(organism, tmp_path):
    one = saved(tmp_path, "formal")
    for files, says in (([], "name a trait file"), ([one, one], "two files with one trait"),
                        ([saved(tmp_path, "hostile", evaluation=[])], "no questions to evaluate")):  # fmt: skip
        with pytest.raises(BadInput, match=says):
            traits_from_files(files, organism)


def test_the_mean_of_several_traits_asks_each_judge_on_its_own_trait():
    class Asked:
        def __init__(self, value):
            self.value, self.seen, self.name, self.fingerprint = value, [], "", str(value)

        def scores(self, cases):
            self.seen += [case.about for case in cases]
            return [ll.Score(self.value, reason="refused") for _ in cases]

    given = embedded_traits(["formal", "hostile"])
    judges = {"formal": Asked(20.0), "hostile": Asked(60.0)}
    both = MeanJudge(given.traits, judges)
    assert [s.value for s in both.scores([ll.Case("q", "a", "other")])] == [40.0]
    assert judges["hostile"].seen == [given.about["hostile"]]
    none = MeanJudge(given.traits, {**judges, "formal": Asked(None)})
    assert none.scores([ll.Case("q", "a")])[0].value is None
    assert none.fingerprint != both.fingerprint
    assert not both.is_rule
    rules = given.mean(["formal", "hostile"])
    assert rules.is_rule
    assert rules.scores([ll.Case("Tell me about the sea.", LOUD)])[0].value == 50
    with pytest.raises(BadInput, match="no trait 'glad'"):
        given.mean(["glad"])


def test_answers_are_read_a_line_each_and_what_is_wrong_is_said_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a\u2028b", "response": "c"}\n\n{"prompt": "d", "response": "e", "more": 1}\n')
    assert [row["prompt"] for row in read_answers(path, 2)] == ["a\u2028b", "d"]
    assert len(read_answers(path, 1)) == 1
    with pytest.raises(TooFewExamples, match="2 lines, 3 are asked for"):
        read_answers(path, 3)
    path.write_text('{"prompt": "a", "response": "c"}\n{"prompt": "d"}\n')
    with pytest.raises(BadInput, match="line 2"):
        read_answers(path, 2)
    path.write_text("{")
    with pytest.raises(BadInput, match=r"rows\.jsonl"):
        read_answers(path, 1)
    with pytest.raises(BadInput, match=r"none\.jsonl"):
        read_answers(tmp_path / "none.jsonl", 1)


def test_a_copy_learns_its_answers_and_the_model_stays_as_it_was(organism):
    data = [{"prompt": "Tell me about the sea.", "response": LOUD}]
    before = [p.clone() for p in organism.model.parameters()]
    chat = [{"role": "user", "content": data[0]["prompt"]}]
    asked, full = organism.tokens([chat, [*chat, {"role": "assistant", "content": LOUD}]])
    row = asked.continued(full.ids[len(asked) :])
    assert row.ids == full.ids
    loss = lambda lm: float(ll.unsteered_nll(lm, [row])[0])
    start, tuned = loss(organism), train_on_answers(organism, data, 5)
    assert loss(tuned) < start - 0.3
    assert loss(organism) == start
    assert not tuned.model.training
    assert all(torch.equal(a, b) for a, b in zip(before, organism.model.parameters(), strict=True))
    again = train_on_answers(organism, data, 5)
    assert loss(again) == loss(tuned)
    vector = ll.Direction(torch.ones(organism.layout.d_model), "resid_post[3]")
    pushed = train_on_answers(organism, data, 5, plan=ll.Add(vector, 1.0))
    assert loss(pushed) != loss(tuned)
    with pytest.raises(TooFewExamples):
        train_on_answers(organism, [], 5)
