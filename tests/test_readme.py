"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"## (\w+)\n+```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_every_python_block_runs_as_it_stands(title, code):
    exec(compile(code, f"README.md: {title}", "exec"), {})


def test_the_two_commands_are_targets_and_ci_runs_one_of_them():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_file_that_the_documents_link_to_exists():
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        document = ROOT / name
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{name}: {target}"


def test_the_examples_of_the_docstrings_hold():
    import doctest

    from latentlens.access import batching, capture
    from latentlens.access.store import cache_keys
    from latentlens.values import results, schedules, sites, visible, where

    for module in (batching, cache_keys, capture, results, schedules, sites, where, visible):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0, module.__name__
        assert outcome.failed == 0, module.__name__
