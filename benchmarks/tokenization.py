"""Tokenization alone, against datatrove's DocumentTokenizer and `dolma tokens`: `python -m benchmarks.tokenization`.

All three read JSON lines in gzip and write token files, on one core; ours runs the steps ingest and tokenize through Pipeline and its local
engine, worker processes and the store included. Every document's ids are compared with tiktoken's. The dolma toolkit pins old libraries and
needs an environment of its own: `make .venv-peers/.installed` makes one, or name its Python with --dolma-python.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from benchmarks import corpus, measure, recipes
from benchmarks.measure import Run

MB = 1_000_000
PEERS = Path(__file__).parent / "peers"


def ours(kept: Path, files: list[Path], store: Path) -> Run:
    path = recipes.write(recipes.recipe(store, files), store.with_suffix(".json"))
    run = measure.run_script([sys.executable, "-m", "benchmarks.ours", "tokenize_all", str(path), "--made-before", "tokenizer"])
    made = run.said["made"]["tokenize"]
    run.said |= {"documents": made["encoded"], "tokens": made["tokens"]}
    return run


def peer(python: str, script: str, kept: Path, files: list[Path], out: Path) -> Run:
    return measure.run_script(
        [python, str(PEERS / script), str(files[0].parent), str(out), str(recipes.tokenizer(kept) / "tokenizer.json")]
    )


def different_documents(kept: Path, files: list[Path], store: Path) -> int:
    """Documents whose ids in the store are not tiktoken's."""
    ranks = load_tiktoken_bpe(str(recipes.tokenizer(kept) / "ranks.tiktoken"))
    pattern = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""  # tiktoken 0.14's cl100k_base
    reference = tiktoken.Encoding("cl100k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    expected = dict.fromkeys(corpus.texts(files))
    different = 0
    for index_path in sorted((store / "shards" / "tokenize").glob("*/attempt-*/index.parquet")):
        tokens = np.fromfile(index_path.with_name("tokens.npy"), "<u4")
        documents = _texts_of(store, index_path)
        for row, start, length in zip(*(pq.read_table(index_path)[name].to_pylist() for name in ("row", "start", "length")), strict=True):
            assert documents[row] in expected
            ids = tokens[start : start + length - 1]
            different += ids.tolist() != reference.encode_ordinary(documents[row])
    return different


def _texts_of(store: Path, index: Path) -> list[str]:
    """The texts of the documents shard that a token index belongs to: the one with the same keys."""
    keys = pq.read_table(index, columns=["key"])["key"].to_pylist()
    for path in (store / "shards" / "ingest").glob("*/attempt-*/documents.parquet"):
        if pq.read_table(path, columns=["key"])["key"].to_pylist() == keys:
            return pq.read_table(path, columns=["text"])["text"].to_pylist()
    raise SystemExit(f"no documents for {index}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=128, help="MB of text")
    parser.add_argument("--dolma-python", default=".venv-peers/bin/python")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = options.mb * MB
    files = corpus.write(options.folder, size, 2)
    limit = recipes.library_limit(files, None, 1.0)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="olmoflow-benchmark-") as name:
        fresh = lambda kind: Path(name) / f"{kind}-{next(numbers)}"  # noqa: E731
        contestants = {
            "olmoflow": lambda: ours(options.folder, files, fresh("store")),
            "datatrove": lambda: peer(sys.executable, "datatrove_tokens.py", options.folder, files, fresh("datatrove")),
        }
        if Path(options.dolma_python).exists():
            contestants["dolma"] = lambda: peer(options.dolma_python, "dolma_tokens.py", options.folder, files, fresh("dolma"))
        runs = measure.in_turns(options.rounds, contestants)
        checked = fresh("checked")
        ours(options.folder, files, checked)
        different = different_documents(options.folder, files, checked)
        shutil.rmtree(checked)
    for run in itertools.chain(*runs.values()):
        run.said["text_bytes"] = size
    table = [
        (who, f"{sorted(map(measure.rate, found))[len(found) // 2]:.2f} MB/s, {found[0].said['tokens']:,} tokens")
        for who, found in runs.items()
    ]
    table.append(("documents whose ids are not tiktoken's", f"{different} of {runs['olmoflow'][0].said['documents']:,}"))
    table.append(("physical limit", f"{limit:.1f} MB/s: decompress, parse and encode, and nothing else"))
    against = measure.ratios(runs["datatrove"], runs["olmoflow"])
    claims = {
        "tokenization_vs_datatrove": measure.claim(against, different_documents=different, physical_limit_mb_per_second=round(limit, 1))
    }
    claims["tokenization_vs_dolma"] = (
        measure.claim(measure.ratios(runs["dolma"], runs["olmoflow"]))
        if "dolma" in runs
        else measure.unmeasured(f"there is no {options.dolma_python}: `make .venv-peers/.installed` makes it")
    )
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
