"""GPU jobs: `launch` runs a module under torchrun where the recipe says, on this machine or as a Slurm job or in the pods of a Kubernetes Job, and away from cordoned hosts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.slurm import SlurmSettings
from trainer.verdict import VERDICT

ELSEWHERE = 3  # times that a job whose host was cordoned goes elsewhere by itself

log = logging.getLogger(__name__)


class LauncherConfig(BaseModel):
    """Where GPU jobs run. No part of any key: it may change a run's speed, not what it is."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["local", "slurm", "kubernetes"] = Field(
        default="local",
        description="local: torchrun on this machine; slurm: jobs of a cluster; kubernetes: the pods of the child run's Job.",
        json_schema_extra={"position": 0},
    )
    nodes: int = Field(
        default=1, ge=1, description="Machines of a job; more than one on a cluster only.", json_schema_extra={"position": 1}
    )
    processes: int = Field(
        default=1, ge=1, description="Ranks of a machine: one a GPU, or one a core or two on a CPU.", json_schema_extra={"position": 2}
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads a rank; where left empty the machine's cores shared out, on Slurm slurm.cpus.",
        json_schema_extra={"position": 3},
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of the ranks; on a cluster a GPU each unless it is cpu.", json_schema_extra={"position": 4}
    )
    work_folder: str = Field(
        default="olmoflow-work",
        description="Folder for running jobs where the store is remote; all ranks must see it.",
        json_schema_extra={"position": 5},
    )
    slurm: SlurmSettings = Field(default=SlurmSettings(), description="What Slurm is asked for.", json_schema_extra={"position": 6})

    @model_validator(mode="after")
    def _has_nodes(self) -> LauncherConfig:
        if self.nodes > 1 and self.kind == "local":
            raise ValueError(
                f"nodes is {self.nodes}, but kind local is this machine alone: take kind slurm or kubernetes, or leave nodes out"
            )
        return self

    @model_validator(mode="after")
    def _has_gpus(self) -> LauncherConfig:
        if self.kind != "local" and self.device == "auto":
            self.device = "cuda"  # each rank asks for a GPU: one that saw none would train on the CPU without a word
        return self

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes

    @property
    def ranks_key(self) -> str:
        """Where a recipe says how many ranks there are."""
        return "where.launcher.processes" if self.nodes == 1 else "where.launcher.nodes x processes"

    @property
    def threads_per_rank(self) -> int:
        if self.kind == "slurm":
            return self.threads or self.slurm.cpus
        return self.threads or max(1, (os.cpu_count() or 1) // self.processes)

    def of_ranks(self, ranks: int) -> LauncherConfig:
        """The same for a job of other ranks: on as many whole machines as they take. Raises ValueError where they fill none evenly."""
        if self.kind == "local" or ranks <= self.processes:
            return self.model_copy(update={"nodes": 1, "processes": ranks})
        if ranks % self.processes:
            raise ValueError(f"{ranks} ranks are no whole machines of {self.processes} (where.launcher.processes)")
        return self.model_copy(update={"nodes": ranks // self.processes})

    def alone(self) -> LauncherConfig:
        """The same for a job of a single process."""
        return self.of_ranks(1)


def launch(
    module: str,
    config: dict[str, Any],
    folder: Path,
    launcher: LauncherConfig,
    progress: Callable[[], None] = lambda: None,
    gpus: Sequence[str] = (),
    cordon: Cordon | None = None,
) -> None:
    """Run `-m MODULE CONFIG` to its end; output goes to `MODULE.log` in the folder. `gpus`: the only ones of this machine that it sees, if not all.

    An exception here (Ctrl-C, a cancelled flow) passes on as SIGTERM to all of the job, and SIGKILL after the grace. Where a host fails the
    health check it is cordoned, and the job goes elsewhere by itself. Raises UserError with the log's last words where the job fails.
    """
    from tasks import launch_kubernetes, launch_local, launch_slurm  # which know this module

    path = folder / f"{module.rsplit('.', 1)[-1]}.yaml"
    verdict = folder / VERDICT
    for left in reversed(range(ELSEWHERE + 1)):
        verdict.unlink(missing_ok=True)
        try:
            if launcher.kind == "slurm":
                launch_slurm.run(module, config, path, launcher, progress, cordon)
            elif launcher.kind == "kubernetes":
                launch_kubernetes.run(module, config, path, launcher, progress, cordon)
            else:
                launch_slurm.end_earlier(path)
                path.write_text(yaml.safe_dump(config, sort_keys=False))
                launch_local.run(module, path, folder, launcher, progress, gpus, cordon)
            return
        except UserError:
            faults = json.loads(verdict.read_text()) if verdict.exists() else []
            cordoned = cordon.add(faults, str(folder)) if cordon else []
            if not cordoned or not left or launcher.kind == "kubernetes":  # its pods stay where they are: the next Job keeps away
                raise
            log.warning("%s failed the health check and is cordoned in the store; the job goes elsewhere", "; ".join(map(str, cordoned)))


def failed(module: str, code: int | str, path: Path, start: int) -> UserError:
    """How a job failed, in one sentence, with the last words of its log from `start` on."""
    return UserError(
        f"{module} ended with {code}: {last_words(path, start)} (whole log: {path}); run the same command again to go on where it stopped"
    )


def last_words(path: Path, start: int) -> str:
    """The error line that a person would look for in a log: the trainer's own sentence, else the last line."""
    if not path.exists():
        return "no output"
    with path.open("rb") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return told[-1].removeprefix("error: ").rstrip(".") if told else (lines[-1] if lines else "no output")
