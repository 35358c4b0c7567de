"""`make soak`: kill -9 at random moments, again and again; the run completes, the books balance, and not a byte differs."""

import hashlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

KILLS = 30
EXACT_STEPS = ("ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix", "held-out")
PATIENCE_SECONDS = 300  # a bound on waiting for a condition, not a measurement

pytestmark = [pytest.mark.soak, pytest.mark.fault]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def wait_until_killed(lab, process, rng) -> str:
    """Let the command run to a random moment, and kill it or one of its workers; tells what died, or that nothing had to.

    Two thirds of the moments lie after the command has begun to write to the store, the others anywhere from its start.
    """
    victim = rng.choice(["command", "command", "worker", "trainer"])
    before, deadline = files(lab.store), time.monotonic() + PATIENCE_SECONDS
    if rng.random() < 0.67:
        while files(lab.store) == before and process.poll() is None:
            assert time.monotonic() < deadline, "the command neither wrote anything nor ended"
            time.sleep(0.01)  # between looks
    time.sleep(rng.random() * rng.choice([0.3, 3, 10]))  # the random moment
    while process.poll() is None:
        if victim == "command":
            lab.kill(process)
            return victim
        names = {"worker": b"tasks.shard", "trainer": b"trainer"}[victim]
        chosen = [pid for pid, line in lab.processes().items() if names in line]
        if chosen:
            os.kill(rng.choice(sorted(chosen)), signal.SIGKILL)
            return victim
        time.sleep(0.01)  # between looks for one that lives
    return "nothing"


def check_whole(lab, undisturbed) -> None:
    """The same shards with the same bytes, each by one attempt, and the books balance from step to step."""
    assert lab.checksums(*EXACT_STEPS) == undisturbed.checksums(*EXACT_STEPS)
    assert lab.losses() == undisturbed.losses()
    books: dict[str, list] = {}
    for step in EXACT_STEPS:
        for record in lab.records(step):
            record.books.balance(record.name)
            books.setdefault(step, []).append(record.books)
            for file in record.files:
                assert hashlib.sha256((lab.store / file.path).read_bytes()).hexdigest() == file.sha256
            beside = {path.name for path in (lab.store / "shards" / step / record.key).iterdir()}
            assert beside == {"record.json", record.attempt} - ({record.attempt} if not record.files else set())
    documents = sum(each.counts["documents"] for each in books["ingest"])
    assert documents == sum(each.read for each in books["tokenize"]) == sum(each.read for each in books["select"])


def test_killed_thirty_times_it_ends_with_the_books_and_bytes_of_an_undisturbed_run(lab, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    lab.environment = {**lab.environment, "TMPDIR": str(temporary)}
    command = ("run", "pretrain", str(lab.file))
    whole = lab.run(*command)
    assert whole.returncode == 0, whole.stderr
    undisturbed = lab.renamed(tmp_path / "undisturbed")

    rng = random.Random(20261125)
    died: list[str] = []
    while len(died) < KILLS:
        process = lab.start(*command)
        what = wait_until_killed(lab, process, rng)
        if what == "nothing":  # it was done before its moment came
            assert process.wait() == 0, process.stdout.read().decode()
            check_whole(lab, undisturbed)
            shutil.rmtree(lab.store)
            continue
        died.append(what)
        if what != "command":  # the command itself says in a sentence what became of its worker
            told = process.communicate()[0].decode()
            assert process.returncode in (0, 1), told  # 0 where the worker had done its work
            assert "Traceback" not in told or process.returncode == 0, told
        lab.wait_for_no_process()
    last = lab.run(*command)
    assert last.returncode == 0, last.stderr
    check_whole(lab, undisturbed)
    lab.wait_for_no_process()
    left = [path for path in temporary.iterdir() if path.name.startswith("olmoflow-")]
    assert left == [] and set(died) == {"command", "worker", "trainer"}
