"""Two pages compared: values matched by name, differences judged by their intervals, nothing in a page is trusted."""

import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

import latentlens as ll
from latentlens.cli import app
from latentlens.errors import BadInput
from latentlens.values.results import Arm, Estimate, SteeringEffect
from latentlens.views.compare import compare, read
from latentlens.views.findings import findings
from latentlens.views.manifest import manifest
from latentlens.views.report import Section, report


def page(path, k=30, auroc=(0.9, 0.85, 0.95), site="resid_post[3]", seed=0, **more):
    effect = SteeringEffect([Arm("no edit", 10, 40), Arm("direction", k, 40, 1.5)], "true", "norm")
    figure = go.Figure(go.Scatter(y=[1, k])).update_layout(title={"text": "<b>Shares</b>"})
    return report(
        path, title=f"run {seed}", question="Which?", sections=[Section("Writing", [effect, figure])],
        highlights={"AUROC": Estimate(*auroc, 100), "site": site}, manifest={"seed": seed, "versions": {"torch": "2"}},
        results=more,
    )  # fmt: skip


def pair(found, name, row=""):
    return next(one for one in found.pairs if one.a.name == name and row in one.a.row)


def test_a_page_compared_with_itself_differs_in_nothing(tmp_path):
    found = compare(page(tmp_path / "a.html"), page(tmp_path / "b.html"))
    assert not found.differing
    assert not found.only_a
    assert not found.only_b
    assert not found.manifest
    assert found.same == 2
    assert len(found.pairs) == 4  # AUROC, site, two arms


def test_the_interval_of_a_difference_follows_from_the_two_intervals(tmp_path):
    a = page(tmp_path / "a.html", auroc=(0.9, 0.85, 0.93))
    b = page(tmp_path / "b.html", auroc=(0.85, 0.78, 0.9))
    gap = pair(compare(a, b), "AUROC").difference
    assert gap.value == pytest.approx(-0.05)
    assert gap.low == pytest.approx(-0.05 - math.hypot(0.85 - 0.78, 0.93 - 0.9))
    assert gap.high == pytest.approx(-0.05 + math.hypot(0.9 - 0.85, 0.9 - 0.85))
    assert not pair(compare(a, b), "AUROC").differs  # -0.05 [-0.126, 0.021]
    assert pair(compare(a, page(tmp_path / "c.html", auroc=(0.6, 0.5, 0.7))), "AUROC").differs


def test_of_two_shares_that_are_equal_one_in_twenty_is_flagged(tmp_path):
    draw, flagged = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = (Arm("no edit", int(draw.binomial(60, 0.4)), 60).share for _ in range(2))
        gap = b.value - a.value
        low = gap - math.hypot(b.value - b.low, a.high - a.value)
        high = gap + math.hypot(b.high - b.value, a.value - a.low)
        flagged += not low <= 0 <= high
    assert 0.03 < flagged / 2000 < 0.07


def test_numbers_without_intervals_are_marked_as_nothing_to_judge(tmp_path):
    found = compare(page(tmp_path / "a.html", loss=0.5, steps=3), page(tmp_path / "b.html", loss=0.6, steps=3))
    assert (pair(found, "loss").mark, pair(found, "steps").mark) == ("?", "")
    assert not found.differing
    assert found.table(only_flagged=True)[""].tolist() == ["?"]
    assert "1 more are not equal" in found.note


def test_words_and_settings_that_changed_are_named(tmp_path):
    found = compare(page(tmp_path / "a.html"), page(tmp_path / "b.html", site="resid_post[4]", seed=1, extra=0.5))
    assert pair(found, "site").differs
    assert found.manifest == {"seed": ("0", "1")}
    assert [one.name for one in found.only_b] == ["extra"]
    assert "A" in found.table().columns
    assert "≠" in set(found.table()[""])
    assert "1 of 4 findings differ" in repr(found)
    assert found.to_frame().differs.sum() == 1


def test_the_page_of_a_comparison_shows_both_sides_and_their_figures(tmp_path):
    found = compare(page(tmp_path / "a.html", k=30), page(tmp_path / "b.html", k=5, seed=1))
    written = found.write(tmp_path / "c.html").read_text()
    for expected in ("A: run 0", "0.750", "0.125", "B - A", "about 0.2 of them would be flagged by chance"):
        assert expected in written, expected
    data = json.loads(re.search(r'id="figures">(.*?)</script>', written, re.S)[1])
    assert [one["heading"] for one in data] == ["Shares", "Shares"]


EVIL = "<script>x()</script><img src=x onerror=x()>"


def test_a_page_written_by_an_enemy_stays_text(tmp_path):
    bad = page(tmp_path / "a.html", site=EVIL)
    text = bad.read_text().replace('"heading":"Shares"', f'"heading":{json.dumps("Shares").replace("<", "")}')
    bad.write_text(text)
    written = compare(bad, page(tmp_path / "b.html")).write(tmp_path / "c.html").read_text()
    assert "<img" not in written
    assert "&lt;img src=x" in written
    assert "&lt;img" in compare(bad, page(tmp_path / "b.html"))._repr_html_()


DATA = '<script type="application/json" id="record">{}</script>'
HEAD = '"format":1,"title":"","question":"","manifest":{}'
BROKEN = ["", "<html></html>", "\x00", *map(DATA.format, ('{"format":1}', "[1]", "{", "{" + HEAD + ',"findings":[3]}'))]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_report_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.html").write_text(text)
    with pytest.raises(BadInput):
        read(tmp_path / "x.html")


def test_a_missing_page_and_one_from_the_future_are_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path / "nowhere.html")
    made = page(tmp_path / "a.html")
    made.write_text(made.read_text().replace('{"format":1,', '{"format":2,'))
    with pytest.raises(BadInput, match="newer latentlens"):
        read(made)


def test_findings_of_a_frame_are_named_by_what_stands_before_the_first_estimate():
    frame = pd.DataFrame({
        "site": ["a", "b"], "block": [0.0, None], "n": [5, 6], "auroc": [0.5, 0.6], "auroc_low": [0.4, 0.5],
        "auroc_high": [0.6, 0.7], "C": [0.1, 1.0], "share": [0.2, 0.3], "low": [0.1, 0.2], "high": [0.3, 0.4],
    })  # fmt: skip
    found = findings("t", frame)
    assert [(one.row, one.name, one.value, one.low, one.high, one.n) for one in found[:3]] == [
        ("site a, block 0", "auroc", 0.5, 0.4, 0.6, 5),
        ("site a, block 0", "C", 0.1, None, None, None),
        ("site a, block 0", "share", 0.2, 0.1, 0.3, 5),
    ]
    assert found[3].row == "site b"


def test_findings_read_nested_values_and_leave_raw_data_out():
    assert [one.short for one in findings("t", {"a": Estimate(0.5, 0.4, 0.6, 9), "b": {"c": 2}, "d": "w"})] == [
        "0.500 [0.400, 0.600]", "2", "w",
    ]  # fmt: skip
    assert findings("t", pd.DataFrame({"x": np.zeros(30_000)})) == []


def test_the_command_prints_the_differences_and_says_so_in_its_exit_code(tmp_path):
    a, b = page(tmp_path / "a.html", k=30), page(tmp_path / "b.html", k=5, seed=1)
    run = CliRunner().invoke
    done = run(app, ["report", "compare", str(a), str(b), "--html", str(tmp_path / "c.html")])
    assert done.exit_code == 1
    assert "Writing: SteeringEffect" in done.output
    assert "seed" in done.output
    assert (tmp_path / "c.html").is_file()
    assert run(app, ["report", "compare", str(a), str(a)]).exit_code == 0
    found = json.loads(run(app, ["report", "compare", str(a), str(b), "--json"]).output)
    assert found["differing"] == 1
    assert found["manifest"] == {"seed": ["0", "1"]}


def test_the_manifest_names_the_model_its_weights_versions_and_command(tmp_path, monkeypatch):
    lm = ll.load(cache=tmp_path)
    lm.activations("the cat", where="last")
    lm.activations("the cat", where="last")
    monkeypatch.setattr(
        sys, "argv", ["/home/me/run.py", "--api-key", "sk-1", "--token=abc", "--max-new-tokens", "5", "a b"]
    )
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # as a script has it that shows a widget
    told = manifest(lm, seed=3, n_rows=7)
    assert list(told)[:2] == ["seed", "n rows"]
    assert told["weights"].startswith("files:")
    assert len(told["weights"]) == 70
    assert told["activation cache"] == "6 hits, 6 misses"
    assert told["versions"]["torch"]
    assert told["command"] == "run.py --api-key *** --token=*** --max-new-tokens 5 'a b'"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    assert manifest()["command"] == "a notebook"
