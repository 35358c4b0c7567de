"""A thin client of Slurm's commands, with the configuration that the environment has (`SLURM_CONF` or the system's).

`squeue` is asked for the end of jobs: `sbatch --wait` was seen to hang, and not every cluster keeps accounts for `sacct`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import jinja2
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError

TEMPLATES = Path(__file__).parents[1] / "deployments" / "slurm"
AWAY_SECONDS = 900.0  # that a controller may be away for, while jobs go on without it
FIRST_SECONDS, LONGEST_SECONDS = 0.5, 15.0  # between two questions: more seldom the longer jobs take, since all users share the controller
POLL_SECONDS = 0.5
END_SECONDS = 120.0  # from SIGKILL to a job's end in Slurm's books
AWAY = re.compile(r"contact slurm controller|timed out|temporarily|Connection|controller is running in standby", re.IGNORECASE)
UNKNOWN = re.compile(r"Invalid job id", re.IGNORECASE)
LIVE = {
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
}


class SlurmSettings(BaseModel):
    """What Slurm is asked for."""

    model_config = ConfigDict(extra="forbid")
    partition: str | None = Field(
        default=None, description="Partition; the cluster's own where left empty.", json_schema_extra={"position": 10}
    )
    account: str | None = Field(default=None, description="Account that the jobs are booked on.", json_schema_extra={"position": 11})
    time_limit: str | None = Field(
        default=None,
        pattern=r"^(\d+-)?\d+(:\d+){0,2}$",
        description="Longest time of a job as sbatch has it (90 minutes, 12:00:00, 2-00:00:00); a training that reaches it saves and goes on in another job.",
        json_schema_extra={"position": 12},
    )
    cpus: int = Field(default=1, ge=1, description="CPUs of an array's task, or of a rank.", json_schema_extra={"position": 13})
    memory: str | None = Field(
        default=None,
        pattern=r"^\d+[KMGT]?$",
        description="Memory of an array's task, or of a node of a job, as sbatch has it (32G); the cluster's own where left empty.",
        json_schema_extra={"position": 14},
    )
    options: list[str] = Field(
        default=[], description="Further options of sbatch, such as --exclusive or --qos=long.", json_schema_extra={"position": 15}
    )
    setup: list[str] = Field(
        default=[], description="Lines of shell that a job runs first, such as `module load cuda`.", json_schema_extra={"position": 16}
    )

    def sbatch(self) -> list[str]:
        """The settings as options of sbatch, those that say how many CPUs aside."""
        wanted = {"partition": self.partition, "account": self.account, "time": self.time_limit, "mem": self.memory}
        return [*(f"--{name}={value}" for name, value in wanted.items() if value), *self.options]


@dataclass(frozen=True)
class Status:
    """A job, or a task of an array (`rank`), in Slurm's books."""

    state: str
    reason: str
    rank: int | None = None

    @property
    def is_live(self) -> bool:
        return self.state in LIVE


class Unreachable(Exception):
    """The controller gave no answer."""


def output_option(path: Path, suffix: str = "") -> str:
    """sbatch's option for a log; in a path % begins what sbatch fills in, as it may do in the suffix."""
    return f"--output={str(path).replace('%', '%%')}{suffix}"


def write_script(template: str, path: Path, **values: object) -> None:
    """A batch script from a template of `deployments/slurm`; `quote` in it is the shell's."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: quote(str(value))
    environment.filters["option"] = lambda value: str(value) if " " not in str(value) else f'"{value}"'
    path.write_text(environment.get_template(template).render(**values))


def submit(script: Path, name: str, options: list[str]) -> str:
    """Submit a batch script; the job's id. The name must be its own: it tells whether an attempt whose answer was lost has come through."""
    command = ["sbatch", "--parsable", f"--job-name={name}", *options, str(script)]
    for _ in _patience():
        try:
            return _ask(command).strip().split(";")[0]
        except Unreachable as error:
            last = error
        except (KeyboardInterrupt, SystemExit):  # in the middle: it may have come through
            found = find(name)
            if found is not None:
                cancel(found)
            raise
        found = find(name)
        if found is not None:
            return found
    raise UserError(f"Slurm takes no job: {last}; see `sinfo` and `scontrol ping`, and run the same command again")


def find(name: str) -> str | None:
    """The id of this user's live job of a name."""
    for _ in _patience():
        try:
            found = _ask(["squeue", "-h", "-o", "%A", "-u", str(os.getuid()), "-n", name]).split()
        except Unreachable as error:
            last = error
            continue
        return found[0] if found else None
    raise UserError(f"Slurm does not answer: {last}; see `scontrol ping`, and run the same command again")


def statuses(job: str) -> list[Status] | None:
    """Where a job stands, each task of an array by itself; None where Slurm does not know it (any more)."""
    try:
        told = _ask(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T|%K|%r"])
    except UserError as error:
        if UNKNOWN.search(str(error)):
            return None
        raise
    lines = [line.split("|", 2) for line in told.splitlines()]
    return [Status(state, reason, int(rank) if rank.isdigit() else None) for state, rank, reason in lines] or None


def wait(job: str, poll: Callable[[], object]) -> list[Status] | None:
    """Wait for a job's end; its last statuses, or None where Slurm has forgotten it. `poll` is called meanwhile.

    Raises UserError where no controller answers for `AWAY_SECONDS`.
    """
    pause, heard = FIRST_SECONDS, time.monotonic()
    while True:
        try:
            told = statuses(job)
            heard = time.monotonic()
            if told is None or not any(each.is_live for each in told):
                return told
        except Unreachable as error:
            if time.monotonic() - heard > AWAY_SECONDS:
                raise UserError(
                    f"Slurm has not answered for {AWAY_SECONDS / 60:.0f} minutes ({error}), while it had job {job}; run the same command again when it does"
                ) from error
        until = time.monotonic() + pause
        pause = min(1.3 * pause, LONGEST_SECONDS)
        while (left := until - time.monotonic()) > 0:
            poll()
            time.sleep(max(0.0, min(left, POLL_SECONDS)))


def steps(job: str) -> list[str]:
    """The steps that a job runs, its batch script aside."""
    return [step for step in _ask(["squeue", "-h", "-s", "-j", job, "-o", "%i"]).split() if step.rsplit(".", 1)[-1].isdigit()]


def end(job: str, grace_seconds: float) -> None:
    """End a job and wait for it: one that waits is taken back, the steps of one that runs get SIGTERM once and time to save first.

    An answer that does not come ends the trying: who waits may be leaving, and a job that nobody waits for ends by itself.
    """
    deadline, told = time.monotonic() + grace_seconds, False
    try:
        _ask(["scancel", "--state=PENDING", job], fails=False)
        while time.monotonic() < deadline:
            if not _lives(job):
                return
            if not told and steps(job):
                # Only to the steps: srun, which the batch script waits for, would kill them at once
                _ask(["scancel", "--signal=TERM", job], fails=False)
                told = True
            time.sleep(min(POLL_SECONDS, 0.2))
        cancel(job)
    except Unreachable:
        return


def cancel(job: str) -> None:
    """End a job at once and wait until Slurm has it in its books."""
    try:
        _ask(["scancel", job], fails=False)
        deadline = time.monotonic() + END_SECONDS
        while _lives(job) and time.monotonic() < deadline:
            time.sleep(min(POLL_SECONDS, 0.2))
    except Unreachable:
        return


def nodes() -> dict[str, str]:
    """States of the cluster's nodes by name."""
    return dict(line.split() for line in _ask(["sinfo", "-h", "-N", "-o", "%N %T"]).splitlines())


def _lives(job: str) -> bool:
    told = statuses(job)
    return told is not None and any(each.is_live for each in told)


def _patience() -> Iterator[None]:
    deadline, pause = time.monotonic() + AWAY_SECONDS, FIRST_SECONDS
    while True:
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(1.3 * pause, LONGEST_SECONDS)


def _ask(command: list[str], fails: bool = True) -> str:
    """What a command prints. Raises Unreachable where the controller is away, and UserError with its words where it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not installed here: run olmoflow on a machine of the Slurm cluster, or take kind local"
        ) from error
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.strip().splitlines() if line]
    said = re.sub(rf"^{command[0]}: (error: )?", "", lines[-1]) if lines else f"{command[0]} ended with {done.returncode}"
    if AWAY.search(done.stderr):
        raise Unreachable(said)
    if not fails:
        return done.stdout
    raise UserError(f"{command[0]} refuses: {said}")
