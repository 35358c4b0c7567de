"""What a language model is asked to make of documents: conversations in the manner of MIND, and problems with solutions from personas.

MIND (Akter et al. 2024, arXiv 2410.12881) turns mathematical texts into conversations; the report (section 4.2.1, TinyGSM-MIND and
DolminoSynthMath) takes its "two students" and "problem solving". Neither states the prompts in the report: these are our own words after
the paper's idea. The prompts for hard problems from personas (Persona Hub, Chan et al. 2024, arXiv 2406.20094) are the report's, Figures 23
and 24; those for grade school problems, which the report made too and does not state, are ours after them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TEXT, ANSWER = "{text}", "{answer}"
_PLACES = re.compile(r"\{(text|answer)\}")

Shape = Literal["conversation", "problem", "solution"]


@dataclass(frozen=True)
class Style:
    """Requests that are made one after the other, {text} for the document and {answer} for the answer before, and what each answer must be."""

    requests: tuple[str, ...]
    shapes: tuple[Shape | None, ...]


_CONVERSATION = """\
Tell the whole task at the beginning, with every number, so that somebody who reads only the conversation can follow it. Work it out in small \
steps, a step or two a turn: say what is done and why, and show each calculation. State the result at the end. Use only what stands above: \
change no number and bring in no fact from elsewhere. Where a program stands above, tell its steps in words and calculations and quote no code. \
Write numbers in digits. Begin each turn on a new line with the speaker's name and a colon. Write the conversation and nothing else."""

_TWO_STUDENTS = f"""\
{TEXT}

Turn what stands above into a conversation between two students who do it together as homework. They think aloud, ask each other where something \
is not clear, and set each other's slips right.

{_CONVERSATION}"""

_PROBLEM_SOLVING = f"""\
{TEXT}

Turn what stands above into a conversation in which several people solve a problem together. They make clear what is given and what is wanted, \
weigh how it could be done, carry out the way they choose, and check whether the result makes sense.

{_CONVERSATION}"""

# Figure 23 of the report, {persona} written {text}.
_HARD_PROBLEM = f"""\
Create a math problem related to the following persona:

{TEXT}

Note:

1. The math problem should be challenging and involve advanced mathematical skills and knowledge. Only top talents can solve it correctly.
2. You should make full use of the persona description to create the math problem to ensure that the math problem is unique and specific to the persona.
3. Your response should always start with "Math problem:". Your response should not include a solution to the created math problem.
4. Your created math problem should include no more than 2 sub-problems."""

_GRADE_SCHOOL_PROBLEM = f"""\
Create a math problem related to the following persona:

{TEXT}

Note:

1. The math problem should be a word problem that a grade school student can solve in two to eight steps with basic arithmetic. Its answer should be one number.
2. You should make full use of the persona description to create the math problem to ensure that the math problem is unique and specific to the persona.
3. Your response should always start with "Math problem:". Your response should not include a solution to the created math problem."""

# Figure 24 of the report, {generated_math_problem} written {answer}.
_SOLUTION = f"""\
Provide solution to the given math problem.

Problem: {ANSWER}

Note: Provide your solution step-by-step, and end your solution in a new line in the following format:

Final Answer: The final answer is $final_answer$. I hope it is correct."""

STYLES = {
    "mind_two_students": Style((_TWO_STUDENTS,), ("conversation",)),
    "mind_problem_solving": Style((_PROBLEM_SOLVING,), ("conversation",)),
    "persona_hard": Style((_HARD_PROBLEM, _SOLUTION), ("problem", "solution")),
    "persona_grade_school": Style((_GRADE_SCHOOL_PROBLEM, _SOLUTION), ("problem", "solution")),
}


def fill(request: str, text: str, answer: str = "") -> str:
    """A request with the document and the answer before in their places; braces within these stay as they are."""
    values = {"text": text, "answer": answer}
    return _PLACES.sub(lambda place: values[place[1]], request)


def instructions(request: str) -> str:
    """A request without what is filled in."""
    return _PLACES.sub(" ", request)
