"""Ingestion as a step: its keys, and the books of documents that share a record."""

from pathlib import Path

import pyarrow.parquet as pq

from tasks.ingest import STEP, run, task
from tasks.shards import Shard, ShardTask
from tasks.sources import RawFile, SourceConfig

POST = '<row Id="{}" PostTypeId="{}" Score="9" {} Body="&lt;p&gt;post {}&lt;/p&gt;" />\n'


def task_of(**settings: object) -> ShardTask:
    raw = RawFile("/somewhere/a.com/Posts.xml", "Posts.xml", 10, "0" * 64)
    return task("se", SourceConfig(format="stackexchange", paths=["x"], **settings), raw)


def key(**settings: object) -> str:
    return task_of(**settings).key(STEP)


def test_a_setting_at_its_default_changes_no_key_and_another_value_does() -> None:
    # So a setting that a later version adds is in no key of what an earlier one made.
    assert task_of().config["reader"] == {"format": "stackexchange"}
    assert key() == key(answers="accepted", min_question_votes=3, min_answer_votes=5, fields={})
    assert len({key(), key(answers="all"), key(min_answer_votes=4), key(site="b.com")}) == 4


def test_a_question_with_several_answers_is_one_post_in_the_books(tmp_path: Path) -> None:
    posts = POST.format(1, 1, 'Title="T"', 1) + "".join(POST.format(id, 2, 'ParentId="1"', id) for id in (2, 3, 4))
    path = tmp_path / "a.com" / "Posts.xml"
    path.parent.mkdir()
    path.write_text(f"<posts>\n{posts}</posts>")
    raw = RawFile(str(path), path.name, path.stat().st_size, "0" * 64)
    config = SourceConfig(format="stackexchange", paths=["x"], answers="all")
    books = run(Shard(task("se", config, raw).config, {"raw": [raw]}, tmp_path))
    assert (books.unit, books.read, books.kept, books.counts["documents"]) == ("posts", 4, 4, 3)
    assert pq.read_table(tmp_path / "documents.parquet").column("id").to_pylist() == ["a.com/a/2", "a.com/a/3", "a.com/a/4"]
