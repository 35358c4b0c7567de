"""A model's evaluation against lm-eval's own command line, on the same tasks: `python -m benchmarks.evaluation`.

Both are given the requests that olmoflow writes for real evaluation files, in cloze and multiple-choice form and in words, and a model of
random weights as olmoflow exports one. Each is a process of its own from its start to its last score, since a model is evaluated so; the
scores must be equal to the digit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure, recipes
from benchmarks.measure import Run
from tasks.olmes import data, requests
from tasks.olmes.definitions import TASKS
from tasks.olmes.run import REQUESTS, SCORES
from tasks.sources.base import RawFile

CLAIM = "evaluation_vs_lm_eval"
BATCH = 16
FILES = {
    "arc_challenge": "eval/hf/arc_challenge.validation.jsonl.gz",
    "winogrande": "eval/hf/winogrande.validation.jsonl.gz",
    "naturalqs": "eval/hf/nq_open.validation.jsonl.gz",
    "gsm_star": "math/gsm8k/test.first660.jsonl",
}


def write_model(folder: Path, work: Path) -> None:
    """An exported model of random weights with OLMo 2's tokenizer."""
    import torch

    from olmo_model.config import ModelConfig
    from olmo_model.hf import export
    from olmo_model.init import init_weights
    from olmo_model.model import Olmo2
    from tasks.tokenizer import Tokenizer

    source = recipes.tokenizer(work)
    tokenizer = Tokenizer.load(source)
    config = ModelConfig(
        d_model=256, n_layers=4, n_heads=8, n_kv_heads=8, mlp_hidden=768, vocab_size=tokenizer.vocab_size, max_sequence_length=2048
    )
    model = Olmo2(config)
    init_weights(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():  # far from a uniform prediction, so that no two choices are equal but for rounding
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    export(model.state_dict().items(), config, folder, source, tokenizer.eos_id, tokenizer.pad_id)


def write_requests(folder: Path, samples: Path, instances: int) -> None:
    for name, path in FILES.items():
        file = samples / path
        asked = data.read(TASKS[name], [RawFile(f"file://{file}", file.name, file.stat().st_size, "")])
        rows = data.counted(TASKS[name], len(asked), instances)
        requests.write(folder / name / REQUESTS, requests.forms(TASKS[name], [asked[row] for row in rows]))


def one(who: str, folder: Path) -> None:
    """In a process of its own: evaluate, say the seconds."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    if who == "olmoflow":
        config = {"model": str(folder / "model"), "device": "cpu", "dtype": "float32", "batch_size": BATCH, "threads": threads}
        config |= {"tasks": {name: str(folder / name) for name in FILES}}
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        command = ["-m", "tasks.olmes.run", str(folder / "run.yaml")]
        where = Path.cwd()
    else:
        where = folder / "all"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        for name in FILES:
            shutil.copytree(folder / name / REQUESTS, where, dirs_exist_ok=True)
        tasks = ",".join(sorted(path.stem for path in where.glob("*.yaml")))
        command = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32"]
        command += ["--device", "cpu", "--batch_size", str(BATCH), "--tasks", tasks, "--include_path", ".", "--output_path", "told"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "TQDM_DISABLE": "1"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    print(json.dumps({"seconds": seconds, "scores": _ours(folder) if who == "olmoflow" else _theirs(where / "told")}))


def _ours(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for name in FILES:
        told = json.loads((folder / name / SCORES).read_text())
        found |= {f"{name}_{form}": run["lm_eval"] for form, run in told["runs"].items()}
    return found


def _theirs(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.rglob("results_*.json")
    results: dict[str, dict[str, Any]] = json.loads(path.read_text())["results"]
    return {
        task: {metric: value for metric, value in scores.items() if isinstance(value, float) and "_stderr" not in metric}
        for task, scores in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=100, help="of each task")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", type=Path, default=os.environ.get("OLMOFLOW_DATA"), help="the folder of real samples")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]))
        return
    if options.data is None:
        why = "no folder of real samples: set OLMOFLOW_DATA or give --data"
        measure.report([("instances a task", str(options.instances))], {CLAIM: measure.unmeasured(why)}, options.out)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluation-", dir=options.folder) as name:
        folder = Path(name).resolve()
        write_model(folder / "model", options.folder)
        write_requests(folder, Path(options.data), options.instances)

        def run(who: str) -> Run:
            return measure.run_script([sys.executable, "-m", "benchmarks.evaluation", "--one", who, str(folder)], options.cores)

        runs = measure.in_turns(options.rounds, {"olmoflow": lambda: run("olmoflow"), "lm-eval": lambda: run("lm-eval")})
    for ours, theirs in zip(runs["olmoflow"], runs["lm-eval"], strict=True):
        if ours.said["scores"] != theirs.said["scores"]:
            raise SystemExit(f"the scores differ: {ours.said['scores']} and {theirs.said['scores']}")
    table = [("tasks", ", ".join(FILES)), ("instances a task", str(options.instances)), ("cores", str(options.cores))]
    for who, of in runs.items():
        table.append((who, f"{sorted(each.seconds for each in of)[len(of) // 2]:.1f} s"))
    versus = [ours.seconds / theirs.seconds for ours, theirs in zip(runs["olmoflow"], runs["lm-eval"], strict=True)]
    measure.report(table, {CLAIM: measure.claim(versus)}, options.out)


if __name__ == "__main__":
    main()
