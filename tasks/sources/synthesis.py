"""Documents made of problems and programs, on top of the formats that have a mapping (report, section 4.2.1). What is refused is dropped
with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tasks.sources import programs
from tasks.sources.base import Dropped, Item, RawFile, Reader, Record
from tasks.sources.calculator import Refused
from tasks.sources.config import SourceConfig
from tasks.sources.replace_numbers import Problem
from tasks.sources.synthetic import AnnotatePrograms, ReplaceNumbers

SAME_NUMBERS = "the numbers of an earlier variant"


def synthesized(reader: Reader) -> Reader:
    """A reader that makes documents of another's records where the source asks for it.

    Each raw record counts as often as variants are wanted of it.
    """

    def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
        return reader(file, config) if config.synthetic is None else _made(reader(file, config), config.synthetic)

    return read


def _made(items: Iterator[Item], synthetic: ReplaceNumbers | AnnotatePrograms) -> Iterator[Item]:
    for item in items:
        if not isinstance(item, Record):
            yield replace(item, units=item.units * getattr(synthetic, "variants", 1))
        elif isinstance(synthetic, ReplaceNumbers):
            yield from _variants(item, synthetic)
        else:
            yield _annotated(item)


def _variants(record: Record, synthetic: ReplaceNumbers) -> Iterator[Item]:
    """`variants` problems with other numbers, or why there is none."""
    try:
        problem = Problem(record.text, record.parts[0])
    except Refused as reason:
        yield Dropped(str(reason), synthetic.variants)
        return
    seen = set()
    for number in range(1, synthetic.variants + 1):
        try:
            question, answer = problem.variant(synthetic.seed, number)
        except Refused as reason:
            yield Dropped(str(reason))
            continue
        if question in seen:
            yield Dropped(SAME_NUMBERS)
            continue
        seen.add(question)
        yield replace(record, id=f"{record.id}/{number}", text=f"{question}\n{answer}", parts=())


def _annotated(record: Record) -> Item:
    try:
        program, result = programs.annotate(record.parts[0])
    except Refused as reason:
        return Dropped(str(reason))
    metadata = record.metadata if result is None else {**record.metadata, "result": result}
    return replace(record, text=f"{record.text}\n{program}", metadata=metadata, parts=())
