"""What a recipe states of its sources before anything is counted, and the printed tables that a plan is compared with."""

from __future__ import annotations

from pydantic import Field, model_validator

from flows.section import Section
from flows.section import at as _at


class Sizes(Section):
    """Sizes of a set of documents; None where nobody says."""

    tokens: float | None = Field(default=None, gt=0, description="Tokens.", json_schema_extra=_at(0))
    words: float | None = Field(default=None, gt=0, description="Words.", json_schema_extra=_at(1))
    bytes: float | None = Field(default=None, gt=0, description="Bytes of text.", json_schema_extra=_at(2))
    documents: float | None = Field(default=None, gt=0, description="Documents.", json_schema_extra=_at(3))


class Declared(Sizes):
    """Sizes that somebody states of a source: what a plan goes by until olmoflow has counted."""

    reference: str = Field(min_length=1, description="Who says so, such as `report, Table 1`.", json_schema_extra=_at(4))


class ReportedRow(Sizes):
    """A row of a table as somebody printed it, and which sources of the recipe it is about."""

    sources: list[str] = Field(min_length=1, description="Sources or subsets that the row sums.", json_schema_extra=_at(10))
    source_percent: float | None = Field(
        default=None, gt=0, description="Share of the sources that the mix takes; 400 is four copies.", json_schema_extra=_at(11)
    )
    mix_percent: float | None = Field(default=None, gt=0, description="Share of the mix that comes from them.", json_schema_extra=_at(12))


class Reported(Section):
    """A table to compare with: the plan computes the same from the recipe and prints both with their difference."""

    title: str = Field(min_length=1, description="Heading.", json_schema_extra=_at(0))
    mix: str | None = Field(
        default=None, description="The mix whose composition it tells; left empty, it tells sizes of sources.", json_schema_extra=_at(1)
    )
    rows: dict[str, ReportedRow] = Field(min_length=1, description="Rows by label.", json_schema_extra=_at(2))
    total: Sizes | None = Field(default=None, description="The printed total.", json_schema_extra=_at(3))
    note: str = Field(default="", description="What to know of the printed figures.", json_schema_extra=_at(4))

    @model_validator(mode="after")
    def _one_kind(self) -> Reported:
        for label, row in self.rows.items():
            percent = row.source_percent is not None or row.mix_percent is not None
            if percent and self.mix is None:
                raise ValueError(f"the row {label!r} has percentages, which are of a mix: name the `mix`")
            if not percent and self.mix is not None:
                raise ValueError(f"the row {label!r} has neither source_percent nor mix_percent, which a table about a mix compares")
        if self.mix is not None and self.total is not None:
            raise ValueError("a table about a mix has no `total`: its percentages sum to 100")
        return self
