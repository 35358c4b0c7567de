"""Lengths of a document, for filters and for reports."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict


class LengthConfig(BaseModel):
    """Characters and words of a document."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["length"] = "length"


class Length:
    """Columns `characters` (Unicode code points) and `words` (what lies between white space), int64."""

    def __init__(self) -> None:
        self.columns: dict[str, pa.DataType] = {"characters": pa.int64(), "words": pa.int64()}

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Two int64 a text, in the texts' order."""
        return {
            "characters": np.fromiter((len(text) for text in texts), np.int64, len(texts)),
            "words": np.fromiter((len(text.split()) for text in texts), np.int64, len(texts)),
        }
