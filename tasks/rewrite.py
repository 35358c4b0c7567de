"""Rewrite: a language model makes documents of those of another source (report, section 4.2.1: TinyGSM-MIND, DolminoSynthMath, TuluMath).

What was answered once is not asked again (see `tasks.asking`). Only what the other source selects is asked about. What came of it is a shard
of documents like any other; what was rejected stands beside it with the cause.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from tasks.asking import UNCHANGING, Ask, Asked, Asking, Body, TooManyUnusable, example, tokens
from tasks.chat import Reply
from tasks.documents import FILE, DocumentWriter, read_rows
from tasks.errors import UserError
from tasks.mix_plan import order
from tasks.rewrite_checks import RESULT_LOST, SHAPES, has_result, known_result, rejection
from tasks.rewrite_prompts import ANSWER, STYLES, TEXT, Style, fill
from tasks.select import FILE as SELECTION
from tasks.shards import Shard, ShardRef, ShardTask, Step, input_files
from tasks.store import Books, Store

# by content: a model may answer the same request in another way the next time
STEP = Step("rewrite", 1, "tasks.rewrite", ("datatrove",), by_content=True)
REJECTED = "rejected.parquet"
REJECTED_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("cause", pa.string()), pa.field("answer", pa.large_string())])
SEED = 0x4D494E44  # of the line; another than a mix's and an annotation's
NOT_SELECTED, LATER = "not selected", "outside the share of {:g}"
AGAIN = " (the second request)"
FEWEST, DEVIATIONS = 20, 5.0  # answers, and standard deviations over what is tolerated, before a shard is given up


class Rewrite(Asked):
    """Documents that a language model makes of those of another source."""

    source: str = Field(
        description="The source, or SOURCE/SUBSET, of whose selected documents others are made.", json_schema_extra={"position": 0}
    )
    share: float = Field(
        default=1.0, gt=0, le=1, description="Share of them that is asked about, by hash of the key.", json_schema_extra={"position": 1}
    )
    prompt: str = Field(
        description=f"{', '.join(STYLES)}, or what is asked in your own words; {{text}} stands for the document.",
        json_schema_extra={"position": 3},
    )
    then: str | None = Field(
        default=None,
        description="A second request in your own words; {answer} stands for the first answer, to which the second is joined.",
        json_schema_extra={"position": 4},
    )
    check_result: bool = Field(
        default=True,
        description="Reject an answer without the number that the document comes to, where that is known.",
        json_schema_extra={"position": 5},
    )
    temperature: float = Field(default=0.7, ge=0, description="Temperature of the sampling.", json_schema_extra={"position": 7})
    max_tokens: int = Field(default=2048, ge=1, description="Longest answer.", json_schema_extra={"position": 8})

    @model_validator(mode="after")
    def _can_be_asked(self) -> Rewrite:
        if self.prompt in STYLES:
            if self.then is not None:
                raise ValueError(f"the prompt {self.prompt} has its own second request or none: leave `then` out, or write both yourself")
        elif TEXT not in self.prompt:
            raise ValueError(f"the prompt is none of {', '.join(STYLES)} and has no {TEXT}, where the document should stand")
        elif ANSWER in self.prompt:
            raise ValueError(f"the prompt has {ANSWER}, but it is asked first: {ANSWER} is for `then`")
        if self.then is not None and ANSWER not in self.then:
            raise ValueError(f"`then` has no {ANSWER}, where the first answer should stand")
        return self

    def style(self) -> Style:
        if self.prompt in STYLES:
            return STYLES[self.prompt]
        requests = (self.prompt,) if self.then is None else (self.prompt, self.then)
        return Style(requests, (None,) * len(requests))


@dataclass(frozen=True)
class Rewritten:
    """What became of one document: the new text, or the cause why there is none."""

    replies: list[Reply]
    text: str = ""
    cause: str | None = None

    @property
    def shown(self) -> str:
        return self.replies[-1].text


def task(name: str, config: Rewrite, documents: ShardRef, selection: ShardRef, store: Store, afresh: bool) -> ShardTask:
    """The documents made of one shard of another source's. afresh: ask again also what has been answered."""
    settings: dict[str, Any] = {"name": name, **config.model_dump(mode="json", exclude={"source", *UNCHANGING})}
    settings["requests"] = list(config.style().requests)  # whose words count, under whatever name
    return ShardTask(name, settings, {"documents": [documents], "selection": [selection]}, config.hints(store, afresh))


def run(shard: Shard) -> Books:
    """documents, selection -> documents.parquet, in the order of the rows that they were made of; rejected.parquet: id, cause, answer."""
    settings = {key: value for key, value in shard.config.items() if key not in ("name", "requests")}
    config = Rewrite.model_validate({**settings, **{key: shard.hints[key] for key in UNCHANGING}, "source": "-"})
    path, books = shard.one("documents")[FILE], Books()
    rows = _asked_about(path, shard.one("selection")[SELECTION], config, books)
    documents = read_rows(path, rows, ["id", "key", "text", "source", "metadata"])
    in_line = np.argsort(order(documents["key"].to_numpy(), SEED), kind="stable")  # so that the first answers are a fair sample
    made = _Rewriting(shard, config).results(documents.take(in_line).to_pylist())
    results = [made[place] for place in np.argsort(in_line).tolist()]
    _write(shard, config, documents, results, books)
    for cause, number in sorted(Counter(each.cause for each in results if each.cause).items()):
        books.drop(cause, number)
    books.kept = sum(each.cause is None for each in results)
    books.count("asked", len(results))
    books.count("unusable", len(results) - books.kept)
    books.counts |= tokens(results)
    return books


def _asked_about(documents: Any, selection: Any, config: Rewrite, books: Books) -> np.ndarray:
    """Rows that are selected and within the share, int64[n]; the others are booked."""
    keep = pq.read_table(selection, columns=["keep"])["keep"].to_numpy()
    line = order(pq.read_table(documents, columns=["key"])["key"].to_numpy(), SEED)
    first = line < np.uint64(min(int(config.share * 2**64), 2**64 - 1)) if config.share < 1 else np.ones(len(keep), bool)
    books.read = len(keep)
    if not keep.all():
        books.drop(NOT_SELECTED, int((~keep).sum()))
    if (keep & ~first).any():
        books.drop(LATER.format(config.share), int((keep & ~first).sum()))
    return np.flatnonzero(keep & first)


def _write(shard: Shard, config: Rewrite, documents: pa.Table, results: list[Rewritten], books: Books) -> None:
    writer, rejected = DocumentWriter(shard.folder / FILE, shard.config["name"], {}), list[dict[str, str | None]]()
    made_by = {"model": config.model, "prompt": config.prompt if config.prompt in STYLES else "own"}
    for row, result in zip(documents.drop_columns(["text", "key"]).to_pylist(), results, strict=True):
        if result.cause is not None:
            rejected.append({"id": row["id"], "cause": result.cause, "answer": result.shown})
            continue
        metadata = {**json.loads(row["metadata"] or "{}"), "rewritten_from": row["source"], **made_by}
        books.count("bytes", writer.write(row["id"], result.text, None, None, metadata, {}))
        books.count("documents")
    writer.close()
    pq.write_table(pa.Table.from_pylist(rejected, REJECTED_SCHEMA), shard.folder / REJECTED, compression="zstd")


class _Rewriting:
    """Asks about documents, and judges what comes."""

    def __init__(self, shard: Shard, config: Rewrite) -> None:
        self.shard, self.config, self.style = shard, config, config.style()

    def results(self, documents: list[dict[str, Any]]) -> list[Rewritten]:
        asking = Asking(self.shard, f"sources.{self.shard.name}.rewrite", self._request, self._rewrite, self._refuse)
        return asking.results(documents)

    def _request(self, document: dict[str, Any]) -> Body:
        return self.config.body(fill(self.style.requests[0], self._shown(document)))

    def _shown(self, document: dict[str, Any]) -> str:
        return str(document["text"])[: self.config.max_characters]

    def _rewrite(self, document: dict[str, Any], first: Reply, ask: Ask) -> Rewritten:
        told = shown = self._shown(document)
        replies, parts = [first], list[str]()
        for number, (request, shape) in enumerate(zip(self.style.requests, self.style.shapes, strict=True)):
            if number:
                told = parts[-1]
                replies.append(ask(self.config.body(fill(request, shown, told))))
            part, misshapen = SHAPES[shape](replies[-1].text)
            cause = rejection(replies[-1], request, told) or misshapen
            if cause:
                return Rewritten(replies, cause=f"{cause}{AGAIN if number else ''}")
            parts.append(part)
        text = "\n\n".join(parts)
        result = known_result(document["text"], json.loads(document["metadata"] or "{}")) if self.config.check_result else None
        lost = result is not None and not has_result(text, result)
        return Rewritten(replies, text, RESULT_LOST if lost else None)

    def _refuse(self, unusable: int, done: int, asked: int, last: Rewritten) -> None:
        """An end once it is certain that more are unusable than may be. Other shards may be better, so that by chance alone none ends."""
        tolerated = self.config.max_unusable
        if done >= FEWEST and unusable > tolerated * done + DEVIATIONS * math.sqrt(done * tolerated * (1 - tolerated)):
            raise TooManyUnusable(_too_many(self.shard.name, unusable, done, tolerated, str(last.cause), last.shown))


def _too_many(name: str, unusable: int, asked: int, tolerated: float, cause: str, answer: str) -> str:
    return (
        f"{unusable:,} answers of {asked:,} make no document, more than max_unusable {tolerated:g} allows; {example(cause, answer)}"
        "; take another prompt or model, raise max_tokens where answers are cut, or raise max_unusable"
        f" (where the endpoint was at fault, `olmoflow rerun rewrite --source {name} --force` asks again)"
    )


def check(name: str, books: Books, tolerated: float, store: Store, refs: list[ShardRef]) -> None:
    """Raise UserError where more answers of a made source are unusable than the recipe tolerates by now."""
    unusable, asked = books.counts["unusable"], books.counts["asked"]
    if unusable <= tolerated * asked:
        return
    rows = (pq.read_table(input_files(store, ref)[REJECTED]).slice(0, 1).to_pylist() for ref in refs)
    row = next(row for found in rows for row in found)
    raise UserError(f"sources.{name}.rewrite: {_too_many(name, unusable, asked, tolerated, row['cause'], row['answer'] or '')}")
