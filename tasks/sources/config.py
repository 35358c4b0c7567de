"""The description of a source in a recipe: where its raw files lie, their format, and which of their fields mean what."""

from __future__ import annotations

import string
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tasks.sources.synthetic import Arithmetic, Synthetic

Format = Literal["dclm", "dolma", "starcoder", "stackexchange", "jsonl", "json", "parquet", "text", "warc", "arithmetic", "rewrite"]
ColumnType = Literal["float", "int", "string", "bool"]

# The columns that every document has; a source's own columns need other names.
DOCUMENT_COLUMNS = ("id", "key", "text", "source", "added", "created", "metadata")
MAPPED_FORMATS = ("jsonl", "json", "parquet")


class Column(BaseModel):
    """A typed column that the source promises beside the text, so that filters can read it."""

    model_config = ConfigDict(extra="forbid")

    field: str = Field(
        min_length=1,
        description="Dotted path of the field in the raw record, such as `metadata.stars`.",
        json_schema_extra={"position": 0},
    )
    type: ColumnType = Field(
        description="Type of the column. A number may stand in a string; an absent field, null, '' and 'None' become null.",
        json_schema_extra={"position": 1},
    )


class Fields(BaseModel):
    """Which fields of a raw record become the document (formats jsonl, json and parquet). Paths are dotted; a number counts in a list."""

    model_config = ConfigDict(extra="forbid")

    text: str | list[str] = Field(
        default="text",
        description=(
            "The text: a dotted path (`text`), a list of paths that `separator` joins (empty ones are left out), "
            "or a template such as `{prompt}\\n{completion}` (it may also take in numbers)."
        ),
        json_schema_extra={"position": 0},
    )
    separator: str = Field(
        default="\n", description="What stands between the fields of a list in `text`.", json_schema_extra={"position": 1}
    )
    join: str = Field(
        default=" ", description="What joins the strings of one field that holds a list of them.", json_schema_extra={"position": 2}
    )
    id: str = Field(
        default="id",
        description="Dotted path of the id, unique in the source; a record without one gets an id made of the file's content and its line.",
        json_schema_extra={"position": 3},
    )
    added: str = Field(
        default="added", description="Dotted path of the date when the record was collected.", json_schema_extra={"position": 4}
    )
    created: str = Field(
        default="created", description="Dotted path of the date when the text was written.", json_schema_extra={"position": 5}
    )
    columns: dict[str, Column] = Field(
        default_factory=dict,
        description="Typed columns kept beside the text, by name.",
        json_schema_extra={"position": 6},
    )

    @field_validator("text")
    @classmethod
    def _text_names_fields(cls, value: str | list[str]) -> str | list[str]:
        if not value or (isinstance(value, list) and "" in value):
            raise ValueError("`text` needs a field path, a list of them, or a template")
        if isinstance(value, str):
            template_paths(value)
        return value

    @field_validator("columns")
    @classmethod
    def _columns_are_new(cls, value: dict[str, Column]) -> dict[str, Column]:
        taken = [name for name in value if name in DOCUMENT_COLUMNS]
        if taken:
            raise ValueError(f"the column name {taken[0]!r} is taken by the documents themselves; choose another")
        return value

    def text_paths(self) -> list[str]:
        """The dotted paths that `text` reads."""
        if isinstance(self.text, list):
            return self.text
        return template_paths(self.text) or [self.text]


def template_paths(template: str) -> list[str]:
    """The paths between braces; [] for a plain path. Raises ValueError for a broken template or one with formats in it."""
    parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    for _, path, form, conversion in parts:
        if not path or form or conversion:
            raise ValueError(f"the template {template!r} may hold only field paths between its braces")
    return [path for _, path, _, _ in parts if path]


class UrlFilter(BaseModel):
    """Block lists of URLs, by the rules of RefinedWeb and FineWeb. A list is a text file with one entry a line, `#` begins a comment."""

    model_config = ConfigDict(extra="forbid")

    integrated_lists: bool = Field(
        default=True,
        description="Take in datatrove's own lists, FineWeb's (4.6 million domains; 0.8 GB of memory a worker).",
        json_schema_extra={"position": 0},
    )
    domains: list[str] = Field(
        default=[], description="Files of domains, with or without their subdomain.", json_schema_extra={"position": 1}
    )
    urls: list[str] = Field(default=[], description="Files of whole URLs.", json_schema_extra={"position": 2})
    words: list[str] = Field(default=[], description="Files of words of which a URL may have none.", json_schema_extra={"position": 3})
    subwords: list[str] = Field(
        default=[], description="Files of strings that a URL may not have even within words.", json_schema_extra={"position": 4}
    )
    soft_words: list[str] = Field(
        default=[],
        description="Files of words of which a URL may have fewer than `soft_word_threshold`.",
        json_schema_extra={"position": 5},
    )
    soft_word_threshold: int = Field(default=2, ge=1, description="Soft words that drop a URL.", json_schema_extra={"position": 6})

    def lists(self) -> dict[str, list[str]]:
        """The paths of the files by the name of their list, for those that are given."""
        return {name: getattr(self, name) for name in URL_LISTS if getattr(self, name)}


URL_LISTS = ("domains", "urls", "words", "subwords", "soft_words")


class Warc(BaseModel):
    """How pages of a crawl become text."""

    model_config = ConfigDict(extra="forbid")

    extractor: Literal["resiliparse", "trafilatura"] = Field(
        default="resiliparse",
        description="What takes the main content out of a page: resiliparse (DCLM's, fast) or trafilatura (FineWeb's, more exact).",
        json_schema_extra={"position": 0},
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="A page that takes the extractor longer is dropped.", json_schema_extra={"position": 1}
    )
    url_filter: UrlFilter | None = Field(
        default=None, description="Drop pages by their URL, before they are looked at.", json_schema_extra={"position": 2}
    )
    c4_lines: bool = Field(
        default=False,
        description="Keep only lines that end in a punctuation mark and have three words, none of a policy or JavaScript (C4's rules).",
        json_schema_extra={"position": 3},
    )


class SourceConfig(BaseModel):
    """One source of documents: its raw files and how they are read."""

    model_config = ConfigDict(extra="forbid")

    format: Format = Field(
        description=(
            "How the raw files are read: dclm (.jsonl.zst), dolma (.jsonl.gz), starcoder (Parquet), stackexchange (.7z or Posts.xml), "
            "or jsonl, json and parquet with `fields`, or text (one document a file, also in tar archives), or warc (a crawl's WARC or WET files), or arithmetic (made up, no files), or rewrite (made of another source, see `rewrite`). "
            "Compression is found from the content."
        ),
        json_schema_extra={"position": 0},
    )
    paths: list[str] = Field(
        default=[],
        description="Raw files: globs, folders, or URLs such as s3://bucket/folder/*.jsonl.gz.",
        json_schema_extra={"position": 1},
    )
    fields: Fields = Field(
        default_factory=Fields,
        description="Which raw fields mean what (formats jsonl, json and parquet).",
        json_schema_extra={"position": 2},
    )
    min_question_votes: int = Field(
        default=3,
        description="stackexchange: questions with fewer votes are left out (report, section 4.1).",
        json_schema_extra={"position": 3},
    )
    min_answer_votes: int = Field(
        default=5,
        description="stackexchange: answers with fewer votes are left out (report, section 4.1).",
        json_schema_extra={"position": 4},
    )
    site: str | None = Field(
        default=None,
        description="stackexchange: the site, such as ai.stackexchange.com; found in the name of the archive or folder where not given.",
        json_schema_extra={"position": 5},
    )
    answers: Literal["accepted", "all"] = Field(
        default="accepted",
        description=(
            "stackexchange: a question with its accepted answer (report, section 4.1), or with each answer that has the votes, a document each."
        ),
        json_schema_extra={"position": 6},
    )
    warc: Warc = Field(default_factory=Warc, description="warc: how pages become text.", json_schema_extra={"position": 7})
    synthetic: Synthetic | None = Field(
        default=None,
        description="jsonl, json and parquet: problems and programs to make documents of, instead of the records as they are.",
        json_schema_extra={"position": 8},
    )
    arithmetic: Arithmetic = Field(
        default_factory=Arithmetic, description="arithmetic: what is made up.", json_schema_extra={"position": 9}
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The keys of shards hash what is dumped: a setting of one format must not change those of the others.
        dumped: dict[str, Any] = handler(self)
        if self.format != "warc":
            dumped.pop("warc", None)
        if self.format != "arithmetic":
            dumped.pop("arithmetic", None)
        if self.synthetic is None:
            dumped.pop("synthetic", None)
        return dumped

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> Self:
        # A setting that its format never reads would be a silent mistake.
        # Compared with the defaults, not asked of `model_fields_set`: a form sends every field back.
        given = {
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.get_default(call_default_factory=True)
        }
        if "fields" in given and self.format not in MAPPED_FORMATS:
            raise ValueError(f"`fields` is for the formats {', '.join(MAPPED_FORMATS)}; {self.format} has its own")
        alien = sorted(given & {"min_question_votes", "min_answer_votes", "answers", "site"})
        if alien and self.format != "stackexchange":
            raise ValueError(f"`{alien[0]}` is for the format stackexchange, not {self.format}")
        if "warc" in given and self.format != "warc":
            raise ValueError(f"`warc` is for the format warc, not {self.format}")
        if "arithmetic" in given and self.format != "arithmetic":
            raise ValueError(f"`arithmetic` is for the format arithmetic, not {self.format}")
        if self.synthetic is not None and self.format not in MAPPED_FORMATS:
            raise ValueError(f"`synthetic` is for the formats {', '.join(MAPPED_FORMATS)}, not {self.format}")
        if self.synthetic is not None and self.fields.text != "text":
            raise ValueError("`synthetic` says itself which fields it reads: leave `fields.text` out")
        if self.format == "rewrite" and self.paths:
            raise ValueError("the format rewrite reads another source and no files: leave `paths` out")
        if self.format not in ("arithmetic", "rewrite") and not self.paths:
            raise ValueError(f"the format {self.format} needs `paths`, where its raw files lie")
        return self

    def output_config(self) -> dict[str, Any]:
        """The part of the config that can change a record: everything but where the files lie and how many documents are made up, as JSON.

        Settings at their default are left out, so that a new one changes no key of what is there; a new default needs a new step version.
        """
        left_out: Any = {"paths": True, "warc": {"url_filter": set(URL_LISTS)}, "arithmetic": {"documents"}}
        return self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
