"""Stack Exchange dumps: a question and one of its answers become one document (report, section 4.1).

Two passes over Posts.xml, each straight out of the archive. The first looks at ids, votes and links alone and settles what becomes of each
post (`verdicts`); the second makes documents of the posts that are kept. A question's text waits in a scratch file, not in memory, until
its answers come; an answer may also stand before its question.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.errors import UserError
from tasks.sources.base import Bad, Dropped, FieldError, Item, RawFile, Record
from tasks.sources.config import SourceConfig
from tasks.sources.html import to_text
from tasks.sources.posts_xml import POSTS, NoPosts, Post, parse, rows
from tasks.sources.stream import StreamFault
from tasks.sources.verdicts import Census, Fate, judge, tally

COLUMNS = {
    "question_score": pa.int64(),
    "answer_score": pa.int64(),
    "accepted": pa.bool_(),
    "site": pa.string(),
    "url": pa.string(),
}
_NOT_MET, _NO_TEXT = -1, -2  # of a question, where the place of its text in the scratch file would stand


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """A Record for each question with its answer, a Dropped or Bad for each other post. `file` is a .7z archive or Posts.xml itself.

    A question that has several documents is booked with its first one: 2 units, then 1 for each further answer.
    """
    site = site_of(file, config)
    census = Census(config)
    try:
        yield from _count(file, census)
    except NoPosts as refusal:
        yield Bad("byte 0", str(refusal), refusal.head, unreadable_bytes=file.size)
        return
    fates, questions = judge(census)
    del census
    yield from (Dropped(reason, count) for reason, count in tally(fates, config).items())
    with _Pairs(questions, site) as pairs:
        yield from _pair_up(file, fates, pairs)


def site_of(file: RawFile, config: SourceConfig) -> str:
    """The site's host name: from the config, the archive (`stackoverflow.com-Posts.7z`), or the folder that Posts.xml lies in."""
    if config.site:
        return config.site
    path = PurePosixPath(file.url.split("::")[0].split("?")[0])
    name = path.parent.name if path.name.startswith(POSTS) else path.name
    name = re.sub(r"(-Posts)?(\.7z|\.xml)?(\.(gz|bz2|zst|xz))?$", "", name)
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", name):
        raise UserError(f"{file.shown}: neither the file nor its folder is named after a Stack Exchange site; set the source's `site`.")
    return name


def _count(file: RawFile, census: Census) -> Iterator[Bad]:
    """First pass: each row's numbers into the census; yields what is Bad."""
    try:
        for number, row in enumerate(rows(file), 1):
            try:
                post = parse(row)
            except FieldError as error:
                census.add(None)
                yield Bad(f"row {number}", str(error), b"<row " + row)
            else:
                census.add(post)
    except StreamFault as fault:
        yield fault.bad()


def _pair_up(file: RawFile, fates: bytearray, pairs: _Pairs) -> Iterator[Item]:
    """Second pass: reads only the rows that are kept; what is dropped or Bad is booked already."""
    number = 0
    try:
        for number, row in enumerate(rows(file), 1):
            fate = fates[number - 1] if number <= len(fates) else None
            if fate == Fate.KEPT_QUESTION:
                yield from pairs.question(parse(row), number)
            elif fate == Fate.KEPT_ANSWER:
                yield from pairs.answer(parse(row), number)
            elif fate == Fate.TWICE:
                yield Bad(f"row {number}", f"the post {parse(row).id} stands in the file twice", b"<row " + row)
    except (StreamFault, NoPosts):
        pass  # a fault that the first pass met is booked; one that it did not meet leaves other rows
    if number != len(fates):
        raise UserError(
            f"{file.shown} changed while it was read: it had {len(fates)} rows, then {number}; run again when nobody writes to it."
        )
    yield from pairs.rest()


class _Pairs:
    """Joins answers to their questions. Holds 13 bytes a kept question; texts are in scratch files that die with the process."""

    def __init__(self, questions: np.ndarray[Any, np.dtype[np.uint32]], site: str) -> None:
        self.site = site
        self.ids = questions
        self.places = np.full(len(questions), _NOT_MET, np.int64)
        self.booked = np.zeros(len(questions), bool)
        self.texts = _Scratch()
        self.early = _Scratch()  # answers that stand before their question

    def __enter__(self) -> _Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        self.texts.close()
        self.early.close()

    def question(self, post: Post, number: int) -> Iterator[Item]:
        text = to_text(post.get("Body"))
        title = post.get("Title", "").strip()
        at = self._index(post.id)
        if not text.strip():
            self.places[at] = _NO_TEXT
            yield Dropped("empty text")
            return
        tags = [tag for tag in re.split(r"[<>|]+", post.get("Tags", "")) if tag]
        self.places[at] = self.texts.put(_facts(post, number, f"{title}\n\n{text}" if title else text) | {"tags": tags})

    def answer(self, post: Post, number: int) -> Iterator[Item]:
        text = to_text(post.get("Body"))
        if not text.strip():
            yield Dropped("empty text")
            return
        answer = _facts(post, number, text)
        if self.places[self._index(post.link)] == _NOT_MET:
            self.early.put(answer)
        else:
            yield self._pair(answer)

    def rest(self) -> Iterator[Item]:
        """The early answers' documents; then the questions that no document was made of."""
        for answer in self.early:
            yield self._pair(answer)
        unpaired = int(np.count_nonzero(~self.booked & (self.places != _NO_TEXT)))
        if unpaired:
            yield Dropped(Fate.ANSWERS_DROPPED.reason, unpaired)

    def _index(self, question: int) -> int:
        return int(np.searchsorted(self.ids, np.uint32(question)))

    def _pair(self, answer: dict[str, Any]) -> Item:
        at = self._index(answer["link"])
        if self.places[at] == _NO_TEXT:
            return Dropped(Fate.PARENT_DROPPED.reason)
        question = self.texts.get(int(self.places[at]))
        units = 1 if self.booked[at] else 2
        self.booked[at] = True
        return _record(question, answer, self.site, units)


def _facts(post: Post, number: int, text: str) -> dict[str, Any]:
    """What a document needs of a post."""
    return {
        "row": number,
        "id": post.id,
        "link": post.link,
        "score": post.score,
        "text": text,
        "created": post.get("CreationDate"),
        "owner": post.get("OwnerUserId") or post.get("OwnerDisplayName"),  # the name is what stays where the account is gone
        "licence": post.get("ContentLicense"),
    }


def _record(question: dict[str, Any], answer: dict[str, Any], site: str, units: int) -> Record:
    """The document of a pair. Its id is the question's for the accepted answer, else the answer's, whichever answers the recipe takes."""
    url, answer_url = f"https://{site}/q/{question['id']}", f"https://{site}/a/{answer['id']}"
    accepted = question["link"] == answer["id"]
    return Record(
        position=f"row {question['row']}, row {answer['row']}",
        id=(url if accepted else answer_url).removeprefix("https://"),
        text=join(question["text"], answer["text"]),
        created=question["created"],
        metadata={
            "url": url,
            "answer_url": answer_url,
            "tags": question["tags"],
            "question_id": question["id"],
            "answer_id": answer["id"],
            "question_owner": question["owner"],
            "answer_owner": answer["owner"],
            "question_licence": question["licence"],
            "answer_licence": answer["licence"],
            "answer_created": answer["created"],
        },
        columns={
            "question_score": question["score"],
            "answer_score": answer["score"],
            "accepted": accepted,
            "site": site,
            "url": url,
        },
        units=units,
    )


def join(question: str, answer: str) -> str:
    """Both with one newline more between them than the longest run of newlines in either (report, section 4.1)."""
    longest = max((len(run) for run in re.findall(r"\n+", f"{question}\0{answer}")), default=0)
    return question + "\n" * (longest + 1) + answer


class _Scratch:
    """Small JSON objects in a temporary file without a name, found again by their place."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="olmoflow-se-", buffering=1 << 20)  # noqa: SIM115 - closed by `close`
        self.end = self.flushed = 0

    def put(self, content: dict[str, Any]) -> int:
        packed = zlib.compress(json.dumps(content).encode(), 1)
        place = self.end
        self.end += self.file.write(len(packed).to_bytes(4, "little") + packed)
        return place

    def get(self, place: int) -> dict[str, Any]:
        return self._at(place)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        place = 0
        while place < self.end:
            content, place = self._at(place)
            yield content

    def _at(self, place: int) -> tuple[dict[str, Any], int]:
        if place >= self.flushed:
            self.file.flush()
            self.flushed = self.end
        size = int.from_bytes(os.pread(self.file.fileno(), 4, place), "little")
        content: dict[str, Any] = json.loads(zlib.decompress(os.pread(self.file.fileno(), size, place + 4)))
        return content, place + 4 + size

    def close(self) -> None:
        self.file.close()
