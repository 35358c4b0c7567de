"""Shares of the most frequent words of a document: binary and mostly numeric files have a few words that make up most of them.

Report, section 2.1.1 (StarCoder): out go the documents whose most frequent word is over 30 % of the document, or whose two most frequent
words are over 50 %.
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict


class WordFrequencyConfig(BaseModel):
    """Shares of a document's words that are its most frequent word, and its two most frequent words."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["word_frequency"] = "word_frequency"


class WordFrequency:
    """Columns `top_word_share` and `top_two_words_share`, float64 in (0, 1].

    A word is what lies between white space (`str.split`), as it is written: `x` and `X`, `}` and `};` are four words. A document of one
    distinct word has 1.0 in both; one without any word has NaN in both.
    """

    def __init__(self) -> None:
        self.columns: dict[str, pa.DataType] = {"top_word_share": pa.float64(), "top_two_words_share": pa.float64()}

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Two float64 a text, in the texts' order."""
        top, words = np.zeros((len(texts), 2)), np.zeros(len(texts))
        for row, text in enumerate(texts):
            split = text.split()
            for rank, count in enumerate(nlargest(2, Counter(split).values())):
                top[row, rank] = count
            words[row] = len(split)
        shares = np.full((len(texts), 2), np.nan)
        np.divide(top.cumsum(axis=1), words[:, None], out=shares, where=words[:, None] > 0)
        return {"top_word_share": shares[:, 0], "top_two_words_share": shares[:, 1]}
