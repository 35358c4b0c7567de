"""Builders shared by the trainer's tests: tiny mixes, tiny configs, and the trainer as a process of its own."""

import hashlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from trainer import parallel

REPOSITORY = Path(__file__).resolve().parents[2]
SEQUENCE_LENGTH = 32
VOCAB_SIZE = 128
EOS_ID = 0
PAD_ID = 1
RANKS_PATIENCE_SECONDS = 300


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.set_num_threads(1)
    # torch logs two lines a tensor at each checkpoint, which would bury a failed test's own log.
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)


@pytest.fixture
def world() -> Iterator[parallel.World]:
    """A process group of this one process, on the CPU."""
    yield parallel.start("cpu", 1)
    dist.destroy_process_group()


@pytest.fixture
def make_documents() -> Callable[..., list[np.ndarray]]:
    """`make_documents(number, seed=0, low=2, high=VOCAB_SIZE)`: random documents of 5 to 60 ids, none of them EOS or PAD."""

    def build(number: int, seed: int = 0, low: int = 2, high: int = VOCAB_SIZE) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        return [random.integers(low, high, random.integers(5, 61)).astype(np.uint32) for _ in range(number)]

    return build


@pytest.fixture
def make_mix() -> Callable[..., Path]:
    """`make_mix(folder, documents, sequence_length=32, vocab_size=128) -> folder`: a compiled mix of the documents, in their order.

    EOS (id 0) is appended to each document. Documents lie alternately in two token files, so that instances cross files.
    """

    def build(folder: Path, documents: list[np.ndarray], sequence_length: int = SEQUENCE_LENGTH, vocab_size: int = VOCAB_SIZE) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        files: list[list[np.ndarray]] = [[], []]
        used = [0, 0]
        rows, end = [], 0
        for number, document in enumerate(documents):
            closed = np.append(document, EOS_ID).astype("<u4")
            file = number % 2
            end += len(closed)
            rows.append((file, used[file], len(closed), end))
            files[file].append(closed)
            used[file] += len(closed)
        names = ["tokens-0.npy", "tokens-1.npy"]
        for name, parts in zip(names, files, strict=True):
            (folder / name).write_bytes(b"".join(part.tobytes() for part in parts))
        np.save(folder / "extents.npy", np.array(rows, np.int64).reshape(-1, 4))
        header = {
            "version": 1,
            "sequence_length": sequence_length,
            "tokens": end,
            "instances": end // sequence_length,
            "vocab_size": vocab_size,
            "eos_id": EOS_ID,
            "pad_id": PAD_ID,
            "tokenizer": hashlib.sha256(b"test").hexdigest(),
            "files": names,
            "sources": [{"name": "test", "tokens": end}],
            "documents": len(documents),
            "bytes": 4 * (end - len(documents)),
        }
        (folder / "mix.json").write_text(json.dumps(header))
        return folder

    return build


@pytest.fixture
def make_answers() -> Callable[..., Path]:
    """`make_answers(folder, instances, vocab_size=128) -> folder`: gold answers, from contexts and answers as ids; two bytes a token of an
    answer, and an instance counts more the later it stands."""

    def build(folder: Path, instances: list[tuple[list[int], list[int]]], vocab_size: int = VOCAB_SIZE) -> Path:
        folder.mkdir(parents=True)
        np.save(folder / "tokens.npy", np.array([token for context, answer in instances for token in context + answer], np.uint32))
        rows = [(len(context) + len(answer), len(answer), 2 * len(answer)) for context, answer in instances]
        np.save(folder / "rows.npy", np.array(rows, np.int64))
        places = np.arange(1, len(rows) + 1)
        np.save(folder / "weights.npy", places / places.sum())
        header = {"version": 1, "instances": len(rows), "vocab_size": vocab_size, "longest": max(row[0] for row in rows)}
        (folder / "answers.json").write_text(json.dumps(header | {"tokenizer": hashlib.sha256(b"test").hexdigest()}))
        return folder

    return build


@pytest.fixture
def model_dict() -> dict[str, Any]:
    """A tiny model's config."""
    return {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "mlp_hidden": 64,
        "vocab_size": VOCAB_SIZE,
        "max_sequence_length": SEQUENCE_LENGTH,
    }


@pytest.fixture
def make_config(tmp_path: Path, make_mix: Callable[..., Path], make_documents: Callable[..., Any], model_dict: dict) -> Callable[..., dict]:
    """`make_config(**{"optimizer.z_loss": 0.0, ...}) -> dict`: a tiny run's config; dotted keys are replaced. Its mix is made once."""

    def build(**changes: Any) -> dict[str, Any]:
        mix = tmp_path / "mix"
        if not mix.exists():
            make_mix(mix, make_documents(150, high=20))  # few ids, so that there is something to learn
        config: dict[str, Any] = {
            "model": dict(model_dict),
            "data": {"mix": str(mix), "seed": 3},
            "sequence_length": SEQUENCE_LENGTH,
            "global_batch_instances": 4,
            "micro_batch_instances": 4,
            "optimizer": {"learning_rate": 3e-3},
            "schedule": {"kind": "cosine", "warmup_steps": 4, "decay_steps": 40},
            "max_steps": 12,
            "seed": 5,
            "run_folder": str(tmp_path / "run"),
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
        }
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            part = config
            for key in path:
                part = part.setdefault(key, {})
            part[last] = value
        return config

    return build


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`launch(config, ranks=1, module="trainer", arguments=()) -> Popen` in a process group of its own, ended with the test.

    One rank runs as plain `python -m`, more run under torchrun. Standard error and output go to `process.stdout`, as text.
    """
    started: list[subprocess.Popen] = []

    def start(config: dict[str, Any], ranks: int = 1, module: str = "trainer") -> subprocess.Popen:
        path = tmp_path / f"config-{len(started)}.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", module, str(path)]
        if ranks > 1:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def run_trainer(launch: Callable[..., subprocess.Popen]) -> Callable[..., str]:
    """`run_trainer(config, ranks=1, module="trainer", code=0) -> output`: run to the end and check the exit code."""

    def run(config: dict[str, Any], ranks: int = 1, module: str = "trainer", code: int = 0) -> str:
        process = launch(config, ranks, module)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    return run


class RankServer:
    """Runs modules on several ranks that `rank_server.py` forks; a context manager."""

    def __enter__(self) -> "RankServer":
        command = [sys.executable, str(Path(__file__).with_name("rank_server.py"))]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, module: str, arguments: list[str], ranks: int, folder: Path) -> tuple[list[int], str]:
        """Exit codes of the ranks of `python -m MODULE ARGUMENTS`, run in `folder`, and what they wrote to standard output and error."""
        assert self._process.stdin and self._process.stdout
        log = folder / "ranks.log"
        log.write_bytes(b"")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        work = {"module": module, "arguments": arguments, "ranks": ranks, "folder": str(folder), "log": str(log), "port": port}
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], RANKS_PATIENCE_SECONDS)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
        line = self._process.stdout.readline()
        output = log.read_text()
        assert line, output
        return json.loads(line), output


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    """One for all of a session's runs: it imports torch once."""
    with RankServer() as server:
        yield server


@pytest.fixture
def run_ranks(tmp_path: Path, rank_server: RankServer) -> Callable[..., str]:
    """`run_ranks(config, ranks, module="trainer", code=0) -> output`: as `run_trainer`, but ranks are forked instead of started by torchrun.

    For tests of what ranks do, not of how they are started: it takes a third of the time.
    """

    def run(config: dict[str, Any], ranks: int, module: str = "trainer", code: int = 0) -> str:
        path = tmp_path / "ranks.yaml"
        path.write_text(yaml.safe_dump(config))
        codes, output = rank_server.run(module, [str(path)], ranks, tmp_path)
        assert code in codes and (code or not any(codes)), output
        return output

    return run


@pytest.fixture
def read_metrics() -> Callable[[str | Path], list[dict[str, Any]]]:
    """`read_metrics(run_folder) -> list of objects`, one a step."""

    def read(run_folder: str | Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(run_folder) / "metrics.jsonl").read_text().splitlines()]

    return read
