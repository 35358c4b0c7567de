"""fastText quality classifier, used in DCLM's manner (report section 4.1; Li et al., 2024), and the training of one.

DCLM's manner, because its thresholds (0.018112; 0.03311014 for the report's "top 7 %") hold for nothing else: the text is stripped, its
lines are joined by one space, only the best label is asked for, and the probability of the high-quality label is 1 - p when the best label
is the other one.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import fasttext
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError

LABEL_PREFIX = "__label__"
# What fastText takes for the end of a word; str.split() would also cut at the no-break space and others.
_LABEL_WORD = re.compile(rf"(?<![^ \t\n\r\v\f\0]){LABEL_PREFIX}[^ \t\n\r\v\f\0]*")


class FastTextQualityConfig(BaseModel):
    """Probability that a text is of high quality, by a two-label fastText model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["fasttext"] = "fasttext"
    column: str = Field("quality", description="Name of the score's column.", min_length=1)
    model: str | None = Field(None, description="The model, a .bin file; leave it out where the recipe trains one.")
    high_label: str = Field("__label__hq", description="Label of high quality in the model.")
    low_label: str = Field("__label__cc", description="The model's other label.")


def one_line(text: str) -> str:
    """The text as DCLM shows it to fastText: stripped, its lines joined by one space."""
    return " ".join(text.strip().splitlines())


def load_fasttext(path: Path) -> Any:
    """A fastText model from its file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"the fastText model {path} does not exist: give the path of a .bin file, or train one")
    try:
        return fasttext.load_model(str(path))
    except ValueError as error:
        raise UserError(f"{path} is not a fastText model: give the .bin file that fastText saved ({error})") from error


class FastTextQuality:
    """Scores texts with a fastText model. `columns`: the probability of `high_label`, float64 in [0, 1].

    A text of which the model knows nothing (fastText then gives no label at all) scores NaN: no judgement is not a bad judgement.

    Raises:
        UserError: the file is missing, is no fastText model, or has other labels than the two of the config.
    """

    def __init__(self, config: FastTextQualityConfig, model_path: Path) -> None:
        self.config = config
        self.columns: dict[str, pa.DataType] = {config.column: pa.float64()}
        self.model = load_fasttext(model_path)
        labels = set(self.model.get_labels()[:100])
        # With a third label 1 - p of the low one would not be the probability of the high one.
        if labels != {config.high_label, config.low_label}:
            raise UserError(
                f"the fastText model {model_path} has the labels {', '.join(sorted(labels))}, not {config.high_label} and "
                f"{config.low_label}: set high_label and low_label to the model's two labels"
            )

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """One float64 a text, in the texts' order."""
        # numpy 2 broke the wrapper's predict(str); the compiled function below is what it calls, and about as fast as a batch.
        predict = self.model.f.predict
        scores = np.full(len(texts), np.nan)
        for row, text in enumerate(texts):
            best = predict(one_line(text) + "\n", 1, 0.0, "strict")
            if best:
                probability, label = best[0]
                scores[row] = probability if label == self.config.high_label else 1.0 - probability
        return {self.config.column: np.clip(scores, 0.0, 1.0)}  # fastText can give 1.000008


def train_fasttext(
    examples: Iterable[tuple[str, str]],
    out: Path,
    *,
    dim: int = 100,
    epochs: int = 5,
    lr: float = 0.1,
    word_ngrams: int = 2,
    minimum_count: int = 1,
    bucket: int = 2_000_000,
    seed: int = 0,
) -> dict[str, int]:
    """Trains a fastText classifier on (text, label) pairs and saves it as the .bin file `out`.

    Texts go through `one_line` first, as they do when scored. One thread, because several race for the weights: the same examples in the
    same order give the same bytes. fastText takes the examples as they come, so labels should be shuffled, not sorted.

    Returns the number of examples of each label.

    Raises:
        UserError: a label does not start with `__label__`, or there are fewer than two labels.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "examples.txt"
        with lines.open("w", encoding="utf-8", newline="\n") as file:
            for text, label in examples:
                if not re.fullmatch(LABEL_PREFIX + r"\S+", label):
                    raise UserError(f"the label {label!r} is none to fastText: write {LABEL_PREFIX} and a word, such as {LABEL_PREFIX}hq")
                # A word of the text that looks like a label would be one. When scoring, fastText passes over such words too.
                file.write(f"{label} {_LABEL_WORD.sub('', one_line(text))}\n")
                counts[label] += 1
        if len(counts) < 2:
            raise UserError(
                f"a classifier needs examples of two labels, but there is {', '.join(counts) or 'no example at all'}: add the other"
            )
        with _zeroed_memory():
            model = fasttext.train_supervised(
                input=str(lines),
                dim=dim,
                epoch=epochs,
                lr=lr,
                wordNgrams=word_ngrams,
                minCount=minimum_count,
                bucket=bucket,
                seed=seed + 1,  # its generator takes 0 for 1
                thread=1,
                verbose=0,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save_model(str(out))
    return dict(counts)


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Memory allocated within is zeroed, where the C library is glibc.

    fastText cuts its first weights into ten parts and lets each thread fill one: a single thread leaves nine tenths as malloc gave them.
    Small models then differ from run to run or end in "Encountered NaN" (seen 6 times out of 6), which zeros put right.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    perturb = -6  # M_PERTURB: new memory holds the complement of the value's lowest byte
    mallopt(perturb, 255)
    try:
        yield
    finally:
        mallopt(perturb, 0)
