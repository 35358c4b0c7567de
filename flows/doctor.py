"""`olmoflow doctor`: what works of this machine, its GPUs, the server, the store and the cluster, and what to do where something does not."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from tasks import slurm
from tasks.cordon import Cordon
from tasks.errors import RecipeError, UserError
from tasks.readable import size
from tasks.slurm import Unreachable
from tasks.store import Store

LEAST_DISK_BYTES = 5e9  # under which the next step would be short of room
HOTTEST_CELSIUS = 90
ANSWER_SECONDS = 10.0
GPU_FIELDS = ("index", "name", "memory.total", "temperature.gpu", "ecc.errors.uncorrected.volatile.total")
UNUSABLE = ("down", "drain", "fail", "unknown", "maint")  # beginnings of what sinfo calls nodes that take no job


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `works`: None where it is not there and need not be. `mend`: what to do where it does not work."""

    what: str
    works: bool | None
    told: str
    mend: str = ""


def examine(store_url: str | None) -> list[Finding]:
    """Everything, in the order of a person's questions."""
    findings = [*_machine(), *_gpus(), _server(), *_slurm()]
    return (
        [*findings, *_store(store_url)] if store_url else [*findings, Finding("store", None, "none named: give --store or OLMOFLOW_STORE")]
    )


def _machine() -> Iterator[Finding]:
    cores, memory = os.cpu_count() or 1, _memory_bytes()
    told = f"{socket.gethostname()}: {cores} cores" + (f", {size(memory[0])} of memory, {size(memory[1])} of it free" if memory else "")
    yield Finding("machine", True, told)
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    yield Finding("disk", free >= LEAST_DISK_BYTES, f"{size(free)} free at {folder}", "make room, or work in another folder")
    right = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", right, f"{platform.python_version()} at {sys.executable}", "use Python 3.11 or 3.12")
    try:
        import torch
    except Exception as error:  # a library of it that does not load raises what it likes
        yield Finding("torch", False, f"cannot be imported: {error}", "install olmoflow with its constraints.txt again")
        return
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Finding("torch", True, f"{torch.__version__}, sees {devices} GPUs")


def _memory_bytes() -> tuple[int, int] | None:
    """All and what is free, on Linux."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, free


def _gpus() -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield Finding("GPUs", None, "none: nvidia-smi is not installed here")
        return
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        yield Finding(
            "GPUs", False, f"nvidia-smi: {said[0] if said else done.returncode}", "see `nvidia-smi` and `dmesg`; restart the driver"
        )
        return
    lines = done.stdout.strip().splitlines()
    for line in lines:
        yield _gpu(*(field.strip() for field in line.split(",")))
    import torch

    if lines and not torch.cuda.is_available():
        yield Finding("GPUs", False, f"torch {torch.__version__} cannot use them", "install a CUDA build of torch that the driver knows")


def _gpu(index: str, name: str, memory: str, celsius: str, errors: str) -> Finding:
    """One line of nvidia-smi; it has words in brackets where a GPU does not tell a number."""
    broken = errors.isdigit() and int(errors) > 0
    hot = celsius.isdigit() and int(celsius) >= HOTTEST_CELSIUS
    told = f"{name}, {memory} MiB, {celsius} degrees, uncorrected memory errors: {errors}"
    mend = "take the GPU out and reset it: its memory returns wrong values" if broken else "look after its cooling" if hot else ""
    return Finding(f"GPU {index}", not (broken or hot), told, mend)


def _server() -> Finding:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    from flows.service import authorization

    url = PREFECT_API_URL.value()
    if url is None:
        return Finding("Prefect server", None, "none named (PREFECT_API_URL): each run starts one for itself")
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/admin/version", timeout=ANSWER_SECONDS, headers=authorization(PREFECT_API_AUTH_STRING.value())
        )
        answer.raise_for_status()
        return Finding("Prefect server", True, f"version {answer.json()} at {url}")
    except (httpx.HTTPError, ValueError) as error:
        return Finding("Prefect server", False, f"{url}: {error or type(error).__name__}", "start it, or take PREFECT_API_URL away")


def _slurm() -> Iterator[Finding]:
    configured = "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists()
    if not configured or shutil.which("sinfo") is None:
        yield Finding("Slurm", None, "none here")
        return
    try:
        nodes = slurm.nodes()
    except (UserError, Unreachable) as error:
        yield Finding("Slurm", False, str(error), "see `scontrol ping`")
        return
    # a state may end in a mark, such as * for a node that does not answer
    unusable = {name: state for name, state in nodes.items() if state.startswith(UNUSABLE) or state.endswith("*")}
    told = f"{len(nodes)} nodes" + (f", unusable: {', '.join(f'{name} ({state})' for name, state in unusable.items())}" if unusable else "")
    yield Finding("Slurm", len(unusable) < len(nodes), told, "see `sinfo -R` for the reasons")


def _store(url: str) -> Iterator[Finding]:
    try:
        store = Store(url)
        fault = _store_fault(store)
        yield Finding("store", fault is None, f"{url}: {fault or 'writes, creates exclusively and reads back'}", "see docs/storage.md")
        cordoned = Cordon(store).hosts()
    except (UserError, OSError, ValueError, ImportError) as error:
        yield Finding(
            "store", False, f"{url}: {error}", "see that it is there, with the credentials in the environment, and may be written to"
        )
        return
    for host, entry in cordoned.items():
        here = host == socket.gethostname()
        yield Finding("cordoned", False if here else None, str(entry), f"mend it, then `olmoflow doctor --store {url} --uncordon {host}`")


def _store_fault(store: Store) -> str | None:
    """What the store cannot do; what was written to find out is taken away again."""
    path = f"doctor/{uuid.uuid4().hex}.json"
    try:
        if not store.create(path, '"first"'):
            return "a file that was not there could not be created"
        if store.create(path, '"second"'):
            return "a file that was there was created once more: two runs at once would overwrite each other"
        return None if store.read_text(path) == '"first"' else "what was written does not read back"
    finally:
        with contextlib.suppress(OSError):
            store.fs.rm_file(store.full(path))
            if store.is_local:
                Path(store.full("doctor")).rmdir()


def lift(store_url: str | None, host: str) -> None:
    """Uncordon a host. Raises RecipeError where it is not cordoned."""
    if store_url is None:
        raise RecipeError("--uncordon needs the store that the host is cordoned in: give --store or OLMOFLOW_STORE")
    cordon = Cordon(Store(store_url))
    if not cordon.lift(host):
        raise RecipeError(f"{host} is not cordoned in {store_url} (cordoned: {', '.join(cordon.hosts()) or 'none'})")


def show(console: Console, findings: list[Finding]) -> None:
    """A line for each finding, and one for what to do."""
    for finding in findings:
        mark = {True: "[green]works [/]", False: "[bold red]BROKEN[/]", None: "-     "}[finding.works]
        console.print(f"{mark}  {finding.what:<15} {escape(finding.told)}")
        if finding.mend and not finding.works:
            console.print(f"{'':24}{escape(finding.mend)}")
