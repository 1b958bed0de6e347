"""Draw the pictures of the documentation from the embedded model: figures, a report, the panel, the demo.

python docs/images/draw.py     needs playwright and a Chromium; writes PNG files beside this one, and demo.png
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import latentlens as ll
from latentlens import demo
from latentlens.organism.corpus import draw
from latentlens.views.panel.session import Session

HERE = Path(__file__).parent
PANEL = Path(ll.__file__).parent / "views" / "panel"
SWITCHES = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
STUB = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>{css}
body {{ margin: 14px 18px; width: 840px; }}</style><div id="at"></div><script type="module">{js}
const state = {state};
const model = {{ get: (name) => state[name], on() {{}}, off() {{}}, send() {{}} }};
render({{ model, el: document.getElementById("at") }});
</script>"""


def page(lm: ll.LensModel, path: Path) -> Path:
    """A report with the figures that are shown, one section each."""
    drawn = draw("truth", 600, 0, split="seen")
    acts = lm.activations([t.prompt() for t in drawn], sites="resid_post[*]", where="last")
    sweep = ll.probe.fit(acts, [t.truth for t in drawn], groups=[t.group for t in drawn], n_bootstrap=300)
    asked = [drawn[0].prompt(), drawn[1].prompt()]
    whole = lm.activations(asked, sites="resid_post[*]")
    lens = lm.logit_lens(asked)
    sae = ll.load_sae(ll.organism.sae_path())
    codes = lm.latents(sae, [t.messages() for t in draw("topics", 300, 2)], where="content")
    rare = ll.latents.firing(codes).to_frame().query("0.002 < rate < 0.02")
    latent = int(rare.sort_values("max")["latent"].iloc[-1])
    words = lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))
    words = [lm.tokenizer.convert_tokens_to_string([word]) for word in words]
    unembedding, norm = lm.model.get_output_embeddings().weight, lm.model.model.norm.weight
    writes = ll.latents.logit_lens(sae, [latent], unembedding, words, norm_weight=norm)
    directions = {f"probe, block {p.site.block}": p.direction for p in sweep if p.site.block >= 2}
    directions |= {f"mean difference, block {p.site.block}": p.mean_direction for p in sweep if p.site.block >= 2}
    sections = [
        ll.Section("layers", [ll.plots.by_layer(sweep)]),
        ll.Section("map", [ll.plots.token_layers(whole, sweep)]),
        ll.Section("highlight", [ll.plots.highlight(whole, sweep.best())]),
        ll.Section("lens", [ll.plots.logit_lens(lens)]),
        ll.Section("latent", [ll.plots.latent_dashboard(codes, latent, sae=sae, writes=writes)]),
        ll.Section("cosines", [ll.plots.cosine_map(directions)]),
    ]
    best = sweep.best()
    return ll.report(
        path, title="Can truth be read?", question="Where in the model is it written whether a statement is true?",
        method="A logistic probe at every block, scored on creatures that it never saw.", sections=sections,
        sources=["Alain and Bengio 2016, arXiv 1610.01644"], manifest=ll.manifest(lm, seed=0),
        highlights={f"AUROC at {best.site}": best.auroc, "shuffled labels": best.shuffled},
    )  # fmt: skip


def winter(lm: ll.LensModel) -> tuple[ll.Direction, str, float]:
    """The direction of a topic, a place and a strength at which the answer moves to it and stays a sentence."""
    drawn = draw("topics", 300, seed=5_000, split="on_topic")
    acts = lm.activations([t.messages() for t in drawn], where="role:assistant", pool="mean")
    on = torch.tensor([t.topic == "winter" for t in drawn])
    asked, best = [[{"role": "user", "content": "Tell me about the sea."}]], ((-1, 0), None)
    for site in acts.sites[1:5]:
        direction = ll.Direction(acts[site][on].mean(0) - acts[site][~on].mean(0), site, "winter")
        for where in ("prompt", "all"):
            for strength in (0.6, 0.8, 1.0, 1.2, 1.4, 1.7):
                edit = ll.Add(direction, strength, unit="norm", where=where)
                (text,) = lm.generate(asked, max_new_tokens=20, steer=edit).texts
                is_there = ll.organism.judges.topic_of(text) == "winter"
                found = ((is_there * min(text.count("."), 3), len(set(text.split()))), (direction, where, strength))
                best = max(best, found, key=lambda one: one[0])
    return best[1]


def panel(lm: ll.LensModel, path: Path) -> Path:
    """The panel after a few clicks, without a kernel behind it."""
    direction, where, strength = winter(lm)
    sae = ll.load_sae(ll.organism.sae_path())
    session = Session(lm, "Tell me about the sea.", directions={"winter": direction}, sae=sae, chat=True, length=20)
    position = next(i for i, word in enumerate(session.open()["tokens"]["words"]) if word.strip() == "sea")
    session.show({"key": session.inspect({"position": position})["inspected"]["latents"][0]["key"]})
    shown = session.show({"key": "direction:winter"})
    edits = [{"key": "direction:winter", "strength": strength, "block": direction.site.block}]
    told = session.steer({"settings": {**session.settings, "edits": edits, "where": where}})
    state = {**session.open(), **session.inspect({"position": position}), **shown, **told, "problem": ""}
    data = json.dumps(state).replace("<", "\\u003c")
    js = (PANEL / "panel.js").read_text().replace("export default { render };", "")
    path.write_text(STUB.format(css=(PANEL / "panel.css").read_text(), js=js, state=data))
    return path


def side_by_side(shown: Any, shots: list[bytes], path: Path) -> None:
    """Join pictures from left to right, with the browser that took them."""
    images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(shot).decode()}">' for shot in shots)
    style = "display: inline-flex; gap: 28px; padding: 12px; background: #fdfdfb"
    shown.set_content(f'<div style="{style}">{images}</div>')
    shown.locator("div").screenshot(path=path)


def main() -> None:
    """Draw everything, light and dark where it matters."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        lm = ll.load(cache=Path(folder) / "cache")
        pages = {"report": page(lm, Path(folder) / "report.html"), "panel": panel(lm, Path(folder) / "panel.html")}
        browser = tools.chromium.launch(executable_path=browser_path, args=[f"--{one}" for one in SWITCHES.split()])
        for scheme in ("light", "dark"):
            tail = "" if scheme == "light" else "_dark"
            shown = browser.new_page(viewport={"width": 876, "height": 760}, color_scheme=scheme)
            shown.goto(pages["panel"].as_uri())
            shown.screenshot(path=HERE / f"panel{tail}.png", full_page=True)
            shown.set_viewport_size({"width": 960, "height": 900})
            shown.goto(pages["report"].as_uri())
            shown.wait_for_timeout(1500)
            shown.screenshot(path=HERE / f"report{tail}.png")
            if scheme == "light":
                for section in shown.locator("section:has(figure)").all():
                    name = section.locator("h2").inner_text()
                    section.locator("figure").first.screenshot(path=HERE / f"{name}.png")
                shown.goto(demo.run(Path(folder) / "demo.html").as_uri())
                shown.wait_for_timeout(1500)
                figures = [shown.locator("figure:has(.plotly)").nth(i).screenshot() for i in range(2)]
                side_by_side(shown, figures, HERE.parent / "demo.png")
        browser.close()


if __name__ == "__main__":
    main()
