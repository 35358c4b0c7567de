"""Who hears of progress: the terminal, a log file, Prefect."""

import io
import logging

import pytest
from rich.console import Console

from flows import telling
from flows.terminal import Terminal
from tasks.progress import Progress


def of(name, seconds, done=0):
    return Progress("score", name, done, 9, "shards", done / 9, seconds)


def test_without_a_terminal_there_is_a_line_every_half_minute():
    out = io.StringIO()
    with Terminal(Console(file=out, width=200)) as terminal:
        for seconds in range(70):
            terminal.progress(of("[red]", seconds, 3))
        terminal.line("score a made")
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == ["score [red]: 3 of 9 shards"] * 2 + ["score a made"]


def test_a_terminal_shows_a_bar_while_work_runs_and_takes_it_away():
    out = io.StringIO()
    with Terminal(Console(file=out, width=140, force_terminal=True)) as terminal:
        terminal.progress(of("a", 1, 3))
        assert "3 of 9 shards" in out.getvalue() and "33%" in out.getvalue()
        terminal.line("score a made")
        shown = len(out.getvalue())
        assert out.getvalue().endswith("score a made\n")
    assert len(out.getvalue()) == shown


def test_a_narrow_terminal_shows_the_time_left_in_full():
    out = io.StringIO()
    with Terminal(Console(file=out, width=80, force_terminal=True)) as terminal:
        terminal.progress(Progress("ingest", "multilingual_web", 3, 12, "shards", 0.25, 100, documents=120_400, bytes=3_400_000_000))
    assert "ingest multilingual_web" in out.getvalue() and "3 of 12 shards, 34 MB/s, 5m 00s left" in out.getvalue()


@pytest.fixture
def prefect(monkeypatch):
    """What reaches Prefect: artifacts made and updated, and lines of its log."""
    heard = []
    monkeypatch.setattr(telling, "create_progress_artifact", lambda percent, key, text: heard.append((percent, key)) or "id")
    monkeypatch.setattr(telling, "update_progress_artifact", lambda bar, percent, text: heard.append((percent, bar)))
    monkeypatch.setattr(telling, "get_run_logger", lambda: type("Log", (), {"info": staticmethod(heard.append)}))
    return heard


def test_prefect_gets_one_artifact_of_a_long_step_and_a_line_now_and_then(prefect):
    watch = telling.Watching()
    for seconds in range(4):
        watch(of("short", seconds, 9))
    assert prefect == []
    for seconds in range(34):
        watch(of("web: FineWeb", seconds, seconds // 5))
    watch(of("web: FineWeb", 34, 9))
    artifacts = [entry for entry in prefect if isinstance(entry, tuple)]
    assert artifacts[0] == (11.1, "progress-score-web-fineweb")
    assert {bar for _, bar in artifacts[1:]} == {"id"} and artifacts[-1] == (100.0, "id") and len(artifacts) == 7
    assert [entry for entry in prefect if isinstance(entry, str)] == ["score web: FineWeb: 6 of 9 shards, 15s left"]


def test_a_prefect_server_that_is_away_ends_no_work(prefect, monkeypatch):
    def away(*_):
        raise telling.httpx.ConnectError("away")

    monkeypatch.setattr(telling, "create_progress_artifact", away)
    watch = telling.Watching()
    for seconds in range(12):
        watch(of("web", seconds, 1))


def test_what_the_code_below_logs_is_told_to_listeners_while_a_run_goes_on(monkeypatch):
    told = []
    monkeypatch.setattr(telling, "listeners", [told.append])
    below = logging.getLogger("tasks.launch")
    with telling.lines_from_below():
        below.warning("n1 is cordoned; %s goes elsewhere", "the job")
        below.info("and on")
    below.warning("not told")
    assert told == ["n1 is cordoned; the job goes elsewhere", "and on"]
