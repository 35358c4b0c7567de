"""Recipes, models and thresholds that the benchmarks share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.scorers.fasttext_quality import FastTextQuality, FastTextQualityConfig, train_fasttext
from tasks.tokenizer import build_cl100k

KEPT_SHARE = 0.656  # what the report's threshold keeps of DCLM-baseline


def fasttext_model(folder: Path, texts: list[str]) -> Path:
    """A classifier like DCLM's in what scoring costs (100 dimensions, word bigrams); it tells documented Python from other text."""
    path = folder / "quality.bin"
    if not path.exists():
        labelled = [(text[:5000], "__label__hq" if '"""' in text[:5000] else "__label__cc") for text in texts[:2000]]
        train_fasttext(labelled, path.with_suffix(".part"), dim=100, epochs=5, lr=0.5, bucket=200_000)
        path.with_suffix(".part").rename(path)
    return path


def threshold(model: Path, texts: list[str]) -> float:
    """The score that KEPT_SHARE of the documents reach, halfway between two of them, so that the last bits of a score decide nothing."""
    scores = np.sort(FastTextQuality(FastTextQualityConfig(), model).score(texts)["quality"])
    cut = int(len(scores) * (1 - KEPT_SHARE))
    while scores[cut] == scores[cut - 1]:
        cut += 1
    return float((scores[cut - 1] + scores[cut]) / 2)


def tokenizer(folder: Path) -> Path:
    """OLMo 2's tokenizer as a folder; `tokenizer.json` in it is what the peers load."""
    path = folder / "cl100k"
    if not path.exists():
        partial = folder / "cl100k.part"
        partial.mkdir(parents=True, exist_ok=True)
        build_cl100k(partial)
        partial.rename(path)
    return path


def library_limit(files: list[Path], model: Path | None, kept_share: float) -> float:
    """MB of text a second on one core by the libraries alone: decompress, parse, score with `model` where there is one, encode a share of the
    documents; all text in memory, nothing written."""
    import orjson
    import quicktok
    from isal import igzip

    scorer = FastTextQuality(FastTextQualityConfig(), model) if model else None
    encoder = quicktok.Tokenizer("cl100k_base")
    started, size = time.perf_counter(), 0
    for path in files:
        texts = [orjson.loads(line)["text"] for line in igzip.decompress(path.read_bytes()).splitlines()]
        if scorer:
            scorer.score(texts)
        encoder.encode_batch(texts[: int(len(texts) * kept_share)], 1, True)
        size += sum(map(len, texts))
    return size / (time.perf_counter() - started) / 1e6


def recipe(store: Path, files: list[Path], workers: int = 1, model: Path | None = None, cut: float = 0.0) -> dict[str, Any]:
    """Read, score with `model` (or take the published score), tokenize what reaches `cut`, drop repetitions; a mix of all of it."""
    column = "quality" if model is None else "fasttext"
    wanted = {"column": column, "min": cut}
    source: dict[str, Any] = {
        "format": "jsonl",
        "paths": [str(path) for path in files],
        "fields": {"columns": {"quality": {"field": "quality", "type": "float"}}},
        "scores": {} if model is None else {"fasttext": {}},
        "tokenize_where": {"filters": [wanted]},
        "filters": [wanted, {"column": "repeated", "equals": False}],
    }
    scorer = {"scorer": {"type": "fasttext", "column": "fasttext", "model": str(model)}}
    return {
        "name": "benchmark",
        "store": str(store),
        "sources": {"text": source},
        "scorers": {} if model is None else {"fasttext": scorer},
        "mixes": {"all": {"sources": {"text": {"repeat": 1}}}},
        "where": {"engine": {"workers": workers}},
    }


def write(recipe: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))
    return path
