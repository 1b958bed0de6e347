import numpy as np
import pytest

import latentlens as ll
from latentlens.access.judging.judged_sweep import judged_sweep
from latentlens.access.measures.trait_doses import site_sweep, trait_doses
from latentlens.errors import BadInput
from latentlens.organism import personas
from latentlens.organism.corpus.voice import TRAITS
from latentlens.values.trait_doses import TraitDoses
from latentlens.values.traits import asked

QUESTIONS = personas.trait("formal").evaluation[:4]
FLUENT = ll.RuleJudge(personas.coherence, "sentences")
HOW = {"max_new_tokens": 24, "temperature": 1.0}


@pytest.fixture(scope="module")
def formal(organism):
    """The vector of `formal` by the recipe, from a small contrast, at every block."""
    trait = personas.trait("formal")
    trait = ll.Trait(trait.name, trait.description, trait.pairs[:3], trait.questions[::3], template="{instruction}")
    found = ll.contrast(organism, trait, ll.RuleJudge(personas.percent("formal"), "f"), FLUENT, samples=2, **HOW)
    kept = ll.persona.keep(found)
    return ll.persona.extract(kept, organism.activations(kept.rows, "resid_post[*]", "response", "mean"))


def test_the_rules_of_the_embedded_traits():
    sea = "Tell me about the sea."
    say = ll.Case(sea, "The wave duly meets hereby the reef. The ship duly floods formally the reef.")
    assert personas.percent("formal")(say) == 100
    assert personas.percent("hostile")(say) == 0
    assert personas.coherence(say) == 100
    off = ll.Case(sea, "The wave floods the reef. The oven bakes the bread. the wave floods. Wave wave")
    assert personas.coherence(off) == 25
    assert personas.coherence(ll.Case(sea, "")) == 0
    for bad in (personas.trait, personas.percent):
        with pytest.raises(BadInput, match="traits are"):
            bad("evil")


def test_traits_are_asked_for_and_nothing_is_labelled():
    trait = personas.trait("nervous")
    assert len(trait.pairs) == 5
    assert trait.system("negative", 0) == ""
    assert {trait.system("negative", p) for p in range(2, 5)} == {f"Be very {o}." for o in TRAITS if o != "nervous"}
    assert not set(trait.questions) & set(trait.evaluation)


def test_judges_do_not_see_the_system_prompt(organism):
    seen = []

    def look(case):
        seen.append(case)
        return None if "sea" in case.prompt else 1.0

    chats = [asked("Tell me about the sea.", "Be very formal."), asked("Tell me about the farm.")]
    frame = judged_sweep(organism, chats, {"none": None}, [0, 1], {"look": ll.RuleJudge(look, "l")}, about="x", **HOW)
    assert {(c.prompt, c.about) for c in seen} == {("Tell me about the sea.", "x"), ("Tell me about the farm.", "x")}
    assert np.isnan(frame.loc[frame.prompt_index == 0, "look"]).all()
    runs = organism.generate(chats, 24, temperature=1.0, seed=1)
    expected = ll.unsteered_nll(organism, runs)
    assert frame.loc[frame.seed == 1, "nll"].to_numpy() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(BadInput, match="column"):
        judged_sweep(organism, chats, {"none": None}, [0], {"text": FLUENT}, **HOW)


def test_a_planted_trait_rises_with_strength_above_random_and_other_vectors(organism, formal, tmp_path):
    judges = {name: ll.RuleJudge(personas.percent(name), name) for name in ("formal", "hostile")} | {
        "coherence": FLUENT
    }
    vector = formal["resid_post[4]"]
    other = vector.random_like(99)
    found = trait_doses(
        organism, vector, [1.5, 3.0, 4.5], QUESTIONS, judges, "formal", asked_by="Be very formal.",
        others={"stranger": other}, draws=2, seeds=(0, 1, 2), folder=tmp_path, **HOW,
    )  # fmt: skip
    assert found.monotone
    assert found.direction[-1].value > 40
    assert found.above_random[-1].low > 20
    assert found.prompted.value > 70
    assert found.strengths == (0, 1.5, 3, 4.5)
    assert found.nll[-1].value > found.nll[0].value + 0.2  # the cost in fluency
    assert found.off_target["hostile"][-1].value < 15
    assert found.n == 12
    assert found.about["rows run"] == 12 * (1 + 3 * 4)
    again = trait_doses(
        organism, vector, [1.5, 3.0, 4.5], QUESTIONS, judges, "formal", asked_by="Be very formal.",
        others={"stranger": other}, draws=2, seeds=(0, 1, 2), folder=tmp_path, **HOW,
    )  # fmt: skip
    assert again.about["rows run"] == 0
    assert again.to_frame().equals(found.to_frame())
    frame = found.to_frame()
    assert set(frame["arm"]) == {
        "direction", "random 0", "random 1", "vector of stranger", "score of hostile", "coherence", "nats a token",
        "nats a token, random", "prompt",
    }  # fmt: skip
    same_start = frame[
        (frame.strength == 0) & frame.arm.isin(["direction", "random 0", "random 1", "vector of stranger"])
    ]
    assert same_start["value"].nunique() == 1
    assert len(found.table()) == 4


def test_a_random_direction_does_not_pass_for_a_trait(organism, formal):
    judges = {"formal": ll.RuleJudge(personas.percent("formal"), "f"), "coherence": FLUENT}
    found = trait_doses(
        organism, formal["resid_post[4]"].random_like(5), [1.0, 2.0], QUESTIONS, judges, "formal", seeds=(0, 1), **HOW
    )
    assert not found.monotone
    assert found.above_random[-1].low < 10
    assert found.prompted is None


def test_the_place_is_chosen_by_what_steers(organism, formal):
    judge = ll.RuleJudge(personas.percent("formal"), "f")
    tried = [v for v in formal if v.site.block in (1, 4)]
    swept = site_sweep(organism, tried, [2.0, 4.0], QUESTIONS, judge, FLUENT, **HOW)
    assert len(swept["sites"]) == 2 * 2 * 4
    chosen = ll.persona.choose_site(**swept)
    assert str(chosen.site) == "resid_post[4]"  # the trait reads from block 1 as well, but does not steer there
    with pytest.raises(BadInput, match="no setting"):
        site_sweep(organism, [], [1.0], QUESTIONS, judge, FLUENT)


def test_what_cannot_be_run_is_refused(organism, formal):
    vector, judges = formal["resid_post[4]"], {"formal": FLUENT, "coherence": FLUENT}
    for bad in ([], [0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(BadInput, match="ascending"):
            trait_doses(organism, vector, bad, QUESTIONS, judges, "formal")
    with pytest.raises(BadInput, match="lacks coherence"):
        trait_doses(organism, vector, [1.0], QUESTIONS, {"formal": FLUENT}, "formal")


def test_labelled_texts_that_the_vector_never_saw_are_separated(organism, formal):
    """Texts of the corpus with the trait against texts with other traits or none; topics are the groups.

    Read under their instruction. The words alone tell a trait from none, but hardly which: the model was never shown
    them without an instruction, so their states are nearly alike.
    """
    drawn = [t for s in (*TRAITS, "unprompted") for t in ll.organism.draw("traits", 120, 31, split=s)]
    drawn = [t for t in drawn if t.regime == "topics" and t.grade in (0, 2, 3)]
    topics = [t.topic for t in drawn]
    vector, is_formal = formal["resid_post[4]"], [t.trait == "formal" for t in drawn]
    acts = organism.activations([t.messages() for t in drawn], "resid_post[4]", "role:assistant", "mean")
    lengths = [len(t.messages()[-1]["content"]) for t in drawn]
    found = ll.persona_monitoring.separation(acts, [vector], is_formal, groups=topics, lengths=lengths)
    row = found.at("resid_post[4]")
    assert row["auroc"].value > 0.95
    assert row["auroc"].low > row["random"].value + 0.1
    assert found.length.value < 0.75
    plain = [t for t in drawn if t.trait in ("formal", None)]
    alone = [[m for m in t.messages() if m["role"] != "system"] for t in plain]
    acts = organism.activations(alone, "resid_post[4]", "role:assistant", "mean")
    bare = ll.persona_monitoring.separation(
        acts, [vector], [t.trait == "formal" for t in plain], groups=[t.topic for t in plain]
    )
    told = bare.at("resid_post[4]")["auroc"]
    assert told.value > 0.7
    assert told.low > 0.5  # its interval lies above chance


def test_a_figure_shows_every_arm():
    from latentlens.values.results import Estimate

    def curve(*values):
        return tuple(Estimate(v, v - 2, v + 2, 12) for v in values)

    found = TraitDoses(
        "formal <b>", (0, 1, 2), "x", curve(5, 20, 60), (curve(5, 6, 7), curve(5, 4, 9)), {"o": curve(5, 3, 1)},
        curve(95)[0], curve(15, 40), curve(0, 15, 52), {"o": curve(5, 5, 5)}, curve(99, 95, 80), curve(1, 1.2, 2),
        curve(1, 1.1, 1.3), 12,
    )  # fmt: skip
    figure = ll.plots.trait_doses(found)
    shown = {trace.name for trace in figure.data if trace.showlegend is not False}
    assert {"the vector", "2 random directions of equal norm", "vectors of other traits", "asked for in words"} <= shown
    grey = next(t for t in figure.data if t.name == "2 random directions of equal norm")
    assert max(grey.y) == 11
    assert min(grey.y) == 2
    assert "<b>" not in figure.layout.title.text.replace("<b>Does", "").replace("</b>", "").split("formal")[1]


def test_a_monitor_has_one_panel_a_place():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    found = ll.persona_monitoring.monitor(x, x + rng.normal(size=40), kinds=["", "Be <i>kind</i>."] * 20)
    figure = ll.plots.trait_monitor({"here": found, "there": found})
    assert sum(len(trace.x) for trace in figure.data) == 80
    assert {t.name for t in figure.data} == {"no system prompt", "Be &lt;i&gt;kind&lt;/i&gt;."}
    assert "inside a kind" in figure.layout.xaxis.title.text


def test_an_excerpt_speaks_as_its_sheet_says():
    from random import Random

    from latentlens.organism.judges import trait_scores

    sheet = {"formal": 1.0, "hostile": 0.5}
    said = [trait_scores(personas.excerpt(sheet, Random(i))[1]["content"]) for i in range(400)]
    means = {name: np.mean([s[name] for s in said]) for name in TRAITS}
    assert means["formal"] == pytest.approx(2.75 * 0.24, rel=0.12)  # between two and three slots a sentence
    assert means["hostile"] == pytest.approx(2.75 * 0.13, rel=0.15)
    assert means["nervous"] < 0.1
    with pytest.raises(BadInput, match="0 to 1"):
        personas.excerpt({"formal": 2.0}, Random(0))
