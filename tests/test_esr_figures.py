"""Figures of steering resistance: what is drawn is what was found; a journal prints and keeps."""

import math

import pandas as pd
import pytest

import latentlens as ll
from latentlens.values.esr import EsrRates
from latentlens.values.esr_parts import AlignedTraces, BoostPoint, Dose, Induced, Raised
from latentlens.views import figures
from latentlens.views.journal import Journal


def e(value, half=0.1, n=20):
    return ll.Estimate(value, value - half, value + half, n)


def rates(name, multi, resisted):
    nan = ll.Estimate(math.nan, math.nan, math.nan, 0)
    return EsrRates(name, 20, 0, 4, e(30.0), e(multi), e(resisted), nan, nan, e(0.0))


def traces(figure):
    return {t.name: t for t in figure.data if t.name}


def test_conditions_are_drawn_in_order_and_controls_in_grey():
    figure = figures.resistance_conditions([rates("steered", 0.4, 0.3), rates("matched 1 ablated", 0.35, 0.3)])
    multi = traces(figure)["more than one attempt"]
    assert list(multi.x) == [0.4, 0.35]
    assert multi.y[0] > multi.y[1]
    assert multi.marker.color[0] != multi.marker.color[1]
    assert list(figure.layout.yaxis.ticktext) == ["steered", "matched 1 ablated"]
    assert multi.error_x.array[0] == pytest.approx(0.1)


def test_a_condition_cannot_bring_markup_into_a_figure():
    figure = figures.resistance_conditions([rates("<b>x</b>", 0.1, 0.1)])
    assert figure.layout.yaxis.ticktext[0] == "&lt;b&gt;x&lt;/b&gt;"


def test_a_dose_has_its_controls_at_full_size():
    figure = figures.ablation_dose(
        [Dose(k, rates(f"{k}", 0.4 / (k + 1), 0.1), None) for k in range(4)], [rates("matched 1", 0.4, 0.1)]
    )
    drawn = traces(figure)
    assert list(drawn["more than one attempt"].x) == [0, 1, 2, 3]
    assert drawn["random latents (1 sets)"].x[0] == 3
    assert drawn["random latents (1 sets)"].y[0] == 0.4


def test_raised_latents_begin_where_nothing_is_raised():
    found = [
        Raised("nothing", 0, 0.0, e(0.02), e(0.02)),
        Raised("nothing, sentence of another answer", 0, 0.0, e(0.5), e(0.9)),
    ]
    found += [Raised("3 detectors", 3, level, e(level / 3), e(0.9)) for level in (2.0, 1.0)]
    figure = figures.raised_latents(found)
    drawn = traces(figure)["3 detectors"]
    assert list(drawn.x) == [0.0, 1.0, 2.0]
    assert list(drawn.y) == pytest.approx([0.02, 1 / 3, 2 / 3])
    assert figure.layout.shapes[0].y0 == 0.5


def test_strengths_show_rates_and_score_on_their_own_axes():
    figure = figures.boost_curve([BoostPoint(z + 3, z, rates("x", 0.1, 0.1)) for z in (-3.0, 0.0, 3.0)])
    drawn = traces(figure)
    assert list(drawn["more than one attempt"].x) == [-3.0, 0.0, 3.0]
    assert drawn["score of the first attempt (right)"].yaxis == "y2"
    assert list(drawn["score of the first attempt (right)"].y) == [30.0] * 3


def test_traces_leave_out_places_without_an_interval():
    nan = ll.Estimate(math.nan, math.nan, math.nan, 0)
    found = AlignedTraces(
        (-1, 0, 1), {"detectors": (e(2.0), e(0.5), nan), "matched 1": (nan,) * 3}, {"detectors": 0.1, "matched 1": 0}, 5
    )
    drawn = traces(figures.correction_traces(found))
    assert list(drawn["detectors"].x) == [-1, 0]
    assert "matched 1" not in drawn


def test_agreement_skips_what_is_undefined():
    frame = pd.DataFrame(
        [
            {
                "judge": "a",
                "other": "b",
                "multi, same": e(0.9),
                "multi, kappa": None,
                "first, Spearman": e(0.5),
                "direction, same": None,
            }
        ]
    )
    drawn = traces(figures.judge_agreement(frame))
    assert set(drawn) == {"multi, same", "first, Spearman"}


def test_taught_models_stand_at_their_share():
    found = [Induced("m", None, 0, math.nan, 2.0, rates("a", 0.3, 0.2), rates("b", 0.0, 0.0))]
    found += [Induced("t", 0.5, 9, 0.4, 2.0, rates("a", 0.6, 0.5), rates("b", 0.1, 0.0))]
    figure = figures.induced_correction(found)
    assert list(figure.layout.xaxis.ticktext) == ["m", "50%"]
    assert list(traces(figure)["more than one attempt, unsteered"].y) == [0.0, 0.1]


def test_a_journal_prints_short_estimates_and_keeps_the_whole(tmp_path, capsys):
    show = Journal()
    show.table(
        "Rates",
        [rates("steered", 0.4, 0.3).line()],
        "a note",
        figure=figures.resistance_conditions([rates("s", 0.4, 0.3)]),
    )
    show.table("Hidden", pd.DataFrame({"x": [1.5]}), quiet=True)
    show.say("What it means.")
    printed = capsys.readouterr().out
    assert "0.40 [0.30, 0.50]" in printed
    assert "30 [30, 30]" in printed
    assert "a note" in printed
    assert "Hidden" not in printed
    page = show.write(tmp_path / "p.html", title="T", question="Q?", manifest={"seed": 0}).read_text()
    assert all(text in page for text in ("Rates", "Hidden", "What it means.", "0.400 [0.300, 0.500]", "a note"))
