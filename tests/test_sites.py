"""The spellings that do not depend on a model: native and TransformerLens."""

from __future__ import annotations

import doctest

import pytest

from latentlens.errors import LatentLensError, SiteNotFound
from latentlens.values import sites
from latentlens.values.sites import BLOCK_POINTS, MODEL_POINTS, Site, block_indices, example, parse


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(sites).failed == 0


@pytest.mark.parametrize("point", BLOCK_POINTS)
def test_a_printed_block_site_is_read_back(point):
    assert parse(str(Site(point, 7))) == (point, "7")
    assert repr(Site(point, 7)) == f"Site('{point}[7]')"


@pytest.mark.parametrize("point", MODEL_POINTS)
def test_a_printed_model_site_is_read_back(point):
    assert parse(str(Site(point))) == (point, None)


@pytest.mark.parametrize(
    ("lens", "point"),
    [
        ("hook_resid_pre", "resid_pre"),
        ("hook_in", "resid_pre"),
        ("hook_resid_mid", "resid_mid"),
        ("hook_resid_post", "resid_post"),
        ("hook_out", "resid_post"),
        ("hook_attn_out", "attn_out"),
        ("attn.hook_out", "attn_out"),
        ("hook_mlp_out", "mlp_out"),
        ("mlp.hook_out", "mlp_out"),
        ("attn.hook_z", "z"),
        ("mlp.hook_post", "mlp_post"),
    ],
)
def test_transformer_lens_names_are_read(lens, point):
    assert parse(f"blocks.5.{lens}") == (point, "5")
    assert parse(f"blocks.-1.{lens}") == (point, "-1")
    assert parse(f"blocks.*.{lens}") == (point, "*")


def test_transformer_lens_names_after_the_blocks_are_read():
    assert parse("ln_final.hook_out") == ("final_norm", None)
    assert parse("unembed.hook_out") == ("logits", None)


@pytest.mark.parametrize("text", ["model.layers.5", "transformer.h.3.attn", "lm_head.weight", "5", "", "a b"])
def test_what_is_neither_spelling_is_left_to_the_layout(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pots[1]", "resid_post[0]"),
        ("blocks.5.attn.hook_pattern", "attn.hook_z"),
        ("attention", "attn_out[0]"),
    ],
)
def test_a_wrong_point_is_answered_with_the_nearest(text, says):
    with pytest.raises(SiteNotFound) as error:
        parse(text)
    assert says in str(error.value)
    assert not str(error.value).startswith(("'", '"'))
    assert isinstance(error.value, LatentLensError)
    assert isinstance(error.value, KeyError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", [5]),
        ("-1", [7]),
        ("-8", [0]),
        ("*", [0, 1, 2, 3, 4, 5, 6, 7]),
        (":", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("2:4", [2, 3]),
        ("6:", [6, 7]),
        ("-2:", [6, 7]),
        (":2", [0, 1]),
        ("::3", [0, 3, 6]),
        ("5:99", [5, 6, 7]),
        ("::-4", [7, 3]),
        ("0,3,-1", [0, 3, 7]),
        (" 0 , 3 ", [0, 3]),
    ],
)
def test_block_indices_follow_the_rules_of_python(text, expected):
    assert block_indices(text, 8) == expected


@pytest.mark.parametrize("text", ["8", "-9", "0,8", "5:5", "9:", "", "x", "1.5", "1:2:3:4", "::0", ":x", "1,,2"])
def test_a_block_that_does_not_exist_is_refused_with_the_range(text):
    with pytest.raises(SiteNotFound) as error:
        block_indices(text, 8, "Qwen2ForCausalLM")
    assert "Qwen2ForCausalLM (8 blocks: 0-7, or -8 to -1)" in str(error.value)


def test_sites_sort_by_depth():
    ordered = [
        Site("resid_pre", 0),
        Site("z", 0),
        Site("attn_out", 0),
        Site("resid_mid", 0),
        Site("mlp_post", 0),
        Site("mlp_out", 0),
        Site("resid_post", 0),
        Site("resid_pre", 1),
        Site("resid_post", 11),
        Site("final_norm"),
        Site("logits"),
    ]
    assert sorted(ordered, key=lambda site: site.depth) == ordered


def test_equal_sites_are_one_key():
    assert {Site("z", 1), Site("z", 1)} == {Site("z", 1)}
    assert Site("z", 1) != Site("z", 2)


@pytest.mark.parametrize(("point", "block"), [("resid_post", None), ("logits", 3), ("hook_z", 1), ("", None)])
def test_a_site_that_cannot_exist_is_refused(point, block):
    with pytest.raises(SiteNotFound):
        Site(point, block)


def test_examples_are_valid_spellings():
    assert all(parse(example(point)) is not None for point in BLOCK_POINTS + MODEL_POINTS)
