"""Score: one scorer's columns for a shard of documents, row-aligned, written once. Text is looked at here and nowhere later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from tasks import filters, scratch
from tasks.documents import FILE as DOCUMENTS
from tasks.documents import load_columns, texts
from tasks.scorers import AnyScorerConfig, ScorerConfig, libraries, make_scorer
from tasks.scorers.contamination import Contamination
from tasks.shards import Input, Shard, ShardRef, ShardTask, Step, library_version
from tasks.sources.base import RawFile
from tasks.store import Books, Store, fingerprint

STEP = Step("score", 1, "tasks.score", ("fasttext-numpy2-wheel", "transformers", "torch"))
FILE = "scores.parquet"
SPEED = {"batch_tokens"}  # settings of a scorer that change no score


def task(
    name: str,
    scorer: AnyScorerConfig,
    model: list[Input],
    documents: ShardRef,
    where: list[filters.Filter],
    cheaper: list[ShardRef],
) -> ShardTask:
    """Scores of one shard. model: the shard of a trained model, or the files of a given one, whose place is no part of the key.

    `where` reads the documents' columns and the `cheaper` scores; what it leaves out is null. Shards that differ in `where` alone are one
    family: the scores of its earlier members are taken over, not computed again (`prepare`).
    """
    settings = scorer.model_dump(mode="json", exclude=SPEED | ({"model"} if model else set()))
    if used := libraries(scorer):
        settings["libraries"] = {name: library_version(name) for name in used}
    config = {"scorer": settings, "where": [rule.model_dump(mode="json") for rule in where]}
    made = ShardTask(name, config, {"documents": [documents], "model": model, "cheaper": list(cheaper) if where else []})
    family = ShardTask(name, {"scorer": settings}, {"documents": [documents], "model": model}).key(STEP)
    made.hints = {"family": family, "scorer": scorer.model_dump(mode="json")}
    return made


def prepare(store: Store, task: ShardTask, afresh: bool = False) -> None:
    """Find the shards of the family whose scores can be taken over (none where it is scored `afresh`), and let later ones find this one."""
    family, key = f"families/score/{task.hints['family']}", task.key(STEP)
    siblings = [] if afresh else [name for name in store.names(family) if name != key]
    task.hints["earlier"] = [{"step": STEP.name, "key": name} for name in siblings if store.record(STEP.name, name) is not None]
    store.create(f"{family}/{key}", "{}")


def run(shard: Shard) -> Books:
    """documents, model, cheaper scores -> scores.parquet with the scorer's columns; null where it was not asked to look."""
    documents: Path = shard.one("documents")[DOCUMENTS]
    scorer = _loaded(shard)
    wanted = _wanted(shard, documents)
    known = _known(shard, scorer.columns, len(wanted))
    books = Books(read=len(wanted), kept=len(wanted))
    books.count("skipped", int((~wanted).sum()))
    schema = pa.schema(list(scorer.columns.items()), metadata=getattr(scorer, "provenance", None))  # device class and dtype of a neural one
    with pq.ParquetWriter(shard.folder / FILE, schema, compression="zstd") as writer:
        for first, batch in texts(documents, shard.progress):
            part = slice(first, first + len(batch))
            columns, scored = _score(scorer, batch, wanted[part], {name: values[part] for name, values in known.items()})
            books.count("scored", scored)
            if isinstance(scorer, Contamination):
                books.count("hit", scorer.hits(columns))
            writer.write_table(pa.table(columns, schema=schema))
    books.count("taken_over", int(wanted.sum()) - books.counts.get("scored", 0))
    return books


def _loaded(shard: Shard) -> Any:
    """The shard's scorer, loaded once a process: a worker makes many shards with one model, and a model may be gigabytes."""
    model = [item.content_id if isinstance(item, RawFile) else str(model_folder(item)) for item in shard.inputs["model"]]
    key = fingerprint({"scorer": shard.hints["scorer"], "model": model})
    if key not in _scorers:
        _scorers.clear()
        _scorers[key] = make_scorer(TypeAdapter(ScorerConfig).validate_python(shard.hints["scorer"]), local_model(shard))
    return _scorers[key]


_scorers: dict[str, Any] = {}  # at most one


def local_model(shard: Shard) -> Path | None:
    """Where the scorer's model lies on this machine, trained or given (copied once a process from a remote place); None for a hub's name."""
    given = shard.inputs["model"]
    if not given:
        return None
    if isinstance(given[0], dict):
        files: dict[str, Path] = given[0]
        return files.get("model.bin") or model_folder(files) / "model"
    folder = scratch.folder() / "models" / fingerprint({raw.name: raw.content_id for raw in given})
    paths = {raw.name: _local(raw, folder / raw.name) for raw in given}
    return next(iter(paths.values())) if len(paths) == 1 else model_folder(paths)


def _local(raw: RawFile, copy: Path) -> Path:
    if raw.url.startswith("file://"):
        return Path(raw.url.removeprefix("file://"))
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f"{copy.name}.partial")
        with raw.open() as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        partial.rename(copy)
    return copy


def model_folder(files: dict[str, Path]) -> Path:
    """The folder that a shard was written into, from the paths of its files."""
    name, path = next(iter(files.items()))
    return path.parents[len(Path(name).parts) - 1]


def _wanted(shard: Shard, documents: Path) -> np.ndarray:
    rules = [filters.Filter.model_validate(rule) for rule in shard.config["where"]]
    table = load_columns(documents, [files[FILE] for files in shard.inputs["cheaper"]])
    return filters.apply(rules, table, name=shard.name)[0] if rules else np.ones(table.num_rows, bool)


def _known(shard: Shard, columns: dict[str, pa.DataType], rows: int) -> dict[str, np.ndarray]:
    """Scores that earlier shards of the family hold, as object arrays with None where there is none."""
    known = {name: np.full(rows, None, object) for name in columns}
    for files in shard.hints.get("earlier", []):
        table = pq.read_table(files[FILE])
        for name, values in known.items():
            found = np.empty(rows, object)
            found[:] = table.column(name).to_pylist()  # as one dimension, also where the values are lists of one length
            values[:] = np.where(values == None, found, values)  # noqa: E711 (elementwise)
    return known


def _score(scorer: Any, batch: list[str], wanted: np.ndarray, known: dict[str, np.ndarray]) -> tuple[dict[str, list[Any]], int]:
    have = np.array([value is not None for value in next(iter(known.values()))], bool)
    todo = np.flatnonzero(wanted & ~have)
    fresh = scorer.score([batch[i] for i in todo]) if len(todo) else {key: [] for key in known}
    columns = {}
    for name, values in known.items():
        column = values.copy()
        column[~wanted] = None
        column[todo] = [None if value != value else value for value in np.asarray(fresh[name]).tolist()]  # NaN: no judgement
        columns[name] = column.tolist()
    return columns, len(todo)
