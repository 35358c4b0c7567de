"""Mix: which documents of which source, how many times, as a plan over tokens that are already there (report, section 4.3).

The shard of a mix holds `plan.parquet`, its compiled form for the trainer (`mix.json`, `extents.npy`), `composition.json` in the columns
of Table 13, and with `pack: true` the tokens themselves. The shard of a source's held-out part is compiled in the same form.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks import mix_index as index
from tasks import mix_plan
from tasks.errors import UserError
from tasks.mix_files import ExtentsFile, PlanFile
from tasks.mix_index import Source, Survey
from tasks.mix_plan import MixSpec, Taken
from tasks.pack import pack
from tasks.score import model_folder
from tasks.select import FILE as SELECTION
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books
from tasks.tokenize import INDEX, TOKENS
from tasks.tokenizer import Tokenizer

MIX = Step("mix", 1, "tasks.mix")
HELD_OUT = Step("held-out", 1, "tasks.mix")
PLAN, EXTENTS = "plan.parquet", "extents.npy"


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
    spec = spec.model_copy(
        update={"sources": dict(sorted(spec.sources.items()))}
    )  # a recipe that came through a database has lost its order
    sources, encoded_as = dict(sorted(sources.items())), dict(sorted((encoded_as or {}).items()))
    config = {"mix": spec.model_dump(mode="json"), "held_out": held_out, "held_tokens": held_tokens}
    return ShardTask(name, {**config, **_settings(sources, encoded_as)}, _inputs(sources, tokenizer, encoded_as))


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
    spec = MixSpec.model_validate(shard.config["mix"]) if "mix" in shard.config else None
    seed = spec.seed if spec else mix_plan.HELD_OUT_SEED
    with tempfile.TemporaryFile(dir=shard.folder) as scratch:
        surveys = {}
        for source in _sources(shard):
            survey = Survey(source, seed, shard.config["held_out"], shard.config["held_tokens"], scratch)
            surveys[source.name] = survey
            books.read += survey.documents
            if survey.duplicates:  # of all shards, where ingestion sees those of one
                books.count("duplicate_ids", survey.duplicates)
        if spec is None:
            (survey,) = surveys.values()
            _compile_held_out(shard, survey, books)
        else:
            _compile_mix(shard, spec, surveys, books)
    return books


def _sources(shard: Shard) -> Iterator[Source]:
    """What a selection does not keep is booked by the select step, not here."""
    first = 0
    for name in shard.config["order"]:
        tokens, selections = shard.inputs[f"tokens:{name}"], shard.inputs[f"selection:{name}"]
        shards = [(made[INDEX], chosen[SELECTION]) for made, chosen in zip(tokens, selections, strict=True)]
        yield Source(name, first, shards, [made[INDEX] for made in shard.inputs.get(f"encoded-as:{name}", [])])
        first += len(shard.config["files"][name])


@dataclass
class Compiled:
    """What was taken of a source: `tokens`, `copies` of documents and `bytes` of text count every copy, `documents` each once.

    available: tokens of all documents that could be taken.
    """

    available: int = 0
    tokens: int = 0
    bytes: int = 0
    copies: int = 0
    documents: int = 0

    def add(self, documents: Mapping[str, np.ndarray], copies: np.ndarray) -> None:
        times = copies.astype(np.int64)
        self.tokens += int(documents["length"] @ times)
        self.bytes += int(documents["bytes"] @ times)
        self.copies += int(times.sum())
        self.documents += len(times)


def _compile_mix(shard: Shard, spec: MixSpec, surveys: dict[str, Survey], books: Books) -> None:
    repeats = mix_plan.resolve(spec, {name: survey.available for name, survey in surveys.items()})
    compiled, taken = {}, {}
    with (shard.folder / EXTENTS).open("w+b") as file, closing(PlanFile(shard.folder / PLAN, list(surveys))) as plan:
        extents = ExtentsFile(file)
        for name, survey in surveys.items():
            compiled[name] = _compile(survey, repeats[name], plan, extents, shard.folder)
        extents.close()
    if not len(extents):
        raise UserError(
            f"mix {shard.name} takes no document: loosen the filters of its sources ({', '.join(surveys)}) or raise their repeat"
        )
    for name, survey in surveys.items():
        books.drop(f"held out of {name}", survey.held_documents)
    for name, survey in surveys.items():
        found = compiled[name]
        taken[name] = Taken(available=found.available, tokens=found.tokens, documents=found.documents, repeat=repeats[name])
        books.kept += found.documents
        books.drop(f"left over of {name}", survey.documents - survey.held_documents - found.documents)
    (shard.folder / "composition.json").write_text(json.dumps(mix_plan.composition(taken), indent=1))
    books.count("tokens", sum(found.tokens for found in compiled.values()))
    files, kind = [name for source in surveys for name in shard.config["files"][source]], "scattered"
    if spec.pack:
        read = [shard.inputs.get(f"encoded-as:{name}", shard.inputs[f"tokens:{name}"]) for name in surveys]
        paths = [tokens[TOKENS] for shards in read for tokens in shards]
        table = pq.read_table(shard.folder / PLAN)
        files, packed = pack(np.load(shard.folder / EXTENTS), paths, table, shard.folder, spec.sequence_length)
        np.save(shard.folder / EXTENTS, packed)
        kind = "packed"
    _write_header(shard, kind, files, spec.sequence_length, compiled)


def _compile(survey: Survey, repeat: float, plan: PlanFile, extents: ExtentsFile, folder: Path) -> Compiled:
    """The documents of one source, in the order of `mix_plan.extents`: all that have a copy, then those with a second, and so on."""
    whole, tokens = mix_plan.split_repeat(repeat, survey.available)
    front = survey.front(tokens)
    compiled, begin = Compiled(), len(extents)
    with tempfile.TemporaryFile(dir=folder) as file:
        last = ExtentsFile(file)  # the last copy, which only some documents have
        for documents in index.documents(survey, held=False):
            compiled.available += documents.tokens
            more, front = front.take(documents.places)
            taken = documents.take() if whole else documents.take(more)
            copies = np.uint16(whole) + more.astype(np.uint16) if whole else np.ones(len(taken["key"]), np.uint16)
            plan.append(survey.source.name, taken, copies)
            extents.append(_extents(taken, copies))
            if whole:
                last.append(_extents(taken, copies > whole))
            compiled.add(taken, copies)
        extents.repeat(begin, whole - 1)
        extents.extend(last)
    return compiled


def _extents(documents: Mapping[str, np.ndarray], copies: np.ndarray) -> np.ndarray:
    """The first copy of the documents that have one."""
    return mix_plan.extents(documents["file"], documents["start"], documents["length"], (copies > 0).astype(np.uint16))


def _compile_held_out(shard: Shard, survey: Survey, books: Books) -> None:
    """A source of a few documents may have none held out; the evaluation then says that it has nothing to say of it."""
    held = Compiled()
    with (shard.folder / EXTENTS).open("w+b") as file:
        extents = ExtentsFile(file)
        for documents in index.documents(survey, held=True):
            taken = documents.take()
            ones = np.ones(len(taken["key"]), np.uint16)
            extents.append(_extents(taken, ones))
            held.add(taken, ones)
        extents.close()
    books.kept = held.documents
    books.drop("for training", books.read - books.kept)
    books.count("tokens", held.tokens)
    name = survey.source.name
    _write_header(shard, "scattered", shard.config["files"][name], shard.config["sequence_length"], {name: held})


def _write_header(shard: Shard, kind: str, files: list[str], sequence_length: int, compiled: Mapping[str, Compiled]) -> None:
    tokenizer = Tokenizer.load(model_folder(shard.one("tokenizer")))
    tokens = sum(found.tokens for found in compiled.values())
    header = {
        "version": 1,
        "kind": kind,
        "sequence_length": sequence_length,
        "tokens": tokens,
        "instances": tokens // sequence_length,
        "documents": sum(found.copies for found in compiled.values()),
        "bytes": sum(found.bytes for found in compiled.values()),
        "vocab_size": tokenizer.padded_vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.sha256,
        "files": files,
        "sources": [{"name": name, "tokens": found.tokens} for name, found in compiled.items()],
    }
    (shard.folder / "mix.json").write_text(json.dumps(header, indent=1))
