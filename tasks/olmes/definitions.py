"""The tasks, as data: how a record is read, how it is asked, and what counts (report, Table 20; Gu et al., 2024, "OLMES").

Curated shots stand in shots.json: the first five of those of the OLMES standard, for GSM8K the eight of Wei et al. (2022).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Suite = Literal["development", "held_out"]
Normalization = Literal["none", "character", "pmi"]
Part = Literal["sample", "rest"]
SEED = 1234  # of the subsets, as in the authors' task configs; the report gives none


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. `subject` chooses its shots where each subject has its own."""

    text: str
    choices: list[str]
    gold: int
    subject: str = ""


@dataclass(frozen=True)
class Problem:
    """A question that a model answers in words; any of the `answers` is right."""

    text: str
    answers: list[str]


@dataclass(frozen=True)
class Task:
    """What all tasks have.

    Attributes:
        suite: whether development may look at it.
        fields: dotted paths that a record must have.
        before: what stands before a question's text.
        shots: examples in the prompt, in the order of shots.json.
        shots_of: name in shots.json; None where a file of shots by subject is given.
        sample: instances that are counted, None for all. part: those, or all others.
    """

    name: str
    suite: Suite
    fields: tuple[str, ...]
    before: str
    shots: int
    shots_of: str | None
    sample: int | None
    part: Part


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Asked in cloze (CF) and in multiple-choice form (MCF), of which the better one counts.

    normalization: of the log-likelihoods in cloze form. continues: the choices go on with the text, which asks nothing. fills_blank: the choices stand in the text's `___`, and CF compares what follows it.
    described: the prompt begins with MMLU's line about the subject.
    """

    read: Callable[[Mapping[str, Any]], Question]
    normalization: Normalization
    continues: bool = False
    fills_blank: bool = False
    described: bool = False


@dataclass(frozen=True)
class Generative(Task):
    """Answered in words, greedily, up to a stop or `max_tokens`. extract_number: the last number of the text is the answer."""

    read: Callable[[Mapping[str, Any]], Problem]
    metric: Literal["f1", "exact_match"]
    stop: tuple[str, ...]
    max_tokens: int
    description: str = ""
    extract_number: bool = False


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
    return Problem(record["question"], [record["answer"].split("####")[1].strip().replace(",", "")])


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
    "extract_number": True,
}

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
    _choice("mmlu", ("question", "subject", "choices", "answer"), None, "character", _mmlu, shots_of=None, described=True),
    Generative(
        name="naturalqs",
        suite="development",
        fields=("question", "answer"),
        before="Question: ",
        shots=5,
        shots_of="naturalqs",
        sample=1000,
        part="sample",
        read=lambda record: Problem(record["question"], list(record["answer"])),
        metric="f1",
        stop=("Question:", "Q:", "\n\n"),
        max_tokens=50,
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
]
TASKS: dict[str, AnyTask] = {task.name: task for task in _ALL}


@functools.cache
def curated(name: str) -> list[Question | Problem]:
    """The curated shots of a task, in their order."""
    entries = json.loads(Path(__file__).with_name("shots.json").read_text())[name]
    return [
        Problem(entry["text"], [entry["answer"]]) if "answer" in entry else Question(entry["text"], entry["choices"], entry["gold"])
        for entry in entries
    ]
