"""Stack Exchange dumps: pairs, the books of the posts, the text, and hostile or broken files."""

import gzip
import io
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import py7zr
import pytest

from tasks.errors import UserError
from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig, belongs, place, typed_columns
from tasks.sources.html import to_text

MakeRaw = Callable[..., RawFile]
HEAD = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'
REAL_DUMPS = ["ai.stackexchange.com/Posts.xml", "coffee.stackexchange.com/Posts.xml", "quantumcomputing.stackexchange.com.7z"]
POSTS = "coffee.stackexchange.com/Posts.xml"


def row(id: int, kind: int, score: int = 9, *, body: str = "<p>b</p>", **more: Any) -> str:
    attributes = {"Id": id, "PostTypeId": kind, "Score": score, "Body": body, **more}
    return "  <row " + " ".join(f"{name}={quoteattr(str(value), {chr(10): '&#xA;'})}" for name, value in attributes.items()) + " />\n"


def question(id: int, accepted: int | None, score: int = 9, **more: Any) -> str:
    return row(id, 1, score, **({"AcceptedAnswerId": accepted} | more if accepted else more))


def answer(id: int, parent: int, score: int = 9, **more: Any) -> str:
    return row(id, 2, score, ParentId=parent, **more)


def dump(*rows: str) -> bytes:
    return (HEAD + "".join(rows) + "</posts>").encode()


def archive(members: dict[str, bytes], **settings: Any) -> bytes:
    sink = io.BytesIO()
    with py7zr.SevenZipFile(sink, "w", **settings) as packed:
        for name, content in members.items():
            packed.writestr(content, name)
    return sink.getvalue()


def read(file: RawFile, **settings: Any) -> list[Item]:
    return list(READERS["stackexchange"](file, SourceConfig(format="stackexchange", paths=["x"], **settings)))


def only_bad(items: list[Item]) -> Bad:
    (bad,) = (item for item in items if isinstance(item, Bad))
    return bad


PAIR = (question(1, 2, Title="T"), answer(2, 1))


def test_a_pair_keeps_its_origin_and_its_text_is_as_by_hand(raw: MakeRaw) -> None:
    asked = "<p>Why &amp; <b>how</b>?</p>\n\n<pre><code>x = 1\n\n\n\ny = 2\n</code></pre>\n"
    file = raw(
        dump(
            answer(
                7, 4, 6, body="<p>So: $a_b$.</p><p>See <a href='u'>this</a>.</p>", OwnerDisplayName="gone", ContentLicense="CC BY-SA 4.0"
            ),
            question(
                4, 7, 3, body=asked, Title="A title", Tags="<beans><hot-water>", OwnerUserId=5, CreationDate="2015-01-27T20:09:32.720"
            ),
        ),
        POSTS,
    )
    (record,) = read(file)
    assert record == Record(
        position="row 2, row 1",
        id="coffee.stackexchange.com/q/4",
        # The longest run has 4 newlines, so 5 stand between question and answer (report, section 4.1).
        text="A title\n\nWhy & how?\n\nx = 1\n\n\n\ny = 2\n\n\n\n\nSo: $a_b$.\n\nSee this.",
        created="2015-01-27T20:09:32.720",
        metadata={
            "url": "https://coffee.stackexchange.com/q/4",
            "tags": ["beans", "hot-water"],
            "question_id": 4,
            "answer_id": 7,
            "question_owner": "5",
            "answer_owner": "gone",
            "question_licence": None,
            "answer_licence": "CC BY-SA 4.0",
        },
        columns={
            "question_score": 3,
            "answer_score": 6,
            "site": "coffee.stackexchange.com",
            "url": "https://coffee.stackexchange.com/q/4",
        },
        units=2,
    )
    assert set(typed_columns(SourceConfig(format="stackexchange", paths=["x"]))) == set(record.columns)


def test_tags_between_bars_are_read_too(raw: MakeRaw) -> None:
    (record,) = read(raw(dump(question(1, 2, Tags="|a|b-c|"), answer(2, 1)), POSTS))
    assert isinstance(record, Record) and record.metadata["tags"] == ["a", "b-c"]


def test_every_post_is_booked_once(raw: MakeRaw) -> None:
    file = raw(
        dump(
            question(1, None),
            answer(2, 1),
            question(3, 4, 2),
            answer(4, 3),
            question(5, 6),
            answer(6, 5, 4),
            answer(7, 5),
            question(8, 99),
            row(9, 5),
            question(10, 11),
            answer(11, 10, body="<p> </p>"),
            *(question(12, 13), answer(13, 12)),
            answer(14, 12),
        ),
        POSTS,
    )
    items = read(file)
    reasons: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Dropped):
            reasons[item.reason] += item.units
    assert reasons == {
        "question without accepted answer": 1,
        "question votes < 3": 1,
        "answer of a dropped question": 2,
        "answer votes < 5": 1,
        "question of a dropped answer": 1,
        "answer not accepted": 2,
        "accepted answer missing": 1,
        "not a question or answer": 1,
        "empty text": 2,
    }
    assert [item.id for item in items if isinstance(item, Record)] == ["coffee.stackexchange.com/q/12"]
    assert sum(item.units for item in items) == 14


def test_the_votes_are_the_recipes(raw: MakeRaw) -> None:
    file = raw(dump(question(1, 2, 0), answer(2, 1, -1)), POSTS)
    assert isinstance(read(file, min_question_votes=0, min_answer_votes=-1)[0], Record)
    assert read(file, min_question_votes=0, min_answer_votes=0) == [Dropped("answer votes < 0"), Dropped("question of a dropped answer")]


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ('  <row Id="5" PostTypeId="1" Score="1" Body="&undefined;" />\n', "malformed XML"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="&#x1;" />\n', "malformed XML"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="never closed />\n', "malformed XML"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="b" Body="b" />\n', "malformed XML"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="b"\n', "cut off"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="b" /> words\n', "follows the row"),
        ('  <row Id="5" PostTypeId="1" Score="1" Body="b" /><!DOCTYPE x [<!ENTITY y "z">]>\n', "follows the row"),
        ('  <row Id="5" PostTypeId="2" Score="1" Body="b" />\n', "no ParentId"),
        ('  <row Id="x" PostTypeId="1" Score="1" Body="b" />\n', "'x' is no number"),
        ('  <row Id="5" PostTypeId="1" Body="b" />\n', "no Score"),
        ('  <row Id="5" PostTypeId="1" Score="1" />\n', "no Body"),
        ('  <row Id="5" PostTypeId="1" Score="99999999999999999999" Body="b" />\n', "no number that fits"),
        (question(1, 2), "twice"),
        (answer(2, 1), "twice"),
    ],
)
def test_a_broken_row_costs_one_row(raw: MakeRaw, broken: str, cause: str) -> None:
    items = read(raw(dump(*PAIR, broken, question(20, 21), answer(21, 20)), POSTS))
    bad = only_bad(items)
    assert cause in bad.cause and bad.position == "row 3" and bad.raw and bad.units == 1
    assert [item.id for item in items if isinstance(item, Record)] == ["coffee.stackexchange.com/q/1", "coffee.stackexchange.com/q/20"]
    assert sum(item.units for item in items) == 5


def test_a_row_that_is_no_utf8_costs_one_row(raw: MakeRaw) -> None:
    items = read(raw(dump(*PAIR, question(5, None, body="?BAD?")).replace(b"?BAD?", b"\xff\xfe"), POSTS))
    assert "malformed XML" in only_bad(items).cause
    assert sum(item.units for item in items) == 3


ENTITY_BOMB = '<?xml version="1.0"?><!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<posts>' + row(1, 1, body="&b;") + "</posts>"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (ENTITY_BOMB.encode(), "document type"),
        ((HEAD + "<!-- c -->" + "".join(PAIR) + "</posts>").encode(), "comment"),
        (b"", "no Posts.xml"),
        (b"PK\x03\x04", "no Posts.xml"),
        (dump(*PAIR).decode("utf-8-sig").encode("utf-16"), "no Posts.xml"),
        (dump(*PAIR).replace(b"utf-8", b"latin-1"), "latin-1 is not UTF-8"),
        (dump(*PAIR).replace(b"posts>", b"comments>"), "no Posts.xml"),
    ],
)
def test_a_file_that_is_no_dump_or_brings_a_document_type_is_refused(raw: MakeRaw, content: bytes, cause: str) -> None:
    (bad,) = read(raw(content, POSTS))
    assert isinstance(bad, Bad) and cause in bad.cause and bad.unreadable_bytes == len(content)


def test_a_dump_without_posts_holds_nothing(raw: MakeRaw) -> None:
    assert read(raw(dump(), POSTS)) == []


def test_a_cut_off_dump_gives_the_pairs_before_the_cut(raw: MakeRaw) -> None:
    rows = [text for id in range(1, 400, 2) for text in (question(id, id + 1, body=f"<p>{id}</p>"), answer(id + 1, id))]
    content = gzip.compress(dump(*rows), 0)
    cut = content[: len(content) // 2]
    items = read(raw(cut, POSTS + ".gz"))
    bad = only_bad(items)
    assert "ends early" in bad.cause and bad.position == f"byte {len(cut)}"
    pairs = sum(isinstance(item, Record) for item in items)
    assert abs(pairs - 100) <= 2
    # The rows before the cut are all booked: what is whole in the decoded half, and the one in two.
    whole = zlib.decompressobj(31).decompress(cut).count(b" />")
    assert sum(item.units for item in items) == whole + 1


def test_an_archive_is_read_without_its_other_tables(raw: MakeRaw, tmp_path: Path) -> None:
    content = archive({"Badges.xml": b"not xml", "Posts.xml": dump(*PAIR), "Users.xml": b"x" * 1000})
    (record,) = read(raw(content, "ai.stackexchange.com.7z"))
    assert isinstance(record, Record) and record.id == "ai.stackexchange.com/q/1" and record.text == "T\n\nb\n\n\nb"
    assert [path.name for path in tmp_path.iterdir()] == ["ai.stackexchange.com.7z"]


@pytest.mark.parametrize("name", ["../Posts.xml", "/tmp/Posts.xml", "a/../../b.xml", "C:\\Posts.xml", "..\\b.xml"])
def test_an_archive_with_members_outside_it_is_refused(raw: MakeRaw, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive({"Posts.xml": dump(*PAIR), "harmless": b"x"})
    # py7zr writes no such names, so they are put in where it lists them.
    listed = py7zr.SevenZipFile.list

    def with_bad_name(self: py7zr.SevenZipFile) -> list[Any]:
        members = listed(self)
        members[1].filename = name
        return members

    monkeypatch.setattr(py7zr.SevenZipFile, "list", with_bad_name)
    monkeypatch.setattr(py7zr.SevenZipFile, "extract", lambda *_, **__: pytest.fail("extracted"))
    (bad,) = read(raw(content, "a.stackexchange.com.7z"))
    assert isinstance(bad, Bad) and "refused" in bad.cause and repr(name) in bad.cause


def test_broken_archives_are_bad_as_a_whole(raw: MakeRaw) -> None:
    good = archive({"Posts.xml": dump(*PAIR) + b" " * 5000})
    damaged = good[:40] + b"\xff" * 20 + good[60:]
    without = archive({"Users.xml": b"x"})
    locked = archive({"Posts.xml": dump(*PAIR)}, password="secret")
    for content in (good[:-10], damaged, b"7z\xbc\xaf\x27\x1c", without, locked):
        (bad,) = read(raw(content, "a.stackexchange.com.7z"))
        assert isinstance(bad, Bad) and "archive" in bad.cause and bad.unreadable_bytes == len(content)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("dump/ai.stackexchange.com/Posts.xml", "ai.stackexchange.com"),
        ("dump/ai.stackexchange.com/Posts.xml.gz", "ai.stackexchange.com"),
        ("math.stackexchange.com.7z", "math.stackexchange.com"),
        ("stackoverflow.com-Posts.7z", "stackoverflow.com"),
        ("dump/mathoverflow.net.7z", "mathoverflow.net"),
    ],
)
def test_the_site_is_found_in_the_name(name: str, site: str) -> None:
    file = RawFile(f"s3://bucket/{name}", Path(name).name, 0, "0")
    assert place(file, SourceConfig(format="stackexchange", paths=["x"])) == site
    assert place(file, SourceConfig(format="stackexchange", paths=["x"], site="other.com")) == "other.com"
    assert place(file, SourceConfig(format="dolma", paths=["x"])) is None


def test_a_site_that_no_name_tells_is_asked_for(raw: MakeRaw) -> None:
    with pytest.raises(UserError, match="site"):
        read(raw(dump(*PAIR), "dump/Posts.xml"))


def test_a_folder_gives_its_posts_and_not_its_side_tables() -> None:
    names = [
        "Posts.xml",
        "Comments.xml",
        "a.com.7z",
        "stackoverflow.com-Posts.7z",
        "stackoverflow.com-Tags.7z",
        "es.meta-x.com.7z",
        "readme.txt",
    ]
    taken = [name for name in names if belongs(name, "stackexchange")]
    assert taken == ["Posts.xml", "a.com.7z", "stackoverflow.com-Posts.7z", "es.meta-x.com.7z"]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a</p>\n\n<p>b\nc<br>d</p>", "a\n\nb c\nd"),
        ("<ol><li>one</li><li>two<ul><li>x</li></ul></li></ol>", "  1. one\n  2. two\n    • x"),
        ('<ul><li>see<pre class="x"><code>if a &lt; b:\n    c()\n</code></pre></li></ul>', "  • see\n\n    if a < b:\n        c()"),
        ("<pre><code>    deep\n\tx</code></pre>", "    deep\n\tx"),
        ("10<sup>-6</sup> m<sup>2</sup> 20<sup>th</sup> <sup>[1]</sup>", "10^(-6) m^2 20th [1]"),
        ("$x_1 &lt; \\frac{a}{b}$", "$x_1 < \\frac{a}{b}$"),
        ('see <img src="u" alt="enter image description here"><img alt="a cat">', "see a cat"),
        ("<script>alert(1)</script>z", "z"),
        ("", ""),
    ],
)
def test_html_becomes_text(html: str, text: str) -> None:
    assert to_text(html) == text


def test_a_mark_of_our_own_in_a_body_does_no_harm() -> None:
    assert to_text("\ufffe7\ufffe &#xFFFE;5&#xFFFE; <pre>code</pre>") == "7 \ufffe5\ufffe\n\ncode"


def pairs_by_hand(xml: bytes) -> dict[int, int]:
    """Question and answer ids that the report's rule keeps, by another parser and without any streaming."""
    posts = [post.attrib for post in ElementTree.fromstring(xml.decode("utf-8-sig"))]
    answers = {post["Id"]: int(post["Score"]) for post in posts if post["PostTypeId"] == "2"}
    return {
        int(post["Id"]): int(post["AcceptedAnswerId"])
        for post in posts
        if post["PostTypeId"] == "1" and int(post["Score"]) >= 3 and answers.get(post.get("AcceptedAnswerId", ""), -99) >= 5
    }


@pytest.mark.parametrize("name", REAL_DUMPS)
def test_real_dumps_give_the_pairs_that_the_rule_keeps(data: Path, name: str, tmp_path: Path) -> None:
    path = data / "stackexchange" / name
    posts = path
    if path.suffix == ".7z":
        with py7zr.SevenZipFile(path) as packed:
            packed.extract(path=tmp_path, targets=["Posts.xml"])
        posts = tmp_path / "Posts.xml"
    xml = posts.read_bytes()
    items = read(RawFile(str(path), path.name, path.stat().st_size, "0" * 64))
    records = [item for item in items if isinstance(item, Record)]
    wanted = pairs_by_hand(xml)
    assert len(wanted) > 50
    assert {record.metadata["question_id"]: record.metadata["answer_id"] for record in records} == wanted
    assert not any(isinstance(item, Bad) for item in items)
    assert sum(item.units for item in items) == len(re.findall(rb"<row ", xml))
    for record in records:
        question_part, answer_part = max(re.finditer(r"\n+", record.text), key=lambda run: len(run[0])).span()
        runs = [len(run) for part in (record.text[:question_part], record.text[answer_part:]) for run in re.findall(r"\n+", part)]
        assert answer_part - question_part == max(runs) + 1
