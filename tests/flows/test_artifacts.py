"""What a run shows of itself in Prefect's UI."""

import httpx
import pytest

from flows import artifacts
from tasks.report_data import Artifact, Loss, Mix, MixRow, ReportData, SourceFlow, Stage
from tasks.report_data_training import Checkpoint, Score


def shown(**parts) -> dict[str, str]:
    data = ReportData("end-to-end small", "small", "2026-01-01T00:00:00+00:00", **parts)
    return {each.kind: each.text for each in artifacts.after(data)}


def cells(text: str, first: str) -> list[str]:
    """Those of the row that begins so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.split(" | ")[1:]]


def test_the_waterfall_tells_what_was_read_dropped_by_reason_and_kept():
    losses = [Loss("votes < 2", 24), Loss("a|b", 1), Loss("never", 0), Loss("quarantined", 2, quarantined=True)]
    told = shown(flows=[SourceFlow("web", [Stage("select", "documents", 1120, 1093, losses)], tokens=9738)])
    assert cells(told["waterfall"], "web") == [
        "select",
        "documents",
        "1,120",
        "1,093",
        "9,738",
        r"votes \< 2: 24; a\|b: 1; quarantined: 2 |",
    ]


def test_a_mix_has_the_columns_of_table_13():
    told = shown(mixes=[Mix("mid", [MixRow("maths", 1000, 4000, 90, 4.0), MixRow("web", 100_000, 12_000, 110)], ["anneal 1"])])
    assert cells(told["mixes"], "maths") == ["1k", "400 %", "4,000", "25 %", "90 |"]
    assert cells(told["mixes"], "**total**") == ["", "", "**16,000**", "", "**200** |"]


def test_the_best_checkpoint_of_each_column_is_marked():
    told = shown(
        checkpoints=[
            Checkpoint("pretrained", "pretrained", {"all": Score(1.5), "web": Score(1.25)}),
            Checkpoint("soup", "soup", {"all": Score(1.375)}),
        ]
    )
    assert cells(told["evaluation"], "pretrained") == ["1.5000", "**1.2500** |"]
    assert cells(told["evaluation"], "soup") == ["**1.3750**", "– |"]


def test_the_lineage_tells_each_artifact_once_under_what_is_made_of_it():
    told = shown(
        artifacts=[
            Artifact("ingest-1", "ingest", "web", bytes=10),
            Artifact("select-2", "select", "web", shards=3, bytes=10, reused=True, inputs=["ingest-1", "gone-0"]),
            Artifact("mix-3", "mix", "pre", bytes=10, inputs=["select-2", "ingest-1"]),
        ]
    )
    assert told["lineage"].partition("```\n")[2].splitlines() == [
        "mix pre  mix-3  1 shard, 10 B, made",
        "  select web  select-2  3 shards, 10 B, reused",
        "    ingest web  ingest-1  1 shard, 10 B, made",
        "  ingest web  ingest-1, see above",
        "```",
    ]


def test_what_a_run_did_not_do_is_not_shown():
    assert shown() == {}


def test_an_address_that_a_browser_takes_is_told_of_a_report_in_a_folder_and_of_one_in_a_bucket_its_url():
    data = ReportData("end-to-end small", "small", "")
    assert "```\nfile:///store/reports/small.html\n```" in artifacts.report(data, "/store/reports/small.html").text
    assert "```\ns3://bucket/reports/small.html\n```" in artifacts.report(data, "s3://bucket/reports/small.html").text


def test_keys_are_what_prefect_takes_whatever_a_recipe_is_called():
    assert artifacts.key_of("plan", "OLMo2_7B.v1") == "plan-olmo2-7b-v1"


def test_a_server_that_is_away_ends_no_work(monkeypatch):
    def away(*arguments):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", away)
    artifacts.show("small", [artifacts.Shown("plan", "", "")])
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        artifacts.show("small", [artifacts.Shown("plan", "", "")])


def test_a_secret_is_told_by_its_name(monkeypatch):
    told = []
    monkeypatch.setenv("LAB_SECRET", "planted-3f9c1e77")
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *arguments: told.extend(arguments))
    artifacts.show("small", [artifacts.Shown("plan", "in s3://planted-3f9c1e77@lab", "read planted-3f9c1e77")])
    assert told == ["read ${LAB_SECRET}", "plan-small", "in s3://${LAB_SECRET}@lab"]
