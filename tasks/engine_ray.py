"""The Ray engine: shards as Ray tasks, on any cluster that sees the store and the raw files.

Ray lives in a process of its own, the driver, `python -m tasks.engine_ray`: a process that has joined a cluster gets Ray's signal handlers and is
ended by Ray, without an exception, when the cluster is gone. Within a task the shard is made by the very process that the local engine
starts, `python -m tasks.shard`: a crash of a native library or the memory it leaves behind ends with it, its libraries see their thread
limits before they are loaded, and it dies with Ray's worker. That costs half a second a task.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field

from tasks.engine import await_records, ending, raise_errors, run_plan
from tasks.errors import UserError
from tasks.processes import child_environment
from tasks.progress import NOTHING, Watch, add, ignore
from tasks.shards import Engine
from tasks.store import Store

CONNECT_SECONDS = 60  # Ray itself tries for many minutes
NODE_SECONDS = 120  # how long a plan waits while no node can hold a shard
POLL_SECONDS = 1.0
NODE_LOSSES = 3  # that a shard outlives


class RayConfig(BaseModel):
    """Shards on a Ray cluster. Its nodes need the same installation, and must see the store and the raw files under the same paths."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["ray"] = Field(default="ray", description="ray: tasks of a Ray cluster.", json_schema_extra={"position": 0})
    address: str = Field(
        default="auto",
        pattern=r"^(auto|(ray://)?[^/\s]+:[0-9]+)$",
        description="HOST:PORT of the head from a node of the cluster, ray://HOST:PORT from outside; auto: RAY_ADDRESS, or the cluster that this machine is a node of.",
        json_schema_extra={"position": 1},
    )
    cpus_per_shard: int = Field(default=1, ge=1, description="CPUs that a shard holds, and its threads.", json_schema_extra={"position": 2})
    memory_gb_per_shard: float | None = Field(
        default=None,
        gt=0,
        description="Memory that a shard holds in Ray's books; none where left empty.",
        json_schema_extra={"position": 3},
    )
    gpus_per_shard: float = Field(
        default=0, ge=0, description="GPUs that a shard sees, or the part of one; without it none.", json_schema_extra={"position": 4}
    )

    @property
    def resources(self) -> dict[str, float]:
        """What a shard holds, in Ray's names and units."""
        wanted = {"CPU": self.cpus_per_shard, "GPU": self.gpus_per_shard, "memory": int((self.memory_gb_per_shard or 0) * 1e9)}
        return {name: amount for name, amount in wanted.items() if amount}


class RayEngine(Engine):
    """Shards as tasks of a Ray cluster. `node_seconds`: how long to wait while no node can hold a shard."""

    def __init__(self, config: RayConfig, watch: Watch = ignore, node_seconds: float = NODE_SECONDS) -> None:
        self.config, self.watch, self.node_seconds = config, watch, node_seconds
        self._driver: subprocess.Popen[str] | None = None

    def run(self, plan: dict[str, Any], weights: list[int], store: Store) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError('where.engine.kind is ray, but Ray is not installed here: pip install "olmoflow[ray]", or take kind local')
        step = f"{plan['step']['name']} {plan['name']}"
        url = store.root if store.is_local else store.url  # a relative folder is another one on another node
        ray = {**self.config.model_dump(), "node_seconds": self.node_seconds}
        (code,), errors = run_plan({**plan, "store": url, "ray": ray}, weights, self.watch, self._drive)
        if code and not errors:
            raise UserError(
                f"{step}: the cluster of where.engine.address {self.config.address} was lost (its driver ended with {ending(code)}); "
                "see `ray status` there, and run the same command again to go on where it stopped"
            )
        raise_errors(plan, errors, [])
        await_records(plan, store, url, "a node of the Ray cluster")

    def _drive(self, path: Path, watcher: Callable[[], None]) -> list[int]:
        """Let the driver run a plan; it stays for the next one, with the workers that Ray has started for it."""
        if self._driver is None or self._driver.poll() is not None:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "tasks.engine_ray"],
                env=child_environment(1),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        driver = self._driver
        assert driver.stdin is not None and driver.stdout is not None
        with ThreadPoolExecutor(1) as pool:
            try:
                with contextlib.suppress(BrokenPipeError):  # its end is told below
                    driver.stdin.write(f"{path}\n")
                    driver.stdin.flush()
                answer = pool.submit(driver.stdout.readline)
                while wait([answer], POLL_SECONDS).not_done:
                    watcher()
                return [int(answer.result()) if answer.result() else driver.wait()]
            except BaseException:
                driver.kill()
                driver.wait()
                raise


# -- the process that has joined the cluster -------------------------------------------------------------------------------------------


def main(answers: TextIO) -> int:
    """Run the plans whose paths come on standard input, answering each with 0 or 1 when all its shards were tried.

    Leaves `error-0.json` and `progress-0.json` beside a plan, as the runner of shards does. Ends, and with it what it has on the cluster,
    where it cannot go on, and when standard input ends: whoever started it is gone.
    """
    plans: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            plans.put(line.strip())
        os._exit(0)  # at once: Ray's own way out waits for a cluster that may be gone

    threading.Thread(target=listen, daemon=True).start()
    joined = False
    while True:
        plan_path = Path(plans.get())
        try:
            plan = json.loads(plan_path.read_text())
            options = plan.pop("ray")
            node_seconds = options.pop("node_seconds")
            config = RayConfig(**options)
            if not joined:
                _connect(config.address, plan_path)
                joined = True
            errors = _run(plan, config, node_seconds, plan_path.with_name("progress-0.json"))
        except UserError as error:
            _write(plan_path.with_name("error-0.json"), [_error(None, str(error))])
            return 1
        except Exception as error:
            _write(plan_path.with_name("error-0.json"), [_error(None, f"{type(error).__name__}: {error}", traceback.format_exc())])
            return 1
        if errors:
            _write(plan_path.with_name("error-0.json"), errors)
        print(1 if errors else 0, file=answers, flush=True)


def _error(shard: str | None, message: str, bug: str | None = None) -> dict[str, Any]:
    return {"shard": shard, "message": message, "user": bug is None, "traceback": bug or ""}


def _write(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def _connect(address: str, plan_path: Path) -> None:
    import ray

    def give_up() -> None:
        _write(plan_path.with_name("error-0.json"), [_error(None, _unreachable(address, f"no answer within {CONNECT_SECONDS} seconds"))])
        os._exit(1)  # Ray's own trying cannot be broken off

    if address != "auto":
        host, port = address.removeprefix("ray://").rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise UserError(_unreachable(address, str(error))) from error
    timer = threading.Timer(CONNECT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # each way of joining raises its own
        raise UserError(_unreachable(address, str(error).strip().split("\n")[-1])) from error
    finally:
        timer.cancel()


def _unreachable(address: str, cause: str) -> str:
    return f"the Ray cluster of where.engine.address {address} cannot be joined: {cause}; start it with `ray start --head`, or give the address of its head"


def _run(plan: dict[str, Any], config: RayConfig, node_seconds: float, progress: Path) -> list[dict[str, Any]]:
    """Every shard tried, the heaviest first; returns what failed, in the plan's order.

    Twice what the cluster can hold is in flight: the rest of the plan costs Ray nothing, and a node never waits for this process. While many
    shards wait, a task takes several, since a process loads a scorer's model once: a quarter of a node's fair share of what is left (guided
    self-scheduling, Polychronopoulos and Kuck 1987). Where such a task's process dies, its shards are tried one by one, to find which it was.
    """
    import ray

    shards = [{**spec, "rank": 0} for spec in plan["shards"]]
    waiting = deque(sorted(range(len(shards)), key=lambda index: -shards[index]["weight"]))
    running: dict[Any, list[int]] = {}
    wanted = config.resources
    make = ray.remote(make_shards).options(
        num_cpus=wanted["CPU"],
        num_gpus=wanted.get("GPU"),
        memory=wanted.get("memory"),
        max_retries=NODE_LOSSES,
        name=f"{plan['step']['name']} {plan['name']}",
    )
    failed: dict[int, list[dict[str, Any]]] = {}
    sums = NOTHING
    one_by_one = False
    places, looked, last_place = 0, float("-inf"), time.monotonic()
    while waiting or running:
        now = time.monotonic()
        if now - looked >= POLL_SECONDS:
            places, looked = sum(_places(wanted)), now
            if places:
                last_place = now
            elif now - last_place >= node_seconds:
                raise UserError(_no_place(wanted))
        while waiting and len(running) < max(2 * places, 1):
            size = 1 if one_by_one or not places else max(1, len(waiting) // (4 * places))
            taken = [waiting.popleft() for _ in range(size)]
            running[make.remote({**plan, "shards": [shards[index] for index in taken]}, config.cpus_per_shard)] = taken
        if not ray.wait(list(running), timeout=POLL_SECONDS)[0]:
            continue
        for ref in ray.wait(list(running), num_returns=len(running), timeout=0)[0]:
            taken = running.pop(ref)
            outcome = _outcome(ref, shards[taken[0]]["name"])
            if outcome["code"] and not outcome["errors"] and len(taken) > 1:
                one_by_one = True
                waiting.extendleft(reversed(taken))
                continue
            if errors := outcome["errors"] or _death(outcome, shards[taken[0]]["name"]):
                failed[min(taken)] = errors
            sums = add(sums, outcome["progress"])
        _write(progress, sums)
    return [error for index in sorted(failed) for error in failed[index]]


def _places(wanted: dict[str, float]) -> Iterator[int]:
    """How many shards each living node can hold."""
    import ray

    for node in ray.nodes():
        if node["Alive"]:
            yield min(int(node["Resources"].get(name, 0) / amount + 1e-9) for name, amount in wanted.items())


def _no_place(wanted: dict[str, float]) -> str:
    import ray

    units = {"CPU": "CPUs", "GPU": "GPUs", "memory": "bytes of memory"}
    largest = {name: max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0) for name in wanted}
    shard = " and ".join(f"{amount:g} {units[name]}" for name, amount in wanted.items())
    node = ", ".join(f"{amount:g} {units[name]}" for name, amount in largest.items())
    return f"no node of the Ray cluster can hold a shard of {shard} (at most {node} on one): lower where.engine's needs of a shard, or start a larger node"


def _outcome(ref: Any, shard: str) -> dict[str, Any]:
    """What a task left (see `make_shards`), or why there is nothing."""
    import ray

    try:
        return dict(ray.get(ref))
    except ray.exceptions.RayTaskError as error:  # make_shards itself raised
        told = _error(shard, f"{shard}: {error.cause}", str(error))
    except ray.exceptions.RayError as error:
        cause = str(error).strip().split("\n")[0].split(". ")[0]
        told = _error(
            shard, f"{shard}: its node was lost {NODE_LOSSES + 1} times ({cause}); run the same command again to go on where it stopped"
        )
    return {"code": 1, "errors": [told], "progress": {}}


def _death(outcome: dict[str, Any], shard: str) -> list[dict[str, Any]]:
    """An error for a process that could not leave one."""
    if not outcome["code"]:
        return []
    hint = ": was memory short? then raise where.engine.memory_gb_per_shard" if outcome["code"] == -9 else ""
    said = f", saying {outcome['said']!r}" if outcome["said"] else ""
    return [_error(shard, f"{shard}: its process on node {outcome['node']} ended with {ending(outcome['code'])}{said}{hint}")]


def make_shards(plan: dict[str, Any], threads: int) -> dict[str, Any]:
    """In a Ray worker: run the plan's shards in a process of their own; returns its exit code, errors, progress and last words.

    Ray sends this function by value, so it can tell of a node that lacks the package.
    """
    import json
    import platform
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    outcome: dict[str, Any] = {"node": platform.node(), "code": 0, "errors": [], "progress": {}, "said": ""}
    try:
        from tasks import scratch
        from tasks.processes import child_environment
    except ImportError as error:
        message = f"node {platform.node()} of the Ray cluster cannot import olmoflow ({error}): install the same olmoflow on every node"
        return {**outcome, "errors": [{"shard": plan["shards"][0]["name"], "message": message, "user": True}]}
    with tempfile.TemporaryDirectory(prefix="plan-", dir=scratch.folder()) as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan))
        command = [sys.executable, "-m", "tasks.shard", str(path), "0"]
        done = subprocess.run(command, env=child_environment(threads), start_new_session=True, stderr=subprocess.PIPE, text=True)
        sys.stderr.write(done.stderr)
        found = {}
        for name in ("error", "progress"):
            file = path.with_name(f"{name}-0.json")
            found[name] = json.loads(file.read_text()) if file.exists() else None
    said = (done.stderr.strip().splitlines() or [""])[-1]
    return {**outcome, "code": done.returncode, "errors": found["error"] or [], "progress": found["progress"] or {}, "said": said}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("wb") as nowhere:
        for stream in (1, 2):  # Ray's own words are not for the terminal
            os.dup2(nowhere.fileno(), stream)
    os._exit(main(answers))
