"""Scorers: a judgement of each document as columns, row-aligned with the documents, from the texts alone.

A scorer has `columns` (name to Arrow type) and `score(texts)`, which gives one array a column, in the texts' order; NaN in a float column
stands for "no judgement" and becomes null in Parquet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field

from tasks.errors import UserError
from tasks.scorers.contamination import Contamination, ContaminationConfig
from tasks.scorers.edu_classifier import EduClassifier, EduClassifierConfig
from tasks.scorers.fasttext_quality import FastTextQuality, FastTextQualityConfig
from tasks.scorers.language import Language, LanguageConfig
from tasks.scorers.length import Length, LengthConfig
from tasks.scorers.web_rules import WebRules, WebRulesConfig
from tasks.scorers.word_frequency import WordFrequency, WordFrequencyConfig

AnyScorerConfig = (
    FastTextQualityConfig | EduClassifierConfig | WordFrequencyConfig | LengthConfig | LanguageConfig | WebRulesConfig | ContaminationConfig
)
ScorerConfig = Annotated[AnyScorerConfig, Field(discriminator="type")]  # as a recipe's field


def column_names(config: AnyScorerConfig) -> set[str]:
    """The columns that a scorer writes, without loading its model."""
    if isinstance(config, WordFrequencyConfig):
        return set(WordFrequency().columns)
    if isinstance(config, LanguageConfig):
        return {"language", "language_score"}
    if isinstance(config, WebRulesConfig):
        return set(config.sets)
    if isinstance(config, ContaminationConfig):
        return set(config.columns())
    return set(Length().columns) if isinstance(config, LengthConfig) else {config.column}


def libraries(config: AnyScorerConfig) -> list[str]:
    """The libraries whose versions can change what a scorer writes, beside those that the score step names for all."""
    if isinstance(config, LanguageConfig):
        return [] if config.model else ["resiliparse"]
    return ["datatrove", "spacy"] if isinstance(config, WebRulesConfig) else []


class Scorer(Protocol):
    """What `make_scorer` gives."""

    columns: dict[str, pa.DataType]

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """One array of len(texts) for each of `columns`."""
        ...


def make_scorer(config: AnyScorerConfig, model_path: Path | None) -> Scorer:
    """The scorer of a config, its model loaded. `model_path`: where a trained or fetched model lies; it goes before the config's `model`.

    Raises:
        UserError: a model is needed and neither says where it is, or it cannot be loaded.
    """
    if isinstance(config, WordFrequencyConfig):
        return WordFrequency()
    if isinstance(config, LengthConfig):
        return Length()
    if isinstance(config, WebRulesConfig):
        return WebRules(config)
    model = model_path or config.model
    if isinstance(config, LanguageConfig):
        return Language(Path(model) if model else None)
    if model is None:
        raise UserError(f"the {config.type} scorer of column {config.column} has no model: set its key model, or let the recipe train one")
    if isinstance(config, FastTextQualityConfig):
        return FastTextQuality(config, Path(model))
    if isinstance(config, ContaminationConfig):
        return Contamination(config, Path(model))
    return EduClassifier(config, model)
