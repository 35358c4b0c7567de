"""A small recipe over files that the tests write, and the CLI as a person runs it."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from flows.summary import RunSummary
from tasks.store import Record

MARK = "OLMOFLOW_TEST_MARK"  # in the environment of every process that a lab starts
PATIENCE_SECONDS = 120  # a bound on waiting for a condition, not a measurement

WORDS = [
    "the",
    "quick",
    "model",
    "reads",
    "a",
    "long",
    "document",
    "about",
    "rivers",
    "mountains",
    "and",
    "small",
    "gradient",
    "steps",
    "while",
    "seven",
    "tokens",
    "wait",
    "for",
    "their",
    "turn",
]


def sentences(rng, count):
    return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(count))


def write_sources(folder: Path, files: int = 3, rows: int = 40) -> None:
    """web: JSONL with a score; maths: Dolma; both with a few documents that the filters drop."""
    for number in range(files):
        rng = random.Random(number)
        lines = [
            {"id": f"w{number}-{i}", "text": f"{number} {i} {sentences(rng, 6)}", "score": i % 5, "kind": "hq" if i % 2 else "cc"}
            for i in range(rows)
        ]
        path = folder / "web" / f"{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sums = [
            {"id": f"m{number}-{i}", "source": "made", "text": f"What is {i} plus {number}? It is {i + number}. {sentences(rng, 2)}"}
            for i in range(rows)
        ]
        sums.append({"id": f"loop{number}", "source": "made", "text": "again and " * 60})
        path = folder / "maths" / f"{number}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in sums).encode(), mtime=0))


def recipe(folder: Path, store: Path) -> dict:
    quality = {"column": "quality", "min": 0.0}
    repeated = {"column": "repeated", "equals": False}
    labelled = {
        "format": "jsonl",
        "paths": [f"{folder}/labels/*.jsonl"],
        "fields": {"columns": {"label": {"field": "kind", "type": "string"}}},
    }
    return {
        "name": "small",
        "store": str(store),
        "scorers": {
            "quality": {
                "scorer": {"type": "fasttext"},
                "train": {"type": "fasttext", "dim": 4, "bucket": 100, "examples": [{**labelled, "label_column": "label"}]},
            }
        },
        "sources": {
            "web": {
                "format": "jsonl",
                "paths": [f"{folder}/web/*.jsonl"],
                "fields": {"columns": {"votes": {"field": "score", "type": "int"}}},
                "scores": {"quality": {}},
                "tokenize_where": {"filters": [{"column": "votes", "min": 1}]},
                "filters": [{"column": "votes", "min": 2}, quality, repeated],
            },
            "maths": {"format": "dolma", "paths": [f"{folder}/maths/*.gz"], "filters": [repeated]},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 320, "train_on": [labelled]},
        "sequence_length": 32,
        "held_out": {"share": 0.1, "tokens_per_source": 1000},
        "mixes": {
            "pre": {"sources": {"web": {"repeat": 1}, "maths": {"repeat": 0.5}}},
            "mid": {"sources": {"maths": {"repeat": 1}, "web": {"share": 0.5, "max_repeat": 4}}},
        },
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "mlp_hidden": 64},
        "pretrain": {
            "mix": "pre",
            "steps": 24,
            "learning_rate": 0.003,  # above it rounding grows from step to step, and two ranks part from one
            "warmup_steps": 2,
            "decay_steps": 40,
            "global_batch_instances": 8,
            "micro_batch_instances": 8,
            "precision": "fp32",
            "checkpoint_every": 4,
        },
        "micro_anneals": {"maths": {"sources": {"maths": 0.5}, "general": {"web": 1}}},
        "anneal": {"mix": "mid", "seeds": [1, 2], "steps": 4},
        "where": {"engine": {"workers": 2}, "launcher": {"processes": 1, "threads": 1, "device": "cpu"}},
    }


class Lab:
    """A folder with raw files, a recipe and a store, and the commands on them."""

    def __init__(self, folder: Path, prefect_home: Path) -> None:
        self.folder, self.store, self.file = folder, folder / "store", folder / "recipe.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        write_sources(folder)
        (folder / "labels").mkdir()
        (folder / "labels" / "all.jsonl").write_text((folder / "web" / "0.jsonl").read_text())
        self.write(recipe(folder, self.store))
        self.environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "OMP_NUM_THREADS": "1", MARK: str(folder)}

    def renamed(self, folder: Path) -> "Lab":
        """The lab's store as another lab's, to compare with; the lab itself has none then."""
        other = Lab.__new__(Lab)
        other.folder, other.store = folder, folder / "store"
        folder.mkdir()
        self.store.rename(other.store)
        return other

    def write(self, config: dict) -> None:
        self.config = config
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def processes(self) -> dict[int, bytes]:
        """Command lines of the processes that the lab's commands have started and that still live, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.environment[MARK]}\0".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
        return found

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL to the CLI alone: what it started must end by itself."""
        process.kill()
        process.wait()
        self.wait_for_no_process()  # before its output is read to the end: what outlives it may hold the pipe
        process.communicate()

    def wait_for_no_process(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, f"processes {left} outlived the command that started them"
            time.sleep(0.05)  # between looks

    def end_to_end(self, *arguments: str) -> dict:
        done = self.run("run", "end-to-end", str(self.file), "--json", *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def mixes_here(self) -> dict:
        """Everything up to the mixes, without the CLI and Prefect, in this process: what is made and reused does not depend on them."""
        config = load(self.file)
        pipeline = Pipeline(config, make_runner(config))
        pipeline.curate()
        pipeline.mix_all()
        return asdict(RunSummary.of(pipeline, "mix", "", 0.0))

    def records(self, step: str) -> list[Record]:
        return [Record.from_json(path.read_text()) for path in sorted(self.store.glob(f"shards/{step}/*/record.json"))]

    def checksums(self, *steps: str) -> dict[tuple[str, str, str], str]:
        """SHA-256 of every file of steps, by step, shard and name."""
        return {(step, record.key, file.name): file.sha256 for step in steps for record in self.records(step) for file in record.files}

    def losses(self) -> dict[str, list[float]]:
        """Loss curves of the training runs, by shard."""
        curves = {}
        for record in self.records("train"):
            lines = (self.store / record.file("metrics.jsonl").path).read_text().splitlines()
            curves[record.key] = [json.loads(line)["loss"] for line in lines]
        return curves


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory):
    """One home for all tests: a fresh one costs a database migration."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def made(tmp_path_factory, prefect_home):
    """A lab in which end-to-end has run once, undisturbed; tests must not change it."""
    lab = Lab(tmp_path_factory.mktemp("lab") / "made", prefect_home)
    lab.summary = lab.end_to_end()
    return lab


@pytest.fixture(scope="session")
def lab_in():
    """`Lab` itself, for fixtures of other modules."""
    return Lab


@pytest.fixture
def lab(tmp_path, prefect_home):
    return Lab(tmp_path / "lab", prefect_home)


@pytest.fixture
def copied(made, tmp_path, prefect_home):
    """A copy of the made lab, to change: keys do not depend on where raw files or the store lie."""
    lab = Lab.__new__(Lab)
    lab.folder, lab.store, lab.file = tmp_path / "copy", tmp_path / "copy" / "store", tmp_path / "copy" / "recipe.yaml"
    shutil.copytree(made.folder, lab.folder)
    lab.environment = made.environment
    lab.write(recipe(lab.folder, lab.store))
    return lab
