"""The panel without a browser: what it answers is what the library says, and its code does what it shows."""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import latentlens as ll
from latentlens.errors import BadInput
from latentlens.views import panel as package
from latentlens.views.panel.items import contrast
from latentlens.views.panel.panel import Panel, _widget_class, explore
from latentlens.views.panel.session import Session, fires_on

TEXT = "Tell me about the sea."
EVIL = "<script>x()</script><img src=x onerror=x()>\u202egnp"
HERE = Path(package.__file__).parent


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return ll.load(cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def up(lm):
    draw = torch.Generator().manual_seed(0)
    return ll.Direction(torch.randn(lm.layout.d_model, generator=draw), "resid_post[3]", "up")


@pytest.fixture(scope="module")
def sae(lm):
    draw = torch.Generator().manual_seed(1)
    d = lm.layout.d_model
    rows = torch.randn(32, d, generator=draw)
    rows = rows / rows.norm(dim=1, keepdim=True)
    about = {"release": "r", "sae_id": "s"}
    return ll.SAE(
        "relu", rows.T.contiguous(), torch.zeros(32), rows, torch.zeros(d), ll.Site("resid_post", 2), about=about
    )


@pytest.fixture
def session(lm, up, sae):
    return Session(lm, TEXT, directions={"up": up}, sae=sae, chat=True, length=8)


def settings(session, *edits, **more):
    return {**session.settings, "edits": [dict(zip(("key", "strength", "block"), one)) for one in edits], **more}


def test_it_opens_with_the_text_as_the_model_reads_it(lm, session):
    opened = session.answer({"kind": "open"})
    ids = lm.tokens([[{"role": "user", "content": TEXT}]])[0].ids
    assert "".join(opened["tokens"]["words"]) == lm.tokenizer.decode(ids)
    assert opened["tokens"]["special"] == list(lm.tokens([[{"role": "user", "content": TEXT}]])[0].special)
    assert [one["name"] for one in opened["items"]] == ["up"]
    assert opened["problem"] == ""


def test_a_token_shows_its_projections_latents_and_lens(lm, up, sae, session):
    found = session.answer({"kind": "inspect", "position": 4})["inspected"]
    acts = lm.activations(session.inputs, sites=["resid_post[2]", "resid_post[3]"])
    assert found["values"][0]["value"] == pytest.approx(float(up.project(acts["resid_post[3]"])[4]), rel=1e-4)
    codes = sae.encode(acts["resid_post[2]"][4])
    best = int(codes.argmax())
    assert found["latents"][0]["key"] == f"latent:{best}"
    assert found["latents"][0]["value"] == pytest.approx(float(codes[best]), rel=1e-4)
    lens = lm.logit_lens(session.inputs, where=[4], k=3)
    assert found["lens"][0] == {"site": "resid_post[5]", "says": [list(one) for one in lens.says("resid_post[5]")]}
    assert found["word"] == session.open()["tokens"]["words"][4]


def test_tokens_are_coloured_by_what_is_shown_and_follow_its_block(lm, up, session):
    values = session.answer({"kind": "show", "key": "direction:up"})["tokens"]["values"]
    states = lm.activations(session.inputs, sites="resid_post[*]")
    assert values == pytest.approx(up.project(states["resid_post[3]"]).tolist(), rel=1e-4)
    session.answer({"kind": "steer", "settings": settings(session, ("direction:up", 0.0, 1))})
    values = session.answer({"kind": "show", "key": "direction:up"})["tokens"]["values"]
    assert values == pytest.approx(up.project(states["resid_post[1]"]).tolist(), rel=1e-4)
    assert "values" not in session.answer({"kind": "show", "key": ""})["tokens"]


@pytest.mark.parametrize(
    ("key", "edit"),
    [
        ("direction:up", lambda up, sae: ll.Add(up, 2.0, unit="norm", site="resid_post[1]", where="response")),
        (
            "latent:7",
            lambda up, sae: ll.EditLatents(sae, add={7: 2.0}, unit="norm", site="resid_post[1]", where="response"),
        ),
    ],
)
def test_what_is_written_is_what_the_library_writes(lm, up, sae, session, key, edit):
    said = session.answer({"kind": "steer", "settings": settings(session, (key, 2.0, 1), where="response")})
    assert said["problem"] == ""
    plain = lm.generate(session.inputs, 8)
    steered = lm.generate(session.inputs, 8, steer=edit(up, sae))
    assert said["runs"]["plain"]["text"] == plain.texts[0]
    assert said["runs"]["steered"]["text"] == steered.texts[0]
    assert session.plan == [edit(up, sae)]
    assert f"{steered.effect().to_frame().kl_mean[0]:.2g}" in said["runs"]["readings"][0]


def test_sliders_at_zero_write_the_unsteered_text_and_no_effect(session):
    said = session.answer({"kind": "steer", "settings": settings(session, ("direction:up", 0.0, 3))})
    assert said["runs"]["same"]
    assert said["runs"]["readings"] == []
    assert session.plan == []


def test_a_contrast_is_the_state_after_one_text_minus_the_other_at_its_block(lm, session):
    key = "contrast:the sea - the winter"
    session.answer({"kind": "show", "key": key})
    session.answer({"kind": "steer", "settings": settings(session, (key, 1.0, 2))})
    (edit,) = session.plan
    states = lm.activations(["the sea", "the winter"], "resid_post[2]", "last")["resid_post[2]"]
    torch.testing.assert_close(edit.direction.vector, states[0] - states[1])
    assert str(edit.site) == "resid_post[2]"
    for wrong in ("sea", "sea -winter", " - winter", "sea - ", "sea - sea"):
        assert contrast(wrong, 6) is None


def test_search_finds_names_numbers_tokens_and_contrasts(session):
    keys = lambda query: [one["key"] for one in session.answer({"kind": "search", "query": query})["found"]]
    assert "direction:up" in keys("UP")
    assert keys("7") == ["latent:7"]
    assert keys("32") == []
    assert "contrast:a - b" in keys("a - b")
    token = next(iter(session.names.values())).split()[0]
    assert any(key.startswith("latent:") for key in keys(token))


def test_latents_are_named_by_the_tokens_that_they_fire_on_most():
    dense = torch.tensor([[1.0, 0], [3, 0], [2, 0], [9, 1]])
    labels = {"token": np.array([" a", " b", " c", " b"], dtype=object)}
    assert fires_on(ll.Codes.from_dense(dense, labels=labels), k=2) == {0: "b c", 1: "b"}


def test_pinning_and_unpinning_keep_the_settings_in_step(session):
    session.answer({"kind": "show", "key": "latent:7"})
    session.answer({"kind": "steer", "settings": settings(session, ("latent:7", 1.0, 2), ("direction:up", 1.0, 3))})
    after = session.answer({"kind": "unpin", "key": "latent:7"})
    assert [one["key"] for one in after["items"]] == ["direction:up"]
    assert [one["key"] for one in after["settings"]["edits"]] == ["direction:up"]
    assert after["settings"]["show"] == ""
    only = session.answer({"kind": "steer", "settings": settings(session, ("direction:up", 1.0, 3))})
    assert after["runs"]["steered"]["text"] == only["runs"]["steered"]["text"]  # written again without it
    assert "EditLatents" not in after["code"]


def test_another_text_forgets_what_was_written_and_a_wrong_one_changes_nothing(session):
    session.answer({"kind": "steer", "settings": settings(session)})
    said = session.answer({"kind": "text", "text": "the cat", "chat": False})
    assert said["runs"] == {}
    assert session.inputs == ["the cat"]
    said = session.answer({"kind": "text", "text": "the cat " * 500})
    assert "problem" in said
    assert said["problem"]
    assert session.text == "the cat"


HOW = {"where": "all", "edits": [], "length": 9, "temperature": 0, "seed": 0}
DEEP = {"key": "direction:up", "strength": 1, "block": 6}
WRONG = [
    (None, "does not know"),
    ({"kind": "exec"}, "does not know"),
    ({"kind": "inspect", "position": 99}, "no position 99"),
    ({"kind": "inspect", "position": "x"}, "ValueError"),
    ({"kind": "show", "key": "latent:99"}, "latent:99"),
    ({"kind": "show", "key": "direction:other"}, "direction:other"),
    ({"kind": "steer"}, "KeyError"),
    ({"kind": "steer", "settings": {**HOW, "where": "nowhere"}}, "nowhere"),
    ({"kind": "steer", "settings": {**HOW, "edits": [DEEP]}}, "no block 6"),
    ({"kind": "steer", "settings": {**HOW, "length": 0}}, "1 to 512"),
    ({"kind": "steer", "settings": {**HOW, "temperature": -1}}, "temperature"),
]


@pytest.mark.parametrize(("message", "says"), WRONG)
def test_what_the_page_gets_wrong_comes_back_in_words(session, message, says):
    assert says in session.answer(message)["problem"]


def test_the_code_writes_what_the_panel_shows(lm, up, session):
    keys = (("direction:up", 1.5, 2), ("contrast:the sea - the winter", 1.0, 2))
    session.answer({"kind": "show", "key": keys[1][0]})
    said = session.answer(
        {"kind": "steer", "settings": settings(session, *keys, where="response", temperature=0.7, seed=3)}
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(said["code"], {"directions": {"up": up}})
    assert out.getvalue().startswith(said["runs"]["steered"]["text"])
    assert "EditEffect" in out.getvalue()
    compile(said["code"], "code", "exec")


def test_names_and_texts_never_break_out_of_the_code(lm, up):
    evil = 'a\'\n"""\nimport os\n#{x}'
    made = Session(lm, evil, directions={evil: up})
    made.answer({"kind": "steer", "settings": settings(made, (f"direction:{evil}", 1.0, 2))})
    tree = compile(made.code(), "code", "exec", flags=0x400)  # parsed only
    assert [ast_name(node) for node in tree.body][:2] == ["Import latentlens", "Assign"]
    assert not any("os" in ast_name(node) for node in tree.body)


def ast_name(node):
    return f"Import {node.names[0].name}" if type(node).__name__ == "Import" else type(node).__name__


def test_hidden_characters_are_written_out_before_they_reach_the_page(lm, up):
    made = Session(lm, EVIL, directions={EVIL: up}, length=4)
    said = [made.answer({"kind": "open"}), made.answer({"kind": "show", "key": f"direction:{EVIL}"})]
    said += [
        made.answer({"kind": "inspect", "position": 2}),
        made.answer({"kind": "steer", "settings": settings(made)}),
    ]

    def texts(value, name=""):
        if isinstance(value, dict):
            return [t for key, one in value.items() for t in texts(one, key)]
        if isinstance(value, (list, tuple)):
            return [t for one in value for t in texts(one, name)]
        return [value] if isinstance(value, str) and name not in ("key", "show", "text") else []

    assert not [t for t in texts(said) if "\u202e" in t]


def test_the_page_puts_text_in_as_text_only():
    source = (HERE / "panel.js").read_text()
    for dangerous in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
    ):
        assert dangerous not in source.replace("// ", ""), dangerous
    assert not re.findall(r"https?://|import\s*\(|^import ", source, re.M)  # nothing is loaded
    assert "url(" not in (HERE / "panel.css").read_text()


def test_wrong_arguments_are_named(lm, up):
    with pytest.raises(BadInput, match="give Directions"):
        explore(lm, TEXT, directions={"up": 3})
    with pytest.raises(BadInput, match="no block"):
        explore(lm, TEXT, directions={"up": ll.Direction(torch.ones(4), "final_norm")})


def test_without_widgets_the_page_is_static_and_harmless(lm, up, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    _widget_class.cache_clear()
    try:
        made = lm.explore(EVIL, directions={"up": up}, length=4)
        assert made.widget is None
        made.pin("direction:up")
        made.session.answer({"kind": "steer", "settings": settings(made.session, ("direction:up", 2.0, 3))})
        page = made._repr_mimebundle_()["text/html"]
    finally:
        _widget_class.cache_clear()
    assert "pip install latentlens[notebook]" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "rgba(" in page
    assert "unsteered" in page
    assert "lm.generate(prompt" in page


def test_the_widget_carries_its_state_and_a_static_page_beside_it(lm, up):
    pytest.importorskip("anywidget", reason="anywidget is not installed: the widget itself is not tested")
    made = explore(lm, TEXT, directions={"up": up}, length=4)
    assert isinstance(made, Panel)
    data, *_ = made._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "Tell" in data["text/html"]
    state = made.widget.get_state()
    assert "".join(state["tokens"]["words"]).startswith("<|bos|>Tell me")
    made.widget.hear(made.session, {"kind": "show", "key": "direction:up"})
    assert made.widget.settings["show"] == "direction:up"
    made.widget.hear(made.session, {"kind": "steer", "settings": settings(made.session, ("direction:up", 2.0, 3))})
    assert made.widget.runs["steered"]["text"]
    assert made.widget.code == made.code
    assert made.steer[0].coeff == 2.0
    made.widget.hear(made.session, {"kind": "nothing"})
    assert "does not know" in made.widget.problem


def test_the_embedded_model_brings_its_own_sae(lm):
    made = explore(lm, TEXT, chat=True)
    if not ll.organism.saes():
        pytest.skip("no SAE ships with this version's embedded model")
    assert made.session.sae is not None
    assert "ll.organism.sae_path" in made.session._item("latent:3").code(1.0, 3, "all")[0][0]


@pytest.mark.parametrize("text", [[5, 6, 7], [], 3, [["a"]]])
def test_what_is_neither_a_text_nor_a_chat_is_refused(lm, text):
    with pytest.raises(BadInput, match="a text, or a chat"):
        Session(lm, text)


def test_a_chat_keeps_its_turns_and_its_last_one_is_edited(lm):
    chat = [{"role": "system", "content": "Be very formal."}, {"role": "user", "content": "Hello."}]
    made = Session(lm, chat)
    assert made.text == "Hello."
    made.answer({"kind": "text", "text": "Tell me about the sea."})
    assert made.inputs == [[chat[0], {"role": "user", "content": "Tell me about the sea."}]]
    assert chat[1]["content"] == "Hello."


def test_a_model_without_a_tokenizer_says_what_is_missing(llama):
    with pytest.raises(BadInput, match="tokenizer"):
        Session(ll.load(llama, cache=False), "text")
