"""The documentation site builds strictly, names everything public, and its code runs."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import latentlens

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Blocks of other tools that are not installed here are compiled only, and so is what says that it needs more.
ABSENT = ("nnsight", "repeng")
NEEDS = ("# needs a hub", "# needs a browser")
FENCE = re.compile(r"^```(python[^\n]*)\n(.*?)^```$", re.S | re.M)
RUN = sorted(page.stem for page in DOCS.glob("*.md") if FENCE.search(page.read_text()))


def script(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = FENCE.findall((DOCS / f"{page}.md").read_text())
    names = {}
    for kind, code in found:
        compiled = compile(code, f"docs/{page}.md", "exec")
        if not code.startswith(NEEDS) and not any(tool in kind for tool in ABSENT):
            exec(compiled, names)
    if page == "coming_from":  # side by side means equal
        h, theirs = names["h"], names["their_h"]
        assert (h - theirs).abs().max() < 1e-5 * h.abs().max()
        assert names["their_text"].endswith(names["runs"].texts[0])
        assert names["runs"].texts != names["lm"].generate(names["text"], 12).texts


def test_every_name_in_the_code_of_all_pages_is_public():
    for file in DOCS.rglob("*.md"):
        for kind, code in FENCE.findall(file.read_text()):
            for name in re.findall(r"\bll\.(\w+)", code):
                assert name in latentlens.__all__, f"{file.name}: ll.{name} ({kind})"


def test_every_figure_stands_in_the_table_of_figures_with_its_question():
    table = [line for line in (DOCS / "looking.md").read_text().splitlines() if line.startswith("| ")]
    for name in latentlens.plots.__all__:
        assert any(f"`ll.plots.{name}(" in line for line in table), name


def methods():
    """Pages of the navigation's part on methods."""
    listed = re.search(r'"Methods" = \[(.*?)\n  \]', (ROOT / "zensical.toml").read_text(), re.S)[1]
    return re.findall(r'= "(\w+)\.md"', listed)


@pytest.mark.parametrize("page", methods())
def test_every_method_says_what_it_measures_how_to_read_it_how_it_fools_and_what_the_paper_left_out(page):
    text = (DOCS / f"{page}.md").read_text()
    headings = " ".join(re.findall(r"^## (.*)$", text, re.M))
    for asked in ("What is measured|Operations", "How to read it", "How it fools you", "What the papers? .*left"):
        assert re.search(asked, headings), f"{page}: no section on {asked!r}; it has {headings}"
    assert re.search(r"^    \S.*(=|\|\|)|\| formula \|", text, re.M), f"{page}: no formula"
    assert re.search(r"```python|^    \w+ = ll\.|lm\.generate\(", text, re.M), f"{page}: nothing to run"


# -- the site -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason="pip install 'latentlens[docs]' builds the site")
    pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'latentlens[docs]' builds the site")
    folder = tmp_path_factory.mktemp("site")
    (folder / "build").mkdir()
    script("pages").write(folder / "build" / "docs")
    config = (ROOT / "zensical.toml").read_text()
    config = config.replace('paths = ["."]', f'paths = ["{ROOT}"]')
    config = config.replace('"docs/docstrings.py"', f'"{DOCS / "docstrings.py"}"')
    (folder / "zensical.toml").write_text(config)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)[-4000:]
    return folder / "build" / "site"


def test_the_reference_shows_every_public_name_once(site):
    shown = []
    for page in (site / "reference").glob("*.html"):
        shown += re.findall(r'doc-symbol-heading doc-symbol-\w+"></code>\s+ll\.(\w+)', page.read_text())
    assert sorted(shown) == latentlens.__all__


def test_every_page_is_in_the_navigation(site):
    config = (ROOT / "zensical.toml").read_text()
    pages = {p.relative_to(site).as_posix().removesuffix(".html") for p in site.rglob("*.html")} - {"404"}
    listed = sorted(name.removesuffix(".md") for name in re.findall(r'= "([\w/]+\.md)"', config))
    assert sorted(pages) == listed  # each of them once


def test_an_opened_page_fetches_nothing(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            fetched = re.search(r'(?:src|href)="(https?:)?//', tag)
            assert not fetched or 'rel="canonical"' in tag, f"{page.name}: {tag}"


def test_search_works_in_pages_opened_from_a_disk(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    asked = []
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.wait_for_timeout(500)
        page.keyboard.press("Control+k")
        page.wait_for_timeout(500)
        page.keyboard.type("median norm")
        page.get_by_text("Choosing a strength").last.wait_for(timeout=60_000)
        opened.close()
    assert not [url for url in asked if not url.startswith("file:")]


def test_a_link_to_nowhere_is_an_error():
    pages = script("pages")
    with pytest.raises(LookupError, match="does not exist"):
        pages.linked("[here](nowhere.ipynb)", "docs/index.md", pages.documents())
    assert pages.linked("[x](../CONTRIBUTING.md#add-a-method)", "docs/design.md", pages.documents()) == (
        "[x](contributing.md#add-a-method)"
    )
    assert pages.linked("[x](../Makefile)", "docs/design.md", pages.documents()) == "x"


def test_a_page_shows_a_picture_of_a_notebook_or_says_that_it_is_missing(tmp_path):
    pages = script("pages")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_x_0.svg").touch()
    shown = pages.illustrated("<!-- picture 01_x 0: A\nline. -->", "methods/a.md", tmp_path)
    assert shown.startswith("![A line.](../notebooks/01_x_0.svg)")
    with pytest.raises(LookupError, match="picture 1 of notebook 01_x"):
        pages.illustrated("<!-- picture 01_x 1: B. -->", "a.md", tmp_path)


def test_code_that_is_indented_in_a_document_gets_its_language():
    fenced = script("pages").fenced
    assert fenced("# A\n\n    lm.check()\n\nB\n") == "# A\n\n```python\nlm.check()\n```\n\nB\n"
    assert fenced("A\n\n    make docs\n") == "A\n\n```bash\nmake docs\n```\n"
    assert fenced("A\n\n    h + c v\n") == "A\n\n    h + c v\n"


# -- docstrings -----------------------------------------------------------------------------------


def modules_with_examples():
    found = []
    for module in pkgutil.walk_packages(latentlens.__path__, "latentlens."):
        file = Path(importlib.util.find_spec(module.name).origin)
        if re.search(r"^\s*>>> ", file.read_text(), re.M):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_the_docstrings_hold(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0, name


def test_the_house_style_of_docstrings_becomes_markdown():
    pytest.importorskip("griffe", reason="pip install 'latentlens[docs]' reads the docstrings")
    docstrings = script("docstrings")
    assert doctest.testmod(docstrings).failed == 0
    text = "A thing.\n\ncoeff: c. unit: of c\n    or of d.\n\nRaises: BadInput: no.\n    TooFew: few."
    assert docstrings.markdown("a[0][1] and `a[0][1]`\n\n>>> a[0][1]\n2").splitlines() == [
        "a[0]\\[1] and `a[0][1]`", "", "```pycon", ">>> a[0][1]", "2", "```",
    ]  # fmt: skip
    assert docstrings.markdown(">>> 1 + 1\n2\n\nTwo.") == "```pycon\n>>> 1 + 1\n2\n```\n\nTwo."
    assert docstrings.markdown(text, {"coeff", "unit"}).splitlines() == [
        "A thing.", "", "- `coeff`: c.", "- `unit`: of c", "    or of d.", "",
        "**Raises** BadInput: no.", "TooFew: few.",
    ]  # fmt: skip
