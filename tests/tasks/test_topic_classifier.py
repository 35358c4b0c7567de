"""From a language model's labels to a filter: trained on a part of them, measured on the rest, applied to another source."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import InProcess

from flows.pipeline import Pipeline, make_runner
from flows.plan import make_plan
from flows.recipe import Recipe
from flows.report import Gathering
from flows.summary import RunSummary
from flows.telling import line_of
from tasks import annotate, from_annotation, train_scorer
from tasks.from_annotation import FromAnnotation, TopicFromAnnotation
from tasks.measure import Hits, measure, measure_scale
from tasks.report_page import render
from tasks.scorers.edu_classifier import EduClassifier, EduClassifierConfig
from tasks.scorers.fasttext_quality import FastTextQuality, FastTextQualityConfig
from tasks.shards import Shard, ShardRef, input_files
from tasks.sources.base import RawFile
from tasks.store import Books
from tasks.train_scorer import FastTextTraining

MATHS = ["theorem", "proof", "lemma", "integral", "prime", "group", "field", "limit"]
COOKING = ["soup", "butter", "oven", "salt", "onion", "cake", "flour", "spoon"]


def page(seed):
    """A text of 30 words, of one kind in the main; one in ten is mixed evenly."""
    rng = random.Random(seed)
    share = 0.5 if seed % 10 == 9 else 0.9 if seed % 2 else 0.1
    return " ".join(rng.choice(MATHS if rng.random() < share else COOKING) for _ in range(30))


def is_math(text):
    return sum(word in MATHS for word in text.split()) >= 15


def write(path, seeds):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"id": str(seed), "text": page(seed)}) + "\n" for seed in seeds))


def recipe(folder, url):
    write(folder / "raw" / "pages.jsonl", range(400))
    write(folder / "raw" / "textbooks.jsonl", range(1000, 1100))
    source = {"format": "jsonl"}
    return {
        "name": "topics",
        "store": str(folder / "store"),
        "annotations": {
            "topic": {
                "source": "pages",
                "documents": 300,
                "model": "judge",
                "prompt": "<<{text}>>",
                "labels": ["math", "code", "other"],
                "endpoint": {"url": url, "concurrency": 8},
            }
        },
        "scorers": {
            "math": {
                "scorer": {"type": "fasttext", "column": "math"},
                "train": {
                    "type": "fasttext",
                    "dim": 8,
                    "bucket": 1000,
                    "lr": 0.5,
                    "annotation": {"name": "topic", "positive": ["math", "code"], "held_out": 0.25},
                },
            }
        },
        "sources": {
            "pages": source | {"paths": [f"{folder}/raw/pages.jsonl"], "tokenize_where": {"share": 0.01}},
            "textbooks": source
            | {
                "paths": [f"{folder}/raw/textbooks.jsonl"],
                "scores": {"math": {}},
                "filters": [{"column": "math", "min": 0.5}],
            },
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 320, "train_on": [{"format": "jsonl", "paths": [f"{folder}/raw/pages.jsonl"]}]},
    }


def run(config):
    config = Recipe.model_validate(config)
    runner = make_runner(config)
    runner.engine = InProcess()
    pipeline = Pipeline(config, runner)
    pipeline.curate()
    return pipeline


def only(pipeline, step, name):
    """The files of the one shard of an artifact."""
    return input_files(pipeline.store, pipeline.made[step, name].refs[0])


def parts(labelled, use):
    """What is trained on and what is held out of labelled texts."""
    shard = Shard({}, {"annotation": [labelled]}, None)
    return from_annotation.annotated(shard, use, Books())


def test_labels_train_a_filter_that_keeps_the_topic_of_another_source(tmp_path, server):
    server.rule = lambda text: ("math" if text.count("theorem") % 2 else "code") if is_math(text) else "other"
    pipeline = run(recipe(tmp_path, server.url))
    assert server.asked.total() == 300

    # the textbooks that are kept are those on mathematics, but for the evenly mixed
    selection = pq.read_table(only(pipeline, "select", "textbooks")["selection.parquet"])["keep"].to_pylist()
    clear = [(keep, is_math(page(seed))) for keep, seed in zip(selection, range(1000, 1100), strict=True) if seed % 10 != 9]
    assert np.mean([keep == wanted for keep, wanted in clear]) > 0.95

    # the table on the held-out part is what the model does on texts that it was not trained on, counted one by one
    labels = only(pipeline, "annotate", "topic")
    train, held_out = parts(labels, TopicFromAnnotation(name="topic", positive=["math", "code"], held_out=0.25))
    assert len(train) + len(held_out) == 300 and not {text for text, _ in train} & {text for text, _ in held_out}
    assert 45 < len(held_out) < 105
    files = only(pipeline, "train-scorer", "math")
    model = FastTextQuality(FastTextQualityConfig(), files["model.bin"])
    summary = json.loads(files["summary.json"].read_text())
    assert summary["__label__hq"] + summary["__label__cc"] == len(train)
    for hits in summary["held_out"]["hits"]:
        expected = {"true_positives": 0, "false_positives": 0, "false_negatives": 0, "true_negatives": 0}
        for text, _ in held_out:
            (score,) = model.score([text])["quality"]
            kind = "positives" if score >= hits["threshold"] else "negatives"
            right = (score >= hits["threshold"]) == is_math(text)
            expected[f"{'true' if right else 'false'}_{kind}"] += 1
        assert {name: hits[name] for name in expected} == expected

    # a line in the terminal, and a table in the report
    made = pipeline.made["train-scorer", "math"]
    main = Hits(**next(hits for hits in summary["held_out"]["hits"] if hits["threshold"] == 0.5))
    line = f"held out: precision {main.precision:.3f}, recall {main.recall:.3f}, F1 {main.f1:.3f}"
    assert line in line_of(made)
    assert made.books.dropped == {"held out": len(held_out)}
    data = Gathering(pipeline.store, pipeline.recipe, RunSummary.of(pipeline, "curate", "", 0.0)).data()
    assert type(data).from_dict(json.loads(json.dumps(data.to_dict()))) == data
    html = render(data)
    section = html[html.index('<section id="classifiers">') :].split("</section>")[0]
    assert f"trained on {len(train)} documents of topic, measured on {len(held_out)} others" in section
    assert f"{main.precision:.3f}" in section and "judge" in section and ">300<" in section

    # nothing is asked, trained or scored again
    assert not any(artifact.made for artifact in run(pipeline.recipe.model_dump()).runner.artifacts.values())
    assert server.asked.total() == 300


def test_labels_from_0_to_5_train_a_regressor_that_is_measured_on_the_held_out_part(tmp_path, server):
    server.rule = lambda text: str(round(5 * sum(word in MATHS for word in text.split()) / 30))
    config = recipe(tmp_path, server.url)
    config["annotations"]["topic"] |= {"documents": 120, "labels": [0, 1, 2, 3, 4, 5]}
    config["scorers"] = {
        "edu": {
            "scorer": {"type": "edu", "device": "cpu"},
            "train": {"type": "edu", "epochs": 3, "hidden_size": 32, "layers": 1, "max_tokens": 64, "annotation": {"name": "topic"}},
        }
    }
    config["sources"]["textbooks"] |= {"scores": {"edu": {}}, "filters": [{"column": "edu", "min": 3}]}
    pipeline = run(config)
    train, held_out = parts(only(pipeline, "annotate", "topic"), FromAnnotation(name="topic"))
    files = only(pipeline, "train-scorer", "edu")
    summary = json.loads(files["summary.json"].read_text())
    assert summary["examples"] == len(train) and len(held_out) >= 3
    scorer = EduClassifier(EduClassifierConfig(max_tokens=64, device="cpu"), files["summary.json"].parent / "model")
    scores = scorer.score([text for text, _ in held_out])["edu"]
    errors = [abs(float(score) - int(label)) for score, (_, label) in zip(scores, held_out, strict=True)]
    assert summary["held_out"]["mean_absolute_error"] == pytest.approx(sum(errors) / len(errors), abs=1e-5)
    at_3 = next(hits for hits in summary["held_out"]["hits"] if hits["threshold"] == 3)
    assert at_3["true_positives"] == sum(score >= 3 and int(label) >= 3 for score, (_, label) in zip(scores, held_out, strict=True))
    assert summary["held_out"]["main_threshold"] == 3


# -- parts and figures -----------------------------------------------------------------------------------------------------------------


def labelled(folder, rows):
    """An annotation's file, from (text, label)."""
    texts, labels = zip(*rows, strict=True)
    n = len(rows)
    columns = {"id": [str(i) for i in range(n)], "key": list(range(n)), "text": list(texts), "label": list(labels)}
    path = folder / annotate.FILE
    pq.write_table(pa.table(columns | {"answer": [""] * n, "cause": [None] * n}, schema=annotate.SCHEMA), path)
    return {annotate.FILE: path}


def test_equal_texts_are_on_one_side_and_rows_in_any_order_give_the_same_parts(tmp_path):
    rows = [(f"text {number % 40}", "math" if number % 2 else "other") for number in range(120)] + [("unusable", None)] * 3
    use = TopicFromAnnotation(name="t", positive=["math"], held_out=0.5)
    train, held_out = parts(labelled(tmp_path, rows), use)
    assert train and held_out and len(train) + len(held_out) == 120
    assert not {text for text, _ in train} & {text for text, _ in held_out}
    random.Random(0).shuffle(rows)
    assert parts(labelled(tmp_path, rows), use) == (train, held_out)
    more, fewer = (parts(labelled(tmp_path, rows), use.model_copy(update={"held_out": share}))[1] for share in (0.5, 0.2))
    assert set(fewer) < set(more)


def test_precision_recall_and_f1_are_those_counted_by_hand():
    scores = np.array([0.9, 0.6, 0.5, 0.4, np.nan, 0.1, 0.55])
    wanted = [True, False, True, True, True, False, False]
    found = measure(scores, wanted, [0.5, 0.95], main=0.5)
    half = found.at_main_threshold()
    assert half == Hits(0.5, true_positives=2, false_positives=2, false_negatives=2, true_negatives=1) and half.texts == 7
    assert (half.precision, half.recall, half.f1) == (2 / 4, 2 / 4, 0.5)
    assert found.hits[1] == Hits(0.95, 0, 0, 4, 3)
    assert (found.hits[1].precision, found.hits[1].recall, found.hits[1].f1) == (None, 0.0, 0.0)
    nothing = measure(np.zeros(0), [], [0.5], main=0.5).at_main_threshold()
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, None)
    scale = measure_scale(np.array([2.9, 3.0, 4.5, 1.0]), [3, 3, 5, 3], [3], main=3)
    assert scale.at_main_threshold() == Hits(3.0, 2, 0, 2, 0) and scale.mean_absolute_error == pytest.approx((0.1 + 0 + 0.5 + 2) / 4)


def test_a_scorer_trained_on_files_has_the_config_that_it_always_had():
    files = {"format": "jsonl", "paths": ["a"], "label": "hq"}
    task = train_scorer.task("q", FastTextTraining.model_validate({"examples": [files]}), {"examples:0": [RawFile("a", "a", 1, "x")]})
    assert set(task.config) == {"type", "examples", "dim", "epochs", "lr", "word_ngrams", "bucket"} and set(task.inputs) == {"examples:0"}


def test_the_name_of_an_annotation_is_no_part_of_what_is_trained_and_its_held_out_share_is():
    def key(**use):
        training = FastTextTraining.model_validate({"annotation": {"name": "t", "positive": ["a"], **use}})
        return train_scorer.task("q", training, {"annotation": [ShardRef("annotate", "k")]}).key(train_scorer.STEP)

    assert key(name="u") == key() != key(held_out=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "nothing"}, "which `annotations` does not have"),
        ({"positive": ["maths"]}, "some but not all of the labels math, code, other"),
        ({"positive": ["math", "code", "other"]}, "some but not all"),
        ({"held_out": 0}, "greater than 0"),
    ],
)
def test_a_training_that_does_not_fit_its_annotation_is_refused(tmp_path, change, words):
    config = recipe(tmp_path, "http://localhost/v1")
    config["scorers"]["math"]["train"]["annotation"] |= change
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate(config)


def test_examples_and_an_annotation_at_once_or_neither_is_refused(tmp_path):
    config = recipe(tmp_path, "http://localhost/v1")
    config["scorers"]["math"]["train"]["examples"] = [{"format": "jsonl", "paths": ["a"], "label": "hq"}]
    with pytest.raises(ValueError, match="give either examples or annotation"):
        Recipe.model_validate(config)
    del config["scorers"]["math"]["train"]["examples"], config["scorers"]["math"]["train"]["annotation"]
    with pytest.raises(ValueError, match="give either examples or annotation"):
        Recipe.model_validate(config)


def test_a_regressor_of_labels_that_are_no_numbers_is_refused(tmp_path):
    config = recipe(tmp_path, "http://localhost/v1")
    config["scorers"]["math"] = {"scorer": {"type": "edu"}, "train": {"type": "edu", "annotation": {"name": "topic"}}}
    with pytest.raises(ValueError, match="a regressor learns numbers from 0 to 5, but the labels are math, code, other"):
        Recipe.model_validate(config)


def test_a_plan_asks_nobody_and_a_source_whose_filter_needs_one_that_cannot_be_listed_is_not_listed_either(tmp_path):
    config = recipe(tmp_path, "http://127.0.0.1:9/v1")
    rows = {(row["step"], row["name"]): row for row in make_plan(Recipe.model_validate(config), "end_to_end", 0.0)["steps"]}
    assert rows["annotate", "topic"]["to_run"] == 1 and rows["score", "textbooks: math"]["to_run"] == 1
    config["sources"]["pages"]["paths"] = ["http://127.0.0.1:9/pages.jsonl"]
    plan = make_plan(Recipe.model_validate(config), "end_to_end", 0.0)
    assert set(plan["unlisted"]) == {"pages", "textbooks"} and "trained on pages" in plan["unlisted"]["textbooks"]
