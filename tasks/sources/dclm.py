"""DCLM-baseline (`*.jsonl.zst`): `text`, `url`, the WARC headers in `metadata`, and the published score of its fastText classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.sources.base import Item, RawFile, Record
from tasks.sources.config import Column, Fields, SourceConfig
from tasks.sources.fields import MISSING, Rules, convert, find
from tasks.sources.jsonl import read_lines

# The published dumps name the score either way.
SCORE_NAMES = ("fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob", "fasttext_oh_eli5_vs_rw_v2_prob")
COLUMNS = {"url": Column(field="url", type="string"), **{name: Column(field=name, type="float") for name in SCORE_NAMES}}


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a line, with the columns `url` and `fasttext_score` (null where the dump has none)."""
    for item in read_lines(file, Rules(Fields(columns=COLUMNS), _record_id)):
        if isinstance(item, Record):
            scores = [item.columns.pop(name) for name in SCORE_NAMES]
            item.columns["fasttext_score"] = next((score for score in scores if score is not None), None)
        yield item


def _record_id(raw: Mapping[str, Any]) -> str | None:
    for path in ("metadata.WARC-Record-ID", "url"):
        value = find(raw, path)
        if value is not MISSING and value:
            return convert(value, "string", "id")
    return None
