"""GSM8K with other numbers: the answer follows, what cannot be told is refused with its reason."""

import doctest
import gzip
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sources import programs
from tasks.sources import replace_numbers as rn
from tasks.sources.calculator import Refused
from tasks.sources.replace_numbers import Problem

QUESTION = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many clips altogether?"
ANSWER = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72"


def recomputed(answer: str) -> Fraction:
    """By Python's own arithmetic on fractions: every step's value is what is written after it, and the answer is the last one's."""
    steps = re.findall(r"<<(.*?)=(.*?)>>", answer)
    for expression, result in steps:
        assert re.fullmatch(r"[\d.,+*/() -]+", expression)
        exact = re.sub(r"[\d,]*\.?\d+", lambda match: f"F('{match[0].replace(',', '')}')", expression)
        assert eval(exact, {"F": Fraction}) == Fraction(result), (expression, result)
    last = Fraction(re.search(r"#### (.*)\Z", answer)[1])  # type: ignore[index]
    assert last == Fraction(steps[-1][1])
    return last


def reason(question: str, answer: str) -> str:
    with pytest.raises(Refused) as refused:
        Problem(question, answer).variant(0, 1)
    return str(refused.value)


@pytest.mark.parametrize("module", [rn, programs])
def test_the_examples_in_the_docstrings_are_what_comes_out(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0 and doctest.testmod(module).attempted > 0


def test_the_question_the_steps_and_the_words_of_the_solution_change_together() -> None:
    question, answer = Problem(QUESTION, ANSWER).variant(seed=1, number=1)
    (sold,) = map(int, re.findall(r"\d+", question))
    assert sold != 48 and question == QUESTION.replace("48", str(sold))
    half, total = sold // 2, sold + sold // 2
    assert answer == (
        f"Natalia sold {sold}/2 = <<{sold}/2={half}>>{half} clips in May.\n"
        f"Natalia sold {sold}+{half} = <<{sold}+{half}={total}>>{total} clips altogether.\n#### {total}"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Ann has three pens and buys 5 more.", r"Ann has [a-z]+ pens and buys \d+ more\."),
        ("A car costs $8,400 and a bike $5 today.", r"A car costs \$\d+,\d00 and a bike \$\d+ today\."),
        ("At 5 pm on the 3rd she paid $2.50 for 4 pens.", r"At 5 pm on the 3rd she paid \$\d\.\d0 for \d pens\."),
    ],
)
def test_a_number_keeps_its_form_and_what_is_a_time_or_an_ordinal_stays(before: str, after: str) -> None:
    first, second = re.findall(r"three|\$?[\d,.]*\d", re.sub(r"5 pm|3rd", "", before))
    one, two = ("3" if first == "three" else first.strip("$").replace(",", "")), second.strip("$")
    total = Fraction(one) * Fraction(two)
    question, answer = Problem(before, f"That is <<{one}*{two}={int(total)}>>{int(total)}.\n#### {int(total)}").variant(3, 1)
    assert re.fullmatch(after, question) and question != before
    recomputed(answer)


def test_a_percentage_stays_one_and_is_found_where_it_is_divided_by_a_hundred() -> None:
    question, answer = "A shirt of $80 is 60% off. What does one save?", "One saves 80*.6=<<80*.6=48>>48.\n#### 48"
    for number in range(1, 20):
        new_question, new_answer = Problem(question, answer).variant(0, number)
        price, percent = map(int, re.findall(r"\d+", new_question))
        assert percent < 100 and recomputed(new_answer) == Fraction(price * percent, 100)


def test_no_result_becomes_negative_zero_or_broken() -> None:
    question, answer = "Of 48 pens Ann loses 36 and 4 friends share the others.", "48-36=<<48-36=12>>12\n12/4=<<12/4=3>>3\n#### 3"
    for number in range(1, 30):
        new_question, new_answer = Problem(question, answer).variant(0, number)
        pens, lost, friends = map(int, re.findall(r"\d+", new_question))
        assert pens > lost and (pens - lost) % friends == 0 and recomputed(new_answer) == (pens - lost) // friends


def test_the_larger_stays_the_larger_where_a_question_asks_for_it() -> None:
    question = "A bus costs $30 and 4 tickets cost $9 each. How much is the cheapest way?"
    answer = "Tickets cost 4*9=<<4*9=36>>36.\nThe bus is cheapest: <<30*1=30>>30.\n#### 30"
    for number in range(1, 30):
        new = Problem(question, answer).variant(0, number)
        bus, tickets, price = map(int, re.findall(r"\d+", new[0]))
        assert bus < tickets * price and recomputed(new[1]) == bus


@pytest.mark.parametrize(
    ("question", "answer", "because"),
    [
        (QUESTION, ANSWER.removesuffix("\n#### 72"), rn.NO_ANSWER),
        (QUESTION + " " * 8000, ANSWER, rn.TOO_LONG),
        (QUESTION + "9" * 5000, ANSWER, rn.TOO_LONG),
        (QUESTION, ANSWER.replace("48/2", "48/" + "2" * 5000), rn.TOO_LONG),
        (QUESTION, "All of them.\n#### 72", rn.NO_STEPS),
        (QUESTION, ANSWER.replace("48/2=24", "x/2=24"), rn.NO_ARITHMETIC),
        (QUESTION, ANSWER.replace("48/2=24", "__import__('os')=24"), rn.NO_ARITHMETIC),
        (QUESTION, ANSWER.replace("48/2=24", "9**9**9=24"), rn.NO_ARITHMETIC),
        (QUESTION, ANSWER.replace("48/2=24", "48/0=24"), rn.NO_ARITHMETIC),
        (QUESTION, ANSWER.replace("48/2=24", "48/2=25"), rn.WRONG_STEP),
        (QUESTION, ANSWER.replace(">>24", ">>25"), rn.WRONG_STEP),
        (QUESTION, ANSWER.replace("#### 72", "#### 24"), rn.OTHER_ANSWER),
        (QUESTION, ANSWER.replace("altogether.", "altogether, not 71."), rn.FROM_NOWHERE),
        ("Ann has 9 pens and 3 boxes.", "9+11=<<9+11=20>>20\n#### 20", rn.FROM_NOWHERE),
        ("Ann has 10 red and 5 blue pens and 5 boxes.", "<<5+5=10>>10\n<<10*5=50>>50\n#### 50", rn.AMBIGUOUS),
        ("Ann has a dozen pens.", "<<12*1=12>>12\n#### 12", rn.NOTHING_TO_REPLACE),
        ("Ann has 2 pens, gives away 3/2 of 1 and 2.0 more.", "<<2-1=1>>1\n#### 1", rn.NOTHING_TO_REPLACE),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_reason(question: str, answer: str, because: str) -> None:
    assert reason(question, answer) == because


def test_a_problem_that_only_its_own_numbers_solve_is_refused() -> None:
    question = "Ann shares 997 pens, each the largest share of 991. How many are left?"
    assert reason(question, "<<997-991=6>>6\n<<6/(997-991)=1>>1\n<<997*6/5982=1>>1\n#### 1") in (rn.FROM_NOWHERE, rn.NO_NUMBERS_FOUND)


@given(st.text(alphabet="0123456789.,<>=+-*/()# \n$%a", max_size=40), st.text(alphabet="0123456789.,<>=+-*/()# \na", max_size=60))
def test_no_text_whatever_raises_anything_but_a_reason(question: str, answer: str) -> None:
    try:
        made = Problem(question, answer + "\n#### 7").variant(0, 1)
    except Refused as refused:
        assert str(refused) in rn.REASONS
    else:
        recomputed(made[1])


def test_of_gsm8k_every_made_problem_recomputes_and_every_number_in_its_words_is_known(data: Path) -> None:
    with gzip.open(data / "math" / "gsm8k" / "train.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][:1000]
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            question, answer = Problem(row["question"], row["answer"]).variant(7201, 1)
        except Refused as refused:
            reasons[str(refused)] += 1
            continue
        recomputed(answer)
        assert question != row["question"]
        same_words = [re.sub(r"-?[\d,]*\.?\d+|[a-z]+", "", text.lower()) for text in (row["answer"], answer)]
        assert re.sub(r"\s+", "", same_words[0]) == re.sub(r"\s+", "", same_words[1])
    assert set(reasons) <= set(rn.REASONS)
    assert 450 <= len(rows) - reasons.total() <= 650
