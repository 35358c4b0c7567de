"""The demo corpus: raw files in the upstream formats, made on the spot from the Python installation that runs this.

A demo should show every reader, filter and oddity without a download. So documentation and prose of the standard library and of
installed packages become "web pages", "papers", an encyclopaedia and posts; the standard library's sources become a code corpus.
Stars, votes and the published quality score are synthetic: arithmetic over hashes and texts, each by the rule stated where it is made.
The same installation, size and seed give the same bytes.
"""

import gzip
import io
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tasks import corpus_harvest as harvest
from tasks.corpus_flan import instruction
from tasks.corpus_harvest import Docstring, fraction
from tasks.corpus_maths import problems
from tasks.corpus_stackexchange import FEWEST_QUESTIONS, write_dump
from tasks.errors import UserError

DEFAULT_BYTES = 10_000_000
SMALLEST_BYTES = 300_000

# Shares of the text. No document of one source is repeated in another, save that code holds the docstrings that the others quote.
_SHARES = {"dclm": 0.39, "starcoder": 0.20, "pes2o": 0.10, "wiki": 0.11, "flan": 0.07, "maths": 0.08, "stackexchange": 0.05}
_LABEL_SHARE = 0.02  # of the total, for each of the two label files, on top
_FILES = {"dclm": 4, "starcoder": 3, "pes2o": 3, "wiki": 3, "flan": 3, "maths": 3}
# How docstrings are dealt out: by a hash of their name, so that none serves two sources.
_DEALT = (("labels", 0.06), ("stackexchange", 0.14), ("flan", 0.30), ("dclm", 1.0))

_ADDED = "2024-11-24T00:00:00.000Z"
_CREATED = "2024-01-01T00:00:00.000Z"
_PAGE_BYTES = 5_000  # a "web page" is closed when it has this much
_LONGEST_CODE_FILE = 120_000  # characters
_DCLM_SCORE = "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob"
_DCLM_FOLDER = "dclm/global-shard_01_of_10/local-shard_0_of_10"
_TEXT_FIELDS = ("text", "question", "answer")
_PLAIN_WORD = re.compile(r"[\"'(]*[A-Za-z][a-z'’-]*[.,;:!?)\"']*")

Record = dict[str, Any]


@dataclass
class _Texts:
    """What was found, dealt out to the sources."""

    pages: list[tuple[str, str]] = field(default_factory=list)  # (module, text) of "web pages"
    stackexchange: list[Docstring] = field(default_factory=list)
    flan: list[Docstring] = field(default_factory=list)
    labels: list[Docstring] = field(default_factory=list)
    articles: list[tuple[str, str]] = field(default_factory=list)  # (title, text)
    poor: list[tuple[str, str]] = field(default_factory=list)  # (name, text) of boilerplate


def describe() -> str:
    """One paragraph for the run's report: what the demo corpus is, and what in it is made up."""
    return (
        f"The demo corpus was made on this machine from its Python {platform.python_version()} installation: documentation, prose and "
        "sources of the standard library and of installed packages, in the file formats of the upstream corpora. Nothing was downloaded. "
        "Star counts, votes, posts' frames, arithmetic problems, quality scores and labels are synthetic, and a few oddities were planted "
        "to exercise the filters; the numbers show that the pipeline works, not how good such data are."
    )


def build(out: Path, size: int = DEFAULT_BYTES, seed: int = 0) -> Record:
    """Write the corpus under `out`: about `size` bytes of text over seven sources, and two files of labels beside them.

    Returns `description`; `files` (path relative to `out`, source, bytes on disk, documents, text_bytes); `sources` (documents and
    text_bytes of each); `planted` (path, line counted from 1, what). Files of an earlier build are overwritten.
    Raises UserError if `size` is too small to hold every source, or the installation has too little documentation to be dealt out.
    """
    if size < SMALLEST_BYTES:
        raise UserError(f"a demo corpus of {size} bytes cannot hold every source; ask for at least {SMALLEST_BYTES}")
    out = Path(out)
    budget = {name: round(share * size) for name, share in _SHARES.items()}
    texts = _deal(budget, size, seed)
    book = _Book(out)
    _write_dclm(book, texts, budget["dclm"], seed)
    _write_dolma(book, "pes2o", _papers(seed), budget["pes2o"], seed)
    _write_dolma(book, "wiki", _articles(texts), budget["wiki"], seed)
    _write_starcoder(book, budget["starcoder"], seed)
    _write_dolma(book, "flan", _instructions(texts.flan, seed), budget["flan"], seed, folder="flan")
    _write_maths(book, budget["maths"], seed)
    dump = "stackexchange/demo.stackexchange.com.7z"
    counts = write_dump(out / dump, texts.stackexchange, budget["stackexchange"], seed)
    book.add(dump, "stackexchange", counts["posts"], counts["text_bytes"])
    _write_labels(book, texts, round(_LABEL_SHARE * size), seed)
    return book.summary()


class _Book:
    """Writes files and remembers what is in them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.files: list[Record] = []
        self.planted: list[Record] = []

    def write(self, path: str, source: str, data: bytes, documents: int, text_bytes: int) -> None:
        target = self.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.add(path, source, documents, text_bytes)

    def add(self, path: str, source: str, documents: int, text_bytes: int) -> None:
        on_disk = (self.out / path).stat().st_size
        self.files.append({"path": path, "source": source, "bytes": on_disk, "documents": documents, "text_bytes": text_bytes})

    def summary(self) -> Record:
        sources: dict[str, dict[str, int]] = {}
        for item in self.files:
            total = sources.setdefault(item["source"], {"documents": 0, "text_bytes": 0})
            total["documents"] += item["documents"]
            total["text_bytes"] += item["text_bytes"]
        return {"description": describe(), "files": self.files, "sources": sources, "planted": self.planted}


def _deal(budget: dict[str, int], size: int, seed: int) -> _Texts:
    """Read documentation until every source has enough."""
    texts = _Texts(articles=list(harvest.reference_topics().items()), poor=harvest.boilerplate())
    pages = labels = flan = posts = 0
    articles = sum(len(text.encode()) for _, text in texts.articles)
    for module in harvest.modules(seed):
        shares: dict[str, list[Docstring]] = {name: [] for name, _ in _DEALT}
        for item in module.docstrings:
            place = fraction(seed, "deal", item.key)
            shares[next(name for name, bound in _DEALT if place < bound)].append(item)
        texts.stackexchange += shares["stackexchange"]
        texts.flan += shares["flan"]
        texts.labels += shares["labels"]
        texts.pages += (new := list(_pages(module.name, shares["dclm"])))
        if len(module.text) >= 400:
            texts.articles.append((f"{module.name} (module)", module.text))
            articles += len(module.text.encode())
        pages += sum(len(text.encode()) for _, text in new)
        labels += sum(len(item.text) for item in shares["labels"])
        flan += sum(min(len(item.text), 300) for item in shares["flan"])
        posts += sum(len(item.text) + 1200 for item in shares["stackexchange"])
        enough = (
            pages >= budget["dclm"]
            and articles >= 1.1 * budget["wiki"]
            and flan >= budget["flan"]
            and labels >= 2 * _LABEL_SHARE * size
            and posts >= budget["stackexchange"]
        )
        if enough and len(texts.stackexchange) >= FEWEST_QUESTIONS:
            return texts
    if len(texts.stackexchange) < FEWEST_QUESTIONS or not texts.pages:
        raise UserError(
            "this Python installation holds too little documentation for a demo corpus; use one whose standard library has its sources"
        )
    return texts


def _pages(module: str, items: Iterable[Docstring]) -> Iterator[tuple[str, str]]:
    """One module's documentation as pages of about 5 kB, as a web crawler would find it."""
    lines: list[str] = []
    for item in items:
        lines += [f"{'class ' if item.is_class else ''}{item.signature}", item.text, ""]
        if sum(map(len, lines)) >= _PAGE_BYTES:
            yield module, "\n".join([module, "", *lines]).strip()
            lines = []
    if sum(map(len, lines)) >= 300:
        yield module, "\n".join([module, "", *lines]).strip()


def published_score(text: str) -> float:
    """The stand-in for DCLM's published score, in [0, 1]: how far plain words outweigh names, numbers and signs, cubed.

    Plain is a whitespace-separated token of letters, with ordinary punctuation around it; half of all tokens or fewer being plain is 0.
    """
    tokens = text.split()
    plain = sum(_PLAIN_WORD.fullmatch(token) is not None for token in tokens) / max(1, len(tokens))
    return round(max(0.0, (plain - 0.5) / 0.5) ** 3, 6)


def _write_dclm(book: _Book, texts: _Texts, budget: int, seed: int) -> None:
    pages = _within(_shuffled(texts.pages, seed, "dclm"), round(0.88 * budget))
    poor = [item for item in texts.poor if fraction(seed, "boilerplate", item[0]) < 0.7]
    pages += _within(((name, text[:4000]) for name, text in _shuffled(poor, seed, "poor")), round(0.12 * budget))
    records = [_web_page(number, name, text) for number, (name, text) in enumerate(_shuffled(pages, seed, "pages"))]
    oddities = _oddities()
    for place, (what, text) in enumerate(oddities, 1):
        records.insert(len(records) * place // (len(oddities) + 1), {"planted": what, **_web_page(len(records), f"oddity.{place}", text)})
    _write_jsonl(book, "dclm", records, _DCLM_FOLDER + "/shard_{:08d}_processed.jsonl.zst", _zstd)


def _web_page(number: int, name: str, text: str) -> Record:
    url = f"https://docs.example/{name.replace('.', '/')}.html"
    return {
        "text": text,
        "url": f"{url}?page={number}",
        "metadata": {
            "Content-Type": "application/http; msgtype=response",
            "WARC-Type": "response",
            "WARC-Date": "2022-05-16T08:00:00Z",
            "WARC-Record-ID": f"<urn:uuid:00000000-0000-4000-8000-{number:012d}>",
            "WARC-Target-URI": url,
            "Content-Length": str(len(text.encode("utf-8", "surrogatepass"))),
        },
        "language_id_whole_page_fasttext": {"en": round(0.9 + 0.1 * fraction(0, "language", name), 6)},
        _DCLM_SCORE: published_score(text),
    }


def _oddities() -> list[tuple[str, str]]:
    """(what, text) of documents that a filter, a reader or a tokenizer must get right."""
    signs = (
        "A model may read <|endoftext|> between documents and <|im_start|>user before a turn; here, as |||EMAIL_ADDRESS|||, both are text."
    )
    digits = "Room ٣٤٥, table 四, page １２３, note ², share ½, year MMXXIV and the number 12345678901234567890 in one line."
    return [
        ("a phrase forty times in a row", "Please accept the terms of use. " * 40 + "Then the page goes on as if nothing had happened."),
        ("an empty text", ""),
        ("control tokens in the text", signs),
        ("digits of other scripts", digits),
        ("a lone surrogate escape", "A page that was cut in the middle of a character: \ud83d and went on."),
        ("a text of spaces and newlines", " \n\t\n   \n"),
        ("one very long line", "longline " + "abcdefghij" * 2000),
    ]


def _papers(seed: int) -> list[Record]:
    found = harvest.descriptions()
    return [
        _dolma("pes2o", name, f"{name}\n\n{summary}\n\n{text}", {"title": name, "abstract": summary, "year": 2024})
        for name, summary, text in _shuffled(found, seed, "pes2o")
    ]


def _articles(texts: _Texts) -> list[Record]:
    url = "https://encyclopaedia.example/wiki/"
    return [
        _dolma("wiki", title, f"{title}\n\n{text}", {"title": title, "url": url + re.sub(r"\W+", "_", title), "length": len(text)})
        for title, text in texts.articles
    ]


def _instructions(items: list[Docstring], seed: int) -> list[Record]:
    return [
        _dolma("flan", f"{task}/{item.key}", text, {"task": task, "module": item.module})
        for nth, item in enumerate(items)
        for task, text in [instruction(item, [items[(nth + step) % len(items)] for step in (1, 2, 3)], seed)]
    ]


def _dolma(source: str, name: str, text: str, metadata: Record) -> Record:
    return {"id": name, "text": text, "source": source, "added": _ADDED, "created": _CREATED, "metadata": metadata}


def _write_dolma(book: _Book, source: str, records: list[Record], budget: int, seed: int, folder: str | None = None) -> None:
    unique = {record["text"]: record for record in _shuffled(records, seed, source)}
    chosen = _within(unique.values(), budget, text=lambda record: record["text"])
    _write_jsonl(book, source, chosen, (folder or f"dolma/{source}") + f"/{source}-{{:04d}}.jsonl.gz", _gzip)


def _write_maths(book: _Book, budget: int, seed: int) -> None:
    chosen = _within(problems(seed), budget, text=lambda record: record["question"] + record["answer"])
    _write_jsonl(book, "maths", chosen, "maths/templated-arithmetic-{:02d}.jsonl", lambda data: data)


def _write_starcoder(book: _Book, budget: int, seed: int) -> None:
    # Well starred, so that the rules about words and not the one about stars drop them.
    rows = [{**_code_row("demo/tables", f"tables/{name}.py", text, seed), "max_stars_count": 250} for name, text in _number_tables()]
    files = ((name, harvest.read_source(path)) for name, path in harvest.standard_library_files(seed) if not name.startswith("pydoc_data"))
    readable = ((name, text) for name, text in files if text and len(text) <= _LONGEST_CODE_FILE)
    for name, text in _within(readable, budget):
        rows.append(_code_row(f"stdlib-demo/{name.split('.')[0]}", name.replace(".", "/") + ".py", text, seed))
    rows.sort(key=lambda row: fraction(seed, "rows", row["max_stars_repo_path"]))
    kinds = {"max_stars_count": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    for number, part in enumerate(_parts(rows, _FILES["starcoder"])):
        path, buffer = f"starcoder/python/train-{number:05d}-of-{_FILES['starcoder']:05d}.parquet", io.BytesIO()
        pq.write_table(pa.Table.from_pylist(part, schema), buffer, compression="zstd", row_group_size=100)
        book.write(path, "starcoder", buffer.getvalue(), len(part), sum(len(row["content"].encode()) for row in part))


def _code_row(repository: str, path: str, content: str, seed: int) -> Record:
    return {
        "max_stars_repo_path": path,
        "max_stars_repo_name": repository,
        "max_stars_count": synthetic_stars(repository, seed),
        "id": f"{int(fraction(seed, 'id', path) * 1e8):08d}",
        "content": content,
    }


def synthetic_stars(repository: str, seed: int) -> int | None:
    """Made-up stars by a seeded hash of the name: 10 % null, 12 % none, 10 % one, else from 2 to 5000, each order of magnitude alike."""
    place = fraction(seed, "stars", repository)
    if place < 0.32:
        return None if place < 0.10 else int(place >= 0.22)
    return round(2 * 2500 ** ((place - 0.32) / 0.68))


def _number_tables() -> Iterator[tuple[str, str]]:
    """Sources whose words are mostly one, or mostly two: what the word-frequency rules are there to drop."""
    rng = Random("tables")
    rows = ["    " + " ".join("0," if rng.random() < 0.8 else f"{rng.randrange(1, 256)}," for _ in range(24)) for _ in range(60)]
    yield "mostly_zero", "TABLE = (\n" + "\n".join(rows) + "\n)\n"
    rows = [
        "    " + " ".join(rng.choice(("0x00,", "0xff,", "0xff,", "0x00,", f"{rng.randrange(256):#04x},")) for _ in range(16))
        for _ in range(60)
    ]
    yield "black_and_white", "PIXELS = bytes((\n" + "\n".join(rows) + "\n))\n"
    yield "no_words", "\n" * 40


def _write_labels(book: _Book, texts: _Texts, budget: int, seed: int) -> None:
    """Labelled examples from texts that no source uses.

    quality: prose documentation is `hq`, licences and file lists are `cc`. edu, 0 to 5: licences 0, file lists 1, documentation 2, one more
    for 300 characters, for two sentences of ten words or more, and for an example or a list.
    """
    poor = [(name, text[:1500]) for name, text in texts.poor if fraction(seed, "boilerplate", name) >= 0.7]
    good = [item.text[:1500] for item in _shuffled(texts.labels, seed, "labels")]
    middle = len(good) // 2
    few = [part for _, text in poor for part in (text[:500], text[500:1000], text[1000:]) if len(part) > 100]
    quality = [{"text": text, "label": "cc"} for text in _within(few, budget // 2, text=str)]
    quality += [{"text": text, "label": "hq"} for text in _within(good[:middle], budget // 2, text=str)]
    edu = [{"text": text[:700], "score": int(name.endswith("/files"))} for name, text in _within(poor, budget // 3)]
    edu += [{"text": text, "score": educational_score(text)} for text in _within(good[middle:], budget - budget // 3, text=str)]
    for name, records in (("quality", quality), ("edu", edu)):
        records = _shuffled(records, seed, name)
        book.write(f"labels/{name}.jsonl", "labels", _lines(records), len(records), sum(len(item["text"].encode()) for item in records))


def educational_score(text: str) -> int:
    """The stated rule for documentation, 2 to 5: see `_write_labels`."""
    sentences = sum(len(sentence.split()) >= 10 for sentence in re.split(r"(?<=[.!?])\s", text))
    example = ">>>" in text or re.search(r"^\s*([-*]|\d+\.) ", text, re.MULTILINE) is not None
    return 2 + (len(text) >= 300) + (sentences >= 2) + example


def _within(items: Iterable[Any], budget: int, text: Callable[[Any], str] = lambda item: item[1]) -> list[Any]:
    """The first items whose UTF-8 text comes to at least `budget` bytes, or all."""
    chosen: list[Any] = []
    for item in items:
        if budget <= 0:
            break
        chosen.append(item)
        budget -= len(text(item).encode("utf-8", "surrogatepass"))
    return chosen


def _shuffled(items: Iterable[Any], seed: int, salt: str) -> list[Any]:
    copied = list(items)
    Random(f"{seed}/{salt}").shuffle(copied)
    return copied


def _parts(items: list[Any], count: int) -> list[list[Any]]:
    """Contiguous parts of nearly equal length."""
    bounds = [len(items) * index // count for index in range(count + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def _write_jsonl(book: _Book, source: str, records: list[Record], pattern: str, pack: Callable[[bytes], bytes]) -> None:
    for number, part in enumerate(_parts(records, _FILES[source])):
        path = pattern.format(number)
        for line, record in enumerate(part, 1):
            if what := record.pop("planted", None):
                book.planted.append({"path": path, "line": line, "what": what})
        size = sum(len(str(record.get(name, "")).encode("utf-8", "surrogatepass")) for record in part for name in _TEXT_FIELDS)
        book.write(path, source, pack(_lines(part)), len(part), size)


def _lines(records: Iterable[Record]) -> bytes:
    return b"".join(_line(record) + b"\n" for record in records)


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # the planted lone surrogate can stand in a file only as its escape
        return json.dumps(record).encode()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=6).compress(data)
