"""An oracle that loops over tuples of words, random evaluations and documents, and a recipe that looks for the ones in the others."""

import json
import random
import re
import unicodedata
from collections import Counter

import pytest
import yaml
from in_process import InProcess

from flows.pipeline import Pipeline
from flows.recipe import load
from flows.telling import line_of
from tasks.scorers.contamination import Contamination, ContaminationConfig, build_index
from tasks.shards import Runner, ShardRef, input_files
from tasks.store import Books, Store


def words_of(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[^\W_]+", "".join(c for c in plain if unicodedata.category(c) != "Mn"))


def windows(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


class Oracle:
    """Evaluations as sets of tuples of words; what documents hold of them, by loops."""

    def __init__(self, evaluations: dict[str, list[tuple[str, str]]], ngram: int) -> None:
        self.ngram = ngram
        self.instances = {}
        for name in sorted(evaluations):
            for identifier, text in evaluations[name]:
                words = words_of(text)
                if len(words) >= min(5, ngram):
                    self.instances[f"{name}: {identifier}"] = set(windows(words, min(ngram, len(words))))

    def contains(self, text: str) -> dict[str, set]:
        """What a document holds of each instance that it holds anything of."""
        words = words_of(text)
        there = {gram for size in range(1, self.ngram + 1) for gram in windows(words, size)}
        found = {name: grams & there for name, grams in self.instances.items()}
        return {name: grams for name, grams in found.items() if grams}

    def overlap(self, text: str) -> tuple[float, str | None]:
        words = words_of(text)
        if not words:
            return 0.0, None
        indexed = set().union(*self.instances.values())
        spans = windows(words, min(self.ngram, len(words)))
        hits = sum(any(gram in indexed for size in range(1, len(span) + 1) for gram in windows(list(span), size)) for span in spans)
        found = self.contains(text)
        order = list(self.instances)
        best = max(
            found, key=lambda name: (len(found[name]), len(found[name]) / len(self.instances[name]), -order.index(name)), default=None
        )
        return hits / len(spans), best


@pytest.fixture
def oracle_of():
    """`oracle_of(evaluations, ngram) -> Oracle`, of evaluations as `{name: [(id, text), ...]}`."""
    return Oracle


@pytest.fixture
def scorer_of(tmp_path):
    """`scorer_of(evaluations, ngram) -> Contamination`, with an index built here."""

    def build(evaluations, ngram) -> Contamination:
        build_index(evaluations, ngram, Books("instances")).save(tmp_path / "model")
        return Contamination(ContaminationConfig(), tmp_path / "model")

    return build


def text_of(rng: random.Random, count: int, vocabulary: int) -> str:
    return " ".join(rng.choice([f"w{rng.randrange(vocabulary)}", f"W{rng.randrange(vocabulary)}!"]) for _ in range(count))


def random_evaluations(rng, vocabulary=4000):
    sizes = (3, 5, 6, 8, 12, 13, 14, 40, 60)
    made = {name: [(f"{name}{i}", text_of(rng, size, vocabulary)) for i, size in enumerate(sizes)] for name in ("arc", "drop", "mmlu")}
    made["mmlu"].append(("shared", " ".join(made["drop"][-1][1].split()[:30])))  # n-grams of two instances
    return made


def random_document(rng, evaluations, vocabulary=4000):
    pieces = [text_of(rng, rng.randrange(0, 60), vocabulary)]
    for _ in range(rng.randrange(0, 4)):
        words = rng.choice(rng.choice(list(evaluations.values())))[1].split()
        start = rng.randrange(len(words))
        pieces += [" ".join(words[start : start + rng.randrange(1, 50)]), text_of(rng, rng.randrange(0, 60), vocabulary)]
    return rng.choice([" ", "\n", ", "]).join(pieces)


@pytest.fixture(name="random_evaluations")
def _random_evaluations():
    """`random_evaluations(rng, vocabulary=4000)`: three evaluations with instances of 3 to 60 words."""
    return random_evaluations


@pytest.fixture(name="random_document")
def _random_document():
    """`random_document(rng, evaluations, vocabulary=4000)`: a text with pieces of some instances."""
    return random_document


def write_lines(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Lab:
    """Three sources in several shards, two of them looked at; evaluations whose instances are planted in some documents."""

    NGRAM = 8

    def __init__(self, folder) -> None:
        rng = random.Random(7)
        self.evaluations = random_evaluations(rng)
        self.oracle = Oracle(self.evaluations, self.NGRAM)
        self.documents = {}
        for source in ("flan", "maths", "web"):
            for shard in range(2):
                made = [(f"{source}{shard}-{i}", random_document(rng, self.evaluations) or "w1") for i in range(25)]
                self.documents[source, shard] = [(name, text) for name, text in made if text.strip()]
                lines = [{"id": name, "text": text, "votes": i % 4} for i, (name, text) in enumerate(self.documents[source, shard])]
                write_lines(folder / source / f"{shard}.jsonl", lines)
        for name, instances in self.evaluations.items():
            write_lines(folder / f"{name}.jsonl", [{"id": identifier, "question": text} for identifier, text in instances])
        self.folder, self.store = folder, Store(str(folder / "store"))
        self.write()

    def write(self, **changes) -> None:
        fields = {"columns": {"votes": {"field": "votes", "type": "int"}}}
        source = {"format": "jsonl", "fields": fields}
        evaluation = {"format": "jsonl", "fields": {"text": "question"}}
        evaluations = {name: [{**evaluation, "paths": [f"{self.folder}/{name}.jsonl"]}] for name in self.evaluations}
        looked_at = {"scores": {"decontamination": {}}, "filters": [{"column": "overlap", "below": 0.1}]}
        recipe = {
            "name": "lab",
            "store": str(self.folder / "store"),
            "scorers": {
                "decontamination": {
                    "scorer": {"type": "contamination"},
                    "train": {"type": "contamination", "ngram": self.NGRAM, "evaluations": evaluations},
                }
            },
            "sources": {
                "flan": {**source, "paths": [f"{self.folder}/flan/*.jsonl"], **looked_at},
                "web": {**source, "paths": [f"{self.folder}/web/*.jsonl"]},
                "maths": {
                    **source,
                    "paths": [f"{self.folder}/maths/*.jsonl"],
                    "scores": {"decontamination": {}},
                    "subsets": {"voted": {"filters": [{"column": "votes", "min": 2}]}},
                },
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{**source, "paths": [f"{self.folder}/web/0.jsonl"]}]},
            "sequence_length": 16,
            "held_out": {"share": 0.1, "tokens_per_source": 100},
            "mixes": {
                "mid": {"sources": {"web": {"repeat": 1}, "maths": {"repeat": 2.5}, "flan": {"repeat": 0.5}}},
                "plain": {"sources": {"web": {"repeat": 1}}},
                "twice": {"sources": {"web": {"repeat": 1}, "maths": {"repeat": 0.5}, "maths/voted": {"repeat": 1}}},
            },
        }
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))

    def run(self) -> Pipeline:
        self.lines = []
        runner = Runner(self.store, InProcess(), tell=lambda artifact: self.lines.append(line_of(artifact)))
        pipeline = Pipeline(load(self.folder / "recipe.yaml"), runner)
        pipeline.curate()
        pipeline.mix_all()
        return pipeline

    def texts(self) -> dict[str, str]:
        return {name: text for documents in self.documents.values() for name, text in documents}

    def file(self, artifact, name, shard=0):
        return input_files(self.store, ShardRef(artifact.step, artifact.keys[shard]))[name]

    def told(self, pipeline, name) -> dict:
        return json.loads(self.file(pipeline.made["contamination", f"{name}: decontamination"], "contamination.json").read_text())["places"]

    def expected(self, copies: Counter) -> dict[str, dict]:
        """By evaluation what documents with so many copies, by id, hold of it."""
        oracle, texts = self.oracle, self.texts()
        held = {name: oracle.contains(texts[name]) for name, count in copies.items() if count}
        numbers = {}
        for evaluation in self.evaluations:
            mine = [name for name in oracle.instances if name.startswith(f"{evaluation}:")]
            share = {
                name: len(set().union(*(each.get(name, set()) for each in held.values()))) / len(oracle.instances[name]) for name in mine
            }
            holders = [document for document, each in held.items() if set(each) & set(mine)]
            numbers[evaluation] = {
                "instances": len(mine),
                "inside": sum(value >= 0.8 for value in share.values()),
                "touched": sum(value > 0 for value in share.values()),
                "documents": len(holders),
                "copies": sum(copies[document] for document in holders),
            }
            numbers[evaluation]["shares"] = sorted((value for value in share.values() if value), reverse=True)[:5]
        return numbers


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.pipeline = made.run()
    return made
