"""Records of evaluation files, and the subset of them that a task counts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.olmes.definitions import SEED, AnyTask, Asked, Problem
from tasks.sources.base import RawFile
from tasks.sources.fields import MISSING, find
from tasks.sources.stream import StreamFault, lines


def read(task: AnyTask, files: Sequence[RawFile], subjects: Sequence[str] = ()) -> list[Asked]:
    """Every record of the files as the task asks it, in the files' order. subjects: of each file, where records do not say theirs.

    Raises UserError for a file that cannot be read and a record that lacks what the task needs, naming both.
    """
    asked: list[Asked] = []
    for number, file in enumerate(files):
        for position, record in _records(file):
            missing = [path for path in task.fields if not isinstance(record, dict) or find(record, path) is MISSING]
            where = f"{file.shown}, {position}"
            if missing:
                raise UserError(f"{where}: a record of the task {task.name} needs the field {missing[0]}; mend the file, or give another")
            try:
                made = task.read(record)
                for each in made if isinstance(made, list) else [made]:
                    asked.append(_checked(replace(each, subject=subjects[number]) if subjects else each))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise UserError(f"{where}: cannot be read as a record of the task {task.name} ({error}); mend the file") from error
    return asked


def subject_of(task: AnyTask, file: RawFile) -> str:
    """Which of the task's subjects stands in a file's path, the last where there are several. Raises UserError where none does."""
    path = file.shown.replace("_", "-")
    places = {subject: path.rfind(subject.replace("_", "-")) for subject in task.subjects}
    last = max(places, key=lambda subject: places[subject])
    if places[last] < 0:
        raise UserError(
            f"{file.shown}: the records of the task {task.name} do not say their subject, and none stands in the file's path; name the file "
            f"after one of {', '.join(task.subjects)}"
        )
    return last


def _checked(asked: Asked) -> Asked:
    if isinstance(asked, Problem):
        if not asked.answers or not all(isinstance(answer, str) for answer in asked.answers):
            raise ValueError("it has no answer in words")
    elif not all(isinstance(choice, str) and choice for choice in asked.choices):
        raise ValueError("a choice is empty or no text")
    elif not 0 <= asked.gold < len(asked.choices):
        raise ValueError(f"the right choice is number {asked.gold} of {len(asked.choices)}, counted from 0")
    return asked


def counted(task: AnyTask, instances: int, sample: int | None) -> list[int]:
    """The rows that count: `sample` of them by seed, in the order that the seed gives, or for a `rest` all others in theirs."""
    rows = range(instances)
    chosen = list(rows) if sample is None or sample >= instances else random.Random(SEED).sample(rows, sample)
    if task.part == "sample":
        return chosen
    taken = set(chosen)
    return [row for row in rows if row not in taken]


def _records(file: RawFile) -> Iterator[tuple[str, Any]]:
    if file.url.endswith(".parquet"):
        with file.open() as stream:
            for number, record in enumerate(pq.read_table(stream).to_pylist(), 1):
                yield f"row {number}", record
        return
    try:
        for number, line in lines(file):
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{file.shown}, line {number}: is no JSON ({error}); an evaluation file is JSON lines or Parquet"
                ) from error
    except StreamFault as fault:
        raise UserError(f"{file.shown}, byte {fault.offset}: {fault.cause}; fetch the file again") from fault
