"""A mix is read and written as a stream; what comes out is what a loop over all documents at once decides."""

import io
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import mix, mix_files, mix_index
from tasks.documents import document_key
from tasks.errors import UserError
from tasks.mix_files import ExtentsFile
from tasks.mix_plan import HELD_OUT_SEED, MixSpec, join_extents, resolve
from tasks.shards import Shard
from tasks.tokenize import SCHEMA, index_writer

MASK = 2**64 - 1
SEED = 7
FACTS = SimpleNamespace(padded_vocab_size=384, eos_id=0, pad_id=5, sha256="abc")


def splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def place(key: int, seed: int) -> int:
    return splitmix(key ^ splitmix(seed))


def crowd(count: int) -> list[int]:
    """Keys that stand next to each other in line under SEED: all are in one group of a survey."""
    return [key for key in range(300 * count) if place(key, SEED) >> 56 == 17][:count]


KEYS = [*crowd(20), *(document_key("web", str(number)) for number in range(10))]


class Document:
    def __init__(self, file: int, row: int, key: int, start: int, length: int, size: int) -> None:
        self.file, self.row, self.key, self.start, self.length, self.size = file, row, key, start, length, size


class Sources:
    """Sources in a folder: of each, shards of documents given as (key, length, whether it is selected)."""

    def __init__(self, folder: Path, sources: dict[str, list[list[tuple[int, int, bool]]]], row_group: int = 3) -> None:
        self.folder, self.row_group, self.files = folder, row_group, 0
        self.selected: dict[str, list[Document]] = {}
        self.inputs = {"tokenizer": [{"tokenizer.json": folder / "tokenizer.json"}]}
        self.names: dict[str, list[str]] = {}
        for name, shards in sources.items():
            self.selected[name], self.names[name] = [], []
            self.inputs |= {f"tokens:{name}": [], f"selection:{name}": []}
            for shard in shards:
                self._write(name, shard)

    def _write(self, name: str, shard: list[tuple[int, int, bool]]) -> None:
        index, selection = (self.folder / f"{self.files}.{what}.parquet" for what in ("index", "selection"))
        rows, keep, start = [], [], 0
        for number, (key, length, kept) in enumerate(shard):
            if number % 4 == 3:  # of a document that was never tokenized there is a row in the shard only
                keep.append(False)
            if kept:
                self.selected[name].append(Document(self.files, len(keep), key, start, length, 3 * length + number))
            rows.append({"row": len(keep), "key": key, "start": start, "length": length, "bytes": 3 * length + number, "repeated": False})
            keep.append(kept)
            start += length
        with index_writer(index) as writer:
            for first in range(0, len(rows), self.row_group):
                writer.write_table(pa.Table.from_pylist(rows[first : first + self.row_group], schema=SCHEMA))
        pq.write_table(pa.table({"keep": pa.array(keep, pa.bool_())}), selection)
        self.inputs[f"tokens:{name}"].append({"index.parquet": index, "tokens.npy": self.folder / "absent.npy"})
        self.inputs[f"selection:{name}"].append({"selection.parquet": selection})
        self.names[name].append(f"{self.files}.npy")
        self.files += 1

    def run(self, config: dict) -> "Made":
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shard = Shard(
            {"held_out": 0.0, "held_tokens": 10**9, "order": list(self.names), "files": self.names, **config}, self.inputs, folder
        )
        shard.name = "pre"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mix, "Tokenizer", SimpleNamespace(load=lambda path: FACTS))
            books = mix.run(shard)
        books.balance("mix")
        return Made(folder, books)

    def mix(self, sources: dict, **config) -> "Made":
        spec = MixSpec.model_validate({"seed": SEED, "sequence_length": 16, "sources": sources, **config.pop("spec", {})})
        return self.run({"mix": spec.model_dump(mode="json"), **config})


class Made:
    def __init__(self, folder: Path, books) -> None:
        self.folder, self.books = folder, books
        self.extents = np.load(folder / "extents.npy").tolist()
        self.header = json.loads((folder / "mix.json").read_text())

    @property
    def plan(self) -> list[dict]:
        return pq.read_table(self.folder / "plan.parquet").to_pylist()

    def tokens(self) -> dict[str, int]:
        return {source["name"]: source["tokens"] for source in self.header["sources"]}

    def taken(self) -> Counter:
        return Counter({(row["source"], row["key"]): row["copies"] for row in self.plan})


# -- the same as all at once ---------------------------------------------------------------------------------------------------------


def expected_held(documents: list[Document], share: float, tokens: int) -> list[Document]:
    """By a loop: candidates in line, as long as those before have fewer tokens than that."""
    line = sorted(documents, key=lambda d: place(d.key, HELD_OUT_SEED))
    held, before = [], 0
    for document in line:
        if (place(document.key, HELD_OUT_SEED) >> 11) / 2**53 < share and before < tokens:
            held.append(document)
            before += document.length
    return held


def expected_copies(documents: list[Document], repeat: float) -> dict[Document, int]:
    """By trying every prefix of the line."""
    line = sorted(documents, key=lambda d: place(d.key, SEED))
    whole = math.floor(repeat)
    target = (repeat - whole) * float(sum(d.length for d in documents))
    sums = [sum(d.length for d in line[:count]) for count in range(len(line) + 1)]
    taken = min(range(len(line) + 1), key=lambda count: abs(sums[count] - target))
    return {document: whole + (document in line[:taken]) for document in documents}


def expected_extents(streams: list[list[Document]]) -> list[list[int]]:
    """Passes of documents one after the other; documents that touch within a pass are one extent."""
    extents: list[list[int]] = []
    total = 0
    for stream in streams:
        previous = None
        for document in stream:
            total += document.length
            if previous and (previous.file, previous.start + previous.length) == (document.file, document.start):
                extents[-1][2] += document.length
                extents[-1][3] = total
            else:
                extents.append([document.file, document.start, document.length, total])
            previous = document
    return extents


documents = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 9), st.sampled_from([True, True, False])), max_size=9)
shards = st.lists(documents, min_size=1, max_size=4)
repeats = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0.01, 3.5))


@pytest.fixture
def small_pieces(monkeypatch):
    """As few documents at once as can be, so that everything goes over the edges of pieces."""
    monkeypatch.setattr(mix_index, "ROWS", 4)
    monkeypatch.setattr(mix_files, "AT_ONCE", 3)
    monkeypatch.setattr(mix_files, "ROW_GROUP", 5)


@pytest.mark.usefixtures("small_pieces")
def test_a_mix_is_what_a_loop_over_all_documents_makes(tmp_path):
    @settings(max_examples=25, deadline=None)
    @given(shards, shards, repeats, repeats, st.sampled_from([0.0, 0.2, 0.6, 0.95]), st.sampled_from([1, 12, 10**9]))
    def holds(web, maths, web_repeat, maths_repeat, share, tokens):
        made = Sources(Path(tempfile.mkdtemp(dir=tmp_path)), {"web": web, "maths": maths})
        repeats = {"web": web_repeat, "maths": maths_repeat}
        held = {name: expected_held(found, share, tokens) for name, found in made.selected.items()}
        free = {name: [d for d in found if d not in held[name]] for name, found in made.selected.items()}
        copies = {name: expected_copies(free[name], repeat) for name, repeat in repeats.items()}
        streams = [[d for d in free[name] if copies[name][d] > done] for name in free for done in range(5)]
        config = {"sources": {name: {"repeat": repeat} for name, repeat in repeats.items()}}
        if not all(free.values()) or not any(streams):
            with pytest.raises(UserError, match=r"has no tokens left|takes no document"):
                made.mix(config["sources"], held_out=share, held_tokens=tokens)
            return
        found = made.mix(config["sources"], held_out=share, held_tokens=tokens)
        assert found.extents == expected_extents(streams)
        assert found.plan == [
            {"source": name, "key": d.key, "file": d.file, "row": d.row, "start": d.start, "length": d.length, "copies": copies[name][d]}
            for name in free
            for d in free[name]
            if copies[name][d]
        ]
        assert found.header["bytes"] == sum(d.size for stream in streams for d in stream)
        assert found.header["documents"] == sum(map(len, streams))
        assert found.tokens() == {name: sum(d.length * copies[name][d] for d in free[name]) for name in free}
        taken = {name: sum(copies[name][d] > 0 for d in free[name]) for name in free}
        assert found.books.read == sum(map(len, made.selected.values())) and found.books.kept == sum(taken.values())
        assert found.books.dropped == {f"held out of {name}": len(held[name]) for name in free} | {
            f"left over of {name}": len(free[name]) - taken[name] for name in free
        }
        keys = [[d.key for d in of] for of in made.selected.values()]
        assert found.books.counts.get("duplicate_ids", 0) == sum(len(of) - len(set(of)) for of in keys)

    holds()


@pytest.mark.usefixtures("small_pieces")
def test_what_is_held_out_is_what_a_loop_over_all_documents_holds_out(tmp_path):
    @settings(max_examples=12, deadline=None)
    @given(shards, st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([1, 12, 10**9]))
    def holds(web, share, tokens):
        made = Sources(Path(tempfile.mkdtemp(dir=tmp_path)), {"web": web})
        held = set(expected_held(made.selected["web"], share, tokens))
        found = made.run({"held_out": share, "held_tokens": tokens, "sequence_length": 16})
        assert found.extents == expected_extents([[d for d in made.selected["web"] if d in held]])
        assert found.header["documents"] == found.books.kept == len(held)
        assert found.header["bytes"] == sum(d.size for d in held)

    holds()


def test_candidates_that_were_let_go_are_not_held_out(monkeypatch):
    monkeypatch.setattr(mix_index, "ROWS", 2)
    random = np.random.default_rng(0)
    places, lengths = random.integers(0, 50, 200, np.uint64), random.integers(1, 9, 200)
    for tokens in (*range(1, 40), 10**9):
        held = mix_index._HeldOut(tokens)
        for first in range(0, 200, 3):
            held.add(places[first : first + 3], lengths[first : first + 3])
        line = sorted(range(200), key=lambda n: places[n])
        expected = {n for number, n in enumerate(line) if sum(lengths[line[:number]]) < tokens}
        taken, _ = held.front().take(places)
        assert set(np.flatnonzero(taken).tolist()) == expected


@pytest.mark.usefixtures("small_pieces")
def test_a_stream_of_extents_is_the_file_that_numpy_saves(tmp_path):
    random = np.random.default_rng(3)
    for case in range(20):
        parts = []
        for count in random.integers(0, 9, 5):
            file, start, length = random.integers(0, 2, count), random.integers(0, 2, count), random.integers(1, 3, count)
            rows = np.column_stack([file, start, length, length])
            parts.append(join_extents([rows[n : n + 1] for n in range(count)]))
        with (tmp_path / f"{case}.npy").open("w+b") as file:
            extents = ExtentsFile(file)
            for part in parts:
                extents.append(part)
            extents.close()
        saved = io.BytesIO()
        np.save(saved, join_extents(parts))
        assert (tmp_path / f"{case}.npy").read_bytes() == saved.getvalue()
        assert len(extents) == len(join_extents(parts))


# -- what a mix promises -------------------------------------------------------------------------------------------------------------


def corpus(folder: Path, sizes: dict[str, int], shard: int = 40) -> Sources:
    """Sources of so many documents of very different lengths."""
    found = {}
    for name, size in sizes.items():
        lengths = np.random.default_rng(size).lognormal(3, 1.2, size).astype(int) + 1
        all_of = [(document_key(name, str(number)), int(length), number % 7 != 0) for number, length in enumerate(lengths)]
        found[name] = [all_of[first : first + shard] for first in range(0, size, shard)]
    return Sources(folder, found, row_group=16)


def test_shares_are_met_within_half_a_document_and_so_within_a_thousandth_where_there_are_many(tmp_path):
    made = corpus(tmp_path, {"web": 3000, "code": 900, "maths": 700}, shard=1000)
    available = {name: sum(d.length for d in found) for name, found in made.selected.items()}
    longest = {name: max(d.length for d in found) for name, found in made.selected.items()}
    for shares in (
        {"web": 0.5, "code": 0.3, "maths": 0.2},
        {"web": 0.05, "code": 0.05, "maths": 0.9},
        {"maths": 0.001, "code": 0.4, "web": 0.599},
    ):
        for total in (500, 20_000, 60_000):
            sources = {name: {"share": share, "max_repeat": 10} for name, share in shares.items()}
            tokens = made.mix(sources, spec={"tokens": total}).tokens()
            for name, share in shares.items():
                assert abs(tokens[name] - share * total) <= longest[name] / 2
                assert abs(tokens[name] / sum(tokens.values()) - share) <= max(0.001, max(longest.values()) / total)
    assert min(available.values()) < 0.9 * 60_000 < 10 * available["maths"]  # the largest had to repeat a source


def test_mixes_of_rising_size_hold_each_others_documents_copy_by_copy(tmp_path):
    made = corpus(tmp_path, {"web": 400, "maths": 90})
    tokens = sum(d.length for d in made.selected["web"])
    before: Counter = Counter()
    for size in (50, 300, 0.5 * tokens, 0.99 * tokens, tokens, 1.7 * tokens, 2.3 * tokens):
        sources = {"web": {"share": 0.7, "max_repeat": 9}, "maths": {"share": 0.3, "max_repeat": 99}}
        now = made.mix(sources, held_out=0.05, held_tokens=300, spec={"tokens": int(size)}).taken()
        assert before <= now
        before = now
    assert set(before.values()) == {1, 2, 3, 4}


def test_the_documents_of_a_seed_are_these_on_every_machine_and_in_whatever_shards_they_lie(tmp_path):
    for shard in (7, 40, 400):
        folder = tmp_path / str(shard)
        folder.mkdir()
        made = corpus(folder, {"web": 120}, shard)
        numbers = {document_key("web", str(number)): number for number in range(120)}
        taken = made.mix({"web": {"repeat": 0.1}}, held_out=0.1, held_tokens=100).taken()
        assert sorted(numbers[key] for _, key in taken) == [5, 13, 17, 32, 39, 44, 52, 57, 71, 74, 90, 92, 95, 103, 104, 118]
        held = made.run({"held_out": 0.1, "held_tokens": 100, "sequence_length": 16})
        extents = [extent[:3] for extent in held.extents]
        assert sorted(numbers[d.key] for d in made.selected["web"] if [d.file, d.start, d.length] in extents) == [11, 73, 83]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.01, 1), st.integers(1, 10**13)), min_size=2), st.integers(1, 10**14))
def test_the_repeat_that_an_error_names_would_do_and_one_less_by_a_thousandth_would_not(sources, tokens):
    total = math.fsum(weight for weight, _ in sources.values())
    spec = {name: {"share": weight / total} for name, (weight, _) in sources.items()}
    available = {name: size for name, (_, size) in sources.items()}

    def plan(spec: dict) -> dict[str, float]:
        return resolve(MixSpec.model_validate({"seed": 1, "sequence_length": 8, "tokens": tokens, "sources": spec}), available)

    needed = {name: spec[name]["share"] * tokens / available[name] for name in spec}
    short = [name for name in spec if needed[name] > 1 * (1 + 1e-9)]
    if not short:
        assert plan(spec) == pytest.approx(needed)
        return
    if any(needed[name] > 60_000 for name in short):
        return  # more copies than there can be
    with pytest.raises(UserError) as error:
        plan(spec)
    for name in short:
        (would_do,) = (part.split(" would do")[0].split("; ")[1] for part in str(error.value).split(f"{name} (max_repeat 1")[1:])
        assert needed[name] <= float(would_do) * (1 + 1e-9) and float(would_do) - needed[name] <= 0.001 * (1 + 1e-6)
        spec[name]["max_repeat"] = float(would_do)
    assert plan(spec) == pytest.approx(needed)
