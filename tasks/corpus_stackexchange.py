"""A made-up Stack Exchange site about Python: hand-written frames around real documentation, in the form of the public dump.

One `<row/>` a post in `Posts.xml`, packed as one `.7z` a site. Votes lie around the report's thresholds (question 3, answer 5;
section 4.1) on both sides, some questions have no accepted answer, some accept an answer that the dump lacks.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from random import Random
from xml.sax.saxutils import quoteattr

import py7zr

from tasks.corpus_harvest import Docstring

FEWEST_QUESTIONS = 60
_FIRST_DAY = datetime(2016, 8, 2, 15, 39, 14, tzinfo=UTC)
_PACKED_AT = 1_700_000_000  # seconds since 1970; the archive records the file's time, so it is pinned

_QUESTION_SCORES = (3, 5, 2, 0, 12, 3, -2, 4, 1, 7, 2, 3, 31, 6)
_ANSWER_SCORES = (5, 9, 4, 6, 0, 5, 17, 2, 5, -1, 8, 3, 64)
_ANSWER_COUNTS = (2, 3, 1, 3, 2, 2, 4, 0, 3, 2)
_ACCEPTED = (True, True, False, True, True, True, False, True, True, True)

_TITLES = (
    "What does {code} do, and when should I use it?",
    "How do I call {code} correctly?",
    "Confused by the parameters of {code}",
    "{code}: what is returned, and what can go wrong?",
    "Is {code} the right tool for this?",
    "When should I prefer {code} over writing it myself?",
)
_OPENINGS = (
    "I am reading code that a colleague left behind and came across <code>{code}</code> from <code>{module}</code>.",
    "While porting a script I need <code>{code}</code> (module <code>{module}</code>), and its documentation is terse.",
    "I have used Python for about a year but never met <code>{code}</code> in <code>{module}</code> before.",
    "A reviewer asked me to replace twenty lines of mine with <code>{code}</code>, which lives in <code>{module}</code>.",
    "I searched this site for <code>{code}</code> and found only answers for a much older version of <code>{module}</code>.",
)
_TRIED = (
    "I called it without arguments and looked at the error message",
    "I read the source, but lost the thread after two screens",
    "I tried it in the interactive interpreter with a small example",
    "I compared it with what other languages offer &amp; found nothing alike",
    "I looked through the changelog for a mention of it",
    "I asked two colleagues, who gave me two different answers",
)
_CLOSINGS = (
    "Could somebody explain it in plain words, perhaps with an example?",
    "Which of the parameters matter in practice?",
    "Am I <em>missing something obvious</em>, or is there a better way?",
    "I would be grateful for an answer that says <strong>why</strong>, not only how.",
)
_ANSWER_OPENINGS = (
    "In short, this is what it is for:",
    "The documentation does say it, though one has to read it twice:",
    "Let me go through it step by step.",
    "It is simpler than it looks.",
    "I use this every week, so here is the version I wish I had been given:",
)
_ANSWER_ENDS = (
    "If that does not help, show a small example that fails and say which version you run.",
    "Try it in the interpreter with <code>help({code})</code>; it prints the same text.",
    "Do measure before you replace working code, though.",
    'There is more in <a href="https://docs.example/{module}" rel="noreferrer">its page</a>.',
)


@dataclass
class _Post:
    kind: int  # PostTypeId: 1 question, 2 answer, 5 tag wiki
    created: datetime
    score: int
    body: str  # HTML
    title: str = ""
    tags: str = ""
    parent: "_Post | None" = None
    accepted: "_Post | int | None" = None  # an answer of the dump, or the id of one that is not in it
    answers: list["_Post"] = field(default_factory=list)
    id: int = 0


def write_dump(path: Path, topics: Sequence[Docstring], text_bytes: int, seed: int) -> dict[str, int]:
    """Write `path` (a `.7z` holding `Posts.xml`) with about `text_bytes` of HTML bodies, at least 60 questions and 120 answers.

    Each topic gives one question; needs at least 60 topics. Returns counts: questions, answers, posts, text_bytes.
    """
    posts: list[_Post] = []
    written = questions = 0
    for number, topic in enumerate(topics):
        if written >= text_bytes and questions >= FEWEST_QUESTIONS:
            break
        room = 2500 if text_bytes > 250_000 else 700  # characters of documentation an answer quotes; small corpora quote less
        thread = _thread(number, topic, topics[number - 1], room, seed)
        posts.extend(thread)
        questions += 1
        written += sum(len(post.body.encode()) for post in thread)
    posts.append(_Post(5, _FIRST_DAY + timedelta(days=3), 0, "<p>Questions about the standard library and its neighbours.</p>"))
    posts.sort(key=lambda post: post.created)
    for number, post in enumerate(posts, 1):
        post.id = number
    _pack(path, '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "".join(f"  {_row(post)}\n" for post in posts) + "</posts>\n")
    answers = sum(post.kind == 2 for post in posts)
    return {"questions": questions, "answers": answers, "posts": len(posts), "text_bytes": sum(len(post.body.encode()) for post in posts)}


def _thread(number: int, topic: Docstring, neighbour: Docstring, room: int, seed: int) -> list[_Post]:
    rng = Random(f"{seed}/stackexchange/{topic.key}")
    asked = _FIRST_DAY + timedelta(hours=19 * number, seconds=rng.randrange(3600), milliseconds=rng.randrange(1000))
    tags = "".join(f"<{tag}>" for tag in ("python", re.sub(r"[^a-z0-9-]", "-", topic.module.split(".")[0].lower()), "standard-library"))
    title = rng.choice(_TITLES).format(code=topic.name)
    question = _Post(1, asked, _QUESTION_SCORES[number % len(_QUESTION_SCORES)], _question_body(topic, rng), title, tags)
    for nth in range(_ANSWER_COUNTS[number % len(_ANSWER_COUNTS)]):
        score = _ANSWER_SCORES[(3 * number + 5 * nth) % len(_ANSWER_SCORES)]
        body = _answer_body(topic, rng, room) if nth == 0 else _later_answer_body(topic, neighbour, rng, nth)
        created = asked + timedelta(minutes=rng.randrange(5, 90), days=nth * rng.randrange(1, 9))
        question.answers.append(_Post(2, created, score, body, parent=question))
    if _ACCEPTED[number % len(_ACCEPTED)] and question.answers:
        question.accepted = question.answers[0] if number % 5 else question.answers[-1]
    if number % 23 == 11:
        question.accepted = 9_000_000 + number  # deleted since: the dump names it and does not hold it
    return [question, *question.answers]


def _question_body(topic: Docstring, rng: Random) -> str:
    names = {"code": escape(topic.name), "module": escape(topic.module)}
    tried = "".join(f"<li>{item}</li>\n" for item in rng.sample(_TRIED, 3))
    call = f"from {topic.module} import {topic.name.split('.')[0]}\n\nresult = {topic.signature}\nprint(result)"
    return (
        f"<p>{rng.choice(_OPENINGS).format(**names)} My code is roughly this:</p>\n\n"
        f"<pre><code>{escape(call, quote=False)}\n</code></pre>\n\n"
        f"<p>What I have done so far:</p>\n\n<ul>\n{tried}</ul>\n\n<p>{rng.choice(_CLOSINGS)}</p>\n"
    )


def _answer_body(topic: Docstring, rng: Random, room: int) -> str:
    end = rng.choice(_ANSWER_ENDS).format(code=escape(topic.name), module=escape(topic.module))
    return f"<p>{rng.choice(_ANSWER_OPENINGS)}</p>\n\n{_as_html(topic.text[:room])}\n<p>{end}</p>\n"


def _later_answer_body(topic: Docstring, neighbour: Docstring, rng: Random, nth: int) -> str:
    names = topic.parameters
    if nth == 1 and names:
        items = "".join(f"<li><code>{escape(name)}</code></li>\n" for name in names)
        text = f"<p>It takes {len(names)} parameter{'' if len(names) == 1 else 's'}, in this order:</p>\n\n<ol>\n{items}</ol>\n"
    else:
        first = neighbour.text.split("\n\n")[0]
        text = (
            f"<p>Have a look at <code>{escape(neighbour.name)}</code> in <code>{escape(neighbour.module)}</code> as well:</p>\n\n"
            f"<blockquote>\n<p>{escape(first[:400], quote=False)}</p>\n</blockquote>\n"
        )
    return f"{text}\n<p>{rng.choice(_ANSWER_ENDS).format(code=escape(topic.name), module=escape(topic.module))}</p>\n"


def _as_html(text: str) -> str:
    """Documentation as a post's HTML: indented or `>>>` blocks as code, the rest as paragraphs with `names` as code."""
    parts = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t", ">>>")) or "\n    " in block:
            parts.append(f"<pre><code>{escape(block, quote=False)}\n</code></pre>\n")
        else:
            marked = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(block, quote=False))
            parts.append(f"<p>{marked}</p>\n")
    return "\n".join(parts)


def _row(post: _Post) -> str:
    def stamp(moment: datetime) -> str:
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"

    attributes: dict[str, object] = {"Id": post.id, "PostTypeId": post.kind}
    if post.accepted is not None:
        attributes["AcceptedAnswerId"] = post.accepted if isinstance(post.accepted, int) else post.accepted.id
    if post.parent is not None:
        attributes["ParentId"] = post.parent.id
    attributes |= {"CreationDate": stamp(post.created), "Score": post.score, "Body": post.body, "OwnerUserId": 1 + post.id % 97}
    attributes["LastActivityDate"] = stamp(post.created + timedelta(days=1))
    if post.kind == 1:
        attributes |= {"Title": post.title, "Tags": post.tags, "AnswerCount": len(post.answers)}
    attributes |= {"CommentCount": post.id % 4, "ContentLicense": "CC BY-SA 3.0" if post.created.year < 2018 else "CC BY-SA 4.0"}
    return "<row " + " ".join(_attributes(attributes)) + " />"


def _attributes(values: dict[str, object]) -> Iterator[str]:
    for name, value in values.items():
        # quoteattr also writes newlines as character references; left as they are, a parser would turn them into spaces.
        yield f"{name}={quoteattr(str(value), {chr(34): '&quot;'})}"


def _pack(path: Path, xml: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        posts = Path(folder) / "Posts.xml"
        posts.write_text(xml, "utf-8", newline="\n")
        # The archive records mode and time; pinned, so that the same posts are the same bytes.
        posts.chmod(0o644)
        os.utime(posts, (_PACKED_AT, _PACKED_AT))
        with py7zr.SevenZipFile(path, "w") as archive:
            archive.write(posts, "Posts.xml")
