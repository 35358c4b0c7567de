"""Why a language model's answer makes no document: it is cut, refused, an echo, stuck in a loop, of another shape, or has lost the result.

The checks are made to be wrong seldom rather than to find everything: what is rejected was paid for.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from tasks.asking import CUT
from tasks.chat import REFUSES, Reply
from tasks.filters import PASSED
from tasks.rewrite_prompts import Shape, instructions
from tasks.scorers.web_rules import RuleSet, WebRules, WebRulesConfig

REPEATS = "the answer repeats itself"
ECHO = "the answer repeats the request"
NO_CONVERSATION = "the answer is no conversation"
NO_PROBLEM = 'the answer has no "Math problem:"'
NO_FINAL_ANSWER = 'the answer has no "Final Answer:"'
RESULT_LOST = "the known result is not in the answer"

# Gopher's rules for repeated lines and paragraphs as they are; of its n-grams only the longest, and only where they are a large part of the
# text: whoever explains a calculation step by step says the same few words again and again.
_REPETITION: dict[RuleSet, dict[str, Any]] = {"gopher_repetition": {"top_n_grams": (), "dup_n_grams": ((10, 0.3),)}}
_one_at_a_time = threading.Lock()
_INSTRUCTION_WORDS, _ECHO_WORDS, _ECHO_SHARE = 13, 8, 0.8
_LONGEST_NUMBER = 100  # characters; Python refuses to read the endless ones that a model in a loop writes

_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"\W*(?:as an ai\b|(?:i['’]m|i am)? ?(?:very |so )?(?:sorry|afraid|unfortunately)\b.{0,60}\b(?:can(?:not|['’]t)|unable|not able|won['’]t)\b"
    r"|i (?:can(?:not|['’]t)|am unable to|am not able to|won['’]t) (?:help|assist|comply|fulfil+|provide|do|create|generate|rewrite|convert)\b)",
    re.IGNORECASE | re.DOTALL,
)
_PREAMBLE = re.compile(r"\s*(?:sure|certainly|of course|absolutely|okay|here(?:['’]s| is| are))\b[^\n]*[:!.][*_ ]*\n+", re.IGNORECASE)
# **Student 1:** text, Ana: text, ### Bo Li: text
_TURN = re.compile(r"^[ \t]*[*_#>-]*[ \t]*([^\W\d_][\w.'’]*(?: [\w.'’]+){0,2})[*_ \t]*:", re.MULTILINE)
_PROBLEM = re.compile(r"[\s*_#]*math problem[*_ ]*:[*_]*\s*(.*\S)", re.IGNORECASE | re.DOTALL)
_FINAL_ANSWER = re.compile(r"final answer[*_ ]*:[*_]*\s*the final answer is\W*\w", re.IGNORECASE)
_GSM8K_RESULT = re.compile(r"####\s*([-$\d.,]*\d)\s*\Z")
_RESULT = re.compile(r"-?\d{1,40}(?:\.\d{0,40})?(?:[eE][+-]?\d{1,3})?")  # as programs and people write one: others would take for ever
_NUMBER = re.compile(r"(\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(\s*\\?%| percent)?")


def rejection(reply: Reply, request: str, told: str) -> str | None:
    """Why an answer to any request is of no use, else None. request: before it was filled in; told: with what."""
    if reply.cause is not None:
        return reply.cause
    if reply.cut:
        return CUT
    if _REFUSAL.match(reply.text):
        return REFUSES
    if echoes(reply.text, instructions(request), told):
        return ECHO
    return REPEATS if repeats(reply.text) else None


def repeats(text: str) -> bool:
    """Whether a text goes round in a circle."""
    with _one_at_a_time:
        (rule,) = _rules().score([text])["gopher_repetition"]
    return bool(rule != PASSED)


@functools.cache
def _rules() -> WebRules:
    """Made once a process: the words of English take most of a second."""
    return WebRules(WebRulesConfig(sets=_REPETITION))  # made here: it loads datatrove


def echoes(answer: str, instructions: str, told: str) -> bool:
    """Whether an answer quotes the instructions, or is for the most part what it was told."""
    words = _WORD.findall(answer.lower())
    if set(_ngrams(words, _INSTRUCTION_WORDS)) & set(_ngrams(_WORD.findall(instructions.lower()), _INSTRUCTION_WORDS)):
        return True
    length = min(_ECHO_WORDS, len(words))
    own = _ngrams(words, length)
    known = set(_ngrams(_WORD.findall(told.lower()), length))
    return bool(own) and sum(ngram in known for ngram in own) > _ECHO_SHARE * len(own)


def _ngrams(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)] if length else []


# -- shapes ----------------------------------------------------------------------------------------------------------------------------


def conversation(answer: str) -> tuple[str, str | None]:
    """(the conversation, None), or ("", why it is none): at least two speak, each twice or more."""
    turns = Counter(name for name in _TURN.findall(answer) if name[0].isupper())
    if sum(number > 1 for number in turns.values()) < 2:
        return "", NO_CONVERSATION
    return _PREAMBLE.sub("", answer, count=1).strip() if _PREAMBLE.match(answer) else answer.strip(), None


def problem(answer: str) -> tuple[str, str | None]:
    """The problem after "Math problem:", which Figure 23 of the report asks for."""
    preamble = _PREAMBLE.match(answer)
    found = _PROBLEM.match(answer, preamble.end() if preamble else 0)
    return (found[1], None) if found else ("", NO_PROBLEM)


def solution(answer: str) -> tuple[str, str | None]:
    """The solution, with the last line that Figure 24 of the report asks for."""
    return (answer.strip(), None) if _FINAL_ANSWER.search(answer) else ("", NO_FINAL_ANSWER)


SHAPES: dict[Shape | None, Callable[[str], tuple[str, str | None]]] = {
    "conversation": conversation,
    "problem": problem,
    "solution": solution,
    None: lambda answer: (answer.strip(), None),
}


# -- results ---------------------------------------------------------------------------------------------------------------------------


def known_result(text: str, metadata: Mapping[str, Any]) -> Fraction | None:
    """The number that a document is known to come to: `result` of its metadata (TinyGSM's programs), or what stands after #### (GSM8K)."""
    found = _GSM8K_RESULT.search(text)
    written = str(metadata["result"] if "result" in metadata else found[1] if found else "").replace(",", "").replace("$", "")
    return Fraction(written) if _RESULT.fullmatch(written) else None


def has_result(answer: str, result: Fraction) -> bool:
    """Whether a number stands in an answer: without regard to its sign, as a percentage, or rounded to two or more decimals."""
    wanted = abs(result)
    for number, percent in _NUMBER.findall(answer):
        number = number.replace("{,}", "").replace(",", "")
        if len(number) > _LONGEST_NUMBER:
            continue
        decimals = len(number.partition(".")[2])
        for scale in (1, 100) if percent else (1,):
            off = abs(Fraction(number) / scale - wanted)
            if off == 0 or (decimals >= 2 and off <= Fraction(1, 2 * scale * 10**decimals)):
                return True
    return False
