"""The repetition filter against OLMo-core's `find_periodic_sequences`, decision by decision: `python -m benchmarks.repetition`.

Documents: the tokens of the benchmarks' corpus, and made ones around the limit: n-grams of 1 to 13 tokens repeated 30 to 34 times, at every
alignment, with one token changed, at a document's ends, in pairs that touch. Each side gets the whole token array and the documents' borders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from olmo_core.data.utils import find_periodic_sequences

from benchmarks import corpus, measure, recipes
from tasks.tokenizer import Tokenizer
from trainer.repetition import repeated_documents

PERIODS, REPEATS = 13, 32
Documents = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, starts, lengths


def real(folder: Path, text_bytes: int) -> Documents:
    texts = corpus.texts(corpus.write(folder, text_bytes, 2))
    return _joined(Tokenizer.load(recipes.tokenizer(folder)).encode_documents(texts))


def adversarial(count: int) -> Documents:
    rng = np.random.default_rng(7)
    return _joined([_around_the_limit(rng) for _ in range(count)])


def _around_the_limit(rng: np.random.Generator) -> np.ndarray:
    alphabet = int(rng.choice([2, 5, 50_000]))  # a small one repeats by chance
    period, times = int(rng.integers(1, PERIODS + 2)), int(rng.integers(REPEATS - 2, REPEATS + 3))
    run = np.tile(rng.integers(0, alphabet, period, dtype=np.uint32), times)
    run = run[: len(run) - int(rng.integers(0, period))]
    if rng.random() < 0.3:
        run[rng.integers(len(run))] += 1
    before, after = (rng.integers(0, alphabet, int(rng.integers(0, 40)) * int(rng.random() < 0.7), dtype=np.uint32) for _ in range(2))
    return np.concatenate([before, run, after])


def _joined(documents: list[np.ndarray]) -> Documents:
    lengths = np.array([len(ids) for ids in documents], np.int64)
    return np.concatenate(documents).astype(np.uint32), np.cumsum(lengths) - lengths, lengths


def by_olmo_core(documents: Documents) -> np.ndarray:
    tokens, starts, lengths = documents
    signed = tokens.astype(np.int64)  # it marks padding with -1
    return np.array(
        [
            any(found.times >= REPEATS for found in find_periodic_sequences(signed[start : start + length], max_period=PERIODS))
            for start, length in zip(starts, lengths, strict=True)
        ]
    )


def by_us(documents: Documents) -> np.ndarray:
    return repeated_documents(*documents, PERIODS, REPEATS)


def _timed(decide: Callable[[Documents], np.ndarray], documents: Documents) -> tuple[np.ndarray, float]:
    """The decisions, and the seconds of one call: the mean over as many as take a fifth of a second, since one of ours takes milliseconds."""
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < 0.2:
        decisions, calls = decide(documents), calls + 1
    return decisions, (time.perf_counter() - started) / calls


def _reading(tokens: np.ndarray) -> float:
    """Tokens a second at which numpy only looks at each of them."""
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        tokens.max()
        calls += 1
    return calls * len(tokens) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=32, help="MB of real text")
    parser.add_argument("--made", type=int, default=100_000, help="documents around the limit")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets = {"real": real(options.folder, options.mb * 1_000_000), "adversarial": adversarial(options.made)}
    seconds: dict[tuple[str, str], list[float]] = {}
    different, repeated = 0, {}
    for number in range(options.rounds):
        for kind, documents in sets.items():
            if kind == "adversarial" and number:
                continue  # OLMo-core takes minutes for them; they are there for the decisions
            decisions = []
            for who, decide in (("olmoflow", by_us), ("OLMo-core", by_olmo_core)):
                found, passed = _timed(decide, documents)
                decisions.append(found)
                seconds.setdefault((kind, who), []).append(passed)
            if number == 0:
                different += int((decisions[0] != decisions[1]).sum())
                repeated[kind] = int(decisions[0].sum())
    table, claims = [], {}
    for kind, (tokens, starts, _) in sets.items():
        table.append((f"{kind} documents", f"{len(starts):,} with {len(tokens):,} tokens, {repeated[kind]:,} repeat"))
        for who in ("olmoflow", "OLMo-core"):
            table.append((f"{kind}: {who}", f"{len(tokens) / np.median(seconds[kind, who]) / 1e6:,.1f} million tokens/s"))
    limit = _reading(sets["real"][0])
    table.append(("physical limit", f"{limit / 1e6:,.0f} million tokens/s: numpy's maximum of the same array"))
    table.append(("documents decided differently", str(different)))
    per_round = {kind: [a / b for a, b in zip(seconds[kind, "OLMo-core"], seconds[kind, "olmoflow"], strict=True)] for kind in sets}
    total = sum(len(starts) for _, starts, _ in sets.values())
    claims["repetition_vs_olmo_core"] = measure.claim(
        per_round["real"], documents=total, different=different, adversarial=float(np.median(per_round["adversarial"]))
    )
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
