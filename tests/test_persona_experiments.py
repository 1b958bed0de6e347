"""The persona experiments run from one command, small; a second run writes nothing again."""

import contextlib
import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import latentlens as ll
from latentlens.organism import personas

ROOT = Path(__file__).parent.parent / "steering"


def run(name, *options, cwd, **env):
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, options)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "LATENTLENS_CACHE": str(cwd / "c"), **env}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "persona_vectors",
            ["--only", "formal,hostile", "--samples", 1, "--coefs", "3"],
            ["TraitDoses(hostile", "rises at every", "above random", "answers alone", "what the vector does"],
        ),
        (
            "persona_training",
            ["--rows", 24, "--steps", 4, "--strengths", "3", "--coefs", "3"],
            ["100% formal, +3", "screening"],
        ),
        ("assistant_axis", ["--samples", 1, "--turns", 2], ["cap on the role", "AUROC"]),
        (
            "soul_engine",
            ["--characters", 14, "--each", 3, "--excerpts", 3, "--joined", 2, "--coefs", "1"],
            ["identity", "alone"],
        ),
    ],
)
def test_an_experiment_runs_and_resumes(name, options, words, tmp_path):
    first = run(name, *options, "--folder", "out", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    assert all(word in re.sub(r"\s+", " ", first.stdout) for word in words), first.stdout
    kept = list(tmp_path.rglob("rows.jsonl"))
    before = {p: p.read_bytes() for p in kept}
    assert before
    if name == "assistant_axis":  # two conversations a question: their openings differ
        talks = [json.loads(line) for line in (tmp_path / "out" / "talks" / "rows.jsonl").read_text().splitlines()]
        opening = [(row["prompt"], row["text"]) for row in talks if row["prompt"].count("<|assistant|>") == 1]
        assert len({prompt for prompt, _ in opening}) == 15
        assert len(set(opening)) >= 29
    second = run(name, *options, "--folder", "out", cwd=tmp_path)
    assert {p: p.read_bytes() for p in kept} == before  # nothing was written again
    assert second.stdout == first.stdout
    assert (tmp_path / "out" / f"{name}.html").stat().st_size > 10_000


@contextlib.contextmanager
def rule_server():
    """An OpenAI-compatible judge that scores by the embedded model's own rules, with logprobs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][0]["content"]
            tag = re.search(r"\[[0-9a-f]{8}\]", text)[0]
            parts = text.split(tag)
            case = ll.Case(parts[1].strip(), parts[3].strip())
            trait = re.search(r"Trait: (\w+)", text)
            score = personas.percent(trait[1])(case) if trait else personas.coherence(case)
            top = [{"token": str(round(score)), "logprob": math.log(0.9)}]
            raw = json.dumps(
                {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": top}]}}]}
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(raw.encode())

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1"
    finally:
        made.shutdown()


@pytest.mark.slow
def test_any_model_with_a_trait_file_and_a_server_as_judge(tmp_path):
    trait = personas.trait("formal")
    ll.Trait(
        "formal", "says duly", trait.pairs[:2], trait.questions[:3], trait.evaluation[:3], template="{instruction}"
    ).save(tmp_path / "formal.json")
    options = [
        "--model",
        ll.organism.path(),
        "--traits",
        "formal.json",
        "--samples",
        1,
        "--coefs",
        "3",
        "--judge",
        "rule",
    ]
    with rule_server() as url:
        done = run("persona_vectors", *options, "--judge-url", url, cwd=tmp_path, OPENAI_API_KEY="sk-canary-77")
        assert done.returncode == 0, done.stderr[-2000:]
    assert "TraitDoses(formal" in done.stdout
    again = run("persona_vectors", *options, "--judge-url", url, cwd=tmp_path, OPENAI_API_KEY="sk-canary-77")
    assert again.returncode == 0, again.stderr[-2000:]  # the server is gone: every verdict was kept
    assert again.stdout == done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-canary-77" not in path.read_bytes()


def trait_files(folder):
    for name in ("formal", "hostile"):
        trait = personas.trait(name)
        pairs, questions = (trait.pairs[0], trait.pairs[-1]), (trait.questions[:4], trait.evaluation[:4])
        ll.Trait(name, "", pairs, *questions, template="{instruction}").save(folder / f"{name}.json")
    return ["--traits", "formal.json", "--traits", "hostile.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("assistant_axis", ["--samples", 1, "--turns", 2], "cap on the role"),
        ("persona_training", ["--rows", 12, "--steps", 3, "--strengths", "3", "--coefs", "3"], "100% formal, +3"),
        ("soul_engine", ["--characters", 14, "--each", 2, "--excerpts", 3, "--joined", 2, "--coefs", "2", "--wanted",
                         "formal,hostile"], "heads on characters they never saw"),
    ],
)  # fmt: skip
def test_every_persona_experiment_runs_on_any_model_with_trait_files_and_a_judge(name, options, word, tmp_path):
    files = trait_files(tmp_path)
    if name == "persona_training":
        for split in ("formal", "hostile", "unprompted"):
            texts = [t for t in ll.organism.draw("traits", 300, 3, split=split) if t.regime == "topics"][:12]
            rows = [dict(zip(("prompt", "response"), (m["content"] for m in t.messages()[-2:]))) for t in texts]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            files += ["--data", f"{split}.jsonl"]
    with rule_server() as url:
        command = [*files, *options, "--model", ll.organism.path(), "--judge", "rule", "--judge-url", url]
        first = run(name, *command, cwd=tmp_path, OPENAI_API_KEY="sk-canary-78")
        assert first.returncode == 0, first.stderr[-2000:]
    assert word in re.sub(r"\s+", " ", first.stdout)
    second = run(name, *command, cwd=tmp_path, OPENAI_API_KEY="sk-canary-78")
    assert second.returncode == 0, second.stderr[-2000:]  # the server is gone: nothing is judged again
    assert second.stdout == first.stdout


def test_another_models_training_needs_its_traits_and_data(tmp_path):
    done = run("persona_training", "--model", "nowhere", cwd=tmp_path)
    assert done.returncode != 0
    assert "two --traits files" in re.sub(r"[\s│]+", " ", done.stderr)


@pytest.mark.parametrize("options", [["--model", "nowhere"], ["--model", "nowhere", "--traits", "missing.json"]])
def test_bad_input_is_said_in_words(tmp_path, options):
    done = run("persona_vectors", *options, cwd=tmp_path)
    assert done.returncode != 0
    assert any(word in done.stderr for word in ("nowhere", "trait"))


def test_shipped_trait_files_hold_the_papers_numbers():
    for path in sorted((ROOT / "traits").glob("*.json")):
        trait = ll.Trait.load(path)
        assert (len(trait.pairs), len(trait.questions), len(trait.evaluation)) == (5, 20, 20), path.name
        assert trait.name == path.stem
        assert trait.description
