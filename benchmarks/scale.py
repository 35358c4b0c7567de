"""Planning and bookkeeping at the size of OLMo 2: 3.08 billion documents in 22 TB, in shards of 1 GB: `python -m benchmarks.scale`.

The recipe is `olmo2-7b.yaml`, with all sources of the report's Tables 1 and 2 at the sizes that it declares. Its raw files are holes of their full
size, whose checksums are remembered as after a first run. The store is made by the real pipeline with an engine that writes each shard's record,
with books that add up to the declared sizes, and holes of a plausible size for its files. Everything but checkpoints is there: documents, two
scores, tokens, selections, mixes, held-out parts. No document is looked at: which of 3 billion documents a mix takes is decided by the step `mix`,
whose speed `benchmarks.mix` measures; a plan only reads the composition that it has left.

Timed are commands as a user gives them, in processes of their own on two cores, Python's start included: `olmoflow plan` with everything there,
with one shard in a hundred damaged or gone, and with a file added to the largest source (whose gigabyte it must hash); then `ls`, `show` of the
largest selection and `lineage` of a mix; then the pipeline's own run, without Prefect, in which every shard is looked at and reused: once as it
is, and once with all manifests to be written again. What a plan says is compared with what was done to the store.

`plan_seconds_3e9_documents` is the slowest plan and the last run, one after the other; `plan_gib_3e9_documents` is the largest peak of all.
Nothing is dropped from the page cache: a store on a disk that has not been read lately takes longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from benchmarks.measure import Run
from flows import recipe as recipes
from flows.declared import Declared, Sizes
from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.summary import RunSummary, summary_path
from flows.tables import planned
from tasks import raw_files
from tasks.mix_plan import MixSpec
from tasks.shards import Engine, Runner
from tasks.store import Books, Record, Store, StoredFile, fingerprint

RECIPE = Path(__file__).parents[1] / "deployments" / "recipes" / "olmo2-7b.yaml"
PRETRAINING = 3.08e9  # documents, Table 1
SHARD_BYTES = 10**9
REPEATED = 0.02  # of what is ingested, dropped by the selections: the declared sizes are those of what is selected
NAMES = {  # of raw files, by format
    "dclm": "global-shard_{0}_of_10/shard_{1:08}_processed.jsonl.zst",
    "starcoder": "language{0}/train-{1:05}.parquet",
    "dolma": "part-{1:04}.json.gz",
    "jsonl": "part-{1:04}.jsonl.zst",
    "stackexchange": "site{1:04}.stackexchange.com.7z",
}


def settings(folder: Path, store: Path) -> list[str]:
    """What the recipe's places are here, as `--set` takes it."""
    names = recipes.load(RECIPE, []).sources
    paths = [f"sources.{name}.paths=[{folder / 'raw' / name}]" for name in names]
    return [f"store={store}", f"scorers.quality.scorer.model={folder / 'quality.bin'}", *paths]


class Sized:
    """The sizes of a recipe's sources and subsets, `share` of what it declares, cut into shards."""

    def __init__(self, recipe: Recipe, share: float) -> None:
        self.declared: dict[str, Declared] = {name: config.declared for name, config in recipe.selections().items() if config.declared}
        self.share = share

    def all(self, name: str, measure_: str) -> int:
        return round(getattr(self.declared[name], measure_) * self.share)

    def shards(self, source: str) -> int:
        return math.ceil(self.all(source, "bytes") / SHARD_BYTES)

    def of_shard(self, name: str, number: int, measure_: str) -> int:
        """What is selected of a source's shard."""
        shards, total = self.shards(name.partition("/")[0]), self.all(name, measure_)
        return total * (number + 1) // shards - total * number // shards


def hole(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def write_raw(folder: Path, recipe: Recipe, sized: Sized) -> None:
    hole(folder / "quality.bin", 10**6)
    for source, config in recipe.sources.items():
        for number in range(sized.shards(source)):
            name = NAMES[config.format].format(number % 10, number)
            hole(folder / "raw" / source / name, sized.of_shard(source, number, "bytes"))


class Simulated(Engine):
    """Commits shards that nobody has made: records with plausible books, files that are holes."""

    def __init__(self, sized: Sized) -> None:
        self.sized = sized

    def run(self, plan: dict[str, Any], weights: list[int], store: Store) -> None:
        step = plan["step"]["name"]
        for number, spec in enumerate(plan["shards"]):
            base = f"shards/{step}/{spec['key']}"
            attempt = f"attempt-{fingerprint([base])[:12]}"
            whole = {"tokenizer": self._tokenizer, "mix": self._mix, "held-out": self._held_out}.get(step)
            books, files = whole(spec) if whole else self._of_documents(step, plan["name"].split(":")[0], number)
            stored = []
            for name, what in files.items():
                path = Path(store.full(f"{base}/{attempt}/{name}"))
                if isinstance(what, str):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(what)
                else:
                    hole(path, what)
                rows = books.read if name.endswith(".parquet") else None
                stored.append(StoredFile(name, f"{base}/{attempt}/{name}", path.stat().st_size, fingerprint([base, name]) * 2, rows))
            record = Record(step, spec["key"], spec["name"], attempt, stored, books, 60.0)
            store.create(f"{base}/record.json", json.dumps(asdict(record), indent=1))

    def _of_documents(self, step: str, name: str, number: int) -> tuple[Books, dict[str, int]]:
        source = name.partition("/")[0]
        kept, tokens, size = (self.sized.of_shard(name, number, each) for each in ("documents", "tokens", "bytes"))
        read = round(self.sized.of_shard(source, number, "documents") * (1 + REPEATED))
        if step == "ingest":
            return Books("records", read, read, counts={"documents": read, "bytes": size}), {"documents.parquet": size * 2 // 5}
        if step == "score":
            return Books(read=read, kept=read, counts={"skipped": 0, "scored": read, "taken_over": 0}), {"scores.parquet": 5 * read}
        if step == "tokenize":
            counts = {"encoded": read, "tokens": tokens, "bytes": size, "repeated": read - kept}
            return Books(read=read, kept=read, counts=counts), {"tokens.npy": 4 * tokens, "index.parquet": 12 * read}
        assert step == "select", step
        return Books(read=read, kept=kept, dropped={"repeated": read - kept}, counts={"tokens": tokens}), {"selection.parquet": read // 4}

    def _tokenizer(self, spec: dict[str, Any]) -> tuple[Books, dict[str, int]]:
        return Books("texts"), {"tokenizer.json": 4_000_000, "ranks.tiktoken": 2_000_000}

    def _mix(self, spec: dict[str, Any]) -> tuple[Books, dict[str, Any]]:
        sizes = {name: Sizes(**{each: self.sized.all(name, each) for each in ("tokens", "documents")}) for name in spec["config"]["order"]}
        rows = planned(MixSpec.model_validate(spec["config"]["mix"]), sizes)
        tokens, documents = sum(row["tokens"] for row in rows), sum(row["documents"] for row in rows)
        length = spec["config"]["mix"]["sequence_length"]
        header = {"instances": tokens // length, "sequence_length": length, "vocab_size": 100_352}
        files = {"mix.json": json.dumps(header), "composition.json": json.dumps(rows), "plan.parquet": 12 * documents}
        return Books(read=documents, kept=documents, counts={"tokens": tokens}), files

    def _held_out(self, spec: dict[str, Any]) -> tuple[Books, dict[str, Any]]:
        return Books(read=1000, kept=1000, counts={"tokens": 10**6}), {"mix.json": "{}", "extents.npy": 32_000}


def make_data(recipe: Recipe, runner: Runner) -> Pipeline:
    """Everything but checkpoints and what is made of them."""
    pipeline = Pipeline(recipe, runner)
    pipeline.curate()
    pipeline.mix_all()
    pipeline.training_mixes()
    for source in recipe.sources:
        pipeline.held_out(source)
    return pipeline


def write_store(recipe: Recipe, sized: Sized) -> None:
    of_content, raw_files.sha256_of = raw_files.sha256_of, lambda path: fingerprint(str(path)) * 2  # remembered as after a first run
    try:
        make_data(recipe, Runner(Store(recipe.store), Simulated(sized)))
    finally:
        raw_files.sha256_of = of_content


def rerun(recipe: Recipe) -> dict[str, Any]:
    """A run in which everything is there: it looks at each shard, sweeps it, and keeps its manifests and its summary."""
    started, clock = datetime.now(UTC), time.perf_counter()
    pipeline = make_data(recipe, make_runner(recipe))
    seconds = time.perf_counter() - clock
    summary = RunSummary.of(pipeline, "data", started.isoformat(timespec="seconds"), seconds)
    pipeline.store.replace(summary_path(recipe.name), json.dumps(asdict(summary), indent=1))
    return {"seconds": time.perf_counter() - clock, "made": sum(summary.shards_made.values())}


@contextmanager
def damaged(store: Path, rng: random.Random) -> Iterator[int]:
    """For a while one shard in a hundred is gone or has lost the end of a file; yields how many."""
    records = [path for path in store.glob("shards/*/*/record.json") if rng.random() < 0.01]
    gone, cut = records[::2], []
    for path in records[1::2]:
        stored = json.loads(path.read_text())["files"][-1]
        cut.append((store / stored["path"], stored["bytes"]))
    for path in gone:
        path.rename(path.with_name(".gone"))
    for path, size in cut:
        os.truncate(path, size - 1)
    try:
        yield len(records)
    finally:
        for path in gone:
            path.with_name(".gone").rename(path)
        for path, size in cut:
            os.truncate(path, size)


@contextmanager
def added(folder: Path, store: Path, number: Iterator[int]) -> Iterator[None]:
    path = folder / "raw" / "dclm" / "new.jsonl.zst"
    hole(path, SHARD_BYTES - next(number))  # of another content in each round
    try:
        yield
    finally:
        path.unlink()


def timed(command: list[str]) -> Run:
    """A command, from its start to its end."""
    started = time.perf_counter()
    run = measure.run_script([sys.executable, "-m", *command], 2)
    return Run({"answer": run.said, "seconds": time.perf_counter() - started}, run.peak_bytes)


def expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise SystemExit(f"{what}: {found}, not {expected}")


def to_run(run: Run) -> int:
    """Shards of data steps; checkpoints and evaluations are never there."""
    return sum(row["to_run"] for row in run.said["answer"]["steps"] if row["step"] not in ("train", "soup", "model", "evaluate"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=float, default=PRETRAINING, help="Of pretraining; other sizes follow.")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(rerun(recipes.load(RECIPE, options.one))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as name:
        folder = Path(name).resolve()
        store, places = folder / "store", settings(folder, folder / "store")
        recipe = recipes.load(RECIPE, places)
        sized = Sized(recipe, options.documents / PRETRAINING)
        started = time.perf_counter()
        write_raw(folder, recipe, sized)
        write_store(recipe, sized)
        shards = sum(1 for _ in store.glob("shards/*/*/record.json"))
        print(f"{shards:,} shards simulated in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        runs = measure_all(options.rounds, folder, store, places, sized)
    report(options, runs, shards, sized)


def measure_all(rounds: int, folder: Path, store: Path, places: list[str], sized: Sized) -> dict[str, list[Run]]:
    rng, number = random.Random(7), itertools.count(1)
    sets = [word for place in places for word in ("--set", place)]
    largest, a_mix = (max((store / "artifacts" / step).iterdir(), key=lambda path: path.stat().st_size).stem for step in ("select", "mix"))

    def plan() -> Run:
        return timed(["flows.cli", "plan", str(RECIPE), "--json", *sets])

    def plan_whole() -> Run:
        run = plan()
        expect("shards to run where all are there", to_run(run), 0)
        table = next(table for table in run.said["answer"]["tables"] if table["name"] == "table-1")["rows"]["total"]
        expect("documents of Table 1", table["documents"]["computed"], sum(sized.all(each, "documents") for each in table_1()))
        return run

    def plan_damaged() -> Run:
        with damaged(store, rng) as shards:
            run = plan()
        expect("shards to run of those damaged", to_run(run), shards)
        return run

    def plan_added() -> Run:
        with added(folder, store, number):
            run = plan()
        new = {(row["step"], row["name"]) for row in run.said["answer"]["steps"] if row["to_run"] and row["shards"] > 1}
        wanted = [("ingest", "dclm"), ("score", "dclm: quality"), ("score", "dclm: edu"), ("tokenize", "dclm")]
        expect("what a new file changes", new, {*wanted, ("select", "dclm"), ("select", "dclm/ft7_fw2")})
        return run

    def run_again(forget: Callable[[], None]) -> Run:
        forget()
        run = measure.run_script([sys.executable, "-m", "benchmarks.scale", "--one", *places], 2)
        expect("shards made by a run in which all are there", run.said["made"], 0)
        return run

    return measure.in_turns(
        rounds,
        {
            "plan, everything there": plan_whole,
            "plan, 1 % damaged or gone": plan_damaged,
            "plan, a file added": plan_added,
            "ls": lambda: timed(["flows.cli", "ls", "--store", str(store), "--json"]),
            "show": lambda: timed(["flows.cli", "show", largest, "--store", str(store), "--samples", "0", "--json"]),
            "lineage": lambda: timed(["flows.cli", "lineage", a_mix, "--store", str(store), "--json"]),
            "run, everything reused": lambda: run_again(lambda: None),
            "run, manifests written anew": lambda: run_again(lambda: shutil.rmtree(store / "artifacts")),
        },
    )


def table_1() -> list[str]:
    return [source for row in recipes.load(RECIPE, []).reported["table-1"].rows.values() for source in row.sources]


def report(options: argparse.Namespace, runs: dict[str, list[Run]], shards: int, sized: Sized) -> None:
    documents, size = (sum(sized.all(each, measure_) for each in table_1()) for measure_ in ("documents", "bytes"))
    sources = [name for name in sized.declared if "/" not in name]
    table = [
        (
            "pretraining",
            f"{documents:,} documents in {size / 1e12:.2f} TB; {sum(map(sized.shards, sources)):,} raw files, {shards:,} shards",
        )
    ]
    for who, found in runs.items():
        peak = max(each.peak_bytes for each in found) / 2**20
        table.append((who, f"{median(each.seconds for each in found):.1f} s, at most {peak:,.0f} MiB"))
    plans = [found for who, found in runs.items() if who.startswith("plan")]
    slowest = [max(each.seconds for each in turn) for turn in zip(*plans, strict=True)]
    kept = [each.seconds for each in runs["run, manifests written anew"]]
    peaks = [max(each.peak_bytes for each in turn) / 2**30 for turn in zip(*runs.values(), strict=True)]
    both = [one + other for one, other in zip(slowest, kept, strict=True)]
    claims = {
        "plan_seconds_3e9_documents": measure.claim(both, "s", slowest_plan=round(median(slowest), 2), bookkeeping=round(median(kept), 2)),
        "plan_gib_3e9_documents": measure.claim(peaks, "GiB"),
    }
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
