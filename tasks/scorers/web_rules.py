"""The rules by which Gopher, FineWeb and C4 drop web pages, as columns: each names the rule that a document breaks.

datatrove's filters decide, with its thresholds unless the recipe says otherwise. Gopher: Rae et al. 2021, table A1 and section A.1.1;
FineWeb: Penedo et al. 2024, section 3.6; C4: Raffel et al. 2020, section 2.2. All are made for English.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.scorers.parts import parts

RuleSet = Literal["gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality"]
FILTERS: dict[RuleSet, str] = {
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "fineweb_quality": "FineWebQualityFilter",
    "c4_quality": "C4QualityFilter",
}
AT_ONCE = 250_000  # characters: arrays that stay in a core's cache
_NOT_SETTINGS = {"self", "exclusion_writer", "language"}


class WebRulesConfig(BaseModel):
    """Which rule of Gopher, FineWeb or C4 a text breaks."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["rules"] = "rules"
    sets: dict[RuleSet, dict[str, Any]] = Field(
        default={name: {} for name in FILTERS},
        min_length=1,
        description="Rule sets, each with the settings of datatrove's filter that are to differ, such as `{gopher_quality: {min_doc_words: 30}}`.",
    )

    @field_validator("sets")
    @classmethod
    def _settings_exist(cls, value: dict[RuleSet, dict[str, Any]]) -> dict[RuleSet, dict[str, Any]]:
        for name, settings in value.items():
            known = _settings(name) if settings else set()
            alien = sorted(set(settings) - known)
            if alien:
                raise ValueError(f"{name} has no setting {alien[0]}; it has {', '.join(sorted(known))}")
        return value


@functools.cache
def _settings(name: RuleSet) -> set[str]:
    return set(inspect.signature(_filter(name).__init__).parameters) - _NOT_SETTINGS


def _filter(name: RuleSet) -> Any:
    from datatrove.pipeline import filters

    return getattr(filters, FILTERS[name])


class WebRules:
    """One string column a rule set: `passed`, or the name that datatrove gives to the rule broken (`gopher_short_doc`, `top_2_gram`, ...)."""

    def __init__(self, config: WebRulesConfig) -> None:
        from tasks.scorers import page_rules
        from tasks.scorers.english_words import EnglishWords

        self.columns: dict[str, pa.DataType] = {name: pa.string() for name in config.sets}
        self._rules = {name: page_rules.VERDICTS[name](_filter(name)(**settings)) for name, settings in config.sets.items()}
        self._words = EnglishWords()

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """One string a text and rule set, in the texts' order."""
        from tasks.scorers.page_rules import Pages

        columns: dict[str, list[str]] = {name: [] for name in self.columns}
        for part in parts(texts, AT_ONCE):
            self._words.make_room()
            pages = Pages(part, self._words)
            for name, verdicts in self._rules.items():
                columns[name] += verdicts(pages)
        return {name: np.array(column, object) for name, column in columns.items()}
