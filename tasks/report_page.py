"""The report of a run: one self-contained HTML file, made to be looked at.

Nothing is loaded from anywhere: style, script, charts and data are in the page, and every text that comes from data is escaped by the
template (`report.html`). Without JavaScript all of it can still be read.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from tasks.look import TEXT_CHARACTERS
from tasks.readable import compact, duration, percent, size
from tasks.report_charts import DotRow, Line, dot_plot, finite_points, line_chart
from tasks.report_compute import compute_table
from tasks.report_contamination import evaluations_table
from tasks.report_data import Example, FileEntry, Mix, ReportData, SourceFlow, SourceScores, Stage
from tasks.report_data_training import Checkpoint, TrainingRun
from tasks.report_histogram import histogram_chart
from tasks.report_lineage import lineage
from tasks.report_micro_anneals import ALL, micro_anneals, score_names
from tasks.report_tasks import tasks_table
from tasks.report_tokenizers import tokenizer_lines
from trainer.spikes import spike_score

_HERE = Path(__file__).parent
_SECTIONS = (  # as the navigation calls them, all in one line
    ("documents", "Documents"),
    ("scores", "Scores"),
    ("classifiers", "Classifiers"),
    ("files", "Files"),
    ("mixes", "Mixes"),
    ("contamination", "Contamination"),
    ("training", "Training"),
    ("micro-anneals", "Micro-anneals"),
    ("soup", "Soups"),
    ("tasks", "Tasks"),
    ("tokenizers", "Tokenizers"),
    ("compute", "Compute"),
    ("lineage", "Lineage"),
    ("recipe", "Recipe"),
)
_LEAST_BYTES, _MOST_BYTES = 200, 2_500_000  # of one document's text beside a cut, and of all of them together


def render(data: ReportData) -> str:
    """The whole page as text, to be written as UTF-8."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"compact": compact, "percent": percent, "duration": duration, "size": size, "count": lambda n: f"{n:,}"}
    template = environment.from_string((_HERE / "report.html").read_text("utf-8"))
    return template.render(
        data=data,
        css=Markup((_HERE / "report.css").read_text("utf-8")),
        js=Markup((_HERE / "report.js").read_text("utf-8")),
        sections=_SECTIONS,
        tiles=tiles(data),
        ladder=_ladder(data.checkpoints),
        flows=[_flow(flow, _stage_names(data.flows)) for flow in data.flows],
        stage_names=_stage_names(data.flows),
        scores=_scores(data.scores),
        files=_files(data.files),
        mixes=[_mix(mix, _source_colours(data.mixes)) for mix in data.mixes],
        found=evaluations_table(data.contamination),
        training=_training(data.runs),
        micro=micro_anneals(data.micro_anneals),
        soup=_soup(data.checkpoints),
        tasks=tasks_table(data.tasks),
        tokenizers=tokenizer_lines(data.tokenizers),
        compute=compute_table(data.compute),
        graph=lineage(data.artifacts),
        recipe=_yaml(data.recipe),
    )


@dataclass
class _Bar:
    """One row of bars: where it starts and how long it is, in percent of the full width."""

    label: str
    count: int
    start: float
    width: float
    style: str
    share: float
    total: bool = False
    stage: str = ""


def tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the key numbers."""
    found = []
    if data.flows:
        firsts, lasts = [flow.stages[0] for flow in data.flows if flow.stages], [flow.stages[-1] for flow in data.flows if flow.stages]
        units = {stage.unit for stage in firsts}
        unit = units.pop() if len(units) == 1 else "records"
        found.append(("read", compact(sum(stage.read for stage in firsts)), f"{unit} from {len(data.flows)} sources"))
        found.append(("kept", compact(sum(stage.kept for stage in lasts)), "documents selected"))
        tokens = [flow.tokens for flow in data.flows if flow.tokens is not None]
        if tokens:
            found.append(("tokens", compact(sum(tokens)), "in the selected documents"))
    if data.runs:
        trained = sum(run.tokens[-1] for run in data.runs if run.tokens)
        found.append(("trained on", compact(trained), f"tokens in {len(data.runs)} run{'s' if len(data.runs) != 1 else ''}"))
    if data.model_parameters:
        found.append(("model", compact(data.model_parameters), f"parameters{', ' + data.model_name if data.model_name else ''}"))
    if data.artifacts:
        reused = sum(item.reused for item in data.artifacts)
        found.append(("artifacts", f"{len(data.artifacts):,}", f"{reused} reused, {len(data.artifacts) - reused} made"))
    return [*found, ("time", duration(data.seconds), "in all")]


def _ladder(checkpoints: list[Checkpoint]) -> list[dict[str, Any]]:
    """Held-out bits per byte over all sources, from the worst model to the best: baseline, pretrained, best ingredient, soup."""
    scored = [item for item in checkpoints if ALL in item.scores]
    ingredients = sorted((item for item in scored if item.role == "ingredient"), key=lambda item: item.scores[ALL].bits_per_byte)
    picked = [
        *((item, "unigram baseline") for item in scored if item.role == "baseline"),
        *((item, "pretrained") for item in scored if item.role == "pretrained"),
        *((item, "best ingredient") for item in ingredients[:1]),
        *[(item, "soup") for item in scored if item.role == "soup"][-1:],  # soups of single mixes stand before it
    ]
    most = max((item.scores[ALL].bits_per_byte for item, _ in picked), default=1.0)
    rungs: list[dict[str, Any]] = []
    before: float | None = None
    for item, label in picked:
        value = item.scores[ALL].bits_per_byte
        change = None if before is None else value / before - 1
        rungs.append({"label": label, "name": item.name, "value": value, "change": change, "width": 100 * value / most, "role": item.role})
        before = value
    return rungs


def _stage_names(flows: list[SourceFlow]) -> list[str]:
    """Stages in the order of the sources' ways; a stage keeps its colour across sources."""
    return list(dict.fromkeys(stage.name for flow in flows for stage in flow.stages))


def _flow(flow: SourceFlow, names: list[str]) -> dict[str, Any]:
    """Waterfall rows of one source, its two overview bars (first stage, all later ones) and its line in the table."""
    rows: list[_Bar] = []
    unit, whole = "", 1
    for stage in flow.stages:
        if stage.unit != unit:
            unit, whole = stage.unit, max(1, stage.read)
            rows.append(_Bar(f"{unit} read" if stage is flow.stages[0] else f"{unit} made of them", stage.read, 0, 100, "whole", 1.0, True))
        left = stage.read
        for loss in sorted(stage.losses, key=lambda loss: (not loss.quarantined, -loss.count)):
            left -= loss.count
            style = "bad" if loss.quarantined else f"stage{names.index(stage.name) % 5}"
            label = f"{'quarantined: ' if loss.quarantined else ''}{loss.reason}"
            rows.append(_Bar(label, loss.count, 100 * left / whole, 100 * loss.count / whole, style, loss.count / whole, stage=stage.name))
        last = stage is flow.stages[-1]
        if last or flow.stages[flow.stages.index(stage) + 1].unit != stage.unit:
            share = 100 * stage.kept / whole
            rows.append(_Bar("selected" if last else "kept", stage.kept, 0, share, "kept", share / 100, True))
    return {
        "flow": flow,
        "rows": rows,
        "first": _segments(flow.stages[:1], names),
        "later": _segments(flow.stages[1:], names),
        "quarantined": sum(loss.count for stage in flow.stages for loss in stage.losses if loss.quarantined),
    }


def _segments(stages: list[Stage], names: list[str]) -> list[dict[str, Any]]:
    """A bar of what was kept and, stage by stage, what was lost, in shares of what the first of these stages read."""
    if not stages or not stages[0].read:
        return []
    whole = stages[0].read
    found = [("kept", "kept", stages[-1].kept)]
    for stage in reversed(stages):
        found.append(
            (f"lost at {stage.name}", f"stage{names.index(stage.name) % 5}", sum(x.count for x in stage.losses if not x.quarantined))
        )
    found.append(("quarantined", "bad", sum(loss.count for stage in stages for loss in stage.losses if loss.quarantined)))
    unit = stages[0].unit
    return [
        {"style": style, "width": 100 * count / whole, "tip": f"{label}: {count:,} of {whole:,} {unit} ({percent(count / whole)})"}
        for label, style, count in found
        if count
    ]


def _scores(sources: list[SourceScores]) -> list[dict[str, Any]]:
    """Charts of each source, and its cuts with documents cut so short that the page stays small however many they are."""
    documents = sum(len(cut.below) + len(cut.above) for item in sources for cut in item.cuts)
    length = max(_LEAST_BYTES, _MOST_BYTES // max(1, documents))
    found = []
    for item in sources:
        charts = [histogram_chart(shown, [cut for cut in item.cuts if cut.column == shown.column]) for shown in item.histograms]
        most = [max((k + d for k, d in zip(shown.kept, shown.dropped, strict=True)), default=1) for shown in item.categories]
        categories = [{"shown": shown, "most": count} for shown, count in zip(item.categories, most, strict=True)]
        cuts = [
            {
                "cut": cut,
                "sides": [
                    ("below", _shortened(cut.below, length), not cut.passes_above),
                    ("above", _shortened(cut.above, length), cut.passes_above),
                ],
            }
            for cut in item.cuts
        ]
        found.append({"item": item, "charts": charts, "categories": categories, "cuts": cuts})
    return found


def _shortened(examples: list[Example], most: int) -> list[Example]:
    return [replace(example, text=_cut(example.text, most)) for example in examples]


def _cut(text: str, most: int) -> str:
    """The first `most` bytes of a text, whole characters only; an ellipsis where there is more, or where more was left out before."""
    data = text.encode()
    return data[:most].decode(errors="ignore") + "…" if len(data) > most or len(text) >= TEXT_CHARACTERS else text


def _files(files: list[FileEntry]) -> dict[str, Any]:
    """Files with what needs attention first, and how many of each outcome."""
    order = {"unmentioned": 0, "left out": 2, "read": 3}
    ranked = sorted(files, key=lambda item: (1 if item.quarantined else order[item.outcome], item.source, item.path))
    outcomes = {name: sum(item.outcome == name for item in files) for name in ("read", "left out", "unmentioned")}
    return {
        "rows": ranked,
        "outcomes": outcomes,
        "bytes": sum(item.bytes for item in files),
        "torn": sum(item.quarantined > 0 for item in files),
    }


def _source_colours(mixes: list[Mix]) -> dict[str, int]:
    return {source: number for number, source in enumerate(dict.fromkeys(row.source for mix in mixes for row in mix.rows))}


def _mix(mix: Mix, colours: dict[str, int]) -> dict[str, Any]:
    """Rows in the columns of the report's Table 13; the shares are computed, since the printed ones contradict each other."""
    total = sum(row.tokens for row in mix.rows)
    rows = [
        {
            "row": row,
            "colour": colours[row.source] % 8,
            "faint": colours[row.source] >= 8,
            "source_share": row.tokens / row.available_tokens if row.available_tokens else None,
            "mix_share": row.tokens / total if total else 0.0,
        }
        for row in mix.rows
    ]
    return {"mix": mix, "rows": rows, "tokens": total, "documents": sum(row.documents for row in mix.rows)}


def _training(runs: list[TrainingRun]) -> dict[str, Any]:
    """Charts of the long runs (pretraining and anneals along one axis of tokens), of the micro-anneals, and a table of all."""
    long = [run for run in runs if run.kind != "micro-anneal" and run.tokens]
    short = [run for run in runs if run.kind == "micro-anneal" and run.tokens]
    anneals = [run for run in long if run.kind == "anneal"]
    charts = []
    if long:
        charts.append(_curves("Loss", long, "loss"))
        if anneals and len(anneals) < len(long):
            start = min(run.tokens_before for run in anneals)
            reach = max(run.tokens[-1] for run in anneals)
            charts.append(_curves("Loss, close to the anneals", long, "loss", since=start - reach // 2))
        charts.append(_curves("Gradient norm", long, "grad_norm", log=True))
        charts.append(_curves("Learning rate", long, "learning_rate", noisy=False))
    small = [
        _curves(f"{title} of the micro-anneals", short, key, log=log, noisy=noisy, relative=True)
        for title, key, log, noisy in (
            ("Loss", "loss", False, True),
            ("Gradient norm", "grad_norm", True, True),
            ("Learning rate", "learning_rate", False, False),
        )
        if short
    ]
    return {"charts": charts, "small": small, "scores": _scores_along(runs), "table": [_run_row(run) for run in runs]}


def _scores_along(runs: list[TrainingRun]) -> list[Markup]:
    """A chart of each score: every run that has it, behind the tokens of the checkpoint that it started from."""
    return [
        line_chart(
            name,
            [
                Line(run.name, [(run.tokens_before + tokens, value) for tokens, value in run.scores.get(name, [])], number)
                for number, run in enumerate(runs)
            ],
            "tokens",
        )
        for name in dict.fromkeys(name for run in runs for name in run.scores)
    ]


def _curves(
    title: str, runs: list[TrainingRun], key: str, log: bool = False, noisy: bool = True, since: int | None = None, relative: bool = False
) -> Markup:
    lines = []
    for number, run in enumerate(runs):
        before = 0 if relative else run.tokens_before
        points = finite_points((before + tokens for tokens in run.tokens), getattr(run, key))
        if since is not None:
            points = [point for point in points if point[0] >= since]
        lines.append(Line(run.name, points, number, noisy and len(points) >= 30))
    values = sorted(y for line in lines for _, y in line.points)
    wild = bool(values) and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]  # one spike would flatten all the rest
    return line_chart(title, lines, "tokens", log or wild)


def _run_row(run: TrainingRun) -> dict[str, Any]:
    rates = [rate for rate in run.learning_rate if rate is not None]
    return {
        "run": run,
        "steps": len(run.step),
        "tokens": run.tokens[-1] if run.tokens else 0,
        "loss": run.loss[-1] if run.loss else None,
        "loss_spikes": spike_score(run.loss),
        "norm_spikes": spike_score(run.grad_norm),
        "peak": max(rates, default=None),
        "last": rates[-1] if rates else None,
    }


def _soup(checkpoints: list[Checkpoint]) -> dict[str, Any]:
    """Changes against the pretrained checkpoint as dots, bits per byte of every model as bars and as a table."""
    sources = score_names(item.scores for item in checkpoints)
    pretrained = next((item for item in checkpoints if item.role == "pretrained"), None)
    panels = []
    for source in sources:
        scored = [(item, item.scores[source]) for item in checkpoints if source in item.scores]
        most = max((score.bits_per_byte for _, score in scored), default=1.0) or 1.0
        best = min((score.bits_per_byte for _, score in scored), default=0.0)
        reference = pretrained.scores.get(source) if pretrained else None
        bars = [
            {
                "item": item,
                "score": score,
                "width": 100 * score.bits_per_byte / most,
                "best": score.bits_per_byte == best,
                "change": score.bits_per_byte / reference.bits_per_byte - 1 if reference and item.role in ("ingredient", "soup") else None,
            }
            for item, score in scored
        ]
        panels.append({"source": source, "bars": bars})
    return {"panels": panels, "sources": sources, "dots": _dots(panels), "pretrained": pretrained}


def _dots(panels: list[dict[str, Any]]) -> Markup | None:
    rows = []
    for panel in panels:
        dots = [
            (bar["item"].name, 100 * bar["change"], 2 if bar["item"].role == "soup" else 0, bar["item"].role == "soup")
            for bar in panel["bars"]
            if bar["change"] is not None
        ]
        if dots:
            rows.append(DotRow(panel["source"], dots, panel["source"] == ALL))
    return dot_plot("Change of held-out bits per byte against the pretrained checkpoint", rows, "%") if rows else None


def _yaml(text: str) -> Markup:
    """YAML with keys and comments marked, line by line; anything else is left as it stands."""
    lines = []
    for line in text.splitlines():
        found = re.fullmatch(r"(\s*(?:- )?)([\w.\-/\"']+)(:(?:\s.*)?)", line)
        if line.lstrip().startswith("#"):
            lines.append(Markup("<i>{}</i>").format(line))
        elif found:
            lines.append(Markup("{}<b>{}</b>{}").format(*found.groups()))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)
