"""What Prefect costs: `olmoflow up` to a usable UI, and a recipe through the service against its steps as functions: `python -m benchmarks.orchestration`.

`up_seconds`: `olmoflow up` with a fresh home (its database is made too) until the UI's page is served; that is `make up` where all is installed.

`orchestration_overhead_share`: the recipe from the moment at which a run of the deployment `end-to-end` is asked for until it has completed,
its GPU jobs as runs of their own, against the same steps called as functions in one fresh process without Prefect, that process's start
included. Stores are fresh on both sides; the two take turns. The recipe is the sample's where OLMOFLOW_DATA names its files (about 15 minutes
a side), else the demo's (2 minutes, made from the Python installation).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks import measure
from benchmarks.measure import Run

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.5  # a core that answers more often is one that the recipe has not


class Service:
    """The service of a home folder that is made for it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60)  # kept: a new one takes 0.1 s of a core
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}

    def up(self) -> float:
        """Seconds until the UI's page is there."""
        started = time.perf_counter()
        self._olmoflow("up", "--port", str(self.port), "--json")
        page = httpx.get(f"http://127.0.0.1:{self.port}/", timeout=30, follow_redirects=True)
        if not (page.is_success and "<html" in page.text.lower()):
            raise SystemExit(f"the UI does not answer: {page.status_code} {page.text[:200]}")
        return time.perf_counter() - started

    def down(self) -> None:
        self._olmoflow("down")

    def run(self, recipe: dict[str, Any]) -> float:
        """Seconds from asking for a run of `end-to-end` to its end."""
        started = time.perf_counter()
        there = self._ask("GET", "/deployments/name/end-to-end/end-to-end")
        run = self._ask("POST", f"/deployments/{there['id']}/create_flow_run", json={"parameters": {"recipe": recipe}})
        while (state := self._ask("GET", f"/flow_runs/{run['id']}"))["end_time"] is None:
            time.sleep(POLL_SECONDS)
        if state["state_type"] != "COMPLETED":
            raise SystemExit(f"the run ended {state['state_type']}: {state['state']['message']}")
        return time.perf_counter() - started

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self.client.request(method, path, **options)
        answer.raise_for_status()
        return answer.json()

    def _olmoflow(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flows.cli", arguments[0], "--home", str(self.home), *arguments[1:]]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def up_once(folder: Path) -> Run:
    service = Service(folder / "home")
    try:
        return Run({"seconds": service.up()}, 0)
    finally:
        service.down()
        shutil.rmtree(folder / "home", ignore_errors=True)


def directly(recipe_file: Path, store: str) -> None:
    """The recipe's steps as functions, with its summary and its report."""
    from flows.pipeline import Pipeline, make_runner
    from flows.recipe import load
    from flows.report import write_report
    from flows.summary import RunSummary, summary_path

    recipe = load(recipe_file, [f"store={store}"])
    pipeline = Pipeline(recipe, make_runner(recipe))
    pipeline.corpus()
    pipeline.end_to_end()
    pipeline.store.replace(summary_path(recipe.name), json.dumps(asdict(RunSummary.of(pipeline, "end-to-end", "", 0.0))))
    write_report(recipe)


def directly_once(recipe_file: Path, store: Path) -> Run:
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.orchestration", "--directly", str(recipe_file), str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    shutil.rmtree(store)
    return Run({"seconds": time.perf_counter() - started}, 0)


def through_prefect_once(service: Service, recipe_file: Path, store: Path) -> Run:
    from flows.recipe import load_form

    seconds = service.run({**load_form(recipe_file), "store": str(store)})
    shutil.rmtree(store)
    return Run({"seconds": seconds}, 0)


def main() -> None:
    recipe = "sample" if "OLMOFLOW_DATA" in os.environ else "demo"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", type=Path, default=ROOT / f"deployments/recipes/{recipe}.yaml")
    parser.add_argument("--only", choices=("up_seconds", "orchestration_overhead_share"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--directly", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directly:
        directly(Path(options.directly[0]), options.directly[1])
        return
    table, claims = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # PostgreSQL's user looks for its data below it
        if options.only != "orchestration_overhead_share":
            ups = measure.in_turns(options.rounds, {"up": lambda: up_once(folder)})["up"]
            claims["up_seconds"] = measure.claim([run.seconds for run in ups], "s")
        if options.only != "up_seconds":
            share, told = overhead(folder, options.recipe, options.rounds)
            claims["orchestration_overhead_share"] = share
            table += told
    measure.report(table or [("service", "a fresh home each time")], claims, options.out)


def overhead(folder: Path, recipe: Path, rounds: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The claim over rounds, and its table. Each run is a fresh process on a fresh store."""
    service = Service(folder / "home")
    service.up()
    try:
        runs = measure.in_turns(
            rounds,
            {
                "as functions": lambda: directly_once(recipe, folder / "store-functions"),
                "through Prefect": lambda: through_prefect_once(service, recipe, folder / "store-prefect"),
            },
        )
    finally:
        service.down()
    pairs = list(zip(runs["as functions"], runs["through Prefect"], strict=True))
    more = [prefect.seconds - functions.seconds for functions, prefect in pairs]
    shares = [extra / functions.seconds for extra, (functions, _) in zip(more, pairs, strict=True)]
    table = [("recipe", recipe.name), ("extra seconds", ", ".join(f"{extra:.1f}" for extra in more))]
    table += [(name, ", ".join(f"{run.seconds:.1f} s" for run in its)) for name, its in runs.items()]
    return measure.claim(shares, "share", extra_seconds=[round(extra, 1) for extra in more], recipe=recipe.stem), table


if __name__ == "__main__":
    main()
