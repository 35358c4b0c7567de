"""The rules of Gopher, FineWeb and C4 against datatrove's filters with their own tokenizer: `python -m benchmarks.web_rules FOLDER`.

FOLDER (or OLMOFLOW_DATA) holds the samples. Speeds are MB of text a CPU second. Ours is measured with an empty memory of how spaCy cuts what lies
between white space, and with what a first pass left in it: a shard of some hundred MB lies nearer the second. A text that is judged differently
is counted. Cutting into words alone, without a rule, is the limit: spaCy's own, and ours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline import filters
from datatrove.utils.word_tokenizers import load_word_tokenizer

from benchmarks import measure
from tasks.filters import PASSED
from tasks.scorers.english_words import EnglishWords
from tasks.scorers.web_rules import FILTERS, WebRules, WebRulesConfig

TEXTS = "web/dclm_human_quality_majority.jsonl.gz"


def by_datatrove(texts: list[str]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    rules: dict[str, Any] = {name: getattr(filters, kind)() for name, kind in FILTERS.items()}
    for text in texts:
        for name, rule in rules.items():
            verdict = rule.filter(Document(text=text, id=""))
            columns.setdefault(name, []).append(verdict[1] if isinstance(verdict, tuple) else PASSED)
    return columns


def by_spacy(texts: list[str]) -> None:
    words = load_word_tokenizer("en")
    for text in texts:
        words.word_tokenize(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path(os.environ.get("OLMOFLOW_DATA", "shared/data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    file = options.folder / TEXTS
    if not file.is_file():
        measure.report([("skipped", f"there is no {file}")], {"web_rules_vs_datatrove": measure.unmeasured(f"there is no {file}")}, None)
        return
    texts = [json.loads(line)["text"] for line in gzip.decompress(file.read_bytes()).splitlines()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    by_datatrove(texts[:1])  # imports
    rates: dict[str, list[float]] = {
        who: [] for who in ("datatrove", "cold", "warm", "words alone, spaCy", "words alone, cold", "words alone, warm")
    }
    different = 0
    for number in range(options.rounds):
        scorer = WebRules(WebRulesConfig())
        scorer.score(["A first text."])
        for who in ("datatrove", "cold", "warm"):
            began = time.process_time()
            found = by_datatrove(texts) if who == "datatrove" else {name: column.tolist() for name, column in scorer.score(texts).items()}
            rates[who].append(megabytes / (time.process_time() - began))
            if number == 0 and who == "datatrove":
                want = found
            different += sum(a != b for name in want for a, b in zip(want[name], found[name], strict=True))
        words = EnglishWords()
        for who, cut in (("spaCy", by_spacy), ("cold", words.cut), ("warm", words.cut)):
            began = time.process_time()
            cut(texts)
            rates[f"words alone, {who}"].append(megabytes / (time.process_time() - began))
    table = [("texts", f"{len(texts):,}, {megabytes:.2f} MB"), ("verdicts that differ", str(different))]
    table += [(who, f"{max(values):.2f} MB/s") for who, values in rates.items()]
    ratios = [ours / theirs for ours, theirs in zip(rates["warm"], rates["datatrove"], strict=True)]
    measure.report(table, {"web_rules_vs_datatrove": measure.claim(ratios, different=different)}, options.out)


if __name__ == "__main__":
    main()
