"""Contamination: how much of each evaluation stands in a source, as read and as selected, and in a mix with the copies that it takes.

Reads what the contamination scorer found in each document, never a text. An instance is inside where 80 % of its n-grams or more are, in
whatever documents (Llama 2's bound of a contaminated sample: Touvron et al., 2023, appendix A.6); it is touched where any is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.documents import FILE as DOCUMENTS
from tasks.score import FILE as SCORES
from tasks.score import local_model
from tasks.scorers.contamination import Index
from tasks.select import FILE as SELECTION
from tasks.shards import Input, Shard, ShardRef, ShardTask, Step
from tasks.store import Books

STEP = Step("contamination", 1, "tasks.contamination")
FILE = "contamination.json"
INSIDE = 0.8
EXAMPLES = 5  # told of each evaluation

Shards = tuple[list[ShardRef], list[ShardRef]]  # of documents and of their scores


def source_task(name: str, column: str, model: list[Input], source: str, shards: Shards, selection: list[ShardRef]) -> ShardTask:
    """Evaluations in one source. model: the index; column: that of the scorer."""
    config = {"column": column, "shards": [[source, len(shards[0])]]}
    return ShardTask(name, config, {"model": model, "selection": list(selection), **_inputs({source: shards})})


def mix_task(name: str, column: str, model: list[Input], sizes: dict[str, int], shards: dict[str, Shards], plan: ShardRef) -> ShardTask:
    """Evaluations in a mix. sizes: shards of each of its sources; shards: those of the sources that were scored."""
    config = {"column": column, "shards": [list(size) for size in sorted(sizes.items())]}  # in the mix's own order
    return ShardTask(name, config, {"model": model, "plan": [plan], **_inputs(dict(sorted(shards.items())))})


def _inputs(shards: dict[str, Shards]) -> dict[str, list[Input]]:
    roles: dict[str, list[Input]] = {}
    for source, (documents, scores) in shards.items():
        roles |= {f"documents:{source}": list(documents), f"scores:{source}": list(scores)}
    return roles


@dataclass
class Part:
    """One shard of documents, of which a place takes so many copies each."""

    source: str
    documents: Path
    scores: Path
    copies: np.ndarray  # int64[rows]


def run(shard: Shard) -> Books:
    """index, scores, documents' ids, and a selection or a mix's plan -> contamination.json: by place what is inside of each evaluation."""
    folder = local_model(shard)
    assert folder is not None  # a scorer of contamination has an index as its input, made here or given
    index = Index.load(folder)
    books = Books("instances", read=len(index.ids), kept=len(index.ids))
    places = {}
    for place, parts in _places(shard):
        told = _measure(index, shard.config["column"], parts)
        places[place] = {**told, "not_looked_at": [name for name, _ in shard.config["shards"] if f"scores:{name}" not in shard.inputs]}
        for name in ("inside", "touched"):
            books.count(f"{name}_when_selected" if place == "selected" else name, sum(each[name] for each in told["evaluations"].values()))
    shutil.rmtree(shard.folder / "model", ignore_errors=True)  # a copy of an index from elsewhere
    (shard.folder / FILE).write_text(json.dumps({"ngram": index.ngram, "places": places}, indent=1))
    return books


def _places(shard: Shard) -> Iterator[tuple[str, list[Part]]]:
    if "plan" in shard.inputs:
        plan = pq.read_table(shard.one("plan")["plan.parquet"], columns=["file", "row", "copies"])
        file, row, copies = (plan.column(name).to_numpy() for name in ("file", "row", "copies"))

        def taken(number: int, rows: int) -> np.ndarray:
            of_all = np.zeros(rows, np.int64)
            begin, end = np.searchsorted(file, [number, number + 1])  # a plan goes file by file
            of_all[row[begin:end]] = copies[begin:end]
            return of_all

        yield "mix", _parts(shard, taken)
        return
    yield "read", _parts(shard, lambda number, rows: np.ones(rows, np.int64))
    selections = [files[SELECTION] for files in shard.inputs["selection"]]
    yield "selected", _parts(shard, lambda number, rows: _kept(selections[number]))


def _kept(selection: Path) -> np.ndarray:
    return pq.read_table(selection, columns=["keep"]).column("keep").to_numpy(zero_copy_only=False).astype(np.int64)


def _parts(shard: Shard, copies: Callable[[int, int], np.ndarray]) -> list[Part]:
    """The scored shards. `copies(number, rows)`: int64[rows] taken of each document, by the shard's number among those of all sources.

    Two selections of one source have the same shards: these are told once, with the copies of both.
    """
    parts: dict[Path, Part] = {}
    first = 0
    for source, size in shard.config["shards"]:
        documents, scores = (shard.inputs.get(f"{role}:{source}", []) for role in ("documents", "scores"))
        for number, (texts, found) in enumerate(zip(documents, scores, strict=True)):
            rows = pq.read_metadata(found[SCORES]).num_rows
            part = parts.setdefault(found[SCORES], Part(source, texts[DOCUMENTS], found[SCORES], np.zeros(rows, np.int64)))
            part.copies += copies(first + number, rows)
        first += size
    return list(parts.values())


def _measure(index: Index, column: str, parts: list[Part]) -> dict[str, Any]:
    """What the documents that the parts take hold of each evaluation."""
    found = np.zeros(len(index.hashes), bool)
    documents, copies = np.zeros((2, len(index.evaluations)), np.int64)
    most, where = np.zeros(len(index.ids), np.int64), np.zeros(len(index.ids), np.int64)  # the document that holds most of an instance
    looked_at = not_scored = base = 0
    for part in parts:
        table = pq.read_table(part.scores, columns=[column, f"{column}_ngrams"])
        scored = table.column(column).is_valid().to_numpy()
        looked_at += int(((part.copies > 0) & scored).sum())
        not_scored += int(((part.copies > 0) & ~scored).sum())
        lists = table.column(f"{column}_ngrams").combine_chunks()
        owner, entry = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists).to_numpy()
        taken = part.copies[owner] > 0
        found[entry[taken]] = True
        for of, instance, shared in index.shared(owner[taken], entry[taken]):
            pairs = np.unique(of * len(index.evaluations) + index.evaluation[instance])
            holder, evaluation = pairs // len(index.evaluations), pairs % len(index.evaluations)
            np.add.at(documents, evaluation, 1)
            np.add.at(copies, evaluation, part.copies[holder])
            order = np.lexsort((of, -shared, instance))
            first = order[np.unique(instance[order], return_index=True)[1]]
            first = first[shared[first] > most[instance[first]]]
            most[instance[first]], where[instance[first]] = shared[first], base + of[first]
        base += len(part.copies)
    share = np.bincount(index.postings, np.repeat(found, np.diff(index.offsets)), minlength=len(index.ids)) / index.size
    evaluations = {}
    for number, name in enumerate(index.evaluations):
        mine = np.flatnonzero(index.evaluation == number)
        evaluations[name] = {
            "instances": len(mine),
            "inside": int((share[mine] >= INSIDE).sum()),
            "touched": int((share[mine] > 0).sum()),
            "documents": int(documents[number]),
            "copies": int(copies[number]),
            "examples": _examples(index, parts, mine, share, most, where),
        }
    return {"documents": looked_at, "not_scored": not_scored, "evaluations": evaluations}


def _examples(
    index: Index, parts: list[Part], mine: np.ndarray, share: np.ndarray, most: np.ndarray, where: np.ndarray
) -> list[dict[str, Any]]:
    """The instances of which most is there, each with the document that holds most of it."""
    worst = mine[np.argsort(-share[mine], kind="stable")][:EXAMPLES]
    ends = np.cumsum([len(part.copies) for part in parts])
    examples = []
    for instance in worst[share[worst] > 0]:
        number = int(np.searchsorted(ends, where[instance], side="right"))
        row = int(where[instance] - (ends[number] - len(parts[number].copies)))
        identifier = pq.read_table(parts[number].documents, columns=["id"]).column("id")[row].as_py()
        examples.append(
            {
                "instance": index.ids[instance],
                "text": index.texts[instance],
                "share": float(share[instance]),
                "source": parts[number].source,
                "document": identifier,
                "share_in_document": float(most[instance] / index.size[instance]),
            }
        )
    return examples
