"""The Slurm engine: a plan's shards shared out over the tasks of a job array, each the runner of shards that the local engine starts."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks import slurm
from tasks.engine import await_records, balanced, raise_errors, run_plan
from tasks.errors import UserError
from tasks.heartbeat import Heartbeat
from tasks.progress import Watch, ignore
from tasks.shards import Engine
from tasks.slurm import SlurmSettings
from tasks.store import Store

ALONE_SECONDS = 600.0  # after which an array whose run was killed ends by itself
LEFT_SECONDS = 7 * 86400.0  # after which the plan of a run that was killed is taken away
TRIES = 2  # of a rank that is lost without a word

log = logging.getLogger(__name__)


class SlurmConfig(SlurmSettings):
    """Shards on a Slurm cluster. Its nodes need the same installation, and must see the store and the raw files under the same paths."""

    kind: Literal["slurm"] = Field(default="slurm", description="slurm: tasks of job arrays.", json_schema_extra={"position": 0})
    workers: int = Field(default=16, ge=1, description="Tasks of an array, which share a step's shards.", json_schema_extra={"position": 1})
    at_once: int | None = Field(
        default=None,
        ge=1,
        description="Tasks that run at once; as many as find a place where left empty.",
        json_schema_extra={"position": 2},
    )
    work_folder: str = Field(
        default="olmoflow-work", description="Folder for plans and progress that every node sees.", json_schema_extra={"position": 3}
    )


class SlurmEngine(Engine):
    """Shards as job arrays, one a step."""

    def __init__(self, config: SlurmConfig, watch: Watch = ignore) -> None:
        self.config, self.watch = config, watch

    def run(self, plan: dict[str, Any], weights: list[int], store: Store) -> None:
        ranks = min(self.config.workers, len(plan["shards"]))
        for spec, rank in zip(plan["shards"], balanced(weights, ranks), strict=True):
            spec["rank"] = rank
        url = store.root if store.is_local else store.url  # a relative folder is another one on another node
        folder = Path(self.config.work_folder).resolve()
        _sweep(folder)
        lost: dict[int, str] = {}

        def start(path: Path, watcher: Callable[[], None]) -> list[int]:
            array = _Array(path, self.config, f"olmoflow-{plan['step']['name']}-{uuid.uuid4().hex[:8]}")
            lost.update(dict.fromkeys(range(ranks), ""))
            for attempt in range(TRIES):
                if attempt:
                    log.info("%s %s: ranks %s were lost and are tried again", plan["step"]["name"], plan["name"], _listed(lost))
                ended = array.run(lost, watcher)
                lost.clear()
                lost.update(ended)
                if not lost:
                    break
            return []

        _, errors = run_plan({**plan, "store": url}, weights, self.watch, start, folder)
        raise_errors(plan, errors, [])
        step = f"{plan['step']['name']} {plan['name']}"
        if lost:
            rank, cause = next(iter(lost.items()))
            raise UserError(
                f"{step}: {len(lost)} of the {ranks} array tasks were lost, task {rank} twice ({cause}); was memory short? then raise "
                "where.engine.memory, and run the same command again to go on where it stopped"
            )
        await_records(plan, store, url, "a node of the Slurm cluster")


class _Array:
    """The array of one plan."""

    def __init__(self, plan: Path, config: SlurmConfig, name: str) -> None:
        self.folder, self.config, self.name = plan.parent, config, name
        self.script = self.folder / "shards.sh"
        self.heartbeat = Heartbeat(self.folder / "heartbeat", ALONE_SECONDS)
        slurm.write_script(
            "shards.sh",
            self.script,
            options=[
                *config.sbatch(),
                f"--cpus-per-task={config.cpus}",
                f"--chdir={Path.cwd()}",
                slurm.output_option(self.folder / "log-", "%a"),
            ],
            folder=self.folder,
            setup=config.setup,
            python=sys.executable,
            heartbeat=self.heartbeat.path,
            alone_seconds=ALONE_SECONDS,
            threads=config.cpus,
            plan=plan,
        )

    def run(self, ranks: Iterable[int], watcher: Callable[[], None]) -> dict[int, str]:
        """Run these ranks to their end; those that ended without telling how, with why as far as Slurm knows."""

        def poll() -> None:
            self.heartbeat.beat()
            watcher()

        wanted = sorted(ranks)
        limit = f"%{self.config.at_once}" if self.config.at_once else ""
        poll()
        job = slurm.submit(self.script, self.name, [f"--array={_listed(wanted)}{limit}"])
        try:
            told = slurm.wait(job, poll)
        except BaseException:
            slurm.cancel(job)
            raise
        states = {status.rank: status for status in told or []}
        return {rank: self._cause(job, rank, states.get(rank)) for rank in wanted if not self._told(rank)}

    def _told(self, rank: int) -> bool:
        """Whether a rank has made its shards, or said why not."""
        list(self.folder.iterdir())  # opening a folder makes a network file system ask anew what is in it
        code = self.folder / f"code-{rank}"
        return (code.exists() and code.read_text().strip() == "0") or (self.folder / f"error-{rank}.json").exists()

    def _cause(self, job: str, rank: int, status: slurm.Status | None) -> str:
        path = self.folder / f"log-{rank}"
        words = path.read_text(errors="replace").split("\n") if path.exists() else []
        said = next((line.strip() for line in reversed(words) if line.strip()), "")
        state = f"{status.state}, {status.reason}" if status else "Slurm has forgotten it"
        return f"job {job}_{rank}: {state}" + (f", saying {said!r}" if said else f", no output in {path}: do the nodes see that folder?")


def _sweep(folder: Path) -> None:
    """Remove the plans of runs that were killed long ago."""
    for path in folder.glob("plan-*/heartbeat"):
        with contextlib.suppress(OSError):  # another run sweeps, too
            if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(path.parent)


def _listed(ranks: Iterable[int]) -> str:
    """Ranks as sbatch's --array has them, runs of them short: its line may not be endless."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
