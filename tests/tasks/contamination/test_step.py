"""What of each evaluation is in a source, in what is selected of it and in a mix, against a loop; and when it is found out anew."""

from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml


def check(told: dict, expected: dict) -> None:
    for evaluation, numbers in expected.items():
        found = told["evaluations"][evaluation]
        assert [example["share"] for example in found["examples"]] == numbers.pop("shares")
        assert {name: found[name] for name in numbers} == numbers


def test_what_is_inside_a_source_as_read_and_as_selected_is_that_of_a_loop(lab):
    told = lab.told(lab.pipeline, "flan")
    ids = [name for (source, _), documents in lab.documents.items() if source == "flan" for name, _ in documents]
    oracle, texts = lab.oracle, lab.texts()
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
    oracle, texts = lab.oracle, lab.texts()
    seen = 0
    for evaluation, numbers in lab.told(lab.pipeline, "maths")["read"]["evaluations"].items():
        for example in numbers["examples"]:
            name = f"{evaluation}: {example['instance']}"
            held = {document: oracle.contains(text).get(name, ()) for document, text in texts.items() if document.startswith("maths")}
            most = max(len(grams) for grams in held.values())
            assert len(held[example["document"]]) == most
            assert example["share_in_document"] == most / len(oracle.instances[name])
            assert example["text"] == dict(lab.evaluations[evaluation])[example["instance"]][:240] and example["source"] == "maths"
            seen += 1
    assert seen > 5


def test_a_mix_without_a_source_that_was_looked_at_is_not_told_to_be_clean(lab):
    assert ("contamination", "mix plain: decontamination") not in lab.pipeline.made
    assert ("contamination", "web: decontamination") not in lab.pipeline.made


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
