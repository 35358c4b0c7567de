"""JSON lines, Dolma, DCLM and JSON arrays: what becomes a document, and what a Bad or Dropped one."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import tiktoken
import zstandard
from pydantic import ValidationError

from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig, typed_columns

MakeRaw = Callable[..., RawFile]


def config(format: str, **settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"format": format, "paths": ["x"], **settings})


def read(file: RawFile, format: str, **fields: Any) -> list[Item]:
    settings = config(format, fields=fields) if fields else config(format)
    return list(READERS[settings.format](file, settings))


def json_lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def only(file: RawFile, format: str, **fields: Any) -> Any:
    (item,) = read(file, format, **fields)
    return item


def test_a_dolma_document_keeps_everything(raw: MakeRaw) -> None:
    document = {
        "id": "d1",
        "text": "words",
        "source": "cc",
        "added": "2024-01-02",
        "created": "2020",
        "metadata": {"url": "u"},
        "version": "v1",
    }
    record = only(raw(gzip.compress(json_lines(document))), "dolma")
    assert record == Record("line 1", "d1", "words", "2024-01-02", "2020", {"url": "u", "source": "cc", "version": "v1"}, {})


@pytest.mark.parametrize("missing", ["id", "text", "source"])
def test_a_dolma_document_without_a_required_field_is_bad(raw: MakeRaw, missing: str) -> None:
    document = {"id": "d1", "text": "words", "source": "cc"}
    del document[missing]
    bad = only(raw(json_lines(document)), "dolma")
    assert isinstance(bad, Bad)
    assert f"{missing!r} is missing" in bad.cause


def test_every_broken_line_is_bad_with_its_line_and_the_others_are_read(raw: MakeRaw) -> None:
    broken = [
        b'{"text": "cut',
        b'{"text": "\xff\xfe"}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"other": "x"}',
        b'["text"]',
        b"[" * 100_000,
        b'{"text": {"a": "b"}}',
        b'{"text": "t", "id": {"a": 1}}',
    ]
    content = b'{"text": "first"}\n' + b"\n\n".join(broken) + b'\n{"text": " \\n\\t "}\n{"text": ""}\n{"text": "last"}'
    items = read(raw(content), "jsonl")
    bad = [item for item in items if isinstance(item, Bad)]
    assert [item.raw for item in bad] == broken
    assert [item.position for item in bad] == [f"line {number}" for number in range(2, 20, 2)]
    causes = ["malformed JSON", "bad UTF-8", "null", "a int", "missing", "object was expected", "malformed JSON", "a dict", "the id"]
    assert all(cause in item.cause for cause, item in zip(causes, bad, strict=True))
    assert [item.text for item in items if isinstance(item, Record)] == ["first", "last"]
    assert [item.reason for item in items if isinstance(item, Dropped)] == ["empty text"] * 2
    assert sum(item.units for item in items) == len(broken) + 4


def test_a_cut_off_file_yields_its_whole_lines_and_one_bad(raw: MakeRaw) -> None:
    content = zstandard.compress(json_lines(*({"text": f"text {number} {'pad' * 50}", "url": "u"} for number in range(30000))))
    items = read(raw(content[: len(content) // 2]), "dclm")
    *records, bad = items
    assert records and all(isinstance(item, Record) and item.text.startswith(f"text {number} ") for number, item in enumerate(records))
    assert isinstance(bad, Bad) and "ends early" in bad.cause and bad.position == f"byte {len(content) // 2}" and bad.units == 1


def test_lone_surrogates_are_repaired_as_tiktoken_does(raw: MakeRaw) -> None:
    content = rb'{"text": "a\ud800b \ud83d\ude00 \udc00", "note": ["\udfff"]}' + b'\n{"text": "whole \\ud83d\\ude00"}\n'
    damaged, whole = read(raw(content), "jsonl")
    assert isinstance(damaged, Record) and isinstance(whole, Record)
    assert (damaged.repaired, whole.repaired) == (True, False)
    assert whole.text == "whole 😀"
    json.dumps(damaged.metadata, ensure_ascii=False).encode()
    # The oracle: what tiktoken makes of the same string, by its plain bytes vocabulary.
    bytes_only = tiktoken.Encoding(
        "bytes", pat_str=r"(?s:.)", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )
    assert damaged.text.encode() == bytes(bytes_only.encode("a\ud800b \U0001f600 \udc00"))


def test_an_id_made_up_depends_on_the_content_and_the_line_only(raw: MakeRaw) -> None:
    content = b"\n" + json_lines({"text": "a"}, {"text": "b", "id": None}, {"text": "c", "id": 12})
    here, there = raw(content, "here/a"), raw(content, "there/b.jsonl")
    ids = [item.id for item in read(here, "jsonl") if isinstance(item, Record)]
    assert ids == [f"{here.content_id[:16]}:2", f"{here.content_id[:16]}:3", "12"]
    assert ids == [item.id for item in read(there, "jsonl") if isinstance(item, Record)]


def test_text_from_paths_lists_and_templates(raw: MakeRaw) -> None:
    line = raw(json_lines({"a": {"b": "one"}, "c": "two", "words": ["x", "y"], "none": "", "list": [{"n": 39.0}]}))
    assert only(line, "jsonl", text="a.b").text == "one"
    assert only(line, "jsonl", text=["a.b", "none", "words", "c"], separator="|", join="+").text == "one|x+y|two"
    assert only(line, "jsonl", text="Q: {a.b}{{}}\nA: {list.0.n}").text == "Q: one{}\nA: 39.0"
    assert "'a.z' is missing" in only(line, "jsonl", text=["c", "a.z"]).cause
    assert "a list, not a string" in only(line, "jsonl", text="list").cause
    assert "a float, not a string" in only(line, "jsonl", text="list.0.n").cause


def test_fields_that_became_the_document_are_not_metadata_again(raw: MakeRaw) -> None:
    record = only(raw(json_lines({"q": "one", "a": "two", "when": "2020", "k": 5, "n": 3})), "jsonl", text="{q} {a}", created="when")
    assert (record.created, record.metadata) == ("2020", {"k": 5, "n": 3})


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("int", "12", 12),
        ("int", "12.0", 12),
        ("int", 12.0, 12),
        ("int", "None", None),
        ("int", None, None),
        ("int", float("nan"), None),
        ("float", "0.5", 0.5),
        ("float", 1, 1.0),
        ("bool", "true", True),
        ("bool", 0, False),
        ("string", 5, "5"),
        ("string", "None", "None"),
    ],
)
def test_typed_columns_take_numbers_in_strings_and_nulls(raw: MakeRaw, kind: str, value: Any, wanted: Any) -> None:
    record = only(raw(json_lines({"text": "t", "m": {"v": value}})), "jsonl", columns={"v": {"field": "m.v", "type": kind}})
    assert record.columns == {"v": wanted}
    assert type(record.columns["v"]) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value"), [("int", "abc"), ("int", 1.5), ("int", 2**63), ("int", True), ("float", "x"), ("bool", 2), ("string", [1])]
)
def test_a_value_that_does_not_fit_its_column_is_bad(raw: MakeRaw, kind: str, value: Any) -> None:
    bad = only(raw(json_lines({"text": "t", "v": value})), "jsonl", columns={"v": {"field": "v", "type": kind}})
    assert isinstance(bad, Bad) and f"is no {kind}" in bad.cause


def test_an_absent_column_is_null(raw: MakeRaw) -> None:
    assert only(raw(json_lines({"text": "t"})), "jsonl", columns={"v": {"field": "m.v", "type": "int"}}).columns == {"v": None}


LONG_NAME, SHORT_NAME = "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob", "fasttext_oh_eli5_vs_rw_v2_prob"


def test_dclm_ids_and_scores_under_either_name(raw: MakeRaw) -> None:
    lines = json_lines(
        {"text": "a", "url": "u1", "metadata": {"WARC-Record-ID": "<urn:1>", "WARC-Type": "response"}, LONG_NAME: 0.25},
        {"text": "b", "url": "u2", "metadata": {}, SHORT_NAME: 0.5, "language_id_whole_page_fasttext": {"en": 0.9}},
        {"text": "c"},
        {"text": "d", LONG_NAME: 0.0},
    )
    file = raw(zstandard.compress(lines))
    items = [item for item in read(file, "dclm") if isinstance(item, Record)]
    assert [item.id for item in items] == ["<urn:1>", "u2", f"{file.content_id[:16]}:3", f"{file.content_id[:16]}:4"]
    assert [item.columns for item in items] == [
        {"url": "u1", "fasttext_score": 0.25},
        {"url": "u2", "fasttext_score": 0.5},
        {"url": None, "fasttext_score": None},
        {"url": None, "fasttext_score": 0.0},
    ]
    assert items[0].metadata["WARC-Type"] == "response"
    assert items[1].metadata["language_id_whole_page_fasttext"] == {"en": 0.9}
    assert {name: str(kind) for name, kind in typed_columns(config("dclm")).items()} == {"url": "string", "fasttext_score": "double"}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_and_its_lines_give_the_same_documents(raw: MakeRaw, indent: int | None) -> None:
    # Larger than a block, so that elements lie across blocks.
    values = [{"id": str(number), "text": f"{number} é😀 " + "word " * number} for number in range(900)]
    array = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    assert len(array) > 1 << 20
    texts = [(item.id, item.text) for item in read(raw(gzip.compress(array)), "json") if isinstance(item, Record)]
    assert texts == [(value["id"], value["text"]) for value in values]
    assert texts == [(item.id, item.text) for item in read(raw(json_lines(*values)), "json") if isinstance(item, Record)]


def test_one_object_over_several_lines_is_one_record(raw: MakeRaw) -> None:
    assert only(raw(json.dumps({"text": "t"}, indent=1).encode()), "json").text == "t"


def test_empty_arrays_and_files_hold_nothing(raw: MakeRaw) -> None:
    assert read(raw(b" [ ] \n"), "json") == []
    assert read(raw(b""), "json") == []


def test_a_number_across_the_edge_of_a_block_is_one_element(raw: MakeRaw) -> None:
    content = b"[" + b" " * ((1 << 20) - 3) + b"1234]"
    assert only(raw(content), "json").raw == b"1234"


def test_bad_elements_of_an_array_are_bad_and_the_others_are_read(raw: MakeRaw) -> None:
    content = b'[{"text": "a"}, 5, {"text": "\xff"}, {"text": ""}, {"text": "\\ud800"}, {"n": 1}]'
    items = read(raw(content), "json")
    assert [type(item) for item in items] == [Record, Bad, Bad, Dropped, Record, Bad]
    bad = [item for item in items if isinstance(item, Bad)]
    assert [item.position for item in bad] == ["element 2", "element 3", "element 6"]
    assert [item.raw for item in bad] == [b"5", b'{"text": "\xff"}', b'{"n": 1}']
    assert isinstance(items[4], Record) and items[4].repaired and items[4].text == "�"


@pytest.mark.parametrize("rest", [b'{"text": b}, {"text": "c"}]', b'{"text": "never ends', b'{"text": "c"} {"text": "d"}]'])
def test_the_rest_of_a_malformed_array_is_one_bad_with_its_bytes(raw: MakeRaw, rest: bytes) -> None:
    content = b'[{"text": "a"},\n ' + rest
    items = read(raw(content), "json")
    assert isinstance(items[0], Record) and items[0].text == "a"
    bad = items[-1]
    assert isinstance(bad, Bad) and "malformed JSON" in bad.cause
    assert 0 < bad.unreadable_bytes <= len(rest)


def test_a_cut_off_array_gives_its_whole_elements(raw: MakeRaw) -> None:
    array = json.dumps([{"text": f"{number}", "pad": "x" * 2000} for number in range(3000)]).encode()
    content = gzip.compress(array, 0)
    *records, bad = read(raw(content[: len(content) // 2]), "json")
    assert [item.text for item in records if isinstance(item, Record)] == [str(number) for number in range(len(records))]
    assert abs(len(records) - 1500) < 20
    assert isinstance(bad, Bad) and "ends early" in bad.cause and bad.raw.lstrip(b", ").startswith(b'{"text"')


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "jsonl", "fields": {"text": "{a:>5}"}}, "only field paths"),
        ({"format": "jsonl", "fields": {"text": "{a} {}"}}, "only field paths"),
        ({"format": "jsonl", "fields": {"text": []}}, "needs a field path"),
        ({"format": "jsonl", "fields": {"columns": {"key": {"field": "k", "type": "int"}}}}, "taken"),
        ({"format": "dclm", "fields": {"text": "content"}}, "has its own"),
        ({"format": "dolma", "site": "a.b"}, "stackexchange"),
        ({"format": "dolma", "pathes": ["x"]}, "pathes"),
        ({"format": "dolma", "paths": []}, "paths"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate({"paths": ["x"], **settings})


def test_every_setting_has_a_description_and_a_place_in_the_form() -> None:
    schema = SourceConfig.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        positions = [settings["position"] for settings in model["properties"].values()]
        assert positions == list(range(len(positions)))
        assert all(settings["description"] for settings in model["properties"].values())
