"""G-ACT and its rivals fitted to every style at once, on the embedded model; parts of tasks; the table of a frame."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import latentlens as ll
from latentlens.access.measures.style_runs import StyledTasks
from latentlens.errors import BadInput, TooFewExamples
from latentlens.maths.grouped_splits import distinct_parts
from latentlens.methods import gact
from latentlens.methods.code_language import is_valid, language_of
from latentlens.protocols import styles
from latentlens.values.activations import Activations
from latentlens.values.sites import Site
from latentlens.views.terminal import print_frame

STYLES = ("Python", "Julia")


@pytest.fixture(scope="module")
def ask(organism, tmp_path_factory):
    how = {"max_new_tokens": 40, "temperature": 1.0}
    return StyledTasks(organism, STYLES, language_of, is_valid, folder=tmp_path_factory.mktemp("rows"), options=how)


@pytest.fixture(scope="module")
def tasks():
    return distinct_parts((str(t.group) for t in ll.organism.draw("code", 300, 1)), [24, 8, 8, 6])


@pytest.fixture(scope="module")
def fitted(ask, tasks):
    return styles.fit_styles(ask, tasks[0], list(ask.telling_tokens(tasks[1]).values()), k=2, seed=0)


def test_a_style_stands_against_the_mean_of_all_others_by_name():
    one = lambda *v: Activations({Site("resid_post", 0): torch.tensor([v]).float()}, {"text": np.arange(1)})
    states = {"a": one(4, 4), "b": one(1, 0), "c": one(3, 2)}
    assert styles.contrast(states, "a").tolist() == [[[2.0, 3.0]]]
    with pytest.raises(BadInput, match="no states of 'd'; there are a, b, c"):
        styles.contrast(states, "d")


def test_every_style_has_clusters_heads_neurons_and_a_row_in_both_tables(fitted, ask, tasks):
    found, stable, brittle = fitted
    assert list(found) == stable["target"].tolist() == brittle["target"].tolist() == list(STYLES)
    one = found["Julia"]
    assert one.online is one.clusters
    d = styles.contrast({s: ask.states(tasks[0], s)["resid_post"] for s in STYLES}, "Julia")
    alone = gact.fit(ask.states(tasks[0])["resid_post"], d, k=2, seed=0)
    assert torch.equal(one.clusters.centroids, alone.centroids)
    assert (one.clusters.labels == alone.labels).all()
    assert one.clusters.scores[0].heads_f1 is not None
    assert {"same top neuron", "ACT accuracy", "without signal"} <= {*stable, *brittle}


def test_arms_are_plans_by_strength_and_the_random_ones_are_as_long_as_the_mean_difference(fitted):
    one = fitted[0]["Julia"]
    arms = one.arms(sites=2, where="last_prompt")
    assert list(arms) == ["G-ACT", "G-ACT, soft", "G-ACT, permuted", "mean difference", "ACT heads", "neuron",
                          "neuron, contrast"]  # fmt: skip
    for name, plan in arms.items():
        assert {str(item.where) for item in plan(0.3)} == {"last_prompt"}, name
    right, wrong = (arms[name](0.3)[0].vectors for name in ("G-ACT", "G-ACT, permuted"))
    assert torch.equal(wrong, right.flip(0))
    length = lambda plan: [abs(item.coeff) * item.direction.norm for item in plan]
    random = one.random(0.3, draws=2, sites=2, where="last_prompt")
    assert list(random) == ["random 0", "random 1"]
    for plan in random.values():
        assert length(plan) == pytest.approx(length(arms["mean difference"](0.3)), rel=1e-5)
    first = [plan[0].direction for plan in random.values()]
    assert abs(first[0].cosine(first[1])) < 0.9


def test_probes_are_refined_by_judged_answers_and_the_fit_before_is_kept(fitted, ask, tasks):
    found, scores = styles.refine(ask, fitted[0], tasks[2], tasks[3], seed=0)
    assert scores["target"].tolist() == list(STYLES)
    for name in ("fitted", "refined", "refined from nothing", "clusters shuffled"):
        assert scores[name].str.contains("worst").all()
    for style, one in found.items():
        seen = one.online.about["refinement"]
        assert seen.learnt + seen.refused + seen.unknown == len(tasks[2])
        assert seen.learnt >= len(tasks[2]) / 2
        assert one.clusters is fitted[0][style].clusters
        assert not torch.equal(one.online.probe.weight, one.clusters.probe.weight)


def test_strengths_of_all_arms_are_searched_at_once(fitted, ask, tasks):
    plans = {"one": fitted[0]["Julia"].arms()["mean difference"], 2: fitted[0]["Julia"].arms()["neuron"]}
    asked = []

    def search(question, n, target):
        asked.append((n, target, len(question([0.1, None]))))
        return ["first", "second"]

    assert ask.budgets(tasks[3][:2], plans, [0], search, target=0.3) == {"one": "first", 2: "second"}
    assert asked == [(2, 0.3, 2)]


def test_parts_share_no_item_and_too_few_are_counted():
    assert distinct_parts(["a", "b", "a", "c", "d", "e"], [2, 2]) == [["a", "b"], ["c", "d"]]
    with pytest.raises(TooFewExamples, match="2 different tasks: the parts of 2, 1 take 3"):
        distinct_parts("aba", [2, 1], what="tasks")


def test_a_frame_is_printed_with_intervals_and_without_numbers_that_do_not_exist():
    nan = float("nan")
    shares = [ll.Estimate(0.5, 0.25, 0.75, 8), ll.Estimate(nan, nan, nan, 0)]
    frame = pd.DataFrame({"arm": ["x", None], "share": shares, "nats": [0.25, nan]})
    out = io.StringIO()
    print_frame("T", frame, note="95%", digits=2, console=Console(file=out, width=100))
    said = out.getvalue()
    assert "0.50 [0.25, 0.75]" in said
    assert "nan" not in said
    assert "None" not in said
    assert "0.250" in said
