"""What a recipe says of its raw files and documents: the parts of a source, from reading it to selecting from it."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from flows.declared import Declared
from flows.section import Section
from flows.section import at as _at
from tasks.dumps import PLACEHOLDER
from tasks.filters import Filter
from tasks.rewrite import Rewrite
from tasks.scorers import ScorerConfig
from tasks.signatures import Deduplicate
from tasks.sources import SourceConfig
from tasks.tokenize import TokenizeWhere
from tasks.train_scorer import ScorerTraining


class SampleCorpus(Section):
    """A corpus made from this machine's Python installation, for trying things out."""

    folder: str = Field(description="Where the raw files are written.", json_schema_extra=_at(0))
    bytes: int = Field(default=10_000_000, ge=100_000, description="About how many bytes of text.", json_schema_extra=_at(1))
    seed: int = Field(default=0, description="Seed of what is made up.", json_schema_extra=_at(2))


class Scorer(Section):
    """A scorer, and how to train its model where none is given."""

    scorer: ScorerConfig = Field(description="What looks at the text.", json_schema_extra=_at(0))
    train: ScorerTraining | None = Field(default=None, description="Train the model first, from labelled texts.", json_schema_extra=_at(1))

    @model_validator(mode="after")
    def _trained_or_given(self) -> Scorer:
        needs_model = "model" in type(self.scorer).model_fields
        given = getattr(self.scorer, "model", None) is not None
        if self.train is not None and (not needs_model or given or self.train.type != self.scorer.type):
            raise ValueError(f"a {self.scorer.type} scorer {'with a model' if given else ''} takes no `train` of type {self.train.type}")
        if needs_model and self.scorer.type != "language" and not given and self.train is None:
            raise ValueError(f"the {self.scorer.type} scorer has no model: give `model`, or `train`")
        return self


class ScoreUse(Section):
    """How a source uses a scorer."""

    where: list[Filter] = Field(
        default=[], description="Score only documents that pass these thresholds over columns of the source's other scorers."
    )


class Subset(Section):
    """A stricter selection of a source, which mixes name `SOURCE/SUBSET`: the same documents, scores and tokens under more thresholds."""

    filters: list[Filter] = Field(min_length=1, description="Thresholds beside those of the source.", json_schema_extra=_at(0))
    declared: Declared | None = Field(default=None, description="Sizes after the filters, as stated.", json_schema_extra=_at(1))


class Source(SourceConfig):
    """A source: its raw files, what is measured of its documents, and which of them are wanted."""

    model_config = ConfigDict(extra="forbid")
    rewrite: Rewrite | None = Field(
        default=None, description="rewrite: which source's documents others are made of, and how.", json_schema_extra=_at(10)
    )
    mask_personal_data: bool = Field(
        default=False, description="Mask e-mail addresses, phone numbers and IP addresses.", json_schema_extra=_at(18)
    )
    deduplicate: Deduplicate | None = Field(
        default=None, description="Tell duplicates, in a column `duplicate` that filters read.", json_schema_extra=_at(19)
    )
    scores: dict[str, ScoreUse] = Field(
        default={}, description="Scorers to run; each after those whose columns its `where` reads.", json_schema_extra=_at(20)
    )
    tokenize_where: TokenizeWhere = Field(
        default=TokenizeWhere(), description="The loosest cut that will be asked for.", json_schema_extra=_at(21)
    )
    filters: list[Filter] = Field(default=[], description="Which documents a mix may take.", json_schema_extra=_at(22))
    max_quarantined: float = Field(
        default=0.0, ge=0, le=1, description="Share of records that may be unreadable.", json_schema_extra=_at(23)
    )
    subsets: dict[str, Subset] = Field(default={}, description="Stricter selections by name.", json_schema_extra=_at(24))
    declared: Declared | None = Field(default=None, description="Sizes after the filters, as stated.", json_schema_extra=_at(25))

    @model_validator(mode="after")
    def _is_rewritten_or_read(self) -> Source:
        if (self.format == "rewrite") != (self.rewrite is not None):
            raise ValueError("the format rewrite and the settings `rewrite` go together: give both or neither")
        if self.rewrite is not None and self.mask_personal_data:
            raise ValueError(f"set mask_personal_data on {self.rewrite.source}, so that the model is not told what it should not repeat")
        return self

    @property
    def reads_dump(self) -> bool:
        """Whether a path begins with the placeholder of the newest dump."""
        return any(path.startswith(PLACEHOLDER) for path in self.paths)

    def reader(self) -> SourceConfig:
        return SourceConfig.model_validate({name: getattr(self, name) for name in SourceConfig.model_fields})


class StackExchangeDumps(Section):
    """Where dumps of Stack Exchange appear. Sources read them whose paths begin with `{dump}`, the folder of the newest that is done."""

    path: str = Field(
        description="Folder, s3:// prefix or web index in which a folder with a date in its name appears for each dump; the last part may be a glob (/dumps/stackexchange_*).",
        json_schema_extra=_at(0),
    )
    settle_minutes: float = Field(
        default=15.0,
        ge=0,
        description="A dump without a file _SUCCESS or a list of checksums is whole when its files have not changed for so long.",
        json_schema_extra=_at(1),
    )
    closed_sites: list[str] = Field(
        default=[],
        description="Sites (names or globs) that the next dump may lack; one that lacks another, and does not say that it is whole, is not taken.",
        json_schema_extra=_at(2),
    )


class LeftOut(Section):
    """Raw files that a recipe leaves out on purpose."""

    paths: str = Field(description="Glob below the inventory's root.", json_schema_extra=_at(0))
    why: str = Field(description="The reason, for the report.", json_schema_extra=_at(1))


class Inventory(Section):
    """A folder of raw data that the report accounts for, file by file."""

    root: str = Field(description="The folder.", json_schema_extra=_at(0))
    left_out: list[LeftOut] = Field(default=[], description="What is left out, and why.", json_schema_extra=_at(1))
