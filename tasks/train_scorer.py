"""Train a scorer: a fastText classifier or a FineWeb-Edu-like regressor from labelled texts, or an index of evaluations for contamination.

Needs all examples at once: one task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from tasks.errors import UserError
from tasks.examples import Examples, load
from tasks.from_annotation import FromAnnotation, TopicFromAnnotation, annotated, measure_edu, measure_topic
from tasks.shards import Input, Shard, ShardTask, Step
from tasks.sources import READERS, SourceConfig
from tasks.sources.base import Bad, Dropped
from tasks.store import Books

STEP = Step("train-scorer", 1, "tasks.train_scorer", ("fasttext-numpy2-wheel", "torch", "transformers", "tokenizers"))


class _Training(BaseModel):
    @model_validator(mode="after")
    def _one_kind_of_examples(self) -> Any:
        if bool(self.examples) == (self.annotation is not None):  # type: ignore[attr-defined]
            raise ValueError("give either examples or annotation")
        return self


class FastTextTraining(_Training):
    """Trains a fastText classifier in DCLM's manner; labels are `__label__...` words."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["fasttext"] = "fasttext"
    examples: list[Examples] = Field(default=[], description="Labelled texts; a label such as hq becomes __label__hq.")
    annotation: TopicFromAnnotation | None = Field(default=None, description="Or labels that a language model gave.")
    dim: int = Field(default=100, ge=1, description="Size of the word vectors.")
    epochs: int = Field(default=5, ge=1, description="Passes over the examples.")
    lr: float = Field(default=0.1, gt=0, description="Learning rate.")
    word_ngrams: int = Field(default=2, ge=1, description="Longest word n-gram.")
    bucket: int = Field(default=2_000_000, ge=1, description="Hash buckets for n-grams; the model takes bucket x dim x 4 bytes.")


class RegressorTraining(_Training):
    """Trains a small BERT with one regression output on texts labelled 0 to 5."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["edu"] = "edu"
    examples: list[Examples] = Field(default=[], description="Texts labelled 0 to 5.")
    annotation: FromAnnotation | None = Field(default=None, description="Or labels that a language model gave.")
    epochs: int = Field(default=5, ge=1, description="Passes over the examples.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    hidden_size: int = Field(default=64, ge=4, description="Width of the encoder.")
    layers: int = Field(default=2, ge=1, description="Layers of the encoder.")
    max_tokens: int = Field(default=256, ge=8, description="Texts are cut to this many tokens.")


class EvaluationIndexing(BaseModel):
    """Indexes the word n-grams of every instance of evaluations, read as sources are: training, validation and test instances."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["contamination"] = "contamination"
    ngram: int = Field(
        default=13, ge=1, description="Words of an n-gram. The report gives none; 13 is GPT-3's (Brown et al., 2020, appendix C)."
    )
    evaluations: dict[str, list[SourceConfig]] = Field(description="Evaluations by name, each with its files.", min_length=1)


AnyTraining = FastTextTraining | RegressorTraining | EvaluationIndexing
ScorerTraining = Annotated[AnyTraining, Field(discriminator="type")]


def read_by(config: AnyTraining) -> dict[str, SourceConfig]:
    """What the training reads, by its key in `config`, with colons for dots."""
    if isinstance(config, EvaluationIndexing):
        return {f"evaluations:{name}:{i}": files for name, each in config.evaluations.items() for i, files in enumerate(each)}
    return {f"examples:{i}": examples for i, examples in enumerate(config.examples)}


def task(name: str, config: AnyTraining, inputs: dict[str, list[Input]]) -> ShardTask:
    """inputs: the files of each set that it reads, as `read_by` names them, or under `annotation` the shard of one."""
    left_out: Any = {"examples": {"__all__": {"paths"}}, "evaluations": {"__all__": {"__all__": {"paths"}}}, "annotation": {"name"}}
    settings = config.model_dump(mode="json", exclude=left_out)
    if settings.get("annotation") is None:
        settings.pop("annotation", None)  # as it was before there were any, so that what is trained on files stays so
    return ShardTask(name, settings, inputs)


def run(shard: Shard) -> Books:
    """Raw files or an annotation -> model.bin (fastText), or a Hugging Face folder or an index under model/; summary.json."""
    return _index(shard) if shard.config["type"] == "contamination" else _train(shard)


def _index(shard: Shard) -> Books:
    from tasks.scorers.contamination import build_index

    books = Books("instances")
    evaluations = {
        name: _instances(shard, name, [SourceConfig.model_validate({**files, "paths": ["-"]}) for files in each], books)
        for name, each in shard.config["evaluations"].items()
    }
    build_index(evaluations, shard.config["ngram"], books).save(shard.folder / "model")
    return books


def _instances(shard: Shard, name: str, each: list[SourceConfig], books: Books) -> Iterator[tuple[str, str]]:
    """(id, text) of an evaluation. What cannot be read stops the step: nobody would look for the instances that are missing."""
    for number, config in enumerate(each):
        for raw in shard.inputs[f"evaluations:{name}:{number}"]:
            for item in READERS[config.format](raw, config):
                if isinstance(item, Bad):
                    where = f"{raw.url.removeprefix('file://')}, {item.position}"
                    raise UserError(f"{where}: {item.cause} (an instance of the evaluation {name}; mend the file, or its `fields`)")
                if isinstance(item, Dropped):
                    books.read += item.units
                    books.drop(item.reason, item.units)
                else:
                    yield item.id, item.text


def _train(shard: Shard) -> Books:
    sets = [Examples.model_validate({**examples, "paths": ["-"]}) for examples in shard.config["examples"]]
    given: dict[str, Any] = {**shard.config, "examples": sets}
    if "annotation" in given:
        given["annotation"] = {"name": "-", **given["annotation"]}
    config: Any = TypeAdapter(ScorerTraining).validate_python(given)
    books = Books("examples")
    held_out: list[Any] = []
    if config.annotation is None:
        pairs = load(shard, sets, books)
    else:
        pairs, held_out = annotated(shard, config.annotation, books)
    options = config.model_dump(exclude={"type", "examples", "annotation"})
    if isinstance(config, FastTextTraining):
        from tasks.scorers.fasttext_quality import LABEL_PREFIX, train_fasttext

        labelled = [(text, str(label) if str(label).startswith(LABEL_PREFIX) else f"{LABEL_PREFIX}{label}") for text, label in pairs]
        summary: dict[str, Any] = dict(train_fasttext(labelled, shard.folder / "model.bin", **options))
    else:
        from tasks.scorers.train_edu import train_regressor

        summary = dict(train_regressor([(text, _score(label, shard.name)) for text, label in pairs], shard.folder / "model", **options))
    if config.annotation is not None:
        topic = isinstance(config, FastTextTraining)
        measured = measure_topic(shard, held_out) if topic else measure_edu(shard, config.max_tokens, held_out)
        summary["held_out"] = asdict(measured)
        for name, number in measured.at_main_threshold().counts.items():
            books.count(name, number)
    (shard.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return books


def _score(label: str | float | None, name: str) -> float:
    try:
        return float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"scorer {name}: the label {label!r} of an example is no number from 0 to 5") from error
