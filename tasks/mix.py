"""Mix: which documents of which source, how many times, as a plan over tokens that are already there (report, section 4.3).

The shard of a mix holds `plan.parquet`, its compiled form for the trainer (`mix.json`, `extents.npy`), `composition.json` in the columns
of Table 13, and with `pack: true` the tokens themselves. The shard of a source's held-out part is compiled in the same form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import mix_plan
from tasks.documents import duplicates
from tasks.errors import UserError
from tasks.mix_plan import MixSpec
from tasks.pack import pack
from tasks.score import model_folder
from tasks.select import FILE as SELECTION
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books
from tasks.tokenize import INDEX, TOKENS
from tasks.tokenizer import Tokenizer

MIX = Step("mix", 1, "tasks.mix")
HELD_OUT = Step("held-out", 1, "tasks.mix")


@dataclass
class SourceIndex:
    """The selected documents of a source, in order of shard and row. All arrays have one entry a document."""

    keys: np.ndarray  # uint64
    file: np.ndarray  # int32: position in the mix's list of token files
    row: np.ndarray  # int64: row in the documents shard
    start: np.ndarray  # int64: first token in the file
    length: np.ndarray  # int64: tokens, EOS included
    bytes: np.ndarray  # int64: UTF-8 bytes of the text

    def take(self, which: np.ndarray) -> SourceIndex:
        return SourceIndex(*(getattr(self, name)[which] for name in ("keys", "file", "row", "start", "length", "bytes")))

    @property
    def tokens(self) -> int:
        return int(self.length.sum())


def task(
    spec: MixSpec,
    name: str,
    sources: dict[str, tuple[list[ShardRef], list[ShardRef]]],
    tokenizer: ShardRef,
    held_out: float,
    held_tokens: int,
    encoded_as: dict[str, list[ShardRef]] | None = None,
) -> ShardTask:
    """A mix. sources: name -> (token shards, selection shards), in the same order; held_out: share of documents that no mix may take.

    encoded_as: name -> token shards under another tokenizer, `tokenizer`. The mix then takes the very documents that it takes of `sources`,
    in these tokens; all its settings that count tokens count those of `sources`.
    """
    config = {"mix": spec.model_dump(mode="json"), "held_out": held_out, "held_tokens": held_tokens}
    return ShardTask(name, {**config, **_settings(sources, encoded_as or {})}, _inputs(sources, tokenizer, encoded_as or {}))


def held_out_task(
    name: str,
    source: tuple[list[ShardRef], list[ShardRef]],
    tokenizer: ShardRef,
    share: float,
    tokens: int,
    sequence_length: int,
    encoded_as: list[ShardRef] | None = None,
) -> ShardTask:
    """The held-out part of a source: documents of the smallest hash up to `share` of them and about `tokens` tokens.

    encoded_as: token shards under another tokenizer, as of a mix.
    """
    config = {"held_out": share, "held_tokens": tokens, "sequence_length": sequence_length}
    sources, others = {name: source}, {name: encoded_as} if encoded_as is not None else {}
    return ShardTask(name, {**config, **_settings(sources, others)}, _inputs(sources, tokenizer, others))


def _settings(sources: dict[str, tuple[list[ShardRef], list[ShardRef]]], encoded_as: dict[str, list[ShardRef]]) -> dict[str, Any]:
    # the order of the sources is the order of the tokens, and a key does not see the order of a mapping
    read = {name: encoded_as.get(name, tokens) for name, (tokens, _) in sources.items()}
    return {
        "order": list(sources),
        "files": {name: [f"{ref.step}/{ref.key}/{TOKENS}" for ref in tokens] for name, tokens in read.items()},
    }


def _inputs(
    sources: dict[str, tuple[list[ShardRef], list[ShardRef]]], tokenizer: ShardRef, encoded_as: dict[str, list[ShardRef]]
) -> dict[str, Any]:
    roles: dict[str, Any] = {"tokenizer": [tokenizer]}
    for name, (tokens, selections) in sources.items():
        roles |= {f"tokens:{name}": tokens, f"selection:{name}": selections}
    return roles | {f"encoded-as:{name}": tokens for name, tokens in encoded_as.items()}


def run(shard: Shard) -> Books:
    """tokens and selections of sources, tokenizer -> a compiled mix, or the compiled held-out part of one source."""
    books = Books()
    sources, taken_out = {}, {}
    first = 0
    for name in shard.config["order"]:
        files = shard.config["files"][name]
        selected = _load(shard, name, first, books)
        first += len(files)
        held = held_out(selected, shard.config["held_out"], shard.config["held_tokens"])
        sources[name], taken_out[name] = selected.take(~held), selected.take(held)
    if "mix" not in shard.config:
        _compile_held_out(shard, taken_out, books)
    else:
        for name, held_part in taken_out.items():
            books.drop(f"held out of {name}", len(held_part.keys))
        _compile_mix(shard, sources, books)
    return books


def held_out(source: SourceIndex, share: float, tokens: int) -> np.ndarray:
    """bool[documents]: the documents that no mix may take: those of the smallest hash, up to `share` of all and about `tokens` tokens."""
    candidates = np.flatnonzero(mix_plan.held_out(source.keys, share))
    by_hash = candidates[np.argsort(mix_plan.order(source.keys[candidates], mix_plan.HELD_OUT_SEED), kind="stable")]
    before = np.cumsum(source.length[by_hash]) - source.length[by_hash]
    held = np.zeros(len(source.keys), bool)
    held[by_hash[before < tokens]] = True
    return held


def _load(shard: Shard, name: str, first_file: int, books: Books) -> SourceIndex:
    """The documents of a source that the selection keeps; what it does not keep is booked by the select step, not here."""
    parts = []
    for number, (tokens, selection) in enumerate(zip(shard.inputs[f"tokens:{name}"], shard.inputs[f"selection:{name}"], strict=True)):
        index = pq.read_table(tokens[INDEX])
        keep = pq.read_table(selection[SELECTION], columns=["keep"]).column("keep").to_numpy(zero_copy_only=False)
        rows = index.column("row").to_numpy()
        chosen = keep[rows]
        columns = {column: index.column(column).to_numpy()[chosen] for column in ("key", "row", "start", "length", "bytes")}
        file = np.full(len(columns["row"]), first_file + number, np.int32)
        parts.append(
            SourceIndex(columns["key"], file, columns["row"], columns["start"], columns["length"].astype(np.int64), columns["bytes"])
        )
    fields = ("keys", "file", "row", "start", "length", "bytes")
    joined = SourceIndex(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))
    books.read += len(joined.keys)
    if found := duplicates(joined.keys):  # of all shards, where ingestion sees those of one
        books.count("duplicate_ids", found)
    return joined


def _encoded_as(shard: Shard, name: str, source: SourceIndex) -> SourceIndex:
    """The same documents where the tokens of another tokenizer lie; the source itself where the shard has no other."""
    others = shard.inputs.get(f"encoded-as:{name}")
    if others is None:
        return source
    order = shard.config["order"]
    first = sum(len(shard.config["files"][before]) for before in order[: order.index(name)])
    start, length = np.empty_like(source.start), np.empty_like(source.length)
    for number, tokens in enumerate(others):
        mine = source.file == first + number
        index = pq.read_table(tokens[INDEX], columns=["row", "key", "start", "length"])
        rows = index.column("row").to_numpy()
        at = np.searchsorted(rows, source.row[mine])
        there = at < len(rows)
        if not there.all() or (index.column("key").to_numpy()[at] != source.keys[mine]).any():
            raise UserError(f"{shard.name}: the other tokenizer has not encoded the documents of {name} shard by shard: run it again")
        start[mine] = index.column("start").to_numpy()[at]
        length[mine] = index.column("length").to_numpy()[at]
    return SourceIndex(source.keys, source.file, source.row, start, length, source.bytes)


def _compile_mix(shard: Shard, sources: dict[str, SourceIndex], books: Books) -> None:
    spec = MixSpec.model_validate(shard.config["mix"])
    repeats = mix_plan.resolve(spec, {name: source.tokens for name, source in sources.items()})
    copies = {name: mix_plan.plan_copies(source.keys, source.length, repeats[name], spec.seed) for name, source in sources.items()}
    if not any(count.any() for count in copies.values()):
        raise UserError(
            f"mix {shard.name} takes no document: loosen the filters of its sources ({', '.join(sources)}) or raise their repeat"
        )
    sources = {name: _encoded_as(shard, name, source) for name, source in sources.items()}
    extents = mix_plan.join_extents([mix_plan.extents(s.file, s.start, s.length, copies[name]) for name, s in sources.items()])
    table = _table(sources, copies)
    pq.write_table(table, shard.folder / "plan.parquet", compression="zstd")
    taken = {name: _taken(source, copies[name], repeats[name]) for name, source in sources.items()}
    (shard.folder / "composition.json").write_text(json.dumps(mix_plan.composition(taken), indent=1))
    for name, source in sources.items():
        books.kept += taken[name]["documents"]
        books.drop(f"left over of {name}", len(source.keys) - taken[name]["documents"])
    _write_compiled(shard, sources, copies, extents, spec, table)
    books.count("tokens", int(extents[-1, 3]))


def _taken(source: SourceIndex, copies: np.ndarray, repeat: float) -> mix_plan.Taken:
    return {
        "available": source.tokens,
        "tokens": int((source.length * copies).sum()),
        "documents": int((copies > 0).sum()),
        "repeat": repeat,
    }


def _table(sources: dict[str, SourceIndex], copies: dict[str, np.ndarray]) -> pa.Table:
    """The documents that the mix takes: source, file (position in its list of token files), row, key, start, length, copies."""
    numbers = np.repeat(np.arange(len(sources), dtype=np.int32), [len(source.keys) for source in sources.values()])
    columns = {
        name: np.concatenate([getattr(source, name) for source in sources.values()]) for name in ("keys", "file", "row", "start", "length")
    }
    table = pa.table(
        {"source": pa.DictionaryArray.from_arrays(numbers, list(sources)), **columns, "copies": np.concatenate(list(copies.values()))}
    )
    return table.filter(pc.greater(table["copies"], 0)).rename_columns({"keys": "key"})


def _write_compiled(
    shard: Shard, sources: dict[str, SourceIndex], copies: dict[str, np.ndarray], extents: np.ndarray, spec: MixSpec, table: pa.Table
) -> None:
    files, kind = [name for source in shard.config["order"] for name in shard.config["files"][source]], "scattered"
    if spec.pack:
        read = [shard.inputs.get(f"encoded-as:{name}", shard.inputs[f"tokens:{name}"]) for name in sources]
        paths = [tokens[TOKENS] for shards in read for tokens in shards]
        files, extents = pack(extents, paths, table, shard.folder, spec.sequence_length)
        kind = "packed"
    np.save(shard.folder / "extents.npy", extents)
    tokens = [{"name": name, "tokens": int((s.length * copies[name]).sum())} for name, s in sources.items()]
    size = sum(int((s.bytes * copies[name]).sum()) for name, s in sources.items())
    count = sum(int(copies[name].sum()) for name in sources)
    _write_header(shard, kind, files, extents, spec.sequence_length, tokens, count, size)


def _compile_held_out(shard: Shard, held: dict[str, SourceIndex], books: Books) -> None:
    """A source of a few documents may have none held out; the evaluation then says that it has nothing to say of it."""
    ((name, source),) = held.items()
    source = _encoded_as(shard, name, source)
    books.kept = len(source.keys)
    books.drop("for training", books.read - books.kept)
    extents = mix_plan.extents(source.file, source.start, source.length, np.ones(len(source.keys), np.uint16))
    np.save(shard.folder / "extents.npy", extents)
    files = shard.config["files"][name]
    _write_header(
        shard,
        "scattered",
        files,
        extents,
        shard.config["sequence_length"],
        [{"name": name, "tokens": source.tokens}],
        len(source.keys),
        int(source.bytes.sum()),
    )
    books.count("tokens", source.tokens)


def _write_header(
    shard: Shard,
    kind: str,
    files: list[str],
    extents: np.ndarray,
    sequence_length: int,
    sources: list[dict[str, Any]],
    documents: int,
    size: int,
) -> None:
    tokenizer = Tokenizer.load(model_folder(shard.one("tokenizer")))
    tokens = int(extents[:, 2].sum())
    header = {
        "version": 1,
        "kind": kind,
        "sequence_length": sequence_length,
        "tokens": tokens,
        "instances": tokens // sequence_length,
        "documents": documents,
        "bytes": size,
        "vocab_size": tokenizer.padded_vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.sha256,
        "files": files,
        "sources": sources,
    }
    (shard.folder / "mix.json").write_text(json.dumps(header, indent=1))
