"""A language model's labels: right, paid for once, counted where they are unusable, and in a key that knows nothing of the endpoint."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml
from in_process import InProcess

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.telling import line_of
from tasks import annotate, annotate_sample, chat
from tasks.annotate import Annotation
from tasks.chat import Chat, Endpoint, Reply
from tasks.documents import DocumentWriter
from tasks.errors import UserError
from tasks.shards import Shard, ShardRef, input_files
from tasks.store import Store

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT_SECONDS", 0.01)


def text_of(number):
    return f"page {number} on a {'theorem' if number % 3 == 0 else 'recipe for soup'}"


class Lab:
    """A source of numbered texts, an annotation of it, and the pipeline over them."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.annotation = {
            "source": "pages",
            "documents": 1000,
            "model": "judge-1",
            "prompt": "Is it mathematics? <<{text}>> Say math or other.",
            "labels": ["math", "other"],
            "endpoint": {"url": server.url, "concurrency": 4, "timeout_seconds": 30, "retries": 3},
        }
        self.write("a.jsonl", range(30))

    def write(self, name, numbers):
        path = self.folder / "raw" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"id": str(n), "text": text_of(n)}) + "\n" for n in numbers))

    def recipe(self, **more):
        pages = {"format": "jsonl", "paths": [f"{self.folder}/raw/*.jsonl"]}
        return {
            "name": "lab",
            "store": str(self.folder / "store"),
            "sources": {"pages": pages},
            "annotations": {"topic": self.annotation},
        } | more

    def pipeline(self, **options):
        config = Recipe.model_validate(self.recipe())
        runner = make_runner(config, **options)
        runner.engine = InProcess()
        return Pipeline(config, runner)

    def run(self, **options):
        """The annotation and its rows by text."""
        pipeline = self.pipeline(**options)
        made = pipeline.annotation("topic")
        rows = pq.read_table(input_files(pipeline.store, made.refs[0])[annotate.FILE]).to_pylist()
        return made, {row["text"]: row for row in rows}

    def key(self):
        (key,) = self.pipeline(plan_only=True).annotation("topic").keys
        return key


@pytest.fixture
def lab(tmp_path, server):
    return Lab(tmp_path, server)


def fault(lab, **options):
    """The one sentence that the annotation fails with."""
    with pytest.raises(UserError) as error:
        lab.run(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- labels and books ------------------------------------------------------------------------------------------------------------------


def test_every_usable_answer_is_the_label_and_every_other_is_counted_by_its_cause(lab, server):
    lab.annotation["endpoint"]["timeout_seconds"] = 1.5
    lab.annotation["max_unusable"] = 0.5
    passing = [(429, "slow down", {"Retry-After": "0"}), 500, "hangs", "garbage", "no choices", "resets", 503]
    for number, what in enumerate(passing):
        server.misbehave[text_of(number)] = [what]
    for_good = {
        7: ("refuses", "the model refused"),
        8: ("says physics", "there is no label in the answer"),
        9: ("says  ", "the answer is empty"),
        10: ("is cut", "the answer is cut at max_tokens"),
        11: ((400, "This model's maximum context length is 8192 tokens"), "the text is too long for the model"),
        12: ("garbage", "no chat completion came back"),
    }
    for number, (what, _) in for_good.items():
        server.misbehave[text_of(number)] = [what] * 4  # as often as it is tried
    made, rows = lab.run()
    for number in range(30):
        row = rows[text_of(number)]
        if number in for_good:
            assert (row["label"], row["cause"]) == (None, for_good[number][1])
        else:
            assert (row["label"], row["cause"]) == (server.rule(text_of(number)), None)
    assert len(rows) == 30
    books = made.books
    assert (books.read, books.kept) == (30, 24) and books.counts["unusable"] == 6 and books.counts["asked"] == 30
    assert books.dropped == {cause: 1 for _, cause in for_good.values()}
    labels = Counter(server.rule(text_of(number)) for number in range(30) if number not in for_good)
    assert {name: number for name, number in books.counts.items() if name.startswith("label ")} == {
        f"label {k}": v for k, v in labels.items()
    }
    assert all(server.asked[text_of(number)] >= 2 for number in range(len(passing)))
    assert "30 asked about, 6 answers unusable" in line_of(made)


def test_a_request_has_the_prompt_with_the_beginning_of_the_document_and_the_sampling(lab, server):
    lab.annotation |= {
        "max_characters": 6,
        "temperature": 0.5,
        "max_tokens": 3,
        "seed": 9,
        "prompt": 'As {"label": ...}: <<{text}>> {text}',
    }
    lab.run()
    shown = text_of(11)[:6]
    (body,) = [body for body in server.bodies if f"<<{shown}>>" in body["messages"][0]["content"]][:1]
    assert body == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": f'As {{"label": ...}}: <<{shown}>> {shown}'}],
        "temperature": 0.5,
        "max_tokens": 3,
        "seed": 9,
    }


def test_equal_texts_are_asked_about_once_and_each_is_labelled(lab, server):
    (lab.folder / "raw" / "same.jsonl").write_text("".join(json.dumps({"id": f"s{n}", "text": text_of(3)}) + "\n" for n in range(5)))
    made, _ = lab.run()
    assert server.asked[text_of(3)] == 1 and made.books.kept == 35


SCALE = {"labels": [0, 1, 2, 3, 4, 5], "parse": r"Educational score:\s*(\d+(?:\.\d+)?)"}


@pytest.mark.parametrize(
    ("settings", "answer", "label", "cause"),
    [
        ({}, " **Math.**\n", "math", None),
        ({}, '"other"', "other", None),
        ({}, "math or other", None, "no label in the answer"),
        (SCALE, "It teaches well. Educational score: 4", "4", None),
        (SCALE, "Educational score: 3 ... so Educational score:  3.", "3", None),
        (SCALE, "Educational score: 3 ... no, Educational score: 2", None, "several labels"),
        (SCALE, "Educational score: 3.5", None, "none of the list"),
        (SCALE, "Educational score: 7", None, "none of the list"),
        (SCALE, "I give it 4.", None, "no label in the answer"),
        ({"parse": r'"label":\s*"(\w+)"'}, '{"label": "other"}', "other", None),
    ],
)
def test_an_answer_is_read_as_the_recipe_says(settings, answer, label, cause):
    config = Annotation.model_validate({"source": "s", "model": "m", "prompt": "{text}", "labels": ["math", "other"], **settings})
    found, why = config.read(Reply(answer))
    assert found == label
    assert why is None if cause is None else cause in why


def test_a_label_in_an_answer_that_was_cut_counts():
    config = Annotation(source="s", model="m", prompt="{text}", labels=["math", "other"])
    assert config.read(Reply("math", cut=True)) == ("math", None)


# -- which documents -------------------------------------------------------------------------------------------------------------------


def test_the_same_documents_are_chosen_whatever_the_files_and_fewer_are_a_part_of_more(lab, tmp_path, server):
    lab.annotation["documents"] = 12
    _, one_file = lab.run()
    for name, numbers in (("a.jsonl", range(20, 30)), ("b.jsonl", range(5)), ("c.jsonl", range(19, 4, -1))):
        lab.write(name, numbers)
    made, three_files = lab.run()
    assert set(three_files) == set(one_file) and len(one_file) == 12
    assert made.books.read == 10 + 5 + 12 and made.books.dropped == {"not first in line": 15}  # of the 15 in c.jsonl 12 could be first
    lab.annotation["documents"] = 5
    _, fewer = lab.run()
    assert len(fewer) == 5 and set(fewer) < set(one_file)
    assert server.asked.total() == 12


def test_halving_a_large_shard_by_hash_leaves_all_that_are_first_in_line(tmp_path):
    writer = DocumentWriter(tmp_path / "documents.parquet", "pages", {})
    for number in range(3000):
        writer.write(str(number), text_of(number), None, None, {}, {})
        if number % 700 == 0:
            writer.flush()
    writer.close()

    def sample(wanted, halved):
        folder = tmp_path / f"{wanted}-{halved}"
        folder.mkdir(exist_ok=True)
        config = annotate_sample.task("x", wanted, halved, ShardRef("ingest", "x")).config
        books = annotate_sample.run(Shard(config, {"documents": [{"documents.parquet": tmp_path / "documents.parquet"}]}, folder))
        books.balance("sample")
        return pq.read_table(folder / annotate_sample.FILE).to_pylist()

    halved = annotate_sample.halvings(5, 3000)
    assert halved == 6  # 3000 / (5 + 6 sqrt 5 + 10) = 105.7, and 2^6 is the largest power of two below it
    first = sample(5, 0)
    assert sample(3000, halved)[:5] == first
    # whoever changes these needs another version of the step: other documents would be paid for
    assert ([row["id"] for row in first], annotate_sample.STEP.version) == (["15", "1586", "431", "73", "1596"], 1)
    assert len(sample(3000, halved)) == pytest.approx(3000 / 64, abs=30)
    everything = sample(3000, 0)
    assert everything == sorted(everything, key=lambda row: row["place"]) and {row["text"] for row in everything} == set(
        map(text_of, range(3000))
    )
    assert all(row["text"] == text_of(int(row["id"])) for row in everything)
    assert annotate_sample.halvings(10_000, 100) == annotate_sample.halvings(10, 0) == 0


# -- paid once -------------------------------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_asked_after_a_file_was_added_or_the_answers_are_read_in_another_way(lab, server):
    lab.run()
    lab.run()
    lab.write("b.jsonl", range(30, 40))
    made, rows = lab.run()
    lab.annotation |= {"labels": ["math", "other", "neither"], "parse": r"(\w+)"}
    again, _ = lab.run()
    assert len(rows) == 40 and again.keys != made.keys
    assert set(server.asked.values()) == {1} and len(server.asked) == 40
    lab.annotation["prompt"] = "Other words: <<{text}>>"
    lab.run()
    assert set(server.asked.values()) == {2}


def test_forced_it_is_asked_again(lab, server):
    first, _ = lab.run()
    server.rule = lambda text: "other"
    again, rows = lab.run(only=("annotate", None), force=True)
    assert set(server.asked.values()) == {2} and {row["label"] for row in rows.values()} == {"other"}
    assert first.keys == again.keys and first.refs != again.refs  # what is trained on the labels is made anew


RUN = """
import sys, yaml
from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from pathlib import Path
recipe = load(Path(sys.argv[1]))
Pipeline(recipe, make_runner(recipe)).annotation("topic")
"""


def test_after_kill_9_no_document_that_was_answered_is_asked_about_again(lab, server):
    file = lab.folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(lab.recipe()))
    server.hold_after = 13
    process = subprocess.Popen([sys.executable, "-c", RUN, str(file)])
    server.wait_held(4)  # every thread of it waits, so that what was answered is written down
    assert server.held == 4 == lab.annotation["endpoint"]["concurrency"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answered = set(server.answered)
    server.abandon()
    assert subprocess.run([sys.executable, "-c", RUN, str(file)], check=False).returncode == 0
    assert len(answered) >= 13 and {server.asked[text] for text in answered} == {1}
    assert len(server.answered) == 30 and set(server.answered.values()) == {1}
    _, rows = lab.run()
    assert {text: row["label"] for text, row in rows.items()} == {text_of(n): server.rule(text_of(n)) for n in range(30)}
    assert set(server.answered.values()) == {1}


def test_an_endpoint_that_stays_away_ends_it_with_a_sentence_and_what_was_answered_stays(lab, server):
    lab.annotation["endpoint"] |= {"concurrency": 1, "retries": 2}
    server.misbehave[text_of(4)] = [(503, "overloaded")] * 3
    told = fault(lab)
    done = server.answered.total()
    assert "annotations.topic" in told and server.url in told and "3 times in a row, last with: 503 overloaded" in told
    assert server.asked[text_of(4)] == 3 and 0 <= done < 30
    assert done == 0 or f"; {done} of 30 documents are answered and kept: run the same command again" in told
    _, rows = lab.run()
    assert len(rows) == 30 and set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (
            401,
            "Incorrect API key provided: KEY",
            ["refuses the key in the environment variable LAB_KEY", "Incorrect API key provided: [key]"],
        ),
        (403, "no", ["refuses the key"]),
        (404, "The model judge-1 does not exist", ["404 The model judge-1 does not exist", "endpoint.url, model"]),
        (400, "Unsupported parameter: max_tokens", ["400 Unsupported parameter: max_tokens"]),
        (429, "insufficient_quota", ["answers no more calls"]),
        (302, "elsewhere", ["302"]),
    ],
)
def test_what_cannot_pass_ends_it_at_once(lab, server, monkeypatch, status, message, words):
    monkeypatch.setenv("LAB_KEY", SECRET)
    lab.annotation["endpoint"]["key_variable"] = "LAB_KEY"
    server.always = (status, message)
    told = fault(lab)
    assert all(word in told for word in words) and SECRET not in told
    assert server.asked.total() <= 4 and max(server.asked.values()) == 1


def test_no_server_at_all_is_told(lab):
    lab.annotation["endpoint"] |= {"url": "http://127.0.0.1:9/v1", "retries": 1}
    assert "2 times in a row, last with: ConnectError" in fault(lab)


def test_waits_double_up_to_a_limit_and_retry_after_goes_before_them(server, monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT_SECONDS", 1.0)
    asked = Chat(Endpoint(url=server.url, retries=8))
    waits = []
    monkeypatch.setattr(asked.stopped, "wait", lambda seconds: waits.append(seconds))
    server.misbehave["a"] = [(429, "", {"Retry-After": "7"}), (503, "", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), *[500] * 6]
    assert asked.ask({"messages": [{"content": "<<a>>"}]}).text == "other"
    assert waits[:2] == [7.0, 0.0]
    for tried, seconds in enumerate(waits[2:], start=3):
        longest = min(60, 2 ** (tried - 1))
        assert longest / 2 <= seconds <= longest


# -- too many unusable -----------------------------------------------------------------------------------------------------------------


def test_more_unusable_answers_than_are_tolerated_end_it_as_soon_as_that_is_certain(lab, server):
    lab.annotation |= {"max_unusable": 0.1}
    lab.annotation["endpoint"]["concurrency"] = 1
    server.rule = lambda text: "I cannot say,\nsorry"
    told = fault(lab)
    assert "4 answers of 30 have no label, more than max_unusable 0.1 allows" in told and "'I cannot say, sorry'" in told
    assert "again to go on" not in told
    assert server.asked.total() <= 6  # the fourth ends it; one or two may be under way
    lab.annotation["max_unusable"] = 1
    made, _ = lab.run()
    assert made.books.dropped == {"there is no label in the answer": 30} and set(server.asked.values()) == {1}


def test_a_limit_that_is_tightened_later_fails_what_is_made_without_asking(lab, server):
    server.misbehave[text_of(1)] = ["says physics"]
    before, _ = lab.run()
    lab.annotation["max_unusable"] = 0.01
    told = fault(lab)
    assert "1 answers of 30" in told and "'physics'" in told and lab.key() == before.keys[0]
    assert server.asked.total() == 30


# -- the key of the shard, and the key of the endpoint ---------------------------------------------------------------------------------


def test_the_shards_key_knows_the_question_and_nothing_of_the_endpoint(lab):
    lab.run()
    key = lab.key()
    lab.annotation["endpoint"] = {"url": "https://elsewhere.example/v1", "concurrency": 99, "retries": 0, "key_variable": "OTHER"}
    lab.annotation["max_unusable"] = 0.5
    assert lab.key() == key
    for name, value in (
        ("model", "judge-2"),
        ("labels", ["math", "no"]),
        ("temperature", 1),
        ("seed", 3),
        ("prompt", "{text}"),
        ("parse", "(a)"),
    ):
        before = dict(lab.annotation)
        lab.annotation[name] = value
        assert lab.key() != key, name
        lab.annotation = before


def test_the_api_key_is_sent_and_written_nowhere(lab, server, monkeypatch):
    monkeypatch.setenv("LAB_KEY", SECRET)
    lab.annotation |= {"max_unusable": 1}
    lab.annotation["endpoint"]["key_variable"] = "LAB_KEY"
    server.misbehave[text_of(0)] = ["says my key is KEY"]
    _, rows = lab.run()
    assert server.keys == {f"Bearer {SECRET}"}
    assert rows[text_of(0)]["answer"] == "my key is [key]"
    files = [path for path in (lab.folder / "store").rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        content = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        assert SECRET not in content, path


def test_a_key_variable_that_is_not_set_is_named(lab, server, monkeypatch):
    monkeypatch.delenv("LAB_KEY", raising=False)
    lab.annotation["endpoint"]["key_variable"] = "LAB_KEY"
    assert "the environment variable LAB_KEY, which should hold the endpoint's API key, is not set" in fault(lab)
    assert not server.asked


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("source", "nowhere", "which `sources` does not have"),
        ("prompt", "no place", "the prompt has no {text}"),
        ("labels", [True, False], "put such labels in quotes"),
        ("labels", ["math", "Math."], "a label stands twice"),
        ("parse", "(", "parse is no regular expression"),
        ("parse", "a", "parse has 0 groups"),
        ("endpoint", {"url": "http://me:secret@host/v1"}, "match pattern"),
        ("endpoint", {"key_variable": SECRET}, "match pattern"),
    ],
)
def test_an_annotation_that_cannot_be_asked_is_refused(lab, name, value, words):
    lab.annotation[name] = value
    with pytest.raises(ValueError, match=re.escape(words)):
        Recipe.model_validate(lab.recipe())


def test_a_store_that_is_not_a_folder_keeps_answers_too(lab, server):
    pipeline = lab.pipeline()
    pipeline.annotation("topic")
    files = [input_files(pipeline.store, ref) for ref in pipeline.made["annotate-sample", "topic"].refs]
    task = annotate.task("topic", pipeline.recipe.annotations["topic"], [], Store("memory://annotate-test"), afresh=False)
    for folder in (lab.folder / "one", lab.folder / "two"):
        folder.mkdir()
        annotate.run(Shard(task.config, {"sample": files}, folder, "topic", task.hints)).balance("annotate")
    assert set(server.asked.values()) == {2}  # once for the folder, once for the other store
