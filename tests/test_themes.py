"""What people look at can be read on a light and on a dark page: reports, comparisons, and values in a notebook."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from contrasts import CONTRASTS

import latentlens as ll
from latentlens.values.esr import Answers, Trial
from latentlens.values.markup import card, facts, note, table, tokens
from latentlens.values.rollouts import Rollout, Rollouts
from latentlens.values.rows import TokenRow

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: no page is opened")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def effect(share):
    arms = [ll.Arm("no edit", 20, 100)]
    arms += [ll.Arm("direction", round(share * c * 25), 100, float(c)) for c in (1, 2)]
    arms += [ll.Arm("random", 21, 100, float(c), draw) for c in (1, 2) for draw in range(2)]
    return ll.SteeringEffect(tuple(arms), "answers", "median norms")


def written(path, share):
    rollout = Rollout("Tell me.", TokenRow.plain((1, 2)), (3, 4), "A text.", 0, 0, 7, 1.0, (), "eos")
    found = effect(share)
    frame = pd.DataFrame({"what": ["a", "b"], "value": [0.5, 0.25]})
    return ll.report(
        path, title="A run", question="Does it work?", method="As written.", sources=["Somebody 2025"],
        highlights={"share": ll.Estimate(share, share - 0.1, share + 0.1, 100)},
        sections=[ll.Section("Part", [ll.plots.steering_effect(found), ll.Captioned(frame, "A caption."), found]),
                  ll.Section("Texts", [Rollouts((rollout,)), "A paragraph."])],
        manifest={"seed": 1, "versions": {"python": "3"}},
    )  # fmt: skip


def notebook(path):
    """Values as a notebook shows them, on the page's own background."""
    trial = Trial(1, 0, 2, 1.5)
    answers = Answers("steered", (trial,), ("Q?",), ("A.",), ((1,),), (None,))
    values = [
        ll.Direction(np.ones(4, dtype=np.float32), "resid_post[1]", "v"),
        effect(0.5),
        effect(0.5).against("random", 2.0),
        ll.load(cache=False),
    ]
    cards = [value._repr_html_() for value in (*values, answers)]
    cards.append(card("tokens", tokens(["strong", "weak", "below", "none"], [1.0, 0.2, -1.0, 0.0]), note("a note")))
    cards.append(card("facts", facts({"a": "b"}), table([{"x": 0.5, "y": "text " * 20}])))
    dark = "@media (prefers-color-scheme: dark) { body { background: #111; color: #e0e0e0; } }"
    path.write_text(f"<meta charset=utf-8><style>{dark}</style><body>{''.join(cards)}</body>")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "comparison", "notebook"])
def test_every_text_stands_out_from_its_background(kind, scheme, chromium, tmp_path):
    page = tmp_path / "page.html"
    if kind == "notebook":
        notebook(page)
    else:
        written(page, 0.5)
    if kind == "comparison":
        ll.compare_reports(page, written(tmp_path / "other.html", 0.9)).write(page)
    tab = chromium.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 1000})
    tab.goto(page.as_uri())
    if kind != "notebook":
        tab.wait_for_selector(".main-svg")
    tab.wait_for_timeout(500)
    if folder := os.environ.get("LATENTLENS_SHOTS"):  # to be looked at
        tab.screenshot(path=f"{folder}/{kind} {scheme}.png", full_page=True)
    found = tab.evaluate(CONTRASTS, "body *:not(script, style, noscript)")
    tab.close()
    assert len(found) > 25
    low = [one for one in found if one[2] < 4.5]
    assert not low, low[:8]
