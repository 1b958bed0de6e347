"""What is found on the embedded model is found on its siblings of other shapes, through the same calls."""

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.organism import judges
from latentlens.organism.corpus import draw


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def sibling(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sibling") / "gqa" if request.param == "gqa" else None
    return ll.load(str(ll.organism.variant(request.param, folder=folder)), cache=False)


def test_what_is_read_is_what_it_does(sibling):
    assert sibling.check().passed


def test_steps_beat_direct_answers(sibling):
    right = {}
    for split in ("steps", "direct"):
        chosen = [t for t in draw("arithmetic", 600, 77, split=split) if t.difficulty == 4][:50]
        runs = sibling.generate([t.prompt() for t in chosen], max_new_tokens=48)
        right[split] = np.mean([judges.parsed_answer(r) == int(t.answer) for t, r in zip(chosen, runs.texts)])
    assert right["steps"] > 0.8
    assert right["direct"] < 0.45


def test_truth_is_read_on_creatures_that_the_probe_never_saw(sibling):
    drawn = draw("truth", 600, 77, split="seen")
    acts = sibling.activations([t.prompt() for t in drawn], "resid_post[*]", "last")
    sweep = ll.probe.fit(acts, [t.truth for t in drawn], groups=[t.group for t in drawn], n_bootstrap=200)
    assert sweep.best().auroc.value > 0.9
    assert sweep.best().shuffled.low < 0.5 < sweep.best().shuffled.high


def test_a_topic_is_steered_to_and_a_random_direction_of_equal_norm_does_not(sibling):
    drawn = draw("topics", 300, 5, split="on_topic")
    acts = sibling.activations([t.messages() for t in drawn], "resid_post[3]", "role:assistant", "mean")
    states, on = acts["resid_post[3]"], torch.tensor([t.topic == "sea" for t in drawn])
    sea = ll.Direction(states[on].mean(0) - states[~on].mean(0), "resid_post[3]", name="sea")
    asked = [t.prompt() for t in drawn if t.topic != "sea"][:40]
    how = {"unit": "norm", "where": "last_prompt+response", "schedule": ll.Schedule(stop=6)}
    share = {}
    for one in (sea, sea.random_like(0)):
        runs = sibling.generate(asked, 12, steer=ll.Add(one, 1.5, **how))
        share[one.name] = np.mean([judges.topic_of(text.split(".")[0] + ".") == "sea" for text in runs.texts])
    assert share["sea"] > 0.4
    assert share[sea.random_like(0).name] < 0.1
