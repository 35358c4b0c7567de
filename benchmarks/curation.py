"""Curation against datatrove, on two workers, in memory, and what Prefect and the store cost: `python -m benchmarks.curation`.

The same files, the same fastText model, the same threshold, the same tokenizer and the same repetition rule on both sides, one core each; a run
whose documents or tokens differ ends the benchmark. Seconds are of the work: from the first file opened to the last one written, worker
processes included, Python's own start not.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import corpus, measure, recipes
from benchmarks.measure import Run

MB = 1_000_000
PEER = Path(__file__).parent / "peers" / "datatrove_curation.py"


class Bench:
    """Files, model and thresholds in a working folder that later runs use again; stores and outputs in one that goes."""

    def __init__(self, kept: Path, scratch: Path, rounds: int) -> None:
        self.kept, self.scratch, self.rounds = kept, scratch, rounds
        self.numbers = itertools.count()

    def fresh(self, name: str) -> Path:
        return self.scratch / f"{name}-{next(self.numbers)}"

    def files(self, text_bytes: int, count: int) -> list[Path]:
        return corpus.write(self.kept, text_bytes, count)

    def copies(self, shard_bytes: int, count: int) -> list[Path]:
        """Files of the same texts under other ids: a corpus larger than the installation."""
        one = self.files(shard_bytes, 1)[0]
        return [_copy_with_new_ids(one, self.kept / f"copies-{shard_bytes}" / f"{number:03}.jsonl.gz", number) for number in range(count)]

    def ours(self, files: list[Path], text_bytes: int, model: Path | None, cut: float, workers: int = 1) -> Run:
        """Raw files to a selection with Pipeline and its local engine, as `olmoflow run curate` does it; the tokenizer is there."""
        store = self.fresh("store")
        path = recipes.write(recipes.recipe(store, files, workers, model, cut), self.fresh("recipe"))
        run = measure.run_script(
            [sys.executable, "-m", "benchmarks.ours", "curate", str(path), "--made-before", "tokenizer"], cores=workers
        )
        shutil.rmtree(store)
        made = run.said["made"]
        run.said |= {"text_bytes": text_bytes, "documents": made["select"]["kept"], "tokens": made["select"]["tokens"]}
        return run

    def datatrove(self, files: list[Path], text_bytes: int, model: Path | None, cut: float) -> Run:
        out = self.fresh("datatrove")
        tokenizer = recipes.tokenizer(self.kept) / "tokenizer.json"
        command = [sys.executable, str(PEER), str(files[0].parent), str(out), str(tokenizer), "--threshold", repr(cut)]
        run = measure.run_script([*command, *(["--model", str(model)] if model else [])])
        shutil.rmtree(out)
        run.said |= {"text_bytes": text_bytes}
        return run


def against_datatrove(bench: Bench, text_bytes: int, scored: bool) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    files = bench.files(text_bytes, 2)
    texts = corpus.texts(files)
    model = None if scored else recipes.fasttext_model(bench.kept, texts)
    cut = 1 - recipes.KEPT_SHARE if scored else recipes.threshold(model, texts)  # type: ignore[arg-type]
    limit = recipes.library_limit(files, model, recipes.KEPT_SHARE)
    runs = measure.in_turns(
        bench.rounds,
        {
            "olmoflow": lambda: bench.ours(files, text_bytes, model, cut),
            "datatrove": lambda: bench.datatrove(files, text_bytes, model, cut),
        },
    )
    for ours, theirs in zip(runs["olmoflow"], runs["datatrove"], strict=True):
        for name in ("documents", "tokens"):
            if ours.said[name] != theirs.said[name]:
                raise SystemExit(f"not the same decisions: {ours.said[name]} {name} against datatrove's {theirs.said[name]}")
    title = "published score" if scored else "fastText"
    table = [(f"{title}: {name}", _rates(found)) for name, found in runs.items()]
    table.append((f"{title}: physical limit", f"{limit:.1f} MB/s: decompress, parse, judge and encode, and nothing else"))
    claims = measure.claim(measure.ratios(runs["datatrove"], runs["olmoflow"]), physical_limit_mb_per_second=round(limit, 1))
    return table, claims


def _rates(runs: list[Run]) -> str:
    rates = sorted(map(measure.rate, runs))
    return f"{rates[len(rates) // 2]:.2f} MB/s ({rates[0]:.2f} to {rates[-1]:.2f}), {runs[0].said['documents']:,} documents, {runs[0].said['tokens']:,} tokens"


def two_workers(bench: Bench, shard_bytes: int, shards: int) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """As large as a run that is worth a second worker, so that what each of them loads first does not decide."""
    files = bench.copies(shard_bytes, shards)
    texts = corpus.texts(files[:1])
    model = recipes.fasttext_model(bench.kept, texts)
    cut = recipes.threshold(model, texts)
    runs = measure.in_turns(
        bench.rounds,
        {f"{workers} workers": (lambda w=workers: bench.ours(files, shard_bytes * shards, model, cut, w)) for workers in (1, 2)},
    )
    return [(f"{name}", _rates(found)) for name, found in runs.items()], measure.claim(measure.ratios(runs["1 workers"], runs["2 workers"]))


def memory_growth(bench: Bench, shard_bytes: int) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Ten times the documents in shards of the same size. The largest process counts."""
    few, many = bench.files(2 * shard_bytes, 2), bench.files(20 * shard_bytes, 20)
    texts = corpus.texts(few[:1])
    model = recipes.fasttext_model(bench.kept, texts)
    cut = recipes.threshold(model, texts)
    runs = measure.in_turns(
        bench.rounds,
        {
            "2 shards": lambda: bench.ours(few, 2 * shard_bytes, model, cut),
            "20 shards": lambda: bench.ours(many, 20 * shard_bytes, model, cut),
        },
    )
    growth = [many.peak_bytes / few.peak_bytes for few, many in zip(runs["2 shards"], runs["20 shards"], strict=True)]
    table = [
        (f"memory: {name} of {shard_bytes // MB} MB", f"{max(r.peak_bytes for r in found) / 2**20:.0f} MiB") for name, found in runs.items()
    ]
    return table, measure.claim(growth)


def bookkeeping_share(bench: Bench, shard_bytes: int, shards: int) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """`olmoflow run curate` as a person calls it: what passes outside the steps' own functions, as a share of all its time.

    Its start, Prefect's own server included, does not grow with the run; two sizes of run tell it from what each shard costs.
    """
    files = bench.copies(shard_bytes, shards)
    texts = corpus.texts(files[:1])
    model = recipes.fasttext_model(bench.kept, texts)
    cut = recipes.threshold(model, texts)
    few = max(shards // 4, 1)
    runs = measure.in_turns(
        bench.rounds,
        {f"{count} shards": (lambda c=count: _whole_command(bench, files[:c], c * shard_bytes, model, cut)) for count in (few, shards)},
    )
    small, large = runs[f"{few} shards"], runs[f"{shards} shards"]
    shares = [run.said["outside"] / run.seconds for run in large]
    per_shard = [(b.said["outside"] - a.said["outside"]) / (shards - few) for a, b in zip(small, large, strict=True)]
    start = [a.said["outside"] - few * cost for a, cost in zip(small, per_shard, strict=True)]
    growing = [cost * shards / (run.seconds - first) for cost, run, first in zip(per_shard, large, start, strict=True)]
    text = f"{sorted(start)[len(start) // 2]:.1f} s to start (Python, Prefect's server, the tokenizer's check), once a run"
    table = [("bookkeeping: start", text), ("bookkeeping: of the whole run", ", ".join(f"{share:.3f}" for share in shares))]
    note = f"without the start of {sorted(start)[len(start) // 2]:.1f} s; with it {sorted(shares)[len(shares) // 2]:.3f} of a run over {shards} shards"
    return table, measure.claim(growing, unit="share", note=note)


def _whole_command(bench: Bench, files: list[Path], text_bytes: int, model: Path, cut: float) -> Run:
    store = bench.fresh("store")
    path = recipes.write(recipes.recipe(store, files, 1, model, cut), bench.fresh("recipe").with_suffix(".yaml"))
    script = (
        "import json, subprocess, sys, time\n"
        "started = time.perf_counter()\n"
        "subprocess.run([sys.executable, '-m', 'flows.cli', 'run', 'curate', sys.argv[1], '--json'], check=True, stdout=sys.stderr)\n"
        "print(json.dumps({'seconds': time.perf_counter() - started}))\n"
    )
    run = measure.run_script([sys.executable, "-c", script, str(path)])
    from tasks.store import Store

    inside = sum(manifest["seconds"] for manifest in Store(str(store)).manifests())
    shutil.rmtree(store)
    run.said |= {"text_bytes": text_bytes, "outside": run.seconds - inside}
    return run


def _copy_with_new_ids(source: Path, target: Path, number: int) -> Path:
    import gzip

    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        with gzip.open(source, "rt", encoding="utf-8") as lines, gzip.open(partial, "wt", compresslevel=1, encoding="utf-8") as copy:
            for line in lines:
                copy.write(line.replace('{"id": "', f'{{"id": "{number}/', 1))
        partial.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=128, help="MB of text for the comparisons with datatrove")
    parser.add_argument("--shards", type=int, default=16, help="shards of 64 MB for bookkeeping_share")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"), help="corpus and models, used again by later runs")
    parser.add_argument("--only", nargs="*", help="keys of the claims to measure")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="olmoflow-benchmark-") as scratch:
        bench = Bench(options.folder, Path(scratch), options.rounds)
        claims: dict[str, Callable[[], tuple[list[tuple[str, str]], dict[str, Any]]]] = {
            "curation_vs_datatrove": lambda: against_datatrove(bench, options.mb * MB, scored=False),
            "curation_scored_vs_datatrove": lambda: against_datatrove(bench, options.mb * MB, scored=True),
            "two_workers": lambda: two_workers(bench, 64 * MB, 8),
            "memory_growth": lambda: memory_growth(bench, 8 * MB),
            "bookkeeping_share": lambda: bookkeeping_share(bench, 64 * MB, options.shards),
        }
        found = {name: make() for name, make in claims.items() if not options.only or name in options.only}
    table = [row for rows, _ in found.values() for row in rows]
    measure.report(table, {name: claim for name, (_, claim) in found.items()}, options.out)


if __name__ == "__main__":
    main()
