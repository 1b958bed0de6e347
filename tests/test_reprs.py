"""Every value has a notebook form and a plain one, and what a model wrote never becomes markup in either."""

import ast
import dataclasses
import importlib
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import latentlens as ll
from latentlens.values.latent_findings import Example, Examples
from latentlens.values.markup import Html, Shown, card, cell, facts, table, tag, text, tokens
from latentlens.values.results import Estimate
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.rows import TokenRow

EVIL = "<script>x()</script><img src=x onerror=x()>\u202egnp' \" onmouseover=x()"
PACKAGE = Path(ll.__file__).parent


class Elements(HTMLParser):
    """Tags and attribute names that a parser finds."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.written = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.written.append(data)


def harmless(page):
    found = Elements(page)
    assert not {"script", "img", "svg", "iframe", "a"} & set(found.tags), found.tags
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "\u202e" not in page
    return "".join(found.written)


def value(name, **options):
    evil = np.array([EVIL, "b"], dtype=object)
    return {
        "rollouts": lambda: Rollouts((Rollout(EVIL, TokenRow.plain((1, 2)), (3, 4), EVIL, 0, 0, 7, 1.0, (), "eos"),)),
        "direction": lambda: ll.Direction(torch.ones(4), "resid_post[1]", EVIL, source={EVIL: EVIL, "n": {"a": EVIL}}),
        "plan": lambda: ll.Add(ll.Direction(torch.ones(4), "resid_post[1]", EVIL), 2.0),
        "examples": lambda: Examples(3, (Example(0, 1, ("a", EVIL), (0.0, 2.5), 1),), 0.5, EVIL),
        "effect": lambda: ll.SteeringEffect([ll.Arm("no edit", 1, 4), ll.Arm("direction", 3, 4, 1.0)], EVIL, EVIL),
        "acts": lambda: ll.Activations(
            {ll.Site("resid_post", 0): torch.ones(2, 3)}, {"text": np.array([0, 1]), "token": evil}
        ),
    }[name]()  # fmt: skip


@pytest.mark.parametrize("name", ["rollouts", "direction", "plan", "examples", "effect", "acts"])
def test_what_a_model_or_a_person_wrote_stays_text(name):
    written = harmless(value(name)._repr_html_())
    assert "<script>x()</script>" in written
    assert "[U+202E]" in written


def test_every_value_with_a_table_has_a_notebook_form_made_by_the_one_helper():
    missing, own = [], []
    for module in pkgutil.walk_packages(ll.__path__, "latentlens."):
        if not module.name.startswith(("latentlens.values", "latentlens.methods", "latentlens.access")):
            continue
        for item in vars(importlib.import_module(module.name)).values():
            if not isinstance(item, type) or not item.__module__.startswith("latentlens."):
                continue
            if hasattr(item, "to_frame") and not issubclass(item, Shown):
                missing.append(item.__name__)
            if "_repr_html_" in vars(item) and item is not Shown:
                own.append(item.__name__)
    assert not missing, f"these have to_frame() and should inherit from values.markup.Shown: {sorted(set(missing))}"
    assert not own, f"these write their own HTML; override _html_head or _html_parts instead: {sorted(set(own))}"


def test_no_other_file_of_the_lower_rooms_writes_tags():
    for file in [*PACKAGE.glob("values/*.py"), *PACKAGE.glob("methods/*.py"), *PACKAGE.glob("access/**/*.py")]:
        if file.name == "markup.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not {"<td", "<tr", "<div", "<table", "<span"} & set(re.findall(r"<[a-z]+", node.value)), (
                    file.name
                )
            if isinstance(node, ast.Attribute):
                assert node.attr != "to_html", f"{file.name}: use values.markup.table"


def test_only_html_made_by_the_helper_is_taken_as_markup():
    assert text("<b>") == "&lt;b&gt;"
    assert text(Html("<b>")) == "<b>"
    assert tag("p", "<", Html("<b>x</b>"), title='"<') == '<p title="&quot;&lt;">&lt;<b>x</b></p>'
    assert type(Html("<b>") + "<i>") is str  # a sum with a plain string is plain again
    assert "&lt;i&gt;" in card("<i>", "<i>")
    assert "&lt;i&gt;" in facts({"<i>": "<i>"})


def test_tables_write_cells_for_people_and_count_what_they_leave_out():
    frame = pd.DataFrame({
        "block": [0.0, 11.0, None], "p": [1e-7, 0.25, 1.0], "n": [1, 2, 3], "ok": [True, False, True],
        "e": [Estimate(0.5, 0.4, 0.6, 9)] * 3,
    })  # fmt: skip
    written = Elements(table(frame)).written
    assert written == ["block", "p", "n", "ok", "e",
                       "0", "1e-07", "1", "✓", "0.500 [0.400, 0.600]",
                       "11", "0.250", "2", "✗", "0.500 [0.400, 0.600]",
                       "–", "1.000", "3", "✓", "0.500 [0.400, 0.600]"]  # fmt: skip
    assert "38 more of 40 rows" in table([{"a": i} for i in range(40)], 2)
    assert Elements(table(frame.set_index("p"))).written[:2] == ["p", "block"]  # an index that says something is shown
    assert Elements(table([])).written == ["nothing to show"]
    assert cell(np.float32(0.25)) == "0.25"


def test_a_column_with_a_long_text_wraps_as_a_whole_so_that_numbers_beside_it_stay_in_sight():
    """One short name on a line of its own would hold the column wide and push the last columns off the page."""
    page = table([{"what": "a" * 44, "A": "0.1 [0.0, 0.2]"}, {"what": "long " * 12, "A": "0.2 [0.1, 0.3]"}])
    assert page.count('<td class="ll-text">') == 2
    assert page.count('<td class="ll-short">') == 2


def test_tokens_are_coloured_by_sign_and_strength_and_carry_their_number():
    page = tokens(["a", " b", "\n", " "], [1.0, -2.0, 0.0, float("nan")], at=1)
    assert 'title="1" style="background:rgba(230,140,0,0.28)"' in page
    assert 'class="ll-t ll-at" title="-2" style="background:rgba(0,114,178,0.55)"' in page
    assert Elements(page).written == ["a", " b", "⏎\n", "·"]
    assert "rgba(230,140,0,0.11)" in tokens(["a"], [1.0], largest=5.0)  # a scale that several texts share
    assert "background" not in tokens(["a", "b"], [0.0, 0.0])


def test_the_embedded_model_and_what_comes_from_it_show_themselves():
    lm = ll.load(cache=False)
    acts = lm.activations("the cat", sites="resid_post[*]")
    runs = lm.generate(
        "the cat", max_new_tokens=2, steer=ll.Add(ll.Direction(torch.ones(lm.layout.d_model), "resid_post[1]"), 0.1)
    )
    for shown in (lm, acts, runs, runs[0], runs.effect(), runs[0].steer[0], lm.tokens("the cat")[0]):
        assert repr(shown)
        assert "<script" not in getattr(shown, "_repr_html_", lambda: "")()
    assert "resid_post" in lm._repr_html_()
    assert "no edit" not in runs._repr_html_()
    assert "Add(" in runs._repr_html_()


def test_frozen_values_stay_frozen_and_comparable():
    estimate = Estimate(0.5, 0.4, 0.6, 9)
    assert estimate == Estimate(0.5, 0.4, 0.6, 9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 1.0
    assert "0.500 [0.400, 0.600]" in estimate._repr_html_()
