"""TinyGSM's programs: what is kept, what it says of each value, and what of a program that tries to break out."""

import ast
import gzip
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sources import calculator, programs
from tasks.sources.calculator import Refused

TINY_GSM = '''def simple_math_problem() -> int:
    """
    Ann has 3 boxes of 4 pens.
    """
    boxes = 3
    pens: int = boxes * 4  # all of them
    pens -= (
        2
        + 1
    )
    share = pens / 4
    return share'''


def reason(program: str) -> str:
    with pytest.raises(Refused) as refused:
        programs.annotate(program)
    return str(refused.value)


def test_every_assignment_says_its_value_at_its_end_and_nothing_else_changes() -> None:
    program, result = programs.annotate(TINY_GSM)
    added = {
        "    boxes = 3": "  # = 3",
        "    pens: int = boxes * 4  # all of them": "  # = 12",
        "    )": "  # = 9",
        "    share = pens / 4": "  # = 2.25",
    }
    assert program.split("\n") == [line + added.get(line, "") for line in TINY_GSM.split("\n")]
    assert result == "2.25"
    assert programs.annotate("a = 0.1 + 0.2\r\nb = a // -7\n") == ("a = 0.1 + 0.2  # = 0.3\nb = a // -7  # = -1.0", None)


@pytest.mark.parametrize(
    ("program", "because"),
    [
        ("x = 10**10**10", calculator.LARGE_NUMBER),
        ("x = 9**100\ny = x**100", calculator.LARGE_NUMBER),
        ("x = 2.0 ** 100000", calculator.LARGE_NUMBER),
        ("x = " + "*".join(["99999999"] * 4), calculator.LARGE_NUMBER),
        ("x = " + "9" * 5000, calculator.NO_SYNTAX),
        ("x = 1e308 * 10", calculator.LARGE_NUMBER),
        ("x = 1e400", calculator.NOT_A_NUMBER),
        ("x = (-8) ** 0.5", calculator.NOT_A_NUMBER),
        ("x = 1j", calculator.OTHER_SYNTAX),
        ("x = True", calculator.OTHER_SYNTAX),
        ("x = 1 << 10**9", calculator.OTHER_SYNTAX),
        ("x = 'a' * 10**9", calculator.OTHER_SYNTAX),
        ("x = [0] * 10**9", calculator.OTHER_SYNTAX),
        ("x = 1 / 0", calculator.DIVISION_BY_ZERO),
        ("x = 0 ** -1", calculator.DIVISION_BY_ZERO),
        ("x = 5 % 0.0", calculator.DIVISION_BY_ZERO),
        ("x = (1).__class__", calculator.OTHER_SYNTAX),
        ("x = ().__class__.__bases__[0].__subclasses__()", calculator.OTHER_SYNTAX),
        ("x = __import__('os').system('true')", calculator.OTHER_SYNTAX),
        ("x = eval('1')", calculator.OTHER_SYNTAX),
        ("x = open('/etc/passwd')", calculator.OTHER_SYNTAX),
        ("x = int('7')", calculator.OTHER_SYNTAX),
        ("x = int(x=7)", calculator.OTHER_SYNTAX),
        ("x = max(*[1, 2])", calculator.OTHER_SYNTAX),
        ("x = round(7, 10**9)", calculator.OTHER_SYNTAX),
        ("x = sum(i for i in range(10**9))", calculator.OTHER_SYNTAX),
        ("x = [i for i in range(10**9)]", calculator.OTHER_SYNTAX),
        ("x = (y := 5)", calculator.OTHER_SYNTAX),
        ("x = f'{10**10}'", calculator.OTHER_SYNTAX),
        ("x = lambda: 1", calculator.OTHER_SYNTAX),
        ("x = 1 if 1 else 2", calculator.OTHER_SYNTAX),
        ("x = 1 < 2", calculator.OTHER_SYNTAX),
        ("x = y", calculator.UNKNOWN_NAME),
        ("x = int", calculator.UNKNOWN_NAME),
        ("int = 5", calculator.OTHER_SYNTAX),
        ("x: print('hello') = 5", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = 1\nx.y = 2", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = y = 2", programs.NOT_ONLY_ASSIGNMENTS),
        ("x, y = 1, 2", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = 1\nx <<= 2", programs.NOT_ONLY_ASSIGNMENTS),
        ("import os", programs.NOT_ONLY_ASSIGNMENTS),
        ("while True: x = 1", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = 1\nprint(x)", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = 1\nreturn x", programs.NOT_ONLY_ASSIGNMENTS),
        ("def f(a=print(1)):\n    x = 1\n    return x", programs.NOT_ONLY_ASSIGNMENTS),
        ("@print\ndef f():\n    x = 1\n    return x", programs.NOT_ONLY_ASSIGNMENTS),
        ("def f() -> print(1):\n    x = 1\n    return x", programs.NOT_ONLY_ASSIGNMENTS),
        ("async def f():\n    x = 1\n    return x", programs.NOT_ONLY_ASSIGNMENTS),
        ("def f():\n    x = 1", programs.NOT_ONLY_ASSIGNMENTS),
        ("def f():\n    return 1\n    x = 1\n    return x", programs.NOT_ONLY_ASSIGNMENTS),
        ("def f():\n    def f():\n        x = 1\n    return 1", programs.NOT_ONLY_ASSIGNMENTS),
        ("x = 1; y = 2", programs.TWO_ON_A_LINE),
        ("x = 1;", programs.TWO_ON_A_LINE),
        ("def f(): return 1", programs.NO_ASSIGNMENT),
        ("", programs.NO_ASSIGNMENT),
        ("x = ", calculator.NO_SYNTAX),
        ("x = 1\0", calculator.NO_SYNTAX),
        ("x = '\ud800'", calculator.NO_SYNTAX),
        ("x = " + "-" * 60 + "1", calculator.TOO_DEEP),
        ("x = " + "-" * 7000 + "1", calculator.TOO_DEEP),
        ("x = 1" + "+1" * 60, calculator.TOO_DEEP),
        ("x = 1" + "+1" * 3900, calculator.TOO_DEEP),
        ("x = " + "(" * 3000 + "1" + ")" * 3000, calculator.NO_SYNTAX),
        ("x = a" + ".a" * 3900, calculator.TOO_DEEP),
        ("x = 1\n" * 1000, calculator.TOO_LARGE),
        ("#" * 9000 + "\nx = 1", calculator.TOO_LARGE),
    ],
)
def test_a_program_that_does_more_than_arithmetic_or_too_much_of_it_is_refused_with_its_reason(program: str, because: str) -> None:
    tracemalloc.start()
    try:
        assert reason(program) == because
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # what is refused was not computed first
    finally:
        tracemalloc.stop()


def expressions() -> st.SearchStrategy[str]:
    leaves = st.one_of(
        st.integers(0, 999).map(str), st.floats(0, 999, allow_nan=False).map(lambda value: repr(round(value, 2))), st.sampled_from("ab")
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join),
            inner.map(lambda text: f"-({text})"),
            inner.map(lambda text: f"({text}) ** 2"),
            st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"),
            st.tuples(st.sampled_from(["int", "abs", "round"]), inner).map(lambda parts: f"{parts[0]}({parts[1]})"),
        ),
        max_leaves=8,
    )


@given(expressions())
def test_what_is_computed_is_what_python_computes(expression: str) -> None:
    names: dict[str, Any] = {"a": 7, "b": 2.5}
    try:
        expected: Any = eval(expression, {"__builtins__": {"max": max, "min": min, "int": int, "abs": abs, "round": round}}, dict(names))
    except (ZeroDivisionError, OverflowError):
        expected = None
    try:
        value = calculator.evaluate(calculator.parse(expression).body[0].value, names)  # type: ignore[attr-defined]
    except Refused as refused:
        if expected is None:
            assert str(refused) in (calculator.DIVISION_BY_ZERO, calculator.LARGE_NUMBER, calculator.NOT_A_NUMBER)
        else:
            assert str(refused) in (calculator.LARGE_NUMBER, calculator.TOO_DEEP)
        return
    assert (value, type(value)) == (expected, type(expected))


@given(st.text(alphabet="ab=+-*/%()[]{}0123456789.:\n \"'#;\\,_", max_size=60))
def test_no_text_whatever_makes_it_raise_anything_but_a_reason(text: str) -> None:
    try:
        program, _ = programs.annotate(text)
    except Refused:
        return
    assert ast.dump(ast.parse(program)) == ast.dump(ast.parse(text.strip("\n")))


def test_of_real_programs_every_value_is_what_running_them_gave(data: Path) -> None:
    """The programs' results were written down by those who made and ran them: some without a sign, and null for 0."""
    kept, reasons = 0, set()
    for name in ("gsm8k_zeroshot_first660", "multiarith_zeroshot"):
        with gzip.open(data / "math" / "program_of_thoughts" / f"{name}.jsonl.gz", "rt") as lines:
            for row in map(json.loads, lines):
                function = re.search(r"^def solver\(\):.*?(?=^\S)", row["generated"], re.DOTALL | re.MULTILINE)
                if function is None:
                    continue
                try:
                    _, result = programs.annotate(function[0])
                except Refused as refused:
                    reasons.add(str(refused))
                    continue
                assert result is not None and abs(float(result)) == pytest.approx(abs(float(row["executed"] or 0)), rel=1e-9)
                kept += 1
    assert kept > 900 and reasons
