"""Duplicates are found across shards, one of each cluster is kept whatever the order, and filters read the column like a score."""

import itertools
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import InProcess

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.telling import line_of
from tasks import clusters, duplicates, signatures
from tasks.documents import DocumentWriter, document_key
from tasks.shards import Shard, ShardRef
from tasks.signatures import Deduplicate

BOTH = {"exact": True, "minhash": {}}


def prose(seed: int, words: int = 200) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(words)]


def edited(words: list[str], places: range) -> list[str]:
    return [f"{word}x" if place in places else word for place, word in enumerate(words)]


def find(folder, shards: list[dict[str, str]], config: dict) -> tuple[dict[str, bool], list[dict]]:
    """Run the three steps by hand over shards of documents (id -> text). Returns {id: duplicate} and the rows of duplicates.parquet."""
    deduplicate = Deduplicate.model_validate(config)
    signed = []
    folder.mkdir(exist_ok=True)
    for number, documents in enumerate(shards):
        place = folder / f"{number}"
        place.mkdir()
        writer = DocumentWriter(place / "documents.parquet", "web", {})
        for row, (identifier, text) in enumerate(documents.items()):
            writer.write(identifier, text, None, None, {}, {})
            if row % 3 == 2:
                writer.flush()  # more than one row group
        writer.close()
        settings = signatures.task("web", deduplicate, ShardRef("ingest", "x")).config
        signatures.run(Shard(settings, {"documents": [{"documents.parquet": place / "documents.parquet"}]}, place)).balance("signatures")
        signed.append({"signatures.parquet": place / "signatures.parquet"})
    shard = Shard(clusters.task("web", deduplicate, []).config, {"signatures": signed}, folder)
    books = clusters.run(shard)
    books.balance("clusters")
    rows = pq.read_table(folder / "duplicates.parquet").to_pylist()
    assert books.counts == {"clusters": len({row["duplicate_of"] for row in rows}), "duplicates": len(rows)}
    told = {}
    for number, documents in enumerate(shards):
        inputs = {"clusters": [{name: folder / name for name in ("duplicates.parquet", "rows.json")}]}
        column = Shard(duplicates.task("web", ShardRef("clusters", "x"), number).config, inputs, folder / f"{number}")
        duplicates.run(column).balance("duplicates")
        told |= dict(zip(documents, pq.read_table(column.folder / "scores.parquet")["duplicate"].to_pylist(), strict=True))
    return told, rows


def first_of(*identifiers: str) -> str:
    return min(identifiers, key=lambda identifier: document_key("web", identifier))


def test_of_equal_texts_in_any_shards_the_smallest_key_is_kept(tmp_path):
    text = "the very same text, word for word"
    told, rows = find(tmp_path, [{"a": text, "b": "another"}, {"c": text.upper(), "d": text}, {"e": text}], {"exact": True})
    kept = first_of("a", "d", "e")
    assert told == {name: name in {"a", "d", "e"} - {kept} for name in "abcde"}
    assert {row["duplicate_of"] for row in rows} == {document_key("web", kept)}
    assert all(row["exact"] for row in rows)


def test_near_duplicates_are_found_by_minhash_only_and_told_from_equal_ones(tmp_path):
    page = prose(1)
    near, far = edited(page, range(60, 63)), edited(page, range(0, 200, 2))  # 7 and nearly all of 196 n-grams are other ones
    shards = [{"page": " ".join(page)}, {"near": " ".join(near), "far": " ".join(far)}, {"same": " ".join(page)}]
    assert sum(find(tmp_path / "exact", shards, {"exact": True})[0].values()) == 1
    told, rows = find(tmp_path / "both", shards, BOTH)
    kept = first_of("page", "near", "same")
    assert {name for name, duplicate in told.items() if duplicate} == {"page", "near", "same"} - {kept}
    equal = {document_key("web", name) for name in ("page", "same") if kept in ("page", "same")}
    assert {row["key"] for row in rows if row["exact"]} == equal - {document_key("web", kept)}
    assert find(tmp_path / "minhash", shards, {"exact": False, "minhash": {}})[0] == told


def test_duplicates_of_duplicates_are_one_cluster(tmp_path):
    steps = [edited(prose(2), range(0, end)) for end in range(0, 120, 6)]  # each is like the next, the last not like the first
    ends = [{"first": " ".join(steps[0]), "last": " ".join(steps[-1])}]
    assert not any(find(tmp_path / "ends", ends, BOTH)[0].values())
    names = [f"step{number}" for number in range(len(steps))]
    chain = [{name: " ".join(words)} for name, words in zip(names, steps, strict=True)]
    told, rows = find(tmp_path / "chain", chain, BOTH)
    assert [name for name, duplicate in told.items() if not duplicate] == [first_of(*names)]
    assert {row["duplicate_of"] for row in rows} == {document_key("web", first_of(*names))}


def test_texts_without_a_word_or_with_few_are_like_their_equals_only(tmp_path):
    shards = [{"none": "", "dots": "...", "few": "four words are few"}, {"few too": "four words are few!", "none again": "", "dash": "-"}]
    told, _ = find(tmp_path / "both", shards, BOTH)
    assert {name for name, duplicate in told.items() if duplicate} == {"none", "none again"} - {first_of("none", "none again")}
    assert not any(find(tmp_path / "minhash", shards, {"exact": False, "minhash": {}})[0].values())


def test_shards_without_documents_and_sources_without_shards_have_no_duplicates(tmp_path):
    assert find(tmp_path / "empty", [{}, {"a": "one text"}, {}], BOTH) == ({"a": False}, [])
    assert find(tmp_path / "none", [], BOTH) == ({}, [])


def test_what_is_kept_does_not_depend_on_the_order_or_the_cut_of_the_shards(tmp_path):
    rng = random.Random(3)
    documents = {}
    for number in range(12):
        words = prose(number)
        for copy in range(rng.randrange(1, 5)):
            documents[f"{number}.{copy}"] = " ".join(edited(words, range(3 * copy, 3 * copy + 2)) if copy else words)
    expected = find(tmp_path / "one", [documents], BOTH)[0]
    assert sum(not duplicate for duplicate in expected.values()) == 12
    for turn in range(3):
        names = rng.sample(sorted(documents), len(documents))
        cuts = [0, *sorted(rng.sample(range(1, len(names)), 4)), len(names)]
        shards = [{name: documents[name] for name in names[a:b]} for a, b in itertools.pairwise(cuts)]
        assert find(tmp_path / f"{turn}", shards, BOTH)[0] == expected


def test_one_document_that_is_there_twice_is_kept_once(tmp_path):
    _, rows = find(tmp_path, [{"a": "text of it"}, {"a": "text of it"}], {"exact": True})  # as overlapping dumps have it
    assert len(rows) == 1 and rows[0]["key"] == rows[0]["duplicate_of"] and rows[0]["exact"]
    assert (rows[0]["shard"], rows[0]["row"]) == (1, 0)


@pytest.mark.parametrize("seed", range(6))
def test_clusters_are_the_connected_components(seed):
    """Against a search that walks from each member to its neighbours."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 400))
    pairs = rng.integers(0, count, (int(rng.integers(0, 2 * count)) // (1 + seed % 3), 2))
    if seed == 5:  # one chain, in the worst of orders
        pairs = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    first = np.arange(count)
    for some in np.array_split(pairs, 3):
        clusters.join(first, some[:, 0], some[:, 1])
    neighbours = {member: {member} for member in range(count)}
    for left, right in pairs.tolist():
        neighbours[left].add(right)
        neighbours[right].add(left)
    for member in range(count):
        reached, todo = set(), [member]
        while todo:
            now = todo.pop()
            if now not in reached:
                reached.add(now)
                todo += neighbours[now]
        assert first[member] == min(reached)


def test_asking_for_neither_is_refused():
    with pytest.raises(ValueError, match="set exact or minhash"):
        Deduplicate(exact=False)


# -- in a recipe -----------------------------------------------------------------------------------------------------------------------


def write(folder, number: int, documents: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": identifier, "text": text}) for identifier, text in documents.items()]
    (folder / f"{number}.jsonl").write_text("\n".join(lines))


def curate(folder, **source) -> Pipeline:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "store": str(folder / "store"),
            "scorers": {"lengths": {"scorer": {"type": "length"}}},
            "sources": {"web": {"format": "jsonl", "paths": [f"{folder}/raw"], "scores": {"lengths": {}}} | source},
            "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [f"{folder}/raw/0.jsonl"]}]},
        }
    )
    runner = make_runner(recipe)
    runner.engine = InProcess()
    pipeline = Pipeline(recipe, runner)
    pipeline.curate()
    return pipeline


NOT_TWICE = {"column": "duplicate", "equals": False}
EARLY = {
    "deduplicate": BOTH,
    "scores": {"lengths": {"where": [NOT_TWICE]}},
    "tokenize_where": {"filters": [NOT_TWICE]},
    "filters": [NOT_TWICE],
}
SAID_TWICE = " ".join(prose(7))


@pytest.fixture
def raw(tmp_path):
    for number in range(3):
        write(
            tmp_path / "raw", number, {f"{number}": f"text number {number}", f"twice {number}": SAID_TWICE} if number < 2 else {"2": "last"}
        )
    return tmp_path


def made(pipeline: Pipeline, step: str):
    return next(artifact for artifact in pipeline.runner.artifacts.values() if artifact.step == step)


def keys(pipeline: Pipeline, *steps: str) -> dict[str, list[str]]:
    return {step: made(pipeline, step).keys for step in steps}


def test_scores_tokens_and_selections_leave_duplicates_out_where_they_are_asked_to(raw):
    pipeline = curate(raw, **EARLY)
    assert made(pipeline, "score").books.counts["skipped"] == 1
    assert made(pipeline, "tokenize").books.dropped == {"duplicate": 1}
    assert made(pipeline, "select").books.kept == 4
    assert "5 documents, 1 duplicates in 1 clusters" in line_of(made(pipeline, "clusters"))

    late = curate(raw, deduplicate=BOTH, filters=[NOT_TWICE])  # everything is scored and encoded, and the decision is the filter's
    assert made(late, "tokenize").books.kept == 5
    assert made(late, "select").books.dropped == {"duplicate": 1}


def test_a_source_that_does_not_ask_has_no_such_steps_and_its_keys_do_not_change(raw):
    plain = curate(raw)
    assert {artifact.step for artifact in plain.runner.artifacts.values()} == {"ingest", "score", "tokenizer", "tokenize", "select"}
    unread = curate(raw, deduplicate=BOTH)
    assert keys(unread, "ingest", "score", "tokenize") == keys(plain, "ingest", "score", "tokenize")


def test_a_new_file_signs_itself_only_and_makes_nothing_anew_where_no_duplicate_comes_or_goes(raw):
    before = curate(raw, **EARLY)
    write(raw / "raw", 3, {"3": "nothing like the others", "also 3": "text number 3"})
    after = curate(raw, **EARLY)
    assert after.runner.made_shards | {"tokenizer": 0} == {
        step: 4 if step == "duplicates" else 1 for step in ("ingest", "signatures", "clusters", "duplicates", "score", "tokenize", "select")
    } | {"tokenizer": 0}
    assert made(after, "select").keys[:3] == made(before, "select").keys

    (raw / "raw" / "3.jsonl").unlink()
    kept = first_of("twice 0", "twice 1")
    name = next(f"copy {number}" for number in range(100) if first_of(kept, f"copy {number}") != kept)
    write(raw / "raw", 3, {name: SAID_TWICE})  # and now another of the cluster is kept
    moved = curate(raw, **EARLY)
    changed = [new != old for new, old in zip(made(moved, "select").keys, made(before, "select").keys, strict=False)]
    assert changed == [kept == "twice 0", kept == "twice 1", False]
    assert made(moved, "select").books.dropped == {"not tokenized: duplicate": 2}
