"""The Slurm launcher: a GPU job as a batch job that runs one torchrun a node (`deployments/slurm/torchrun.sh`).

A job outlives its launcher for `ALONE_SECONDS`: who starts the same launch again within that time waits for the same job, and after it the
job saves and ends. A requeued job, and one that is submitted again, goes on from the run's newest whole checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tasks import scratch, slurm
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.heartbeat import ALONE, TERMINATED, Heartbeat
from tasks.launch import LauncherConfig, failed
from tasks.store import fingerprint

ALONE_SECONDS = 600.0
GRACE_SECONDS = 30  # from SIGTERM to SIGKILL when it is cancelled
LIMIT_GRACE_SECONDS = 120  # from SIGTERM to the time limit
SHORT_SECONDS = 600.0  # a job that ends sooner, though it should go on, does so only `AGAIN` times
AGAIN = 3
BOOKS = ".job"  # the file beside a config that names the job while it runs
GOES_ON = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
CODES = {str(TERMINATED): "asked to end by Slurm, as before its time limit", str(ALONE): "nobody had waited for it"}

log = logging.getLogger(__name__)


def end_earlier(path: Path, but: str = "") -> None:
    """End the job that a launch left in this folder when it was killed, unless its name is `but`: two must not write at once."""
    books = path.with_suffix(BOOKS)
    if not books.exists() or (name := json.loads(books.read_text())["name"]) == but:
        return
    try:
        found = slurm.find(name)
        if found is not None:
            slurm.end(found, GRACE_SECONDS)
    except UserError as error:
        raise UserError(f"Slurm job {name} may still run in {path.parent} ({error}); see that it has ended, and remove {books}") from error
    books.unlink()


def run(
    module: str, config: dict[str, Any], path: Path, launcher: LauncherConfig, progress: Callable[[], None], cordon: Cordon | None
) -> None:
    """See `tasks.launch.launch`; `path` is where the config is written."""
    job = _Job(module, config, path, launcher)
    job.check_folder()
    end_earlier(path, job.name)
    short = 0
    while True:
        began = time.monotonic()
        outcome, start = job.run(progress, cordon)
        if outcome == "0":
            return
        short = short + 1 if time.monotonic() - began < SHORT_SECONDS else 0
        if (outcome not in CODES and outcome not in GOES_ON) or short > AGAIN:
            raise failed(module, outcome, job.log, start)
        log.warning("%s: Slurm job %s ended (%s) and is submitted again", module, job.id, CODES.get(outcome, outcome))


class _Job:
    """A launch's job, by a name that follows from the launch: so it is found again."""

    def __init__(self, module: str, config: dict[str, Any], path: Path, launcher: LauncherConfig) -> None:
        self.module, self.path, self.launcher = module, path, launcher
        self.text = yaml.safe_dump(config, sort_keys=False)
        self.code, self.script, self.log, self.books = (path.with_suffix(ending) for ending in (".code", ".sh", ".log", BOOKS))
        self.heartbeat = Heartbeat(path.with_suffix(".heartbeat"), ALONE_SECONDS)
        settings = launcher.model_dump(include={"nodes", "processes", "threads", "device", "slurm"})
        self.name = f"olmoflow-{path.stem}-{fingerprint([str(path), self.text, settings])[:16]}"
        self.id = ""

    def check_folder(self) -> None:
        if self.path.is_relative_to(scratch.folder()) and "TMPDIR" not in os.environ:
            raise UserError(
                f"where.launcher.kind is slurm, but {self.path.parent} is on this machine's own disk, since the store is remote: give a `store` in a "
                "folder that every node sees, or set TMPDIR to such a folder"
            )

    def run(self, progress: Callable[[], None], cordon: Cordon | None) -> tuple[str, int]:
        """Submit the job, or find it, and wait for its end; its exit code or else its state, and where in the log its output begins."""

        def poll() -> None:
            self.heartbeat.beat()
            progress()

        start = self.log.stat().st_size if self.log.exists() else 0
        self.heartbeat.beat()
        found = slurm.find(self.name)
        if found is None:
            exclude = self._exclude(cordon)
            self._write()
            self.books.write_text(json.dumps({"name": self.name}))
            self.id = slurm.submit(self.script, self.name, exclude)
        else:
            self.id = found
            log.info("%s goes on in Slurm job %s, which an earlier run started", self.module, self.id)
        try:
            told = slurm.wait(self.id, poll)
        except BaseException:
            slurm.end(self.id, GRACE_SECONDS)
            raise
        finally:
            self.books.unlink()
        return self._outcome(told), start

    def _write(self) -> None:
        launcher = self.launcher
        gpus = [] if launcher.device == "cpu" else [f"--gpus-per-node={launcher.processes}"]
        limit = [f"--signal=TERM@{LIMIT_GRACE_SECONDS}"] if launcher.slurm.time_limit else []
        self.path.write_text(self.text)
        self.code.unlink(missing_ok=True)
        slurm.write_script(
            "torchrun.sh",
            self.script,
            options=[*launcher.slurm.sbatch(), *gpus, *limit, f"--chdir={Path.cwd()}", slurm.output_option(self.log)],
            nodes=launcher.nodes,
            processes=launcher.processes,
            cpus=launcher.slurm.cpus * launcher.processes,
            threads=launcher.threads_per_rank,
            setup=launcher.slurm.setup,
            code=self.code,
            python=sys.executable,
            heartbeat=self.heartbeat.path,
            alone_seconds=ALONE_SECONDS,
            module=self.module,
            config=self.path,
            torchrun=launcher.ranks > 1,
        )

    def _exclude(self, cordon: Cordon | None) -> list[str]:
        """sbatch's --exclude for the cordoned hosts that the cluster has: of others it would not take a name."""
        cordoned = cordon.hosts() if cordon else {}
        nodes = slurm.nodes() if cordoned else {}
        away = [host for host in cordoned if host in nodes]
        if away and len(nodes) - len(away) < self.launcher.nodes:
            assert cordon is not None
            raise UserError(
                f"the job takes {self.launcher.nodes} of the cluster's {len(nodes)} nodes, but {len(away)} are cordoned, the first {cordoned[away[0]]}: "
                f"mend it and run `olmoflow doctor --store {cordon.store.url} --uncordon {away[0]}`, or take fewer where.launcher.nodes"
            )
        return [f"--exclude={','.join(away)}"] if away else []

    def _outcome(self, told: list[slurm.Status] | None) -> str:
        list(self.path.parent.iterdir())  # opening a folder makes a network file system ask anew what is in it
        code = self.code.read_text().strip() if self.code.exists() else None
        if code == "0":
            return code
        state = told[0].state if told else "NODE_FAIL"  # forgotten, and it did not come to its end
        return state if code is None or state == "CANCELLED" else code
