"""Documents that a language model makes of others: paid for once, every rejected answer counted by its cause, and a source like any other."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml
from in_process import InProcess

from flows.pipeline import Pipeline, make_runner
from flows.plan import make_plan
from flows.recipe import Recipe
from flows.report import Gathering
from flows.summary import RunSummary
from flows.telling import line_of
from tasks import chat, rewrite, rewrite_checks
from tasks.asking import CUT
from tasks.documents import FILE, document_key
from tasks.errors import UserError
from tasks.look import samples
from tasks.report_page import render
from tasks.rewrite import Rewrite
from tasks.rewrite_checks import ECHO, NO_CONVERSATION, NO_FINAL_ANSWER, NO_PROBLEM, REPEATS, RESULT_LOST
from tasks.rewrite_prompts import STYLES, fill, instructions
from tasks.shards import input_files


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT_SECONDS", 0.01)


def name_of(number):
    return f"Ann has {number} boxes"


def question(number):
    return f"{name_of(number)} of 40 pens each and gives 3 pens to her friend Bo. How many pens are left?"


def program(number):
    return f"def left():\n    pens = {number} * 40\n    left = pens - 3\n    return left"


def conversation(name):
    """What a well-behaved model makes of a problem, from its beginning."""
    boxes = int(name.split()[2])
    return (
        f"**Student 1:** {name} with 40 pens in each, and 3 pens go to a friend. We are asked what remains.\n"
        f"**Student 2:** First all of them: {boxes} * 40 = {boxes * 40}.\n"
        "**Student 1:** Why is it a product?\n"
        f"**Student 2:** Each box has as many. Then {boxes * 40} - 3 = {boxes * 40 - 3}, so {boxes * 40 - 3:,} remain."
    )


class Lab:
    """TinyGSM's programs in files of ten, what is made of them, and the pipeline over both."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        server.document = lambda content: re.search(r"Ann has \d+ boxes", content)[0]
        server.rule = conversation
        self.rewrite = {
            "source": "tinygsm",
            "model": "writer-1",
            "prompt": "mind_two_students",
            "endpoint": {"url": server.url, "concurrency": 4, "timeout_seconds": 30, "retries": 3},
        }
        self.tinygsm = {
            "format": "jsonl",
            "paths": [f"{folder}/raw/*.jsonl"],
            "synthetic": {"type": "annotate_programs"},
            "fields": {"columns": {"number": {"field": "number", "type": "int"}}},
        }
        for first in (0, 10, 20):
            self.write(f"{first}.jsonl", range(first, first + 10))

    def write(self, name, numbers):
        path = self.folder / "raw" / name
        path.parent.mkdir(exist_ok=True)
        rows = [{"id": f"t{n}", "number": n, "question": question(n), "code": program(n)} for n in numbers]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, **more):
        return {
            "name": "lab",
            "store": str(self.folder / "store"),
            "sources": {"tinygsm": self.tinygsm, "mind": {"format": "rewrite", "rewrite": self.rewrite}},
            "tokenizer": {
                "kind": "bpe",
                "vocab_size": 300,
                "train_on": [{"format": "jsonl", "paths": [f"{self.folder}/raw/0.jsonl"], "fields": {"text": "question"}}],
            },
        } | more

    def pipeline(self, recipe=None, **options):
        config = Recipe.model_validate(recipe or self.recipe())
        runner = make_runner(config, **options)
        runner.engine = InProcess()
        return Pipeline(config, runner)

    def run(self, **options):
        """The rewritten source and its rows by id."""
        pipeline = self.pipeline(**options)
        made = pipeline.documents("mind")
        return made, {row["id"]: row for row in rows_of(pipeline, made, FILE)}


def rows_of(pipeline, made, name):
    return [row for ref in made.refs for row in pq.read_table(input_files(pipeline.store, ref)[name]).to_pylist()]


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A store in which the programs of every lab are tokenized: where files lie changes no key."""
    folder = tmp_path_factory.mktemp("tokenized")
    Lab(folder, SimpleNamespace(url="http://127.0.0.1:9/v1")).pipeline().selection("tinygsm")
    return folder / "store"


@pytest.fixture
def lab(tmp_path, server, tokenized):
    shutil.copytree(tokenized, tmp_path / "store")
    return Lab(tmp_path, server)


def fault(lab, **options):
    """The one sentence that the rewriting fails with."""
    with pytest.raises(UserError) as error:
        lab.run(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- documents -------------------------------------------------------------------------------------------------------------------------


def test_a_rewritten_source_is_scored_selected_and_mixed_like_any_other(lab, server):
    recipe = lab.recipe(
        scorers={"length": {"scorer": {"type": "length"}}},
        sequence_length=16,
        held_out={"share": 0.1},
        mixes={"maths": {"sources": {"tinygsm": {"repeat": 1}, "mind": {"repeat": 2}}}},
    )
    recipe["sources"]["mind"] |= {"scores": {"length": {}}, "filters": [{"column": "words", "min": 3}]}
    pipeline = lab.pipeline(recipe)
    pipeline.mix_all()
    made = pipeline.made["rewrite", "mind"]
    rows = rows_of(pipeline, made, FILE)
    assert [row["id"] for row in rows] == [f"t{n}" for n in range(30)]
    for number, row in enumerate(rows):
        assert (row["text"], row["source"], row["key"]) == (conversation(name_of(number)), "mind", document_key("mind", f"t{number}"))
        told = json.loads(row["metadata"])
        assert (told["rewritten_from"], told["model"], told["prompt"]) == ("tinygsm", "writer-1", "mind_two_students")
        assert told["result"] == str(number * 40 - 3)
    assert pipeline.made["select", "mind"].books.kept == 30
    plan = pq.read_table(input_files(pipeline.store, pipeline.made["mix", "maths"].refs[0])["plan.parquet"]).to_pylist()
    assert {row["source"] for row in plan} == {"tinygsm", "mind"}
    assert "30 documents, 30 asked about, 0 answers rejected" in re.sub(" kept,", "", line_of(made))
    data = Gathering(pipeline.store, pipeline.recipe, RunSummary.of(pipeline, "mix", "", 0.0)).data()
    flow = next(flow for flow in data.flows if flow.source == "mind")
    assert [stage.name for stage in flow.stages] == ["rewrite", "select"] and not flow.faults
    assert "made of tinygsm by writer-1: 30 asked about, 900 tokens asked, 60 answered" in render(data)


def test_only_what_is_selected_and_within_the_share_is_asked_about_and_a_smaller_share_is_a_part(lab, server):
    lab.tinygsm["filters"] = [{"column": "number", "min": 5}]
    lab.rewrite["share"] = 0.4
    made, fewer = lab.run()
    assert set(server.asked) == {name_of(int(name[1:])) for name in fewer} and 3 < len(fewer) < 20
    assert all(int(name[1:]) >= 5 for name in fewer)
    assert made.books.dropped == {"not selected": 5, "outside the share of 0.4": 25 - len(fewer)}
    assert (made.books.read, made.books.kept, made.books.counts["asked"]) == (30, len(fewer), len(fewer))
    lab.rewrite["share"] = 0.8
    _, more = lab.run()
    assert set(fewer) < set(more) and set(server.asked.values()) == {1}  # of the answers that were there, none was asked for again
    lab.write("0.jsonl", range(25))
    lab.write("10.jsonl", [29])
    lab.write("20.jsonl", [27, 26, 25, 28])
    assert set(lab.run()[1]) == set(more) and set(server.asked.values()) == {1}


def test_a_subset_may_be_rewritten(lab, server):
    lab.tinygsm["subsets"] = {"late": {"filters": [{"column": "number", "min": 28}]}}
    lab.rewrite["source"] = "tinygsm/late"
    made, rows = lab.run()
    assert set(rows) == {"t28", "t29"} and server.asked.total() == 2 and made.books.dropped == {"not selected": 28}


def test_one_more_file_makes_one_more_shard_and_asks_about_nothing_else(lab, server):
    before, _ = lab.run()
    lab.write("30.jsonl", range(30, 34))
    after, rows = lab.run()
    assert (after.made, len(rows), set(server.asked.values())) == (1, 34, {1}) and set(before.keys) < set(after.keys)


@pytest.mark.parametrize("style", STYLES)
def test_a_request_has_the_document_in_its_place_and_the_sampling(lab, server, style):
    config = Rewrite.model_validate(lab.rewrite | {"prompt": style, "max_characters": 30, "temperature": 0.5, "max_tokens": 7, "seed": 9})
    text = "a text with {answer} and {text} in braces, and a tail"
    first = config.style().requests[0]
    assert fill(first, text[:30]) == first.replace("{text}", text[:30]) and instructions(first).strip()
    assert config.body("x") == {
        "model": "writer-1",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 9,
    }
    lab.rewrite |= {"prompt": style, "max_characters": 30, "max_unusable": 1}
    lab.tinygsm["filters"] = [{"column": "number", "equals": 7}]
    server.document, server.rule = lambda content: content, lambda content: "Math problem: x"
    lab.run()
    assert server.bodies[0]["messages"][0]["content"] == first.replace("{text}", question(7)[:30])


PROBLEM = "Find the number of primes below the number of pens in this persona's boxes."
SOLUTION = "We count them one after the other, and there are 46.\n\nFinal Answer: The final answer is $46$. I hope it is correct."


def personas(lab, prompt="persona_hard"):
    """A lab whose documents are personas; the problem of each knows its own number."""
    lab.rewrite["prompt"] = prompt
    lab.tinygsm |= {"fields": {"text": "question"}}
    del lab.tinygsm["synthetic"]

    def answer(content):
        name, told = content.split(" / ")
        return SOLUTION if told == "solve" else f"**Math problem:** {name}. {PROBLEM}"

    def which(content):
        name = re.search(r"Ann has \d+ boxes", content)[0]
        return f"{name} / {'solve' if 'Provide solution' in content else 'pose'}"

    lab.server.document, lab.server.rule = which, answer


@pytest.mark.parametrize("prompt", ["persona_hard", "persona_grade_school"])
def test_a_persona_becomes_a_problem_and_its_solution(lab, server, prompt):
    personas(lab, prompt)
    made, rows = lab.run()
    assert {row["text"] for row in rows.values()} == {f"{name_of(n)}. {PROBLEM}\n\n{SOLUTION}" for n in range(30)}
    assert made.books.counts["asked"] == 30 and made.books.counts["prompt_tokens"] == 60 * 30
    solve = [body["messages"][0]["content"] for body in server.bodies if "Provide solution" in body["messages"][0]["content"]]
    assert len(solve) == 30 and all(f"Problem: {name_of(n)}. {PROBLEM}\n" in "".join(solve) for n in range(30))


def test_two_requests_in_ones_own_words_are_made_one_after_the_other(lab, server):
    lab.rewrite |= {"prompt": "Ask something about {text}", "then": "Answer {answer} from {text}"}
    lab.tinygsm["filters"] = [{"column": "number", "equals": 7}]
    server.document = lambda content: content
    server.rule = lambda content: "Why so many pens, namely 277?" if content.startswith("Ask") else "Since Ann likes pens."
    _, rows = lab.run()
    assert [row["text"] for row in rows.values()] == ["Why so many pens, namely 277?\n\nSince Ann likes pens."]
    (second,) = [content for content in server.asked if content.startswith("Answer")]
    assert second.startswith(f"Answer Why so many pens, namely 277? from {question(7)}")


# -- rejected answers ------------------------------------------------------------------------------------------------------------------

LOOP = "**A:** It is so.\n**B:** Yes, it is so.\n" + "**A:** Then we add the three and the four and get the seven that we had.\n" * 30


def test_every_answer_that_makes_no_document_is_counted_by_its_cause_and_kept_to_look_at(lab, server):
    lab.rewrite["max_unusable"] = 0.5
    lab.rewrite["endpoint"]["timeout_seconds"] = 1.5
    bad = {
        1: ("refuses", "the model refused"),
        2: ("says I'm sorry, but I can't help with rewriting this.", "the model refused"),
        3: ("is cut", CUT),
        4: (f"says {LOOP}", REPEATS),
        5: (f"says {fill(STYLES['mind_two_students'].requests[0], 'x')}", ECHO),
        6: (f"says {question(6)}", ECHO),
        7: ("says Ann had 277 pens left once she had given some of what was in her many boxes away.", NO_CONVERSATION),
        8: (f"says {conversation(name_of(9))}", RESULT_LOST),
        9: ("says  ", "the answer is empty"),
        10: ((400, "This model's maximum context length is 8192 tokens"), "the text is too long for the model"),
        11: ("garbage", "no chat completion came back"),
        12: ("no choices", "no chat completion came back"),
        13: (f"says {conversation(name_of(13)).replace('517', '5' * 6000)}", RESULT_LOST),
    }
    for number, (what, _) in bad.items():
        server.misbehave[name_of(number)] = [what] * 4  # as often as it is tried
    for number, what in enumerate([(429, "slow down", {"Retry-After": "0"}), 500, "hangs", "garbage", "resets"], 20):
        server.misbehave[name_of(number)] = [what]  # which passes
    pipeline = lab.pipeline()
    made = pipeline.documents("mind")
    assert {row["id"] for row in rows_of(pipeline, made, FILE)} == {f"t{n}" for n in range(30) if n not in bad}
    rejected = {row["id"]: row for row in rows_of(pipeline, made, rewrite.REJECTED)}
    assert {name: row["cause"] for name, row in rejected.items()} == {f"t{n}": cause for n, (_, cause) in bad.items()}
    assert rejected["t8"]["answer"] == conversation(name_of(9))
    made.books.balance("rewrite")
    causes = [cause for _, cause in bad.values()]
    assert made.books.dropped == {cause: causes.count(cause) for cause in causes}
    assert (made.books.read, made.books.kept, made.books.counts["unusable"]) == (30, 17, 13)
    manifest = next(each for each in pipeline.store.manifests() if each["id"] == made.id)
    shown = samples(pipeline.store, manifest, 2).entries
    assert {entry["fate"] for entry in shown} == {"kept", *causes} and sum(entry["fate"] == "kept" for entry in shown) == 2
    lost = samples(pipeline.store, manifest, 2, RESULT_LOST).entries
    assert {entry["id"]: entry["text"] for entry in lost}["t8"] == conversation(name_of(9))[:600]


def test_half_a_character_in_an_answer_is_mended(lab, server):
    server.rule = lambda name: conversation(name) + " \ud83d"
    made, rows = lab.run()
    assert made.books.kept == 30 and all(row["text"].endswith("remain. \ufffd") for row in rows.values())


def test_the_causes_of_a_second_request_are_told_apart(lab, server):
    personas(lab)
    lab.rewrite["max_unusable"] = 1
    server.misbehave |= {
        f"{name_of(1)} / pose": ["says Here is one. What is 2 + 2 if somebody gives two and another two?"],
        f"{name_of(2)} / solve": ["says It is 46, as one sees at once."],
        f"{name_of(3)} / solve": ["is cut"],
    }
    made, rows = lab.run()
    assert made.books.dropped == {
        NO_PROBLEM: 1,
        f"{NO_FINAL_ANSWER} (the second request)": 1,
        f"{CUT} (the second request)": 1,
    }
    assert len(rows) == 27 and server.asked[f"{name_of(1)} / solve"] == 0


def test_a_result_that_is_not_to_be_checked_may_be_lost(lab, server):
    lab.rewrite["check_result"] = False
    server.rule = lambda name: conversation(name_of(99))
    made, _ = lab.run()
    assert made.books.kept == 30


def test_more_rejected_answers_than_are_tolerated_end_it_long_before_the_last_and_nothing_is_lost(lab, server):
    lab.write("30.jsonl", range(30, 150))
    lab.rewrite["endpoint"]["concurrency"] = 1
    server.rule = lambda name: "Well, I would say that it is\nquite a lot."
    told = fault(lab)
    assert "sources.mind.rewrite: 20 answers of 20 make no document, more than max_unusable 0.2 allows" in told
    assert f"one of them: {NO_CONVERSATION} ('Well, I would say that it is quite a lot.'); take another prompt or model" in told
    assert 50 <= server.asked.total() <= 52  # the three files before it are too small for a verdict
    server.rule = conversation
    lab.rewrite["max_unusable"] = 1
    made, _ = lab.run()
    assert 50 <= made.books.dropped[NO_CONVERSATION] <= 52 and set(server.asked.values()) == {1}  # also those of the first try
    lab.rewrite["max_unusable"] = 0.01
    told = fault(lab)
    assert "answers of 150 make no document, more than max_unusable 0.01 allows" in told and server.asked.total() == 150


def test_a_small_shard_whose_answers_are_bad_by_chance_does_not_end_it(lab, server):
    lab.write("30.jsonl", [30])
    server.misbehave[name_of(30)] = ["is cut"]
    made, _ = lab.run()
    assert made.books.dropped == {CUT: 1}


# -- paid once -------------------------------------------------------------------------------------------------------------------------

RUN = """
import sys
from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from pathlib import Path
recipe = load(Path(sys.argv[1]))
Pipeline(recipe, make_runner(recipe)).documents("mind")
"""


def test_after_kill_9_no_request_that_was_answered_is_made_again(lab, server):
    personas(lab)
    lab.pipeline().selection("tinygsm")  # what comes before is no part of this
    file = lab.folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(lab.recipe() | {"where": {"engine": {"workers": 1}}}))
    server.hold_after = 31
    process = subprocess.Popen([sys.executable, "-c", RUN, str(file)])
    server.wait_held(4)  # every thread of it waits, so that what was answered is written down
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answered = set(server.answered)
    server.abandon()
    _, rows = lab.run()
    assert len(answered) >= 31 and any("solve" in name for name in answered) and {server.asked[name] for name in answered} == {1}
    assert len(server.answered) == 60 and set(server.answered.values()) == {1}
    assert {row["text"] for row in rows.values()} == {f"{name_of(n)}. {PROBLEM}\n\n{SOLUTION}" for n in range(30)}
    lab.run()
    assert set(server.answered.values()) == {1}


def test_equal_documents_are_asked_about_once(lab, server):
    row = {"question": question(3), "code": program(3)}
    lines = "".join(json.dumps({"id": f"s{n}", **row}) + "\n" for n in range(5))
    (lab.folder / "raw" / "same.jsonl").write_text(lines)
    made, rows = lab.run()
    assert server.asked[name_of(3)] == 1 and made.books.kept == 35 and rows["s4"]["text"] == rows["t3"]["text"]


def test_forced_it_is_asked_again(lab, server):
    first, _ = lab.run()
    server.rule = lambda name: conversation(name) + "\n**Student 1:** Quite so."
    again, rows = lab.run(only=("rewrite", None), force=True)
    assert set(server.asked.values()) == {2} and all(row["text"].endswith("Quite so.") for row in rows.values())
    assert first.keys == again.keys and first.refs != again.refs  # what is made of the texts is made anew


def test_an_endpoint_that_stays_away_ends_it_with_a_sentence_and_what_was_answered_stays(lab, server):
    lab.rewrite["endpoint"] |= {"concurrency": 1, "retries": 2}
    server.misbehave[name_of(24)] = [(503, "overloaded")] * 3
    told = fault(lab)
    done = {name for name, number in server.answered.items() if number}
    assert f"sources.mind.rewrite: the endpoint {server.url}/chat/completions failed 3 times in a row, last with: 503 overloaded" in told
    assert len(done) >= 20 and ("documents are answered and kept: run the same command again" in told or len(done) == 20)
    lab.rewrite["endpoint"] |= {"url": "http://127.0.0.1:9/v1", "retries": 1}
    assert "failed 2 times in a row, last with: ConnectError" in fault(lab)
    lab.rewrite["endpoint"]["url"] = server.url
    _, rows = lab.run()
    assert len(rows) == 30 and set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [(401, "Incorrect key", "refuses"), (404, "no such model", "404 no such model"), (429, "insufficient_quota", "answers no more calls")],
)
def test_what_cannot_pass_ends_it_at_once(lab, server, status, message, words):
    server.always = (status, message)
    assert words in fault(lab) and max(server.asked.values()) == 1


def test_the_shards_keys_know_the_request_and_nothing_of_the_endpoint(lab):
    def keys():
        return lab.pipeline(plan_only=True).documents("mind").keys

    lab.pipeline().selection("tinygsm")
    before = keys()
    lab.rewrite["endpoint"] = {"url": "https://elsewhere.example/v1", "concurrency": 99, "key_variable": "OTHER"}
    lab.rewrite["max_unusable"] = 0.5
    assert keys() == before
    for name, value in {
        "model": "b",
        "prompt": "{text}",
        "temperature": 0,
        "max_tokens": 9,
        "seed": 1,
        "check_result": False,
        "share": 0.5,
    }.items():
        was = dict(lab.rewrite)
        lab.rewrite[name] = value
        assert not set(keys()) & set(before), name
        lab.rewrite = was


# -- recipes and plans -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "nowhere"}, "sources.mind.rewrite.source names 'nowhere', which `sources` does not have"),
        ({"source": "tinygsm/none"}, "names 'tinygsm/none'"),
        ({"source": "mind"}, "sources.mind is made of itself by way of mind"),
        ({"prompt": "mind_two_student"}, "the prompt is none of mind_two_students, mind_problem_solving"),
        ({"prompt": "{text} {answer}"}, "the prompt has {answer}, but it is asked first"),
        ({"then": "{answer}?"}, "has its own second request or none"),
        ({"prompt": "{text}", "then": "?"}, "`then` has no {answer}"),
        ({"share": 0}, "greater than 0"),
    ],
)
def test_a_rewriting_that_cannot_be_meant_is_refused(lab, changes, words):
    lab.rewrite |= changes
    with pytest.raises(ValueError, match=re.escape(words)):
        Recipe.model_validate(lab.recipe())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paths": ["a"]}, "leave `paths` out"),
        ({"rewrite": None}, "give both or neither"),
        ({"format": "jsonl", "paths": ["a"]}, "give both or neither"),
        ({"mask_personal_data": True}, "set mask_personal_data on tinygsm"),
    ],
)
def test_a_source_that_is_half_rewritten_is_refused(lab, changes, words):
    recipe = lab.recipe()
    recipe["sources"]["mind"] |= changes
    with pytest.raises(ValueError, match=re.escape(words)):
        Recipe.model_validate(recipe)


def test_a_source_made_of_itself_through_what_scores_it_is_refused(lab):
    recipe = lab.recipe()
    recipe["annotations"] = {"topic": {"source": "mind", "model": "m", "prompt": "{text}", "labels": ["a", "b"]}}
    train = {"type": "fasttext", "annotation": {"name": "topic", "positive": ["a"]}}
    recipe["scorers"] = {"topic": {"scorer": {"type": "fasttext"}, "train": train}}
    Recipe.model_validate(recipe)
    recipe["sources"]["mind"]["scores"] = {"topic": {}}  # of itself is well: all its documents are there before it is scored
    Recipe.model_validate(recipe)
    recipe["sources"]["tinygsm"] = recipe["sources"]["tinygsm"] | {"scores": {"topic": {}}}
    with pytest.raises(ValueError, match=r"is made of itself by way of (mind, tinygsm|tinygsm, mind)"):
        Recipe.model_validate(recipe)


def test_examples_are_not_rewritten(lab):
    recipe = lab.recipe()
    recipe["tokenizer"]["train_on"] = [{"format": "rewrite"}]
    with pytest.raises(ValueError, match="examples are read from files"):
        Recipe.model_validate(recipe)


def test_a_plan_asks_nobody_and_what_is_made_of_a_source_that_cannot_be_listed_is_not_listed_either(lab, server):
    plan = make_plan(Recipe.model_validate(lab.recipe()), "curate", 0.0)
    rows = {(row["step"], row["name"]): row for row in plan["steps"]}
    assert rows["rewrite", "mind"]["to_run"] == 3 and rows["select", "mind"]["to_run"] == 3 and not server.asked
    lab.tinygsm["paths"] = ["http://127.0.0.1:9/a.jsonl"]
    recipe = lab.recipe()
    recipe["sources"]["again"] = {"format": "rewrite", "rewrite": lab.rewrite | {"source": "mind"}}
    plan = make_plan(Recipe.model_validate(recipe), "curate", 0.0)
    assert (
        list(plan["unlisted"]) == ["tinygsm", "mind", "again"]
        and "again is made of mind: mind is made of tinygsm" in plan["unlisted"]["again"]
    )


# -- checks ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "**Student 1:** So?\n**Student 2:** So.\n**Student 1:** And?\n**Student 2:** That is all.",
        "Ana: a\nBo Li: b\n\nAna: c\nBo Li: d",
        "### Élodie:\na\n### Mr. O'Neil:\nb\n### Élodie:\nc\n### Mr. O'Neil:\nd",
        "Ana: a\nBo: b\nCy: c\nAna: a\nBo: b",
    ],
)
def test_a_conversation_is_one_where_two_speak_twice(text):
    assert rewrite_checks.conversation(text) == (text, None)


@pytest.mark.parametrize(
    "text", ["Ana: a\nAna: b\nAna: c", "Ana: a\nBo: b", "Step 1: a\nStep 2: b", "A text.", "So the total is: 3\nwhich is: 4\nso it is: 5"]
)
def test_what_is_no_conversation_is_told(text):
    assert rewrite_checks.conversation(text) == ("", NO_CONVERSATION)


def test_what_a_model_says_before_it_begins_is_left_out():
    talk = "Ana: a\nBo: b\nAna: c\nBo: d"
    for before in ("Sure! Here is the conversation:\n\n", "**", "Certainly.\n", "Here's a conversation between two students:\n"):
        expected = before + talk if before == "**" else talk
        assert rewrite_checks.conversation(before + talk) == (expected, None)
    assert rewrite_checks.problem("Sure, here it is:\n\n**Math Problem:** What is 2?\nAnd 3?")[0] == "What is 2?\nAnd 3?"
    assert rewrite_checks.problem("Math problem:\n")[1] == NO_PROBLEM


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I cannot help with this request.", True),
        ("As an AI language model, I have no persona.", True),
        ("Unfortunately, I am unable to do so.", True),
        ("Student 1: I'm sorry, I can't follow. Say it again.", False),
        ("I can help: 3 and 4 are 7.", False),
        ("We cannot do it by halves, so we multiply.", False),
    ],
)
def test_a_refusal_in_words_is_one_only_at_the_beginning(answer, refused):
    found = rewrite_checks.rejection(chat.Reply(answer), "Say {text}", "else")
    assert found == ("the model refused" if refused else None)


@pytest.mark.parametrize(
    ("result", "answer", "there"),
    [
        ("1237", "so 1,237 are left", True),
        ("1237", "so $1{,}237$ are left", True),
        ("1237", "so 11237 or 12370 are left", False),
        ("18.0", "that is $18.", True),
        ("18.5", "that is $18.50", True),
        ("3.33333333333", "about 3.33 each", True),
        ("3.33333333333", "about 3.3 each, or 3", False),
        ("3.33333333333", "about 3.34 each", False),
        ("0.25", "which is 25%", True),
        ("0.25", "which is 25\\%", True),
        ("0.25", "which is 25 pens", False),
        ("-5", "she is short of 5", True),
        ("7", "seven", False),
    ],
)
def test_a_known_result_is_found_however_it_is_written(result, answer, there):
    assert rewrite_checks.has_result(answer, Fraction(result)) is there


@pytest.mark.parametrize(
    ("text", "metadata", "known"),
    [
        ("x", {"result": "12"}, 12),
        ("x", {"result": "0.5"}, Fraction(1, 2)),
        ("Left are 42. #### 42", {}, 42),
        ("Left are 42.\n#### 1,042", {}, 1042),
        ("It is $3.\n#### $3.50", {}, Fraction(7, 2)),
        ("#### 42 is no end", {}, None),
        ("x", {"result": "1e+16"}, 10**16),
        ("x", {"result": "1e999999999"}, None),
        ("x", {"result": "many"}, None),
        ("x", {}, None),
    ],
)
def test_the_result_of_a_document_is_that_of_its_program_or_stands_after_four_hashes(text, metadata, known):
    assert rewrite_checks.known_result(text, metadata) == known
