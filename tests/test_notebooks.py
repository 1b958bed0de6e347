"""The notebooks run, define nothing, tell one story each, and their executed copies are what the scripts say."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="pip install 'latentlens[dev]' runs the notebooks")
nbformat = pytest.importorskip("nbformat", reason="pip install 'latentlens[dev]' runs the notebooks")
pytest.importorskip("nbclient", reason="pip install 'latentlens[dev]' runs the notebooks")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))


def execute():
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cells(book, kind):
    return [cell for cell in book.cells if cell.cell_type == kind]


def executed(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def name(source):
    return source.stem


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_notebook_runs_in_two_minutes(source):
    script = execute()
    book, seconds = script.run(source, pictures=False)  # raises what a cell raises
    assert seconds < script.SECONDS
    for cell in cells(book, "code"):
        assert not any(out.output_type == "error" for out in cell.outputs)


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_the_executed_copy_is_of_this_script(source):
    ours, theirs = jupytext.read(source), executed(source)
    assert [(c.cell_type, c.source) for c in ours.cells] == [(c.cell_type, c.source) for c in theirs.cells], (
        "make notebooks writes it anew"
    )


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_the_executed_copy_is_small_whole_and_has_pictures(source):
    script, book = execute(), executed(source)
    assert source.with_suffix(".ipynb").stat().st_size < script.LIMIT
    shown = 0
    for cell in cells(book, "code"):
        kinds = {kind for out in cell.outputs for kind in out.get("data", {})}
        assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in cell.outputs)
        assert script.WIDGET not in kinds
        assert not (kinds and "hub" in cell.metadata.get("tags", []))
        shown += bool(kinds & {"image/svg+xml", "text/html"})
    assert shown >= 3


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_notebook_defines_nothing_and_marks_what_needs_a_hub(source):
    for cell in cells(jupytext.read(source), "code"):
        tree = ast.parse(cell.source)
        defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
        assert not defined, cell.source
        assert cell.source.startswith("# needs a hub") == ("hub" in cell.metadata.get("tags", []))


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_notebook_uses_public_names_only(source):
    """`import latentlens as ll`, and what stands behind it; so a reader can copy any line."""
    import latentlens as ll

    for cell in cells(jupytext.read(source), "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "latentlens", ast.unparse(node)
            if isinstance(node, ast.Import):
                assert not [n.name for n in node.names if n.name.startswith("latentlens.")], ast.unparse(node)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("ll", "ll.organism", "ll.resistance"):
                owner = ll if ast.unparse(node.value) == "ll" else getattr(ll, ast.unparse(node.value)[3:])
                assert node.attr in owner.__all__, ast.unparse(node)


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_every_link_of_a_notebook_leads_somewhere(source):
    for cell in cells(jupytext.read(source), "markdown"):
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert target.startswith("http") or (FOLDER / target).exists(), target


def test_the_first_picture_comes_after_five_lines():
    first = cells(jupytext.read(FOLDER / "01_first_look.py"), "code")[0].source.splitlines()
    assert len([line for line in first if line.strip() and not line.startswith("import")]) <= 5
    assert "image/svg+xml" in cells(executed(FOLDER / "01_first_look.py"), "code")[0].outputs[-1].data
