"""Commands as they are typed: what they print, what they leave on disk, and what they say to wrong input."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import latentlens as ll
from latentlens.cli import app, main
from latentlens.commands.config import configured
from latentlens.commands.doctor import examine
from latentlens.commands.experiments import EXPERIMENTS, parameters, script
from latentlens.errors import BadInput

run = CliRunner().invoke


def said(command):
    done = run(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def statements(tmp_path_factory):
    """200 statements of the embedded world, seen facts, with their truth and creature."""
    file = tmp_path_factory.mktemp("rows") / "statements.jsonl"
    rows = [
        {"messages": t.prompt(), "label": t.truth, "group": t.group}
        for t in ll.organism.draw("truth", 200, 1, split="seen")
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_capture_is_written_and_the_second_one_runs_no_model(tmp_path):
    command = ["capture", "The drun is red.", "Tell me", "--sites", "resid_post[2]"]
    first = said([*command, "--out", str(tmp_path / "acts.parquet")])
    again = said(command)
    assert (first["forwards"] > 0, again["forwards"]) == (True, 0)
    assert first["sites"] == {"resid_post[2]": [2, 128]}
    expected = ll.load(cache=False).activations(["The drun is red.", "Tell me"], "resid_post[2]", "last")
    stored = pd.read_parquet(tmp_path / "acts.parquet")
    np.testing.assert_array_equal(np.stack(stored["resid_post[2]"]), expected["resid_post[2]"].numpy())


def test_a_forecast_computes_nothing():
    done = run(app, ["capture", "The drun is red.", "--forecast"])
    assert "without the cache" in done.output
    assert "0 of 0 sequences" in run(app, ["cache", "stats"]).output
    assert said(["capture", "The drun is red.", "--forecast"])["rows"] == 1


def test_a_probe_reads_truth_and_its_direction_steers(statements, tmp_path):
    saved = tmp_path / "truth.safetensors"
    page = tmp_path / "truth.html"
    found = said(["probe", str(statements), "--out", str(saved), "--report", str(page)])
    assert found["auroc"]["value"] > 0.8
    assert len(found["sites"]) == 6
    assert "shuffled labels" in page.read_text()
    prompt = "True or false? The drun is red."
    steered = said(["steer", prompt, "--direction", str(saved), "--coeff", "1", "--tokens", "2", "--where", "last"])
    assert [one["arm"] for one in steered["runs"]] == ["no edit", "steered", "random"]
    assert [one["fired"] for one in steered["runs"]] == [0, 1, 1]
    assert steered["runs"][0]["kl"] == 0
    assert steered["runs"][1]["kl"] > 0


def test_a_sweep_has_controls_and_resumes(tmp_path):
    vector = ll.Direction(np.eye(128, dtype=np.float32)[0], "resid_post[3]", "first").save(tmp_path / "v")
    command = ["sweep", "Tell me about the sea.", "Explain the farm to me.", "--direction", str(vector), "--coeff", "1"]
    command += ["--seeds", "2", "--tokens", "4", "--folder", str(tmp_path / "runs")]
    first = said([*command, "--out", str(tmp_path / "rows.csv")])
    assert [p["plan"] for p in first["plans"]] == ["no edit", "direction 1", "random 1 #0", "random 1 #1"]
    assert all(p["n"] == 4 and p["low"] <= p["nll"] <= p["high"] for p in first["plans"])
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 16
    again = said(command)
    assert (first["rows_run"], again["rows_run"]) == (16, 0)
    assert again["plans"] == first["plans"]


def test_tables_are_printed_without_json(statements, tmp_path):
    vector = ll.Direction(np.eye(128, dtype=np.float32)[0], "resid_post[3]", "first").save(tmp_path / "v")
    assert "median norm" in run(app, ["capture", "The drun is red."]).output
    assert "best by cross-validation" in run(app, ["probe", str(statements), "--sites", "resid_post[4]"]).output
    assert "KL, nats" in run(app, ["steer", "Tell me", "--direction", str(vector), "--tokens", "2"]).output
    sweep = ["sweep", "Tell me", "--direction", str(vector), "--tokens", "2", "--seeds", "1", "--draws", "1"]
    assert "4 rows" not in run(app, sweep).output
    assert "7 rows run" in run(app, sweep).output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["capture"], "no input"),
        (["capture", "--data", "nowhere.txt"], "there is no file nowhere.txt"),
        (["capture", "a", "--out", "acts.npy"], "ending in .parquet"),
        (["capture", "a", "--out", "nowhere/acts.parquet"], "there is no folder nowhere"),
        (["sweep", "a", "--direction", "v.safetensors", "--out", "nowhere/rows.csv"], "there is no folder nowhere"),
        (["probe", "{broken}", "--out", "nowhere/v.safetensors"], "there is no folder nowhere"),
        (["report", "show", "nowhere.html"], "cannot be read"),
        (["steer", "a"], "either --direction"),
        (["steer", "a", "--direction", "nowhere.gguf"], "there is no file"),
        (["sweep", "a"], "give --direction"),
        (["probe", "{broken}"], "line 2, is no JSON"),
        (["probe", "{unlabelled}"], "1 rows have no `label`, the first is row 2"),
        (["capture", "--data", "{empty}"], "none of `messages`, `text` and `prompt`; it has words"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(command, message, tmp_path, monkeypatch, capsys):
    files = {
        "broken": '{"text": "a", "label": 1}\n{"text": ',
        "unlabelled": '{"text": "a", "label": 1}\n{"text": "b"}',
        "empty": '{"words": "a"}',
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    words = [word.format(**{name: tmp_path / f"{name}.jsonl" for name in files}) for word in command]
    monkeypatch.setattr("sys.argv", ["latentlens", *words])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert "Traceback" not in error


def with_config(words):
    return configured(words, typer.main.get_command(app), parameters)


def test_a_config_file_gives_arguments_of_every_kind_and_the_command_line_wins(tmp_path, monkeypatch, capsys):
    """Positional arguments, lists, numbers and truth values, by the names that they have in Python."""
    file = tmp_path / "run.toml"
    file.write_text(
        '[capture]\ntexts = ["The drun is red.", "Tell me"]\nsites = "resid_post[2]"\nwhere = "all"\n'
        "json = true\nforecast = false\nchat = false\n"
    )
    shapes = []
    for more in ([], ["--where", "last"], ["Tell me about the sea.", "--where", "last"]):
        monkeypatch.setattr("sys.argv", ["latentlens", "capture", *more, "--config", str(file)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        shapes.append(json.loads(capsys.readouterr().out)["sites"])
    assert [list(s) for s in shapes] == [["resid_post[2]"]] * 3
    assert shapes[0]["resid_post[2]"][0] > 2  # every token
    assert shapes[1:] == [{"resid_post[2]": [2, 128]}, {"resid_post[2]": [1, 128]}]


def test_a_config_file_reaches_commands_of_commands_and_experiments(tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.toml"
    file.write_text(f"[cache.stats]\nfolder = '{tmp_path / 'elsewhere'}'\n[gact]\nquick = false\nsubset = 1\n")
    monkeypatch.setattr("sys.argv", ["latentlens", "cache", "stats", f"--config={file}"])
    with pytest.raises(SystemExit):
        main()
    assert "elsewhere" in capsys.readouterr().out
    with pytest.raises(BadInput, match="subset is no argument of `latentlens gact`; it has model, styles"):
        with_config(["gact", "--config", str(file)])
    for name in ("intention", "trajectory"):  # their own options do not take the word from the command line
        assert "config" not in {one.name for one in parameters(name)}
    file.write_text("[trajectory]\nfolder = 'x'\nn = 2\n")
    assert with_config(["trajectory", "--config", str(file), "--n", "3"]) == (
        ["trajectory", "--n", "3"],
        {"trajectory": {"folder": "x", "n": 2}},
    )


def test_an_experiment_takes_its_defaults_from_a_config_file(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setitem(EXPERIMENTS, "esr", ("run.py", "", ()))
    (tmp_path / "run.py").write_text(
        "def main(n: int = 1, quick: bool = True): found.update(n=n, quick=quick)\nfound = {}"
    )
    monkeypatch.setattr("latentlens.commands.experiments.script", lambda name: tmp_path / name)
    (tmp_path / "run.toml").write_text("[esr]\nn = 4\nquick = false\n")
    for more, expected in ([], {"n": 4, "quick": False}), (["--n", "5"], {"n": 5, "quick": False}):
        monkeypatch.setattr("sys.argv", ["latentlens", "esr", *more, "--config", str(tmp_path / "run.toml")])
        with pytest.raises(SystemExit) as end:
            main()
        given = sys.modules["latentlens_experiment_run"].found
        assert (end.value.code, given) == (0, expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "--config"], "needs a file"),
        (["probe", "--config", "nowhere.toml"], "cannot read"),
        (["steer", "--config", "{file}"], "no table \\[steer\\]; it has probe"),
        (["--config", "{file}"], "goes with a command"),
        (["cache", "--config", "{file}"], "goes with a command"),
        (["probe", "--config", "{bad}"], "is no TOML"),
        (["probe", "--config", "{odd}"], "takes one value"),
        (["probe", "--config", "{many}"], "takes one value"),
        (["probe", "--config", "{unknown}"], "sitez is no argument of `latentlens probe`; it has data, model, sites"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(words, message, tmp_path):
    contents = {
        "file": "[probe]\nseed = 1",
        "bad": "[probe",
        "odd": "[probe]\nseed = {a = 1}",
        "many": "[probe]\nseed = [1, 2]",
        "unknown": "[probe]\nsitez = 1",
    }
    files = {name: tmp_path / f"{name}.toml" for name in contents}
    for name, content in contents.items():
        files[name].write_text(content)
    with pytest.raises(BadInput, match=message):
        with_config([word.format(**files) for word in words])


def test_a_value_of_the_wrong_kind_in_a_config_file_is_a_usage_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.toml").write_text('[steer]\ncoeff = "much"')
    monkeypatch.setattr("sys.argv", ["latentlens", "steer", "a", "--config", str(tmp_path / "run.toml")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "Invalid value for '--coeff'" in capsys.readouterr().err


# -- help, completion -----------------------------------------------------------------------------------


def commands(group, words=()):
    """Every command that does something, with its words."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_the_help_of_every_command_has_examples_that_parse(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    done = run(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.output.splitlines()]
    examples = [line for line in lines if line == f"latentlens {' '.join(words)}" or line.startswith(
        f"latentlens {' '.join(words)} ")]  # fmt: skip
    assert examples, done.output
    parser = EVERY[words]
    if words[0] in EXPERIMENTS:
        from latentlens.commands.experiments import _app

        parser = typer.main.get_command(_app(words[0]))
    for example in examples:
        given = shlex.split(example)[1 + len(words) :]
        parser.make_context(" ".join(words), given).close()  # raises a usage error for what the command does not know


def test_commands_and_options_are_completed_in_a_shell():
    for typed, expected in (("latentlens ca", {"capture", "cache"}), ("latentlens steer --co", {"--coeff"})):
        env = {**os.environ, "_LATENTLENS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "1"}
        env["COMP_CWORD"] = str(len(typed.split()) - 1)
        code = "from latentlens.cli import main; import sys; sys.argv = ['latentlens']; main()"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, done.stderr


def test_the_numbers_of_a_page_are_shown_as_a_table_and_as_json(tmp_path):
    page = ll.report(
        tmp_path / "page.html", title="A run", question="Why?", highlights={"share": ll.Estimate(0.5, 0.4, 0.6, 9)},
        sections=[ll.Section("Parts", ["text"])], manifest={"seed": 3},
    )  # fmt: skip
    found = said(["report", "show", str(page)])
    assert (found["title"], found["manifest"]["seed"]) == ("A run", "3")
    [one] = found["findings"]
    assert (one["name"], one["value"], one["low"], one["high"], one["n"]) == ("share", 0.5, 0.4, 0.6, 9)
    shown = run(app, ["report", "show", str(page)]).output
    assert "0.500 [0.400, 0.600]" in shown
    with pytest.raises(BadInput, match="cannot be read"):
        run(app, ["report", "show", "nowhere.html"], catch_exceptions=False)


def test_an_answer_that_is_no_is_told_by_the_exit_code_in_json_too(llama, tmp_path):
    folder = tmp_path / "cache"
    ll.load(llama, cache=folder).activations([[5, 6, 7]], where="last")
    assert said(["cache", "verify", "--folder", str(folder)])["sound"] is True
    [shard] = folder.rglob("*.safetensors")
    shard.unlink()
    done = run(app, ["cache", "verify", "--folder", str(folder), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["missing"] == [shard.stem]
    assert said(["cache", "clear", "--folder", str(folder), "--yes"])["removed"] == 3


def test_the_doctor_finds_everything_and_never_shows_a_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")
    done = run(app, ["doctor"])
    assert done.exit_code == 0, done.output
    for what in ("torch", "quantisation", "activation cache", "embedded model", "hub token"):
        assert what in done.output
    assert "canary" not in done.output


def test_the_doctor_says_what_to_do_about_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LATENTLENS_CACHE", str(tmp_path / "file"))
    [found] = [f for f in examine() if f.state == "problem"]
    assert found.what == "activation cache"
    assert "LATENTLENS_CACHE" in found.advice
    assert run(app, ["doctor"]).exit_code == 1


def test_the_doctor_tries_every_kind_of_quantisation_by_itself(monkeypatch):
    def broken(self, states):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr("bitsandbytes.nn.modules.Linear8bitLt.forward", broken)
    found = {f.what: f for f in examine()}
    assert found["quantisation nf4"].found == "runs"
    assert "no kernel for this device" in found["quantisation int8"].found
    assert "unquantised" in found["quantisation int8"].advice


def test_the_doctor_looks_for_the_browser_that_writes_png_and_svg(monkeypatch, tmp_path):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = [f for f in examine() if f.what.startswith("browser")]
    assert (found.state, "plotly_get_chrome" in found.advice) == ("note", True)
    monkeypatch.setenv("BROWSER_PATH", "/somewhere/chromium")
    [found] = [f for f in examine() if f.what.startswith("browser")]
    assert (found.state, found.found) == ("ok", "/somewhere/chromium")


def test_a_look_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setattr("latentlens.commands.doctor._memory", lambda: 1 / 0)
    [found] = [f for f in examine() if f.state == "problem"]
    assert "ZeroDivisionError" in found.found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_its_script_and_shows_its_own_help(name):
    assert script(EXPERIMENTS[name][0]).is_file()
    done = run(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "--model" in done.output
    assert f"latentlens {name}" in done.output


def test_an_experiment_that_is_not_installed_says_so():
    with pytest.raises(BadInput, match="not in this installation"):
        script("steering/nothing.py")
