"""The runner of shards: `python -m tasks.shard PLAN.json RANK`, or `--serve` for one plan after another (see `tasks.workers`).

Reads a plan, makes the shards that are this rank's, and writes beside the plan `error-RANK.json` for what failed and `progress-RANK.json`
for who waits. A bad shard does not stop the others: what can be made is made and committed. Shards that another run is at (`tasks.leases`)
come last: they are waited for, and made here where that run has left them. Dies with its parent.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.errors import UserError
from tasks.leases import LOOK_SECONDS, Lease, Leases
from tasks.overlay import store_of
from tasks.processes import die_with_parent
from tasks.progress import Meter
from tasks.shards import check_software, run_shard
from tasks.storage import ROOM, StorageError, is_full
from tasks.store import Store
from tasks.workers import serve


def main(plan_path: str, rank: int) -> int:
    plan = json.loads(Path(plan_path).read_text())
    store = store_of(plan)
    module = importlib.import_module(plan["step"]["module"])
    errors: list[dict[str, Any]] = []
    meter = Meter(Path(plan_path).with_name(f"progress-{rank}.json"))
    for spec, lease in _in_turn([spec for spec in plan["shards"] if spec["rank"] == rank], store, plan["step"]["name"], meter):
        failed, away = len(errors), False
        try:
            check_software(plan, module)
            with lease or nullcontext():
                run_shard(store, plan["step"], spec, module.run, meter.begin(spec["weight"]))
        except UserError as error:
            errors.append({"shard": spec["name"], "message": str(error), "user": True})
            away = isinstance(error, StorageError)
        except Exception as error:
            errors.append(_told(spec["name"], error, store))
        meter.end(made=len(errors) == failed)
        if away:  # it was asked often enough: the next shards would wait as long
            break
    meter.write()
    if errors:
        Path(plan_path).with_name(f"error-{rank}.json").write_text(json.dumps(errors, indent=1))
    return 1 if errors else 0


def _in_turn(specs: list[dict[str, Any]], store: Store, step: str, meter: Meter) -> Iterator[tuple[dict[str, Any], Lease | None]]:
    """The shards in their order, each with its lease, and last those that others have; without one where it is made, or cannot be had."""
    leases = Leases(store, step)
    while specs:
        others = []
        for spec in specs:
            try:
                lease = leases.take(spec["key"])
            except StorageError:  # told by the shard itself
                lease = None
            if lease is None and spec["key"] in leases.holders and store.record(step, spec["key"]) is None:
                others.append(spec)
            else:
                yield spec, lease
        if others:
            first = leases.holders[others[0]["key"]]
            meter.note = f"waiting for {len(others):,} shards that another run makes ({first})"
            meter.write()
            time.sleep(LOOK_SECONDS)
        else:
            meter.note = ""
        specs = others


def _told(shard: str, error: Exception, store: Store) -> dict[str, Any]:
    """A failure for the report: what the system refused is no bug."""
    if is_full(error):
        message = f"{shard}: a disk is full ({error}), the store's ({store.url}) or that of {tempfile.gettempdir()}: {ROOM}"
    else:
        message = f"{shard}: {error}" if isinstance(error, OSError) else f"{shard}: {type(error).__name__}: {error}"
    user = isinstance(error, OSError) or is_full(error)
    return {"shard": shard, "message": message, "user": user, "traceback": traceback.format_exc()}


class _NoPandas:
    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _without_pandas() -> None:
    """Where pandas is installed, pyarrow imports it at its first conversion, for a third of a second. It looks once; no step has use for it."""
    hidden: Any = _NoPandas()
    sys.meta_path.insert(0, hidden)
    pa.array([])
    sys.meta_path.remove(hidden)


if __name__ == "__main__":
    die_with_parent(int(os.environ.get("OLMOFLOW_PARENT", os.getppid())))
    _without_pandas()
    if sys.argv[1] == "--serve":
        serve(main, int(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1], int(sys.argv[2])))
