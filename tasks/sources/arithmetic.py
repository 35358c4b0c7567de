"""Basic arithmetic, made up by a seeded generator: a calculation in one of many prompts (report, section 4.2.1, DolminoSynthMath's first part:
11M tokens of pairs such as "77 * 14 = 1078").

A source of this format has no raw files. Its parts are named instead: part of the stream of documents from number A to B, of which each
follows from the seed and its number alone. So more documents hold the fewer, and every machine makes the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.sources.base import Item, RawFile, Record
from tasks.sources.config import SourceConfig
from tasks.sources.draws import Draws
from tasks.sources.synthetic import Operation
from tasks.store import fingerprint

DOCUMENTS_A_PART = 200_000
SCHEME = "arithmetic:"

_SIGNS: dict[Operation, str] = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_PROMPTS = (
    "{problem} = {answer}",
    "{problem} is {answer}.",
    "{problem} equals {answer}.",
    "What is {problem}?\n{answer}",
    "What is {problem}? {answer}",
    "What is {problem}?\nThe answer is {answer}.",
    "How much is {problem}?\nIt is {answer}.",
    "Q: What is {problem}?\nA: {answer}",
    "Question: {problem}\nAnswer: {answer}",
    "Question: How much is {problem}?\nAnswer: {problem} = {answer}",
    "Calculate {problem}.\n{answer}",
    "Calculate: {problem} = {answer}",
    "Compute {problem}.\nResult: {answer}",
    "Evaluate {problem}.\n{problem} = {answer}",
    "Work out {problem}.\n{answer}",
    "Solve: {problem}\nSolution: {answer}",
    "Find the value of {problem}.\nThe value is {answer}.",
    "Please tell me what {problem} comes to.\n{problem} comes to {answer}.",
    "If you calculate {problem}, you get {answer}.",
    "The result of {problem} is {answer}.",
)


def parts(config: SourceConfig) -> list[RawFile]:
    """What stands for the source's raw files: the documents' numbers, from 0, DOCUMENTS_A_PART at a time."""
    wanted = config.arithmetic.documents
    bounds = [(first, min(first + DOCUMENTS_A_PART, wanted)) for first in range(0, wanted, DOCUMENTS_A_PART)]
    return [RawFile(f"{SCHEME}{a}-{b}", f"documents {a} to {b - 1}", 0, fingerprint({"arithmetic": [a, b]})) for a, b in bounds]


def read(part: RawFile, config: SourceConfig) -> Iterator[Item]:
    """The documents of a part; each has the id SEED:NUMBER."""
    first, end = map(int, part.url.removeprefix(SCHEME).split("-"))
    settings = config.arithmetic
    for number in range(first, end):
        draws = Draws(settings.seed, "arithmetic", number)
        problem, answer = _calculation(draws, draws.one_of(settings.operations), settings.max_digits)
        text = draws.one_of(_PROMPTS).format(problem=problem, answer=answer)
        yield Record(f"document {number}", f"{settings.seed}:{number}", text)


def _calculation(draws: Draws, operation: Operation, max_digits: int) -> tuple[str, int]:
    """(problem, answer). Numbers of few digits are as frequent as those of many; a division comes out even."""
    left, right = (_operand(draws, draws.whole(1, max_digits)) for _ in range(2))
    if operation == "divide":
        right = max(right, 1)
        left, answer = left * right, left
    elif operation == "add":
        answer = left + right
    elif operation == "subtract":
        answer = left - right
    else:
        answer = left * right
    return f"{left} {_SIGNS[operation]} {right}", answer


def _operand(draws: Draws, digits: int) -> int:
    return draws.whole(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
