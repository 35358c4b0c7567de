"""How much of a document stands in evaluations: word n-grams of every evaluation instance, indexed, and what documents share with them.

Report, section 4.1 (FLAN): training, validation and test instances of all evaluations are extracted, and a document goes out when 10 % or
more of its n-grams overlap. The report gives no n and does not say whether the 10 % are of one instance or of all together. Here they are of
all together, as the Bloom filter of the authors' dolma toolkit counts; the instance that a document shares most with is told beside it.

An n-gram of a document overlaps where it is an n-gram of an instance, or holds the whole of an instance that is shorter than n words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError
from tasks.scorers.ngrams import hash_words, ngrams
from tasks.store import Books

# An instance of fewer words ("Calculate 5 + 91 =") stands in documents by chance.
SHORTEST = 5
EXCERPT = 240  # characters of an instance's text, for people to see what was found
_AT_ONCE = 1 << 22  # postings in memory at once
_NEAR_BITS = 26  # of the table that rules out nearly every n-gram of a document: 64 MB at most


class ContaminationConfig(BaseModel):
    """Share of a document's n-grams that stand in evaluations, and the instance that it shares most with."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["contamination"] = "contamination"
    column: str = Field("overlap", description="Name of the share's column; COLUMN_with and COLUMN_ngrams stand beside it.", min_length=1)
    model: str | None = Field(None, description="The index, a folder; leave it out where the recipe builds one.")

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.float64(), f"{self.column}_with": pa.string(), f"{self.column}_ngrams": pa.list_(pa.int64())}


@dataclass
class Index:
    """N-grams of evaluation instances.

    ngram: words of an n-gram. lengths: those that occur; an instance of fewer words than `ngram` is one n-gram of its own length.
    hashes: uint64[g], sorted; instance `postings[offsets[i]:offsets[i + 1]]` (int32) hold the n-gram i. evaluation, ids, texts, size: of
    each instance the number of its evaluation (int32), its id, the beginning of its text and its distinct n-grams (int32).
    """

    ngram: int
    lengths: list[int]
    evaluations: list[str]
    hashes: np.ndarray
    offsets: np.ndarray
    postings: np.ndarray
    evaluation: np.ndarray
    ids: list[str]
    texts: list[str]
    size: np.ndarray

    def __post_init__(self) -> None:
        bits = min(_NEAR_BITS, max(8, len(self.hashes).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._near = np.zeros(1 << bits, bool)
        self._near[np.asarray(self.hashes) >> self._shift] = True

    def find(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places in `grams`, numbers of their n-grams) of those that are in the index, int64[hits] each."""
        maybe = np.flatnonzero(self._near[grams >> self._shift])
        entry = np.searchsorted(self.hashes, grams[maybe])
        entry[entry == len(self.hashes)] = 0
        true = self.hashes[entry] == grams[maybe]
        return maybe[true], entry[true]

    def shared(self, owner: np.ndarray, entry: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(owner, instance, n-grams that they share), a row for each pair that shares any, in several batches.

        Args:
            owner: numbers of documents, ascending, int64[n]; no document is in two batches.
            entry: the distinct n-grams of each, int64[n].
        """
        counts = self.offsets[entry + 1] - self.offsets[entry]
        ends = np.cumsum(counts)
        start = 0
        while start < len(entry):
            reached = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _AT_ONCE, side="right"))
            stop = int(np.searchsorted(owner, owner[reached], side="left")) if reached < len(entry) else reached
            if stop <= start:  # one document alone is over the bound
                stop = int(np.searchsorted(owner, owner[start], side="right"))
            of, first = counts[start:stop], self.offsets[entry[start:stop]]
            place = np.arange(of.sum()) + np.repeat(first - (np.cumsum(of) - of), of)
            pairs = np.repeat(owner[start:stop], of) * len(self.ids) + self.postings[place]
            pairs, number = np.unique(pairs, return_counts=True)
            yield pairs // len(self.ids), pairs % len(self.ids), number
            start = stop

    def name(self, instance: int) -> str:
        """`EVALUATION: ID` of an instance."""
        return f"{self.evaluations[self.evaluation[instance]]}: {self.ids[instance]}"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("hashes", "offsets", "postings"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        columns = {"evaluation": self.evaluation, "id": self.ids, "ngrams": self.size, "text": self.texts}
        pq.write_table(pa.table(columns), folder / "instances.parquet", compression="zstd")
        header = {"version": 1, "ngram": self.ngram, "lengths": self.lengths, "evaluations": self.evaluations}
        (folder / "index.json").write_text(json.dumps(header, indent=1))

    @staticmethod
    def load(folder: Path) -> Index:
        """The index in a folder; its arrays stay on the disk and are shared between processes. Raises UserError where there is none."""
        if not (folder / "index.json").is_file():
            raise UserError(f"{folder} is no index of evaluations (it has no index.json): let the recipe build one with `train`")
        header = json.loads((folder / "index.json").read_text())
        hashes, offsets, postings = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "offsets", "postings"))
        table = pq.read_table(folder / "instances.parquet")
        evaluation, size = (table.column(name).to_numpy() for name in ("evaluation", "ngrams"))
        ids, texts = (table.column(name).to_pylist() for name in ("id", "text"))
        return Index(header["ngram"], header["lengths"], header["evaluations"], hashes, offsets, postings, evaluation, ids, texts, size)


def build_index(evaluations: Mapping[str, Iterable[tuple[str, str]]], ngram: int, books: Books) -> Index:
    """Index the (id, text) pairs of evaluations. Every instance is booked: kept, or dropped as a copy or as too short to tell from chance.

    Raises:
        UserError: an evaluation has no instance that can be looked for.
    """
    names = sorted(evaluations)
    owners: list[int] = []
    ids: list[str] = []
    texts: list[str] = []
    lengths: set[int] = set()
    grams, instances = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    shortest = min(SHORTEST, ngram)
    for number, name in enumerate(names):
        seen: set[bytes] = set()
        for identifier, text in evaluations[name]:
            books.read += 1
            words = hash_words([text])
            same = words.hashes.tobytes()
            if len(words.hashes) < shortest:
                books.drop(f"fewer than {shortest} words")
                continue
            if same in seen:
                books.drop("same words as another instance")
                continue
            seen.add(same)
            ((length, _, found),) = ngrams(words, {min(ngram, len(words.hashes))})
            books.count("shorter_than_n", int(length < ngram))
            lengths.add(length)
            grams.append(np.unique(found))
            instances.append(np.full(len(grams[-1]), len(ids)))
            owners.append(number)
            ids.append(identifier)
            texts.append(text[:EXCERPT])
        if not seen:
            raise UserError(f"the evaluation {name} has no instance of {shortest} words or more: check its `fields.text`, or leave it out")
    books.kept += len(ids)
    every, instance = np.concatenate(grams), np.concatenate(instances)
    order = np.lexsort((instance, every))
    hashes, first = np.unique(every[order], return_index=True)
    books.count("ngrams", len(hashes))
    size = np.bincount(instance, minlength=len(ids)).astype(np.int32)
    offsets = np.append(first, len(every)).astype(np.int64)
    evaluation = np.array(owners, np.int32)
    return Index(ngram, sorted(lengths), names, hashes, offsets, instance[order].astype(np.int32), evaluation, ids, texts, size)


class Contamination:
    """Scores texts against an index of evaluations. With COLUMN for the config's column:

    COLUMN: float64 in [0, 1], the share of the document's n-grams that overlap. A document of fewer than n words is one n-gram; one without
    words has 0. COLUMN_with: `EVALUATION: ID` of the instance with which it shares most n-grams (of several, that of which the larger part
    is there), None where it shares none. COLUMN_ngrams: the distinct n-grams that it shares, by their number in the index, None likewise.

    Raises:
        UserError: there is no index at `folder`.
    """

    def __init__(self, config: ContaminationConfig, folder: Path) -> None:
        self.config = config
        self.columns = config.columns()
        self.index = Index.load(folder)

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """The three columns, in the texts' order; the last two are object arrays."""
        words = hash_words(texts)
        size = np.bincount(words.text, minlength=len(texts))
        begin = np.cumsum(size) - size
        steps = np.zeros(len(words.hashes) + 1, np.int64)  # +1 where a run of overlapping n-grams begins, -1 after its end
        owners, entries = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for length, first, grams in ngrams(words, self.index.lengths):
            place, entry = self.index.find(grams)
            start = first[place]
            owner = words.text[start]
            owners.append(owner)
            entries.append(entry)
            # The n-grams that hold a shorter one begin up to n - length words before it, and within the document.
            low = np.maximum(begin[owner], start - (self.index.ngram - length))
            high = np.minimum(start, begin[owner] + np.maximum(size[owner] - self.index.ngram, 0))
            steps += np.bincount(low, minlength=len(steps)) - np.bincount(high + 1, minlength=len(steps))
        overlapping = np.bincount(words.text[np.cumsum(steps[:-1]) > 0], minlength=len(texts))
        overlap = np.where(size > 0, overlapping / np.maximum(size - self.index.ngram + 1, 1), 0.0)
        nearest, lists = self._hits(np.concatenate(owners), np.concatenate(entries), len(texts))
        return dict(zip(self.columns, (overlap, nearest, lists), strict=True))

    def _hits(self, owners: np.ndarray, entries: np.ndarray, texts: int) -> tuple[np.ndarray, np.ndarray]:
        nearest, lists = np.full(texts, None, object), np.full(texts, None, object)
        pairs = np.unique(owners * len(self.index.hashes) + entries)
        owner, entry = pairs // len(self.index.hashes), pairs % len(self.index.hashes)
        for of, instance, shared in self.index.shared(owner, entry):
            order = np.lexsort((instance, -shared / self.index.size[instance], -shared, of))
            found, best = np.unique(of[order], return_index=True)
            nearest[found] = [self.index.name(number) for number in instance[order][best]]
        found, first = np.unique(owner, return_index=True)
        for number, values in zip(found, np.split(entry, first[1:]) if len(found) else [], strict=True):
            lists[number] = values.tolist()
        return nearest, lists

    def hits(self, columns: dict[str, list[Any]]) -> int:
        """Of the documents whose columns these are, how many share any n-gram with an evaluation."""
        return sum(value is not None for value in columns[f"{self.config.column}_with"])
