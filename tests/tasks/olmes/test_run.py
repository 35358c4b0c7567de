"""Scores are those that lm-eval's own command line prints for the exported model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.olmes import data, requests, run
from tasks.olmes.definitions import TASKS

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
