"""Asking a language model about many documents: what annotating and rewriting share.

Every answer is written down in the store the moment it arrives, under a hash of the request, below `answers/`. So a call that was paid for is
not paid twice: not after a kill, not when files are added to the source, more documents are asked for, or the answers are read in another way.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.chat import MALFORMED, Chat, Endpoint, Reply
from tasks.errors import UserError
from tasks.shards import Shard
from tasks.store import Store, fingerprint

CUT = "the answer is cut at max_tokens"
UNCHANGING = {"max_unusable", "endpoint"}  # settings that change no answer and are no part of a key

Body = dict[str, Any]
Ask = Callable[[Body], Reply]


class Asked(BaseModel):
    """A model that is asked about documents, and how."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, description="The model, as the endpoint calls it.", json_schema_extra={"position": 2})
    max_characters: int = Field(default=8000, ge=1, description="Beginning of a document that is shown.", json_schema_extra={"position": 6})
    temperature: float = Field(default=0.0, ge=0, description="Temperature of the sampling.", json_schema_extra={"position": 7})
    max_tokens: int = Field(default=16, ge=1, description="Longest answer.", json_schema_extra={"position": 8})
    seed: int = Field(default=0, description="Seed of the sampling, where the server heeds it.", json_schema_extra={"position": 9})
    max_unusable: float = Field(
        default=0.2, ge=0, le=1, description="Share of unusable answers that is tolerated.", json_schema_extra={"position": 10}
    )
    endpoint: Endpoint = Field(default=Endpoint(), description="Where the model is asked.", json_schema_extra={"position": 11})

    def body(self, content: str) -> Body:
        """The body of a chat completion that asks `content`."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }

    def hints(self, store: Store, afresh: bool) -> dict[str, Any]:
        """Of a shard that asks. afresh: ask again also what has been answered."""
        return {"endpoint": self.endpoint.model_dump(), "max_unusable": self.max_unusable, "store": store.url, "afresh": afresh}


class Result(Protocol):
    """What became of one document. cause: why it is of no use, else None. shown: the answer, for whoever mends the prompt."""

    @property
    def cause(self) -> str | None: ...

    @property
    def shown(self) -> str: ...

    @property
    def replies(self) -> Sequence[Reply]: ...


T = TypeVar("T")
R = TypeVar("R", bound=Result)


class TooManyUnusable(UserError):
    """Going on would only cost more."""


class Asking(Generic[T, R]):
    """Asks for what the store has no answer to, and keeps what comes.

    key: what of the recipe asks, for faults, such as `annotations.topic`. request: of a document, the first that is made. work: its result, from
    that request's answer and a way to ask more. refuse: raises TooManyUnusable, given how many results are unusable so far, how many there are and will be,
    and the last one.
    """

    def __init__(
        self,
        shard: Shard,
        key: str,
        request: Callable[[T], Body],
        work: Callable[[T, Reply, Ask], R],
        refuse: Callable[[int, int, int, R], None],
    ) -> None:
        self.shard, self.key, self.request, self.work, self.refuse = shard, key, request, work, refuse
        self.store = Store(shard.hints["store"])
        self.found: dict[str, R] = {}
        self.lock = threading.Lock()
        self.weights: Counter[str] = Counter()
        self.done = self.unusable = 0

    def results(self, documents: Sequence[T]) -> list[R]:
        """One for each document, in their order; equal requests are made once."""
        keys = [fingerprint(self.request(document)) for document in documents]
        self.weights = Counter(keys)
        try:
            chat = Chat(Endpoint.model_validate(self.shard.hints["endpoint"]))
            chat.ask_all(dict(zip(keys, documents, strict=True)).items(), functools.partial(self._one, chat))
        except UserError as error:
            done = 0 if isinstance(error, TooManyUnusable) else self.done
            kept = f"; {done:,} of {len(documents):,} documents are answered and kept: run the same command again to go on" if done else ""
            raise UserError(f"{self.key}: {error}{kept}") from error
        return [self.found[key] for key in keys]

    def _one(self, chat: Chat, item: tuple[str, T]) -> None:
        (key, document), ask = item, functools.partial(self._ask, chat)
        result = self.work(document, ask(self.request(document)), ask)
        with self.lock:
            self.found[key] = result
            self.done += self.weights[key]
            self.unusable += self.weights[key] if result.cause is not None else 0
            self.shard.progress(self.done, 0, self.done / self.weights.total())
            if result.cause is not None:
                self.refuse(self.unusable, self.done, self.weights.total(), result)

    def _ask(self, chat: Chat, body: Body) -> Reply:
        key = fingerprint(body)
        reply = None if self.shard.hints["afresh"] else self._kept(key)
        if reply is None:
            reply = chat.ask(body)
            if reply.cause != MALFORMED:  # which says nothing about the document
                self.store.replace(_path(key), json.dumps(asdict(reply)))
        return reply

    def _kept(self, key: str) -> Reply | None:
        text = self.store.read_text(_path(key))
        return None if text is None else Reply(**json.loads(text))


def _path(key: str) -> str:
    return f"answers/{key[:2]}/{key}.json"


def tokens(results: Sequence[Result]) -> dict[str, int]:
    """What the results cost, as counts of the books."""
    replies = [reply for result in results for reply in result.replies]
    return {
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }


def example(cause: str, answer: str) -> str:
    """An unusable answer in a sentence, without what it would do to a terminal."""
    shown = " ".join(answer.split())[:120]
    return f"one of them: {cause}{f' ({shown!r})' if shown else ''}"
