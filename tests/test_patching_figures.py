"""Patching figures show the numbers they were given, with their controls, and nothing that a prompt smuggled in."""

import numpy as np
import pytest

import latentlens as ll
from latentlens.errors import BadInput
from latentlens.methods import mediation


def found(mediators, shares, controls=True):
    rng = np.random.default_rng(0)
    base, n = rng.normal(0, 1, 30), 30
    total = rng.normal(3, 0.2, n)
    of = lambda share: base[:, None] + total[:, None] * np.array(share) + rng.normal(0, 0.01, (n, len(shares)))
    names = [one.name for one in mediators]
    more = {"unrelated": of([0.3] + [0.0] * (len(shares) - 1)), "random": of([0.0] * len(shares))} if controls else {}
    return mediation.effects(
        mediation.Patched(base, base + total, of(shares), names, tuple((m,) for m in mediators), **more)
    )


def at(point, block, place):
    return ll.Mediator(ll.Site(point, block), 0, at=place)


def test_a_map_holds_the_share_of_every_place_and_the_controls_beside_it():
    grid = [at("resid_post", b, place) for place in ("value", "end") for b in range(2)]
    figure = ll.plots.patching_map(found(grid, [0.9, 0.2, 0.0, 0.8]))
    effect, unrelated, random = figure.data
    np.testing.assert_allclose(effect.z, [[0.9, 0.2], [0.0, 0.8]], atol=0.02)
    assert unrelated.z[0][0] == pytest.approx(0.3, abs=0.02)
    assert np.abs(np.asarray(random.z)).max() < 0.02
    assert effect.zmax == unrelated.zmax == -effect.zmin  # one scale, zero in the middle
    assert list(effect.y) == ["value", "end"]
    assert effect.text[0][0] == ".90"
    assert "n = 30 pairs" in figure.layout.title.subtitle.text


def test_several_kinds_of_sites_have_a_map_each():
    grid = [at(point, b, "end") for point in ("mlp_out", "attn_out") for b in range(3)]
    figure = ll.plots.patching_map(found(grid, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], controls=False))
    assert [a.text for a in figure.layout.annotations] == ["attn_out", "mlp_out"]
    np.testing.assert_allclose(figure.data[0].z, [[0.4, 0.5, 0.6]], atol=0.02)


def test_the_stream_before_the_first_block_is_the_first_column():
    grid = [at("resid_pre", 0, "end"), at("resid_post", 0, "end"), at("resid_post", 1, "end")]
    figure = ll.plots.patching_map(found(grid, [0.0, 0.5, 1.0], controls=False))
    assert list(figure.layout.xaxis.ticktext) == ["in", "0", "1"]


def test_heads_are_rows_of_their_map():
    grid = [ll.Mediator(ll.Site("z", b), 0, heads=h, d_head=4) for h in range(2) for b in range(2)]
    figure = ll.plots.patching_map(found(grid, [0.0, 0.1, 0.2, 0.3], controls=False))
    assert list(figure.data[0].y) == ["head 0", "head 1"]


def test_carriers_are_ordered_and_stand_beside_their_controls():
    grid = [at("resid_post", b, "<script>x</script>") for b in range(4)]
    figure = ll.plots.carriers(found(grid, [0.1, 0.9, 0.0, 0.4]), k=3)
    swapped = figure.data[-1]
    np.testing.assert_allclose(swapped.x, [0.1, 0.4, 0.9], atol=0.02)
    assert [trace.name for trace in figure.data[:-1]] == [
        "states of an unrelated prompt",
        "random change of equal norm",
    ]
    assert "<script>" not in figure.to_json().replace("\\u003c", "<")
    assert "largest of 4" in figure.layout.title.subtitle.text


def test_a_map_of_parts_without_one_place_is_refused():
    joint = mediation.effects(mediation.Patched([0.0, 0.1], [1.0, 1.2], [[0.5], [0.5]], ["two sites"]))
    with pytest.raises(BadInput, match="carriers"):
        ll.plots.patching_map(joint)
    assert len(ll.plots.carriers(joint).data) == 1
