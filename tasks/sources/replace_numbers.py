"""GSM8K's problems with other numbers (report, section 4.2.1, DolminoSynthMath's second part): the numbers of a question are replaced, and the
solution follows by its own steps `<<48/2=24>>`.

What a number in a step or in the solution's words stands for is found by its value: a number of the question, the result of an earlier
step, or a constant that a word brings in (60 for minutes). Where it could be two of them, or none, the problem is refused, with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

from tasks.sources import calculator
from tasks.sources.calculator import Refused
from tasks.sources.draws import Draws

TOO_LONG = "too long a problem"
NO_ANSWER = "no last line #### number"
NO_STEPS = "no steps <<...=...>>"
NO_ARITHMETIC = "a step that is no arithmetic"
WRONG_STEP = "a step that does not recompute"
OTHER_ANSWER = "the answer is not the last step's result"
AMBIGUOUS = "a number that may stand for two things"
FROM_NOWHERE = "a number that stands for nothing"
NOTHING_TO_REPLACE = "no number that can be replaced"
NO_NUMBERS_FOUND = "no other numbers give a sensible solution"
REASONS = (
    TOO_LONG,
    NO_ANSWER,
    NO_STEPS,
    NO_ARITHMETIC,
    WRONG_STEP,
    OTHER_ANSWER,
    AMBIGUOUS,
    FROM_NOWHERE,
    NOTHING_TO_REPLACE,
    NO_NUMBERS_FOUND,
)
TRIES = 300
MAX_CHARACTERS = 8_000

_LONG_NUMBER = re.compile(rf"[0-9.,]{{{calculator.MAX_DIGITS}}}")

_STEP = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(_DIGITS)
_LAST_LINE = re.compile(rf"\n#### *\$?(-?(?:{_DIGITS}))\s*\Z")
_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "thirteen": 13,
    "fourteen": 14,
    "fifteen": 15,
    "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
    "twenty": 20,
}
_TOKEN = re.compile(rf"(?<![\w.])(?:{'|'.join(_WORDS)})(?![\w-])|{_DIGITS}", re.IGNORECASE)
# What may stand beside a number that is replaced. Others are parts of fractions, times, ordinals, names and dates.
_NOT_BEFORE = re.compile(r"(?:[\w/:#^-]|\d[.,])\Z")
_NOT_AFTER = re.compile(
    r"(?:st|nd|rd|th)\b|[/:^]|,?\d|[A-Za-z]\w*\d| ?[ap]\.?m\b| (?:and )?(?:\d+/|(?:a|one|two|three)[ -](?:half|third|quarter|fourth|fifth))"
    r"|[ -](?:\d|half|third|quarter|fourth|fifth|hundred|thousand|million|billion|dozen|one|two|three|four|five|six|seven|eight|nine)",
    re.IGNORECASE,
)
_PERCENT = re.compile(r" ?%| percent")
# Constants that a word brings in, whether by its meaning or as a unit that is converted.
_CONSTANTS = {
    r"half|halves|twice|doubl|both|couple|pair|twin|semi|bi|midpoint|mid-?way|each way|round.?trip|there and back|weekend": (2, "0.5"),
    r"third|tripl|thrice|yard|trio": (3,),
    r"quarter|fourth|quadrupl|square|rectang|gallon|season|perimeter|quart": (4, "0.25"),
    r"fifth|weekday|school|work ?week|nickel": (5, "0.2"),
    r"sixth|cube": (6,),
    r"week": (7, 52, 4),
    r"eighth|pint|cup": (8, 2),
    r"tenth|dime|decade": (10, "0.1"),
    r"dozen|foot|feet|inch|year|annual|month": (12,),
    r"pound|ounce": (16,),
    r"hour|day|daily|minute|second|o'clock|time": (24, 60, 3600),
    r"month|april|june|september|november": (30, 4, 31),
    r"year|annual": (365, 52),
    r"percent|%|cent|dollar|\$|meter|metre|centur": (100,),
    r"kilo|km|kg|thousand|lit|meter|metre|milli|ton": (1000, 2000),
    r"million": (1_000_000,),
    r"leap": (366,),
    r"mile": (5280, 1760),
}
_BROUGHT_IN = [
    (re.compile(rf"(?<![a-z])(?:{words})", re.IGNORECASE), frozenset(map(Fraction, values))) for words, values in _CONSTANTS.items()
]
# Where a question speaks of more and less, the larger has to stay the larger.
_ORDER = re.compile(
    r"\b(?:\w{3,}est|most|least|maximum|minimum|best|worst|\w{4,}er than|better|first|over|above|below|exceed\w*|overtime)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class _Source:
    """What a number stands for: the question's number `given`, perhaps over 100; the result of step `step`; or, of neither, a constant."""

    given: Fraction | None = None
    percent: bool = False
    step: int | None = None

    def now(self, old: Fraction, new: dict[Fraction, Fraction], results: list[Fraction]) -> Fraction:
        """The number's value once the question's numbers are `new`."""
        if self.given is not None:
            return new[self.given] / (100 if self.percent else 1)
        return old if self.step is None else results[self.step]


@dataclass
class _Step:
    """The numbers of an expression, the text between them, and the result that is written down."""

    between: list[str]
    numbers: list[tuple[str, Fraction, _Source]]
    result: Fraction
    tree: ast.expr  # of the expression with n0, n1, ... for the numbers

    def value(self, new: dict[Fraction, Fraction], results: list[Fraction]) -> Fraction:
        names = {f"n{place}": source.now(old, new, results) for place, (_, old, source) in enumerate(self.numbers)}
        return Fraction(calculator.evaluate(self.tree, names, exact=True))

    def expression(self, new: dict[Fraction, Fraction], results: list[Fraction]) -> str:
        values = [_written(source.now(old, new, results), text) for text, old, source in self.numbers]
        return "".join(part for pair in zip(self.between, [*values, ""], strict=True) for part in pair)


@dataclass
class Problem:
    """A question and its solution, with all that the numbers in it stand for. Raises Refused where that cannot be told.

    >>> problem = Problem("Ann has 48 pens and 3 cups. She loses 6 pens. How many are left?", "Left are 48-6=<<48-6=42>>42.\\n#### 42")
    >>> problem.variant(seed=2, number=1)
    ('Ann has 64 pens and 3 cups. She loses 8 pens. How many are left?', 'Left are 64-8=<<64-8=56>>56.\\n#### 56')
    """

    question: str
    answer: str
    _steps: list[_Step] = field(default_factory=list)
    _given: dict[Fraction, str] = field(default_factory=dict)  # the question's numbers that may be replaced, as written
    _percentages: set[Fraction] = field(default_factory=set)
    _sources: dict[Fraction, set[_Source]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.question, self.answer)
        self._read_question()
        self._solution = list(self._read_solution())
        used = {source.given for step in self._steps for _, _, source in step.numbers}
        self._given = {value: text for value, text in self._given.items() if value in used}
        if not self._given:
            raise Refused(NOTHING_TO_REPLACE)

    def _read_question(self) -> None:
        """Which of the question's numbers may be replaced, and which constants it brings in."""
        fixed = {Fraction(0), Fraction(1)}
        whole = f"{self.question}\n{_STEP.sub('', self.answer)}"
        for words, values in _BROUGHT_IN:
            if words.search(whole):
                fixed |= values
        for match in _TOKEN.finditer(self.question):
            value = _value(match[0])
            before = self.question[max(0, match.start() - 5) : match.start()]
            if _NOT_BEFORE.search(before) or _NOT_AFTER.match(self.question, match.end()) or (1700 <= value <= 2100 and match[0].isdigit()):
                fixed.add(value)
            self._given.setdefault(value, match[0])
            if _PERCENT.match(self.question, match.end()):
                self._percentages.add(value)
        for value in fixed:
            self._given.pop(value, None)
            self._sources[value] = {_Source()}
        for value in self._given:
            self._sources.setdefault(value, set()).add(_Source(given=value))
            if value in self._percentages:
                self._sources.setdefault(value / 100, set()).add(_Source(given=value, percent=True))

    def _source(self, value: Fraction) -> _Source:
        sources = self._sources.get(value)
        if not sources:
            raise Refused(FROM_NOWHERE)
        if len(sources) > 1:
            raise Refused(AMBIGUOUS)
        return next(iter(sources))

    def _read_solution(self) -> Iterator[str | tuple[str, Fraction, _Source] | _Step]:
        """The solution in pieces: text, numbers in it, and steps. The last line is left out."""
        at, body = 0, self.answer[: _last_line(self.answer).start()]
        for match in _STEP.finditer(body):
            yield from self._read_text(body[at : match.start()])
            numbers = [(text, _value(text), self._source(_value(text))) for text in _NUMBER.findall(match[1])]
            places = iter(range(len(numbers)))
            tree = _tree(_NUMBER.sub(lambda _, places=places: f"n{next(places)}", match[1]))
            step = _Step(_NUMBER.split(match[1]), numbers, _value(match[2]), tree)
            self._steps.append(step)
            yield step
            at = match.end()
            result = _Source(step=len(self._steps) - 1)
            if repeated := _NUMBER.match(body, at):  # what follows a step is its result, whatever else has that value
                if _value(repeated[0]) != step.result:
                    raise Refused(WRONG_STEP)
                yield repeated[0], step.result, result
                at = repeated.end()
            if not _is_trivial(step):
                self._sources.setdefault(step.result, set()).add(result)
        yield from self._read_text(body[at:])

    def _read_text(self, text: str) -> Iterator[str | tuple[str, Fraction, _Source]]:
        at = 0
        for match in _TOKEN.finditer(text):
            value = _value(match[0])
            yield text[at : match.start()]
            if not match[0].isalpha() or value in self._sources:
                yield match[0], value, self._source(value)
            else:
                yield match[0]
            at = match.end()
        yield text[at:]

    def variant(self, seed: int, number: int) -> tuple[str, str]:
        """(question, answer) with numbers that follow from the seed, the question and the variant's number. Raises Refused."""
        draws = Draws(seed, "replace numbers", self.question, number)
        for _ in range(TRIES):
            new = {value: self._drawn(draws, value, text) for value, text in self._given.items()}
            results = self._results(new)
            if results is not None:
                question, answer = self._question(new), self._answer(new, results)
                check(question, answer)
                return question, answer
        raise Refused(NO_NUMBERS_FOUND)

    def _drawn(self, draws: Draws, old: Fraction, text: str) -> Fraction:
        """Another number from half to twice the old one, as round as that and with as many decimals."""
        unit = Fraction(1, 10 ** _decimals(text))
        while old % (unit * 10) == 0:
            unit *= 10
        if unit >= 10 and old / unit < 10:
            unit /= 2 if unit == 10 else 10
        highest = min(2 * old, Fraction(99)) if old in self._percentages and old < 100 else 2 * old
        lowest_steps, highest_steps = max(-(-old // (2 * unit)), 2 if unit == 1 else 1), highest // unit
        steps = draws.whole(int(lowest_steps), max(int(highest_steps) - 1, int(lowest_steps)))
        return (steps + 1) * unit if steps * unit >= old else steps * unit

    def _results(self, new: dict[Fraction, Fraction]) -> list[Fraction] | None:
        """The steps' results, or None where one is less sensible than it was: negative, zero, broken, or on the other side of 1."""
        results: list[Fraction] = []
        for step in self._steps:
            try:
                value = step.value(new, results)
            except Refused:
                return None
            decimals = _decimals_of(value)
            if decimals is None or decimals > max(_decimals_of(step.result) or 0, 0):
                return None
            if (value > 0, value < 0, abs(value) < 1) != (step.result > 0, step.result < 0, abs(step.result) < 1):
                return None
            results.append(value)
        if _ORDER.search(self.question):
            old = [*self._given, *(step.result for step in self._steps)]
            pairs = combinations(zip(old, [*(new[value] for value in self._given), *results], strict=True), 2)
            if any((a < b, a > b) != (a_new < b_new, a_new > b_new) for (a, a_new), (b, b_new) in pairs):
                return None
        return results

    def _question(self, new: dict[Fraction, Fraction]) -> str:
        def replaced(match: re.Match[str]) -> str:
            value = _value(match[0])
            return _written(new[value], match[0]) if value in new else match[0]

        return _TOKEN.sub(replaced, self.question)

    def _answer(self, new: dict[Fraction, Fraction], results: list[Fraction]) -> str:
        given = {value: new.get(value, value) for value in self._all_given()}
        pieces, done = [], 0
        for piece in self._solution:
            if isinstance(piece, _Step):
                pieces.append(f"<<{piece.expression(given, results)}={_written(results[done], '0')}>>")
                done += 1
            else:
                pieces.append(piece if isinstance(piece, str) else _written(piece[2].now(piece[1], given, results), piece[0]))
        return f"{''.join(pieces)}\n#### {_written(results[-1], '0')}"

    def _all_given(self) -> set[Fraction]:
        return {source.given for sources in self._sources.values() for source in sources if source.given is not None}


def check(question: str, answer: str) -> Fraction:
    """The answer of a solution whose every step recomputes, and whose last line is the last step's result. Raises Refused."""
    if len(question) + len(answer) > MAX_CHARACTERS or _LONG_NUMBER.search(question) or _LONG_NUMBER.search(answer):
        raise Refused(TOO_LONG)
    last = _value(_last_line(answer)[1])
    steps = _STEP.findall(answer)
    if not steps or answer.count("<<") != len(steps):
        raise Refused(NO_STEPS if not answer.count("<<") else NO_ARITHMETIC)
    for expression, result in steps:
        if not re.fullmatch(rf"-?(?:{_DIGITS})", result):
            raise Refused(NO_ARITHMETIC)
        if _evaluated(expression) != _value(result):
            raise Refused(WRONG_STEP)
    if _value(steps[-1][1]) != last:
        raise Refused(OTHER_ANSWER)
    return last


def _last_line(answer: str) -> re.Match[str]:
    found = _LAST_LINE.search(answer)
    if found is None or answer.count("####") != 1:
        raise Refused(NO_ANSWER)
    return found


def _evaluated(expression: str) -> Fraction:
    """The exact value of a step's expression: digits, + - * / and parentheses."""
    if not re.fullmatch(r"[\d\s.,+*/()-]+", expression) or "**" in expression or "//" in expression:
        raise Refused(NO_ARITHMETIC)
    plain = _NUMBER.sub(lambda match: match[0].replace(",", "").lstrip("0") or "0", expression.strip())
    try:
        return Fraction(calculator.evaluate(_tree(plain), {}, exact=True))
    except Refused:
        raise Refused(NO_ARITHMETIC) from None


def _tree(expression: str) -> ast.expr:
    body = calculator.parse(expression.strip()).body
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise Refused(NO_ARITHMETIC)
    return body[0].value


def _is_trivial(step: _Step) -> bool:
    """Whether a step only says a number again, as <<5=5>> does."""
    return len(step.numbers) == 1 and step.numbers[0][1] == step.result


def _value(text: str) -> Fraction:
    """The value of a number as it is written: 1,200 or .5 or twelve."""
    word = _WORDS.get(text.lower())
    return Fraction(text.replace(",", "")) if word is None else Fraction(word)


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _decimals_of(value: Fraction) -> int | None:
    """How many decimals a number needs; None where no number of them is enough, or more than six."""
    return next((places for places in range(7) if (value * 10**places).denominator == 1), None)


def _written(value: Fraction, like: str) -> str:
    """A number in the form of another: as a word up to twenty, with commas for thousands, with as many decimals at least."""
    if like.isalpha():
        word = next((word for word, number in _WORDS.items() if number == value), None)
        if word is not None:
            return word.capitalize() if like[0].isupper() else word
    places = _decimals_of(value) or 0
    if places or _decimals(like):
        places = max(places, _decimals(like))
    scaled = abs(value) * 10**places
    digits = str(scaled.numerator).rjust(places + 1, "0")
    whole, decimals = (digits[:-places], digits[-places:]) if places else (digits, "")
    whole = f"{int(whole):,}" if "," in like else whole
    return f"{'-' if value < 0 else ''}{whole}{'.' + decimals if decimals else ''}"
