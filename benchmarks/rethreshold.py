"""A new threshold over a source that is scored and tokenized, against doing it all again: `python -m benchmarks.rethreshold`.

Both end with a new mix. Again means what a pipeline without columns does for a new threshold: score every document (fastText, and a small
FineWeb-Edu-like regressor over what fastText passed, as the report's recipe has it), filter, and encode what passes. The documents are read
already on both sides. One worker; worker processes and the store included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import corpus, measure, recipes
from benchmarks.measure import Run
from tasks.scorers.train_edu import train_regressor

MB = 1_000_000


def regressor(folder: Path, texts: list[str]) -> Path:
    """Of the shape of MiniLM, a tenth of the cost of FineWeb-Edu's own: 2 layers, 128 wide."""
    path = folder / "regressor"
    if not path.exists():
        labelled = [(text[:2000], float(len(text) % 6)) for text in texts[:300]]
        train_regressor(labelled, folder / "regressor.part", epochs=1, lr=1e-3, hidden_size=128, layers=2, max_tokens=512)
        (folder / "regressor.part").rename(path)
    return path


def recipe(store: Path, files: list[Path], model: Path, cut: float, judge: Path, edu: float) -> dict[str, Any]:
    made = recipes.recipe(store, files, 1, model, cut)
    source = made["sources"]["text"]
    made["scorers"]["edu"] = {"scorer": {"type": "edu", "model": str(judge), "device": "cpu"}}
    source["scores"]["edu"] = {"where": list(source["tokenize_where"]["filters"])}
    source["filters"].insert(1, {"column": "edu", "min": edu})
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=128, help="MB of text")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = options.mb * MB
    files = corpus.write(options.folder, size, 2)
    texts = corpus.texts(files[:1])
    model = recipes.fasttext_model(options.folder, texts)
    judge = regressor(options.folder, texts)
    cut = recipes.threshold(model, texts)
    numbers = itertools.count(1)
    with tempfile.TemporaryDirectory(prefix="olmoflow-benchmark-") as name:
        store = Path(name) / "store"

        def run(edu: float) -> Run:
            path = recipes.write(recipe(store, files, model, cut, judge, edu), Path(name) / "recipe.json")
            made = measure.run_script([sys.executable, "-m", "benchmarks.ours", "mix_all", str(path), "--made-before", "documents"])
            made.said["text_bytes"] = size
            return made

        def again() -> Run:
            for step in ("score", "families", "tokenize", "select", "mix"):
                shutil.rmtree(store / "shards" / step, ignore_errors=True)
                shutil.rmtree(store / step, ignore_errors=True)
            return run(2.0 + next(numbers) / 1000)

        def rethreshold() -> Run:
            made = run(2.0 + next(numbers) / 1000)
            looked_at = made.said["made"]["score"].get("scored", 0) + made.said["made"]["tokenize"].get("encoded", 0)
            if looked_at:
                raise SystemExit(f"a new threshold scored or encoded {looked_at} documents")
            return made

        again()
        runs = measure.in_turns(options.rounds, {"again": again, "rethreshold": rethreshold})
    table = [(who, ", ".join(f"{run.seconds:.2f} s" for run in found)) for who, found in runs.items()]
    table.append(("made again", json.dumps(runs["again"][0].said["made"])))
    measure.report(table, {"rethreshold_vs_rescore": measure.claim(measure.ratios(runs["again"], runs["rethreshold"]))}, options.out)


if __name__ == "__main__":
    main()
