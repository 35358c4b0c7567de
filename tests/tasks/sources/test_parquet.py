"""Parquet with a mapping, and StarCoder's."""

import datetime
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import UserError
from tasks.sources import READERS, Bad, Dropped, Fields, Item, RawFile, Record, SourceConfig, typed_columns

MakeRaw = Callable[..., RawFile]


def parquet(columns: dict[str, Any], **settings: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **settings)
    return sink.getvalue()


def read(file: RawFile, format: str = "parquet", **fields: Any) -> list[Item]:
    settings: dict[str, Any] = {"format": format, "paths": ["x"]} | ({"fields": fields} if fields else {})
    config = SourceConfig.model_validate(settings)
    return list(READERS[config.format](file, config))


def test_rows_become_documents_by_the_mapping(raw: MakeRaw) -> None:
    file = raw(
        parquet(
            {
                "body": [{"t": "one"}, {"t": "two"}, {"t": " "}, {"t": None}],
                "n": ["7", "None", "1", "1"],
                "day": [datetime.datetime(2020, 1, 2)] * 4,
                "blob": [b"\xff\x00"] * 4,
            }
        )
    )
    first, second, third, fourth = read(file, text="body.t", created="day", columns={"n": {"field": "n", "type": "int"}})
    assert isinstance(first, Record) and isinstance(second, Record)
    assert (first.id, first.text, first.created, first.columns) == (f"{file.content_id[:16]}:1", "one", "2020-01-02T00:00:00", {"n": 7})
    assert (second.id, second.columns) == (f"{file.content_id[:16]}:2", {"n": None})
    assert json.loads(json.dumps(first.metadata))["blob"] == "ff00"
    assert third == Dropped("empty text")
    assert isinstance(fourth, Bad) and fourth.position == "row 4" and "null" in fourth.cause


@pytest.mark.parametrize("fields", [{"text": "txet"}, {"text": "body.t"}, {"id": "nr"}, {"columns": {"c": {"field": "cc", "type": "int"}}}])
def test_a_path_in_no_column_names_the_file_the_column_and_what_is_there(raw: MakeRaw, fields: dict[str, Any]) -> None:
    file = raw(parquet({"text": ["a"], "body": ["b"]}))
    with pytest.raises(UserError) as caught:
        read(file, **fields)
    missing = next(iter(fields.values()))
    missing = missing["c"]["field"] if isinstance(missing, dict) else missing
    assert file.url in str(caught.value) and repr(missing) in str(caught.value) and "text, body" in str(caught.value)


def test_defaults_that_a_form_sends_back_are_not_demanded(raw: MakeRaw) -> None:
    (item,) = read(raw(parquet({"text": ["a"]})), **Fields().model_dump())
    assert isinstance(item, Record) and item.text == "a"


def test_text_in_bytes_is_decoded_and_bad_utf8_is_bad(raw: MakeRaw) -> None:
    first, second = read(raw(parquet({"text": [b"\xc3\xa9", b"\xff"]})))
    assert isinstance(first, Record) and first.text == "é"
    assert isinstance(second, Bad) and "bad UTF-8" in second.cause


def test_a_string_column_that_holds_no_utf8_costs_its_row_only(raw: MakeRaw) -> None:
    strings = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffb")])
    first, second = read(raw(parquet({"text": strings})))
    assert isinstance(first, Bad) and "bad UTF-8" in first.cause
    assert isinstance(second, Record) and second.text == "b"


def test_a_damaged_row_group_is_booked_and_the_others_are_read(raw: MakeRaw) -> None:
    texts = [f"text {number:05d} " * 20 for number in range(3000)]
    content = parquet({"text": texts}, row_group_size=1000, compression="snappy", use_dictionary=False)
    chunk = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0)
    start = chunk.data_page_offset
    damaged = content[:start] + b"\xff" * 200 + content[start + 200 :]
    items = read(raw(damaged))
    assert [item.text for item in items if isinstance(item, Record)] == texts[:1000] + texts[2000:]
    (bad,) = (item for item in items if isinstance(item, Bad))
    assert (bad.position, bad.units) == ("row 1001", 1000)
    assert 0 < bad.unreadable_bytes <= chunk.total_compressed_size


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"text"])
def test_a_file_that_is_no_parquet_is_bad_as_a_whole(raw: MakeRaw, content: bytes) -> None:
    (bad,) = read(raw(content))
    assert isinstance(bad, Bad) and bad.unreadable_bytes == len(content)


def test_starcoder_stars_may_be_strings_or_null(raw: MakeRaw) -> None:
    stars = ["12", "None", None, "3.0"]
    names = {"max_stars_repo_name": ["o/r"] * 4, "max_stars_repo_path": ["a.py", "b.py", "c.py", "d.py"]}
    file = raw(parquet({"content": ["code"] * 4, "max_stars_count": stars, "id": ["7", None, "", "9"], **names, "ext": ["py"] * 4}))
    items = [item for item in read(file, "starcoder") if isinstance(item, Record)]
    assert [item.columns["stars"] for item in items] == [12, None, None, 3]
    assert [item.id for item in items] == ["7", "o/r/b.py", "o/r/c.py", "9"]
    assert items[0].columns == {"stars": 12, "path": "a.py", "repo": "o/r"}
    assert items[0].metadata == {"ext": "py"}
    config = SourceConfig(format="starcoder", paths=["x"])
    assert {name: str(kind) for name, kind in typed_columns(config).items()} == {"stars": "int64", "path": "string", "repo": "string"}


def test_starcoder_stars_that_are_numbers(raw: MakeRaw) -> None:
    names = {"max_stars_repo_name": ["o/r"] * 2, "max_stars_repo_path": ["a.py", "b.py"]}
    items = read(raw(parquet({"content": ["x", "y"], "max_stars_count": pa.array([5, None], pa.int64()), **names})), "starcoder")
    assert [item.columns["stars"] for item in items if isinstance(item, Record)] == [5, None]
    assert [item.id for item in items if isinstance(item, Record)] == ["o/r/a.py", "o/r/b.py"]
