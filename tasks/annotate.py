"""Annotate: a language model labels documents, for a classifier to be trained on (report, section 4.2.1: 10,000 of OpenWebMath by GPT-4o).

Every answer is written down in the store the moment it arrives, under a hash of the request, below `answers/`. So a call that was paid for is
not paid twice: not after a kill, not when files are added to the source, more documents are asked for, or the answers are read in another way.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks import annotate_sample
from tasks.chat import MALFORMED, Chat, Endpoint, Reply
from tasks.errors import UserError
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books, Store, fingerprint

# by content: the labels are what a model made of them, and a model may answer the same request in another way the next time
STEP = Step("annotate", 1, "tasks.annotate", by_content=True)
FILE = "annotations.parquet"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("answer", pa.large_string()),
        pa.field("cause", pa.string()),
    ]
)
TEXT = "{text}"
NO_LABEL, OTHER_LABEL, MANY_LABELS = "there is no label in the answer", "the label is none of the list", "the answer has several labels"
LATER = "not first in line"
CUT = "the answer is cut at max_tokens"


class Annotation(BaseModel):
    """Labels by a language model for a part of a source's documents."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(description="The source whose documents are labelled.", json_schema_extra={"position": 0})
    documents: int = Field(default=10_000, ge=1, description="How many, chosen by hash of the key.", json_schema_extra={"position": 1})
    model: str = Field(min_length=1, description="The model, as the endpoint calls it.", json_schema_extra={"position": 2})
    prompt: str = Field(description="What is asked; {text} stands for the document.", json_schema_extra={"position": 3})
    labels: list[str | int] = Field(
        min_length=2, description="The labels, or the numbers from 0 to 5 of a scale.", json_schema_extra={"position": 4}
    )
    parse: str | None = Field(
        default=None,
        description="Regular expression whose group is the label; without it the whole answer must be one.",
        json_schema_extra={"position": 5},
    )
    max_characters: int = Field(default=8000, ge=1, description="Beginning of a document that is shown.", json_schema_extra={"position": 6})
    temperature: float = Field(default=0.0, ge=0, description="Temperature of the sampling.", json_schema_extra={"position": 7})
    max_tokens: int = Field(default=16, ge=1, description="Longest answer.", json_schema_extra={"position": 8})
    seed: int = Field(default=0, description="Seed of the sampling, where the server heeds it.", json_schema_extra={"position": 9})
    max_unusable: float = Field(
        default=0.2, ge=0, le=1, description="Share of answers without a label that is tolerated.", json_schema_extra={"position": 10}
    )
    endpoint: Endpoint = Field(default=Endpoint(), description="Where the model is asked.", json_schema_extra={"position": 11})

    @field_validator("labels", mode="before")
    @classmethod
    def _no_booleans(cls, labels: Any) -> Any:
        if isinstance(labels, list) and any(isinstance(label, bool) for label in labels):
            raise ValueError("YAML reads yes, no, on and off as truth values: put such labels in quotes")
        return labels

    @model_validator(mode="after")
    def _can_be_asked(self) -> Annotation:
        if TEXT not in self.prompt:
            raise ValueError(f"the prompt has no {TEXT}, where the document should stand")
        if len(set(map(_plain, self.labels))) < len(self.labels):
            raise ValueError(f"a label stands twice in {self.labels}, as labels are compared: without case, quotes and marks around them")
        if self.parse is not None:
            try:
                groups = re.compile(self.parse).groups
            except re.error as error:
                raise ValueError(f"parse is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"parse has {groups} groups, where it should have one, the label: write (?:...) for others")
        return self

    def request(self, text: str) -> dict[str, Any]:
        """The body of a chat completion for a document."""
        content = self.prompt.replace(TEXT, text[: self.max_characters])
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }

    def read(self, reply: Reply) -> tuple[str | None, str | None]:
        """(label, None), or (None, why there is none). A label counts whatever its case and the quotes and marks around it."""
        if reply.cause is not None:
            return None, reply.cause
        found = {_plain(part) for part in (re.findall(self.parse, reply.text) if self.parse else [reply.text])}
        known = {_plain(label): str(label) for label in self.labels}
        if len(found) == 1 and found <= set(known):
            return known[found.pop()], None
        if reply.cut:
            return None, CUT
        return None, MANY_LABELS if len(found) > 1 else OTHER_LABEL if found and self.parse else NO_LABEL


def _plain(label: str | int) -> str:
    return str(label).strip(" \t\r\n\"'`*.,:;()[]").casefold()


def task(name: str, config: Annotation, sample: list[ShardRef], store: Store, afresh: bool) -> ShardTask:
    """Labels of the documents that are first in line. afresh: ask again also what has been answered."""
    settings = config.model_dump(mode="json", exclude={"source", "max_unusable", "endpoint"})
    hints = {"endpoint": config.endpoint.model_dump(), "max_unusable": config.max_unusable, "store": store.url, "afresh": afresh}
    return ShardTask(name, settings, {"sample": list(sample)}, hints)


def run(shard: Shard) -> Books:
    """sample -> annotations.parquet: id, key, text, label (null where there is none), the answer, the cause where there is no label."""
    config = Annotation(**shard.config, source="-", max_unusable=shard.hints["max_unusable"], endpoint=shard.hints["endpoint"])
    sample = pa.concat_tables([pq.read_table(files[annotate_sample.FILE]) for files in shard.inputs["sample"]])
    taken = sample.sort_by([("place", "ascending"), ("id", "ascending")]).slice(0, config.documents)
    texts = taken.column("text").to_pylist()
    replies = _Asking(config, shard, texts).replies()
    read = [config.read(reply) for reply in replies]
    columns = {name: taken.column(name) for name in ("id", "key", "text")}
    columns |= {"label": [label for label, _ in read], "answer": [reply.text for reply in replies], "cause": [cause for _, cause in read]}
    pq.write_table(pa.table(columns, schema=SCHEMA), shard.folder / FILE, compression="zstd")
    return _books(sample.num_rows, read, replies)


def _books(candidates: int, read: list[tuple[str | None, str | None]], replies: list[Reply]) -> Books:
    books = Books(read=candidates, kept=sum(label is not None for label, _ in read))
    if candidates > len(read):
        books.drop(LATER, candidates - len(read))
    for cause, number in sorted(Counter(cause for _, cause in read if cause).items()):
        books.drop(cause, number)
    books.count("asked", len(read))
    books.count("unusable", len(read) - books.kept)
    for label, number in sorted(Counter(label for label, _ in read if label is not None).items()):
        books.count(f"label {label}", number)
    books.count("prompt_tokens", sum(reply.prompt_tokens for reply in replies))
    books.count("completion_tokens", sum(reply.completion_tokens for reply in replies))
    return books


class _TooManyUnusable(UserError):
    """Going on would only cost more."""


class _Asking:
    """Asks for what the store has no answer to, and keeps what comes."""

    def __init__(self, config: Annotation, shard: Shard, texts: list[str]) -> None:
        self.config, self.shard, self.texts = config, shard, texts
        self.store = Store(shard.hints["store"])
        self.requests = {fingerprint(body): body for body in map(config.request, texts)}  # equal texts are asked about once
        self.found: dict[str, Reply] = {}
        self.lock = threading.Lock()
        self.weights = Counter(fingerprint(config.request(text)) for text in texts)
        self.unusable = 0

    def replies(self) -> list[Reply]:
        """One for each text, in the texts' order."""
        try:
            chat = Chat(self.config.endpoint)
            chat.ask_all(list(self.requests.values()), functools.partial(self._ask, chat))
        except UserError as error:
            done = 0 if isinstance(error, _TooManyUnusable) else sum(self.weights[key] for key in self.found)
            kept = f"; {done:,} of {len(self.texts):,} documents are answered and kept: run the same command again to go on" if done else ""
            raise UserError(f"annotations.{self.shard.name}: {error}{kept}") from error
        return [self.found[fingerprint(self.config.request(text))] for text in self.texts]

    def _ask(self, chat: Chat, body: dict[str, Any]) -> None:
        key = fingerprint(body)
        reply = None if self.shard.hints["afresh"] else self._kept(key)
        if reply is None:
            reply = chat.ask(body)
            if reply.cause != MALFORMED:  # which says nothing about the document
                self.store.replace(_path(key), json.dumps(asdict(reply)))
        self._enter(key, reply)

    def _kept(self, key: str) -> Reply | None:
        text = self.store.read_text(_path(key))
        return None if text is None else Reply(**json.loads(text))

    def _enter(self, key: str, reply: Reply) -> None:
        """Note a reply; an end as soon as more of them are unusable than may be at the end, since every call costs."""
        with self.lock:
            self.found[key] = reply
            label, cause = self.config.read(reply)
            self.unusable += self.weights[key] if label is None else 0
            self.shard.progress(len(self.found), 0, len(self.found) / len(self.requests))
            if self.unusable > self.config.max_unusable * len(self.texts):
                raise _TooManyUnusable(_too_many(self.unusable, len(self.texts), self.config.max_unusable, str(cause), reply.text))


def _path(key: str) -> str:
    return f"answers/{key[:2]}/{key}.json"


def _too_many(unusable: int, asked: int, tolerated: float, cause: str, answer: str) -> str:
    shown = " ".join(answer.split())[:120]
    return (
        f"{unusable:,} answers of {asked:,} have no label, more than max_unusable {tolerated:g} allows; one of them: {cause}"
        f"{f' ({shown!r})' if shown else ''}; mend the prompt, labels, parse or max_tokens, or raise max_unusable"
    )


def check(name: str, books: Books, tolerated: float, table: pa.Table) -> None:
    """Raise UserError where more answers of a made annotation are unusable than the recipe tolerates by now."""
    unusable, asked = books.counts["unusable"], books.counts["asked"]
    if unusable > tolerated * asked:
        row = table.filter(pc.is_valid(table["cause"])).slice(0, 1).to_pylist()[0]
        raise UserError(f"annotations.{name}: {_too_many(unusable, asked, tolerated, row['cause'], row['answer'] or '')}")
