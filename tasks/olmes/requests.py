"""A task as lm-eval takes it: prompts with their shots in rows of JSON, and configs that name the rows' columns.

A form is one lm-eval task: `cf` (cloze), `mcf` (letters), `unconditional` (the choices after "Answer:" alone, for PMI), `generate`, or
`gold` (what should be generated, for its likelihood). Written into a folder, they are run again by
`lm_eval run --include_path . --tasks TASK_FORM` from within it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.olmes.definitions import LM_EVAL, AnyTask, Asked, Generative, MultipleChoice, Problem, Question, curated

UNCONDITIONAL = "Answer:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True)
class Form:
    """One lm-eval task. config: its YAML; rows: its documents."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]


def forms(task: AnyTask, asked: Sequence[Asked], shots: int | None = None, shot_records: Sequence[Asked] = ()) -> list[Form]:
    """The forms of a task for what is asked.

    shots: examples in the prompt, the task's own number where None. shot_records: records of which the first (of a subject) are its shots,
    where it has none of its own. Raises UserError where they are too few.
    """
    examples = _examples(task, task.shots if shots is None else min(shots, task.shots), shot_records)
    if isinstance(task, Generative):
        return _generate(task, [each for each in asked if isinstance(each, Problem)], examples)
    questions = [each for each in asked if isinstance(each, Question)]
    letters = _letters(task, questions, examples)
    if task.letters_only:
        return [letters]
    made = [_cloze(task, questions, examples), letters]
    if task.normalization == "pmi":
        rows = [{"context": UNCONDITIONAL, "choices": each.choices, "gold": each.gold} for each in questions]
        made.append(Form("unconditional", _choice_config(task, "unconditional"), rows))
    return made


def gold_pairs(made: Mapping[str, Form]) -> list[tuple[str, str, str]]:
    """(context, gold answer, subject) of each row, in cloze form or as it should be generated; the answer follows the context and a space.

    Empty for a task that is asked in letters alone, or whose gold answers are without the reasoning before them.
    """
    if "gold" in made:
        return [(row["context"], row["choices"][0], row.get("subject", "")) for row in made["gold"].rows]
    if "cf" not in made:
        return []
    return [
        (row["contexts"][row["gold"]], row["continuation"], row.get("subject", ""))
        if "contexts" in row
        else (row["context"], row["choices"][row["gold"]], row.get("subject", ""))
        for row in made["cf"].rows
    ]


def _examples(task: AnyTask, number: int, records: Sequence[Asked]) -> Callable[[Asked], list[Any]]:
    """The shots of what is asked, none of which is itself."""
    if task.shots_of not in (None, LM_EVAL):
        fixed = curated(task.shots_of)[:number]  # type: ignore[arg-type]
        return lambda asked: fixed
    pools: dict[str, list[Asked]] = {}
    for record in lm_eval_shots(task.subjects) if task.shots_of == LM_EVAL and number else records:
        pools.setdefault(record.subject if task.by_subject else "", []).append(record)
    by_key = {record.key: record for record in records}
    if task.picked and by_key.keys() >= set(task.picked):
        pools[""] = [*(by_key[key] for key in task.picked), *(record for record in records if record.key not in task.picked)]

    def of(asked: Asked) -> list[Asked]:
        subject = asked.subject if task.by_subject else ""
        found = [shot for shot in pools.get(subject, [])[: number + 1] if shot.text != asked.text][:number]
        if len(found) < number:
            raise UserError(
                f"evaluation.tasks.{task.name}: {len(found)} shots{f' of the subject {subject!r}' * bool(subject)}, but {number} are wanted; "
                "give them in shot_paths"
            )
        return found

    return of


def lm_eval_shots(subjects: Sequence[str]) -> list[Problem]:
    """The worked examples of BBH's authors (Suzgun et al., 2022), as the installed lm-eval has them."""
    return [Problem(sample["input"], [sample["target"]], subject) for subject in subjects for sample in _bbh(subject)[1]]


@functools.cache
def _bbh(subject: str) -> tuple[str, list[dict[str, str]]]:
    """lm-eval's description of one of BBH's tasks, and its examples."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise UserError("evaluation.tasks.bbh takes its examples from lm-eval: install olmoflow with its extra `eval`")
    path = Path(found.origin).parent / "tasks" / "bbh" / "cot_fewshot" / f"{subject}.yaml"
    told = yaml.safe_load(path.read_text())
    return told["description"], told["fewshot_config"]["samples"]


def _choice_config(task: AnyTask, form: str) -> dict[str, Any]:
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


def _prompt(task: AnyTask, asked: Asked, parts: list[str]) -> str:
    if task.shots_of == LM_EVAL:
        description = _bbh(asked.subject)[0]
    else:
        description = task.description.replace("{subject}", asked.subject.replace("_", " "))
    return description + "\n\n".join(parts)


def _told(task: AnyTask, asked: Asked) -> dict[str, str]:
    """The subject, where those count alike."""
    return {"subject": asked.subject} if task.by_subject else {}


def _cloze(task: MultipleChoice, questions: list[Question], examples: Callable[[Asked], list[Any]]) -> Form:
    config = _choice_config(task, "cf")
    if task.fills_blank:
        # lm-eval's form of several contexts with one continuation
        config |= {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        rows = [_filled(task, each, examples(each)) for each in questions]
        return Form("cf", config | {"metric_list": [{"metric": "acc", **_MEAN}]}, rows)
    answer = "" if task.continues else "\nAnswer:"
    rows = []
    for each in questions:
        shown = [f"{task.before}{shot.text}{answer} {shot.choices[shot.gold]}" for shot in examples(each)]
        context = _prompt(task, each, [*shown, f"{task.before}{each.text}{answer}"])
        rows.append({"context": context, "choices": each.choices, "gold": each.gold, **_told(task, each)})
    return Form("cf", config, rows)


def _filled(task: MultipleChoice, question: Question, shots: list[Question]) -> dict[str, Any]:
    """What stands before the blank, filled with each choice, as the contexts; what stands after it as the continuation."""
    shown = [shot.text.replace("___", shot.choices[shot.gold]) for shot in shots]
    before, after = question.text.split("___")
    contexts = ["\n\n".join([*shown, before + choice]) for choice in question.choices]
    return {"contexts": contexts, "continuation": after.strip(), "gold": question.gold}


def _letters(task: MultipleChoice, questions: list[Question], examples: Callable[[Asked], list[Any]]) -> Form:
    rows = []
    for each in questions:
        shown = [f"{_lettered(task, shot)} {LETTERS[shot.gold]}" for shot in examples(each)]
        context = _prompt(task, each, [*shown, _lettered(task, each)])
        rows.append({"context": context, "choices": list(LETTERS[: len(each.choices)]), "gold": each.gold, **_told(task, each)})
    return Form("mcf", _choice_config(task, "mcf"), rows)


def _lettered(task: MultipleChoice, question: Question) -> str:
    choices = "".join(f"\n {letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    choose = "\nChoose the best continuation:" if task.continues else ""
    return f"{task.before}{question.text}{choose}{choices}\nAnswer:"


def _generate(task: Generative, problems: list[Problem], examples: Callable[[Asked], list[Any]]) -> list[Form]:
    rows, golds = [], []
    for each in problems:
        shown = [f"{task.before}{shot.text}{task.after}{shot.gold}" for shot in examples(each)]
        context = _prompt(task, each, [*shown, f"{task.before}{each.text}{task.after}".rstrip(" ")])
        rows.append({"context": context, "answers": each.answers, **({"spans": each.spans} if each.spans else {}), **_told(task, each)})
        golds.append({"context": context, "choices": [each.gold], "gold": 0, **_told(task, each)})
    config: dict[str, Any] = {
        "task": f"{task.name}_generate",
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "context",
        "doc_to_target": "answers",
        "generation_kwargs": {"until": list(task.stop), "do_sample": False, "temperature": 0.0, "max_gen_toks": task.max_tokens},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": not task.extract, **_MEAN}],
    }
    if task.extract:
        found = {"function": "regex", "group_select": -1 if task.last else 0, "regex_pattern": task.extract}
        config["filter_list"] = [{"name": "extracted", "filter": [found, {"function": "take_first"}]}]
        config["doc_to_target"] = "{{answers[0]}}"
        if task.last:
            config["metric_list"][0] |= {"regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}
    made = [Form("generate", config, rows)]
    if not task.reasons:
        made.append(Form("gold", _choice_config(task, "gold"), golds))
    return made


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
