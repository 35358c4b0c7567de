"""TinyGSM's programs (report, section 4.2.1, TinyGSM-MIND): kept where they are assignments and nothing else, and annotated line by line with
the value of the variable. The interpreter is `calculator`; nothing is executed."""

from __future__ import annotations

import ast

from tasks.sources.calculator import FUNCTIONS, OTHER_SYNTAX, Number, Refused, evaluate, parse

NOT_ONLY_ASSIGNMENTS = "a statement that is no assignment"
NO_ASSIGNMENT = "no assignment"
TWO_ON_A_LINE = "two statements on a line"
SIGNIFICANT_DIGITS = 12

_ASSIGNED_BY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**"}


def annotate(source: str) -> tuple[str, str | None]:
    """(the program with each assignment's value in a comment at its end, what it returns as text or None). Raises calculator.Refused.

    A program is assignments, or one function without parameters of a docstring, assignments and a last `return`, as in TinyGSM. Floats
    are shown with 12 significant digits, so that 0.1 + 0.2 is 0.3.

    >>> annotate("apples = 3 * 4\\nleft = apples - 5")[0]
    'apples = 3 * 4  # = 12\\nleft = apples - 5  # = 7'
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    lines = source.split("\n")
    names: dict[str, Number] = {}
    result = None
    ends: set[int] = set()
    statements = _statements(parse(source))
    for place, statement in enumerate(statements):
        end = statement.end_lineno or 0
        if statement.lineno in ends:
            raise Refused(TWO_ON_A_LINE)
        ends.add(end)
        if isinstance(statement, ast.Return) and statement.value is not None and place == len(statements) - 1:
            result = show(evaluate(statement.value, names))
            continue
        name, expression = _assigned(statement)
        names[name] = evaluate(expression, names)
        if lines[end - 1].rstrip().endswith(";"):
            raise Refused(TWO_ON_A_LINE)
        lines[end - 1] = f"{lines[end - 1].rstrip()}  # = {show(names[name])}"
    if not names:
        raise Refused(NO_ASSIGNMENT)
    return "\n".join(lines), result


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """The statements of the program; of a function those after its docstring."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        if any(isinstance(statement, ast.Return) for statement in tree.body):
            raise Refused(NOT_ONLY_ASSIGNMENTS)
        return tree.body
    function = tree.body[0]
    arguments = function.args
    parameters = arguments.args or arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg
    if parameters or function.decorator_list or getattr(function, "type_params", []) or not _is_plain(function.returns):
        raise Refused(NOT_ONLY_ASSIGNMENTS)
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body or not isinstance(body[-1], ast.Return):
        raise Refused(NOT_ONLY_ASSIGNMENTS)
    return body


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr]:
    """(name, what it becomes) of an assignment to one name; `x += 1` is `x = x + 1`."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value, annotation=annotation) if _is_plain(annotation):
            pass
        case ast.AugAssign(target=ast.Name(id=name), op=op, value=right) if type(op) in _ASSIGNED_BY:
            value = ast.BinOp(ast.Name(name, ast.Load()), op, right)
        case _:
            raise Refused(NOT_ONLY_ASSIGNMENTS)
    if name in FUNCTIONS:
        raise Refused(OTHER_SYNTAX)
    return name, value


def _is_plain(annotation: ast.expr | None) -> bool:
    """Whether an annotation is none or a bare name: it stays in the text, so that it must do nothing where somebody runs that."""
    return annotation is None or isinstance(annotation, ast.Name)


def show(value: Number) -> str:
    """A number as Python prints it, a float rounded to 12 significant digits."""
    return repr(float(f"{value:.{SIGNIFICANT_DIGITS}g}")) if isinstance(value, float) else str(value)
