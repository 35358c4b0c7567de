import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tasks.errors import UserError
from tasks.filters import Filter, apply

TABLE = pa.table(
    {
        "edu": pa.array([0.4, None, float("nan"), 2.5, 7.0, -3.0], pa.float32()),
        "stars": [1, 2, None, 4, 5, 6],
        "language": pa.array(["en", "de", None, "en", "en", "en"]),
        "ok": [True, False, True, True, True, None],
    }
)


def decide(*filters: Filter, table: pa.Table = TABLE) -> list[str | None]:
    keep, reasons = apply(list(filters), table, name="web")
    assert keep.dtype == bool and keep.tolist() == [reason is None for reason in reasons]
    return reasons


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        ({"column": "stars", "min": 2, "max": 5}, ["stars < 2", None, "stars is null", None, None, "stars > 5"]),
        ({"column": "stars", "max": 4.0}, [None, None, "stars is null", None, "stars > 4", "stars > 4"]),
        ({"column": "stars", "min": 2, "null": "keep"}, ["stars < 2", None, None, None, None, None]),
        ({"column": "stars", "below": 4}, [None, None, "stars is null", "stars >= 4", "stars >= 4", "stars >= 4"]),
        ({"column": "edu", "min": 0, "below": 2.5, "null": "keep"}, [None, None, None, "edu >= 2.5", "edu >= 2.5", "edu < 0"]),
        ({"column": "edu", "below": 3, "rounded": True}, [None, "edu is null", "edu is null", None, "round(edu) >= 3", None]),
        ({"column": "edu", "min": 0.033}, [None, "edu is null", "edu is null", None, None, "edu < 0.033"]),
        ({"column": "edu", "min": 0.033, "null": "keep"}, [None, None, None, None, None, "edu < 0.033"]),
        ({"column": "language", "equals": "en"}, [None, "language != en", "language is null", None, None, None]),
        ({"column": "stars", "equals": 4}, ["stars != 4", "stars != 4", "stars is null", None, "stars != 4", "stars != 4"]),
        ({"column": "ok", "equals": True}, [None, "not ok", None, None, None, "ok is null"]),
    ],
)
def test_each_dropped_row_has_the_reason_in_words_and_bounds_are_kept(rule: dict, reasons: list[str | None]) -> None:
    assert decide(Filter(**rule)) == reasons


def test_a_column_of_rules_gives_the_broken_rule_as_the_reason() -> None:
    table = pa.table({"gopher_quality": pa.array(["passed", "gopher_short_doc", None, "gopher_too_many_hashes", "gopher_short_doc"])})
    reasons = decide(Filter(column="gopher_quality", equals="passed"), table=table)
    short = "gopher_quality: gopher_short_doc"
    assert reasons == [None, short, "gopher_quality is null", "gopher_quality: gopher_too_many_hashes", short]


def test_rounded_is_the_integer_score_of_fineweb_edu() -> None:
    scores = [-1.0, 0.5, 1.49, 1.5, 1.51, 2.49, 2.5, 2.51, 3.5, 9.0, None, float("nan")]
    integers = [None if s is None or s != s else round(max(0, min(s, 5))) for s in scores]
    for bound in range(6):
        expected = ["edu is null" if i is None else f"round(edu) < {bound}" if i < bound else None for i in integers]
        assert decide(Filter(column="edu", min=bound, rounded=True), table=pa.table({"edu": scores})) == expected
    integers_of = [Filter(column="edu", equals=bound, rounded=True, null="keep") for bound in range(6)]
    kept = [apply([rule], pa.table({"edu": scores}), name="web")[0].tolist() for rule in integers_of]
    assert kept == [[i is None or i == bound for i in integers] for bound in range(6)]


def test_the_first_failing_filter_gives_the_reason() -> None:
    reasons = decide(Filter(column="language", equals="en"), Filter(column="stars", min=2), Filter(column="edu", min=0))
    assert reasons == ["stars < 2", "language != en", "language is null", None, None, "edu < 0"]


def test_chunked_dictionary_and_empty_columns_are_decided_like_plain_ones() -> None:
    column = pa.chunked_array([pa.array(["en", "de"]).dictionary_encode(), pa.array(["de", "en"]).dictionary_encode()])
    assert decide(Filter(column="l", equals="en"), table=pa.table({"l": column})) == [None, "l != en", "l != en", None]
    assert decide(Filter(column="edu", min=2), table=TABLE.slice(0, 0)) == []
    assert decide() == [None] * 6


def test_a_null_is_no_reason_to_keep_where_a_column_is_all_null() -> None:
    table = pa.table({"edu": pa.array([None, None], pa.float32())})
    assert decide(Filter(column="edu", min=2), table=table) == ["edu is null"] * 2


def test_an_unknown_column_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"web wants the column fw, but there are only edu, stars, language, ok"):
        decide(Filter(column="fw", min=2))


@pytest.mark.parametrize(
    "rule",
    [
        {"column": "language", "min": 2},
        {"column": "language", "equals": 2},
        {"column": "stars", "equals": "4"},
        {"column": "stars", "equals": True},
        {"column": "ok", "min": 1},
        {"column": "language", "below": 2},
        {"column": "language", "equals": "en", "rounded": True},
    ],
)
def test_a_column_of_another_type_is_an_error_not_a_dropped_corpus(rule: dict) -> None:
    with pytest.raises(UserError, match=f"web cannot compare the column {rule['column']}"):
        decide(Filter(**rule))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"min": 1, "equals": 1},
        {"min": 2, "max": 1},
        {"below": 1, "equals": 0},
        {"below": 2, "max": 1},
        {"min": 2, "below": 2},
        {"minimum": 1},
        {"min": 1, "null": "ignore"},
    ],
)
def test_a_filter_that_says_nothing_or_contradicts_itself_is_refused(rule: dict) -> None:
    with pytest.raises(ValidationError):
        Filter(column="stars", **rule)


def test_a_filter_survives_json() -> None:
    for rule in (Filter(column="a", equals=True), Filter(column="a", equals=1), Filter(column="a", min=0.5, rounded=True)):
        again = Filter.model_validate(rule.model_dump(mode="json"))
        assert again == rule and type(again.equals) is type(rule.equals)


def test_a_filter_without_below_is_written_as_before_below_came_so_that_keys_stay() -> None:
    assert set(Filter(column="a", max=1).model_dump(mode="json")) == {"column", "min", "max", "equals", "rounded", "null"}
    again = Filter.model_validate(Filter(column="a", below=1).model_dump(mode="json"))
    assert again.below == 1


def test_many_rows_agree_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000)
    stars = [None if rng.random() < 0.1 else int(rng.integers(0, 9)) for _ in range(2000)]
    expected = []
    for value, star in zip(values, stars, strict=True):
        if value < -0.5:
            expected.append("v < -0.5")
        elif value > 1:
            expected.append("v > 1")
        else:
            expected.append("stars is null" if star is None else "stars < 2" if star < 2 else None)
    assert (
        decide(Filter(column="v", min=-0.5, max=1), Filter(column="stars", min=2), table=pa.table({"v": values, "stars": stars}))
        == expected
    )
