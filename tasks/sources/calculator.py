"""A safe interpreter of arithmetic: it walks Python's syntax tree and knows numbers, names, + - * / // % ** and five functions. Nothing is
ever compiled or executed.

Every node is looked at once and every number stays below MAX_DIGITS digits, so that the time follows from the size of the source.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction

MAX_CHARACTERS = 8_000  # what the parser of no supported Python runs out of stack on, however it is nested
MAX_NODES = 2_000
MAX_DEPTH = 50
MAX_DIGITS = 30
MAX_EXPONENT = 100

Number = int | float | Fraction


class Refused(ValueError):
    """What the interpreter does not do, as a reason to be counted: the same words for the same kind of fault."""


# The reasons, so that books have few of them and tests can name each.
NO_SYNTAX = "no Python syntax"
TOO_LARGE = "too large a program"
TOO_DEEP = "too deeply nested"
OTHER_SYNTAX = "more than arithmetic"
UNKNOWN_NAME = "a name without a value"
LARGE_NUMBER = "a number over the limits"
NOT_A_NUMBER = "a result that is no number"
DIVISION_BY_ZERO = "division by zero"

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {"abs": abs, "int": int, "max": max, "min": min, "round": round}
_ARGUMENTS = {"abs": (1, 1), "int": (1, 1), "max": (2, 20), "min": (2, 20), "round": (1, 2)}
FUNCTIONS = frozenset(_FUNCTIONS)


def parse(source: str) -> ast.Module:
    """The syntax tree, within the limits on size and depth. Raises Refused."""
    if len(source) > MAX_CHARACTERS:
        raise Refused(TOO_LARGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a docstring
            tree = ast.parse(source)
    except (RecursionError, MemoryError):
        raise Refused(TOO_DEEP) from None
    except (SyntaxError, ValueError):
        raise Refused(NO_SYNTAX) from None
    level: list[ast.AST] = [tree]
    nodes = depth = 0
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES:
            raise Refused(TOO_LARGE)
        if depth > MAX_DEPTH:
            raise Refused(TOO_DEEP)
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return tree


def evaluate(node: ast.expr, names: Mapping[str, Number], exact: bool = False) -> Number:
    """The value of an expression as Python computes it; `exact`: in fractions, 0.1 being a tenth. No name may be one of FUNCTIONS.

    Raises Refused.
    """
    try:
        return _checked(_value(node, names, exact))
    except ZeroDivisionError:
        raise Refused(DIVISION_BY_ZERO) from None
    except OverflowError:
        raise Refused(LARGE_NUMBER) from None


def _value(node: ast.expr, names: Mapping[str, Number], exact: bool) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value: Number = _checked(node.value)  # type: ignore[arg-type]
        return _checked(Fraction(repr(value))) if exact else value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise Refused(UNKNOWN_NAME)
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        operand = _value(node.operand, names, exact)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, names, exact), _value(node.right, names, exact)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _checked(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords:
        fewest, most = _ARGUMENTS[node.func.id]
        if fewest <= len(node.args) <= most:
            return _call(node.func.id, [_value(argument, names, exact) for argument in node.args])
    raise Refused(OTHER_SYNTAX)


def _power(base: Number, exponent: Number) -> Number:
    if abs(float(exponent)) > MAX_EXPONENT:
        raise Refused(LARGE_NUMBER)
    return _checked(base**exponent)  # of 3,000 digits at most


def _length(value: int | Fraction) -> int:
    return max(abs(value.numerator), value.denominator)


def _call(name: str, arguments: list[Number]) -> Number:
    if name == "round" and len(arguments) == 2:
        digits = arguments[1]
        if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
            raise Refused(OTHER_SYNTAX)
    return _checked(_FUNCTIONS[name](*arguments))


def _checked(value: object) -> Number:
    if type(value) is float:
        if not math.isfinite(value):
            raise Refused(NOT_A_NUMBER)
        if abs(value) >= 10**MAX_DIGITS:
            raise Refused(LARGE_NUMBER)
        return value
    if type(value) is int or type(value) is Fraction:
        if _length(value) >= 10**MAX_DIGITS:
            raise Refused(LARGE_NUMBER)
        return value
    raise Refused(NOT_A_NUMBER)
