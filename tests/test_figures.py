"""Figures draw the numbers of the result, mark the choice, and never turn a label into markup."""

import dataclasses
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from latentlens.errors import BadInput
from latentlens.methods.dose import dose_response
from latentlens.values.activations import Activations
from latentlens.values.codes import Codes
from latentlens.values.directions import Direction
from latentlens.values.layer_lens import LayerLens
from latentlens.values.results import Arm, Estimate, ProbeSweep, SiteProbe, SteeringEffect
from latentlens.values.sae import SAE
from latentlens.values.sites import Site
from latentlens.values.trajectory import Paths
from latentlens.values.visible import visible
from latentlens.views import figures as plots
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


# -- maps, lenses, paths, doses, directions, latents --------------------------------------------------

EVIL = "<a href='https://x.example'>click</a>\u202egnp"


def acts(n=6, d=8, sites=3, word="w"):
    draw = torch.Generator().manual_seed(0)
    values = {Site("resid_post", i): torch.randn(n, d, generator=draw) for i in range(sites)}
    labels = {"text": np.repeat([0, 1], n // 2), "position": np.tile(np.arange(n // 2)[::-1], 2)}
    return Activations(values, {**labels, "token": np.array([f"{word}{i}" for i in range(n)], dtype=object)})


def harmless(figure):
    text = json.dumps(figure.to_plotly_json(), default=str, ensure_ascii=False)
    assert "<a href" not in text
    assert "\u202e" not in text
    return text


def test_a_map_holds_the_cosine_of_every_token_and_block_in_reading_order():
    given, direction = acts(), Direction(torch.arange(1.0, 9.0), "resid_post[1]", "truth")
    figure = plots.token_layers(given, direction, text=1)
    z = np.array(figure.data[0].z)
    assert z.shape == (3, 3)
    state = given["resid_post[2]"][5]  # the last row of text 1 comes first: positions run backwards
    expected = float(state @ direction.vector / state.norm() / direction.vector.norm())
    assert z[2, 0] == pytest.approx(expected, abs=1e-6)
    assert list(figure.layout.xaxis.ticktext) == ["w5", "w4", "w3"]
    assert figure.data[0].zmin == -figure.data[0].zmax
    assert f"±{1.96 / 8**0.5:.2f}" in figure.layout.title.subtitle.text


def test_a_map_of_a_sweep_holds_each_blocks_own_log_odds_and_of_norms_the_lengths():
    given = acts(d=4)
    z = np.array(plots.token_layers(given, sweep([Site("resid_post", i) for i in range(2)])).data[0].z)
    assert z.shape == (2, 3)  # only the blocks that were probed
    assert z[1, 0] == pytest.approx(float(given["resid_post[1]"][2].sum()), abs=1e-5)  # weights are ones
    z = np.array(plots.token_layers(given, "norm", last=2).data[0].z)
    assert z.shape == (3, 2)
    assert z[0, 1] == pytest.approx(float(given["resid_post[0]"][0].norm()), abs=1e-5)


@pytest.mark.parametrize("by", ["nothing", 3, None])
def test_a_map_of_nothing_and_of_a_text_that_is_not_there_is_refused(by):
    with pytest.raises(BadInput, match="by="):
        plots.token_layers(acts(), by)
    with pytest.raises(BadInput, match="no text 7"):
        plots.token_layers(acts(), "norm", text=7)


def test_highlights_are_projections_log_odds_or_codes_in_reading_order():
    given, direction = acts(), Direction(torch.ones(8), "resid_post[1]", "truth")
    found = plots.highlight(given, direction)
    assert found.words.tolist() == ["w2", "w1", "w0", "w5", "w4", "w3"]
    assert found.values[0] == pytest.approx(float(given["resid_post[1]"][2].sum() / 8**0.5), abs=1e-5)
    probed = plots.highlight(acts(d=4), sweep().probes[2])
    assert probed.values[0] == pytest.approx(float(acts(d=4)["resid_post[2]"][2].sum()), abs=1e-5)
    codes = Codes.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), labels={
        "text": np.array([0, 0]), "position": np.array([1, 0]), "token": np.array(["b", "a"], dtype=object)
    })  # fmt: skip
    assert plots.highlight(codes, 1).values.tolist() == [0.0, 2.0]
    for by in ("truth", 1):
        with pytest.raises(BadInput, match="by="):
            plots.highlight(given, by)
    with pytest.raises(BadInput, match="latent"):
        plots.highlight(codes, direction)


def lens_of(word="w", n_sites=2):
    top = np.array([[[0, 1], [1, 0]], [[1, 2], [2, 1]]])
    p = np.array([[[0.6, 0.3], [0.7, 0.2]], [[0.8, 0.1], [0.9, 0.05]]])
    labels = {"text": np.array([0, 0]), "position": np.array([0, 1]), "token": np.array([word, "b"], dtype=object)}
    nothing = np.array([[np.nan] * 2] * 2)
    return LayerLens(
        (Site("resid_pre", 0), Site("resid_post", 0)), labels, top, p, {0: "zero", 1: word, 2: "two"},
        np.ones((2, 2)), np.zeros((2, 2)), np.array([1, -1]), nothing, nothing,
        {"two": np.array([[0.1, 0.2], [0.3, 0.9]])},
    )  # fmt: skip


def test_the_lens_shows_the_likeliest_token_of_every_cell_with_its_probability():
    figure = plots.logit_lens(lens_of())
    assert np.array(figure.data[0].z).tolist() == [[0.6, 0.7], [0.8, 0.9]]
    assert [list(row) for row in figure.data[0].text] == [["zero", "w"], ["w", "two"]]
    assert list(figure.data[0].y) == ["embedding", "resid_post[0]"]
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0.0, 1.0)


def test_the_lens_at_a_position_follows_the_models_tokens_and_those_watched():
    lines = {trace.name: list(trace.y) for trace in plots.lens_at(lens_of(), row=1).data}
    assert lines["“two”"] == [0.2, 0.9]  # watched: known everywhere
    assert lines["“w”"] == [0.7, 0.05]
    with pytest.raises(BadInput, match="row=2"):
        plots.lens_at(lens_of(), row=2)


def test_paths_are_drawn_in_their_plane_with_steps_and_angles():
    corner = np.array([[[0.0, 0, 0], [3, 4, 0], [3, 4, 5]]])
    of = Paths((corner,), (Site("resid_post", 0),), np.array([0]), np.array([3]), (np.arange(3),))
    figure = plots.paths(of)
    assert list(figure.data[1].y) == pytest.approx([5, 5])
    assert list(figure.data[2].y) == pytest.approx([np.pi / 2])
    xy = np.stack([figure.data[0].x, figure.data[0].y], 1)
    assert np.linalg.norm(np.diff(xy, axis=0), axis=1) == pytest.approx([5, 5], abs=1e-6)  # three points lie in a plane
    assert "holds 100% of the variance" in figure.layout.title.subtitle.text
    two = plots.paths(
        Paths(of.states * 2, of.sites, np.array([0, 1]), np.array([3, 3]), of.starts * 2), labels=["a", EVIL]
    )
    harmless(two)
    with pytest.raises(BadInput, match="2 labels for 1 texts"):
        plots.paths(of, labels=["a", "b"])
    with pytest.raises(BadInput, match="not among"):
        plots.paths(of, site="resid_post[4]")


def test_the_share_of_random_walks_is_what_a_random_walk_has():
    draw = np.random.default_rng(1)
    walk = draw.standard_normal((1, 400, 64)).cumsum(1)
    of = Paths((walk,), (Site("resid_post", 0),), np.array([0]), np.array([400]), (np.arange(400),))
    said = plots.paths(of).layout.title.subtitle.text
    held, walked = (int(part) for part in re.findall(r"(\d+)%", said))
    assert abs(held - walked) < 15
    assert 60 < walked < 90  # 1 - 6/pi^2 (1 + 1/4) = 24% lie outside the plane in many dimensions


def test_the_dose_response_draws_changes_the_line_and_where_the_text_breaks():
    draw = np.random.default_rng(0)
    effect = np.array([0.0, 0.1, 0.2, 0.25]) + 0.01 * draw.standard_normal((40, 4))
    nll = np.array([1.0, 1.0, 1.1, 3.0]) + 0.01 * draw.standard_normal((40, 4))
    found = dose_response([0, 1, 2, 3], effect, nll=nll, off_target=0 * effect, n_bootstrap=200)
    figure = plots.dose_response(found, outcome=EVIL)
    harmless(figure)
    changes = [t for t in figure.data if t.mode == "lines+markers" and len(t.x) == 4]
    assert list(changes[0].y) == pytest.approx([e.value for e in found.change])
    assert list(changes[0].marker.symbol) == ["circle", "circle", "circle", "circle-open"]
    assert "the line fails at 3" in {t.name for t in figure.data}
    shaded = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (shaded[0].x0, shaded[0].x1) == (2.5, 3)
    assert "broken" in figure.layout.title.subtitle.text
    assert (
        "broken"
        not in plots.dose_response(dose_response([0, 1, 2, 3], effect, n_bootstrap=50)).layout.title.subtitle.text
    )


def test_cosines_inside_chance_get_no_number():
    vectors = torch.eye(400)[:3]
    vectors[1, 0] = 1.0
    found = {name: Direction(v, "resid_post[0]") for name, v in zip(["a", "b", EVIL], vectors)}
    figure = plots.cosine_map(found)
    harmless(figure)
    assert [list(row) for row in figure.data[0].text] == [["1.00", "0.71", ""], ["0.71", "1.00", ""], ["", "", "1.00"]]
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(60):
        random = {str(i): Direction(torch.randn(64, generator=draw), "resid_post[0]") for i in range(8)}
        text = plots.cosine_map(random).data[0].text
        hits += sum(cell != "" for row in text for cell in row) > 8
    assert hits <= 9  # once in twenty maps, 3 of 60; more than 9 happens twice in a thousand tries


def test_a_dashboard_counts_what_fires_and_names_its_like():
    dense = torch.zeros(50, 4)
    dense[:10, 0], dense[:9, 1], dense[20:30, 2] = torch.arange(1.0, 11.0), 1.0, 1.0
    labels = {"text": np.arange(50), "position": np.zeros(50, int), "token": np.array([EVIL] * 50, dtype=object)}
    found = plots.latent_dashboard(Codes.from_dense(dense, labels=labels), 0, k=3)
    assert found.n_active == 10
    assert found.counts.sum() == 10
    assert found.edges[-1] == 10.0
    expected = np.corrcoef(dense[:, 0] > 0, dense[:, 1] > 0)[0, 1]
    assert found.together == ((1, pytest.approx(expected)),)  # 2 never fires with it, 3 never
    assert len(found.examples) == 1  # contexts that read the same are shown once
    page = found._repr_html_()
    assert "<a href" not in page
    assert "[U+202E]" in page
    silent = plots.latent_dashboard(Codes.from_dense(dense, labels=labels), 3)
    assert "fires on none" in silent._repr_html_()
    with pytest.raises(BadInput, match="no latent 4"):
        plots.latent_dashboard(Codes.from_dense(dense, labels=labels), 4)


def test_decoder_rows_alike_are_found_by_cosine():
    rows = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [-1, 0, 0]])
    sae = SAE("relu", rows.T.contiguous(), torch.zeros(4), rows, torch.zeros(3), Site("resid_post", 0))
    labels = {"text": np.arange(2), "position": np.zeros(2, int), "token": np.array(["a", "b"], dtype=object)}
    found = plots.latent_dashboard(Codes.from_dense(torch.eye(2, 4), labels=labels), 0, sae=sae)
    assert found.alike == ((1, pytest.approx(0.9 / 0.82**0.5, abs=1e-4)),)


def test_labels_of_the_new_figures_do_not_become_markup():
    direction, word = Direction(torch.ones(8), "resid_post[1]", EVIL), f"\u202e{EVIL}"
    for figure in (
        plots.token_layers(acts(word=word), direction),
        plots.logit_lens(lens_of(word)),
        plots.lens_at(lens_of(word), row=0),
    ):
        assert "[U+202E]" in harmless(figure)
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    page = plots.highlight(acts(word=EVIL), direction)._repr_html_()
    assert "<a href" not in page
    assert "\u202e" not in page


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KALEIDO = importlib.util.find_spec("kaleido") is not None


@pytest.mark.skipif(
    not (BROWSER and KALEIDO), reason="static images need kaleido (pip install latentlens[figures]) and a browser"
)
def test_figures_are_exported_as_png_and_svg(tmp_path):
    half = torch.cat([torch.ones(32), torch.zeros(32)])
    figure = plots.cosine_map({"a": Direction(torch.ones(64), "resid_post[0]"), "b": Direction(half, "resid_post[0]")})
    figure.write_image(tmp_path / "a.png", scale=2)
    figure.write_image(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    drawn = (tmp_path / "a.svg").read_text()
    assert "Are these directions related?" in drawn
    assert "0.71" in drawn
