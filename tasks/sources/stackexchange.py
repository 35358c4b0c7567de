"""Stack Exchange dumps: a question and its accepted answer become one document (report, section 4.1).

Two passes over Posts.xml: the first writes the questions that qualify to a scratch database on disk, the second meets the answers.
So the memory does not grow with the dump, and an answer may stand before its question.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import py7zr
import pyarrow as pa
from lxml import etree

from tasks.errors import UserError
from tasks.sources.base import Bad, Dropped, FieldError, Item, RawFile, Record
from tasks.sources.config import SourceConfig
from tasks.sources.html import to_text
from tasks.sources.stream import StreamFault, split

POSTS = "Posts.xml"
SEVEN_ZIP_MAGIC = b"7z\xbc\xaf\x27\x1c"
QUESTION, ANSWER = 1, 2
COLUMNS = {"question_score": pa.int64(), "answer_score": pa.int64(), "site": pa.string(), "url": pa.string()}

ARCHIVE_ERRORS = (
    py7zr.exceptions.ArchiveError,
    py7zr.exceptions.PasswordRequired,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OSError,
    NotImplementedError,
)

# What may stand around the rows: the declaration, the root element.
_AROUND = re.compile(rb"\s*(?:<\?xml[^>]*\?>)?\s*(?:</?posts\s*/?>\s*)*", re.IGNORECASE)


class Post(NamedTuple):
    """One `<row/>` of Posts.xml: `number` from 1, its attributes, and those of them that are numbers."""

    number: int
    id: int
    kind: int
    score: int
    attributes: dict[str, str]


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """A Record of 2 units for each pair, a Dropped or Bad for each other post. `file` is a .7z archive or Posts.xml itself."""
    site = site_of(file, config)
    with file.open() as stream:
        archived = stream.read(len(SEVEN_ZIP_MAGIC)) == SEVEN_ZIP_MAGIC
    if not archived:
        yield from _read_posts(file, config, site)
        return
    with tempfile.TemporaryDirectory(prefix="olmoflow-7z-") as folder:
        posts = _extract(file, Path(folder))
        if isinstance(posts, Bad):
            yield posts
        else:
            yield from _read_posts(posts, config, site)


def site_of(file: RawFile, config: SourceConfig) -> str:
    """The site's host name: from the config, the archive (`stackoverflow.com-Posts.7z`), or the folder that Posts.xml lies in."""
    if config.site:
        return config.site
    path = PurePosixPath(file.url.split("::")[0].split("?")[0])
    name = path.parent.name if path.name.startswith(POSTS) else path.name
    name = re.sub(r"(-Posts)?(\.7z|\.xml)?(\.(gz|bz2|zst|xz))?$", "", name)
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", name):
        raise UserError(f"{file.url}: neither the file nor its folder is named after a Stack Exchange site; set the source's `site`.")
    return name


def _extract(file: RawFile, folder: Path) -> RawFile | Bad:
    """Posts.xml of an archive, on the local disk: 7z cannot be read from the middle, and two passes need it twice."""
    try:
        with file.open() as stream, py7zr.SevenZipFile(stream) as archive:
            members = archive.list()
            unsafe = [member.filename for member in members if _is_unsafe(member.filename) or member.is_symlink]
            if unsafe:
                return _unreadable(file, f"the archive is refused: its member {unsafe[0]!r} leads out of the archive's folder")
            names = [member.filename for member in members if PurePosixPath(member.filename).name == POSTS]
            if len(names) != 1:
                return _unreadable(file, f"the archive holds {len(names)} files {POSTS}, not one")
            archive.extract(path=folder, targets=names)
    except ARCHIVE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk or the network
        return _unreadable(file, f"damaged archive: {error or type(error).__name__}")
    path = folder / names[0]
    return RawFile(str(path), POSTS, path.stat().st_size, file.content_id)


def _unreadable(file: RawFile, cause: str, raw: bytes = b"") -> Bad:
    return Bad("byte 0", cause, raw, unreadable_bytes=file.size)


def _is_unsafe(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")


def _read_posts(file: RawFile, config: SourceConfig, site: str) -> Iterator[Item]:
    with (
        tempfile.TemporaryDirectory(prefix="olmoflow-se-") as folder,
        contextlib.closing(sqlite3.connect(Path(folder) / "questions.db")) as database,
    ):
        # The scratch file dies with this reader, so nothing needs to be safe on the disk.
        database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE questions (id INTEGER PRIMARY KEY, accepted INTEGER, met INTEGER DEFAULT 0, post TEXT)"
        )
        yield from _gather_questions(file, config, database)
        yield from _meet_answers(file, config, database, site)
        (missing,) = database.execute("SELECT count(*) FROM questions WHERE NOT met").fetchone()
        if missing:
            yield Dropped("accepted answer missing", missing)


def _gather_questions(file: RawFile, config: SourceConfig, database: sqlite3.Connection) -> Iterator[Item]:
    """First pass: keeps the questions that qualify; yields everything else that is no answer, and all that is Bad."""
    for post in _posts(file):
        if isinstance(post, Bad):
            yield post
        elif post.kind == QUESTION:
            yield from _gather(post, config, database)
        elif post.kind != ANSWER:
            yield Dropped("not a question or answer")


def _gather(post: Post, config: SourceConfig, database: sqlite3.Connection) -> Iterator[Item]:
    accepted = post.attributes.get("AcceptedAnswerId")
    if not accepted:
        yield Dropped("question without accepted answer")
    elif post.score < config.min_question_votes:
        yield Dropped(f"question votes < {config.min_question_votes}")
    else:
        try:
            database.execute("INSERT INTO questions (id, accepted, post) VALUES (?, ?, ?)", (post.id, int(accepted), json.dumps(post)))
        except sqlite3.IntegrityError:
            yield _twice(post)


def _meet_answers(file: RawFile, config: SourceConfig, database: sqlite3.Connection, site: str) -> Iterator[Item]:
    """Second pass: what was Bad before is booked already, so only answers are looked at."""
    for post in _posts(file):
        if isinstance(post, Bad) or post.kind != ANSWER:
            continue
        parent = int(post.attributes["ParentId"])
        row = database.execute("SELECT accepted, met, post FROM questions WHERE id = ?", (parent,)).fetchone()
        if row is None:
            yield Dropped("answer of a dropped question")
        elif row[0] != post.id:
            yield Dropped("answer not accepted")
        elif row[1]:
            yield _twice(post)
        else:
            database.execute("UPDATE questions SET met = 1 WHERE id = ?", (parent,))
            if post.score < config.min_answer_votes:
                yield Dropped(f"answer votes < {config.min_answer_votes}")
                yield Dropped("question of a dropped answer")
            else:
                yield _pair(Post(*json.loads(row[2])), post, site)


def _twice(post: Post) -> Bad:
    return Bad(f"row {post.number}", f"the post {post.id} stands in the file twice", json.dumps(post.attributes).encode())


def _pair(question: Post, answer: Post, site: str) -> Item:
    asked, answered = to_text(question.attributes["Body"]), to_text(answer.attributes["Body"])
    if not asked.strip() or not answered.strip():
        return Dropped("empty text", 2)
    title = question.attributes.get("Title", "").strip()
    url = f"https://{site}/q/{question.id}"
    return Record(
        position=f"row {question.number}, row {answer.number}",
        id=f"{site}/q/{question.id}",
        text=join(f"{title}\n\n{asked}" if title else asked, answered),
        created=question.attributes.get("CreationDate"),
        metadata={
            "url": url,
            "tags": [tag for tag in re.split(r"[<>|]+", question.attributes.get("Tags", "")) if tag],
            "question_id": question.id,
            "answer_id": answer.id,
            "question_owner": _owner(question),
            "answer_owner": _owner(answer),
            "question_licence": question.attributes.get("ContentLicense"),
            "answer_licence": answer.attributes.get("ContentLicense"),
        },
        columns={"question_score": question.score, "answer_score": answer.score, "site": site, "url": url},
        units=2,
    )


def _owner(post: Post) -> str | None:
    """The author's id, or the name that stays where the account is gone."""
    return post.attributes.get("OwnerUserId") or post.attributes.get("OwnerDisplayName")


def join(question: str, answer: str) -> str:
    """Both with one newline more between them than the longest run of newlines in either (report, section 4.1)."""
    longest = max((len(run) for run in re.findall(r"\n+", f"{question}\0{answer}")), default=0)
    return question + "\n" * (longest + 1) + answer


def _posts(file: RawFile) -> Iterator[Post | Bad]:
    """The posts of Posts.xml, each row parsed by itself: `<row ` cannot stand within a row, so one bad row costs one row.

    Nothing but rows is ever given to the parser, so no document type and no entity is read.
    """
    pieces = split(file, b"<row ")
    number = 0
    try:
        bad = _check_prologue(next(pieces), file)
        if bad:
            yield bad
            return
        for number, piece in enumerate(pieces, 1):
            try:
                post = _post(piece, number)
            except FieldError as error:
                yield Bad(f"row {number}", str(error), b"<row " + piece)
            else:
                yield post
    except StreamFault as fault:
        try:
            # The last row may be whole: what it lacks is only the next one's beginning.
            yield _post(fault.rest, number + 1)
            fault.rest = b""
        except FieldError:
            fault.rest = b"<row " + fault.rest
        yield fault.bad()


def _check_prologue(piece: bytes, file: RawFile) -> Bad | None:
    head = piece.removeprefix(b"\xef\xbb\xbf")
    if b"<!" in head:
        cause = "a document type or comment before the rows is refused"
    elif not re.search(rb"<posts[\s/>]", head) or _AROUND.fullmatch(head) is None:
        cause = f"this is no {POSTS} of a Stack Exchange dump in UTF-8"
    elif found := re.search(rb"""encoding=["']([^"']+)""", head):
        if found[1].lower() in (b"utf-8", b"utf8", b"us-ascii"):
            return None
        cause = f"the encoding {found[1].decode(errors='replace')} is not UTF-8"
    else:
        return None
    return _unreadable(file, cause, head[:1000])


_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)


def _post(piece: bytes, number: int) -> Post:
    end = piece.rfind(b"/>") + 2
    if end < 2:
        raise FieldError("malformed XML: the row is cut off")
    if not _AROUND.fullmatch(piece, end):
        raise FieldError("malformed XML: something else follows the row")
    try:
        attributes = dict(etree.fromstring(b"<row " + piece[:end], _PARSER).attrib)
    except etree.XMLSyntaxError as error:
        raise FieldError(f"malformed XML: {error.msg}") from None
    post = Post(number, _number(attributes, "Id"), _number(attributes, "PostTypeId"), _number(attributes, "Score"), attributes)
    if post.kind in (QUESTION, ANSWER) and "Body" not in attributes:
        raise FieldError("the post has no Body")
    if post.kind == ANSWER:
        _number(attributes, "ParentId")
    if post.kind == QUESTION and "AcceptedAnswerId" in attributes:
        _number(attributes, "AcceptedAnswerId")
    return post


def _number(attributes: dict[str, str], name: str) -> int:
    try:
        value = int(attributes[name])
    except KeyError:
        raise FieldError(f"the post has no {name}") from None
    except ValueError:
        raise FieldError(f"the post's {name} {attributes[name]!r:.40} is no number") from None
    if not -(2**63) <= value < 2**63:
        raise FieldError(f"the post's {name} {attributes[name]!r:.40} is no number that fits")
    return value
