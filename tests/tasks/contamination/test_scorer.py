"""What documents share with evaluations, against a loop over tuples of words."""

import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks import filters, score
from tasks.documents import DocumentWriter
from tasks.filters import Filter
from tasks.scorers import contamination as scorers
from tasks.scorers import ngrams
from tasks.scorers.contamination import build_index
from tasks.shards import Shard
from tasks.sources import READERS, SourceConfig
from tasks.sources.base import RawFile
from tasks.store import Books

SAMPLES = Path(os.environ.get("OLMOFLOW_DATA", ""))


@pytest.mark.parametrize(("ngram", "vocabulary"), [(13, 4000), (8, 4000), (5, 60), (3, 12), (1, 300)])
def test_overlap_and_instance_are_those_of_a_loop_over_tuples_of_words(
    scorer_of, oracle_of, random_evaluations, random_document, ngram, vocabulary
):
    rng = random.Random(ngram)
    evaluations = random_evaluations(rng, vocabulary)
    documents = [random_document(rng, evaluations, vocabulary) for _ in range(150)] + ["", "?!", "w1", evaluations["arc"][1][1]]
    found, oracle = scorer_of(evaluations, ngram).score(documents), oracle_of(evaluations, ngram)
    expected = [oracle.overlap(document) for document in documents]
    assert found["overlap"].tolist() == [overlap for overlap, _ in expected]
    assert found["overlap_with"].tolist() == [name for _, name in expected]
    assert sum(name is not None for _, name in expected) > 10 or ngram == 13
    assert any(0 < overlap < 1 for overlap, _ in expected)


@pytest.mark.parametrize(("planted", "kept"), [(99, True), (100, False), (101, False)])
def test_a_document_is_dropped_from_ten_percent_on_and_names_the_instance(scorer_of, planted, kept):
    """1,000 n-grams of 13 words, of which 99, 100 or 101 stand in one instance."""
    instance = [f"i{i}" for i in range(500)]
    evaluations = {"gsm8k": [("other", " ".join(f"o{i}" for i in range(50))), ("hit", " ".join(instance))]}
    words = [f"d{i}" for i in range(300)] + instance[7 : 7 + planted + 12]
    words += [f"e{i}" for i in range(1012 - len(words))]
    found = scorer_of(evaluations, 13).score([" ".join(words)])
    assert found["overlap"][0] == planted / 1000
    assert found["overlap_with"][0] == "gsm8k: hit" and len(found["overlap_ngrams"][0]) == planted
    table = score.pa.table({"overlap": found["overlap"]})
    assert filters.apply([Filter(column="overlap", below=0.1)], table, name="flan")[1] == [None if kept else "overlap >= 0.1"]


def test_ten_percent_may_come_from_several_instances_together(scorer_of):
    """19 n-grams of each of 6 instances in 1,000: none alone reaches 10 %, together they do."""
    instances = [[f"i{k}x{i}" for i in range(31)] for k in range(6)]
    evaluations = {"mmlu": [(str(k), " ".join(words)) for k, words in enumerate(instances)]}
    words = [word for k in range(6) for word in [*(f"d{k}x{i}" for i in range(100)), *instances[k]]]
    words += [f"e{i}" for i in range(1012 - len(words))]
    assert scorer_of(evaluations, 13).score([" ".join(words)])["overlap"][0] == 6 * 19 / 1000


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
def test_case_accents_punctuation_and_spacing_make_no_difference(scorer_of, instance, document):
    found = scorer_of({"e": [("1", instance)]}, 5).score([document, document.replace(" ", " x ")])
    assert found["overlap"].tolist() == [1.0, 0.0]


def test_a_lone_surrogate_parts_words_and_breaks_nothing(scorer_of):
    assert scorer_of({"e": [("1", "one two three four five")]}, 5).score(["one\ud800two three four five"])["overlap"][0] == 1


def test_documents_without_words_share_nothing_and_do_not_run_into_their_neighbours(scorer_of):
    scorer = scorer_of({"e": [("1", "one two three four five six seven eight")]}, 8)
    found = scorer.score(["", "one two three four", "", "…", "five six seven eight", "one two three four five six seven eight"])
    assert found["overlap"].tolist() == [0, 0, 0, 0, 0, 1]
    assert {name: values.tolist() for name, values in scorer.score([]).items()} == {"overlap": [], "overlap_with": [], "overlap_ngrams": []}


def test_a_short_instance_counts_as_a_whole_in_every_ngram_that_holds_it(scorer_of):
    scorer = scorer_of({"arc": [("short", "which technology was developed most recently")]}, 13)
    filler = [f"d{i}" for i in range(100)]
    inside = " ".join([*filler[:50], "Which technology was developed most recently?", *filler[50:]])
    part = " ".join([*filler[:50], "which technology was developed most", *filler[50:]])
    found = scorer.score([inside, part, "Well: which technology was developed most recently, and why?"])
    assert found["overlap"].tolist() == [8 / 94, 0.0, 1.0]
    assert found["overlap_with"].tolist() == ["arc: short", None, "arc: short"]


def test_blocks_and_batches_change_nothing(scorer_of, random_evaluations, random_document, monkeypatch):
    rng = random.Random(3)
    evaluations = random_evaluations(rng, 30)
    documents = [random_document(rng, evaluations, 30) + " Ünïcode" * (i % 2) for i in range(60)]
    scorer = scorer_of(evaluations, 3)
    plain = {name: values.tolist() for name, values in scorer.score(documents).items()}
    monkeypatch.setattr(ngrams, "_BLOCK", 64)
    monkeypatch.setattr(scorers, "_AT_ONCE", 3)
    ngrams._powers.cache_clear()
    assert {name: values.tolist() for name, values in scorer.score(documents).items()} == plain
    monkeypatch.undo()
    ngrams._powers.cache_clear()


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


@pytest.mark.skipif("OLMOFLOW_DATA" not in os.environ, reason="no folder of real samples: set OLMOFLOW_DATA")
def test_real_programs_for_gsm8k_problems_are_found_and_those_for_multiarith_are_not(scorer_of):
    def read(path, text):
        config = SourceConfig(format="jsonl", paths=["x"], fields={"text": text})
        file = RawFile(f"file://{SAMPLES}/math/{path}", path, (SAMPLES / "math" / path).stat().st_size, path)
        return [(item.id, item.text) for item in READERS["jsonl"](file, config)]

    problems = read("gsm8k/test.first660.jsonl", "question")
    scorer = scorer_of({"gsm8k": problems}, 13)
    text = ["question", "generated"]
    found = scorer.score([text for _, text in read("program_of_thoughts/gsm8k_zeroshot_first660.jsonl.gz", text)])
    assert (found["overlap"] >= 0.1).sum() >= 655
    assert found["overlap_with"].tolist() == [f"gsm8k: {identifier}" for identifier, _ in problems]
    assert scorer.score([text for _, text in read("program_of_thoughts/multiarith_zeroshot.jsonl.gz", text)])["overlap"].max() < 0.1
