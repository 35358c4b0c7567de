"""Annotate: a language model labels documents, for a classifier to be trained on (report, section 4.2.1: 10,000 of OpenWebMath by GPT-4o).
What was answered once is not asked again (see `tasks.asking`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from tasks import annotate_sample
from tasks.asking import CUT, UNCHANGING, Ask, Asked, Asking, Body, TooManyUnusable, example, tokens
from tasks.chat import Reply
from tasks.errors import UserError
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books, Store

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


class Annotation(Asked):
    """Labels by a language model for a part of a source's documents."""

    source: str = Field(description="The source whose documents are labelled.", json_schema_extra={"position": 0})
    documents: int = Field(default=10_000, ge=1, description="How many, chosen by hash of the key.", json_schema_extra={"position": 1})
    prompt: str = Field(description="What is asked; {text} stands for the document.", json_schema_extra={"position": 3})
    labels: list[str | int] = Field(
        min_length=2, description="The labels, or the numbers from 0 to 5 of a scale.", json_schema_extra={"position": 4}
    )
    parse: str | None = Field(
        default=None,
        description="Regular expression whose group is the label; without it the whole answer must be one.",
        json_schema_extra={"position": 5},
    )

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

    def request(self, text: str) -> Body:
        """The body of a chat completion for a document."""
        return self.body(self.prompt.replace(TEXT, text[: self.max_characters]))

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


@dataclass(frozen=True)
class _Labelled:
    """A document's label, or the cause why it has none."""

    reply: Reply
    label: str | None
    cause: str | None

    @property
    def shown(self) -> str:
        return self.reply.text

    @property
    def replies(self) -> list[Reply]:
        return [self.reply]


def task(name: str, config: Annotation, sample: list[ShardRef], store: Store, afresh: bool) -> ShardTask:
    """Labels of the documents that are first in line. afresh: ask again also what has been answered."""
    settings = config.model_dump(mode="json", exclude={"source", *UNCHANGING})
    return ShardTask(name, settings, {"sample": list(sample)}, config.hints(store, afresh))


def run(shard: Shard) -> Books:
    """sample -> annotations.parquet: id, key, text, label (null where there is none), the answer, the cause where there is no label."""
    config = Annotation(**shard.config, source="-", max_unusable=shard.hints["max_unusable"], endpoint=shard.hints["endpoint"])
    sample = pa.concat_tables([pq.read_table(files[annotate_sample.FILE]) for files in shard.inputs["sample"]])
    taken = sample.sort_by([("place", "ascending"), ("id", "ascending")]).slice(0, config.documents)

    def label(text: str, reply: Reply, ask: Ask) -> _Labelled:
        return _Labelled(reply, *config.read(reply))

    def refuse(unusable: int, done: int, asked: int, last: _Labelled) -> None:
        """An end as soon as more are unusable than may be at the end, since every call costs."""
        if unusable > config.max_unusable * asked:
            raise TooManyUnusable(_too_many(unusable, asked, config.max_unusable, str(last.cause), last.shown))

    read = Asking(shard, f"annotations.{shard.name}", config.request, label, refuse).results(taken["text"].to_pylist())
    columns = {name: taken.column(name) for name in ("id", "key", "text")}
    columns |= {"label": [each.label for each in read], "answer": [each.shown for each in read], "cause": [each.cause for each in read]}
    pq.write_table(pa.table(columns, schema=SCHEMA), shard.folder / FILE, compression="zstd")
    return _books(sample.num_rows, read)


def _books(candidates: int, read: list[_Labelled]) -> Books:
    books = Books(read=candidates, kept=sum(each.label is not None for each in read))
    if candidates > len(read):
        books.drop(LATER, candidates - len(read))
    for cause, number in sorted(Counter(each.cause for each in read if each.cause).items()):
        books.drop(cause, number)
    books.count("asked", len(read))
    books.count("unusable", len(read) - books.kept)
    for label, number in sorted(Counter(each.label for each in read if each.label is not None).items()):
        books.count(f"label {label}", number)
    books.counts |= tokens(read)
    return books


def _too_many(unusable: int, asked: int, tolerated: float, cause: str, answer: str) -> str:
    return (
        f"{unusable:,} answers of {asked:,} have no label, more than max_unusable {tolerated:g} allows; {example(cause, answer)}"
        "; mend the prompt, labels, parse or max_tokens, or raise max_unusable"
    )


def check(name: str, books: Books, tolerated: float, table: pa.Table) -> None:
    """Raise UserError where more answers of a made annotation are unusable than the recipe tolerates by now."""
    unusable, asked = books.counts["unusable"], books.counts["asked"]
    if unusable > tolerated * asked:
        row = table.filter(pc.is_valid(table["cause"])).slice(0, 1).to_pylist()[0]
        raise UserError(f"annotations.{name}: {_too_many(unusable, asked, tolerated, row['cause'], row['answer'] or '')}")
