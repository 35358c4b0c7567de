"""The tasks, as data: how a record is read, how it is asked, and what counts (report, Table 20; Gu et al., 2024, "OLMES").

Curated shots stand in shots.json: the first five of those of the OLMES standard, for GSM8K the eight of Wei et al. (2022). BBH's are those
that lm-eval brings.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Suite = Literal["development", "held_out"]
Normalization = Literal["none", "character", "pmi"]
Part = Literal["sample", "rest"]
LM_EVAL = "lm-eval"
SEED = 1234  # of the subsets, as in the authors' task configs; the report gives none


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. `subject` chooses its shots where each subject has its own; `key` is its name in the data set."""

    text: str
    choices: list[str]
    gold: int
    subject: str = ""
    key: str = ""


@dataclass(frozen=True)
class Problem:
    """A question that a model answers in words; any of the `answers` is right.

    worked: the answer as a model should write it, where that is more than the first of `answers`. spans: DROP's answers, each of one or
    more pieces.
    """

    text: str
    answers: list[str]
    subject: str = ""
    key: str = ""
    worked: str = ""
    spans: list[list[str]] = field(default_factory=list)

    @property
    def gold(self) -> str:
        return self.worked or self.answers[0]


Asked = Question | Problem


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all tasks have.

    Attributes:
        suite: whether development may look at it.
        fields: dotted paths that a record must have.
        before: what stands before a question's text.
        description: what a prompt begins with; `{subject}` in it is the question's.
        shots: examples in the prompt, in their order.
        shots_of: name in shots.json; LM_EVAL; None where they are the first of files that the recipe names.
        picked: keys of the records that the authors chose as shots; used where the recipe's files hold them all.
        by_subject: each subject has its own shots, and all count alike however many questions they have.
        subjects: where records do not say their subject: all there are, one of which stands in the path of each file.
        sample: instances that are counted, None for all. part: those, or all others.
    """

    name: str
    suite: Suite
    fields: tuple[str, ...]
    before: str
    description: str = ""
    shots: int
    shots_of: str | None
    picked: tuple[str, ...] = ()
    by_subject: bool = False
    subjects: tuple[str, ...] = ()
    sample: int | None
    part: Part

    @property
    def needs_shot_files(self) -> bool:
        return self.shots > 0 and self.shots_of is None


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """Asked in cloze (CF) and in multiple-choice form (MCF), of which the better one counts; letters_only: in the latter alone.

    normalization: of the log-likelihoods in cloze form. continues: the choices go on with the text, which asks nothing. fills_blank: the
    choices stand in the text's `___`, and CF compares what follows it.
    """

    read: Callable[[Mapping[str, Any]], Question]
    normalization: Normalization
    continues: bool = False
    fills_blank: bool = False
    letters_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Generative(Task):
    """Answered in words, greedily, up to a stop or `max_tokens`.

    read: the problem of a record, or all that it holds. after: what stands between a question and its answer. extract: regular
    expression of the answer in the text, `last`: of which the last match counts. reasons: a model reasons before it answers, and the
    gold answer does not: it has no bits per byte.
    """

    read: Callable[[Mapping[str, Any]], Problem | list[Problem]]
    metric: Literal["f1", "drop_f1", "exact_match"]
    stop: tuple[str, ...]
    max_tokens: int
    after: str = "\nAnswer: "
    extract: str = ""
    last: bool = False
    reasons: bool = False


AnyTask = MultipleChoice | Generative


def _labelled(text: str) -> Callable[[Mapping[str, Any]], Question]:
    """Records as those of ARC: choices with labels, one of which is the answer's key."""

    def read(record: Mapping[str, Any]) -> Question:
        choices = record["choices"]
        return Question(record[text], list(choices["text"]), list(choices["label"]).index(record["answerKey"]))

    return read


def _socialiqa(record: Mapping[str, Any]) -> Question:
    choices = [record[f"answer{letter}"] for letter in "ABC"]
    return Question(f"{record['context']} {record['question']}", choices, int(record["label"]) - 1)


def _winogrande(record: Mapping[str, Any]) -> Question:
    before, after = record["sentence"].split("_")
    return Question(f"{before}___{after}", [record["option1"], record["option2"]], int(record["answer"]) - 1)


def _hellaswag(record: Mapping[str, Any]) -> Question:
    text = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return Question(_without_marks(text), [_without_marks(ending) for ending in record["endings"]], int(record["label"]))


def _without_marks(text: str) -> str:
    """Without the marks in brackets that WikiHow's pages left in HellaSwag; a title ends a sentence."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _mmlu(record: Mapping[str, Any]) -> Question:
    return Question(record["question"].strip(), list(record["choices"]), int(record["answer"]), record["subject"])


def _squad(record: Mapping[str, Any]) -> Problem:
    text = f"{record['title']}\nBackground: {record['context']}\nQuestion: {record['question']}"
    return Problem(text, list(record["answers"]["text"]))


def _gsm8k(record: Mapping[str, Any]) -> Problem:
    """Its worked answer is in the words of the shots: without the calculator's marks, and the result in a sentence."""
    reasoning, result = (part.strip() for part in record["answer"].split("####"))
    steps = " ".join(re.sub(r"<<.*?>>", "", reasoning).split())
    return Problem(record["question"], [result.replace(",", "")], worked=f"{steps} So the answer is {result}.")


def _boolq(record: Mapping[str, Any]) -> Question:
    """As SuperGLUE has it (`label`), or the authors of BoolQ (`answer`)."""
    right = record["label"] if "label" in record else record["answer"]
    text = f"{record['passage']}\nQuestion: {record['question']}?"
    return Question(text, ["yes", "no"], 1 - int(right), key=str(record.get("idx", "")))


def _coqa(record: Mapping[str, Any]) -> list[Problem]:
    """Each question of a conversation, after those before it with their answers."""
    questions, answers = record["questions"], record["answers"]["input_text"]
    asked = questions["input_text"] if isinstance(questions, Mapping) else questions
    others = [each["input_text"] for each in (record.get("additional_answers") or {}).values()]
    problems, text = [], record["story"]
    for number, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        text += f"\n\nQuestion: {question}"
        right = dict.fromkeys([answer, *(other[number] for other in others)])
        problems.append(Problem(text, [each for each in right if each]))
        text += f"\nAnswer: {answer}"
    return problems


def _drop(record: Mapping[str, Any]) -> Problem:
    """Validated answers count too; an answer is a number, pieces of the text, or a date."""
    found = record["validated_answers"]
    validated = [
        {"number": number, "date": date, "spans": spans}
        for number, date, spans in zip(found["number"], found["date"], found["spans"], strict=True)
    ]
    given = [spans for answer in (record["answer"], *validated) if (spans := _drop_spans(answer))]
    distinct = [spans for number, spans in enumerate(given) if spans not in given[:number]]
    text = f"{record['passage']}\nQuestion: {record['question']}"
    return Problem(text, [", ".join(spans) for spans in distinct], spans=distinct)


def _drop_spans(answer: Mapping[str, Any]) -> list[str]:
    date = " ".join(part for part in (answer["date"][key] for key in ("day", "month", "year")) if part)
    return [str(answer["number"])] if answer["number"] else list(answer["spans"]) or [date] * bool(date)


def _jeopardy(record: Mapping[str, Any]) -> Problem:
    category, clue = record["context"].split(": ", 1)
    return Problem(f"{category}\nQuestion: {clue}", [record["continuation"]])


def _triviaqa(record: Mapping[str, Any]) -> Problem:
    answer = record["answer"]
    return Problem(record["question"], list(dict.fromkeys([answer["value"], *answer["aliases"]])), key=str(record.get("question_id", "")))


def _agieval(record: Mapping[str, Any]) -> Question:
    passage = f"Passage: {record['passage']}\n" if record.get("passage") else ""
    choices = [re.sub(r"^\([A-Z]\)\s*", "", option) for option in record["options"]]
    return Question(f"{passage}Question: {record['question']}", choices, "ABCDEFGHIJ".index(record["label"]))


def _mmlu_pro(record: Mapping[str, Any]) -> Question:
    return Question(record["question"].strip(), list(record["options"]), int(record["answer_index"]), record["category"])


def _choice(name: str, fields: tuple[str, ...], sample: int | None, normalization: Normalization, read: Any, **more: Any) -> MultipleChoice:
    settings = {"suite": "development", "before": "Question: ", "shots": 5, "shots_of": name, "part": "sample", **more}
    return MultipleChoice(name=name, fields=fields, sample=sample, normalization=normalization, read=read, **settings)


_LABELLED = ("choices.text", "choices.label", "answerKey")
_GSM8K: dict[str, Any] = {
    "fields": ("question", "answer"),
    "before": "Question: ",
    "shots": 8,
    "shots_of": "gsm8k",
    "sample": 200,
    "read": _gsm8k,
    "metric": "exact_match",
    "stop": ("Question:", "\n\n"),
    "max_tokens": 512,
    "extract": "(-?[$0-9.,]{2,})|(-?[0-9]+)",  # lm-eval's own `flexible-extract` of GSM8K
    "last": True,
}
_SUBJECT = "The following are multiple choice questions (with answers) about {subject}.\n\n"
_SHORT: dict[str, Any] = {
    "before": "Question: ",
    "shots": 5,
    "part": "sample",
    "metric": "f1",
    "stop": ("Question:", "Q:", "\n\n"),
    "max_tokens": 50,
}

_BBH = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)

_ALL: list[AnyTask] = [
    _choice("arc_challenge", ("question", *_LABELLED), None, "pmi", _labelled("question")),
    _choice("arc_easy", ("question", *_LABELLED), 1000, "character", _labelled("question")),
    _choice("csqa", ("question", *_LABELLED), None, "pmi", _labelled("question")),
    _choice(
        "hellaswag",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        1000,
        "character",
        _hellaswag,
        before="",
        continues=True,
    ),
    _choice("openbookqa", ("question_stem", *_LABELLED), None, "pmi", _labelled("question_stem")),
    _choice(
        "piqa",
        ("goal", "sol1", "sol2", "label"),
        1000,
        "character",
        lambda record: Question(record["goal"], [record["sol1"], record["sol2"]], int(record["label"])),
        before="Goal: ",
    ),
    _choice("socialiqa", ("context", "question", "answerA", "answerB", "answerC", "label"), 1000, "character", _socialiqa),
    _choice(
        "winogrande",
        ("sentence", "option1", "option2", "answer"),
        None,
        "none",
        _winogrande,
        before="Fill in the blank: ",
        fills_blank=True,
    ),
    _choice(
        "mmlu",
        ("question", "subject", "choices", "answer"),
        None,
        "character",
        _mmlu,
        shots_of=None,
        by_subject=True,
        description=_SUBJECT,
    ),
    _choice(
        "boolq",
        ("passage", "question"),
        1000,
        "none",
        _boolq,
        before="",
        shots_of=None,
        picked=("0", "1", "7", "11", "3"),  # `idx` in SuperGLUE's training set
    ),
    Generative(
        name="coqa",
        suite="development",
        fields=("story", "questions", "answers.input_text"),
        before="Passage: ",
        shots=0,
        shots_of=None,
        sample=None,
        part="sample",
        read=_coqa,
        metric="f1",
        stop=("Question:", "\n\n"),
        max_tokens=50,
    ),
    Generative(
        name="drop",
        suite="development",
        fields=("passage", "question", "answer.spans", "validated_answers.spans"),
        before="Passage: ",
        shots=5,
        shots_of="drop",
        sample=1000,
        part="sample",
        read=_drop,
        metric="drop_f1",
        stop=("Passage:", "Question:", "\n\n"),
        max_tokens=50,
        description=(
            "The following are reading comprehension questions, where the answer to each question is either a segment of text from the "
            "corresponding passage, a number, or a date (containing any of the date, month, and/or year components). Some questions may "
            "require you to pull together information pieces from the passage and reason over them.\n\n"
        ),
    ),
    Generative(
        name="jeopardy",
        suite="development",
        fields=("context", "continuation"),
        shots_of=None,
        sample=None,
        read=_jeopardy,
        **{**_SHORT, "before": "Category: ", "stop": ("Category:", "Question:", "\n\n")},
    ),
    Generative(
        name="naturalqs",
        suite="development",
        fields=("question", "answer"),
        shots_of="naturalqs",
        sample=1000,
        read=lambda record: Problem(record["question"], list(record["answer"])),
        **_SHORT,
    ),
    Generative(
        name="squad",
        suite="development",
        fields=("title", "context", "question", "answers.text"),
        before="Title: ",
        shots=5,
        shots_of="squad",
        sample=1000,
        part="sample",
        read=_squad,
        metric="f1",
        stop=("Title:", "\n\n"),
        max_tokens=50,
        description=(
            "The following are reading comprehension questions, where the answer to each question is a segment of text from the "
            "corresponding background text.\n\n"
        ),
    ),
    # Appendix A: 200 examples of the test set inform development; the others are not looked at.
    Generative(name="gsm_star", suite="development", part="sample", **_GSM8K),
    Generative(name="gsm8k", suite="held_out", part="rest", **_GSM8K),
    _choice(
        "agieval",
        ("question", "options", "label"),
        None,
        "none",
        _agieval,
        suite="held_out",
        before="",
        shots=1,
        shots_of=None,
        letters_only=True,
        by_subject=True,
        subjects=("aqua-rat", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math", "gaokao-english"),
    ),
    Generative(
        name="bbh",
        suite="held_out",
        fields=("input", "target"),
        before="Q: ",
        shots=3,
        shots_of=LM_EVAL,
        by_subject=True,
        subjects=_BBH,
        sample=None,
        part="sample",
        read=lambda record: Problem(record["input"], [record["target"]]),
        metric="exact_match",
        stop=("Q:", "\n\n"),
        max_tokens=512,
        after="\nA: Let's think step by step.\n",
        extract=r"(?m)the answer is (.*?)\.?\s*$",
        reasons=True,
    ),
    _choice(
        "mmlu_pro",
        ("question", "options", "answer_index", "category"),
        None,
        "none",
        _mmlu_pro,
        suite="held_out",
        shots_of=None,
        letters_only=True,
        by_subject=True,
        description=_SUBJECT,
    ),
    Generative(
        name="triviaqa",
        suite="held_out",
        fields=("question", "answer.value", "answer.aliases"),
        shots_of=None,
        picked=("tc_8", "bb_18", "qz_18", "dpql_11", "qb_12"),  # `question_id` in its training set
        sample=None,
        read=_triviaqa,
        **_SHORT,
    ),
]
TASKS: dict[str, AnyTask] = {task.name: task for task in _ALL}


@functools.cache
def curated(name: str) -> list[Asked]:
    """The curated shots of a task, in their order."""
    entries = json.loads(Path(__file__).with_name("shots.json").read_text())[name]
    return [
        Problem(entry["text"], [entry["answer"]]) if "answer" in entry else Question(entry["text"], entry["choices"], entry["gold"])
        for entry in entries
    ]
