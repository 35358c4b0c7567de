"""Chat completions of an OpenAI-compatible endpoint, many at once, with retries that end.

A fault that may pass (429, 5xx, a timeout, a broken connection, an answer that is no chat completion) is tried again after a wait that doubles,
or after the time that `Retry-After` names. What cannot pass (no right to ask, no such model, no money left) ends everything at once.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import httpx
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError
from tasks.sources.base import repair

T = TypeVar("T")
_END: Any = object()

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
TOO_LONG = ("context_length", "context length", "maximum length", "too long", "max_model_len")
CONTENT_FILTERS = ("content_filter", "content_policy", "content management policy")


class Endpoint(BaseModel):
    """Where an OpenAI-compatible server answers, and how it may be asked. Changes no answer."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(
        default="http://localhost:8000/v1",
        pattern=r"^https?://[^\s@?#]+$",  # a password in it would be written wherever the recipe is
        description="Base URL, to which /chat/completions is added.",
        json_schema_extra={"position": 0},
    )
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the API key, such as OPENAI_API_KEY; the key itself is written nowhere.",
        json_schema_extra={"position": 1},
    )
    concurrency: int = Field(
        default=16, ge=1, le=1024, description="Calls at once, of each worker that asks.", json_schema_extra={"position": 2}
    )
    timeout_seconds: float = Field(
        default=120.0, gt=0, description="Longest silence of the server that is waited for.", json_schema_extra={"position": 3}
    )
    retries: int = Field(
        default=6, ge=0, description="Further tries of a call after a fault that may pass.", json_schema_extra={"position": 4}
    )


@dataclass(frozen=True)
class Reply:
    """What came back for one request: the answer's text, or in `cause` why there is none."""

    text: str = ""
    cause: str | None = None
    cut: bool = False  # the answer ended at max_tokens
    prompt_tokens: int = 0
    completion_tokens: int = 0


MALFORMED, REFUSES = "no chat completion came back", "the model refused"


class _Passing(Exception):
    """A fault that may pass. wait_seconds: what the server asked for."""

    def __init__(self, cause: str, wait_seconds: float | None = None) -> None:
        super().__init__(cause)
        self.wait_seconds = wait_seconds


class _Stopped(Exception):
    """Another call has ended everything."""


class Chat:
    """Asks one endpoint. `ask` may be called by many threads.

    Raises:
        UserError: the environment variable of the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.url = f"{endpoint.url.rstrip('/')}/chat/completions"
        self.key = os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else ""
        if endpoint.key_variable and not self.key:
            raise UserError(
                f"the environment variable {endpoint.key_variable}, which should hold the endpoint's API key, is not set: set it"
            )
        self.stopped = threading.Event()
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=endpoint.timeout_seconds,
            limits=httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency),
        )

    def ask_all(self, items: Iterable[T], ask: Callable[[T], None]) -> None:
        """Call `ask` for each item, `concurrency` at once. The first exception stops the others between two tries, and is raised."""
        waiting, lock = iter(items), threading.Lock()

        def work() -> None:
            try:
                while not self.stopped.is_set():
                    with lock:
                        item = next(waiting, _END)
                    if item is _END:
                        return
                    ask(cast(T, item))
            except BaseException:
                self.stopped.set()
                raise

        with self.client, ThreadPoolExecutor(self.endpoint.concurrency, "chat") as pool:
            futures = [pool.submit(work) for _ in range(self.endpoint.concurrency)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self.stopped.set()
                pool.shutdown(wait=True)  # calls under way are paid for: let them end and be kept
        faults = [fault for future in futures if (fault := future.exception()) is not None]
        if faults:
            raise next((fault for fault in faults if not isinstance(fault, _Stopped)), faults[0])

    def ask(self, body: dict[str, Any]) -> Reply:
        """The reply to one request.

        Raises:
            UserError: the endpoint says no for good, or the same request failed once more than `retries` times.
        """
        for tried in range(1, self.endpoint.retries + 2):
            if self.stopped.is_set():
                raise _Stopped
            try:
                return self._try(body)
            except _Passing as fault:
                last = fault
            if tried <= self.endpoint.retries and self.stopped.wait(self._wait_seconds(last, tried)):
                raise _Stopped
        if str(last) == MALFORMED:
            return Reply(cause=MALFORMED)
        times = f"{self.endpoint.retries + 1} times in a row" if self.endpoint.retries else "once"
        raise UserError(f"the endpoint {self.url} failed {times}, last with: {last}")

    def _wait_seconds(self, fault: _Passing, tried: int) -> float:
        if fault.wait_seconds is not None:
            return min(fault.wait_seconds, LONGEST_RETRY_AFTER_SECONDS)
        # jitter, so that calls which failed together do not come again together
        return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)

    def _try(self, body: dict[str, Any]) -> Reply:
        try:
            response = self.client.post(self.url, json=body)
        except httpx.TransportError as error:
            raise _Passing(self._clean(f"{type(error).__name__} {error}".strip())) from error
        except httpx.DecodingError as error:
            raise _Passing(MALFORMED) from error
        content = self._clean(response.text)
        if response.status_code == 200:
            return _reply(content)
        return self._refusal(response, f"{response.status_code} {_message(content)}".strip(), content.lower())

    def _refusal(self, response: httpx.Response, told: str, content: str) -> Reply:
        status = response.status_code
        if status in (400, 413, 422):
            if any(word in content for word in TOO_LONG):
                return Reply(cause="the text is too long for the model")
            if any(word in content for word in CONTENT_FILTERS):
                return Reply(cause=REFUSES)
        if status in (408, 425, 429) or status >= 500:
            if "insufficient_quota" in content:
                raise UserError(f"the endpoint {self.url} answers no more calls: {told}")
            raise _Passing(told, _retry_after_seconds(response.headers.get("retry-after")))
        if status in (401, 403):
            which = f"the key in the environment variable {self.endpoint.key_variable}" if self.key else "to answer without a key"
            raise UserError(
                f"the endpoint {self.url} refuses {which}: {told}; set endpoint.key_variable to the variable of a key that it takes"
            )
        raise UserError(
            f"the endpoint {self.url} cannot answer such a request: {told}; look at endpoint.url, model and the sampling settings"
        )

    def _clean(self, text: str) -> str:
        """The text without the API key, should a server send it back."""
        return text.replace(self.key, "[key]") if self.key else text


def _reply(content: str) -> Reply:
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal, finish = message.get("content") or "", message.get("refusal"), choice.get("finish_reason")
        usage = found.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Passing(MALFORMED) from error
    cause = REFUSES if refusal or finish == "content_filter" else "the answer is empty" if not text.strip() else None
    return Reply(repair(text or str(refusal or "")), cause, finish == "length", *tokens)


def _message(content: str) -> str:
    """What an error's body says, in one line."""
    try:
        found = json.loads(content)
        error = found.get("error", found)
        text = error.get("message", content) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = content
    return " ".join(str(text).split())[:300]


def _retry_after_seconds(value: str | None) -> float | None:
    """Of the header, a number of seconds or a date; None where it says nothing that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
