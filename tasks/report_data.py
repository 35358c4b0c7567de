"""What a run's report shows, as plain dataclasses that survive JSON; those of training and of scores stand in `report_data_training`.

Counts are stored, shares never: the page computes every percentage, and whether the books balance, from what stands here.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal

from tasks.errors import UserError
from tasks.measure import Measured
from tasks.report_data_training import (
    Checkpoint,
    MicroAnneal,
    RateRow,
    SoupRow,
    TaskScore,
    TokenizerRow,
    TrainedFor,
    TrainingRun,
    TriedSoup,
)


@dataclass
class Loss:
    """What one step lost for one reason, in the step's input unit."""

    reason: str
    count: int
    quarantined: bool = False


@dataclass
class Stage:
    """The books of one step over one source: read = kept + the losses. The next stage may count in another unit (posts, documents)."""

    name: str
    unit: str
    read: int
    kept: int
    losses: list[Loss] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """What the books do not account for; 0 when they balance."""
        return self.read - self.kept - sum(loss.count for loss in self.losses)


@dataclass
class SourceFlow:
    """The way of one source from its first record to what was selected, stage by stage; `tokens` are those of what was selected."""

    source: str
    stages: list[Stage]
    tokens: int | None = None
    note: str = ""  # of what a language model has to do with it

    @property
    def faults(self) -> list[str]:
        """Why the books do not balance, one sentence each: within a stage, or from one stage to the next of the same unit."""
        found = [
            f"{stage.name}: {stage.read:,} {stage.unit} read, {stage.read - stage.missing:,} accounted for"
            for stage in self.stages
            if stage.missing
        ]
        for before, after in pairwise(self.stages):
            if before.unit == after.unit and before.kept != after.read:
                found.append(f"{before.name} kept {before.kept:,} {before.unit}, {after.name} read {after.read:,}")
        return found


@dataclass
class Histogram:
    """How often the values of a column lie between two neighbouring `edges`, of documents kept and dropped.

    log: the edges are spread by their logarithm, and zeros are counted apart. open_low, open_high: the first, the last bin also holds what
    lies beyond it. nulls: documents without a value.
    """

    column: str
    edges: list[float]
    kept: list[int]
    dropped: list[int]
    nulls: int = 0
    log: bool = False
    zeros_kept: int = 0
    zeros_dropped: int = 0
    open_low: bool = False
    open_high: bool = False


@dataclass
class Categories:
    """How many documents have each of the most frequent values of a text column, and how many another one or none."""

    column: str
    names: list[str]
    kept: list[int]
    dropped: list[int]
    others: int = 0  # documents with a rarer value
    other_names: int = 0
    nulls: int = 0


@dataclass
class Example:
    """A document near a cut; `reason` says why it is dropped, and is empty where it is kept."""

    document: str
    value: float
    text: str
    reason: str = ""


@dataclass
class Cut:
    """One threshold: where it stands in `column`, who asks for it, how many documents with a value pass, and the nearest on each side."""

    label: str  # quality >= 0.5
    column: str
    at: float
    by: list[str]
    passed: int
    failed: int
    passes_above: bool
    below: list[Example] = field(default_factory=list)
    above: list[Example] = field(default_factory=list)


@dataclass
class SourceScores:
    """What the filters of one source read of its documents. The numbers are of the documents in `shards` of `shards_in_all` shards."""

    source: str
    documents: int
    kept: int
    shards: int
    shards_in_all: int
    histograms: list[Histogram] = field(default_factory=list)
    categories: list[Categories] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


@dataclass
class FileEntry:
    """One raw file under the recipe's folders."""

    path: str
    bytes: int
    outcome: Literal["read", "left out", "unmentioned"]
    source: str = ""
    reader: str = ""
    records: int | None = None  # read, in the reader's unit
    quarantined: int = 0
    why: str = ""  # it was left out, or its first quarantined line and the cause


@dataclass
class MixRow:
    """One source in a mix. `tokens` counts repeats; `documents` are distinct ones."""

    source: str
    available_tokens: int
    tokens: int
    documents: int
    repeat: float = 1.0


@dataclass
class Mix:
    """A planned mix; `used_by` names the runs that trained on it."""

    name: str
    rows: list[MixRow]
    used_by: list[str] = field(default_factory=list)


@dataclass
class FoundInstance:
    """An evaluation instance, what share of its n-grams a place holds, and the document that holds most of it with the share that it holds."""

    instance: str
    text: str  # its beginning
    share: float
    source: str
    document: str
    share_in_document: float


@dataclass
class EvaluationInside:
    """How much of one evaluation a place holds, as `tasks.contamination` counts it; `copies` are the documents times their repeats."""

    instances: int
    inside: int
    touched: int
    documents: int
    copies: int
    examples: list[FoundInstance] = field(default_factory=list)
    inside_when_selected: int | None = None  # of a source, once its filters have dropped documents
    touched_when_selected: int | None = None


@dataclass
class Place:
    """A source or a mix in which evaluations were looked for."""

    name: str
    kind: Literal["source", "mix"]
    ngram: int
    documents: int
    evaluations: dict[str, EvaluationInside] = field(default_factory=dict)
    not_scored: int = 0  # documents that the scorer's `where` left out
    not_looked_at: list[str] = field(default_factory=list)  # sources of a mix that no such scorer reads


@dataclass
class Annotation:
    """What a language model made of the documents that it was asked about: answers by label, and unusable ones by cause."""

    name: str
    source: str
    model: str
    asked: int
    labels: dict[str, int]
    unusable: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Classifier:
    """A scorer trained on an annotation, and what it does on the part of it that was held out."""

    name: str
    annotation: str
    trained_on: int  # examples
    measured: Measured


@dataclass
class Artifact:
    """A node of the lineage; `inputs` are the ids of other artifacts."""

    id: str
    step: str
    name: str = ""
    shards: int = 1
    seconds: float = 0.0
    reused: bool = False
    inputs: list[str] = field(default_factory=list)
    rows: int | None = None
    bytes: int | None = None


@dataclass
class ReportData:
    """Everything on the page. Whatever a run did not do is left empty, and its section says so."""

    run: str
    recipe_name: str
    created: str  # ISO 8601
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)
    model_name: str = ""
    model_parameters: int | None = None
    flows: list[SourceFlow] = field(default_factory=list)
    scores: list[SourceScores] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    classifiers: list[Classifier] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    contamination: list[Place] = field(default_factory=list)
    runs: list[TrainingRun] = field(default_factory=list)
    micro_anneals: list[MicroAnneal] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    learning_rates: list[RateRow] = field(default_factory=list)
    soups: list[SoupRow] = field(default_factory=list)
    tried_soups: list[TriedSoup] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    tokenizers: list[TokenizerRow] = field(default_factory=list)
    compute: list[TrainedFor] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    recipe: str = ""  # YAML, in full

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ReportData":
        """The inverse of `to_dict`. Raises UserError naming a key that is unknown or missing."""
        return _load(cls, data, "report")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)


def _load(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _load_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_load(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict:
        return {key: _load(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is types.UnionType and value is None:
        return None
    if origin is Literal and value not in arguments:
        raise UserError(f"{where} is {value!r}; it must be one of {', '.join(map(str, arguments))}")
    return value


def _load_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object, not {type(value).__name__}")
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key in value:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise UserError(f"{where} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [name for name, item in known.items() if name not in value and (item.default, item.default_factory) == needed]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _load(hints[key], item, f"{where}.{key}") for key, item in value.items()})
