"""The panel in a real JupyterLab: run the cell, click a token, move a slider, see the text change."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from contrasts import CONTRASTS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = ("jupyterlab", "anywidget", "playwright")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None] + ([] if BROWSER else ["chromium"])
SWITCHES = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: the panel is not opened in a browser"),
]

EVIL = "<img src=x onerror=window.pwned=1>"
SOURCE = f"""\
import torch
import latentlens as ll

lm = ll.load()
draw = torch.Generator().manual_seed(0)
push = ll.Direction(torch.randn(lm.layout.d_model, generator=draw), "resid_post[3]")
lm.explore("Tell me about the sea.", directions={{"push": push, {EVIL!r}: push.scaled_to(2.0)}}, chat=True, length=16)
"""


def notebook(source):
    cell = {"cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [], "source": source}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that serves one notebook."""
    home = tmp_path_factory.mktemp("lab")
    (home / "panel.ipynb").write_text(json.dumps(notebook(SOURCE)))
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"), "IPYTHONDIR": str(home / "ipython"),
        "LATENTLENS_CACHE": str(home / "cache"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={home}",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (home / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/panel.ipynb?token=t&reset"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=[f"--{switch}" for switch in SWITCHES.split()])
        shown = browser.new_page(viewport={"width": 1300, "height": 1300})
        shown.set_default_timeout(300_000)
        shown.goto(lab)
        shown.click(".jp-CodeCell .cm-content")
        shown.keyboard.press("Shift+Enter")
        shown.wait_for_selector(".llp-token")
        yield shown
        browser.close()


STEERED = ".llp-run[data-side='steered'] .llp-written"


def written(page, side):
    return page.inner_text(f".llp-run[data-side='{side}'] .llp-written")


def test_the_text_is_there_as_tokens_and_a_click_looks_inside(page):
    words = page.locator("button.llp-token").all_inner_texts()
    assert "Tell" in words
    assert "sea" in [word.strip() for word in words]
    page.click("button.llp-token[data-position='4']")
    page.wait_for_selector(".llp-inspected table")
    assert page.get_attribute("button.llp-token[data-position='4']", "aria-pressed") == "true"
    inside = page.inner_text(".llp-inspected")
    assert "push" in inside
    assert "resid_post[5]" in inside
    assert "embedding" in inside


def test_moving_a_slider_changes_what_is_written(page):
    page.click(".llp-main")
    page.wait_for_selector(".llp-run")
    before = written(page, "unsteered")
    assert written(page, "steered") == before  # no slider has moved
    page.locator(".llp-strength").first.fill("2.5")
    page.wait_for_function(f"before => document.querySelector(`{STEERED}`).innerText !== before", arg=before)
    assert written(page, "unsteered") == before
    assert "KL to the unsteered model" in page.inner_text(".llp-readings")
    page.click(".llp-codebox summary")
    code = page.inner_text(".llp-code")
    assert """ll.Add(directions['push'], 2.5, unit="norm", where='all')""" in code
    page.locator(".llp-block").first.fill("1")  # the other slider: another block
    page.wait_for_function("() => document.querySelector('.llp-code').textContent.includes('resid_post[1]')")


def test_a_click_on_a_name_colours_the_tokens_by_it(page):
    page.click(".llp-item .llp-name >> nth=0")
    page.wait_for_selector(".llp-item.llp-chosen")
    page.wait_for_function(
        "() => [...document.querySelectorAll('button.llp-token')].some(t => t.style.background.includes('rgba'))"
    )
    assert "Coloured by push" in page.inner_text(".llp")


def test_a_contrast_typed_into_the_search_is_pinned_and_another_text_is_read(page):
    page.fill(".llp-search", "the sea - the winter")
    page.click(".llp-hit:has-text('the sea - the winter')")
    page.wait_for_selector(".llp-item:has-text('the sea - the winter')")
    page.fill(".llp-text", EVIL)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.llp-tokens').innerText.includes('img')")
    assert page.locator(".llp-run").count() == 0


def test_nothing_that_was_typed_or_written_came_alive(page):
    assert page.evaluate("() => window.pwned") is None
    assert page.locator(".llp img, .llp script, .llp iframe, .llp a").count() == 0
    assert EVIL in page.inner_text(".llp-items")
    names = page.evaluate("() => [...document.querySelectorAll('.llp *')].flatMap(e => e.getAttributeNames())")
    assert not [name for name in names if name.startswith("on")]


def test_a_mistake_is_said_in_words(page):
    page.fill(".llp-how input[aria-label='temperature']", "-1")
    page.keyboard.press("Tab")
    page.wait_for_selector(".llp-problem:not([hidden])")
    assert "must be 0 (greedy) or more" in page.inner_text(".llp-problem")


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_everything_can_be_read_in_every_theme(page, theme):
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    page.fill(".llp-how input[aria-label='temperature']", "0")
    page.click("button.llp-token[data-position='3']")
    page.click(".llp-main")
    page.wait_for_selector(".llp-run")
    page.wait_for_function("() => !document.querySelector('.llp-waiting')")
    contrasts = page.evaluate(CONTRASTS, ".llp *")
    assert len(contrasts) > 60
    if folder := os.environ.get("LATENTLENS_SHOTS"):  # to be looked at
        page.screenshot(path=f"{folder}/panel {theme}.png")
    low = [one for one in contrasts if one[2] < 4.5]
    assert not low, low[:8]
