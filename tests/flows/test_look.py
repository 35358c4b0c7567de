"""A look at the data: samples by fate through the CLI, and in the report scores with their cuts and the documents on each side of them."""

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import tasks.engine
import tasks.shard
from flows.cli import app
from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.report import write_report
from flows.show import show_artifact
from flows.summary import RunSummary, summary_path
from tasks import look
from tasks.documents import document_key
from tasks.errors import UserError
from tasks.filters import Filter
from tasks.look import SEED, Look
from tasks.mix_plan import order
from tasks.report_scores import source_scores

EVIL = "<script>alert('x')</script>\x1b[31m[bold]"
FILES, ROWS = 3, 80
BROKEN = '{"id": "torn", "text": "cut o'


def raw_line(number: int) -> dict:
    rng = random.Random(number)
    return {
        "id": f"d{number}",
        "text": f"{EVIL} document {number} " + " ".join(rng.choices(["river", "stone", "wind"], k=rng.randint(1, 300))),
        "score": None if number % 17 == 0 else round(rng.lognormvariate(-3, 2), 6),
        "votes": rng.randint(0, 6),
        "lang": None if number % 11 == 0 else rng.choice(["en", "en", "de", "fr"]),
    }


LINES = {line["id"]: line for line in map(raw_line, range(FILES * ROWS))}


def fate(line: dict) -> str:
    """The recipe's rules once more, by hand."""
    score = line["score"]
    if score is None or score < 0.01:
        return f"not tokenized: score {'is null' if score is None else '< 0.01'}"
    if not 2 <= line["votes"] <= 5:
        return "votes < 2" if line["votes"] < 2 else "votes > 5"
    return "score < 0.05" if score < 0.05 else "kept"


def in_line(ids) -> list[str]:
    keys = {name: document_key("web", name) for name in ids}
    return sorted(ids, key=lambda name: int(order(np.array([keys[name]], np.uint64), SEED)[0]))


class Made:
    def __init__(self, recipe: Recipe, pipeline: Pipeline) -> None:
        self.recipe, self.store = recipe, pipeline.store
        self.manifests = {manifest["step"]: manifest for manifest in self.store.manifests() if "/" not in manifest["name"]}

    def show(self, step: str, *more: str):
        return CliRunner().invoke(app, ["show", self.manifests[step]["id"], "--store", self.store.url, *more])

    def samples(self, step: str, *more: str) -> list[dict]:
        return json.loads(self.show(step, "--json", *more).stdout)["samples"]

    def artifacts(self):
        return [(step, self.manifests[step]["shards"]) for step in ("ingest", "duplicates", "score", "tokenize", "select")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One source in three shards, curated; the workers are called in this process."""
    folder = tmp_path_factory.mktemp("look")
    for number in range(FILES):
        lines = [json.dumps(LINES[f"d{n}"]) for n in range(number * ROWS, (number + 1) * ROWS)]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, *([BROKEN] if number == 1 else [])]) + "\n")
    columns = {"score": {"field": "score", "type": "float"}, "votes": {"field": "votes", "type": "int"}}
    source = {
        "format": "jsonl",
        "paths": [f"{folder}/*.jsonl"],
        "fields": {"columns": {**columns, "language": {"field": "lang", "type": "string"}}},
        "max_quarantined": 0.5,
        "scores": {"length": {"where": [{"column": "votes", "min": 1}]}},
        "tokenize_where": {"filters": [{"column": "score", "min": 0.01}]},
        "filters": [{"column": "votes", "min": 2, "max": 5}, {"column": "score", "min": 0.05}],
        "deduplicate": {},
        "subsets": {"liked": {"filters": [{"column": "votes", "min": 4}]}},
    }
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "store": str(folder / "store"),
            "sources": {"web": source},
            "scorers": {"length": {"scorer": {"type": "length"}}},
            "tokenizer": {"kind": "bpe", "vocab_size": 320, "train_on": [{"format": "jsonl", "paths": [f"{folder}/0.jsonl"]}]},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.engine, "_run_all", lambda commands, *_: [tasks.shard.main(c[-2], int(c[-1])) for c in commands])
        patch.setattr("tasks.documents.ROW_GROUP_ROWS", 16)
        pipeline = Pipeline(recipe, make_runner(recipe))
        pipeline.curate()
        pipeline.store.replace(summary_path("small"), json.dumps(asdict(RunSummary.of(pipeline, "curate", "now", 1.0))))
    return Made(recipe, pipeline)


# -- olmoflow show -------------------------------------------------------------------------------------------------------------------------


def test_show_samples_each_fate_by_hash_of_the_key_with_what_the_filters_read(made):
    samples = made.samples("select", "--samples", "4")
    counts = Counter(fate(line) for line in LINES.values())
    assert len(counts) == 6
    for name in counts:
        ids = [entry["id"] for entry in samples if entry["fate"] == name]
        assert ids == in_line([key for key, line in LINES.items() if fate(line) == name])[:4]
    assert [entry["fate"] for entry in samples][:4] == ["kept"] * 4
    for entry in samples:
        line = LINES[entry["id"]]
        assert entry["source"] == "web" and entry["text"] == line["text"][:600]
        assert {name: entry["columns"][name] for name in ("score", "votes")} == {name: line[name] for name in ("score", "votes")}
        assert set(entry["columns"]) == {"score", "votes", "tokens", "repeated"}


def test_show_takes_one_reason_and_says_which_there_are_where_it_is_none(made):
    assert {entry["fate"] for entry in made.samples("select", "--reason", "votes > 5")} == {"votes > 5"}
    assert {entry["fate"] for entry in made.samples("select", "--reason", "not tokenized", "--samples", "1")} == {
        "not tokenized: score is null",
        "not tokenized: score < 0.01",
    }
    with pytest.raises(UserError, match=r"nothing in select-\w+ has the reason 'beauty'; there is kept, .*votes > 5"):
        show_artifact(Console(), made.store.url, made.manifests["select"]["id"], 3, "beauty", False)
    with pytest.raises(UserError, match="holds no documents"):
        show_artifact(Console(), made.store.url, "tokenizer", 3, "kept", False)


def test_show_prints_what_was_quarantined_with_its_file_line_and_cause(made):
    (entry,) = made.samples("ingest", "--reason", "quarantined")
    assert entry["file"].endswith("/1.jsonl") and entry["position"] == f"line {ROWS + 1}"
    assert entry["cause"].startswith("malformed JSON") and entry["text"] == BROKEN
    printed = made.show("ingest").stdout
    assert "malformed JSON" in printed and BROKEN in printed and "line 81" in printed


def test_show_tells_scored_from_unscored_documents_and_tokenized_from_others(made):
    scored = made.samples("score", "--samples", "300")
    assert len(scored) == len(LINES)
    assert all((entry["fate"] == "scored") == (LINES[entry["id"]]["votes"] >= 1) for entry in scored)
    assert all((entry["columns"]["characters"] is not None) == (entry["fate"] == "scored") for entry in scored)
    tokenized = made.samples("tokenize", "--samples", "300")
    assert all((entry["fate"] == "tokenized") == ((LINES[entry["id"]]["score"] or 0) >= 0.01) for entry in tokenized)


def test_show_prints_hostile_text_as_text(made):
    printed = made.show("select").stdout
    assert "\x1b" not in printed and "·[31m[bold]" in printed and "<script>" in printed


def test_show_without_samples_reads_no_document(made, monkeypatch):
    monkeypatch.setattr("flows.show.samples", lambda *_: pytest.fail("it looked"))
    assert made.show("select", "--samples", "0").exit_code == 0


def test_texts_are_read_from_the_row_groups_that_they_lie_in_and_no_others(made, monkeypatch):
    read = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda file, number, **more: read.append(number) or group(file, number, **more))
    made.samples("select", "--samples", "1", "--reason", "kept")
    assert len(read) == 1


# -- a large source ------------------------------------------------------------------------------------------------------------------------


def test_of_a_large_source_some_shards_stand_for_all_and_the_report_says_so(made, monkeypatch):
    everything, some = Look(made.store, made.artifacts()), Look(made.store, made.artifacts(), most=2 * ROWS)
    assert (everything.table.num_rows, len(everything.shards)) == (FILES * ROWS, FILES)
    assert (some.table.num_rows, len(some.shards), some.shards_in_all) == (2 * ROWS, 2, FILES)
    assert {shard.key for shard in some.shards} == set(sorted(shard.key for shard in everything.shards)[:2])
    monkeypatch.setattr(look.Look.__init__, "__defaults__", (None, ROWS))
    page = open_report(made)
    assert "from 1 of 3 shards" in page


def open_report(made) -> str:
    with open(write_report(made.recipe), encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


# -- cuts ----------------------------------------------------------------------------------------------------------------------------------

RULES = {
    "tokenize_where": [Filter(column="score", min=0.01), Filter(column="score", min=0.001)],
    "filters": [Filter(column="votes", min=2, max=5), Filter(column="score", min=0.01), Filter(column="score", min=2, rounded=True)],
}


def test_beside_each_cut_stand_the_twenty_documents_nearest_to_it_on_either_side(made):
    found = {cut.label: cut for cut in source_scores(made.store, "web", made.artifacts(), RULES).cuts}
    tests = {
        "score ≥ 0.01": ("score", 0.01, lambda value: value >= 0.01),
        "score ≥ 0.001": ("score", 0.001, lambda value: value >= 0.001),  # fewer than twenty fail it
        "votes ≥ 2": ("votes", 1.5, lambda value: value >= 2),
        "votes ≤ 5": ("votes", 5.5, lambda value: value <= 5),
        "round(score) ≥ 2": ("score", 1.5, lambda value: round(min(max(value, 0), 5)) >= 2),
    }
    assert set(found) == set(tests)
    assert found["score ≥ 0.01"].by == ["tokenize_where", "filters"]
    for label, (column, at, passes) in tests.items():
        cut = found[label]
        values = {name: line[column] for name, line in LINES.items() if line[column] is not None}
        passing, failing = ([name for name in values if passes(values[name]) is wanted] for wanted in (True, False))
        assert (cut.at, cut.passed, cut.failed) == (at, len(passing), len(failing))
        above, below = (failing, passing) if "≤" in label else (passing, failing)
        for side, names in ((cut.below, below), (cut.above, above)):
            nearest = sorted(in_line(names), key=lambda name: abs(values[name] - at))[:20]
            assert [(shown.document, shown.value) for shown in side] == [(name, values[name]) for name in nearest]
            for shown in side:
                assert shown.text == LINES[shown.document]["text"][:600]
                assert shown.reason == fate(LINES[shown.document]).replace("kept", "")


def test_the_report_draws_thresholds_lengths_and_languages_and_escapes_the_texts(made):
    page = open_report(made)
    section, subset = page[page.index('<section id="scores">') : page.index('<section id="files">')].split("<h3>web/liked")
    labels = re.findall(r'<text class="cut[^>]*>([^:<]*):', section)
    assert sorted(labels) == ["≤ 5", "≥ 0.01", "≥ 0.05", "≥ 1", "≥ 2"]
    assert section.count('<line class="cut"') == 5
    assert {re.sub("<.*", "", caption) for caption in re.findall(r"<figcaption>(.*)", section)} == {"score", "votes", "tokens", "language"}
    counts = Counter(line["lang"] for line in LINES.values() if line["lang"])
    for name, count in counts.items():
        assert re.search(rf'<span class="what">{name}</span>.*<span class="n">{count}</span>', section)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in section
    kept = sum(fate(line) == "kept" for line in LINES.values())
    assert f"{kept} of {len(LINES)} documents selected" in section
    assert "subsets.liked: " in subset and "≥ 4" in subset and "≥ 4" not in section


def test_a_report_is_written_though_the_documents_are_gone(made, tmp_path):
    shutil.copytree(made.store.root, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "shards" / "ingest")
    page = open_report(Made(made.recipe.model_copy(update={"store": str(tmp_path / "store")}), made))
    assert "No scores and cuts of web, web/liked: their documents or scores are not in the store any more." in page
