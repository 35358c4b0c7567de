"""Planning a mix from the token indices of a hundred million documents, and of a tenth of them: `python -m benchmarks.mix`.

Indices and selections lie on the disk as the steps leave them (shards of 250,000 documents, row groups of 4,096) and are written outside the
timing; before each round nothing of them is in the page cache. A plan is the whole step in a process of its own on two cores: reading, deciding,
writing the plan and its compiled form, and the commit with its checksums. The mix has a share of a source, a whole one, a fraction of one, and
one two and a half times. `columns alone` is what pyarrow takes, on as many threads, to read what the step reads, once for each of its two passes.

Another mix over the same sources then goes into the same store. Its token bytes copied are those of the token files that it names and that are
not the sources' own; the trainer opens it and reads instances of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure, recipes, token_indices
from benchmarks.measure import Run
from tasks import mix
from tasks.mix_index import Piece, Source, in_order
from tasks.mix_plan import MixSpec
from tasks.select import FILE as SELECTION
from tasks.shards import Shard
from tasks.store import Attempt, Store
from tasks.tokenize import INDEX, TOKENS

SHARD = 250_000  # documents, about a gigabyte of text
PARTS = {"web": 0.7, "code": 0.1, "papers": 0.1, "maths": 0.1}  # of the documents
MIXES: dict[str, dict[str, dict[str, float]]] = {
    "first": {"web": {"share": 0.5}, "code": {"repeat": 1}, "papers": {"repeat": 0.3}, "maths": {"repeat": 2.5}},
    "other": {"maths": {"repeat": 2}, "web": {"share": 0.3}, "papers": {"share": 0.1}},
}
HELD_OUT, HELD_TOKENS, SEQUENCE_LENGTH = 0.001, 10_000_000, 4096


def write_indices(folder: Path, documents: int) -> Path:
    """The shards of each source in `folder/SOURCE/NUMBER`."""
    with ProcessPoolExecutor(2) as pool:
        made = [
            pool.submit(token_indices.write, folder / name / f"{number:05}", min(SHARD, size - first), 1_000_000 * place + number)
            for place, (name, part) in enumerate(PARTS.items())
            for size in [round(documents * part)]
            for number, first in enumerate(range(0, size, SHARD))
        ]
        for each in made:
            each.result()
    return folder


def shards_of(folder: Path, source: str) -> list[Path]:
    return sorted((folder / source).iterdir())


def plan(folder: Path, store: str, name: str, tokenizer: Path) -> dict[str, Any]:
    """The step, as a worker runs it; the mix stays in the store."""
    shards = {source: shards_of(folder, source) for source in MIXES[name]}
    spec = MixSpec.model_validate({"seed": 7, "sequence_length": SEQUENCE_LENGTH, "sources": MIXES[name]})
    config = {
        "mix": spec.model_dump(mode="json"),
        "held_out": HELD_OUT,
        "held_tokens": HELD_TOKENS,
        "order": list(shards),
        "files": {source: [str(shard / TOKENS) for shard in found] for source, found in shards.items()},
    }
    inputs: dict[str, list[Any]] = {"tokenizer": [{path.name: path for path in tokenizer.iterdir()}]}
    for source, found in shards.items():
        inputs[f"tokens:{source}"] = [{file: shard / file for file in (INDEX, TOKENS)} for shard in found]
        inputs[f"selection:{source}"] = [{SELECTION: shard / SELECTION} for shard in found]
    started = time.perf_counter()
    attempt = Attempt(Store(store), "mix", name, name)
    books = mix.run(Shard(config, inputs, attempt.folder, name))
    attempt.commit(books, time.perf_counter() - started)
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time(), "folder": str(attempt.folder), "kept": books.kept}


def read(folder: Path) -> dict[str, Any]:
    """The columns of both passes, and nothing done with them."""
    started = time.perf_counter()
    for columns in (("key", "length"), ("key", "start", "length", "bytes")):

        def look(piece: Piece, columns: tuple[str, ...] = columns) -> None:
            piece.read(*columns)

        for source in PARTS:
            found = Source(source, 0, [(shard / INDEX, shard / SELECTION) for shard in shards_of(folder, source)])
            for _ in in_order(look, found.pieces()):
                pass
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time()}


def tokens_copied(made: Path, sources: Path) -> tuple[int, int]:
    """Bytes of the token files that a mix brings with it, and of all the tokens that it has; the trainer must be able to read it."""
    from trainer.data import Mix

    names = json.loads((made / "mix.json").read_text())["files"]
    (made / "files.json").write_text(json.dumps([str(made / name) for name in names]))
    opened = Mix(made, made / "files.json")
    if fault := opened.fault_in_files():
        raise SystemExit(fault)
    opened.read_instances([0, opened.instances // 2, opened.instances - 1])
    return sum((made / name).stat().st_size for name in names if sources not in (made / name).parents), 4 * opened.tokens


def forget(folder: Path) -> None:
    """Nothing of the indices and selections stays in the page cache."""
    for path in folder.rglob("*.parquet"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=10**8)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, indices, store, tokenizer = options.one
        print(json.dumps(read(Path(indices)) if what == "read" else plan(Path(indices), store, what, Path(tokenizer))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = recipes.tokenizer(options.folder)
    sizes = {"all": options.documents, "a tenth": options.documents // 10}
    with tempfile.TemporaryDirectory(prefix="mix-", dir=options.folder) as name:
        folder = Path(name).resolve()
        indices = {size: write_indices(folder / size.replace(" ", "-"), documents) for size, documents in sizes.items()}
        copied = []

        def run(what: str, size: str) -> Run:
            if what == "first":
                shutil.rmtree(folder / "store", ignore_errors=True)
            forget(indices[size])
            command = [sys.executable, "-m", "benchmarks.mix", "--one", what, str(indices[size]), str(folder / "store"), str(tokenizer)]
            made = measure.run_script(command, 2)
            if what == "other":
                copied.append(tokens_copied(Path(made.said["folder"]), indices[size]))
            return made

        runs = measure.in_turns(
            options.rounds,
            {
                "a tenth": lambda: run("first", "a tenth"),
                "columns alone": lambda: run("read", "all"),
                "all": lambda: run("first", "all"),
                "another mix of all": lambda: run("other", "all"),
            },
        )
    seconds = {size: [each.seconds * 1e8 / sizes[size] for each in runs[size]] for size in sizes}
    gib = {size: [each.peak_bytes / 2**30 for each in runs[size]] for size in sizes}
    table = [("documents", f"{options.documents:,}, of which the mix takes {runs['all'][0].said['kept']:,}")]
    for who, found in runs.items():
        cpu, peak = median(each.said["cpu"] for each in found), max(each.peak_bytes for each in found) / 2**20
        table.append((who, f"{median(each.seconds for each in found):.1f} s, {cpu:.1f} s of processor time, at most {peak:,.0f} MiB"))
    growth = [large / small for large, small in zip(seconds["all"], seconds["a tenth"], strict=True)]
    more = [large / small for large, small in zip(gib["all"], gib["a tenth"], strict=True)]
    table.append(("ten times the documents", f"{median(growth):.2f} times the seconds a document, {median(more):.2f} times the memory"))
    table.append(("tokens of the other mix", f"{copied[0][1] / 1e9:,.0f} GB"))
    claims = {
        "plan_seconds_per_1e8_documents": measure.claim(seconds["all"], "s", of_a_tenth=round(median(seconds["a tenth"]), 2)),
        "plan_gib": measure.claim(gib["all"], "GiB", of_a_tenth=round(median(gib["a tenth"]), 3)),
        "mix_bytes_copied": measure.claim([float(each) for each, _ in copied], "bytes"),
    }
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
