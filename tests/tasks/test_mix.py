"""A compiled mix is a stream of whole selected documents, none of them held out, and its header tells the truth about it."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import mix
from tasks.documents import document_key
from tasks.errors import UserError
from tasks.mix_plan import MixSpec
from tasks.shards import Shard, ShardRef
from tasks.tokenize import SCHEMA

EOS, LENGTH = 0, 16


class Document:
    """A document whose tokens are all its own number, closed by EOS."""

    def __init__(self, source: str, number: int, row: int, length: int, kept: bool) -> None:
        self.number, self.row, self.length, self.kept = number, row, length, kept
        self.key = document_key(source, str(number))
        self.tokens = [number] * (length - 1) + [EOS]
        self.bytes = 3 * length + 1


class Corpus:
    """Sources as token shards and selections, written by hand: every fifth row was not tokenized, every third document is not selected."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.documents: dict[str, list[Document]] = {}
        self.inputs = {"tokenizer": [{"tokenizer.json": folder / "tokenizer.json"}]}
        self.files: dict[str, list[str]] = {}
        self.runs = 0
        facts = SimpleNamespace(padded_vocab_size=384, eos_id=EOS, pad_id=5, sha256="abc")
        monkeypatch.setattr(mix, "Tokenizer", SimpleNamespace(load=lambda path: facts))

    def add(self, source: str, shards: list[int], kept=lambda number: number % 3 != 0) -> None:
        """A source with so many documents in each of its shards."""
        rng = np.random.default_rng(len(self.documents))
        self.documents[source], tokens, selections = [], [], []
        for shard, count in enumerate(shards):
            rows = [row for row in range(2 * count) if row % 5 != 4][:count]
            first = 1000 * (len(self.documents) - 1) + 100 * shard + 1
            made = [Document(source, first + i, row, int(rng.integers(2, 12)), kept(first + i)) for i, row in enumerate(rows)]
            self.documents[source] += made
            tokens.append(self._tokens(f"{source}{shard}", made))
            selections.append(self._selection(f"{source}{shard}", made, 2 * count))
        self.inputs |= {f"tokens:{source}": tokens, f"selection:{source}": selections}
        self.files[source] = [f"tokenize/{source}{shard}/tokens.npy" for shard in range(len(shards))]

    def encode_otherwise(self) -> None:
        """Give the mix the tokens of another tokenizer, which needs two to four times as many, in files of its own."""
        for source, documents in self.documents.items():
            others: list[list[Document]] = [[] for _ in self.files[source]]
            for d in documents:
                length = d.length * (2 + d.number % 3)
                other = Document(source, d.number, d.row, length, d.kept)
                other.bytes = d.bytes
                others[d.number % 1000 // 100].append(other)
            self.inputs[f"encoded-as:{source}"] = [self._tokens(f"{source}{shard}-other", each) for shard, each in enumerate(others)]
            self.files[source] = [f"tokenize/{source}{shard}-other/tokens.npy" for shard in range(len(others))]

    def _tokens(self, name: str, made: list[Document]) -> dict[str, Path]:
        files = {file: self.folder / f"{name}.{file}" for file in ("tokens.npy", "index.parquet")}
        files["tokens.npy"].write_bytes(np.array([token for d in made for token in d.tokens], "<u4").tobytes())
        start = np.cumsum([0, *(d.length for d in made)])
        rows = [
            {"row": d.row, "key": d.key, "start": int(s), "length": d.length, "bytes": d.bytes, "repeated": False}
            for d, s in zip(made, start, strict=False)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), files["index.parquet"])
        return files

    def _selection(self, name: str, made: list[Document], rows: int) -> dict[str, Path]:
        keep = [False] * rows
        for document in made:
            keep[document.row] = document.kept
        path = self.folder / f"{name}.selection.parquet"
        pq.write_table(pa.table({"keep": pa.array(keep, pa.bool_())}), path)
        return {"selection.parquet": path}

    def selected(self, source: str) -> list[Document]:
        return [document for document in self.documents[source] if document.kept]

    def run(self, config: dict, sources: list[str], name: str = "pre") -> "Compiled":
        folder = self.folder / f"run{self.runs}"
        self.runs += 1
        folder.mkdir()
        shard = Shard(
            {"held_out": 0.0, "held_tokens": 10**9, **config, "order": list(sources), "files": {s: self.files[s] for s in sources}},
            self.inputs,
            folder,
        )
        shard.name = name
        books = mix.run(shard)
        books.balance("mix")
        read = {s: self.inputs.get(f"encoded-as:{s}", self.inputs[f"tokens:{s}"]) for s in sources}
        paths = {file: files["tokens.npy"] for s in sources for file, files in zip(self.files[s], read[s], strict=True)}
        return Compiled(folder, paths, books)

    def mix(self, sources: dict, held_out: float = 0.0, held_tokens: int = 10**9, **spec) -> "Compiled":
        made = MixSpec(seed=spec.pop("seed", 0), sequence_length=LENGTH, sources=sources, **spec)
        return self.run({"mix": made.model_dump(mode="json"), "held_out": held_out, "held_tokens": held_tokens}, list(sources))

    def held_out(self, source: str, share: float, tokens: int = 10**9) -> "Compiled":
        return self.run({"held_out": share, "held_tokens": tokens, "sequence_length": LENGTH}, [source], source)


class Compiled:
    """What the trainer would read of a compiled mix."""

    def __init__(self, folder: Path, paths: dict[str, Path], books) -> None:
        self.folder, self.books = folder, books
        self.header = json.loads((folder / "mix.json").read_text())
        self.extents = np.load(folder / "extents.npy")
        beside = self.header["kind"] == "packed"
        files = [np.fromfile(folder / name if beside else paths[name], "<u4") for name in self.header["files"]]
        self.stream = [int(token) for file, start, length, _ in self.extents for token in files[file][start : start + length]]

    def copies(self) -> Counter:
        """How often each document is in the stream, which must hold whole documents only."""
        numbers, piece = Counter(), []
        for token in self.stream:
            piece.append(token)
            if token == EOS:
                numbers[piece[0], len(piece)] += 1
                assert set(piece[:-1]) == {piece[0]}
                piece = []
        assert piece == []
        return numbers


def identity(document: Document) -> tuple[int, int]:
    return document.number, document.length


def tokens_of(documents) -> int:
    return sum(document.length for document in documents)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """web in three shards, one of them without documents; maths in one."""
    made = Corpus(tmp_path, monkeypatch)
    made.add("web", [40, 0, 30])
    made.add("maths", [25])
    return made


def test_a_mix_of_whole_sources_is_each_selected_document_once_in_order(corpus):
    compiled = corpus.mix({"maths": {"repeat": 1}, "web": {"repeat": 1}})
    assert compiled.stream == [token for source in ("maths", "web") for d in corpus.selected(source) for token in d.tokens]
    assert compiled.books.read == compiled.books.kept == len(corpus.selected("web")) + len(corpus.selected("maths"))


def test_ids_that_come_back_in_another_shard_are_counted_and_each_document_stays_one(corpus):
    before = corpus.mix({"web": {"repeat": 1}})
    assert "duplicate_ids" not in before.books.counts
    first, last = corpus.selected("web")[0], corpus.selected("web")[-1]
    index = corpus.inputs["tokens:web"][-1]["index.parquet"]
    table = pq.read_table(index)
    keys = [first.key if key == last.key else key for key in table["key"].to_pylist()]
    assert first.key in keys
    pq.write_table(table.set_column(1, "key", pa.array(keys, pa.uint64())), index)
    after = corpus.mix({"web": {"repeat": 1}})
    assert after.books.counts["duplicate_ids"] == 1
    assert after.books.kept == before.books.kept and after.header["tokens"] == before.header["tokens"]


def test_copies_are_whole_and_a_fraction_is_met_within_half_a_document(corpus):
    compiled = corpus.mix({"web": {"repeat": 2.5}, "maths": {"repeat": 0.3}})
    counts, web, maths = compiled.copies(), corpus.selected("web"), corpus.selected("maths")
    assert {counts[identity(d)] for d in web} == {2, 3}
    assert {counts[identity(d)] for d in maths} == {0, 1}
    assert set(counts) <= {identity(d) for d in web + maths}
    for repeat, documents in ((2.5, web), (0.3, maths)):
        taken = sum(counts[identity(d)] * d.length for d in documents)
        assert abs(taken - repeat * tokens_of(documents)) <= max(d.length for d in documents) / 2
    assert compiled.books.dropped["left over of maths"] == sum(counts[identity(d)] == 0 for d in maths)


def test_a_share_is_a_share_of_the_whole_mix(corpus):
    compiled = corpus.mix({"maths": {"repeat": 1}, "web": {"share": 0.5, "max_repeat": 4}})
    maths, web = (next(s["tokens"] for s in compiled.header["sources"] if s["name"] == name) for name in ("maths", "web"))
    assert maths == tokens_of(corpus.selected("maths"))
    assert abs(web - maths) <= max(d.length for d in corpus.selected("web")) / 2


def test_a_smaller_mix_holds_documents_of_the_larger_one_and_another_seed_holds_others(corpus):
    def taken(repeat, seed):
        return set(corpus.mix({"web": {"repeat": repeat}}, seed=seed).copies())

    assert taken(0.2, 1) < taken(0.6, 1)
    assert taken(0.5, 1) != taken(0.5, 2)


def test_no_held_out_document_is_ever_in_a_mix(corpus):
    held = {source: corpus.held_out(source, 0.3).copies() for source in ("web", "maths")}
    compiled = corpus.mix({"web": {"repeat": 2}, "maths": {"repeat": 1}}, held_out=0.3)
    counts = compiled.copies()
    for source, repeat in (("web", 2), ("maths", 1)):
        assert 0 < len(held[source]) < len(corpus.selected(source))
        assert set(held[source].values()) == {1}
        for document in corpus.selected(source):
            assert counts[identity(document)] == (0 if identity(document) in held[source] else repeat)
        assert compiled.books.dropped[f"held out of {source}"] == len(held[source])


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_about_so_many_tokens_are_held_out_at_most(corpus, tokens):
    held = corpus.held_out("web", 0.9, tokens)
    documents = [d for d in corpus.selected("web") if identity(d) in held.copies()]
    assert tokens <= held.header["tokens"] < tokens + max(d.length for d in corpus.selected("web"))
    assert held.header["documents"] == len(documents) and held.header["bytes"] == sum(d.bytes for d in documents)
    rest = corpus.mix({"web": {"repeat": 1}}, held_out=0.9, held_tokens=tokens).copies()
    assert set(rest) | set(held.copies()) == {identity(d) for d in corpus.selected("web")}
    assert not set(rest) & set(held.copies())


def test_fewer_held_out_tokens_are_among_the_more(corpus):
    assert set(corpus.held_out("web", 0.9, 20).copies()) < set(corpus.held_out("web", 0.9, 60).copies())


def test_a_source_may_have_nothing_to_hold_out(corpus):
    corpus.add("tiny", [1], kept=lambda number: False)
    held = corpus.held_out("tiny", 0.5)
    assert held.stream == [] and held.extents.shape == (0, 4)
    assert (held.header["tokens"], held.header["documents"], held.header["bytes"]) == (0, 0, 0)


@pytest.mark.parametrize("pack", [False, True])
def test_the_header_tells_the_numbers_of_the_stream(corpus, pack):
    compiled = corpus.mix({"web": {"repeat": 1.5}, "maths": {"repeat": 2}}, held_out=0.1, pack=pack)
    counts, header = compiled.copies(), compiled.header
    documents = {identity(d): d for source in ("web", "maths") for d in corpus.selected(source)}
    assert header["tokens"] == len(compiled.stream) == compiled.books.counts["tokens"] == compiled.extents[-1, 3]
    assert header["instances"] == len(compiled.stream) // LENGTH and header["sequence_length"] == LENGTH
    assert header["documents"] == sum(counts.values())
    assert header["bytes"] == sum(count * documents[name].bytes for name, count in counts.items())
    assert header["sources"] == [
        {"name": source, "tokens": sum(counts[identity(d)] * d.length for d in corpus.selected(source))} for source in ("web", "maths")
    ]
    assert (header["vocab_size"], header["eos_id"], header["pad_id"], header["tokenizer"]) == (384, EOS, 5, "abc")
    assert compiled.extents.dtype == np.int64
    assert compiled.extents[:, 3].tolist() == np.cumsum(compiled.extents[:, 2]).tolist()


def test_packed_and_scattered_are_the_same_stream(corpus):
    sources = {"web": {"repeat": 2.3}, "maths": {"repeat": 0.6}}
    scattered, packed = corpus.mix(sources, held_out=0.2), corpus.mix(sources, held_out=0.2, pack=True)
    assert packed.stream == scattered.stream
    assert (scattered.header["kind"], packed.header["kind"]) == ("scattered", "packed")
    assert scattered.header["files"] == [*corpus.files["web"], *corpus.files["maths"]]
    assert all((packed.folder / name).is_file() for name in packed.header["files"])
    changed = {"kind", "files"}
    assert {k: v for k, v in packed.header.items() if k not in changed} == {k: v for k, v in scattered.header.items() if k not in changed}


@pytest.mark.parametrize("pack", [False, True])
def test_a_mix_under_another_tokenizer_has_the_same_documents_as_often(corpus, pack):
    sources = {"maths": {"repeat": 1.5}, "web": {"share": 0.4, "max_repeat": 4}}
    own = corpus.mix(sources, held_out=0.3, held_tokens=40)
    held = {source: corpus.held_out(source, 0.3, 40) for source in ("web", "maths")}
    corpus.encode_otherwise()
    other = corpus.mix(sources, held_out=0.3, held_tokens=40, pack=pack)
    assert {number: count for (number, _), count in own.copies().items()} == {number: n for (number, _), n in other.copies().items()}
    assert other.copies() == {(number, length * (2 + number % 3)): count for (number, length), count in own.copies().items()}
    assert (other.header["bytes"], other.header["documents"]) == (own.header["bytes"], own.header["documents"])
    assert other.header["tokens"] == len(other.stream) > 2 * own.header["tokens"]
    for source, mine in held.items():
        theirs = corpus.held_out(source, 0.3, 40)
        assert mine.copies() and sorted(number for number, _ in mine.copies()) == sorted(number for number, _ in theirs.copies())
        assert theirs.header["bytes"] == mine.header["bytes"] and theirs.header["tokens"] == len(theirs.stream)


def test_tokens_of_other_documents_are_refused(corpus):
    corpus.encode_otherwise()
    corpus.inputs["encoded-as:web"].reverse()
    with pytest.raises(UserError, match="has not encoded the documents of web shard by shard"):
        corpus.mix({"web": {"repeat": 1}})


def test_the_plan_lists_the_documents_of_the_mix_with_their_copies(corpus):
    compiled = corpus.mix({"web": {"repeat": 1.5}, "maths": {"repeat": 0.5}}, held_out=0.1)
    documents = {d.key: (source, d) for source in corpus.documents for d in corpus.documents[source]}
    counts = compiled.copies()
    plan = pq.read_table(compiled.folder / "plan.parquet").to_pylist()
    assert {identity(documents[row["key"]][1]): row["copies"] for row in plan} == counts
    files = [*corpus.files["web"], *corpus.files["maths"]]
    for row in plan:
        source, document = documents[row["key"]]
        assert (row["source"], row["row"], row["length"]) == (source, document.row, document.length)
        assert files[row["file"]].startswith(f"tokenize/{source}")


def test_the_composition_agrees_with_the_stream(corpus):
    compiled = corpus.mix({"web": {"repeat": 1}, "maths": {"repeat": 2}}, held_out=0.1)
    rows = {row["source"]: row for row in json.loads((compiled.folder / "composition.json").read_text())}
    assert sum(row["tokens"] for row in rows.values()) == len(compiled.stream)
    assert sum(row["mix_percent"] for row in rows.values()) == pytest.approx(100)
    assert rows["web"]["source_percent"] == 100 and rows["maths"]["source_percent"] == 200


def test_equal_input_gives_equal_bytes(corpus):
    sources = {"web": {"repeat": 1.5}, "maths": {"repeat": 0.5}}
    first, second = corpus.mix(sources, pack=True), corpus.mix(sources, pack=True)
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == {p.name: p.read_bytes() for p in second.folder.iterdir()}


def test_a_mix_of_a_source_that_selects_nothing_is_told(corpus):
    corpus.add("none", [10], kept=lambda number: False)
    with pytest.raises(UserError, match="source none of the mix has no tokens left: loosen its filters"):
        corpus.mix({"web": {"repeat": 1}, "none": {"repeat": 1}})


@pytest.mark.parametrize("pack", [False, True])
def test_a_mix_too_small_for_any_document_is_told(corpus, pack):
    with pytest.raises(UserError, match=r"mix pre takes no document: loosen the filters of its sources \(web\) or raise their repeat"):
        corpus.mix({"web": {"repeat": 1e-6}}, pack=pack)


def test_keys_follow_tokens_selections_spec_and_what_is_held_out():
    def key(tokens="t", selection="s", seed=0, held=0.1, held_tokens=10):
        spec = MixSpec(seed=seed, sequence_length=LENGTH, sources={"web": {"repeat": 1}})
        sources = {"web": ([ShardRef("tokenize", tokens)], [ShardRef("select", selection)])}
        return mix.task(spec, "pre", sources, ShardRef("tokenizer", "k"), held, held_tokens).key(mix.MIX)

    assert len({key(), key(tokens="u"), key(selection="r"), key(seed=1), key(held=0.2), key(held_tokens=11)}) == 6
