"""Stack Exchange dumps: pairs, and the books of the posts."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.sax.saxutils import quoteattr

import py7zr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig, belongs, place, typed_columns, verdicts
from tasks.sources.posts_xml import Post
from tasks.sources.verdicts import Census

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
                7,
                4,
                6,
                body="<p>So: $a_b$.</p><p>See <a href='u'>this</a>.</p>",
                OwnerDisplayName="gone",
                ContentLicense="CC BY-SA 4.0",
                CreationDate="2015-02-01T00:00:00.000",
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
            "answer_url": "https://coffee.stackexchange.com/a/7",
            "tags": ["beans", "hot-water"],
            "question_id": 4,
            "answer_id": 7,
            "question_owner": "5",
            "answer_owner": "gone",
            "question_licence": None,
            "answer_licence": "CC BY-SA 4.0",
            "answer_created": "2015-02-01T00:00:00.000",
        },
        columns={
            "question_score": 3,
            "answer_score": 6,
            "accepted": True,
            "site": "coffee.stackexchange.com",
            "url": "https://coffee.stackexchange.com/q/4",
        },
        units=2,
    )
    assert set(typed_columns(SourceConfig(format="stackexchange", paths=["x"]))) == set(record.columns)


def test_tags_between_bars_are_read_too(raw: MakeRaw) -> None:
    (record,) = read(raw(dump(question(1, 2, Tags="|a|b-c|"), answer(2, 1)), POSTS))
    assert isinstance(record, Record) and record.metadata["tags"] == ["a", "b-c"]


def reasons(items: list[Item]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Dropped):
            counts[item.reason] += item.units
    return counts


def ids(items: list[Item]) -> list[str]:
    return [item.id.removeprefix("coffee.stackexchange.com/") for item in items if isinstance(item, Record)]


EACH_CASE = (
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
    question(12, 13),
    answer(13, 12),
    answer(14, 12),
    question(15, 13),  # answer 13 says that it answers question 12
    answer(16, 98),
    answer(17, 14),  # an answer to an answer
    question(18, 19, body="<p></p>"),
    answer(19, 18),
    question(20, None, 8),
)


def test_every_post_is_booked_once(raw: MakeRaw) -> None:
    items = read(raw(dump(*EACH_CASE), POSTS))
    assert reasons(items) == {
        "question without accepted answer": 2,
        "question votes < 3": 1,
        "answer of a dropped question": 3,
        "answer votes < 5": 1,
        "question of a dropped answer": 2,
        "answer not accepted": 2,
        "accepted answer missing": 1,
        "accepted answer of another question": 1,
        "answer of a missing question": 2,
        "not a question or answer": 1,
        "empty text": 2,
    }
    assert ids(items) == ["q/12"]
    assert sum(item.units for item in items) == len(EACH_CASE)


def test_all_answers_over_the_votes_are_a_document_each_and_count_their_question_once(raw: MakeRaw) -> None:
    items = read(raw(dump(*EACH_CASE), POSTS), answers="all")
    assert ids(items) == ["a/2", "a/7", "q/12", "a/14"]
    assert [item.units for item in items if isinstance(item, Record)] == [2, 2, 2, 1]
    assert reasons(items) == {
        "question votes < 3": 1,
        "answer of a dropped question": 2,
        "answer votes < 5": 1,
        "question of a dropped answer": 1,
        "question without answers": 3,
        "answer of a missing question": 2,
        "not a question or answer": 1,
        "empty text": 2,
    }
    assert sum(item.units for item in items) == len(EACH_CASE)


def test_taking_all_answers_adds_documents_and_changes_none(raw: MakeRaw) -> None:
    file = raw(dump(*EACH_CASE, question(30, 32, body="<p>q</p>"), answer(31, 30, body="<p>x</p>"), answer(32, 30, body="<p>y</p>")), POSTS)
    every = {item.id: item for item in read(file, answers="all") if isinstance(item, Record)}
    accepted = [item for item in read(file) if isinstance(item, Record)]
    assert [replace(every[item.id], units=2) for item in accepted] == accepted
    assert {id for id, item in every.items() if item.columns["accepted"]} == {item.id for item in accepted}
    other = every["coffee.stackexchange.com/a/31"]
    assert other.text == "q\nx" and other.metadata["answer_id"] == 31 and other.metadata["question_id"] == 30


def test_an_answer_may_stand_before_its_question(raw: MakeRaw) -> None:
    early = dump(answer(9, 4, body="<p>early</p>"), answer(3, 4, 4), question(4, 9, body="<p>late</p>"), answer(8, 4), answer(7, 5))
    for choice, wanted in (("accepted", ["q/4"]), ("all", ["a/8", "q/4"])):
        items = read(raw(early, POSTS), answers=choice)
        assert ids(items) == wanted
        assert [item.text for item in items if isinstance(item, Record)][-1] == "late\nearly"
        assert sum(item.units for item in items) == 5


posts = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 2, 2, 2, 5]),
        st.integers(1, 9),
        st.integers(2, 6),
        st.integers(0, 9),
        st.sampled_from(["<p>b</p>", "<p></p>"]),
    ),
    max_size=14,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(posts=posts, choice=st.sampled_from(["accepted", "all"]), block=st.sampled_from([2, 3, 1000]))
def test_any_order_of_any_posts_gives_the_pairs_of_a_plain_loop_and_books_each_row_once(
    raw: MakeRaw, posts: list[tuple[int, int, int, int, str]], choice: str, block: int
) -> None:
    # The oracle: dictionaries over all posts, the first of each id.
    first: dict[int, tuple[int, int, int, str]] = {}
    for kind, id, score, link, body in posts:
        if kind != 2 or link:
            first.setdefault(id, (kind, score, link, body))
    wanted = set()
    for id, (kind, score, link, body) in first.items():
        parent = first.get(link)
        if kind != 2 or score < 5 or parent is None or parent[0] != 1 or parent[1] < 3 or "b</p>" not in body + parent[3]:
            continue
        if body == parent[3] == "<p>b</p>" and (parent[2] == id or choice == "all"):
            wanted.add((link, id))
    content = dump(
        *(
            question(id, link or None, score, body=body)
            if kind == 1
            else row(id, kind, score, body=body, **({"ParentId": link} if link else {}))
            for kind, id, score, link, body in posts
        )
    )
    with patch.object(verdicts, "_BLOCK_ROWS", block):  # the posts of a dump are judged some at a time
        items = read(raw(content, POSTS), answers=choice)
    records = [item for item in items if isinstance(item, Record)]
    pairs = [(record.metadata["question_id"], record.metadata["answer_id"]) for record in records]
    assert len(set(pairs)) == len(pairs) and set(pairs) == wanted
    assert sum(record.units for record in records) == len(pairs) + len({question for question, _ in pairs})
    assert sum(item.units for item in items) == len(posts)


def test_a_census_holds_few_bytes_a_post() -> None:
    # 60 million posts must fit into 2 GiB, so into less than 35 bytes each.
    census = Census(SourceConfig(format="stackexchange", paths=["x"]))
    count = 200_000
    for id in range(1, count + 1):
        census.add(Post(id, 1 + id % 2, 9, id, dict.get))
    held = sum(sys.getsizeof(part) for part in (census.ids, census.links, census.fates))
    assert held / count < 12


def test_the_votes_are_the_recipes(raw: MakeRaw) -> None:
    file = raw(dump(question(1, 2, 0), answer(2, 1, -1)), POSTS)
    assert isinstance(read(file, min_question_votes=0, min_answer_votes=-1)[0], Record)
    assert read(file, min_question_votes=0, min_answer_votes=0) == [Dropped("question of a dropped answer"), Dropped("answer votes < 0")]


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
