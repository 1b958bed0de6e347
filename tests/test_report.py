"""The report page: complete, offline, and deaf to what a model wrote."""

import json
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest

from latentlens.errors import BadInput
from latentlens.values.markup import tag
from latentlens.values.results import Arm, Estimate, SteeringEffect
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.rows import TokenRow
from latentlens.views.report import Beside, Captioned, Section, _headline, report

PWN = "document.title='pwned'"
EVIL = (
    f"<script>{PWN}</script>",
    f'<img src=x onerror="{PWN}">',
    f"</script><script>{PWN}</script>",
    f"</pre></details><svg onload={PWN}>",
    f'"><iframe srcdoc="<script>parent.{PWN}</script>">',
    f'<a href="javascript:{PWN}">x</a>',
    "{{ 7 * 7 }} {% raw %}",
    "&lt;script&gt; &#60;script&#62;",
    "right\u202eot\u2066left\u200b",
)


def rollout(i, prompt, text):
    return Rollout(prompt, TokenRow.plain((1, 2)), (3, 4), text, i, 0, 7, 1.0, (), "eos")


def figure(text="plain"):
    made = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name=text, hovertext=[text, text]))
    return made.update_layout(title={"text": f"<b>{text}</b>", "subtitle": {"text": "n = 2<br>next"}})


def effect(text="plain"):
    return SteeringEffect([Arm("no edit", 10, 40), Arm("direction", 30, 40, 1.5)], text, text)


def write(path, text="plain", pictures=2):
    runs = Rollouts(tuple(rollout(i, text, text) for i in range(5)))
    return report(
        path,
        title=f"Title {text}",
        question=f"Question {text}",
        highlights={text: Estimate(0.91, 0.85, 0.96, 100), "calls": ("0", text), "count": 3},
        sections=[
            Section(f"One {text}", [f"First {text}\n\nSecond", *(figure(text) for _ in range(pictures))]),
            Section("Two", [Captioned(pd.DataFrame({text: [text, "b"], "n": [1, 2]}), f"caption {text}")]),
            Section("Three", [Captioned(runs, text), [rollout(0, "p", "t")]]),
            Section(
                "Four",
                [
                    Beside({text: text, **({"figure": figure(text)} if pictures else {})}),
                    effect(text),
                    tag("b", text, title=text),
                ],
            ),
        ],
        manifest={"model": text, "versions": {"torch": text}, text: [1, 2], "commands": ["make demo", text]},
        method=f"Method {text}",
        sources=[text, "Hewitt and Liang 2019, arXiv 1909.03368"],
        results={text: text, "frame": pd.DataFrame({text: [text], "x": [0.5]})},
    )


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "evil.html", " ".join(EVIL))


class Elements(HTMLParser):
    """Tags and attributes that a parser finds outside scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_holds_everything_and_asks_the_network_for_nothing(tmp_path):
    text = write(tmp_path / "deep" / "page.html").read_text()
    parsed = Elements(text)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert not {name for name, _ in parsed.attributes} & {"src", "srcset", "action"}
    assert "default-src 'none'" in text
    for expected in (
        "Title plain",
        "Method plain",
        "arXiv 1909.03368",
        "Question plain",
        "0.91",
        "95% interval 0.85 to 0.96, n=100",
        "make demo",
    ):
        assert expected in text
    assert text.count("<details") == 6
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert not list(tmp_path.glob("**/.*"))  # nothing half-written is left


def test_plotly_is_inlined_once_and_not_at_all_without_figures(tmp_path):
    two, ten, none = (write(tmp_path / f"{n}.html", pictures=n).read_text() for n in (2, 10, 0))
    assert len(two.encode()) < 8e6
    assert len(ten) - len(two) < 100_000  # eight figures more, no second plotly
    assert len(none) < 50_000
    assert "Plotly" not in none


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.html").read_bytes() == write(tmp_path / "b.html").read_bytes()
    # and the file is replaced, not appended to
    assert write(tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_nothing_a_model_wrote_becomes_an_element_or_an_attribute(evil_page, tmp_path):
    text, plain = evil_page.read_text(), write(tmp_path / "plain.html").read_text()
    found, expected = Elements(text), Elements(plain)
    assert found.tags.count("script") == 4  # plotly, the numbers as data, the figures as data, the drawing
    assert sorted(set(found.tags)) == sorted(set(expected.tags))
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "srcdoc", "href")]
    assert "{{ 7 * 7 }}" in text  # shown, not evaluated
    assert "&amp;lt;script&amp;gt;" in text  # entities stay what the model wrote


def test_every_script_that_may_run_carries_the_nonce(evil_page):
    text = evil_page.read_text()
    nonce = re.search(r"script-src 'nonce-([0-9a-f]{32})'", text)[1]
    assert text.count(f'<script nonce="{nonce}">') == 2
    assert "unsafe-eval" not in text
    assert "script-src 'unsafe-inline'" not in text


def test_marks_that_reorder_or_hide_text_are_written_out(evil_page):
    text = evil_page.read_text()
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)[1]
    for mark in ("\u202e", "\u2066", "\u200b"):
        assert mark not in text
        assert f"\\u{ord(mark):04x}" not in data
    assert "right[U+202E]ot[U+2066]left[U+200B]" in text


def test_a_block_that_cannot_be_shown_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match="cannot show a int"):
        report(tmp_path / "x.html", title="", question="", sections=[Section("s", [3])], manifest={})
    assert not (tmp_path / "x.html").exists()


def test_cells_are_written_for_people(tmp_path):
    frame = pd.DataFrame({"block": [0.0, 11.0, None], "p": [1e-7, 0.25, 1.0], "e": [Estimate(0.5, 0.4, 0.6, 9)] * 3})
    page = report(tmp_path / "t.html", title="t", question="", sections=[Section("s", [frame])], manifest={})
    cells = re.findall(r'<td class="[^"]*">([^<]*)</td>', page.read_text())
    assert cells[::3] == ["0", "11", "–"]
    assert cells[1::3] == ["1e-07", "0.250", "1.000"]
    assert cells[2] == "0.500 [0.400, 0.600]"


def record(page):
    return json.loads(
        re.search(r'<script type="application/json" id="record">(.*?)</script>', page.read_text(), re.S)[1]
    )


def test_the_page_keeps_its_numbers_for_machines(tmp_path):
    kept = record(write(tmp_path / "p.html"))
    found = {(one["table"], one.get("row", ""), one["name"]): one for one in kept["findings"]}
    highlight = found["highlights", "", "plain"]
    assert (highlight["value"], highlight["low"], highlight["high"], highlight["n"]) == (0.91, 0.85, 0.96, 100)
    assert found["highlights", "", "count"]["value"] == 3
    arm = found["Four: SteeringEffect", "arm direction, coeff 1.5, draw 0", "share"]
    assert arm["value"] == 0.75
    assert arm["low"] == pytest.approx(Arm("direction", 30, 40).share.low)
    assert arm["n"] == 40
    assert found["results", "", "plain"]["value"] == "plain"
    assert found["frame", "plain plain", "x"]["value"] == 0.5
    assert kept["manifest"]["versions"] == {"torch": "plain"}


def test_numbers_that_are_not_finite_are_kept_as_nothing(tmp_path):
    given = {"nan": Estimate(float("nan"), float("nan"), 1.0, 0), "frame": pd.DataFrame({"x": [float("inf"), 1.0]})}
    page = report(tmp_path / "n.html", title="t", question="", sections=[], manifest={}, results=given)
    first, *rest = record(page)["findings"]
    assert (first["value"], "low" in first, first["high"]) == (None, False, 1.0)
    assert [one["value"] for one in rest] == [None, 1.0]
    assert [one.get("row", "") for one in rest] == ["", " #2"]  # rows of one name are told apart


def test_result_values_are_shown_as_their_whole_table(tmp_path):
    sweep = SteeringEffect([Arm("random", i, 40, 1.0, i) for i in range(30)], "x", "y")
    page = report(tmp_path / "r.html", title="t", question="", sections=[Section("s", [sweep])], manifest={})
    assert page.read_text().count("random direction") == 30


def test_a_page_that_grows_too_large_is_written_and_says_so(tmp_path):
    runs = Rollouts(tuple(rollout(i, "prompt", "long " * 20_000) for i in range(90)))
    how = {"title": "t", "question": "q", "manifest": {}}
    with pytest.warns(UserWarning, match=r"large\.html has 9\.\d MB, more than 8"):
        large = report(tmp_path / "large.html", sections=[Section("s", [runs])], **how)
    assert large.stat().st_size > 8e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(tmp_path / "small.html", sections=[Section("s", [runs[:2]])], **how)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not opened in a browser")
def test_in_a_browser_the_figures_are_drawn_and_nothing_a_model_wrote_is_alive(evil_page, tmp_path):
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=8000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}", evil_page.as_uri()]
    shown = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()
    title = re.search(r"<title>(.*?)</title>", shown, re.S)[1]
    assert title.startswith("Title ")  # no payload has renamed the page
    assert shown.count('class="main-svg"') >= 6  # three figures, a few layers each
    body = Elements(shown[shown.index("<body") :])
    assert body.tags.count("script") == 3
    assert not {"img", "iframe", "object", "embed"} & set(body.tags)
    links = [value for name, value in body.attributes if name in ("href", "xlink:href")]
    assert not [value for value in links if value and "javascript" in value.lower()]
    handlers = [(n, v) for n, v in body.attributes if n.startswith("on")]
    assert not [v for _, v in handlers if v and "pwned" in v]


def test_a_small_difference_in_a_headline_is_not_minus_nothing():
    assert _headline(Estimate(-0.003, -0.023, 0.018, 384)) == ("-0.003", "95% interval -0.023 to 0.018, n=384")
    assert _headline(Estimate(0.524, 0.46, 0.58, 375)) == ("0.52", "95% interval 0.46 to 0.58, n=375")
