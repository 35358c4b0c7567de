import ast
import gzip
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import py7zr
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks.corpus import SMALLEST_BYTES, build, describe, educational_score, published_score, synthetic_stars
from tasks.corpus_maths import problems
from tasks.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    return out, build(out, SMALLEST_BYTES)


def read_lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


def read_source(corpus, source: str) -> list[dict]:
    out, summary = corpus
    return [record for item in summary["files"] if item["source"] == source for record in read_lines(out / item["path"])]


def read_posts(corpus, tmp_path) -> list[dict]:
    with py7zr.SevenZipFile(corpus[0] / "stackexchange/demo.stackexchange.com.7z") as archive:
        assert archive.getnames() == ["Posts.xml"]
        archive.extractall(tmp_path)
    return [row.attrib for row in ET.parse(tmp_path / "Posts.xml").getroot()]


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_the_same_size_and_seed_give_the_same_bytes_and_another_seed_other_bytes(corpus, tmp_path):
    first = digests(corpus[0])
    build(tmp_path / "again", SMALLEST_BYTES)
    build(tmp_path / "other", SMALLEST_BYTES, seed=1)
    assert digests(tmp_path / "again") == first
    other = digests(tmp_path / "other")
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_the_summary_names_every_file_with_its_size_and_the_size_is_near_the_budget(corpus):
    out, summary = corpus
    on_disk = {str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert {item["path"]: item["bytes"] for item in summary["files"]} == on_disk
    texts = sum(total["text_bytes"] for total in summary["sources"].values())
    # Sixty questions with their answers and a last page or file over the budget weigh more in a small corpus.
    assert SMALLEST_BYTES * 0.9 < texts < SMALLEST_BYTES * 1.7
    assert summary["description"] == describe()


@pytest.mark.parametrize(("source", "pattern", "count"), [
    ("dclm", r"dclm/global-shard_01_of_10/local-shard_0_of_10/\w+\.jsonl\.zst", 4),
    ("pes2o", r"dolma/pes2o/\S+\.jsonl\.gz", 3),
    ("wiki", r"dolma/wiki/\S+\.jsonl\.gz", 3),
    ("flan", r"flan/\S+\.jsonl\.gz", 3),
    ("starcoder", r"starcoder/python/\S+\.parquet", 3),
    ("maths", r"maths/\S+\.jsonl", 3),
    ("stackexchange", r"stackexchange/demo\.stackexchange\.com\.7z", 1),
    ("labels", r"labels/(quality|edu)\.jsonl", 2),
])  # fmt: skip
def test_every_source_lies_where_its_reader_looks(corpus, source, pattern, count):
    paths = [item["path"] for item in corpus[1]["files"] if item["source"] == source]
    assert len(paths) == count
    assert all(re.fullmatch(pattern, path) for path in paths)
    assert all(item["documents"] > 0 for item in corpus[1]["files"])


def test_dclm_has_its_fields_and_scores_on_both_sides_of_the_threshold(corpus):
    records = read_source(corpus, "dclm")
    score = "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob"
    for record in records:
        assert record.keys() == {"text", "url", "metadata", "language_id_whole_page_fasttext", score}
        assert record["url"].startswith("https://docs.example/")
        assert 0 <= record[score] <= 1
    assert any(record[score] < 0.0331 for record in records) and any(record[score] > 0.0331 for record in records)
    assert sum(item["documents"] for item in corpus[1]["files"] if item["source"] == "dclm") == len(records)


@pytest.mark.parametrize("source", ["pes2o", "wiki", "flan"])
def test_dolma_files_have_the_required_fields_and_ids_unique_in_the_source(corpus, source):
    records = read_source(corpus, source)
    assert {record["source"] for record in records} == {source}
    assert len({record["id"] for record in records}) == len(records)
    assert len({record["text"] for record in records}) == len(records)
    assert all(
        record["text"].strip() and isinstance(record["metadata"], dict) and record["created"] < record["added"] for record in records
    )


def test_starcoder_has_its_columns_and_files_that_every_rule_drops(corpus):
    out, summary = corpus
    tables = [pq.read_table(out / item["path"]) for item in summary["files"] if item["source"] == "starcoder"]
    names = ["max_stars_repo_path", "max_stars_repo_name", "max_stars_count", "id", "content"]
    assert all(table.column_names == names for table in tables)
    rows = {row["max_stars_repo_path"]: row for table in tables for row in table.to_pylist()}
    stars = [synthetic_stars(f"repo-{number}", 0) for number in range(1000)]
    assert 60 < stars.count(None) < 150 and 60 < stars.count(0) < 190 and 50 < stars.count(1) < 160 and max(s or 0 for s in stars) <= 5000
    words = rows["tables/mostly_zero.py"]["content"].split()
    assert words.count("0,") > 0.3 * len(words)
    words = rows["tables/black_and_white.py"]["content"].split()
    assert max(map(words.count, set(words))) < 0.45 * len(words) and words.count("0x00,") + words.count("0xff,") > 0.5 * len(words)
    for row in rows.values():
        ast.parse(row["content"])


def test_stackexchange_has_questions_and_answers_around_the_thresholds(corpus, tmp_path):
    rows = read_posts(corpus, tmp_path)
    assert [int(row["Id"]) for row in rows] == list(range(1, len(rows) + 1))
    questions = [row for row in rows if row["PostTypeId"] == "1"]
    answers = {row["Id"]: row for row in rows if row["PostTypeId"] == "2"}
    assert len(questions) >= 60 and len(answers) >= 120
    assert all(row["Body"].startswith("<p>") and "\n" in row["Body"] for row in (*questions, *answers.values()))
    by_id = {row["Id"]: row for row in questions}
    assert all(row["ParentId"] in by_id for row in answers.values())
    accepted = [(row, answers.get(row["AcceptedAnswerId"])) for row in questions if "AcceptedAnswerId" in row]
    assert 0 < len(accepted) < len(questions)
    assert any(answer is None for _, answer in accepted), "one accepted answer should be missing from the dump"
    assert all(answer["ParentId"] == question["Id"] for question, answer in accepted if answer)
    outcomes = {(int(question["Score"]) >= 3, int(answer["Score"]) >= 5) for question, answer in accepted if answer}
    assert outcomes == {(True, True), (True, False), (False, True), (False, False)}
    assert any(int(question["Score"]) == 3 and int(answer["Score"]) == 5 for question, answer in accepted if answer)
    bodies = "".join(row["Body"] for row in rows if "Body" in row)
    assert all(tag in bodies for tag in ("<pre><code>", "<li>", "<a href=", "<blockquote>", "&gt;&gt;&gt;"))


def test_the_steps_of_the_maths_problems_compute_what_they_say(corpus):
    records = read_source(corpus, "maths")
    assert all(record.keys() == {"id", "question", "answer", "template"} for record in records)
    checked = 0
    for record, _ in zip(problems(3), range(2000), strict=False):
        *steps, last = record["answer"].splitlines()
        assert last == f"#### {re.findall(r'-?[0-9]+', steps[-1])[-1]}"
        for left, right in re.findall(r"([0-9][0-9 */+-]*) = ([0-9]+)", "\n".join(steps)):
            assert eval(left) == int(right), record
            checked += 1
    assert checked > 2000


def test_labels_have_both_classes_and_all_six_grades_and_no_text_of_the_corpus(corpus):
    quality, edu = (read_lines(corpus[0] / f"labels/{name}.jsonl") for name in ("quality", "edu"))
    assert {record["label"] for record in quality} == {"hq", "cc"}
    assert {record["score"] for record in edu} <= set(range(6)) and len({record["score"] for record in edu}) >= 4
    pages = "\n".join(record["text"] for record in read_source(corpus, "dclm"))
    assert not [record for record in quality if record["label"] == "hq" and record["text"] in pages]


def test_the_stated_rules_of_the_scores(corpus):
    assert published_score("plain words, and nothing (else) at all.") == 1.0
    assert published_score("three plain words 1 2_ x=3") == 0.0
    assert published_score("") == 0.0
    long = "This sentence has quite a few more than ten words in it. " * 6
    assert [educational_score(text) for text in ("Short.", long, long + "\n- item")] == [2, 4, 5]


def test_every_planted_oddity_stands_where_the_summary_says(corpus):
    out, summary = corpus
    planted = {item["what"]: read_lines(out / item["path"])[item["line"] - 1]["text"] for item in summary["planted"]}
    assert planted["a phrase forty times in a row"].count("Please accept the terms of use. ") == 40
    assert planted["an empty text"] == ""
    assert planted["a text of spaces and newlines"].strip() == ""
    assert "<|endoftext|>" in planted["control tokens in the text"]
    assert "٣٤٥" in planted["digits of other scripts"]
    assert "\ud83d" in planted["a lone surrogate escape"]
    assert len(planted) == 7


def test_no_path_of_this_machine_is_in_the_corpus_of_code(corpus):
    out, summary = corpus
    for item in summary["files"]:
        if item["source"] == "starcoder":
            assert not any(path.startswith("/") for path in pq.read_table(out / item["path"])["max_stars_repo_path"].to_pylist())


def test_a_size_that_cannot_hold_every_source_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(SMALLEST_BYTES)):
        build(tmp_path, 1000)
    assert not list(tmp_path.iterdir())
