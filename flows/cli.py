"""The command line: `olmoflow run`, `plan`, `rerun`, `why`, `ls`, `show`, `lineage`, `report`, `figure`, `up`, `down`, `doctor`.

An error is one sentence; a traceback is for bugs. Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import completion
from tasks.errors import RecipeError, UserError
from tasks.secrets import hidden

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help="From raw text to a souped OLMo 2 model.")
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

FLOWS = (
    "end-to-end",
    "curate",
    "tokenize",
    "mix",
    "pretrain",
    "micro-anneal",
    "anneal",
    "soup",
    "evaluate",
    "learning-rates",
    "compare-tokenizers",
    "recurate-stackexchange",
    "poll-stackexchange",
)

DUMP_FLOWS = ("recurate-stackexchange", "poll-stackexchange")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set a key of the recipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
StoreUrl = Annotated[str, typer.Option("--store", envvar="OLMOFLOW_STORE", help="The store's folder or URL.")]

# From a Ctrl-C to the end of the command, whatever still hangs then: a training saves within 25 s first.
LEAVE_SECONDS = 60
ANEW_SECONDS = 0.05
STOPPED = 128 + signal.SIGINT  # exit code, as a shell's
_interrupted = threading.Event()
_again = threading.Event()  # the next SIGINT is the first Ctrl-C once more, and not a second one

# Prefect reads these when it is imported. A fresh home needs longer than Prefect's 20 s to make its database.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our own lines say it; the UI has the rest
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def _flows(incomplete: str) -> list[str]:
    return [flow for flow in FLOWS if flow.startswith(incomplete)]


def main() -> None:
    """Entry point: turns errors into one sentence and an exit code."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _found_lost
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except RecipeError as error:
        _fail(str(error), 2)
    except UserError as error:
        _fail(str(error), 1)
    except OSError as error:  # a disk, a permission, a network: no bug of ours
        from tasks.storage import ROOM, is_full

        _fail(f"{error}: {ROOM}" if is_full(error) else str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _stop()
    except Exception as error:
        if _was_interrupted(error):
            _stop()
        usage = getattr(error, "format_message", None)  # click's usage errors
        if usage is None:
            raise
        _fail(usage(), 2)


def _fail(message: str, code: int) -> None:
    if _interrupted.is_set():  # it is what an interrupted step, or a server that was ended with it, made of the Ctrl-C
        _stop()
    errors.print(f"[bold red]error:[/] {escape(hidden(message))}")
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A KeyboardInterrupt for what works, which may have something to end first; Prefect, which sometimes loses one, is left at once.

    Whatever else loses it, or hangs at exit for a server that the same Ctrl-C ended, does so for a minute and not for ever. A second one leaves
    at once: what the command has started here ends with it, and a job on a cluster ten minutes later.
    """
    if _interrupted.is_set() and not _again.is_set():
        _stop()
    _again.clear()
    _interrupted.set()
    watch = threading.Timer(LEAVE_SECONDS, _stop)
    watch.daemon = True
    watch.start()
    face = sys.modules.get("flows.face")
    if face is not None and not face.at_work:
        for act in face.interrupted:
            act()
    signal.default_int_handler(number, frame)


def _found_lost(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupt anew where the first KeyboardInterrupt met a callback of the garbage collector, which Python lets raise nothing."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    _again.set()
    main_thread = threading.main_thread().ident  # which may sleep
    anew = threading.Timer(ANEW_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))  # by then the callback is over
    anew.daemon = True
    anew.start()


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is what began it, or came before it."""
    if _interrupted.is_set():
        return True
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _stop(terminal: Any = None) -> None:
    """Leave at once: a Ctrl-C also ends Prefect's embedded server, for which Prefect would look for a minute."""
    if terminal is not None:
        terminal.clear()
    command = hidden(shlex.join(["olmoflow", *sys.argv[1:]]))
    kept = "whole shards and saved checkpoints are kept; " if sys.argv[1:2] in (["run"], ["rerun"], ["figure"]) else ""
    errors.print(f"[bold red]stopped:[/] {kept}to go on: {escape(command)}")
    sys.stdout.flush()
    os._exit(STOPPED)


@app.command()
def run(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help=", ".join(FLOWS), autocompletion=_flows)],
    recipe_file: RecipeFile,
    set_: Overrides = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="evaluate: also the tasks kept from development; the store remembers it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a flow here; what is already made is reused."""
    from flows.recipe import load, without_secrets

    if flow not in FLOWS:
        raise RecipeError(f"there is no flow {flow!r}; choose one of {', '.join(FLOWS)}")
    if held_out and flow != "evaluate":
        raise RecipeError(f"--held-out is of `run evaluate`, not of {flow}: leave it out")
    recipe = load(recipe_file, set_)
    if not as_json:
        console.print(f"{flow} {recipe.name}: starting Prefect ...")
    module, options = flow.replace("-", "_"), {"held_out": True} if held_out else {}
    with _listening(as_json):
        work = getattr(importlib.import_module(f"flows.{module}"), module)
        if flow in DUMP_FLOWS:
            return _run_dump_flow(work, recipe, as_json)
        summary = work(without_secrets(recipe), **options)
    from flows.report import place
    from tasks.store import Store

    report_path = place(Store(recipe.store), recipe.name) if flow == "end-to-end" else None
    rows = _gathered(recipe, summary).micro_anneals() if flow in ("end-to-end", "micro-anneal") else []
    tokenizers = _gathered(recipe, summary).tokenizers() if flow == "compare-tokenizers" else []
    if as_json:
        from flows import micro_anneal_text, tokenizers_text

        told = {"micro_anneals": micro_anneal_text.as_json(rows), "tokenizers": tokenizers_text.as_json(tokenizers)}
        print(json.dumps({**asdict(summary), "report": report_path, **told}))
        return
    if tokenizers:
        from flows.tokenizers_text import tokenizers_table

        console.print(tokenizers_table(tokenizers))
    if rows:
        from flows.micro_anneal_text import micro_anneal_table, micro_anneal_tasks

        console.print(micro_anneal_table(rows))
        if (on_tasks := micro_anneal_tasks(rows)) is not None:
            console.print(on_tasks)
    console.print(_counters(summary))
    if report_path:
        console.print(f"report: {report_path}")


def _run_dump_flow(work: Any, recipe: Any, as_json: bool) -> None:
    """A flow that may find nothing to do; its lines have said all."""
    from flows.recipe import without_secrets

    state = work(without_secrets(recipe), return_state=True)
    summary = state.result()
    if as_json:
        from flows.recuration import as_json as last_dump

        told = asdict(summary) if summary else {"skipped": state.message}
        print(json.dumps({**told, "dump": last_dump(recipe)}))
    elif summary:
        console.print(_counters(summary))


@contextlib.contextmanager
def _listening(as_json: bool) -> Iterator[None]:
    """A run's lines and its progress on this terminal; with --json nothing but the answer."""
    from flows import face, telling
    from flows.terminal import Terminal

    if as_json:
        face.interrupted.append(_stop)
        yield
        return
    with Terminal(console) as terminal:
        telling.listeners.append(terminal.line)
        telling.watchers.append(terminal.progress)
        face.interrupted.append(lambda: _stop(terminal))
        yield


def _counters(summary: Any) -> str:
    made = ", ".join(f"{step} {number}" for step, number in summary.shards_made.items()) or "none, everything was reused"
    counters = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in summary.counters.items())
    return f"{summary.flow} {summary.recipe['name']}: done in {summary.seconds:.1f} s; {counters}; shards made: {made}"


def _gathered(recipe: Any, summary: Any) -> Any:
    from flows.report import Gathering
    from tasks.store import Store

    return Gathering(Store(recipe.store), recipe, summary)


@app.command()
def plan(
    recipe_file: RecipeFile,
    set_: Overrides = None,
    flow: Annotated[str, typer.Option("--flow", help="The flow to plan.", autocompletion=_flows)] = "end-to-end",
    price: Annotated[float, typer.Option("--price", help="Price of a GPU hour.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """What would run and what is reused, and what the training would cost; runs nothing."""
    from flows.plan import make_plan, stage_of
    from flows.recipe import load

    if flow not in FLOWS:
        raise RecipeError(f"there is no flow {flow!r}; choose one of {', '.join(FLOWS)}")
    planned = make_plan(load(recipe_file, set_), stage_of(flow), price)
    if as_json:
        print(json.dumps(planned))
        return
    from flows.plan_text import plan_tables, wrapped

    for table in plan_tables(planned):
        console.print(table)
    for line in planned["notes"]:
        console.print(escape(wrapped(line)))


def _number(value: int | float | None) -> str:
    return "" if value is None else f"{value:,}"


@app.command()
def rerun(
    step: Annotated[
        str,
        typer.Argument(
            metavar="STEP",
            help="A step as `olmoflow plan` names it: ingest, score, tokenize, select, mix, train, ...",
            autocompletion=completion.steps,
        ),
    ],
    recipe_file: RecipeFile,
    source: Annotated[str | None, typer.Option("--source", help="Only this source, mix or run.", autocompletion=completion.names)] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is there already.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """One step again, and only it; what it needs must be there."""
    from flows.plan import check_step
    from flows.recipe import load, without_secrets

    recipe = load(recipe_file, set_)
    check_step(recipe, step, source)
    from flows.rerun import rerun_step

    with _listening(as_json):
        summary = rerun_step(step, source, force, recipe=without_secrets(recipe))
    if as_json:
        print(json.dumps(asdict(summary)))
    else:
        console.print(_counters(summary))


@app.command()
def why(
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step as `olmoflow plan` names it.", autocompletion=completion.steps)],
    recipe_file: RecipeFile,
    source: Annotated[str | None, typer.Option("--source", help="Only this source, mix or run.", autocompletion=completion.names)] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Why a step would be made again: what differs from its last artifact in the store, root causes first; runs nothing."""
    from flows import why as reasons
    from flows.recipe import load

    found = reasons.explain(load(recipe_file, set_), step, source)
    if as_json:
        print(json.dumps([reasons.as_json(each) for each in found]))
        return
    for each in found:
        for line in reasons.lines(each):
            console.print(escape(line))


@app.command("ls")
def list_artifacts(store: StoreUrl = "store", as_json: AsJson = False) -> None:
    """The artifacts of a store, oldest first."""
    from tasks.store import Store

    manifests = sorted(Store(store).manifests(), key=lambda manifest: (manifest["created"], manifest["id"]))
    rows = [{name: manifest[name] for name in ("id", "step", "name", "created")} | _sizes(manifest) for manifest in manifests]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        raise UserError(f"the store {store} has no artifacts; name another with --store or OLMOFLOW_STORE")
    table = Table("id", "step", "name", "shards", "rows", "bytes", "made", box=None, header_style="bold")
    for row in rows:
        table.add_row(
            row["id"], row["step"], escape(row["name"]), _number(row["shards"]), _number(row["kept"]), _number(row["bytes"]), row["created"]
        )
    console.print(table)


def _sizes(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"shards": len(manifest["shards"]), "kept": manifest["books"]["kept"], "bytes": sum(file["bytes"] for file in manifest["files"])}


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(metavar="ID", help="An artifact's id, or its beginning.")],
    store: StoreUrl = "store",
    samples: Annotated[int, typer.Option("--samples", min=0, help="Documents to show of those kept, and of each reason.")] = 3,
    reason: Annotated[str | None, typer.Option("--reason", help="Show only documents with this in their reason, or `kept`.")] = None,
    as_json: AsJson = False,
) -> None:
    """One artifact: its books, config, inputs and files, and documents that were kept and dropped, by reason."""
    from flows.show import show_artifact

    show_artifact(console, store, artifact, samples, reason, as_json)


@app.command()
def lineage(
    artifact: Annotated[str, typer.Argument(metavar="ID", help="An artifact's id, or its beginning.")],
    store: StoreUrl = "store",
    down: Annotated[bool, typer.Option("--down", help="What descends from it, instead of what it descends from.")] = False,
    as_json: AsJson = False,
) -> None:
    """What an artifact descends from, to the raw files: names, counts, dates."""
    from flows import lineage as lineages
    from tasks.store import Store

    found = lineages.lineage(Store(store), artifact, down)
    if as_json:
        print(json.dumps(lineages.as_json(found, down)))
    elif console.is_terminal:
        console.print(lineages.tree(found, down))
    else:
        for line in lineages.lines(found, down):
            print(line)


@app.command()
def replay(
    artifact: Annotated[str, typer.Argument(metavar="ID", help="An artifact's id, or its beginning.")],
    store: StoreUrl = "store",
    into: Annotated[Path | None, typer.Option("--into", help="Folder for what is made; without it nothing of it stays.")] = None,
    as_json: AsJson = False,
) -> int:
    """Make an artifact again from its manifest alone and compare it; exit code 1 where it is not reproduced."""
    from flows.replay import replay_artifact
    from flows.terminal import Terminal
    from tasks.progress import ignore

    if as_json:
        return 0 if replay_artifact(console, store, artifact, into, True, ignore) else 1
    with Terminal(console) as terminal:
        made = replay_artifact(console, store, artifact, into, False, terminal.progress)
    return 0 if made else 1


@app.command()
def gc(
    store: StoreUrl = "store",
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="ID|RECIPE.yaml", help="Also keep this artifact, or all of this recipe.")
    ] = None,
    grace: Annotated[float, typer.Option("--grace", min=0, help="Hours; what is younger is kept, for a run may be under way.")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this nothing is.")] = False,
    as_json: AsJson = False,
) -> None:
    """What of a store no newest run uses, nor anything that is kept descends from: what would be deleted, and why."""
    from flows.gc import collect

    collect(console, store, keep or [], grace, delete, as_json)


@app.command()
def report(recipe_file: RecipeFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Write the HTML report of the recipe's newest run and print its path."""
    from flows.recipe import load
    from flows.report import write_report

    path = write_report(load(recipe_file, set_))
    print(json.dumps({"report": path}) if as_json else path)


@app.command()
def figure(
    figure_file: Annotated[Path, typer.Argument(metavar="FIGURE.yaml", help="One of deployments/figures/, or one like them.")],
    mix: Annotated[str, typer.Option("--mix", help="A mix's name or id in the store, or the folder of a compiled mix.")],
    into: Annotated[Path, typer.Option("--into", help="Folder for the runs and the figure; what it holds is reused.")],
    store: StoreUrl = "store",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Replay one of the report's Figures 3 to 10, small: its runs, its plot and its spike scores."""
    from flows.figure import make
    from flows.terminal import Terminal
    from tasks.progress import ignore

    if as_json:
        print(json.dumps(make(figure_file, set_, mix, store, into, ignore, ignore)))
        return
    with Terminal(console) as terminal:
        made = make(figure_file, set_, mix, store, into, terminal.line, terminal.progress)
    console.print(f"figure: {made['page']}")


Home = Annotated[Path, typer.Option("--home", envvar="OLMOFLOW_HOME", help="The folder of the service's files.")]


@app.command()
def up(
    home: Home = Path(".olmoflow"),
    host: Annotated[str, typer.Option("--host", help="Where the server listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The server's port.")] = 4200,
    cpu_runs: Annotated[int, typer.Option("--cpu-runs", min=1, help="Runs of flows at once.")] = 2,
    gpu_jobs: Annotated[int, typer.Option("--gpu-jobs", min=1, help="GPU jobs at once.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Start what a team needs on one machine: server, database, work pools, workers, deployments."""
    from flows import service

    settings = service.Settings(host, port, cpu_runs, gpu_jobs)
    told = service.start(home, settings, (lambda line: None) if as_json else console.print)
    print(json.dumps(told)) if as_json else console.print(f"{told['ui']} is ready; `olmoflow down` stops it")


@app.command()
def down(home: Home = Path(".olmoflow")) -> None:
    """Stop what `up` has started, and nothing else."""
    from flows.service import Service

    console.print("stopped" if Service(home, console.print).down() else "nothing to stop")


@app.command()
def doctor(
    store: Annotated[str | None, typer.Option("--store", envvar="OLMOFLOW_STORE", help="The store's folder or URL.")] = None,
    uncordon: Annotated[str | None, typer.Option("--uncordon", metavar="HOST", help="Let a mended host have jobs again.")] = None,
    as_json: AsJson = False,
) -> None:
    """What works of this machine, its GPUs, the server, Slurm and the store, and which hosts are cordoned; exit code 1 where something is broken."""
    from flows.doctor import examine, lift, show

    if uncordon is not None:
        lift(store, uncordon)
    findings = examine(store)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        show(console, findings)
    if any(finding.works is False for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
