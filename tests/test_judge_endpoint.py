import contextlib
import http.server
import json
import logging
import math
import threading
import time
import traceback

import pytest

from latentlens.access.judging.judge_endpoint import Endpoint, EndpointJudge, EndpointWriter
from latentlens.access.store.verdict_cache import cached
from latentlens.errors import BadInput, BudgetSpent, EndpointError
from latentlens.values.judging import TRAIT_RUBRIC, Case, Judge, Writer

CANARY = "sk-canary-0123456789abcdef"
CASES = [Case("how are you", text, "calm") for text in ("fine", "well", "so so")]


def choice(**parts):
    return {"choices": [parts]}


def numbers(**shares):
    """A reply with the probabilities of the first token."""
    top = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in shares.items()]
    return choice(message={"content": "50"}, logprobs={"content": [{"token": "50", "top_logprobs": top}]})


JUDGED = numbers(**{"0": 0.2, "_50": 0.1, "50": 0.2, "100": 0.4, "REFUSAL": 0.1})


@contextlib.contextmanager
def server(*script):
    """An OpenAI-compatible server that answers as scripted, the last answer again and again.

    An answer: a value for JSON, bytes, or (status, headers, body), or a number of seconds to sleep first.
    """
    seen, replies = [], list(script)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
            if callable(reply):
                reply = reply(body)
            if isinstance(reply, float):
                time.sleep(reply)
                reply = JUDGED
            status, headers, raw = reply if isinstance(reply, tuple) else (200, {}, reply)
            raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1", seen
    finally:
        made.shutdown()
        made.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url, **options):
    return Endpoint("judge-1", url, **{"wait": 0.01, "retries": 2, "parallel": 1, **options})


def test_a_judge_is_asked_for_the_likeliest_first_tokens():
    with server(JUDGED) as (url, seen):
        judge = EndpointJudge(endpoint(url, parallel=3), TRAIT_RUBRIC)
        found = judge.scores(CASES)
    assert isinstance(judge, Judge)
    assert [s.value for s in found] == pytest.approx([61.1111] * 3, abs=1e-3)
    assert found[0].mass == pytest.approx(0.9)
    body = seen[0]["body"]
    assert seen[0]["path"] == "/v1/chat/completions"
    assert seen[0]["key"] == f"Bearer {CANARY}"
    assert (body["model"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == ("judge-1", 20, 1, 0)
    assert {s["body"]["messages"][0]["content"] for s in seen} == {TRAIT_RUBRIC.fill(case) for case in CASES}


def test_answers_come_back_in_the_order_of_the_cases():
    def score(body):
        text = body["messages"][0]["content"]
        time.sleep(0.05 if "fine" in text else 0)
        return choice(message={"content": str(10 * next(i for i, c in enumerate(CASES) if c.response in text))})

    with server(score) as (url, _):
        found = EndpointJudge(endpoint(url, parallel=3), "{response}", reading="text").scores(CASES)
    assert [s.value for s in found] == [0, 10, 20]


def test_little_mass_on_numbers_is_no_judgement():
    with server(numbers(**{"50": 0.2, "I": 0.7})) as (url, _):
        (said,) = EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert said.value is None
    assert said.mass == pytest.approx(0.2)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    with server((status, {}, {"error": "busy"}), JUDGED) as (url, seen):
        (said,) = EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert said.value == pytest.approx(61.1111, abs=1e-3)
    assert len(seen) == 2


def test_the_server_says_how_long_to_wait():
    with server((429, {"Retry-After": "0.4"}, {}), JUDGED) as (url, _):
        started = time.monotonic()
        EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
        assert 0.4 <= time.monotonic() - started < 5


def test_a_server_that_stays_busy_is_an_error_that_says_so():
    with server((503, {}, {})) as (url, seen), pytest.raises(EndpointError, match="answers 503, in 3 tries"):
        EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert len(seen) == 3


@pytest.mark.parametrize(("status", "says"), [(401, "key is missing or wrong"), (404, "model"), (400, "logprobs")])
def test_a_refusal_is_not_tried_again(status, says):
    with server((status, {}, {"error": f"bad key {CANARY}"})) as (url, seen), pytest.raises(EndpointError, match=says):
        EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert len(seen) == 1


def test_a_slow_server_times_out():
    with server(1.5, JUDGED) as (url, seen):
        (said,) = EndpointJudge(endpoint(url, timeout=0.3), TRAIT_RUBRIC).scores(CASES[:1])
        assert said.value == pytest.approx(61.1111, abs=1e-3)
        assert len(seen) == 2
    with server(1.5) as (url, _), pytest.raises(EndpointError, match=r"no answer in 0\.3 s"):
        EndpointJudge(endpoint(url, timeout=0.3, retries=0), TRAIT_RUBRIC).scores(CASES[:1])


def test_nobody_there():
    with pytest.raises(EndpointError, match="not reached"):
        EndpointJudge(endpoint("http://127.0.0.1:9/v1"), TRAIT_RUBRIC).scores(CASES[:1])


@pytest.mark.parametrize("raw", [b"{broken", b"[]", b'{"choices": []}', b'{"choices": ["x"]}', b"\xff\xfe"])
def test_an_unreadable_reply_is_no_judgement_and_is_not_kept(tmp_path, raw):
    with server(raw) as (url, seen):
        (said,) = cached(EndpointJudge(endpoint(url), TRAIT_RUBRIC), tmp_path).scores(CASES[:1])
        assert said.value is None
        assert "readable" in said.reason
        assert len(seen) == 3
    with server(JUDGED) as (url, seen):  # the same judge by name, on a server that is well
        (said,) = cached(EndpointJudge(endpoint(url), TRAIT_RUBRIC), tmp_path).scores(CASES[:1])
    assert said.value is not None


@pytest.mark.parametrize(
    "broken", [{"content": [{}]}, {"content": [{"top_logprobs": [{"token": "5"}]}]}, {"content": [5]}]
)
def test_logprobs_of_an_unknown_form_are_no_judgement(broken):
    with server(choice(message={"content": "5"}, logprobs={"content": broken})) as (url, _):
        (said,) = EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert said.value is None
    assert said.passing


def test_a_server_without_logprobs_is_told_apart():
    with server(choice(message={"content": "5"}, logprobs=None)) as (url, _):
        with pytest.raises(EndpointError, match="reading='text'"):
            EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
        (said,) = EndpointJudge(endpoint(url), TRAIT_RUBRIC, reading="text").scores(CASES[:1])
    assert said.value == 5


@pytest.mark.parametrize(
    ("text", "value"), [(" 70.\n", 70), ("100", 100), ("101", None), ("7/10", None), ("about 70", None), (None, None)]
)
def test_a_reply_in_words_is_not_guessed_at(text, value):
    with server(choice(message={"content": text})) as (url, _):
        (said,) = EndpointJudge(endpoint(url), TRAIT_RUBRIC, reading="text").scores(CASES[:1])
    assert said.value == value


def test_the_budget_holds_and_the_next_run_goes_on(tmp_path):
    with server(JUDGED) as (url, seen):
        judge = cached(EndpointJudge(endpoint(url, budget=2), TRAIT_RUBRIC), tmp_path)
        with pytest.raises(BudgetSpent, match="budget of 2"):
            judge.scores(CASES)
        assert len(seen) == 2
        found = cached(EndpointJudge(endpoint(url, budget=2), TRAIT_RUBRIC), tmp_path).scores(CASES)
        assert len(seen) == 3
        assert all(s.value is not None for s in found)


def test_retries_are_paid_from_the_budget():
    with server((500, {}, {})) as (url, seen), pytest.raises(BudgetSpent):
        EndpointJudge(endpoint(url, budget=2, retries=9), TRAIT_RUBRIC).scores(CASES[:1])
    assert len(seen) == 2


def test_a_redirect_does_not_carry_the_key_away():
    with server(JUDGED) as (elsewhere, stolen), server((302, {"Location": elsewhere}, {})) as (url, _):
        with pytest.raises(EndpointError, match="302"):
            EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
        assert stolen == []


def test_a_writer_answers_chats():
    with server(choice(message={"content": "a rhyme"})) as (url, seen):
        writer = EndpointWriter(endpoint(url, extra={"top_p": 0.9, "seed": None}), temperature=1.0)
        assert writer.complete([[{"role": "user", "content": "write"}]] * 2) == ["a rhyme"] * 2
    assert isinstance(writer, Writer)
    assert seen[0]["body"]["top_p"] == 0.9
    assert "seed" not in seen[0]["body"]
    with server(choice(message={"content": None})) as (url, _), pytest.raises(EndpointError, match="chat 0"):
        EndpointWriter(endpoint(url)).complete([[{"role": "user", "content": "write"}]])


def test_a_key_is_never_sent_in_the_open(monkeypatch):
    open_network = Endpoint("m", "http://judge.invalid/v1", retries=0)
    with pytest.raises(BadInput, match="unencrypted"):
        EndpointJudge(open_network, TRAIT_RUBRIC).scores(CASES[:1])
    for bad in ("https://me:secret@host/v1", "https://host/v1?key=secret"):
        with pytest.raises(BadInput) as caught:
            Endpoint("m", bad)
        assert "secret" not in str(caught.value)
    with pytest.raises(BadInput, match="http"):
        Endpoint("m", "ftp://host/v1")


def everything_said(error):
    """The error as the most talkative traceback shows it: chained, with the variables of every frame."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]  # this file knows the key
    assert len(shown.stack) > 2
    return "".join(shown.format()) + repr(error.args) + "".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize(
    "reply", [(401, {}, {"error": CANARY}), (503, {}, {"error": CANARY}), 1.0, (302, {"Location": "/x"}, {})]
)
def test_the_key_is_in_no_error(reply):
    with server(reply) as (url, _):
        judge = EndpointJudge(endpoint(url, timeout=0.2), TRAIT_RUBRIC)
        with pytest.raises(EndpointError) as caught:
            judge.scores(CASES[:1])
    assert CANARY not in everything_said(caught.value)


def test_a_key_that_no_header_can_hold_is_in_no_error(monkeypatch):
    for broken in (f"{CANARY}\nX-Other: 1", f"{CANARY} and more", f"{CANARY}…"):
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        with server(JUDGED) as (url, seen):
            with pytest.raises(BadInput, match="OPENAI_API_KEY") as caught:
                EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
            assert seen == []
        assert CANARY not in everything_said(caught.value)


def test_the_key_is_in_no_object_log_or_file(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG), server((429, {}, {}), JUDGED) as (url, seen):
        judge = cached(EndpointJudge(endpoint(url), TRAIT_RUBRIC), tmp_path)
        judge.scores(CASES)
    assert all(CANARY in s["key"] for s in seen)
    inner = judge.judge
    shown = [
        repr(judge),
        repr(inner.endpoint),
        judge.fingerprint,
        judge.name,
        repr(vars(inner)),
        repr(vars(inner.endpoint)),
    ]
    shown += [caplog.text, *capfd.readouterr()]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if CANARY in text]


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with server(JUDGED) as (url, seen):
        EndpointJudge(endpoint(url), TRAIT_RUBRIC).scores(CASES[:1])
    assert seen[0]["key"] is None
