"""A figure as one self-contained HTML page: its curves, and the table of spike scores or growth exponents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tasks.figure import MEASURED, SCORED, metrics
from tasks.readable import compact
from tasks.report_charts import Line, finite_points, line_chart
from trainer.spikes import WINDOW

_HERE = Path(__file__).parent
_CURVES = {  # title, whether on a logarithmic axis
    "loss": ("Training loss", False),
    "z_loss": ("z-loss, weighted", False),
    "grad_norm": ("L2 norm of the gradient, before clipping", True),
    "embedding_norm": ("Mean norm of the input embedding's vectors", False),
}
_WIDTH, _HEIGHT = 1120, 300


def render(result: dict[str, Any], folder: Path) -> str:
    """The page of what `figure.replay` returned; `folder` holds the runs."""
    trained = "curves" in result
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string((_HERE / "figure.html").read_text("utf-8")).render(
        figure=result,
        charts=_curves(result, folder) if trained else _growth(result),
        note=_note(result) if trained else "",
        names=[metric.replace("_", " ") for metric in SCORED],
        scored=SCORED,
        trained=trained,
        measured=MEASURED,
        compact=compact,
        css=Markup((_HERE / "report.css").read_text("utf-8")),
        js=Markup((_HERE / "report.js").read_text("utf-8")),
    )


def _curves(result: dict[str, Any], folder: Path) -> list[Markup]:
    lines = {name: metrics(folder / variant["run"]) for name, variant in result["variants"].items()}
    charts = []
    for curve in result["curves"]:
        title, log = _CURVES[curve]
        drawn = [
            Line(
                name,
                finite_points([line["step"] for line in run], [line.get(curve) for line in run]),
                colour,
                noisy=curve != "embedding_norm",
            )
            for colour, (name, run) in enumerate(lines.items())
        ]
        charts.append(line_chart(title, drawn, "steps", log, _WIDTH, _HEIGHT))
    return charts


def _growth(result: dict[str, Any]) -> list[Markup]:
    """One chart for the activations and one for the gradients, a line for each variant."""
    charts = []
    for kind in MEASURED:
        lines = []
        for colour, (name, variant) in enumerate(result["variants"].items()):
            widths = {int(width): found[kind] for width, found in variant["widths"].items()}
            points = [
                (float(w), found["exponent"]) if result["shows"] == "exponents" else (w**0.5, found["last"]) for w, found in widths.items()
            ]
            lines.append(Line(name, points, colour))
        if result["shows"] == "exponents":
            charts.append(line_chart(f"Growth exponent of the {kind}", lines, "d_model", False, _WIDTH, _HEIGHT))
        else:
            charts.append(line_chart(f"Norm of the {kind} at the last layer's output", lines, "√d_model", True, _WIDTH, _HEIGHT))
    return charts


def _note(result: dict[str, Any]) -> str:
    steps = max(variant["steps"] for variant in result["variants"].values())
    if steps > WINDOW:
        return ""
    return (
        f"The spike score compares a value with the {WINDOW:,} before it; a run of {steps:,} steps never has so many, so its score says less than the "
        "report's."
    )
