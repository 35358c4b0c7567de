"""The index of evaluations that documents are looked up in: its books, its files, and the step that builds it."""

import json
import random

import pytest

from tasks import train_scorer
from tasks.errors import UserError
from tasks.scorers.contamination import Contamination, ContaminationConfig, Index, build_index
from tasks.shards import Shard
from tasks.sources import SourceConfig
from tasks.sources.base import RawFile
from tasks.store import Books


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


def test_an_index_survives_its_files_and_a_folder_without_one_is_told(random_evaluations, tmp_path):
    index = build_index(random_evaluations(random.Random(1)), 13, Books())
    index.save(tmp_path / "model")
    again = Index.load(tmp_path / "model")
    for name in ("hashes", "offsets", "postings", "evaluation", "size"):
        assert getattr(again, name).tolist() == getattr(index, name).tolist()
    assert (again.ids, again.texts, again.evaluations, again.lengths) == (index.ids, index.texts, index.evaluations, index.lengths)
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix not in (".npy", ".json", ".parquet")]
    with pytest.raises(UserError, match=r"none is no index of evaluations \(it has no index.json\): let the recipe build one"):
        Contamination(ContaminationConfig(), tmp_path / "none")


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
