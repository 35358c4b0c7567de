"""A model on tasks, through lm-eval: `python -m tasks.olmes.run CONFIG.yaml`.

Each task's scores are written as soon as it is through, so that a later one's fault costs nothing of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.olmes import requests, scoring
from tasks.olmes.definitions import TASKS, AnyTask, Generative, MultipleChoice
from tasks.olmes.requests import Form

SCORES, SAMPLES, REQUESTS = "scores.json", "samples.jsonl", "lm_eval"


@dataclass(frozen=True)
class Answered:
    """What lm-eval has made of a form. metrics: its own numbers; samples: what it has logged of each row, in their order."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    cut: int  # prompts that were longer than the model's window, whose beginnings it has not seen


class Engine:
    """A Hugging Face model in lm-eval, kept over several tasks."""

    def __init__(self, model: str, device: str, dtype: str, batch_size: int) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the data are here already
        from lm_eval.models.huggingface import HFLM

        self.lm = HFLM(pretrained=model, device=device, dtype=dtype, batch_size=batch_size)

    def __call__(self, forms: Mapping[str, Form]) -> dict[str, Answered]:
        """All forms of a task in one run of lm-eval."""
        import datasets
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate

        tasks, cut = {}, {}
        for name, form in forms.items():
            if not form.rows:
                continue
            rows = datasets.Dataset.from_list(form.rows)
            config = self._fitted(form.config) | {"custom_dataset": lambda rows=rows, **_: {"test": rows}}
            tasks[form.config["task"]] = ConfigurableTask(config=config)
            cut[name] = sum(self._is_cut(config, row) for row in form.rows)
        result = evaluate(self.lm, {"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=0)
        assert result is not None  # of the one rank that there is
        answered = {}
        for name in cut:
            key = forms[name].config["task"]
            metrics = {metric: value for metric, value in result["results"][key].items() if isinstance(value, float)}
            answered[name] = Answered(metrics, sorted(result["samples"][key], key=lambda sample: sample["doc_id"]), cut[name])
        return answered

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the answer of a row of a `gold` form is no longer than the model's window."""
        context, answer = row["context"], f" {row['choices'][0]}"
        return len(self.lm._encode_pair(context, answer)[1]) <= self.lm.max_length

    def _fitted(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config, with at most half of the model's window for an answer."""
        fitted = dict(config)
        if "generation_kwargs" in config:
            most = min(config["generation_kwargs"]["max_gen_toks"], self.lm.max_length // 2)
            fitted["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": most}
        return fitted

    def _is_cut(self, config: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        if "contexts" in row:
            longest = max(len(self.lm.tok_encode(f"{context} {row['continuation']}")) for context in row["contexts"])
            return longest > self.lm.max_length + 1
        if "choices" in row:
            longest = max(row["choices"], key=len)
            return len(self.lm.tok_encode(f"{row['context']} {longest}")) > self.lm.max_length + 1
        return len(self.lm.tok_encode(row["context"])) > self.lm.max_length - config["generation_kwargs"]["max_gen_toks"]


def evaluate(task: AnyTask, forms: Mapping[str, Form], engine: Engine) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task's scores and what they are made of, by instance."""
    if "gold" in forms:
        gold = forms["gold"]
        forms = {**forms, "gold": replace(gold, rows=[row for row in gold.rows if engine.fits(row)])}
    answered = engine(forms)
    if isinstance(task, Generative):
        scores, samples = _generated(task, forms, answered)
    else:
        scores, samples = _chosen(task, forms, answered)
    told = {name: {"lm_eval": each.metrics, "cut": each.cut} for name, each in answered.items()}
    return {"task": task.name, "suite": task.suite, "instances": len(samples), **scores, "runs": told}, samples


def _log_likelihoods(answered: Answered) -> list[list[float]]:
    """By row, of each choice."""
    return [[float(response[0]) for response in sample["filtered_resps"]] for sample in answered.samples]


def _groups(form: Form) -> list[str]:
    return [row["subject"] for row in form.rows if "subject" in row]


def _chosen(
    task: MultipleChoice, forms: Mapping[str, Form], answered: Mapping[str, Answered]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracies in both forms, of which the better counts, and in cloze form under every normalization that the task's requests allow."""
    found, groups = {name: _log_likelihoods(each) for name, each in answered.items()}, _groups(forms["mcf"])
    golds = [row["gold"] for row in forms["mcf"].rows]
    letters = [float(scoring.chosen(each, [], "none") == gold) for each, gold in zip(found["mcf"], golds, strict=True)]
    samples: list[dict[str, Any]] = [
        {"gold": gold, **{f"{name}_log_likelihoods": values[row] for name, values in found.items()}, "mcf": letters[row]}
        for row, gold in enumerate(golds)
    ]
    counted = {"mcf": scoring.mean(letters, groups)}
    scores: dict[str, Any] = {"forms": {"mcf": {"none": counted["mcf"]}}}
    if "cf" in forms:
        cloze = _cloze(task, forms["cf"], found)
        counted = {"cf": scoring.mean(cloze[task.normalization], groups), **counted}
        scores["normalization"] = task.normalization
        scores["forms"] = {"cf": {way: scoring.mean(right, groups) for way, right in cloze.items()}, **scores["forms"]}
        pairs = requests.gold_pairs(forms)
        bits = [scoring.bits_per_byte(each[gold], text) for each, gold, (_, text, _) in zip(found["cf"], golds, pairs, strict=True)]
        scores["bits_per_byte"] = scoring.mean(bits, groups)
        for row, sample in enumerate(samples):
            sample |= {**{f"cf_{way}": right[row] for way, right in cloze.items()}, "bits_per_byte": bits[row]}
    best = max(counted, key=lambda form: counted[form]["score"])  # cloze where both are equal
    return {"metric": "accuracy", **counted[best], "form": best, **scores}, samples


def _cloze(task: MultipleChoice, form: Form, found: Mapping[str, list[list[float]]]) -> dict[str, list[float]]:
    """Whether the right choice is taken, by row, under each normalization."""
    alone = found.get("unconditional", [None] * len(form.rows))  # type: ignore[list-item]
    cloze = {}
    for way in ["none"] + ["character"] * (not task.fills_blank) + ["pmi"] * ("unconditional" in found):
        taken = [
            scoring.chosen(each, row.get("choices", []), way, base)  # type: ignore[arg-type]
            for each, row, base in zip(found["cf"], form.rows, alone, strict=True)
        ]
        cloze[way] = [float(pick == row["gold"]) for pick, row in zip(taken, form.rows, strict=True)]
    return cloze


def _generated(
    task: Generative, forms: Mapping[str, Form], answered: Mapping[str, Answered]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    samples = []
    for row, sample in zip(forms["generate"].rows, answered["generate"].samples, strict=True):
        text = sample["resps"][0][0]
        told = {"text": text, "answers": row["answers"]}
        if task.extract:
            told |= {"extracted": sample["filtered_resps"][0], "exact_match": float(sample["exact_match"])}
        else:
            told |= {"f1": scoring.f1(text, row["answers"]), "exact_match": scoring.exact_match(text, row["answers"])}
        if task.metric == "drop_f1":
            told["drop_f1"] = scoring.drop_f1(text, row["spans"])
        samples.append(told)
    groups, kinds = _groups(forms["generate"]), ("f1", "drop_f1", "exact_match")
    metrics = {name: scoring.mean([sample[name] for sample in samples], groups) for name in kinds if name in samples[0]}
    scores = {"metric": task.metric, **metrics[task.metric], "metrics": metrics}
    if "gold" in answered:
        golds = zip(answered["gold"].samples, requests.gold_pairs(forms), strict=True)
        bits = [scoring.bits_per_byte(float(sample["filtered_resps"][0][0]), text) for sample, (_, text, _) in golds]
        scores["bits_per_byte"] = scoring.mean(bits, _groups(forms["gold"]))
        scores["gold_answers"] = len(bits)  # the others are longer than the model's window
    return scores, samples


def main(arguments: list[str]) -> int:
    """Run from the command line. Returns the exit code: 0 done, 1 failed.

    The config: model (a Hugging Face folder), device (auto, cpu or cuda), dtype, batch_size, threads (or null), and tasks: by name the
    folder that each one's scores go into, with its forms in `lm_eval/`.
    """
    config = yaml.safe_load(Path(arguments[0]).read_text())
    import torch

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    device = config["device"] if config["device"] != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        engine = Engine(config["model"], device, config["dtype"], config["batch_size"])
        for name, folder in config["tasks"].items():
            scores, samples = evaluate(TASKS[name], requests.load(Path(folder) / REQUESTS), engine)
            with (Path(folder) / SAMPLES).open("w") as stream:
                stream.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            unfinished = Path(folder) / f"{SCORES}.unfinished"
            unfinished.write_text(json.dumps(scores, indent=1))
            unfinished.rename(Path(folder) / SCORES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
