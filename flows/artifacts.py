"""What a run shows of itself in Prefect's UI: its plan before it starts, and afterwards where documents went, mixes, scores, lineage, report.

Keys are those of the recipe, so that the page of an artifact has its history. Prefect's page drops HTML: all is markdown.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.micro_anneal_text import micro_anneal_table, micro_anneal_tasks
from flows.plan_text import plan_tables
from flows.tokenizers_text import tokenizers_table
from tasks.readable import compact, percent, size
from tasks.report_data import Artifact, Mix, ReportData, SourceFlow
from tasks.report_data_training import Checkpoint, TaskScore
from tasks.report_micro_anneals import score_names
from tasks.report_page import tiles
from tasks.report_tasks import tasks_table
from tasks.secrets import hidden


@dataclass(frozen=True)
class Shown:
    """An artifact for the UI: `kind` becomes the beginning of its key, `about` stands above its text."""

    kind: str
    about: str
    text: str


def show(recipe: str, shown: Iterable[Shown]) -> None:
    """Draw them, within a flow. A server that is away for a while must not end the work: what is left is not drawn then."""
    with contextlib.suppress(PrefectException, httpx.HTTPError):
        for each in shown:
            create_markdown_artifact(hidden(each.text), key_of(each.kind, recipe), hidden(each.about))


def key_of(kind: str, recipe: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{kind} {recipe}".lower()).strip("-")


def before(planned: dict[str, Any]) -> Shown:
    """The plan, as `olmoflow plan` prints it."""
    parts = [f"- {_escaped(note)}" for note in planned["notes"]]
    parts = ["\n".join(parts), *(part for table in plan_tables(planned) for part in _parts(table))]
    return Shown("plan", f"What this run of {planned['recipe']} was to do when it started; its store: {planned['store']}", _joined(parts))


def after(data: ReportData) -> Iterator[Shown]:
    """What the run did; nothing about what it did not do."""
    name = data.recipe_name
    if data.flows:
        yield Shown("waterfall", f"Where the documents of {name} went: read = kept + dropped + quarantined", _waterfall(data.flows))
    if data.mixes:
        yield Shown("mixes", f"What the mixes of {name} consist of", _joined([part for mix in data.mixes for part in _mix(mix)]))
    if data.checkpoints or data.tasks:
        parts = [*_held_out(data.checkpoints), *_tasks(data.tasks)]
        yield Shown("evaluation", f"The checkpoints of {name} on held-out text and tasks", _joined(parts))
    if data.micro_anneals:
        tables = [micro_anneal_table(data.micro_anneals), micro_anneal_tasks(data.micro_anneals)]
        yield Shown("micro-anneals", f"The micro-anneals of {name}", _joined([part for each in tables if each for part in _parts(each)]))
    if data.tokenizers:
        yield Shown("tokenizers", f"The tokenizers of {name}", _joined(_parts(tokenizers_table(data.tokenizers))))
    if data.artifacts:
        yield Shown("lineage", f"What the artifacts of {name} were made of, with their ids", _lineage(data.artifacts))


def report(data: ReportData, place: str) -> Shown:
    """The report's key numbers, and where it lies. A page that came over HTTP may not open a file: its address is there to be copied."""
    rows = [[label, f"**{value}**", text] for label, value, text in tiles(data)]
    is_file = place.startswith("/")
    how = (
        "Copy this address into the browser's address bar, on the machine of the store:" if is_file else "The report lies in the store at:"
    )
    text = [table(["", "", ""], rows, left=(0, 2)), how, f"```\n{'file://' if is_file else ''}{place}\n```"]
    return Shown("report", f"The report of {data.recipe_name}", _joined([*text, *(_escaped(notice) for notice in data.notices)]))


def _waterfall(flows: list[SourceFlow]) -> str:
    rows = []
    for flow in flows:
        for stage in flow.stages:
            lost = "; ".join(f"{_escaped(loss.reason)}: {loss.count:,}" for loss in stage.losses if loss.count)
            tokens = f"{flow.tokens:,}" if stage is flow.stages[-1] and flow.tokens is not None else ""
            # reasons last: a long one pushes what follows it out of sight
            rows.append([_escaped(flow.source), stage.name, stage.unit, f"{stage.read:,}", f"{stage.kept:,}", tokens, lost])
    told = table(["source", "step", "unit", "read", "kept", "tokens kept", "dropped, by reason"], rows, left=(0, 1, 2, 6))
    notes = [f"- {_escaped(flow.source)}: {_escaped(flow.note)}" for flow in flows if flow.note]
    return _joined([told, "\n".join(notes)])


def _mix(mix: Mix) -> list[str]:
    """In the columns of the report's Table 13."""
    total, documents = sum(row.tokens for row in mix.rows), sum(row.documents for row in mix.rows)
    rows = [
        [
            _escaped(row.source),
            compact(row.available_tokens),
            percent(row.tokens / row.available_tokens if row.available_tokens else None),
            f"{row.tokens:,}",
            percent(row.tokens / total if total else 0.0),
            f"{row.documents:,}",
        ]
        for row in mix.rows
    ]
    rows.append(["**total**", "", "", f"**{total:,}**", "", f"**{documents:,}**"])
    heading = f"### {_escaped(mix.name)}" + (f", read by {_escaped(', '.join(mix.used_by))}" if mix.used_by else "")
    return [heading, table(["source", "tokens there", "source %", "tokens taken", "mix %", "documents"], rows)]


def _held_out(checkpoints: list[Checkpoint]) -> list[str]:
    if not checkpoints:
        return []
    sources = score_names(each.scores for each in checkpoints)
    best = {source: min(each.scores[source].bits_per_byte for each in checkpoints if source in each.scores) for source in sources}

    def cell(checkpoint: Checkpoint, source: str) -> str:
        score = checkpoint.scores.get(source)
        return "–" if score is None else _marked(f"{score.bits_per_byte:.4f}", score.bits_per_byte == best[source])

    rows = [[_escaped(each.name), *(cell(each, source) for source in sources)] for each in checkpoints]
    return ["### Held-out text, bits per byte (lower is better)", table(["checkpoint", *map(_escaped, sources)], rows)]


def _tasks(scores: list[TaskScore]) -> list[str]:
    if not scores:
        return []
    told = tasks_table(scores)

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return "–"
        about = "" if found["error"] is None else f" ±{found['error']:.1f}"
        return _marked(f"{found['percent']:.1f}", found["best"]) + about

    headings = [f"{column.task}{' (held out)' if column.suite == 'held_out' else ''}" for column in told["columns"]]
    rows = [[_escaped(row["model"]), *map(cell, row["cells"])] for row in told["rows"]]
    return ["### Tasks, percent ± standard error (higher is better)", table(["model", *map(_escaped, headings)], rows)]


def _lineage(artifacts: list[Artifact]) -> str:
    """A tree from each artifact that no other is made of, down to those of raw files; what was told before is only named."""
    known = {each.id: each for each in artifacts}
    inputs = {name for each in artifacts for name in each.inputs}
    waiting = [(0, each) for each in reversed(artifacts) if each.id not in inputs]
    lines, seen = [], set[str]()
    while waiting:
        depth, each = waiting.pop()
        called = f"{'  ' * depth}{each.step} {each.name}".rstrip()
        if each.id in seen:
            lines.append(f"{called}  {each.id}, see above")
            continue
        seen.add(each.id)
        counts = f"{each.shards:,} shard{'s' if each.shards != 1 else ''}, {size(each.bytes)}, {'reused' if each.reused else 'made'}"
        lines.append(f"{called}  {each.id}  {counts}")
        waiting += [(depth + 1, known[name]) for name in reversed(each.inputs) if name in known]
    return _joined(["Each stands above what it was made of. `olmoflow show ID` tells more of one.", "```\n" + "\n".join(lines) + "\n```"])


# -- markdown ----------------------------------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """left: the columns of words; all others are numbers and stand at the right."""
    rules = [":---" if number in left else "---:" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def _parts(drawn: Table | Group) -> list[str]:
    """The same that a terminal shows."""
    if isinstance(drawn, Group):
        return [part for each in drawn.renderables for part in (_parts(each) if isinstance(each, Table) else [_plain(each).strip()])]
    columns = drawn.columns
    rows = list(zip(*(map(_plain, column.cells) for column in columns), strict=True))
    left = [number for number, column in enumerate(columns) if column.justify != "right"]
    told = table([_plain(column.header).strip() for column in columns], rows, left)
    return [f"### {_escaped(str(drawn.title))}", told] if drawn.title else [told]


def _plain(cell: Any) -> str:
    return _escaped(cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain)


def _marked(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _escaped(text: str) -> str:
    """What people and files are called, without a meaning in markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text.replace("\n", " "))


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)
