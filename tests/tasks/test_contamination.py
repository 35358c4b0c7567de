"""What documents share with evaluations, against a loop over tuples of words; and the other way: what of an evaluation is in a source or a mix."""

import importlib
import json
import os
import random
import re
import unicodedata
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from flows.face import line_of
from flows.pipeline import Pipeline
from flows.recipe import load
from flows.report import write_report
from flows.summary import RunSummary, summary_path
from tasks import filters, score, train_scorer
from tasks.documents import DocumentWriter
from tasks.errors import UserError
from tasks.filters import Filter
from tasks.scorers import contamination as scorers
from tasks.scorers import ngrams
from tasks.scorers.contamination import Contamination, ContaminationConfig, Index, build_index
from tasks.shards import Engine, Runner, Shard, ShardRef, input_files, run_shard
from tasks.sources import READERS, SourceConfig
from tasks.sources.base import RawFile
from tasks.store import Books, Store

# -- the oracle ------------------------------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[^\W_]+", "".join(c for c in plain if unicodedata.category(c) != "Mn"))


def windows(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


class Oracle:
    """Evaluations as sets of tuples of words."""

    def __init__(self, evaluations: dict[str, list[tuple[str, str]]], ngram: int) -> None:
        self.ngram = ngram
        self.instances = {}
        for name in sorted(evaluations):
            for identifier, text in evaluations[name]:
                words = words_of(text)
                if len(words) >= min(5, ngram):
                    self.instances[f"{name}: {identifier}"] = set(windows(words, min(ngram, len(words))))

    def contains(self, words: list[str]) -> dict[str, set]:
        """What a document holds of each instance that it holds anything of."""
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
        found = self.contains(words)
        order = list(self.instances)
        best = max(
            found, key=lambda name: (len(found[name]), len(found[name]) / len(self.instances[name]), -order.index(name)), default=None
        )
        return hits / len(spans), best


def scorer_of(evaluations, ngram, folder) -> Contamination:
    build_index(evaluations, ngram, Books("instances")).save(folder / "model")
    return Contamination(ContaminationConfig(), folder / "model")


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


# -- documents -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ngram", "vocabulary"), [(13, 4000), (8, 4000), (5, 60), (3, 12), (1, 300)])
def test_overlap_and_instance_are_those_of_a_loop_over_tuples_of_words(tmp_path, ngram, vocabulary):
    rng = random.Random(ngram)
    evaluations = random_evaluations(rng, vocabulary)
    documents = [random_document(rng, evaluations, vocabulary) for _ in range(150)] + ["", "?!", "w1", evaluations["arc"][1][1]]
    found, oracle = scorer_of(evaluations, ngram, tmp_path).score(documents), Oracle(evaluations, ngram)
    expected = [oracle.overlap(document) for document in documents]
    assert found["overlap"].tolist() == [overlap for overlap, _ in expected]
    assert found["overlap_with"].tolist() == [name for _, name in expected]
    assert sum(name is not None for _, name in expected) > 10 or ngram == 13
    assert any(0 < overlap < 1 for overlap, _ in expected)


@pytest.mark.parametrize(("planted", "kept"), [(99, True), (100, False), (101, False)])
def test_a_document_is_dropped_from_ten_percent_on_and_names_the_instance(tmp_path, planted, kept):
    """1,000 n-grams of 13 words, of which 99, 100 or 101 stand in one instance."""
    instance = [f"i{i}" for i in range(500)]
    evaluations = {"gsm8k": [("other", " ".join(f"o{i}" for i in range(50))), ("hit", " ".join(instance))]}
    words = [f"d{i}" for i in range(300)] + instance[7 : 7 + planted + 12]
    words += [f"e{i}" for i in range(1012 - len(words))]
    found = scorer_of(evaluations, 13, tmp_path).score([" ".join(words)])
    assert found["overlap"][0] == planted / 1000
    assert found["overlap_with"][0] == "gsm8k: hit" and len(found["overlap_ngrams"][0]) == planted
    table = score.pa.table({"overlap": found["overlap"]})
    assert filters.apply([Filter(column="overlap", below=0.1)], table, name="flan")[1] == [None if kept else "overlap >= 0.1"]


def test_ten_percent_may_come_from_several_instances_together(tmp_path):
    """19 n-grams of each of 6 instances in 1,000: none alone reaches 10 %, together they do."""
    instances = [[f"i{k}x{i}" for i in range(31)] for k in range(6)]
    evaluations = {"mmlu": [(str(k), " ".join(words)) for k, words in enumerate(instances)]}
    words = [word for k in range(6) for word in [*(f"d{k}x{i}" for i in range(100)), *instances[k]]]
    words += [f"e{i}" for i in range(1012 - len(words))]
    assert scorer_of(evaluations, 13, tmp_path).score([" ".join(words)])["overlap"][0] == 6 * 19 / 1000


@pytest.mark.parametrize(
    ("instance", "document"),
    [
        ("Janet’s ducks lay 16 eggs per day", "JANET'S DUCKS -- lay: 16 eggs,\n per_day"),
        ("naïve Café déjà vu resumé", "nai\u0308ve CAFE\u0301 deja vu (resume)"),
        ("the ﬁve oﬃcers found １２ files", "The five officers found 12 files."),
        ("Ωμέγα και Άλφα στην Αθήνα", "ωμεγα ΚΑΙ αλφα ΣΤΗΝ αθηνα"),
        ("İstanbul is a large city", "i̇stanbul is a LARGE city"),
        ("यह हिन्दी का वाक्य है", "यह हिन्दी का वाक्य है।"),
        ("five \U0001d400 \U0001f4a9 letters in a row", "five A letters in a row"),
    ],
)
def test_case_accents_punctuation_and_spacing_make_no_difference(tmp_path, instance, document):
    found = scorer_of({"e": [("1", instance)]}, 5, tmp_path).score([document, document.replace(" ", " x ")])
    assert found["overlap"].tolist() == [1.0, 0.0]


def test_a_lone_surrogate_parts_words_and_breaks_nothing(tmp_path):
    assert scorer_of({"e": [("1", "one two three four five")]}, 5, tmp_path).score(["one\ud800two three four five"])["overlap"][0] == 1


def test_documents_without_words_share_nothing_and_do_not_run_into_their_neighbours(tmp_path):
    scorer = scorer_of({"e": [("1", "one two three four five six seven eight")]}, 8, tmp_path)
    found = scorer.score(["", "one two three four", "", "…", "five six seven eight", "one two three four five six seven eight"])
    assert found["overlap"].tolist() == [0, 0, 0, 0, 0, 1]
    assert {name: values.tolist() for name, values in scorer.score([]).items()} == {"overlap": [], "overlap_with": [], "overlap_ngrams": []}


def test_a_short_instance_counts_as_a_whole_in_every_ngram_that_holds_it(tmp_path):
    scorer = scorer_of({"arc": [("short", "which technology was developed most recently")]}, 13, tmp_path)
    filler = [f"d{i}" for i in range(100)]
    inside = " ".join([*filler[:50], "Which technology was developed most recently?", *filler[50:]])
    part = " ".join([*filler[:50], "which technology was developed most", *filler[50:]])
    found = scorer.score([inside, part, "Well: which technology was developed most recently, and why?"])
    assert found["overlap"].tolist() == [8 / 94, 0.0, 1.0]
    assert found["overlap_with"].tolist() == ["arc: short", None, "arc: short"]


def test_every_instance_is_booked_and_none_is_lost():
    instances = [("a", "only four words here"), ("b", "one two three four five"), ("c", "One, two; three four FIVE!"), ("d", "x " * 30)]
    books = Books("instances")
    index = build_index({"e": instances}, 13, books)
    books.balance("index")
    assert (books.read, books.kept) == (4, 2)
    assert books.dropped == {"fewer than 5 words": 1, "same words as another instance": 1}
    assert books.counts == {"shorter_than_n": 1, "ngrams": 2} and index.ids == ["b", "d"]


def test_an_evaluation_of_which_nothing_can_be_looked_for_is_told():
    with pytest.raises(UserError, match="evaluation copa has no instance of 5 words or more"):
        build_index({"arc": [("a", "one two three four five six")], "copa": [("a", "so what")]}, 13, Books("instances"))


def test_blocks_and_batches_change_nothing(tmp_path, monkeypatch):
    rng = random.Random(3)
    evaluations = random_evaluations(rng, 30)
    documents = [random_document(rng, evaluations, 30) + " Ünïcode" * (i % 2) for i in range(60)]
    scorer = scorer_of(evaluations, 3, tmp_path)
    plain = {name: values.tolist() for name, values in scorer.score(documents).items()}
    monkeypatch.setattr(ngrams, "_BLOCK", 64)
    monkeypatch.setattr(scorers, "_AT_ONCE", 3)
    ngrams._powers.cache_clear()
    assert {name: values.tolist() for name, values in scorer.score(documents).items()} == plain
    monkeypatch.undo()
    ngrams._powers.cache_clear()


def test_an_index_survives_its_files_and_a_folder_without_one_is_told(tmp_path):
    index = build_index(random_evaluations(random.Random(1)), 13, Books())
    index.save(tmp_path / "model")
    again = Index.load(tmp_path / "model")
    for name in ("hashes", "offsets", "postings", "evaluation", "size"):
        assert getattr(again, name).tolist() == getattr(index, name).tolist()
    assert (again.ids, again.texts, again.evaluations, again.lengths) == (index.ids, index.texts, index.evaluations, index.lengths)
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix not in (".npy", ".json", ".parquet")]
    with pytest.raises(UserError, match=r"none is no index of evaluations \(it has no index.json\): let the recipe build one"):
        Contamination(ContaminationConfig(), tmp_path / "none")


def test_documents_that_share_equally_many_ngrams_keep_lists_of_their_own(tmp_path):
    """Numpy would take two lists of two numbers for one square."""
    build_index({"e": [("1", "a b c d e f"), ("2", "u v w x y z")]}, 5, Books()).save(tmp_path / "index" / "model")
    writer = DocumentWriter(tmp_path / "documents.parquet", "flan", {})
    for name, text in (("one", "a b c d e f"), ("two", "u v w x y z")):
        writer.write(name, text, None, None, {}, {})
    writer.close()
    index = {f"model/{path.name}": path for path in (tmp_path / "index" / "model").iterdir()}
    shard = Shard(
        {"where": []}, {"documents": [{"documents.parquet": tmp_path / "documents.parquet"}], "model": [index], "cheaper": []}, tmp_path
    )
    shard.hints = {"scorer": {"type": "contamination"}}
    score.run(shard)
    one, two = pq.read_table(tmp_path / "scores.parquet")["overlap_ngrams"].to_pylist()
    assert len(one) == len(two) == 2 and sorted(one + two) == [0, 1, 2, 3]


# -- the index as a step -----------------------------------------------------------------------------------------------------------------


def raw_file(path, lines) -> RawFile:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return RawFile(f"file://{path}", path.name, path.stat().st_size, str(hash(path.read_text())))


def indexing(**evaluations) -> train_scorer.EvaluationIndexing:
    made = {name: [SourceConfig(format="jsonl", paths=["x"])] * count for name, count in evaluations.items()}
    return train_scorer.EvaluationIndexing(evaluations=made)


def test_a_bad_evaluation_file_gives_one_sentence_with_file_line_and_evaluation(tmp_path):
    raw = raw_file(tmp_path / "test.jsonl", [{"text": "one two three four five six"}, '{"text": \n'])
    task = train_scorer.task("decontamination", indexing(gsm8k=1), {"evaluations:gsm8k:0": [raw]})
    with pytest.raises(UserError, match=rf"^{tmp_path}/test.jsonl, line 2: .*\(an instance of the evaluation gsm8k; mend the file"):
        train_scorer.run(Shard(task.config, task.inputs, tmp_path / "out"))


def test_another_evaluation_file_or_n_makes_another_index_and_where_files_lie_does_not(tmp_path):
    one, two = raw_file(tmp_path / "1.jsonl", ["a"]), raw_file(tmp_path / "2.jsonl", ["b"])

    def key(config, **raw):
        files = {f"evaluations:{name}:{i}": [file] for name, each in raw.items() for i, file in enumerate(each)}
        return train_scorer.task("x", config, files).key(train_scorer.STEP)

    alone = key(indexing(arc=1), arc=[one])
    others = [key(indexing(arc=1), arc=[two]), key(indexing(arc=2), arc=[one, two]), key(indexing(arc=1, drop=1), arc=[one], drop=[two])]
    eight = indexing(arc=1).model_copy(update={"ngram": 8})
    assert len({alone, *others, key(eight, arc=[one])}) == 5
    moved = train_scorer.EvaluationIndexing(evaluations={"arc": [SourceConfig(format="jsonl", paths=["elsewhere"])]})
    assert key(moved, arc=[RawFile("file:///elsewhere", "elsewhere", one.size, one.content_id)]) == alone
    swapped = indexing(drop=1, arc=1)
    assert key(swapped, drop=[two], arc=[one]) == others[2]


# -- a whole recipe: sources and mixes ---------------------------------------------------------------------------------------------------


class InProcess(Engine):
    def run(self, plan, weights, store):
        for spec in plan["shards"]:
            run_shard(store, plan["step"], spec, importlib.import_module(plan["step"]["module"]).run)


class Lab:
    """Three sources in several shards, two of them looked at; evaluations whose instances are planted in some documents."""

    NGRAM = 8

    def __init__(self, folder) -> None:
        rng = random.Random(7)
        self.evaluations = random_evaluations(rng)
        self.documents = {}
        for source in ("flan", "maths", "web"):
            for shard in range(2):
                made = [(f"{source}{shard}-{i}", random_document(rng, self.evaluations) or "w1") for i in range(25)]
                self.documents[source, shard] = [(name, text) for name, text in made if text.strip()]
                lines = [{"id": name, "text": text, "votes": i % 4} for i, (name, text) in enumerate(self.documents[source, shard])]
                (folder / source).mkdir(parents=True, exist_ok=True)
                raw_file(folder / source / f"{shard}.jsonl", lines)
        for name, instances in self.evaluations.items():
            raw_file(folder / f"{name}.jsonl", [{"id": identifier, "question": text} for identifier, text in instances])
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

    def file(self, artifact, name, shard=0):
        return input_files(self.store, ShardRef(artifact.step, artifact.keys[shard]))[name]

    def told(self, pipeline, name) -> dict:
        return json.loads(self.file(pipeline.made["contamination", f"{name}: decontamination"], "contamination.json").read_text())["places"]

    def expected(self, copies: Counter) -> dict[str, dict]:
        """By evaluation what documents with so many copies, by id, hold of it."""
        oracle = Oracle(self.evaluations, self.NGRAM)
        texts = {name: text for documents in self.documents.values() for name, text in documents}
        held = {name: oracle.contains(words_of(texts[name])) for name, count in copies.items() if count}
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


def check(told: dict, expected: dict) -> None:
    for evaluation, numbers in expected.items():
        found = told["evaluations"][evaluation]
        assert [example["share"] for example in found["examples"]] == numbers.pop("shares")
        assert {name: found[name] for name in numbers} == numbers


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.pipeline = made.run()
    return made


def test_what_is_inside_a_source_as_read_and_as_selected_is_that_of_a_loop(lab):
    told = lab.told(lab.pipeline, "flan")
    ids = [name for (source, _), documents in lab.documents.items() if source == "flan" for name, _ in documents]
    texts = {name: text for documents in lab.documents.values() for name, text in documents}
    oracle = Oracle(lab.evaluations, lab.NGRAM)
    kept = [name for name in ids if oracle.overlap(texts[name])[0] < 0.1]
    assert 0 < len(kept) < len(ids)
    assert (told["read"]["documents"], told["selected"]["documents"]) == (len(ids), len(kept))
    check(told["read"], lab.expected(Counter(ids)))
    check(told["selected"], lab.expected(Counter(kept)))


def test_a_subset_of_a_source_is_told_by_what_it_selects(lab):
    told = lab.told(lab.pipeline, "maths/voted")
    ids = [
        name for (source, _), documents in lab.documents.items() if source == "maths" for i, (name, _) in enumerate(documents) if i % 4 >= 2
    ]
    assert told["selected"]["documents"] == len(ids)
    check(told["selected"], lab.expected(Counter(ids)))


@pytest.mark.parametrize("mix", ["mid", "twice"])
def test_what_is_inside_a_mix_is_that_of_a_loop_over_the_documents_that_it_takes_with_their_copies(lab, mix):
    """mid: a part of flan, maths two or three times. twice: a half of maths, and of its documents once more those with two votes."""
    told = lab.told(lab.pipeline, f"mix {mix}")["mix"]
    plan = pq.read_table(lab.file(lab.pipeline.made["mix", mix], "plan.parquet")).to_pylist()
    copies = Counter()
    keys = {}
    for source in ("flan", "maths"):
        artifact = lab.pipeline.made["ingest", source]
        for shard in range(2):
            table = pq.read_table(lab.file(artifact, "documents.parquet", shard))
            keys |= dict(zip(table["key"].to_pylist(), table["id"].to_pylist(), strict=True))
    for row in plan:
        if row["source"] != "web":
            copies[keys[row["key"]]] += row["copies"]
    assert set(copies.values()) == {"mid": {1, 2, 3}, "twice": {1, 2}}[mix] and len(copies) < len(keys)
    assert told["documents"] == len(copies) and told["not_looked_at"] == ["web"]
    check(told, lab.expected(copies))


def test_the_examples_name_the_document_that_holds_most_of_the_instance(lab):
    texts = {name: text for documents in lab.documents.values() for name, text in documents}
    oracle = Oracle(lab.evaluations, lab.NGRAM)
    seen = 0
    for evaluation, numbers in lab.told(lab.pipeline, "maths")["read"]["evaluations"].items():
        for example in numbers["examples"]:
            name = f"{evaluation}: {example['instance']}"
            held = {
                document: oracle.contains(words_of(text)).get(name, ()) for document, text in texts.items() if document.startswith("maths")
            }
            most = max(len(grams) for grams in held.values())
            assert len(held[example["document"]]) == most
            assert example["share_in_document"] == most / len(oracle.instances[name])
            assert example["text"] == dict(lab.evaluations[evaluation])[example["instance"]][:240] and example["source"] == "maths"
            seen += 1
    assert seen > 5


def test_a_mix_without_a_source_that_was_looked_at_is_not_told_to_be_clean(lab):
    assert ("contamination", "mix plain: decontamination") not in lab.pipeline.made
    assert ("contamination", "web: decontamination") not in lab.pipeline.made


def test_the_lines_of_a_run_tell_what_was_found(lab):
    scored = [line for line in lab.lines if line.startswith("score")]
    assert len(scored) == 2 and all(re.search(r"[1-9]\d* share n-grams with evaluations", line) for line in scored)
    told = lab.told(lab.pipeline, "mix mid")["mix"]["evaluations"].values()
    inside, touched = (sum(each[name] for each in told) for name in ("inside", "touched"))
    (mixed,) = [line for line in lab.lines if "mix mid: decontamination" in line]
    assert f"25 instances, {inside} inside, {touched} touched" in mixed


def test_a_second_run_makes_nothing_and_another_threshold_looks_at_no_text(lab):
    assert not any(artifact.made for artifact in lab.run().runner.artifacts.values())
    recipe = yaml.safe_load((lab.folder / "recipe.yaml").read_text())
    recipe["sources"]["flan"]["filters"][0]["below"] = 0.5
    lab.write(sources=recipe["sources"])
    made = {artifact.step for artifact in lab.run().runner.artifacts.values() if artifact.made}
    lab.write()
    assert made == {"select", "contamination", "mix"}


def test_what_where_left_out_is_told_and_loosening_it_takes_the_rest_over(lab):
    recipe = yaml.safe_load((lab.folder / "recipe.yaml").read_text())
    full = lab.told(lab.pipeline, "maths")["read"]
    tables = {}
    for least in (2, 0):
        recipe["sources"]["maths"]["scores"]["decontamination"] = {"where": [{"column": "votes", "min": least}]}
        lab.write(sources=recipe["sources"])
        pipeline = lab.run()
        told = lab.told(pipeline, "maths")["read"]
        assert told["documents"] + told["not_scored"] == full["documents"]
        assert (told["not_scored"] > 0) == (least == 2)
        scores = pipeline.made["score", "maths: decontamination"]
        tables[least] = [pq.read_table(lab.file(scores, "scores.parquet", shard)) for shard in range(2)]
    lab.write()
    assert scores.books.counts["taken_over"] > 0
    assert told["evaluations"] == full["evaluations"]
    plain = lab.pipeline.made["score", "maths: decontamination"]
    assert [table.to_pylist() for table in tables[0]] == [
        pq.read_table(lab.file(plain, "scores.parquet", shard)).to_pylist() for shard in range(2)
    ]


def test_a_given_index_is_used_like_one_that_the_recipe_builds(lab):
    trained = lab.pipeline.made["train-scorer", "decontamination"]
    folder = lab.file(trained, "model/index.json").parent
    lab.write(scorers={"decontamination": {"scorer": {"type": "contamination", "model": str(folder)}}})
    pipeline = lab.run()
    lab.write()
    assert lab.told(pipeline, "mix mid") == lab.told(lab.pipeline, "mix mid")
    assert [file.name for record in pipeline.made["contamination", "mix mid: decontamination"].records for file in record.files] == [
        "contamination.json"
    ]


def test_the_report_shows_what_the_steps_found(lab):
    pipeline = lab.pipeline
    summary = RunSummary.of(pipeline, "mix", "now", 0.0)
    lab.store.replace(summary_path("lab"), json.dumps(asdict(summary)))
    page = Path(write_report(pipeline.recipe)).read_text()
    section = re.search(r'<section id="contamination">.*?</section>', page, re.DOTALL)[0]
    told = {name: lab.told(pipeline, name) for name in ("flan", "maths", "mix mid")}
    for evaluation in lab.evaluations:
        read, selected, mixed = (told["flan"]["read"], told["flan"]["selected"], told["mix mid"]["mix"])
        read, selected, mixed = (place["evaluations"][evaluation] for place in (read, selected, mixed))
        assert f"{evaluation} in flan: {read['inside']} of {read['instances']} instances inside, {read['touched']} touched" in section
        assert f"{selected['inside']} inside and {selected['touched']} touched once the filters have selected" in section
        assert f"{evaluation} in mix mid: {mixed['inside']} of {mixed['instances']} instances inside" in section
        assert f"({mixed['copies']} with their copies)" in section
    assert "web was not looked at" in section
    assert "overlap &lt; 0.1" in page  # among the cuts of flan
    assert page.count("looked for by decontamination") == len(lab.evaluations)


# -- real files ------------------------------------------------------------------------------------------------------------------------

SAMPLES = Path(os.environ.get("OLMOFLOW_DATA", ""))


@pytest.mark.skipif("OLMOFLOW_DATA" not in os.environ, reason="no folder of real samples: set OLMOFLOW_DATA")
def test_real_programs_for_gsm8k_problems_are_found_and_those_for_multiarith_are_not(tmp_path):
    def read(path, text):
        config = SourceConfig(format="jsonl", paths=["x"], fields={"text": text})
        file = RawFile(f"file://{SAMPLES}/math/{path}", path, (SAMPLES / "math" / path).stat().st_size, path)
        return [(item.id, item.text) for item in READERS["jsonl"](file, config)]

    problems = read("gsm8k/test.first660.jsonl", "question")
    scorer = scorer_of({"gsm8k": problems}, 13, tmp_path)
    text = ["question", "generated"]
    found = scorer.score([text for _, text in read("program_of_thoughts/gsm8k_zeroshot_first660.jsonl.gz", text)])
    assert (found["overlap"] >= 0.1).sum() >= 655
    assert found["overlap_with"].tolist() == [f"gsm8k: {identifier}" for identifier, _ in problems]
    assert scorer.score([text for _, text in read("program_of_thoughts/multiarith_zeroshot.jsonl.gz", text)])["overlap"].max() < 0.1
