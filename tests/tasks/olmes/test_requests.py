"""What a model is asked is what the authors ask: their own requests are the oracle (allenai/OLMo-in-loop-evals)."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest
import yaml

from tasks.errors import UserError
from tasks.olmes import data, requests
from tasks.olmes.definitions import TASKS, Problem, Question
from tasks.sources.base import RawFile

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
    made = requests.forms(task, [problems[row] for row in rows])
    expected = theirs(samples, "naturalqs_open__bpb_5shot")
    assert [row["context"] for row in made[0].rows] == [each["request"]["context"] for each in expected]
    assert [row["answers"] for row in made[0].rows] == [each["doc"]["answers"] for each in expected]
    golds = requests.gold_pairs({form.name: form for form in made})
    assert [(context, f" {gold}") for context, gold, _ in golds] == [
        (each["request"]["context"], each["request"]["continuation"]) for each in expected
    ]


def test_the_prompts_of_squad_are_those_of_olmes(samples):
    for each in theirs(samples, "squad__bpb_5shot"):
        text = each["doc"]["query"].removeprefix("Title: ").removesuffix("\nAnswer:")
        form, gold = requests.forms(TASKS["squad"], [Problem(text, ["an answer"])])
        assert form.rows[0]["context"] == gold.rows[0]["context"] == each["request"]["context"]


def test_the_prompts_of_drop_are_those_of_olmes_and_its_answers_count_as_pieces(samples, write):
    expected = theirs(samples, "drop__bpb_5shot")
    no_date = {"day": "", "month": "", "year": ""}
    records = []
    for each in expected:
        first, *others = each["doc"]["answers"]
        validated = {"number": [""] * len(others), "date": [no_date] * len(others), "spans": others}
        answer = {"number": "", "date": no_date, "spans": first}
        records.append({**{key: each["doc"][key] for key in ("passage", "question")}, "answer": answer, "validated_answers": validated})
    asked = data.read(TASKS["drop"], [write(records)])
    made = {form.name: form for form in requests.forms(TASKS["drop"], asked)}
    assert [row["context"] for row in made["generate"].rows] == [each["request"]["context"] for each in expected]
    assert [row["spans"] for row in made["generate"].rows] == [each["doc"]["answers"] for each in expected]
    alone = [(pair[1], each) for pair, each in zip(requests.gold_pairs(made), expected, strict=True) if len(each["doc"]["answers"][0]) == 1]
    assert [gold for gold, _ in alone] == [each["doc"]["answers"][0][0] for _, each in alone]


def test_drop_s_numbers_and_dates_are_answers(write):
    empty = {"day": "", "month": "", "year": ""}
    answer = {"number": "", "date": {**empty, "month": "May", "year": "1345"}, "spans": []}
    validated = {"number": ["3", ""], "date": [empty, empty], "spans": [[], []]}
    (problem,) = data.read(TASKS["drop"], [write([{"passage": "p", "question": "q?", "answer": answer, "validated_answers": validated}])])
    assert (problem.spans, problem.gold) == ([["May 1345"], ["3"]], "May 1345")


def test_a_conversation_of_coqa_is_a_problem_for_each_of_its_questions(write):
    record = {
        "story": "A cat sat.",
        "questions": {"input_text": ["Who?", "Did what?"]},
        "answers": {"input_text": ["a cat", "sat"]},
        "additional_answers": {"0": {"input_text": ["the cat", "it sat"]}, "1": {"input_text": ["a cat", "sat"]}},
    }
    first, second = data.read(TASKS["coqa"], [write([record])])
    assert (first.answers, second.answers) == (["a cat", "the cat"], ["sat", "it sat"])
    form = requests.forms(TASKS["coqa"], [first, second])[0]
    assert form.rows[0]["context"] == "Passage: A cat sat.\n\nQuestion: Who?\nAnswer:"
    assert form.rows[1]["context"] == "Passage: A cat sat.\n\nQuestion: Who?\nAnswer: a cat\n\nQuestion: Did what?\nAnswer:"
    without = {**record, "questions": ["Who?", "Did what?"], "additional_answers": None}  # as the authors' files have it
    assert [each.text for each in data.read(TASKS["coqa"], [write([without], "more.jsonl")])] == [first.text, second.text]


def test_boolq_asks_real_records_with_the_shots_that_its_files_give(samples, raw_file, write):
    task, file = TASKS["boolq"], raw_file(samples / "eval" / "hf" / "boolq.validation.jsonl.gz")
    questions = data.read(task, [file])
    assert len(questions) == 3270
    cloze, letters = requests.forms(task, questions[10:12], None, questions)
    assert [row["context"].count("\nQuestion: ") for row in cloze.rows] == [6, 6]
    shown, asked = cloze.rows[0]["context"].split(f"\n\n{questions[4].text}\nAnswer: ")
    assert shown.startswith(f"{questions[0].text}\nAnswer: no\n\n{questions[1].text}\nAnswer: yes\n\n")
    assert asked.endswith(f"{questions[10].text}\nAnswer:") and asked.endswith("?\nAnswer:")
    assert letters.rows[0]["context"].endswith(f"{questions[10].text}\n A. yes\n B. no\nAnswer:")


def test_the_authors_own_choice_of_shots_is_found_by_its_keys_and_nothing_is_its_own_shot(write):
    records = [{"passage": "p", "question": f"q{i}", "label": i % 2, "idx": i} for i in range(13)]
    task = TASKS["boolq"]
    questions = data.read(task, [write(records)])
    found = [row["context"] for row in requests.forms(task, questions[12:] + questions[:1], None, questions)[0].rows]
    assert re.findall(r"Question: q(\d+)", found[0]) == ["0", "1", "7", "11", "3", "12"]
    assert re.findall(r"Question: q(\d+)", found[1]) == ["1", "7", "11", "3", "2", "0"]
    first = requests.forms(task, questions[1:2], 3, questions[:9])[0].rows[0]["context"]  # 11 is not there: the first ones
    assert re.findall(r"Question: q(\d+)", first) == ["0", "2", "3", "1"]


def test_exams_of_agieval_are_told_by_their_paths(samples, raw_file):
    task = TASKS["agieval"]
    file = raw_file(samples / "eval" / "aqua_rat.agieval.jsonl.gz")
    questions = data.read(task, [file], [data.subject_of(task, file)])
    assert {each.subject for each in questions} == {"aqua-rat"}
    (letters,) = requests.forms(task, questions[:2], None, questions)
    assert letters.rows[1]["context"].startswith(f"{questions[0].text}\n A. {questions[0].choices[0]}\n B. ")
    assert letters.rows[1]["choices"] == list("ABCDE")
    assert "(A)" not in letters.rows[1]["context"] and letters.rows[1]["subject"] == "aqua-rat"
    other = raw_file(samples / "math" / "gsm8k" / "test.first660.jsonl")
    with pytest.raises(UserError, match=r"test\.first660\.jsonl: .* name the file after one of aqua-rat"):
        data.subject_of(task, other)
    nested = RawFile("/snarks/bbh/word_sorting/test-00000.parquet", "test-00000.parquet", 0, "")
    assert data.subject_of(TASKS["bbh"], nested) == "word_sorting"


def test_bbh_is_asked_as_lm_eval_asks_it(write):
    lm_eval = pytest.importorskip("lm_eval")
    folder = Path(lm_eval.__file__).parent / "tasks" / "bbh" / "cot_fewshot"
    task = TASKS["bbh"]
    assert set(task.subjects) == {path.stem for path in folder.glob("[!_]*.yaml")}
    for subject in task.subjects:
        told = yaml.safe_load((folder / f"{subject}.yaml").read_text())
        (asked,) = data.read(task, [write([{"input": "what?", "target": "(A)"}], f"{subject}.jsonl")], [subject])
        (form,) = requests.forms(task, [asked])
        shots = [f"Q: {each['input']}\nA: Let's think step by step.\n{each['target']}" for each in told["fewshot_config"]["samples"]]
        assert len(shots) == 3
        expected = told["description"] + "\n\n".join([*shots, "Q: what?\nA: Let's think step by step.\n"])
        assert form.rows[0] == {"context": expected, "answers": ["(A)"], "subject": subject}


def test_mmlu_pro_is_asked_in_letters_with_shots_of_its_category(write):
    def record(category: str, number: int) -> dict:
        return {"question": f"{category} {number}? ", "options": list("opqrstuvwx"), "answer_index": number, "category": category}

    task = TASKS["mmlu_pro"]
    shots = data.read(task, [write([record(category, i) for i in range(5) for category in ("law", "health")], "validation.jsonl")])
    (form,) = requests.forms(task, data.read(task, [write([record("law", 9)])]), None, shots)
    (row,) = form.rows
    start = "The following are multiple choice questions (with answers) about law.\n\nQuestion: law 0?\n A. o\n"
    assert row["context"].startswith(start) and row["context"].endswith("\n J. x\nAnswer:")
    assert (row["choices"], row["gold"], row["subject"]) == (list("ABCDEFGHIJ"), 9, "law")
    assert "health" not in row["context"]


def test_questions_of_trivia_are_read_as_their_hubs_have_them(write):
    trivia = {"question": "Who?", "question_id": "tc_8", "answer": {"value": "Me", "aliases": ["Me", "I"]}}
    clue = {"context": "SCIENCE: It: falls", "continuation": "an apple", "category": "science"}
    (asked,) = data.read(TASKS["triviaqa"], [write([trivia])])
    assert (asked.text, asked.answers, asked.key) == ("Who?", ["Me", "I"], "tc_8")
    clues = data.read(TASKS["jeopardy"], [write([clue, {**clue, "context": "ART: it"}], "jeopardy.jsonl")])
    form = requests.forms(TASKS["jeopardy"], clues, 1, clues)[0]
    shot = "Category: ART\nQuestion: it\nAnswer: an apple\n\n"
    assert form.rows[0]["context"] == f"{shot}Category: SCIENCE\nQuestion: It: falls\nAnswer:"


def test_the_gold_answer_of_gsm8k_is_worked_in_the_words_of_its_shots(write):
    solved = {"question": "How many?", "answer": "It is 3*500=<<3*500=1500>>1500.\nDone.\n#### 1,500"}
    made = {form.name: form for form in requests.forms(TASKS["gsm_star"], data.read(TASKS["gsm_star"], [write([solved])]))}
    ((_, gold, _),) = requests.gold_pairs(made)
    assert gold == "It is 3*500=1500. Done. So the answer is 1,500."
    assert made["generate"].rows[0]["answers"] == ["1500"]
    assert made["generate"].rows[0]["context"].count("So the answer is ") == 8


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
