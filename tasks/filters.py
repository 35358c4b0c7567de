"""Filters: which documents to keep, decided from columns alone, never from the text, with a reason for each that is dropped."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tasks.errors import UserError

PASSED = "passed"  # what a column of rules holds for a document that breaks none; of the others it names the rule


class Filter(BaseModel):
    """Keeps the documents whose value in a column lies in a range (`min` and `max` included, `below` not), or equals a value."""

    model_config = ConfigDict(extra="forbid")

    column: str = Field(description="Column of the documents or of their scores.", min_length=1)
    min: int | float | None = Field(None, description="Smallest value kept.")
    max: int | float | None = Field(None, description="Largest value kept.")
    below: int | float | None = Field(None, description="Smallest value that is too large to keep.")
    equals: bool | int | float | str | None = Field(None, description="The one value kept.")
    rounded: bool = Field(False, description="Compare round(clip(value, 0, 5)), FineWeb-Edu's integer score, instead of the value.")
    null: Literal["drop", "keep"] = Field("drop", description="What becomes of documents that have no value.")

    @model_validator(mode="after")
    def _has_a_bound(self) -> Filter:
        upper = [name for name in ("max", "below") if getattr(self, name) is not None]
        if self.equals is None and self.min is None and not upper:
            raise ValueError(f"the filter of {self.column} keeps everything: give it min, max, below or equals")
        if self.equals is not None and (self.min is not None or upper):
            raise ValueError(f"the filter of {self.column} has equals and also min, max or below: leave out one of them")
        if len(upper) == 2:
            raise ValueError(f"the filter of {self.column} has max and also below: leave out one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the filter of {self.column} keeps nothing: min {self.min} is over max {self.max}")
        if self.min is not None and self.below is not None and self.min >= self.below:
            raise ValueError(f"the filter of {self.column} keeps nothing: min {self.min} is not below {self.below}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused_below(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`below` came later than the others: a filter without it keeps the key that it had."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "below" or value is not None}


def apply(filters: list[Filter], table: pa.Table, *, name: str) -> tuple[np.ndarray, list[str | None]]:
    """Decides on each row of `table`; `name` says in errors what the table is.

    Returns `keep`, bool[rows], and `reason`, a string for each dropped row (None where kept) that names the first filter which the row
    fails: `edu is null`, `quality < 0.033`, `top_word_share > 0.3`, `overlap >= 0.1`, `language != en`, `round(edu) < 3`; of a
    filter that equals `passed` it names the rule that was broken, `gopher_quality: gopher_short_doc`. NaN counts as null.

    Raises:
        UserError: there is no such column, or its type cannot be compared with the filter's value.
    """
    # reasons[failed[row]] is the row's reason; -1 stands for none yet.
    failed = np.full(table.num_rows, -1, np.int32)
    reasons: list[str] = []
    for rule in filters:
        for reason, rows in _failures(rule, _values(rule, table, name)):
            failed[rows & (failed < 0)] = len(reasons)
            reasons.append(reason)
    return failed < 0, np.array([*reasons, None], object)[failed].tolist()  # -1 is the None at the end


def _values(rule: Filter, table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column that a filter compares, checked for its type."""
    if rule.column not in table.column_names:
        raise UserError(f"a filter of {name} wants the column {rule.column}, but there are only {', '.join(table.column_names)}")
    values = table[rule.column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    for key, value in (
        ("min", rule.min),
        ("max", rule.max),
        ("below", rule.below),
        ("rounded", rule.rounded or None),
        ("equals", rule.equals),
    ):
        if value is not None and not _comparable(values.type, key, value):
            raise UserError(f"a filter of {name} cannot compare the column {rule.column}, of type {values.type}, by {key}: {_text(value)}")
    return values


def _comparable(kind: pa.DataType, key: str, value: Any) -> bool:
    if key != "equals" or (isinstance(value, int | float) and not isinstance(value, bool)):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    return bool(pa.types.is_boolean(kind) if isinstance(value, bool) else pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _failures(rule: Filter, values: pa.ChunkedArray) -> list[tuple[str, np.ndarray]]:
    """Each way to fail a filter, with its reason and the rows (bool) that fail so. No row is in two of them."""
    shown = f"round({rule.column})" if rule.rounded else rule.column
    null = pc.is_null(values, nan_is_null=True)
    if rule.rounded:
        values = pc.round(pc.min_element_wise(pc.max_element_wise(values, 0.0), 5.0))  # half to even, as Python's round
    ways = [(f"{rule.column} is null", null)] if rule.null == "drop" else []
    if rule.equals == PASSED:
        broken = sorted(name for name in pc.unique(values).to_pylist() if name not in (None, PASSED))
        ways += [(f"{rule.column}: {name}", pc.fill_null(pc.equal(values, name), False)) for name in broken]
        return [(reason, rows.to_numpy()) for reason, rows in ways]
    for sign, test, bound in (
        ("<", pc.less, rule.min),
        (">", pc.greater, rule.max),
        (">=", pc.greater_equal, rule.below),
        ("!=", pc.not_equal, rule.equals),
    ):
        if bound is not None:
            ways.append((_reason(shown, sign, bound), pc.and_(pc.fill_null(test(values, bound), False), pc.invert(null))))
    return [(reason, rows.to_numpy()) for reason, rows in ways]


def _reason(column: str, sign: str, bound: bool | float | str) -> str:
    """What a document is that fails: `quality < 0.033`; of a column of yes and no, `repeated` or `not repeated`."""
    if isinstance(bound, bool):
        return f"not {column}" if bound else column
    return f"{column} {sign} {_text(bound)}"


def _text(value: bool | int | float | str) -> str:
    """A bound as a recipe would write it: 2, not 2.0; true, not True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
