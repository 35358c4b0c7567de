"""A look at documents: what is known of many of them, read from columns alone, and then the text of a few.

Which documents are shown follows from their keys, so that a second look shows the same ones.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import rewrite
from tasks.documents import FILE as DOCUMENTS
from tasks.documents import load_columns
from tasks.errors import UserError
from tasks.mix_plan import order
from tasks.score import FILE as SCORES
from tasks.select import FILE as SELECTION
from tasks.store import Record, Store, fingerprint
from tasks.tokenize import INDEX

MOST_DOCUMENTS = 2_000_000  # of which columns are read; of a larger source some shards stand for all
TEXT_CHARACTERS = 600  # shown of a text
SEED = 0x100C  # of the order in which documents are shown; no mix's own
KEPT, QUARANTINED = "kept", "quarantined"

Made = tuple[str, Sequence[str]]  # an artifact: its step, and the keys of its shards


@dataclass(frozen=True)
class ShardFiles:
    """Where the files about one shard of documents lie below the store's URL. `aligned`: scores and duplicates."""

    key: str
    rows: int
    documents: str
    aligned: tuple[str, ...] = ()
    index: str | None = None
    selection: str | None = None


class Look:
    """The documents of some artifacts over the same shards: the documents themselves, and with them scores, tokens and the selection.

    table: what is known of each document read; shard_of, row_of: where it lies, a place in `shards` and a row there; selection: `keep` and
    `reason` of each, where there is one. Of a source with more than MOST_DOCUMENTS documents only some shards are read, in the order of
    their keys.
    """

    def __init__(self, store: Store, made: Sequence[Made], names: Collection[str] | None = None, most: int = MOST_DOCUMENTS) -> None:
        self.store = store
        there = _shard_files(store, made)
        self.shards_in_all = len(there)
        self.shards = _some(there, most)
        self.table = pa.concat_tables([self._read(shard, names) for shard in self.shards], promote_options="default")
        self.shard_of = np.repeat(np.arange(len(self.shards)), [shard.rows for shard in self.shards])
        self.row_of = np.concatenate([np.arange(shard.rows) for shard in self.shards])
        paths = [shard.selection for shard in self.shards if shard.selection]
        self.selection = pa.concat_tables(map(self._read_selection, paths)) if paths else None

    def _read(self, shard: ShardFiles, names: Collection[str] | None) -> pa.Table:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(self._open(path)) for path in (shard.documents, *shard.aligned)]
            index = stack.enter_context(self._open(shard.index)) if shard.index else None
            return load_columns(files[0], files[1:], index, names)

    def _read_selection(self, path: str) -> pa.Table:
        with self._open(path) as file:
            return pq.read_table(file, columns=["keep", "reason"])

    def _open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return cast(contextlib.AbstractContextManager[BinaryIO], self.store.fs.open(self.store.full(path), "rb"))

    def first(self, places: np.ndarray, number: int, nearest: np.ndarray | None = None) -> np.ndarray:
        """The first `number` of some places in the table: those with the smallest `nearest` (a value a place), then by hash of the key."""
        if nearest is not None and len(places) > number:
            most = np.partition(nearest, number - 1)[number - 1]
            places, nearest = places[nearest <= most], nearest[nearest <= most]
        line = order(self.table.column("key").to_numpy()[places], SEED)
        ranks = (line,) if nearest is None else (line, nearest)
        return places[np.lexsort(ranks)[:number]]

    def read(self, places: np.ndarray) -> dict[int, dict[str, Any]]:
        """By place in the table: `id`, `source` and the beginning of the `text`. Reads the row groups that they lie in, each once."""
        shards, rows = self.shard_of[places], self.row_of[places]
        found = {}
        for number in np.unique(shards):
            here = shards == number
            of_row = dict(zip(rows[here].tolist(), places[here].tolist(), strict=True))
            for row, document in self._documents(self.shards[number].documents, of_row):
                found[of_row[row]] = document
        return found

    def _documents(self, path: str, rows: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open(path) as stream, pq.ParquetFile(stream) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                wanted = sorted(row for row in rows if start <= row < stop)
                if wanted:
                    part = file.read_row_group(group, columns=["id", "source", "text"]).take([row - start for row in wanted])
                    for row, document in zip(wanted, part.to_pylist(), strict=True):
                        yield row, {**document, "text": document["text"][:TEXT_CHARACTERS]}
                start = stop


def _shard_files(store: Store, made: Sequence[Made]) -> list[ShardFiles]:
    """Shard by shard the files of artifacts that are made of the same documents; others (a tokenizer, a model) are passed over."""
    records = [[_record(store, step, key) for key in keys] for step, keys in made]
    documents = next((found for found in records if found and _has(found[0], DOCUMENTS)), None)
    if documents is None:
        raise UserError("there are no documents behind this artifact to look at")
    together = [found for found in records if len(found) == len(documents)]
    return [_files(shard, [found[number] for found in together]) for number, shard in enumerate(documents)]


def _record(store: Store, step: str, key: str) -> Record:
    record = store.record(step, key)
    if record is None:
        raise UserError(f"shard {step}/{key} is gone from {store.url}: run the recipe again to make it anew")
    return record


def _has(record: Record, name: str) -> bool:
    return any(stored.name == name for stored in record.files)


def _files(documents: Record, others: list[Record]) -> ShardFiles:
    rows = documents.file(DOCUMENTS).rows or 0
    stored = [file for record in others for file in record.files]
    paths = {name: next((file.path for file in stored if file.name == name), None) for name in (INDEX, SELECTION)}
    aligned = tuple(file.path for file in stored if file.name == SCORES)
    return ShardFiles(documents.key, rows, documents.file(DOCUMENTS).path, aligned, paths[INDEX], paths[SELECTION])


def _some(shards: list[ShardFiles], most: int) -> list[ShardFiles]:
    """All shards, or of a large source the first by key that together hold `most` rows: keys are hashes, so this is a fair sample."""
    if sum(shard.rows for shard in shards) <= most:
        return shards
    taken: list[ShardFiles] = []
    rows = 0
    for shard in sorted(shards, key=lambda shard: shard.key):
        if taken and rows + shard.rows > most:
            break
        taken.append(shard)
        rows += shard.rows
    return taken


# -- samples of an artifact --------------------------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Documents by fate, from so many of an artifact's shards.

    An entry is `{"fate", "id", "source", "columns", "text"}`; of what was quarantined `{"fate", "file", "position", "cause", "text"}`.
    """

    entries: list[dict[str, Any]]
    shards: int
    shards_in_all: int


def samples(store: Store, manifest: dict[str, Any], number: int, reason: str | None = None) -> Samples:
    """`number` documents of each fate in a select, score, tokenize, ingest or rewrite artifact, in the order of the fates' sizes.

    reason: only the fates whose name holds it. Raises UserError where there is none such.
    """
    made = [(manifest["step"], manifest["shards"])]
    before = [] if manifest["step"] == rewrite.STEP.name else manifest["inputs"]  # of what is rewritten these are other documents
    inputs = {other["id"]: other for other in store.manifests() if other["id"] in before}
    made = [*((inputs[name]["step"], inputs[name]["shards"]) for name in before if name in inputs), *made]
    look = Look(store, made, _shown(manifest))
    fates = _fates(manifest, look)
    lost = _quarantined(store, manifest, number) + _rejected(store, manifest, number)
    told = [*fates, *dict.fromkeys(entry["fate"] for entry in lost)]
    names = [name for name in told if reason is None or reason.lower() in name.lower()]
    if reason is not None and not names:
        raise UserError(f"nothing in {manifest['id']} has the reason {reason!r}; there is {', '.join(told) or 'nothing at all'}")
    picked = {name: look.first(fates[name], number) for name in names if name in fates}
    texts = look.read(np.concatenate([*picked.values(), np.zeros(0, np.int64)]).astype(np.int64))
    hidden = {"id", "key", "source", "added", "created"}
    found = []
    for name, places in picked.items():
        for place, known in zip(places.tolist(), look.table.take(places).to_pylist(), strict=True):
            columns = {column: value for column, value in known.items() if column not in hidden}
            document = texts[place]
            found.append({"fate": name, "id": document["id"], "source": document["source"], "columns": columns, "text": document["text"]})
    return Samples(found + [entry for entry in lost if entry["fate"] in names], len(look.shards), look.shards_in_all)


def _shown(manifest: dict[str, Any]) -> set[str] | None:
    """Of a selection the columns that its rules read; of the others all."""
    if manifest["step"] != "select":
        return None
    config = manifest["config"]
    return {rule["column"] for rule in [*config["tokenize_where"]["filters"], *config["filters"]]}


def _fates(manifest: dict[str, Any], look: Look) -> dict[str, np.ndarray]:
    """Places in the table by what became of the documents, the most frequent fate first, but `kept` before all."""
    table = look.table
    if look.selection is not None:
        fate = look.selection.column("reason").fill_null(KEPT).to_numpy(zero_copy_only=False)
    elif manifest["step"] == "score":
        column = _own_column(look)
        fate = np.where(table.column(column).is_null().to_numpy(), "not scored", "scored")
    elif "tokens" in table.column_names:
        fate = np.where(table.column("tokens").is_null().to_numpy(), "not tokenized", "tokenized")
    else:
        fate = np.full(table.num_rows, KEPT, object)
    names, counts = np.unique(fate.astype(str), return_counts=True)
    ranked = sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: (pair[0] != KEPT, -pair[1], pair[0]))
    return {name: np.flatnonzero(fate == name) for name, _ in ranked}


def _own_column(look: Look) -> str:
    """The first column of the scores that were asked for: they come last."""
    with look._open(look.shards[0].aligned[-1]) as stream:
        return str(pq.read_schema(stream).names[0])


def _quarantined(store: Store, manifest: dict[str, Any], number: int) -> list[dict[str, Any]]:
    records = store.records(manifest["step"], manifest["shards"])
    paths = [record.quarantine["path"] for record in records if record and record.quarantine]
    entries = (entry for path in paths for entry in _entries(store, path))
    picked = heapq.nsmallest(number, entries, key=lambda entry: fingerprint([entry["file"], entry["position"]]))
    names = ("file", "position", "cause")
    return [{"fate": QUARANTINED, **{name: entry[name] for name in names}, "text": entry["raw"][:TEXT_CHARACTERS]} for entry in picked]


def _rejected(store: Store, manifest: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Answers of a language model that made no document, `number` of each cause."""
    if manifest["step"] != rewrite.STEP.name:
        return []
    paths = [_record(store, manifest["step"], key).file(rewrite.REJECTED).path for key in manifest["shards"]]
    by_cause: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        with store.fs.open(store.full(path), "rb") as stream:
            for row in pq.read_table(stream).to_pylist():
                by_cause.setdefault(row["cause"], []).append(row)
    picked = [row for rows in by_cause.values() for row in heapq.nsmallest(number, rows, key=lambda row: fingerprint(row["id"]))]
    common = {"source": manifest["name"], "columns": {}}
    return [{"fate": row["cause"], "id": row["id"], **common, "text": row["answer"][:TEXT_CHARACTERS]} for row in picked]


def _entries(store: Store, path: str) -> Iterator[dict[str, Any]]:
    with store.fs.open(store.full(path), "rb") as stream:
        for line in stream:
            yield json.loads(line)
