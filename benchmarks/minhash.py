"""MinHash signatures against datatrove's `MinhashDedupSignature`, value by value: `python -m benchmarks.minhash`.

datatrove splits words at white space here, as we do: its own word tokenizers are packages of their own, and slower.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import datatrove.pipeline.dedup.minhash as datatrove
import numpy as np

from benchmarks import corpus, measure
from tasks.minhash import MinHash, Signer


class WhiteSpace:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def theirs(folder: Path) -> datatrove.MinhashDedupSignature:
    datatrove.load_word_tokenizer = lambda language: WhiteSpace()
    return datatrove.MinhashDedupSignature(str(folder))


def by_datatrove(step: datatrove.MinhashDedupSignature, texts: list[str]) -> list[list[int]]:
    shingles = (step.get_shingles(text) for text in texts)
    return [[value for bucket in step.get_signature(hashes) for value in bucket] if hashes.size else [] for hashes in shingles]


def by_us(signer: Signer, texts: list[str]) -> list[list[int]]:
    signatures = (signer.signature(text) for text in texts)
    return [[] if signature is None else signature.tolist() for signature in signatures]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=16, help="MB of text")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = corpus.texts(corpus.write(options.folder, options.mb * 1_000_000, 2))
    size = sum(len(text.encode()) for text in texts)
    signer, step = Signer(MinHash()), theirs(options.folder)
    seconds: dict[str, list[float]] = {"olmoflow": [], "datatrove": []}
    different = 0
    for _ in range(options.rounds):
        started = time.perf_counter()
        ours = by_us(signer, texts)
        between = time.perf_counter()
        peers = by_datatrove(step, texts)
        seconds["olmoflow"].append(between - started)
        seconds["datatrove"].append(time.perf_counter() - between)
        different = sum(a != b for a, b in zip(ours, peers, strict=True))
    table = [("documents", f"{len(texts):,} with {size / 1e6:,.1f} MB of text")]
    table += [(who, f"{size / np.median(taken) / 1e6:,.1f} MB/s") for who, taken in seconds.items()]
    table.append(("documents with another signature", str(different)))
    ratios = [a / b for a, b in zip(seconds["datatrove"], seconds["olmoflow"], strict=True)]
    claims = {"minhash_vs_datatrove": measure.claim(ratios, documents=len(texts), different=different)}
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
