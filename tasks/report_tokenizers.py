"""The comparison of tokenizers in the manner of the report's Table 5: a column a tokenizer, a line a measure, for page and terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.readable import compact
from tasks.report_data_training import TokenizerRow
from tasks.report_micro_anneals import AVERAGE, score_names


@dataclass(frozen=True)
class Line:
    """A measure under each tokenizer. changes: differences from the first one where there are some, as text; better: of which sign."""

    label: str
    values: list[str]
    changes: list[str]
    better: list[bool | None]


def tokenizer_lines(rows: Sequence[TokenizerRow]) -> list[Line]:
    """What each tokenizer makes of the same text, what its model costs, and its scores, each with its difference from the first one's."""
    if not rows:
        return []

    def told(label: str, text: Callable[[TokenizerRow], str]) -> Line:
        return Line(label, [text(row) for row in rows], [""] * len(rows), [None] * len(rows))

    lines = [
        told("vocabulary, padded", lambda row: f"{row.vocabulary:,}"),
        told("bytes of text a token", lambda row: f"{row.bytes_per_token:.3f}"),
        told("tokens of the mix", lambda row: compact(row.tokens)),
        told("steps", lambda row: f"{row.steps:,}"),
        told("tokens trained on", lambda row: compact(row.trained_tokens)),
        told("bytes trained on", lambda row: compact(row.trained_bytes)),
        told("parameters", lambda row: compact(row.parameters)),
        told("training FLOPs", lambda row: f"{row.flops:.4g}"),
    ]
    for source in score_names([row.scores for row in rows]):
        bits = [row.scores[source].bits_per_byte if source in row.scores else None for row in rows]
        lines.append(_scored(f"held-out bits per byte, {source}", bits, 4, higher_is_better=False))
    for task in dict.fromkeys(task for row in rows for task in row.tasks):
        percents = [100 * row.tasks[task] if task in row.tasks else None for row in rows]
        name = "average score on tasks" if task == AVERAGE else task
        lines.append(_scored(f"{name}, percent", percents, 1, higher_is_better=True))
    return lines


def _scored(label: str, values: Sequence[float | None], digits: int, higher_is_better: bool) -> Line:
    first = values[0]
    differences = [None if value is None or first is None or not n else value - first for n, value in enumerate(values)]
    return Line(
        label,
        ["–" if value is None else f"{value:.{digits}f}" for value in values],
        ["" if change is None else f"{change:+.{digits}f}".replace("-", "−") for change in differences],
        [None if not change else (change > 0) == higher_is_better for change in differences],
    )
