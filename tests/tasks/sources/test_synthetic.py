"""Synthetic maths as sources: books that balance, the same documents everywhere, settings that cannot be meant."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tasks import ingest
from tasks.engine import LocalEngine
from tasks.errors import UserError
from tasks.raw_files import find_source
from tasks.shards import Artifact, Runner, input_files
from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig, arithmetic, unit
from tasks.sources.calculator import NO_SYNTAX
from tasks.sources.replace_numbers import NO_ANSWER
from tasks.store import Store

MakeRaw = Callable[..., RawFile]
GSM8K = {"question": "Ann has 48 pens and buys 6 more.", "answer": "Now she has 48+6=<<48+6=54>>54.\n#### 54"}
TINY_GSM = {"question": "Three boxes of 4?", "code": "x = 3 * 4"}


def config(**settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"format": "jsonl", "paths": ["x"], **settings})


def made_up(**settings: Any) -> list[str]:
    source = SourceConfig.model_validate({"format": "arithmetic", "arithmetic": settings})
    items = [item for part in arithmetic.parts(source) for item in READERS["arithmetic"](part, source)]
    assert all(isinstance(item, Record) for item in items) and len({item.id for item in items if isinstance(item, Record)}) == len(items)
    return [item.text for item in items if isinstance(item, Record)]


def read(raw: RawFile, **synthetic: Any) -> list[Item]:
    source = config(synthetic=synthetic)
    return list(READERS[source.format](raw, source))


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# -- arithmetic ------------------------------------------------------------------------------------------------------------------


def schoolbook(left: str, sign: str, right: str, answer: str) -> bool:
    """Counted in another way than by Python's operators on the operands: digit by digit, and a division backwards."""
    if sign == "/":
        left, sign, answer = answer, "*", left
    digits = [0] * 40
    if sign == "+":
        for number in (left, right):
            for place, digit in enumerate(reversed(number)):
                digits[place] += int(digit)
    else:
        for shift, a in enumerate(reversed(left)):
            for place, b in enumerate(reversed(right)):
                digits[shift + place] += int(a) * int(b)
    return sum(digit * 10**place for place, digit in enumerate(digits)) == int(answer)


def test_every_calculation_is_right_and_all_prompts_and_lengths_come_up() -> None:
    texts = made_up(documents=4000, max_digits=3, seed=5)
    forms, lengths = Counter[str](), Counter[int]()
    for text in texts:
        left, sign, right = re.search(r"(\d+) ([-+*/]) (\d+)", text).groups()  # type: ignore[union-attr]
        answer = re.findall(r"-?\d+", text)[-1]
        if sign == "-":
            assert schoolbook(answer, "+", right, left) if not answer.startswith("-") else schoolbook(answer[1:], "+", left, right)
        else:
            assert schoolbook(left, sign, right, answer), text
        forms[re.sub(r"-?\d+( [-+*/] \d+)?", "N", text)] += 1
        lengths[len(right)] += 1
    assert len(forms) == 20 and min(forms.values()) > 100
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 1000


def test_the_same_seed_makes_the_same_and_more_documents_hold_the_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    few = made_up(documents=50)
    monkeypatch.setattr(arithmetic, "DOCUMENTS_A_PART", 30)
    assert made_up(documents=100)[:50] == few
    assert made_up(documents=50, seed=1) != few
    # what these settings have always made, on any machine
    assert few[:3] == [
        "What is 3959 + 506?\nThe answer is 4465.",
        "If you calculate 329 - 766, you get -437.",
        "If you calculate 76 - 4, you get 72.",
    ]


def test_only_the_operations_that_are_asked_for_are_made() -> None:
    assert {re.search(r"\d ([-+*/]) \d", text)[1] for text in made_up(documents=200, operations=["divide"])} == {"/"}  # type: ignore[index]


# -- made of records -------------------------------------------------------------------------------------------------------------


def test_each_raw_record_counts_as_often_as_variants_are_wanted(raw: MakeRaw) -> None:
    wrong = {**GSM8K, "answer": GSM8K["answer"].replace("=54", "=55")}
    content = lines(GSM8K, wrong, {"question": "no answer"}, {**GSM8K, "question": ""}) + b"{\n"
    items = read(raw(content), type="replace_numbers", variants=3, seed=1)
    assert sum(item.units for item in items) == 5 * 3
    assert Counter(type(item) for item in items) == {Record: 3, Dropped: 2, Bad: 2}
    assert {item.cause for item in items if isinstance(item, Bad) and "missing" in item.cause} == {"the field 'answer' is missing"}
    records = [item for item in items if isinstance(item, Record)]
    assert len({item.text for item in records}) == 3 and [item.id[-2:] for item in records] == ["/1", "/2", "/3"]
    assert records[0].metadata == {}  # the old answer would be wrong beside the new question
    assert unit(config(synthetic={"type": "replace_numbers", "variants": 3})) == "variants"


def test_variants_follow_from_the_question_and_the_seed_and_more_hold_the_fewer(raw: MakeRaw) -> None:
    def texts(content: bytes, **synthetic: Any) -> list[str]:
        return [item.text for item in read(raw(content), type="replace_numbers", **synthetic) if isinstance(item, Record)]

    one = texts(lines(GSM8K))
    assert texts(lines({**GSM8K, "question": "Bob has 3."}, GSM8K))[-1:] == one == texts(lines(GSM8K), variants=4)[:1]
    assert texts(lines(GSM8K), seed=9) != one


def test_few_problems_are_not_told_twice(raw: MakeRaw) -> None:
    row = {"question": "Ann has 3 pens.", "answer": "She has <<3*1=3>>3.\n#### 3"}  # 2, 4, 5 or 6 pens
    items = read(raw(lines(row)), type="replace_numbers", variants=40)
    texts = [item.text for item in items if isinstance(item, Record)]
    assert len(texts) == len(set(texts)) <= 4
    assert sum(item.units for item in items) == 40
    assert {item.reason for item in items if isinstance(item, Dropped)} == {"the numbers of an earlier variant"}


def test_a_program_becomes_its_question_with_the_values_and_another_is_dropped(raw: MakeRaw) -> None:
    items = read(raw(lines({**TINY_GSM, "id": "a", "url": "u"}, {**TINY_GSM, "code": "x = ("})), type="annotate_programs")
    assert items == [Record("line 1", "a", "Three boxes of 4?\nx = 3 * 4  # = 12", metadata={"url": "u"}), Dropped(NO_SYNTAX)]


def test_the_fields_may_have_other_names(raw: MakeRaw) -> None:
    file = raw(lines({"q": "Three?", "more": {"program": "x = 3"}}))
    (item,) = read(file, type="annotate_programs", question="q", program="more.program")
    assert isinstance(item, Record) and item.text == "Three?\nx = 3  # = 3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": []}, "the format jsonl needs `paths`"),
        ({"arithmetic": {"seed": 1}}, "`arithmetic` is for the format arithmetic, not jsonl"),
        ({"format": "dolma", "synthetic": {"type": "annotate_programs"}}, "`synthetic` is for the formats jsonl, json, parquet, not dolma"),
        ({"synthetic": {"type": "annotate_programs"}, "fields": {"text": "q"}}, "leave `fields.text` out"),
        ({"synthetic": {"type": "other"}}, "replace_numbers"),
        ({"format": "arithmetic", "paths": [], "arithmetic": {"operations": ["add", "add"]}}, "the operation add stands twice"),
        ({"format": "arithmetic", "paths": [], "arithmetic": {"max_digits": 10}}, "max_digits"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        config(**settings)


def test_arithmetic_takes_no_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.sums: arithmetic is made up, not read from files; leave its `paths` out"):
        find_source(Store(str(tmp_path)), "sources.sums", config(format="arithmetic"))


def ingested(folder: Path, source: SourceConfig) -> tuple[Artifact, list[str]]:
    store = Store(str(folder / "store"))
    files, _ = find_source(store, "sources.maths", source)
    made = Runner(store, LocalEngine(2)).run(
        ingest.STEP, "maths", [ingest.task("maths", source, raw) for raw in files], max_quarantined=1.0
    )
    paths = [input_files(store, ref)["documents.parquet"] for ref in made.refs]
    return made, [text for path in paths for text in pq.read_table(path).column("text").to_pylist()]


def test_the_step_makes_them_by_workers_and_its_books_balance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "DOCUMENTS_A_PART", 60)
    sums, texts = ingested(tmp_path, SourceConfig.model_validate({"format": "arithmetic", "arithmetic": {"documents": 100}}))
    assert (sums.books.read, sums.books.kept, len(sums.keys)) == (100, 100, 2) and texts == made_up(documents=100)
    again, _ = ingested(tmp_path, SourceConfig.model_validate({"format": "arithmetic", "arithmetic": {"documents": 150}}))
    assert again.keys[0] == sums.keys[0] and again.made == 2  # of three: the first is whole, and there

    (tmp_path / "gsm8k.jsonl").write_bytes(lines(GSM8K, {**GSM8K, "answer": "I do not know."}, {"question": "?"}))
    settings = {"type": "replace_numbers", "variants": 2}
    problems, texts = ingested(tmp_path, config(paths=[str(tmp_path / "gsm8k.jsonl")], synthetic=settings))
    books = problems.books
    assert (books.unit, books.read, books.kept, books.quarantined) == ("variants", 6, 2, 2)
    assert books.dropped == {NO_ANSWER: 2} and len(set(texts)) == 2


def test_settings_of_synthetic_maths_are_in_no_key_of_other_sources() -> None:
    assert config().output_config() == {"format": "jsonl"} and not {"synthetic", "arithmetic"} & set(config().model_dump())
    keys = [config(synthetic={"type": "replace_numbers", "seed": seed}).output_config() for seed in (0, 1)]
    assert keys[0] != keys[1]
