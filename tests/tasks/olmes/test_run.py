"""Scores are those that lm-eval's own command line prints for the exported model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.olmes import data, requests, run
from tasks.olmes.definitions import TASKS, Problem

lm_eval = pytest.importorskip("lm_eval")


def command_line(folder: Path, model: Path, tasks: list[str]) -> dict:
    """The results that `lm_eval run` writes."""
    arguments = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", "4"]
    told = ["--tasks", ",".join(tasks), "--include_path", ".", "--output_path", "told"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "run", *arguments, *told]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (folder / "told").rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def test_scores_equal_those_of_lm_eval_s_command_line(model, write, arc, tmp_path):
    """On lm-eval's own ARC-Easy with our files, and on what we write for it."""
    records = arc(30)
    solved = [{"question": f"How many apples are {i} and {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>so.\n#### {2 * i}"} for i in range(3)]
    files = {"arc_easy": write(records, "arc.jsonl"), "arc_challenge": write(records, "more.jsonl"), "gsm_star": write(solved, "gsm.jsonl")}
    engine = run.Engine(str(model), "cpu", "float32", 4)
    scores = {}
    for name, file in files.items():
        made = requests.forms(TASKS[name], data.read(TASKS[name], [file]), shots=0 if name == "arc_easy" else 1)
        requests.write(tmp_path / "forms", made)
        scores[name], _ = run.evaluate(TASKS[name], {form.name: form for form in made}, engine)
    own = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    local = {"task": "arc_easy_here", "dataset_path": "json", "dataset_name": None, "training_split": None, "validation_split": None}
    local |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "arc.jsonl")}}}
    (tmp_path / "forms" / "own.yaml").write_text(yaml.safe_dump({"include": str(own), **local}))

    told = command_line(tmp_path / "forms", model, ["arc_easy_here", "arc_challenge_mcf", "gsm_star_generate"])

    cloze = scores["arc_easy"]["forms"]["cf"]
    for ours, metric in ((cloze["none"], "acc"), (cloze["character"], "acc_norm")):
        assert 0 < ours["score"] < 1
        assert ours["score"] == told["arc_easy_here"][f"{metric},none"]
        assert ours["standard_error"] == pytest.approx(told["arc_easy_here"][f"{metric}_stderr,none"], rel=1e-14)
    assert cloze["none"] != cloze["character"]
    assert scores["arc_challenge"]["forms"]["mcf"]["none"]["score"] == told["arc_challenge_mcf"]["acc,none"]
    assert scores["gsm_star"]["score"] == told["gsm_star_generate"]["exact_match,extracted"]


def test_the_better_form_counts_and_pmi_is_of_the_logged_likelihoods(model, write, arc):
    task = TASKS["arc_challenge"]
    made = {form.name: form for form in requests.forms(task, data.read(task, [write(arc(20))]))}
    scores, samples = run.evaluate(task, made, run.Engine(str(model), "cpu", "float32", 8))
    assert len(samples) == scores["instances"] == 20
    right = 0
    for sample in samples:
        gains = [a - b for a, b in zip(sample["cf_log_likelihoods"], sample["unconditional_log_likelihoods"], strict=True)]
        right += gains.index(max(gains)) == sample["gold"]
    assert scores["forms"]["cf"]["pmi"]["score"] == right / 20
    assert scores["score"] == max(right / 20, scores["forms"]["mcf"]["none"]["score"])
    assert scores["form"] == ("cf" if right / 20 >= scores["forms"]["mcf"]["none"]["score"] else "mcf")


def test_reasoned_answers_count_by_what_the_answer_is_and_their_tasks_alike():
    """lm-eval's part is played: the pattern goes through its own filter, and what it would log comes back."""
    from lm_eval.filters.extraction import RegexFilter

    task, pattern = TASKS["bbh"], TASKS["bbh"].extract
    texts = ["Well, the answer is (A).\nBut the answer is (B).", "So the answer is True", "So the answer is 1 2 3. ", "I do not know."]
    found = RegexFilter(pattern, 0).apply([texts], [])[0]
    assert found == ["(A)", "True", "1 2 3", "[invalid]"]
    golds, subjects = ["(A)", "True", "3", "(B)"], ["snarks", "navigate", "navigate", "navigate"]
    asked = [Problem("what?", [gold], subject) for gold, subject in zip(golds, subjects, strict=True)]
    forms = {form.name: form for form in requests.forms(task, asked)}
    logged = [
        {"resps": [[text]], "filtered_resps": [answer], "exact_match": answer == gold}
        for text, answer, gold in zip(texts, found, golds, strict=True)
    ]
    scores, samples = run.evaluate(task, forms, lambda forms: {"generate": run.Answered({}, logged, 0)})
    assert list(forms) == ["generate"] and "bits_per_byte" not in scores
    assert scores["score"] == pytest.approx((1 + 1 / 3) / 2)
    assert [sample["exact_match"] for sample in samples] == [1, 1, 0, 0]


def test_a_task_in_letters_alone_has_one_form_and_no_bits_per_byte(model, write):
    records = [{"question": f"{i}?", "options": ["x", "y"], "answer_index": i % 2, "category": "law"} for i in range(6)]
    task = TASKS["mmlu_pro"]
    asked = data.read(task, [write(records)])
    forms = {form.name: form for form in requests.forms(task, asked, 1, asked)}
    scores, samples = run.evaluate(task, forms, run.Engine(str(model), "cpu", "float32", 4))
    assert (scores["form"], list(scores["forms"]), "bits_per_byte" in scores) == ("mcf", ["mcf"], False)
    right = [sample["mcf_log_likelihoods"].index(max(sample["mcf_log_likelihoods"])) == sample["gold"] for sample in samples]
    assert scores["score"] == sum(right) / 6
