"""How benchmarks measure: scripts as processes of their own on one core, taken in turns, and ratios with their spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """One run of a script: what its last line said, and the peak resident memory of it and its children in bytes (Linux)."""

    said: dict[str, Any]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return float(self.said["seconds"])


def run_script(command: list[str], cores: int = 1, environment: dict[str, str] | None = None) -> Run:
    """Run a script on the first `cores` cores; its last line is a JSON object with the `seconds` of its work.

    Raises SystemExit with the script's own words where it fails.
    """
    process = _start(command, cores, environment, subprocess.PIPE)
    peak = _PeakOf(process.pid)
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{out[-2000:]}\n{err[-4000:]}")
    return Run(json.loads(out.strip().splitlines()[-1]), peak.stop())


def run_until(command: list[str], said: Callable[[], dict[str, Any] | None], log: Path, cores: int | None = 1) -> Run:
    """Run a command on the first `cores` cores (None: as it likes) until `said` returns something, which stands in for its last line, and kill it then.

    What it prints goes to `log`. Raises SystemExit with the end of that where the command ends before.
    """
    with log.open("w") as out:
        process = _start(command, cores, None, out)
    peak = _PeakOf(process.pid)
    try:
        while (found := said()) is None:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)
        return Run(found, peak.stop())
    finally:
        process.kill()
        process.wait()


def _start(command: list[str], cores: int | None, environment: dict[str, str] | None, out: Any) -> subprocess.Popen[str]:
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS") if cores} | {"TOKENIZERS_PARALLELISM": "false"}
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    return subprocess.Popen(
        command,
        env={**os.environ, **threads, **(environment or {})},
        stdout=out,
        stderr=subprocess.PIPE if out is subprocess.PIPE else subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )


class _PeakOf:
    """Watches a process and its descendants: the largest resident memory that one of them has had, asked of the kernel."""

    def __init__(self, pid: int) -> None:
        import threading

        self._pid, self._peak, self._done = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for pid in _descendants(self._pid):
                self._peak = max(self._peak, high_water(pid))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:
                continue
    return found


def high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def in_turns(rounds: int, contestants: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Each contestant once a round, so that a slow minute of the machine hits all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            runs[name].append(contestant())
            print(f"round {number + 1}: {name} {runs[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return runs


def claim(values: list[float], unit: str = "x", **more: Any) -> dict[str, Any]:
    """The median over rounds, with the lowest and the highest."""
    return {"value": _short(statistics.median(values)), "low": _short(min(values)), "high": _short(max(values)), "unit": unit} | {
        "rounds": len(values),
        **more,
    }


def unmeasured(why: str, unit: str = "x") -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "unit": unit, "rounds": 0, "why": why}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def ratios(slow: list[Run], fast: list[Run]) -> list[float]:
    """How many times faster, round by round; runs may have had different amounts of text (`text_bytes`)."""
    return [(s.seconds / s.said["text_bytes"]) / (f.seconds / f.said["text_bytes"]) for s, f in zip(slow, fast, strict=True)]


def rate(run: Run) -> float:
    """MB of text a second."""
    return run.said["text_bytes"] / run.seconds / 1e6


def report(table: list[tuple[str, str]], claims: dict[str, dict[str, Any]], out: Path | None) -> None:
    """A table for people, and the claims as one JSON object on the last line, and into a file together with the machine."""
    width = max(len(name) for name, _ in table)
    for name, value in table:
        print(f"{name:<{width}}  {value}")
    for name, entry in claims.items():
        spread = (
            f"{entry['value']:g} {entry['unit']} ({entry['low']:g} to {entry['high']:g})" if entry["value"] is not None else entry["why"]
        )
        print(f"{name:<{width}}  {spread}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), "table": dict(table), "claims": claims}, indent=1) + "\n")
    print(json.dumps(claims))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from datetime import UTC, datetime

    model = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "gpu": _gpu(),
        "python": platform.python_version(),
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
