"""The house rules of docs/design.md, read from the source with `ast`."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "latentlens"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room may import from itself and from the rooms listed.
FLOORS = {
    "errors": set(),
    "maths": {"errors"},
    "values": {"maths", "errors"},
    "organism": {"values", "maths", "errors"},
    "access": {"values", "maths", "errors", "organism"},
    "methods": {"values", "maths", "errors"},
    "views": {"access", "methods", "values", "maths", "errors", "organism"},
    "organism_saes": {"access", "methods", "values", "maths", "errors", "organism"},
    "protocols": {"access", "methods", "values", "maths", "errors", "organism"},
    "resistance": {"access", "methods", "values", "maths", "errors", "organism"},
    "demo": {"views", "access", "methods", "values", "maths", "errors", "organism"},
    "commands": {"views", "access", "methods", "values", "maths", "errors", "organism"},
    "cli": {"commands", "demo", "views", "access", "methods", "values", "maths", "errors", "organism", "organism_saes"},
    "__main__": {"cli"},
    "__init__": {"views", "access", "methods", "values", "maths", "errors", "organism"},  # lazily
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
# module -> the files (or rooms, with a slash at the end) that may import it, and never at the top
ADAPTED = {
    "transformers": {"access/loading.py", "organism/train.py", "organism/tokenizer.py"},
    "transformer_lens": {"access/transformer_lens.py"},
    "gguf": {"access/formats/gguf.py"},
    "sae_lens": {"access/saes/sae.py", "access/saes/sae_training.py"},
    "bitsandbytes": {"access/quantisation.py"},
    "ray": set(),
    "peft": {"access/measures/finetune.py"},
    "plotly": {"views/"},
    "anywidget": {"views/panel/panel.py"},
    "traitlets": {"views/panel/panel.py"},
}
# The one step up, inside a function that is run when it is called: `lm.explore` is where people look for the panel.
# Nothing of a view is loaded by loading a model.
STEPS_UP = {("access/model.py", "latentlens.views.panel.panel.explore")}
OPENS_PICKLES = ("pickle.load", "joblib.load", "dill.load", "torch.load", "np.load", "numpy.load")


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, top_only: bool = False) -> list[str]:
    """Imported modules, those for type checkers left out (they never run)."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    found = []
    for node in ast.walk(tree(file)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: write absolute imports"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down_only(file):
    allowed = FLOORS[room(file)] | {room(file)}
    for module in imports(file):
        if module.split(".")[0] != "latentlens" or (name_of(file), module) in STEPS_UP:
            continue
        parts = module.split(".")
        assert len(parts) > 1, f"{name_of(file)} imports the package root"
        target = parts[1]
        if room(file) == "access" and target == "organism":
            assert file.name == "model.py", "only load() may know the embedded model"
        assert target in allowed, f"{name_of(file)} ({room(file)}) imports {module}"


def test_a_step_up_is_taken_when_it_is_called_and_no_sooner():
    for name, module in STEPS_UP:
        assert module in imports(PACKAGE / name)
        assert module not in imports(PACKAGE / name, top_only=True)


def test_no_method_imports_another():
    for file in (PACKAGE / "methods").glob("*.py"):
        others = [m for m in imports(file) if m.startswith("latentlens.methods.")]
        assert not others, f"{file.name} imports {others}"


def test_there_are_no_import_cycles_between_files():
    modules = {".".join(("latentlens", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in FILES}
    graph = {}
    for module, file in modules.items():
        found = set()
        for name in imports(file):
            if (name_of(file), name) in STEPS_UP:
                continue
            if name in modules:
                found.add(name)
            elif name.rpartition(".")[0] in modules:
                found.add(name.rpartition(".")[0])
        graph[module] = found - {module}
    state: dict[str, int] = {}

    def visit(module, path):
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, f"cycle: {' -> '.join([*path, module])}"
        state[module] = 1
        for target in graph[module]:
            visit(target, [*path, module])
        state[module] = 2

    for module in graph:
        visit(module, [])


def test_hooks_are_registered_in_one_file():
    calls = {
        name_of(f)
        for f in FILES
        for node in ast.walk(tree(f))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and "hook" in node.attr
    }
    assert calls == {"access/hooks.py"}


@pytest.mark.parametrize("module", ADAPTED)
def test_heavy_libraries_are_imported_where_they_are_adapted_and_when_they_are_used(module):
    for file in FILES:
        if any(name.split(".")[0] == module for name in imports(file)):
            places = {name_of(file), f"{room(file)}/"}
            assert places & ADAPTED[module], f"{name_of(file)} imports {module}"
        top = [name for name in imports(file, top_only=True) if name.split(".")[0] == module]
        assert not top, f"{name_of(file)} imports {module} at the top"


def test_nothing_imports_the_repository_around_the_package():
    for file in FILES:
        outside = {m.split(".")[0] for m in imports(file)} & {"probes", "steering", "notebooks", "tests", "benchmarks"}
        assert not outside, f"{name_of(file)} imports {outside}"


def test_no_file_opens_a_pickle():
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENS_PICKLES:
                if "weights_only=True" in ast.unparse(node):
                    continue
                raise AssertionError(f"{name_of(file)}:{node.lineno} calls {ast.unparse(node.func)}")
        assert not {"pickle", "joblib", "dill", "cloudpickle", "shelve"} & {m.split(".")[0] for m in imports(file)}


def test_files_are_one_idea_each():
    for file in FILES:
        assert file.stem not in FORBIDDEN_NAMES, name_of(file)
        lines = len(file.read_text().splitlines())
        assert lines <= 470, f"{name_of(file)} has {lines} lines: split it"


def test_every_error_is_named_in_one_file():
    for file in FILES:
        for node in ast.walk(tree(file)):
            bases = [ast.unparse(b) for b in node.bases] if isinstance(node, ast.ClassDef) else []
            if any("Error" in base or "Exception" in base for base in bases):
                assert file.name == "errors.py" or node.name == "StopForward", f"{name_of(file)}: {node.name}"


LIGHT = ("torch", "transformers", "numpy", "pandas", "plotly", "sklearn", "datasets", "scipy", "sae_lens")


@pytest.mark.parametrize("command", ["import latentlens, latentlens.organism", "import latentlens.cli"])
def test_importing_the_package_or_its_command_line_loads_nothing_heavy(command):
    code = f"import sys; {command}; print([m for m in {LIGHT!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_shown_without_loading_anything_heavy():
    code = (
        "import sys; sys.argv = ['latentlens', '--help']\n"
        "from latentlens.cli import main\n"
        "try: main()\n"
        f"except SystemExit as end: print(end.code, [m for m in {LIGHT!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stdout.strip().endswith("0 []")


def test_every_public_name_resolves_and_completes():
    import latentlens as ll

    for name in ll.__all__:
        assert getattr(ll, name) is not None
        assert name in dir(ll)
    with pytest.raises(AttributeError, match="it has"):
        ll.nonsense  # noqa: B018
