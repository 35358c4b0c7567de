"""A real Slurm on this machine: munged, slurmctld and two virtual nodes, with all files in a temporary folder."""

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.processes import die_with_parent

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun")
PATIENCE_SECONDS = 60  # a bound on waiting for a condition, not a measurement
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # where Debian has the daemons


def wait_for(condition, what, patience=PATIENCE_SECONDS):
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)  # between looks
    return found


class Cluster:
    """A controller and two nodes of 8 CPUs each on loopback, run as whoever runs the tests; nothing of it is outside its folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has 107 characters at most
        self.folder.chmod(0o755)  # munged wants it open
        self.conf = self.folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.started: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o600)
        files = {"socket": "munge.socket", "key-file": "key", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self.daemon("munged", "munged", "--foreground", "--num-threads=2", *options)
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged's socket")
        self.conf.write_text(self.configuration())
        (self.folder / "state").mkdir()
        self.daemon("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.conf))
        self.start_nodes()

    def configuration(self) -> str:
        # held open until all are drawn: no two are the same
        sockets = [socket.socket() for _ in range(1 + len(NODES))]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        controller, *ports = (each.getsockname()[1] for each in sockets)
        for each in sockets:
            each.close()
        (plugins,) = Path("/usr/lib").glob("*/slurm-wlm")
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
            "SlurmUser": getpass.getuser(),
            "SlurmdUser": getpass.getuser(),
            "SlurmctldPort": controller,
            "FirstJobId": random.randrange(1, 1_000_000),  # ports follow from it, and another cluster may be here
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket",
            "CredType": "cred/munge",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool-%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd-%n.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd-%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "PluginDir": plugins,
            "SchedulerParameters": "sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1",
            "SlurmdTimeout": 5,
            "KillWait": 10,
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        where = "NodeHostname=localhost NodeAddr=127.0.0.1"
        lines += [f"NodeName={node} {where} Port={port} CPUs=8 RealMemory=8000" for node, port in zip(NODES, ports, strict=True)]
        lines += [f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"]
        return "\n".join(lines) + "\n"

    def daemon(self, name: str, program: str, *options: str) -> None:
        here = os.getpid()
        with (self.folder / f"{name}.out").open("ab") as out:
            self.started[name] = subprocess.Popen(
                [shutil.which(program, path=PATH), *options],
                env=self.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(here),
            )

    def start_nodes(self, wait: bool = True) -> None:
        """Start the nodes that do not run, and wait until all are idle."""
        for node in NODES:
            if node not in self.started or self.started[node].poll() is not None:
                (self.folder / f"spool-{node}").mkdir(exist_ok=True)
                self.daemon(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))
        if wait:
            wait_for(self.is_idle, "idle nodes")

    def is_idle(self) -> bool:
        for name, process in self.started.items():
            assert process.poll() is None, (self.folder / f"{name}.out").read_text()
        return self.command("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES)

    def command(self, *arguments: str) -> str:
        """Standard output of a Slurm command, empty where it failed."""
        return subprocess.run(arguments, env=self.environment, capture_output=True, text=True).stdout

    def jobs(self, states: str = "all") -> dict[str, str]:
        """States of jobs by id, each task of an array by itself."""
        return dict(line.split() for line in self.command("squeue", "-h", "-r", "-t", states, "-o", "%i %T").splitlines())

    def live(self) -> dict[str, str]:
        """Jobs that wait, run, or end."""
        return self.jobs("PENDING,RUNNING,SUSPENDED,CONFIGURING,COMPLETING")

    def processes(self) -> dict[int, str]:
        """Command lines of what jobs have started."""
        return {each.pid: each.command for each in self.all_processes() if "SLURM_JOB_ID" in each.environment}

    def all_processes(self) -> list["Process"]:
        """Every living process that has this cluster's configuration in its environment, this one aside."""
        return [each for each in living() if each.environment.get("SLURM_CONF") == str(self.conf) and each.pid != os.getpid()]

    def kill_node(self, node: str) -> None:
        """What a node's sudden death does: its daemon and all that it has started are gone."""
        self.started[node].kill()
        self.started[node].wait()
        there = self.all_processes()
        of_node = [each for each in there if each.environment.get("SLURMD_NODENAME") == node]
        parents = {each.parent for each in of_node}
        # those that watch the jobs first: they would tell the controller how they ended
        for each in [*(each for each in there if each.pid in parents and "slurmstepd" in each.command), *of_node]:
            kill(each.pid)

    def clear(self) -> None:
        """End all jobs."""
        for job in self.live():
            self.command("scancel", job)
        wait_for(lambda: not self.live(), "the end of all jobs")

    def stop(self) -> None:
        if "slurmctld" in self.started:
            self.command("scancel", "--user", getpass.getuser())
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self.live() and time.monotonic() < deadline:
                time.sleep(0.05)  # between looks
        for process in self.started.values():  # nothing is worth saving, and their own way out takes seconds
            process.kill()
            process.wait()
        while left := self.all_processes():
            for each in left:
                kill(each.pid)
            time.sleep(0.02)  # for what was being started meanwhile
        shutil.rmtree(self.folder)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str
    environment: dict[str, str]


def living() -> Iterator[Process]:
    """Every process that has not ended and that may be looked at."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pairs = [pair.partition("=") for pair in (entry / "environ").read_bytes().decode(errors="replace").split("\0")]
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if command:
            yield Process(int(entry.name), parent, command, {name: value for name, _, value in pairs})
