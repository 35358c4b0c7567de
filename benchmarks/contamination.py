"""Looking for evaluations in documents, against datatrove's n-gram decontamination: `python -m benchmarks.contamination`.

Instances are passages of every fiftieth document. Both sides have texts and index in memory, one core, 13-grams of the same words where the
two agree on what punctuation is. datatrove splits at spaces here, which spares it the slow word tokenizer that it has by default; it stops at
a document's first hit, where we count all n-grams and say which instance was hit.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from benchmarks import corpus, measure
from tasks.scorers.contamination import Contamination, ContaminationConfig, build_index
from tasks.store import Books

NGRAM = 13


class Spaces(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


class Datatrove:
    """Its filter, with an index that its own functions make; its indexer would fetch evaluations from the hub."""

    def __init__(self, instances: dict[str, str]) -> None:
        hashing = HashConfig(precision=64, hash_fc="xxhash" if importlib.util.find_spec("xxhash") else "sha1")
        config = NGramsDecontConfig(n_grams=NGRAM, norm_config=TextNormConfig(norm_numbers=False), hash_config=hashing)
        self.filter = NGramsDecontFilter(tempfile.gettempdir(), config, language=Spaces())
        self.filter._index_hashes = {
            self.filter.hash_func(" ".join(gram)): name
            for name, text in instances.items()
            for gram in ngrams(simplify_text(text, config.norm_config).split(), NGRAM)
        }

    def hits(self, texts: list[str]) -> np.ndarray:
        return np.array([self.filter.filter(Document(text=text, id="")) is not True for text in texts])


class Ours:
    def __init__(self, instances: dict[str, str], folder: Path) -> None:
        build_index({"passages": instances.items()}, NGRAM, Books("instances")).save(folder / "model")
        self.scorer = Contamination(ContaminationConfig(), folder / "model")
        self.scorer.score(["warm up"])  # the table of characters, 0.2 s a process

    def hits(self, texts: list[str]) -> np.ndarray:
        return self.scorer.score(texts)["overlap"] > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=16, help="MB of text")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = corpus.texts(corpus.write(options.folder, options.mb * 1_000_000, 2))
    passages = {str(number): " ".join(texts[number].split()[50:150]) for number in range(0, len(texts), 50)}
    instances = {name: text for name, text in passages.items() if len(text.split()) >= NGRAM}
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        contestants = {"datatrove": Datatrove(instances), "olmoflow": Ours(instances, Path(name))}
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        for _ in range(options.rounds):
            decisions = {}
            for who, contestant in contestants.items():
                started = time.process_time()
                decisions[who] = contestant.hits(texts)
                seconds[who].append(time.process_time() - started)
    table = [("documents", f"{len(texts):,} with {size / 1e6:.1f} MB; {len(instances):,} instances")]
    table += [
        (who, f"{size / np.median(found) / 1e6:.1f} MB of text a second; {decisions[who].sum():,} hit") for who, found in seconds.items()
    ]
    different = int((decisions["datatrove"] != decisions["olmoflow"]).sum())
    table.append(("documents decided differently", str(different)))
    ratios = [slow / fast for slow, fast in zip(seconds["datatrove"], seconds["olmoflow"], strict=True)]
    measure.report(table, {"contamination_vs_datatrove": measure.claim(ratios, documents=len(texts), different=different)}, options.out)


if __name__ == "__main__":
    main()
