"""Scores are row-aligned, null where nobody looked, and never computed twice for a document."""

import dataclasses
import functools
import math

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import InProcess

from tasks import score
from tasks.documents import DocumentWriter
from tasks.errors import UserError
from tasks.filters import Filter
from tasks.scorers import LengthConfig, WordFrequencyConfig
from tasks.scorers.fasttext_quality import FastTextQuality, FastTextQualityConfig, train_fasttext
from tasks.shards import Runner, Shard, ShardRef
from tasks.sources.base import RawFile
from tasks.store import Attempt, Books, Store

VOTES = [0, 1, 2, 3, 4, 5, None, 2, 4, 1]
TEXTS = [" ".join([f"word{i}"] * (i + 1)) for i in range(len(VOTES))]
AT_LEAST = {votes: [Filter(column="votes", min=votes)] for votes in range(6)}


def write_documents(path, texts=TEXTS, votes=VOTES, row_group=4):
    writer = DocumentWriter(path, "web", {"votes": pa.int64()})
    for number, (text, vote) in enumerate(zip(texts, votes, strict=True)):
        writer.write(str(number), text, None, None, {}, {"votes": vote})
        if number % row_group == row_group - 1:
            writer.flush()
    writer.close()


class Lab:
    """A store with one shard of documents, and the score step on it."""

    def __init__(self, folder) -> None:
        self.store = Store(str(folder))
        attempt = Attempt(self.store, "ingest", "docs", "web")
        write_documents(attempt.folder / "documents.parquet")
        attempt.commit(Books(), 0)
        self.documents = ShardRef("ingest", "docs")

    def task(self, where=(), scorer=None, cheaper=()):
        return score.task("web", scorer or LengthConfig(), [], self.documents, list(where), list(cheaper))

    def score(self, where=(), scorer=None, cheaper=()):
        """The record of the scores, made through the shard map."""
        task = self.task(where, scorer, cheaper)
        prepare = functools.partial(score.prepare, self.store)
        (record,) = Runner(self.store, InProcess()).run(score.STEP, "web", [task], prepare=prepare).records
        return record

    def table(self, record) -> pa.Table:
        return pq.read_table(self.store.fetch(record.file("scores.parquet").path))

    def column(self, record, name="words") -> list:
        return self.table(record)[name].to_pylist()


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "store")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    """A worker keeps its scorer; a test begins without one."""
    monkeypatch.setattr(score, "_scorers", {})


@pytest.fixture
def looked_at(monkeypatch):
    """The texts that a scorer was given."""
    seen = []
    plain = score.make_scorer

    def make_scorer(config, model):
        scorer = plain(config, model)
        inner = scorer.score

        def watched(texts):
            seen.extend(texts)
            return inner(texts)

        scorer.score = watched
        return scorer

    monkeypatch.setattr(score, "make_scorer", make_scorer)
    return seen


def test_scores_are_aligned_with_the_documents_over_all_row_groups(lab):
    record = lab.score()
    assert lab.column(record) == [i + 1 for i in range(len(TEXTS))]
    assert lab.column(record, "characters") == [len(text) for text in TEXTS]
    books = record.books
    assert (books.read, books.kept, books.counts) == (10, 10, {"skipped": 0, "scored": 10, "taken_over": 0})


def test_what_where_leaves_out_is_null_and_counted_as_skipped(lab, looked_at):
    record = lab.score(AT_LEAST[3])
    assert lab.column(record) == [i + 1 if vote is not None and vote >= 3 else None for i, vote in enumerate(VOTES)]
    assert record.books.counts == {"skipped": 6, "scored": 4, "taken_over": 0}
    assert record.books.kept == record.books.read == len(VOTES)  # a score is missing, not a document
    assert looked_at == [TEXTS[i] for i in (3, 4, 5, 8)]


def test_loosening_where_scores_the_difference_only_and_equals_scoring_afresh(lab, looked_at, tmp_path):
    lab.score(AT_LEAST[4])
    looked_at.clear()
    loosened = lab.score(AT_LEAST[2])
    assert looked_at == [TEXTS[i] for i, vote in enumerate(VOTES) if vote in (2, 3)]
    assert loosened.books.counts == {"skipped": 4, "scored": 3, "taken_over": 3}
    afresh = Lab(tmp_path / "other")
    assert lab.table(loosened).equals(afresh.table(afresh.score(AT_LEAST[2])))


def test_tightening_where_scores_nothing_and_forgets_what_is_outside(lab, looked_at, tmp_path):
    lab.score(AT_LEAST[1])
    looked_at.clear()
    tight = lab.score(AT_LEAST[4])
    assert looked_at == []
    assert tight.books.counts == {"skipped": 7, "scored": 0, "taken_over": 3}
    afresh = Lab(tmp_path / "other")
    assert lab.table(tight).equals(afresh.table(afresh.score(AT_LEAST[4])))


def test_scores_are_taken_over_from_several_earlier_cuts_together(lab, looked_at):
    lab.score([Filter(column="votes", max=1)])
    lab.score(AT_LEAST[4])
    looked_at.clear()
    record = lab.score([Filter(column="votes", min=0)])
    assert looked_at == [TEXTS[i] for i in (2, 3, 7)]
    assert record.books.counts == {"skipped": 1, "scored": 3, "taken_over": 6}
    assert lab.column(record) == [i + 1 if vote is not None else None for i, vote in enumerate(VOTES)]


def test_another_scorer_takes_nothing_over(lab, looked_at):
    lab.score(AT_LEAST[1], LengthConfig())
    looked_at.clear()
    assert lab.score(AT_LEAST[1], WordFrequencyConfig()).books.counts["scored"] == len(looked_at) == 8


def test_what_was_taken_over_is_no_part_of_the_key(lab):
    before, after = lab.task(AT_LEAST[2]), lab.task(AT_LEAST[2])
    score.prepare(lab.store, before)
    lab.score(AT_LEAST[4])
    score.prepare(lab.store, after)
    assert before.hints["earlier"] == [] != after.hints["earlier"]
    assert before.key(score.STEP) == after.key(score.STEP) != lab.task(AT_LEAST[3]).key(score.STEP)


def test_where_may_read_the_scores_of_a_cheaper_scorer(lab, looked_at):
    cheap = lab.score(scorer=LengthConfig())
    looked_at.clear()
    where = [Filter(column="words", min=9), Filter(column="votes", min=2)]
    record = lab.score(where, WordFrequencyConfig(), [ShardRef("score", cheap.key)])
    assert looked_at == [TEXTS[8]]  # of 9 words and 4 votes; text 9 has 1 vote
    assert lab.column(record, "top_word_share") == [None] * 8 + [1.0, None]


def test_without_where_a_key_does_not_depend_on_cheaper_scorers(lab):
    cheaper = [ShardRef("score", "some")]
    assert lab.task(cheaper=cheaper).key(score.STEP) == lab.task().key(score.STEP)
    assert lab.task(AT_LEAST[1], cheaper=cheaper).key(score.STEP) != lab.task(AT_LEAST[1]).key(score.STEP)


def test_a_where_on_a_column_that_is_not_there_is_told(lab):
    with pytest.raises(UserError, match=r"filter of web wants the column stars.*votes"):
        lab.score([Filter(column="stars", min=1)])


# -- by hand, without a store ----------------------------------------------------------------------------------------------------------


class Doubtful:
    """A scorer that has no judgement of texts with a question mark; float32, as neural scorers are."""

    def __init__(self):
        self.columns = {"doubt": pa.float32(), "length": pa.int64()}

    def score(self, texts):
        doubts = [math.nan if "?" in text else 0.1 * len(text) for text in texts]
        return {"doubt": np.array(doubts, np.float32), "length": np.array([len(text) for text in texts], np.int64)}


def by_hand(folder, texts, where=(), earlier=(), model=()):
    folder.mkdir(parents=True)
    write_documents(folder / "documents.parquet", texts, [0] * len(texts), row_group=2)
    shard = Shard(
        {"where": [rule.model_dump(mode="json") for rule in where]},
        {"documents": [{"documents.parquet": folder / "documents.parquet"}], "model": list(model), "cheaper": []},
        folder,
    )
    shard.hints = {"scorer": {"type": "length"}, "earlier": list(earlier)}
    books = score.run(shard)
    books.balance("score")
    return pq.read_table(folder / "scores.parquet"), books


def test_nan_becomes_null_and_numbers_keep_their_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "make_scorer", lambda config, model: Doubtful())
    texts = ["yes", "what?", "no", "?"]
    table, books = by_hand(tmp_path / "one", texts)
    assert table["doubt"].to_pylist() == [np.float32(0.1 * 3), None, np.float32(0.1 * 2), None]
    assert table["doubt"].null_count == 2 and table["doubt"].type == pa.float32()
    assert table["length"].to_pylist() == [3, 5, 2, 1]
    assert books.counts["scored"] == 4

    # taken over, a float32 is still the same float32, and what had no judgement is asked again
    again, books = by_hand(tmp_path / "two", texts, earlier=[{"scores.parquet": tmp_path / "one" / "scores.parquet"}])
    assert again.equals(table)
    assert books.counts["taken_over"] == 2


def test_a_shard_without_documents_has_columns_and_no_rows(tmp_path):
    table, books = by_hand(tmp_path / "none", [])
    assert table.num_rows == 0 and set(table.column_names) == {"characters", "words"}
    assert books.read == 0


def test_where_may_leave_out_every_document(tmp_path):
    table, books = by_hand(tmp_path / "all", ["a", "b c", "d"], where=AT_LEAST[1])
    assert table["words"].to_pylist() == [None] * 3
    assert books.counts == {"skipped": 3, "scored": 0, "taken_over": 0}


@pytest.mark.parametrize("place", ["memory", "local"])
def test_a_given_model_is_read_from_wherever_it_lies(tmp_path, place):
    examples = [("good prose about rivers", "__label__hq"), ("buy now cheap", "__label__cc")] * 20
    train_fasttext(examples, tmp_path / "q.bin", dim=4, epochs=5, lr=0.5, bucket=100)
    url = f"file://{tmp_path / 'q.bin'}"
    if place == "memory":
        url = "memory://models/q.bin"
        with fsspec.open(url, "wb") as target:
            target.write((tmp_path / "q.bin").read_bytes())
    write_documents(tmp_path / "documents.parquet")
    folder = tmp_path / "shard"
    folder.mkdir()
    raw = RawFile(url, "q.bin", (tmp_path / "q.bin").stat().st_size, "x")
    config = {"where": []}
    shard = Shard(config, {"documents": [{"documents.parquet": tmp_path / "documents.parquet"}], "model": [raw], "cheaper": []}, folder)
    shard.hints = {"scorer": FastTextQualityConfig(model=url).model_dump()}
    score.run(shard)
    told = pq.read_table(folder / "scores.parquet")["quality"].to_pylist()
    expected = FastTextQuality(FastTextQualityConfig(), tmp_path / "q.bin").score(TEXTS)["quality"]
    assert told == pytest.approx(expected.tolist())
    assert [path.name for path in folder.iterdir()] == ["scores.parquet"]


def test_a_worker_loads_a_model_once_and_again_where_another_lies_in_its_place(tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(score, "make_scorer", lambda config, model: loads.append(model) or Doubtful())
    model = RawFile(f"file://{tmp_path / 'model.bin'}", "model.bin", 1, "one")
    for number, content in enumerate(["one", "one", "two", "two"]):
        by_hand(tmp_path / str(number), ["yes"], model=[dataclasses.replace(model, content_id=content)])
    assert len(loads) == 2


def test_a_model_from_a_remote_place_is_fetched_once_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "make_scorer", lambda config, model: Doubtful())
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/models/model.bin", b"weights")
    paths = []
    for number in range(2):
        shard = Shard({}, {"model": [RawFile("memory:///models/model.bin", "model.bin", 7, "weights")]}, tmp_path / str(number))
        paths.append(score.local_model(shard))
        remote.rm_file("/models/model.bin") if number == 0 else None
    assert paths[0] == paths[1] and paths[0].read_bytes() == b"weights"
