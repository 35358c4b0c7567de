"""The comparison of tokenizers for a terminal, and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasks.report_data_training import TokenizerRow
from tasks.report_tokenizers import tokenizer_lines


def tokenizers_table(rows: Sequence[TokenizerRow]) -> Table:
    """A column a tokenizer; scores with their difference from the first one's."""
    table = Table(title="tokenizers: one pass over the same documents with each", title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(escape(row.name), justify="right")
    for line in tokenizer_lines(rows):
        table.add_row(line.label, *(f"{value} {change}".strip() for value, change in zip(line.values, line.changes, strict=True)))
    return table


def as_json(rows: Sequence[TokenizerRow]) -> list[dict[str, Any]]:
    """The same numbers as they are; scores on tasks are shares from 0 to 1."""
    return [{**asdict(row), "bytes_per_token": row.bytes_per_token} for row in rows]
