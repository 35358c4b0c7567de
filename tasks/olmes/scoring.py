"""Scores of instances, their mean and its standard error."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.olmes.definitions import Normalization


def chosen(
    log_likelihoods: Sequence[float], choices: Sequence[str], normalization: Normalization, unconditional: Sequence[float] | None = None
) -> int:
    """The choice that a model takes (Gu et al., 2024, section 3.3); the first of equals.

    log_likelihoods: of each choice, in nats. `character` divides by a choice's characters, the space before it not counted; `pmi` subtracts
    the log-likelihoods of the choices after "Answer:" alone.
    """
    scores = np.asarray(log_likelihoods, np.float64)
    if normalization == "character":
        scores = scores / np.array([float(len(choice)) for choice in choices])
    elif normalization == "pmi":
        assert unconditional is not None
        scores = scores - np.asarray(unconditional, np.float64)
    return int(np.argmax(scores))


def bits_per_byte(log_likelihood: float, text: str) -> float:
    """Bits that a model needed for each byte of `text`, a log-likelihood in nats."""
    return -log_likelihood / math.log(2) / len(text.encode())


def drop_f1(text: str, spans: Sequence[Sequence[str]]) -> float:
    """DROP's own F1 (Dua et al., 2019), as lm-eval has it, of the answer that is nearest; an answer is one or more pieces of text."""
    from lm_eval.tasks.drop.utils import get_metrics

    return max(float(get_metrics(text, tuple(each))[1]) for each in spans)


def f1(text: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of words, of the answer that is nearest (Rajpurkar et al., 2016)."""
    return max(_overlap(_words(text), _words(answer)) for answer in answers)


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 where the words are those of an answer, else 0."""
    return float(any(_words(text) == _words(answer) for answer in answers))


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _overlap(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def mean(values: Sequence[float], groups: Sequence[str] = ()) -> dict[str, Any]:
    """Mean and its standard error, from the sample's variance as lm-eval has it; no error of a single value.

    groups: of each value, where the groups' means count alike (OLMES's macro average over subjects).
    """
    if groups:
        parts: dict[str, list[float]] = {}
        for value, group in zip(values, groups, strict=True):
            parts.setdefault(group, []).append(value)
        means = [mean(part) for part in parts.values()]
        errors = [each["standard_error"] for each in means]
        spread = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(means)
        return {"score": sum(each["score"] for each in means) / len(means), "standard_error": spread}
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return {"score": float(array.mean()), "standard_error": error}


def weights(groups: Sequence[str]) -> list[float]:
    """What each value counts in `mean`; they sum to 1."""
    size = Counter(groups)
    return [1 / (len(size) * size[group]) for group in groups]
