"""A task as lm-eval takes it: prompts with their shots in rows of JSON, and configs that name the rows' columns.

A form is one lm-eval task: `cf` (cloze), `mcf` (letters), `unconditional` (the choices after "Answer:" alone, for PMI) or `generate`. Written
into a folder, they are run again by `lm_eval run --include_path . --tasks TASK_FORM` from within it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.olmes.definitions import AnyTask, Generative, MultipleChoice, Problem, Question, curated

UNCONDITIONAL = "Answer:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True)
class Form:
    """One lm-eval task. config: its YAML; rows: its documents."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]


def forms(
    task: AnyTask, asked: Sequence[Question | Problem], shots: int | None = None, by_subject: Sequence[Question | Problem] = ()
) -> list[Form]:
    """The forms of a task for what is asked.

    shots: examples in the prompt, the task's own number where None. by_subject: records of which the first of a subject are its shots.
    """
    number = task.shots if shots is None else min(shots, task.shots)
    if isinstance(task, Generative):
        return [_generate(task, [each for each in asked if isinstance(each, Problem)], number)]
    questions = [each for each in asked if isinstance(each, Question)]
    examples = _examples(task, number, by_subject)
    made = [_cloze(task, questions, examples), _letters(task, questions, examples)]
    if task.normalization == "pmi":
        rows = [{"context": UNCONDITIONAL, "choices": each.choices, "gold": each.gold} for each in questions]
        made.append(Form("unconditional", _choice_config(task, "unconditional"), rows))
    return made


def _examples(task: MultipleChoice, number: int, by_subject: Sequence[Question | Problem]) -> Callable[[str], list[Question]]:
    if task.shots_of is not None:
        fixed = [each for each in curated(task.shots_of) if isinstance(each, Question)][:number]
        return lambda subject: fixed
    subjects: dict[str, list[Question]] = {}
    for each in by_subject:
        if isinstance(each, Question):
            subjects.setdefault(each.subject, []).append(each)

    def of(subject: str) -> list[Question]:
        found = subjects.get(subject, [])[:number]
        if len(found) < number:
            raise UserError(
                f"evaluation.tasks.{task.name}: {len(found)} shots of the subject {subject!r}, but {number} are wanted; give them in shot_paths"
            )
        return found

    return of


def _choice_config(task: MultipleChoice, form: str) -> dict[str, Any]:
    return {
        "task": f"{task.name}_{form}",
        "output_type": "multiple_choice",
        "test_split": "test",
        "num_fewshot": 0,  # the shots are in the context
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
    }


def _described(task: MultipleChoice, question: Question) -> str:
    if not task.described:
        return ""
    return f"The following are multiple choice questions (with answers) about {question.subject.replace('_', ' ')}.\n\n"


def _prompt(task: MultipleChoice, question: Question, parts: list[str]) -> str:
    return _described(task, question) + "\n\n".join(parts)


def _cloze(task: MultipleChoice, questions: list[Question], examples: Callable[[str], list[Question]]) -> Form:
    config = _choice_config(task, "cf")
    if task.fills_blank:
        # lm-eval's form of several contexts with one continuation
        config |= {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        rows = [_filled(task, each, examples(each.subject)) for each in questions]
        return Form("cf", config | {"metric_list": [{"metric": "acc", **_MEAN}]}, rows)
    answer = "" if task.continues else "\nAnswer:"
    rows = []
    for each in questions:
        shown = [f"{task.before}{shot.text}{answer} {shot.choices[shot.gold]}" for shot in examples(each.subject)]
        context = _prompt(task, each, [*shown, f"{task.before}{each.text}{answer}"])
        rows.append({"context": context, "choices": each.choices, "gold": each.gold})
    return Form("cf", config, rows)


def _filled(task: MultipleChoice, question: Question, shots: list[Question]) -> dict[str, Any]:
    """What stands before the blank, filled with each choice, as the contexts; what stands after it as the continuation."""
    shown = [shot.text.replace("___", shot.choices[shot.gold]) for shot in shots]
    before, after = question.text.split("___")
    contexts = ["\n\n".join([*shown, before + choice]) for choice in question.choices]
    return {"contexts": contexts, "continuation": after.strip(), "gold": question.gold}


def _letters(task: MultipleChoice, questions: list[Question], examples: Callable[[str], list[Question]]) -> Form:
    rows = []
    for each in questions:
        shown = [f"{_lettered(task, shot)} {LETTERS[shot.gold]}" for shot in examples(each.subject)]
        context = _prompt(task, each, [*shown, _lettered(task, each)])
        rows.append({"context": context, "choices": list(LETTERS[: len(each.choices)]), "gold": each.gold})
    return Form("mcf", _choice_config(task, "mcf"), rows)


def _lettered(task: MultipleChoice, question: Question) -> str:
    choices = "".join(f"\n {letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    choose = "\nChoose the best continuation:" if task.continues else ""
    return f"{task.before}{question.text}{choose}{choices}\nAnswer:"


def _generate(task: Generative, problems: list[Problem], shots: int) -> Form:
    assert task.shots_of is not None
    shown = [f"{task.before}{each.text}\nAnswer: {each.answers[0]}" for each in curated(task.shots_of)[:shots] if isinstance(each, Problem)]
    rows = [
        {"context": task.description + "\n\n".join([*shown, f"{task.before}{each.text}\nAnswer:"]), "answers": each.answers}
        for each in problems
    ]
    config: dict[str, Any] = {
        "task": f"{task.name}_generate",
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "context",
        "doc_to_target": "answers",
        "generation_kwargs": {"until": list(task.stop), "do_sample": False, "temperature": 0.0, "max_gen_toks": task.max_tokens},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": not task.extract_number, **_MEAN}],
    }
    if task.extract_number:
        # lm-eval's own `flexible-extract` of GSM8K
        number = {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
        config["filter_list"] = [{"name": "last-number", "filter": [number, {"function": "take_first"}]}]
        config["metric_list"][0] |= {"regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}
        config["doc_to_target"] = "{{answers[0]}}"
    return Form("generate", config, rows)


def write(folder: Path, made: Sequence[Form]) -> None:
    """Each form as NAME.yaml and NAME.jsonl; the YAML names its rows relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in made:
        name = form.config["task"]
        with (folder / f"{name}.jsonl").open("w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in form.rows)
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(form.config | source, sort_keys=False, allow_unicode=True))


def load(folder: Path) -> Mapping[str, Form]:
    """The forms that `write` has written, by name."""
    made = {}
    for path in sorted(folder.glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        with path.with_suffix(".jsonl").open() as stream:
            rows = [json.loads(line) for line in stream]
        del config["dataset_path"], config["dataset_kwargs"]
        name = config["task"].rsplit("_", 1)[1]
        made[name] = Form(name, config, rows)
    return made
