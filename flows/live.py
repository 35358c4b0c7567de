"""A training that goes on, as an artifact of its flow run: newest numbers and the curve of its loss.

Prefect's page drops HTML but shows a picture by its data; the curve is an SVG with a background of its own, for the page may be dark.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException

from tasks.progress import Progress
from tasks.readable import duration

REFRESH_SECONDS = 20.0
POINTS = 300
WIDTH, HEIGHT, MARGIN = 720, 240, 46


class LiveLoss:
    """Called with a training's progress, it draws an artifact: at once, then every few seconds, and after the last step."""

    def __init__(self, title: str, folder: Path) -> None:
        self.key = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.metrics = folder / "metrics.jsonl"
        self.drawn: UUID | None = None
        self.next = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.seconds < self.next and progress.done < progress.total:
            return
        self.next = progress.seconds + REFRESH_SECONDS
        lines = read(self.metrics)
        if not lines:
            return
        text = markdown(lines, progress)
        with contextlib.suppress(PrefectException, httpx.HTTPError):  # a server that is away for a while must not end the work
            if self.drawn is None:
                self.drawn = create_markdown_artifact(text, self.key, "The training as it goes.")  # type: ignore[assignment]
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self.drawn, ArtifactUpdate(data=text))


def read(metrics: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's `metrics.jsonl`; none where there is none yet."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_bytes().split(b"\n")[:-1]]


def markdown(lines: list[dict[str, Any]], progress: Progress) -> str:
    """A table of the newest numbers and a picture of the loss by step."""
    newest = lines[-1]
    left = progress.seconds_left
    rows = {
        "step": f"{newest['step']:,} of {progress.total:,}",
        "loss": f"{newest['loss']:.4f}",
        "tokens": f"{newest['tokens']:,}",
        "tokens/s": f"{newest['tokens_per_second']:,.0f}",
        "learning rate": f"{newest['learning_rate']:.4g}",
        "time left": "none, it is done" if newest["step"] >= progress.total else duration(left) if left is not None else "not known yet",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    picture = base64.b64encode(curve([(line["step"], line["loss"]) for line in lines]).encode()).decode()
    return f"| {progress.name} | |\n|---|---|\n{table}\n\n![loss by step](data:image/svg+xml;base64,{picture})\n"


def curve(points: list[tuple[int, float]]) -> str:
    """An SVG of at most `POINTS` points, each the mean of the steps that it stands for."""
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    every = max(1, math.ceil(len(finite) / POINTS))
    means = [_mean(finite[start : start + every]) for start in range(0, len(finite), every)]
    if not means:
        means = [(0.0, 0.0)]
    steps, losses = [step for step, _ in means], [loss for _, loss in means]
    low, high = min(losses), max(losses)
    across, up = (WIDTH - 2 * MARGIN) / max(steps[-1] - steps[0], 1e-9), (HEIGHT - 2 * MARGIN) / max(high - low, 1e-9)
    line = " ".join(f"{MARGIN + (step - steps[0]) * across:.1f},{HEIGHT - MARGIN - (loss - low) * up:.1f}" for step, loss in means)
    text = 'font-family="sans-serif" font-size="12" fill="#444"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>'
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#bbb"/>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2" stroke-linejoin="round"/>'
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end" {text}>{high:.2f}</text>'
        f'<text x="{MARGIN - 6}" y="{HEIGHT - MARGIN + 4}" text-anchor="end" {text}>{low:.2f}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 18}" {text}>{finite[0][0] if finite else 0:,}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 18}" text-anchor="end" {text}>step {finite[-1][0] if finite else 0:,}</text>'
        f'<text x="{MARGIN}" y="22" {text}>loss</text></svg>'
    )


def _mean(points: list[tuple[int, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(loss for _, loss in points) / len(points)
