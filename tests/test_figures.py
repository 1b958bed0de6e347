"""Figures draw the numbers of the result, mark the choice, and never turn a label into markup."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from latentlens.errors import BadInput
from latentlens.values.results import Arm, Estimate, ProbeSweep, SiteProbe, SteeringEffect
from latentlens.values.sites import Site
from latentlens.values.visible import visible
from latentlens.views.figures import by_layer, steering_effect
from latentlens.views.terminal import print_table


def probe(site, auroc, control=True):
    null = Estimate(0.5, 0.42, 0.58, 20)
    return SiteProbe(
        site, Estimate(auroc, auroc - 0.05, auroc + 0.04, 90), 0.95, auroc, 0.1, null, null if control else None,
        Estimate(auroc - 0.5, 0.1, 0.2, 20) if control else None, np.ones(4, np.float32), 0.0, np.ones(4, np.float32),
    )  # fmt: skip


def sweep(sites=None, control=True):
    sites = sites or [Site("resid_post", i) for i in range(4)]
    probes = tuple(probe(s, 0.6 + 0.05 * i, control) for i, s in enumerate(sites))
    return ProbeSweep(probes, ("false", "true"), np.arange(200), np.arange(200, 290), (40, 18))


def effect():
    arms = [Arm("no edit", 10, 40), Arm("prompt", 30, 40)]
    arms += [Arm("direction", 20 + 5 * c, 40, float(c)) for c in (-2, -1, 1, 2)]
    arms += [Arm("random", 10 + d, 40, float(c), d) for c in (-2, -1, 1, 2) for d in range(3)]
    return SteeringEffect(arms, "says yes", "median residual norm")


def trace(figure, name):
    found = [t for t in figure.data if t.name == name]
    assert len(found) == 1, [t.name for t in figure.data]
    return found[0]


def test_by_layer_draws_every_auroc_at_its_block_and_rings_the_best():
    figure = by_layer(sweep())
    line = trace(figure, "probe, resid_post")
    assert list(line.x) == [0, 1, 2, 3]
    assert list(line.y) == pytest.approx([0.6, 0.65, 0.7, 0.75])
    ring = next(t for t in figure.data if t.marker.symbol == "circle-open")
    assert (ring.x[0], ring.y[0]) == (3, pytest.approx(0.75))
    said = figure.layout.title.subtitle.text
    assert "90 rows of 18 groups" in said
    assert "resid_post[3]" in said
    assert figure.layout.yaxis.title.text == "AUROC"


def test_by_layer_shows_both_controls_and_chance():
    figure = by_layer(sweep())
    assert list(trace(figure, "control task (20 draws)").y) == [0.5] * 4
    assert trace(figure, "shuffled labels (20 draws)").fill == "toself"
    assert figure.layout.shapes[0].y0 == 0.5
    assert "control task (20 draws)" not in {t.name for t in by_layer(sweep(control=False)).data}


def test_sites_of_other_kinds_get_their_own_line_and_those_without_a_block_a_place_after_the_last():
    sites = [Site("resid_post", 0), Site("mlp_out", 0), Site("resid_post", 1), Site("mlp_out", 1), Site("final_norm")]
    figure = by_layer(sweep(sites))
    assert {"probe, resid_post", "probe, mlp_out", "probe, final_norm"} <= {t.name for t in figure.data}
    assert list(trace(figure, "probe, final_norm").x) == [2]
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "final_norm"]
    colours = [trace(figure, f"probe, {n}").line.color for n in ("resid_post", "mlp_out", "final_norm")]
    assert len(set(colours)) == 3


def test_one_site_and_eighty_sites_both_draw():
    assert "the only site" in by_layer(sweep([Site("final_norm")])).layout.title.subtitle.text
    many = by_layer(sweep([Site("resid_post", i) for i in range(8)]))
    deep = dataclasses.replace(sweep(), probes=tuple(probe(Site("resid_post", i), 0.8) for i in range(80)))
    assert len(many.layout.xaxis.tickvals) == 8
    assert len(by_layer(deep).layout.xaxis.tickvals) <= 20
    with pytest.raises(BadInput, match="no site"):
        by_layer(dataclasses.replace(sweep(), probes=()))


def test_steering_effect_draws_each_random_draw_beside_the_direction():
    figure = steering_effect(effect())
    line = trace(figure, "the direction")
    assert list(line.x) == [-2, -1, 0, 1, 2]  # strength 0 is the unedited model
    assert list(line.y) == pytest.approx([0.25, 0.375, 0.25, 0.625, 0.75])
    assert line.error_y.array[-1] == pytest.approx(Arm("direction", 30, 40).share.high - 0.75)
    draws = [t for t in figure.data if t.name == "random direction of equal norm (3 draws)"]
    assert len(draws) == 3
    assert {"no edit", "asked in the prompt"} <= {t.name for t in figure.data}
    assert "n = 40 rollouts" in figure.layout.title.subtitle.text
    assert "median residual norm" in figure.layout.xaxis.title.text


def test_importing_the_figures_does_not_load_plotly():
    code = "import sys, latentlens as ll; ll.plots.by_layer; print('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_labels_do_not_become_markup():
    evil = "<a href='https://x.example'>click</a>\u202egnp"
    figures = (
        by_layer(dataclasses.replace(sweep(), classes=("no", evil))),
        steering_effect(dataclasses.replace(effect(), outcome=evil, unit=evil)),
    )
    for figure in figures:
        text = json.dumps(figure.to_plotly_json(), default=str, ensure_ascii=False)
        assert "<a href" not in text
        assert "&lt;a href" in text
        assert "\u202e" not in text
        assert "[U+202E]" in text


def test_backgrounds_are_transparent_for_light_and_dark_pages():
    for figure in (by_layer(sweep()), steering_effect(effect())):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_hidden_characters_are_written_out_and_ordinary_ones_are_not():
    assert visible("a\u202eb\u200bc\x1b[31md\x00") == "a[U+202E]b[U+200B]c[U+001B][31md[U+0000]"
    assert visible("Zürich, 東京, שלום, 🙂\n\tnext") == "Zürich, 東京, שלום, 🙂\n\tnext"
    visible("\ud800").encode("utf-8")  # a lone surrogate would break writing the page


def test_terminal_tables_show_cells_as_they_are():
    out = io.StringIO()
    rows = [("[red]x[/red]", 0.12345, 3), ("\x1b[31mred", 1.0, 40)]
    print_table("T", ["name", "share", "n"], rows, note="95%", console=Console(file=out, width=100))
    said = out.getvalue()
    assert "[red]x[/red]" in said
    assert "[U+001B][31mred" in said
    assert "\x1b" not in said
    assert "0.123" in said
    assert "95%" in said
