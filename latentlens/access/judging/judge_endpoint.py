"""A judge and a writer behind an OpenAI-compatible server (`/chat/completions`), over the standard library.

    endpoint = Endpoint("gpt-4.1-mini", budget=2000)                    # key from the environment
    judge = cached(EndpointJudge(endpoint, TRAIT_RUBRIC), "runs/verdicts")
    writer = EndpointWriter(Endpoint("qwen3", url="http://localhost:8000/v1"))

The key is read from the environment when a request is sent and is kept nowhere: not in the objects, their repr, a
manifest, a cache, a log or an error.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from latentlens.errors import BadInput, BudgetSpent, EndpointError
from latentlens.values.judging import LEAST_MASS, Case, Rubric, Score, expected_score, is_whole_number

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_ADVICE = {
    400: "the server refuses the request: not every server knows logprobs (reading='text') or max_tokens (extra=)",
    401: "the key is missing or wrong",
    403: "the key does not allow this",
    404: "no such address or model",
}


class Endpoint:
    """One model on an OpenAI-compatible server.

    Args:
        model: its name there.
        url: up to and with the version, `http://localhost:8000/v1`; by default the environment variable
            OPENAI_BASE_URL, else OpenAI's own.
        key_env: name of the environment variable with the key; a server on this machine may go without.
        budget: requests that may be sent, retries included; None: no limit.
        timeout: seconds a request may take. retries: further tries after 429, 5xx, lost connections and unreadable
            replies. wait: seconds before the second try; doubled from try to try, unless the server says how long.
        parallel: requests under way at the same time.
        extra: further fields of the request, such as {"max_completion_tokens": 1, "max_tokens": None}; None takes a
            field out.
        insecure: allow a key to be sent over http to another machine.
    Raises: BadInput: no address, or a key that would be sent unencrypted.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        *,
        key_env: str = "OPENAI_API_KEY",
        budget: int | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        wait: float = 1.0,
        parallel: int = 4,
        extra: Mapping[str, Any] | None = None,
        insecure: bool = False,
    ) -> None:
        url = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("url must be http(s)://host/v1")
        if parts.username or parts.password or parts.query:
            raise BadInput("url must not hold a key or password: name an environment variable, key_env=")
        if parallel < 1 or retries < 0 or timeout <= 0 or (budget is not None and budget < 0):
            raise BadInput("parallel must be at least 1, timeout above 0, retries and budget 0 or more")
        self.model, self.url, self.key_env = model, url.rstrip("/"), key_env
        self.budget, self.timeout, self.retries, self.wait = budget, timeout, retries, wait
        self.parallel, self.extra, self.sent = parallel, dict(extra or {}), 0
        self._open_network = parts.scheme == "http" and parts.hostname not in _LOCAL and not insecure
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Covers the address, the model and the further fields."""
        return hashlib.sha256(json.dumps([self.url, self.model, self.extra], sort_keys=True).encode()).hexdigest()

    def ask(self, chats: Sequence[Sequence[Mapping[str, str]]], **fields: Any) -> list[dict[str, Any] | None]:
        """The first choice of the reply to every chat, in order; None where no reply could be read.

        Raises: BudgetSpent: the budget ended. EndpointError: the server refuses, or was not reached in all tries.
        """
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return list(pool.map(lambda chat: self._one(chat, fields), chats))

    def _one(self, chat: Sequence[Mapping[str, str]], fields: Mapping[str, Any]) -> dict[str, Any] | None:
        body = {"model": self.model, "messages": [dict(message) for message in chat], **fields, **self.extra}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        trouble = ""
        for attempt in range(self.retries + 1):
            self._spend()
            reply, trouble, pause = self._send(data)
            if reply is not None:
                return reply
            if attempt < self.retries:
                time.sleep(min(_LONGEST_WAIT, pause or self.wait * 2**attempt * random.uniform(0.75, 1.25)))
        if trouble == "unreadable":
            return None
        raise EndpointError(f"{self.url}, model {self.model}: {trouble}, in {self.retries + 1} tries. Run again later")

    def _spend(self) -> None:
        with self._lock:
            if self.budget is not None and self.sent >= self.budget:
                raise BudgetSpent(
                    f"the budget of {self.budget} requests to {self.model} is spent. What was answered is kept if the "
                    "judge is cached(); give a larger budget= and run again to go on"
                )
            self.sent += 1

    def _send(self, data: bytes) -> tuple[dict[str, Any] | None, str, float]:
        """One try: the choice, or what went wrong and how long the server asks to wait."""
        refused, trouble, pause, reply = 0, "", 0.0, None
        request = urllib.request.Request(f"{self.url}/chat/completions", data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(_Stay(), _Key(self.key_env, self._open_network))
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                reply = _choice(answer.read())
            trouble = "unreadable"
        except urllib.error.HTTPError as error:
            trouble, pause = f"answers {error.code}", _seconds(error.headers.get("Retry-After"))
            refused = 0 if error.code in _AGAIN else error.code
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            slow = isinstance(cause, (TimeoutError, socket.timeout))
            trouble = f"no answer in {self.timeout:g} s" if slow else f"not reached ({type(cause).__name__})"
        if refused:  # raised here, and not where it was caught, so that no frame of the request hangs on the error
            advice = _ADVICE.get(refused, "trying again would not help")
            raise EndpointError(f"{self.url}, model {self.model}: answers {refused}: {advice}")
        return reply, trouble, pause

    def __repr__(self) -> str:
        return f"Endpoint({self.model} at {self.url}, {self.sent} requests sent)"


class EndpointJudge:
    """A model behind an endpoint as a judge of one rubric.

    Args:
        endpoint: which model.
        rubric: the question; `TRAIT_RUBRIC` and `COHERENCE_RUBRIC` are ours.
        reading: "logprobs": expected whole number over the 20 likeliest first tokens, as in the persona paper; "text":
            the whole number in the reply, for servers without logprobs.
        least_mass: with less probability on numbers there is no judgement.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        rubric: Rubric | str,
        *,
        reading: Literal["logprobs", "text"] = "logprobs",
        least_mass: float = LEAST_MASS,
        name: str = "",
    ) -> None:
        if reading not in ("logprobs", "text"):
            raise BadInput(f"reading={reading!r}: allowed are 'logprobs' and 'text'")
        self.endpoint, self.rubric, self.reading = endpoint, Rubric.of(rubric), reading
        self.least_mass, self.name, self.piece = least_mass, name or endpoint.model, 2 * endpoint.parallel

    @property
    def fingerprint(self) -> str:
        """Covers the endpoint, the rubric and the reading."""
        about = ["endpoint", self.endpoint.fingerprint, self.rubric.text, self.reading, self.least_mass]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """One score a case.

        Raises: BudgetSpent, EndpointError.
        """
        chats = [[{"role": "user", "content": self.rubric.fill(case)}] for case in cases]
        if self.reading == "text":
            return [_read_text(choice) for choice in self.endpoint.ask(chats, temperature=0, max_tokens=16)]
        how = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        return [self._read_logprobs(choice) for choice in self.endpoint.ask(chats, **how)]

    def _read_logprobs(self, choice: dict[str, Any] | None) -> Score:
        if choice is None:
            return Score(None, reason="no readable reply", passing=True)
        held = choice.get("logprobs")
        if not isinstance(held, dict) or not held.get("content"):
            raise EndpointError(f"{self.endpoint.model} sends no logprobs: use EndpointJudge(..., reading='text')")
        try:
            shown: dict[str, float] = {}
            for entry in held["content"][0]["top_logprobs"]:
                token = str(entry["token"]).strip()
                shown[token] = shown.get(token, 0.0) + math.exp(float(entry["logprob"]))
            return expected_score(shown, least_mass=self.least_mass)
        except (KeyError, TypeError, IndexError, ValueError, OverflowError):
            return Score(None, reason="logprobs of an unknown form", passing=True)

    def __repr__(self) -> str:
        return f"EndpointJudge({self.endpoint!r}, reading={self.reading!r})"


class EndpointWriter:
    """A model behind an endpoint that answers chats.

    Args: endpoint: which model. max_tokens, temperature, seed: sent along; a server may ignore the seed.
    """

    def __init__(
        self, endpoint: Endpoint, *, max_tokens: int = 1000, temperature: float = 0.0, seed: int | None = 0
    ) -> None:
        self.endpoint, self.name, self.piece = endpoint, endpoint.model, 2 * endpoint.parallel
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed

    @property
    def fingerprint(self) -> str:
        """Covers the endpoint and how it samples."""
        about = ["writer", self.endpoint.fingerprint, self.max_tokens, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def complete(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """One text a chat.

        Raises: BudgetSpent, EndpointError.
        """
        how = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        texts = [_content(choice) for choice in self.endpoint.ask(chats, **how)]
        empty = [i for i, text in enumerate(texts) if text is None]
        if empty:
            raise EndpointError(f"{self.endpoint.model} sent no readable text for chat {empty[0]}: run again")
        return [str(text) for text in texts]

    def __repr__(self) -> str:
        return f"EndpointWriter({self.endpoint!r})"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key to another address."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


class _Key(urllib.request.BaseHandler):
    """Puts the key on a request at the last moment, so that it is a value of no frame that can fail later."""

    def __init__(self, key_env: str, open_network: bool) -> None:
        self.key_env, self.open_network = key_env, open_network

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if os.environ.get(self.key_env):
            if self.open_network:
                raise BadInput(
                    f"the key in {self.key_env} would travel unencrypted: use https, or Endpoint(..., insecure=True)"
                )
            if not re.fullmatch(r"[!-~]+", os.environ[self.key_env].strip()):
                raise BadInput(f"the key in {self.key_env} holds spaces, line ends or letters that no key has")
            request.add_unredirected_header("Authorization", f"Bearer {os.environ[self.key_env].strip()}")
        return request

    https_request = http_request


def _choice(raw: bytes) -> dict[str, Any] | None:
    try:
        choice = json.loads(raw)["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return choice if isinstance(choice, dict) else None


def _content(choice: dict[str, Any] | None) -> str | None:
    message = (choice or {}).get("message")
    text = message.get("content") if isinstance(message, dict) else None
    return text if isinstance(text, str) else None


def _read_text(choice: dict[str, Any] | None) -> Score:
    text = _content(choice)
    if text is None:
        return Score(None, reason="no readable reply", passing=True)
    bare = text.strip().rstrip(".")
    if is_whole_number(bare) and int(bare) <= 100:
        return Score(float(bare))
    return Score(None, reason="the reply is no whole number from 0 to 100")


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0  # a date: our own waiting times serve
