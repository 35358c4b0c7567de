"""What a model is asked is what the authors ask: their own requests are the oracle (allenai/OLMo-in-loop-evals)."""

import gzip
import json
import random
import re

import pytest

from tasks.errors import UserError
from tasks.olmes import data, requests
from tasks.olmes.definitions import TASKS, Problem, Question

FILES = {"csqa": "commonsense_qa", "socialiqa": "social_iqa"}


def theirs(samples, name: str) -> list[dict]:
    with gzip.open(samples / "eval" / "olmes_requests" / f"{name}__requests.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def asked(form) -> list[tuple[str, str]]:
    """(context, continuation) of every request, as lm-eval makes them of a form's rows."""
    pairs = []
    for row in form.rows:
        if "contexts" in row:
            pairs += [(context, f" {row['continuation']}") for context in row["contexts"]]
        else:
            pairs += [(row["context"], f" {choice}") for choice in row["choices"]]
    return pairs


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "rc") for name in ("arc_challenge", "arc_easy", "csqa", "openbookqa", "piqa", "socialiqa", "winogrande")),
        *((name, "mc") for name in ("arc_challenge", "csqa", "openbookqa", "winogrande")),
    ],
)
def test_multiple_choice_requests_are_those_of_olmes(samples, raw_file, name, form):
    task = TASKS[name]
    questions = data.read(task, [raw_file(samples / "eval" / "hf" / f"{FILES.get(name, name)}.validation.jsonl.gz")])
    made = {each.name: each for each in requests.forms(task, questions)}
    expected = theirs(samples, f"{name}__val_{form}_5shot")
    pairs = [(each["request"]["context"], each["request"]["continuation"]) for each in expected]
    ours = asked(made["cf" if form == "rc" else "mcf"])
    assert ours == pairs[: len(ours)]
    if len(pairs) > len(ours):  # the rest are their requests without a question, for PMI
        assert {context for context, _ in pairs[len(ours) :]} == {"Answer:"}
        if "unconditional" in made:
            assert asked(made["unconditional"]) == pairs[len(ours) :]
    golds = {(each["doc_id"], each["label"]) for each in expected if each["doc_id"] < len(questions)}
    assert golds == {(number, question.gold) for number, question in enumerate(questions)}


def test_the_subset_of_natural_questions_and_its_prompts_are_those_of_olmes(samples, raw_file):
    task = TASKS["naturalqs"]
    problems = data.read(task, [raw_file(samples / "eval" / "hf" / "nq_open.validation.jsonl.gz")])
    rows = data.counted(task, len(problems), task.sample)
    (form,) = requests.forms(task, [problems[row] for row in rows])
    expected = theirs(samples, "naturalqs_open__bpb_5shot")
    assert [row["context"] for row in form.rows] == [each["request"]["context"] for each in expected]
    assert [row["answers"] for row in form.rows] == [each["doc"]["answers"] for each in expected]


def test_the_prompts_of_squad_are_those_of_olmes(samples):
    for each in theirs(samples, "squad__bpb_5shot"):
        text = each["doc"]["query"].removeprefix("Title: ").removesuffix("\nAnswer:")
        (form,) = requests.forms(TASKS["squad"], [Problem(text, ["an answer"])])
        assert form.rows[0]["context"] == each["request"]["context"]


def test_the_letters_of_hellaswag_are_those_of_olmes(samples):
    expected = [each for each in theirs(samples, "hellaswag__mc_5shot") if each["request"]["continuation"] == " A"]
    asked_for = []
    for each in expected:
        text, choices = each["doc"]["query"].removesuffix("\nAnswer:").split("\nChoose the best continuation:\n A. ")
        asked_for.append(Question(text, re.split(r"\n [B-D]\. ", choices), each["doc"]["gold"]))
    letters = requests.forms(TASKS["hellaswag"], asked_for)[1]
    assert [row["context"] for row in letters.rows] == [each["request"]["context"] for each in expected]


def test_hellaswag_is_read_as_lm_eval_reads_it(write):
    datasets = pytest.importorskip("datasets")
    from lm_eval.tasks.hellaswag.utils import process_docs

    marks = ["[header] How to sit [title] Find a chair. [step] Look  around.", "A man sits [substeps]"]
    records = [
        {"activity_label": "Sitting", "ctx_a": context, "ctx_b": "he Then", "endings": [" sits [step] down.", "stands  up."], "label": "1"}
        for context in marks
    ]
    questions = data.read(TASKS["hellaswag"], [write(records)])
    expected = process_docs(datasets.Dataset.from_list(records))
    assert [(each.text, each.choices, each.gold) for each in questions] == [(e["query"], e["choices"], e["gold"]) for e in expected]
    cloze = requests.forms(TASKS["hellaswag"], questions, 1)[0]
    shot = "force you to act.  Sometimes extreme pain can distort our perception. Waiting before taking action will give your mind time to clear.\n\n"
    assert shot in cloze.rows[0]["context"] and cloze.rows[0]["context"].endswith(questions[0].text)


def test_gsm_star_and_the_held_out_rest_have_nothing_in_common_and_are_all():
    star, rest = (data.counted(TASKS[name], 1319, 200) for name in ("gsm_star", "gsm8k"))
    assert star == random.Random(1234).sample(range(1319), 200)
    assert not set(star) & set(rest)
    assert set(star) | set(rest) == set(range(1319))
    assert TASKS["gsm8k"].suite == "held_out"


def test_fewer_shots_are_the_first_of_them(write, arc):
    task = TASKS["arc_easy"]
    questions = data.read(task, [write(arc(3))])
    with_two, with_none = (requests.forms(task, questions, shots)[0].rows for shots in (2, 0))
    assert with_two[0]["context"].startswith("Question: Lichens are symbiotic")
    assert with_two[0]["context"].count("Question: ") == 3
    assert with_none[0]["context"] == "Question: How many apples are 0 and 0?\nAnswer:"


def test_shots_by_subject_are_the_subject_s_own_and_a_lack_of_them_is_told(write):
    def mmlu(subject: str, number: int) -> dict:
        return {"question": f"{subject} {number}?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": number % 4}

    task = TASKS["mmlu"]
    shots = data.read(task, [write([mmlu(subject, i) for i in range(6) for subject in ("high_school_physics", "law")], "dev.jsonl")])
    questions = data.read(task, [write([mmlu("law", 9)])])
    cloze, letters = requests.forms(task, questions, None, shots)
    start = "The following are multiple choice questions (with answers) about law.\n\nQuestion: law 0?\n"
    assert letters.rows[0]["context"].startswith(f"{start} A. w\n B. x\n C. y\n D. z\nAnswer: A\n\n")
    assert cloze.rows[0]["context"].startswith(f"{start}Answer: w\n\n")
    assert "physics" not in cloze.rows[0]["context"]
    assert cloze.rows[0]["context"].count("Question: ") == 6
    with pytest.raises(UserError, match=r"evaluation\.tasks\.mmlu: 2 shots of the subject 'law', but 5 are wanted"):
        requests.forms(task, questions, None, [shots[1], shots[3]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": {"label": ["A"]}}, "line 2: a record of the task arc_easy needs the field choices.text"),
        (None, "line 2: a record of the task arc_easy needs the field question"),
        ({"answerKey": "E"}, "line 2: cannot be read as a record of the task arc_easy .*mend the file"),
        ({"choices": {"text": ["", "b"], "label": ["A", "B"]}}, "line 2: .*a choice is empty or no text"),
    ],
)
def test_a_record_without_what_the_task_needs_is_named(write, arc, change, said):
    record = [1, 2] if change is None else {**arc(1)[0], **change}
    with pytest.raises(UserError, match=rf"records\.jsonl, {said}"):
        data.read(TASKS["arc_easy"], [write([*arc(1), record])])


def test_a_line_that_is_no_json_is_named(tmp_path, raw_file):
    (tmp_path / "broken.jsonl").write_text('{"question": "Why?"\n')
    with pytest.raises(UserError, match=r"broken\.jsonl, line 1: is no JSON"):
        data.read(TASKS["arc_easy"], [raw_file(tmp_path / "broken.jsonl")])
