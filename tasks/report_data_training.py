"""What a run's report shows of training and of scores, as plain dataclasses that survive JSON: the other half of `tasks.report_data`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

HELD_OUT_TEXT = "held-out text"


@dataclass
class TrainingRun:
    """One training run's curves, equally long; None where a value was not finite. `tokens` starts at 0 where the run did.

    scores: bits per byte while it went on, as (tokens, value), of HELD_OUT_TEXT and of tasks' gold answers by name.
    """

    name: str
    kind: Literal["pretrain", "micro-anneal", "anneal"]
    mix: str = ""
    tokens_before: int = 0  # seen by the checkpoint that it started from
    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    grad_norm: list[float | None] = field(default_factory=list)
    learning_rate: list[float | None] = field(default_factory=list)
    masked_instances: int = 0
    tokens_per_second: float | None = None  # median
    scores: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def from_metrics(
        cls,
        name: str,
        kind: Literal["pretrain", "micro-anneal", "anneal"],
        rows: list[dict[str, Any]],
        mix: str = "",
        tokens_before: int = 0,
    ) -> "TrainingRun":
        """From the objects of a run folder's `metrics.jsonl`."""

        def column(key: str) -> list[float | None]:
            return [float(row[key]) if row.get(key) is not None and np.isfinite(row[key]) else None for row in rows]

        speeds = [value for value in column("tokens_per_second") if value is not None]
        scores: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            for key in row:
                if (key == "held_out/all/bits_per_byte" or key.startswith("tasks/")) and np.isfinite(row[key]):
                    score = key.split("/")[1] if key.startswith("tasks/") else HELD_OUT_TEXT
                    scores.setdefault(score, []).append((int(row["tokens"]), float(row[key])))
        return cls(
            name,
            kind,
            mix,
            tokens_before,
            step=[int(row["step"]) for row in rows],
            tokens=[int(row["tokens"]) for row in rows],
            loss=column("loss"),
            grad_norm=column("grad_norm"),
            learning_rate=column("learning_rate"),
            masked_instances=sum(int(row.get("masked_instances") or 0) for row in rows),
            tokens_per_second=float(np.median(speeds)) if speeds else None,
            scores=scores,
        )


@dataclass
class Score:
    """Held-out quality on one source: nats a token and bits a byte of text; lower is better."""

    bits_per_byte: float
    loss: float | None = None


@dataclass
class MicroAnneal:
    """One row of the micro-anneal table; the baseline is the checkpoint that all of them started from.

    `scores` and `tasks` are the means over seeds; `tasks` are shares from 0 to 1 on development's tasks, their average first where there are
    several. Costs are by the id of a run, which several rows may have, and None where they are not known.
    """

    mix: str
    scores: dict[str, Score]
    experiment: str = ""
    web_ratio: float | None = None  # share of the mix's tokens, 0 to 1
    tokens: int | None = None  # of one run
    baseline: bool = False
    by_seed: dict[str, dict[str, Score]] = field(default_factory=dict)  # scores of each run
    tasks: dict[str, float] = field(default_factory=dict)
    tasks_by_seed: dict[str, dict[str, float]] = field(default_factory=dict)
    tested: list[str] = field(default_factory=list)  # sources under test
    hours_by_run: dict[str, float | None] = field(default_factory=dict)  # of GPUs
    share_by_run: dict[str, float | None] = field(default_factory=dict)  # of the tokens of one full anneal

    @property
    def gpu_hours(self) -> float | None:
        """Of all seeds together."""
        return sum_known(self.hours_by_run)

    @property
    def anneal_share(self) -> float | None:
        """Of all seeds together."""
        return sum_known(self.share_by_run)


def sum_known(values: dict[str, float | None]) -> float | None:
    """The sum of some values; None where there is none, or one is not known."""
    known = [value for value in values.values() if value is not None]
    return sum(known) if known and len(known) == len(values) else None


@dataclass
class Checkpoint:
    """Held-out scores of one model by source, with "all" for the sum; "baseline" is the unigram model."""

    name: str
    role: Literal["pretrained", "ingredient", "soup", "baseline"]
    scores: dict[str, Score]


@dataclass
class RateRow:
    """A run of a learning-rate study, in the manner of the report's Table 8: `tokens` of pretraining, then of the decay to zero, if any."""

    peak: float
    pretraining_tokens: int
    decay: str
    decay_tokens: int
    mix: str
    last_loss: float | None  # in training, the mean over the last twentieth of the steps
    scores: dict[str, Score]


@dataclass
class SoupRow:
    """The best single anneal of a mix, by bits per byte over all sources, against the soup of all of them (report, Table 14)."""

    mix: str
    best: str
    best_scores: dict[str, Score]
    soup: str
    soup_scores: dict[str, Score]


@dataclass
class TriedSoup:
    """A soup that a greedy one tried: bits per byte over the sources that decided."""

    ingredients: list[str]
    bits_per_byte: float
    kept: bool


@dataclass
class TaskScore:
    """A model on an evaluation task. form: the one that counts of a multiple-choice task, `forms` has both. cut: prompts over the window."""

    model: str
    task: str
    suite: Literal["development", "held_out"]
    metric: str
    score: float
    standard_error: float | None
    instances: int
    form: str = ""
    forms: dict[str, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    cut: int = 0


@dataclass
class TrainedFor:
    """An evaluated checkpoint beside what its training cost (report, Figure 1 and Table 6).

    `tokens` and FLOPs are of every run that it came of, each once: a soup's are those of all its ingredients and of the pretraining that
    they share. None where one of these runs is not in the store any more. `tasks` are shares from 0 to 1.
    """

    name: str
    kind: str
    tokens: int | None
    flops: float | None  # as PaLM counts
    kaplan_flops: float | None  # 6 x parameters x tokens
    bits_per_byte: float  # held-out, over all sources
    tasks: dict[str, float] = field(default_factory=dict)
    average: float | None = None  # over development's tasks, where there are several


@dataclass
class TokenizerRow:
    """A model trained for one pass over the same documents as the others, under a tokenizer of its own (report, Table 5).

    documents, bytes (of UTF-8 text) and tokens (EOS included) are the mix's, every copy counted; trained_bytes are the share of them that
    whole batches hold. `tasks` are shares from 0 to 1 on development's tasks, their average first where there are several.
    """

    name: str
    vocabulary: int  # padded
    documents: int
    bytes: int
    tokens: int
    steps: int
    trained_tokens: int
    trained_bytes: int
    parameters: int
    flops: float  # of training, as PaLM counts
    scores: dict[str, Score]
    tasks: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        """Of text: EOS, one a document, is none."""
        return self.bytes / (self.tokens - self.documents)
