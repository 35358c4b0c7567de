import dataclasses
import json
import math
import random
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tasks.errors import UserError
from tasks.measure import Hits, Measured
from tasks.readable import compact, duration, percent, size
from tasks.report_charts import BarRow, Line, Spot, bar_plot, line_chart, log_ticks, scatter, ticks
from tasks.report_data import (
    Annotation,
    Artifact,
    Categories,
    Classifier,
    Cut,
    EvaluationInside,
    Example,
    FileEntry,
    FoundInstance,
    Histogram,
    Loss,
    Mix,
    MixRow,
    Place,
    ReportData,
    SourceFlow,
    SourceScores,
    Stage,
)
from tasks.report_data_training import Checkpoint, MicroAnneal, Score, TaskScore, TokenizerRow, TrainedFor, TrainingRun
from tasks.report_lineage import lineage
from tasks.report_page import render

EVIL = "</script><script>alert('x')</script><img src=\"http://evil.example/x.png\">&amp;"
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """What a browser would see: elements with attributes, the text of each section, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.scripts: list[str] = []
        self.section = ""
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data
            self.sections[self.section] = self.sections.get(self.section, "") + data


def full_data() -> ReportData:
    scores = {"all": Score(2.0, 4.0), "web": Score(1.5)}
    steps = [
        {"step": n, "tokens": 64 * n, "loss": 5 - n / 50, "grad_norm": 1.0, "learning_rate": 1e-3, "masked_instances": n % 2}
        for n in range(1, 101)
    ]
    ducks = FoundInstance("1", "Janet’s ducks lay 16 eggs per day.", 0.987, "programs", "p1", 0.9)
    return ReportData(
        run="first run",
        recipe_name="demo.yaml",
        created="2026-11-24",
        machine="2 cores",
        versions={"torch": "2.13.0"},
        seconds=3725,
        notices=["star counts are synthetic"],
        model_name="tiny",
        model_parameters=1_250_000,
        flows=[
            SourceFlow("web", [Stage("ingest", "documents", 100, 97, [Loss("empty text", 2), Loss("bad byte", 1, True)]),
                               Stage("filter", "documents", 97, 50, [Loss("score below 2", 47)])], 5000),
            SourceFlow("posts", [Stage("ingest", "posts", 300, 80, [Loss("no accepted answer", 220)]),
                                 Stage("filter", "documents", 40, 40)], 7000),
        ],
        scores=[SourceScores("web", 90, 50, 2, 9,
                             [Histogram("edu", [0.0, 1.0, 2.0, 3.0], [0, 10, 40], [20, 20, 0], nulls=7)],
                             [Categories("language", ["en", "de"], [50, 0], [30, 9], others=1, other_names=1)],
                             [Cut("edu ≥ 2", "edu", 2.0, ["filters"], 40, 50, True,
                                  [Example("doc-1", 1.98, "just below the line", "edu < 2")], [Example("doc-2", 2.02, "just above")])])],
        files=[FileEntry("web/a.jsonl.zst", 1500, "read", "web", "dclm", 100, 1, "line 7: bad byte"),
               FileEntry("notes.txt", 10, "unmentioned"), FileEntry("web/old.zst", 10, "left out", why="excluded")],
        annotations=[Annotation("topic", "web", "judge-1", 900, {"math": 500, "other": 380}, {"the model refused": 20}, 1_500_000, 900)],
        classifiers=[Classifier("maths", "topic", 800, Measured(0.5, [Hits(0.5, 30, 10, 20, 40), Hits(0.9, 0, 0, 50, 50)], 0.25))],
        mixes=[Mix("anneal mix", [MixRow("web", 752_000_000, 24_290_000, 100), MixRow("posts", 1_000_000, 4_000_000, 40, 4)], ["a"])],
        contamination=[
            Place("programs", "source", 13, 1259, {"gsm8k": EvaluationInside(1319, 660, 661, 659, 659, [ducks], 4, 5),
                                                   "arc": EvaluationInside(869, 0, 0, 0, 0)}),
            Place("books", "source", 13, 5, {"gsm8k": EvaluationInside(1319, 0, 0, 0, 0), "arc": EvaluationInside(869, 0, 0, 0, 0)}),
            Place("mix anneal", "mix", 13, 900, {"gsm8k": EvaluationInside(1319, 1, 2, 3, 6, [ducks])}, 7, ["maths"]),
        ],
        runs=[TrainingRun.from_metrics("pretrain", "pretrain", steps, "pre"),
              TrainingRun.from_metrics("a", "anneal", steps, "anneal mix", 6400),
              TrainingRun.from_metrics("small", "micro-anneal", steps)],
        micro_anneals=[MicroAnneal("base", scores, baseline=True),
                       MicroAnneal("2x maths", {"all": Score(1.9), "web": Score(1.6)}, "copies", 0.493, 798_000_000)],
        checkpoints=[Checkpoint("unigram", "baseline", {"all": Score(4.0)}), Checkpoint("p", "pretrained", scores),
                     Checkpoint("a1", "ingredient", {"all": Score(1.9)}), Checkpoint("a2", "ingredient", {"all": Score(1.8)}),
                     Checkpoint("mean", "soup", {"all": Score(1.7)})],
        tasks=[TaskScore("p", "arc_easy", "development", "accuracy", 0.25, 0.0123, 570, "cf", {"cf": 0.25, "mcf": 0.2}, 1.234),
               TaskScore("mean", "arc_easy", "development", "accuracy", 0.317, 0.0204, 570, "mcf", {"cf": 0.3, "mcf": 0.317}, 1.1, 7),
               TaskScore("mean", "gsm8k", "held_out", "exact_match", 0.023, None, 1)],
        tokenizers=[TokenizerRow("cl100k", 100_352, 10, 4000, 1010, 5, 960, 3802, 1_485_000_000, 8.9e15, {"all": Score(1.0)}, {"csqa": 0.3}),
                    TokenizerRow("olmo-1", 50_304, 10, 4000, 1110, 5, 960, 3460, 1_280_000_000, 8.1e15, {"all": Score(1.1)}, {"csqa": 0.32})],
        compute=[TrainedFor("p", "pretraining", 3_900_000, 1.23456e17, 1.2e17, 2.0, {"arc_easy": 0.25, "csqa": 0.35}, 0.3),
                 TrainedFor("mean", "soup", 4_200_000, 1.33e17, 1.3e17, 1.7, {"arc_easy": 0.317}, 0.317),
                 TrainedFor("old", "anneal", None, None, None, 1.9)],
        artifacts=[Artifact("aaaa1111bbbb", "ingest", "web", 3, 1.5, True),
                   Artifact("cccc2222dddd", "tokenize", "web", 3, 2.5, False, ["aaaa1111bbbb"])],
        recipe="# comment\nname: demo\n",
    )  # fmt: skip


def test_every_section_is_there_and_every_element_is_closed():
    page = Page(render(full_data()))
    assert page.open == []
    names = [
        "documents",
        "scores",
        "classifiers",
        "files",
        "mixes",
        "contamination",
        "training",
        "micro-anneals",
        "soup",
        "tasks",
        "tokenizers",
        "compute",
        "lineage",
        "recipe",
    ]
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == names
    assert "nothing" not in page.text.lower()
    expected = {
        "": ["first run", "demo.yaml", "2 cores", "2.13.0", "1h 02m", "star counts are synthetic", "1.25M", "12k"],
        "documents": ["empty text", "no accepted answer", "score below 2", "quarantined: bad byte", "documents made of them", "5k"],
        "scores": [
            "50 of 90 documents",
            "from 2 of 9 shards",
            "≥ 2: 44.4 % pass",
            "7 documents without a value",
            "filters: 40 of 90",
            "1.98",
            "doc-1",
            "just below the line",
            "edu < 2",
            "doc-2",
            "just above",
            "selected",
            "de",
        ],
        "classifiers": [
            "judge-1",
            "math 500, other 380",
            "the model refused: 20",
            "1.5M",
            "800 documents of topic",
            "100 others",
            "0.250",
            "0.750",
            "0.600",
            "0.667",
            "–",
        ],
        "files": ["web/a.jsonl.zst", "1.5 kB", "line 7: bad byte", "notes.txt", "1 that nobody mentions", "excluded"],
        "mixes": ["anneal mix", "752M", "3.23", "400", "85.86", "4×", "28.3M"],
        "contamination": [
            "gsm8k",
            "660 → 4",
            "661 touched",
            "mix anneal",
            "arc",
            "Janet’s ducks",
            "98.7 %",
            "maths was not looked at",
            "7 documents",
            "books",
        ],
        "tokenizers": ["100,352", "50,304", "4.000", "3.636", "1.1000", "+0.1000", "+2.0", "8.9e+15", "olmo-1"],
        "compute": ["soup", "1.235e+17", "3.9M", "30.0", "31.7", "–", "6 N D"],
        "training": ["pretrain", "anneal", "micro-anneal", "Loss, close to the anneals", "Gradient norm", "Learning rate", "50"],
        "micro-anneals": ["2x maths", "49.3 %", "798M", "1.900", "−0.100", "+0.100", "copies", "n/a"],
        "soup": ["unigram", "a1", "a2", "mean", "1.700 ★", "−15.0 %"],
        "tasks": ["arc_easy", "gsm8k", "held out", "25.0", "±1.2", "31.7", "†", "±2.0", "–", "2.3", "7 of mean's on arc_easy"],
        "lineage": ["ingest", "tokenize", "aaaa1111", "reused", "cccc2222"],
        "recipe": ["# comment", "name", ": demo"],
    }
    for section, texts in expected.items():
        assert [text for text in texts if text not in page.sections[section]] == [], section


def test_a_run_that_did_nothing_has_all_sections_and_says_so():
    page = Page(render(ReportData("empty", "r.yaml", "now")))
    assert sum(tag == "section" for tag, _ in page.elements) == 14
    assert all(len(page.sections[attrs["id"]].strip()) > 20 for tag, attrs in page.elements if tag == "section")


def test_nothing_is_loaded_from_anywhere():
    text = render(full_data())
    for tag, attrs in Page(text).elements:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    assert "http:" not in text and "https:" not in text
    assert "url(" not in text and "@import" not in text


def with_evil_texts(value):
    """The same data with every free text replaced by hostile markup."""
    if dataclasses.is_dataclass(value):
        keep = {"kind", "role", "outcome", "id", "inputs"}
        return dataclasses.replace(
            value, **{f.name: with_evil_texts(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in keep}
        )
    if isinstance(value, list):
        return [with_evil_texts(item) for item in value]
    if isinstance(value, dict):
        return {key if key == "all" else EVIL: with_evil_texts(item) for key, item in value.items()}
    return EVIL if isinstance(value, str) else value


def test_no_text_of_the_data_becomes_markup():
    good, evil = Page(render(full_data())), Page(render(with_evil_texts(full_data())))
    assert evil.open == []
    assert {tag for tag, _ in evil.elements} <= {tag for tag, _ in good.elements}
    assert len(evil.scripts) == len(good.scripts)
    assert not any(name.startswith("on") for _, attrs in evil.elements for name in attrs)
    assert "alert('x')" in evil.text
    data = [json.loads(script) for script in evil.scripts[:-1]]
    assert {line["name"] for chart in data for line in chart["lines"]} == {EVIL}


def test_ids_of_artifacts_are_escaped_too():
    page = Page(str(lineage([Artifact(EVIL, "s"), Artifact("b", "s", inputs=[EVIL])])))
    assert {tag for tag, _ in page.elements} <= {"svg", "path", "g", "rect", "text"}
    assert [attrs["data-from"] for tag, attrs in page.elements if tag == "path"] == [EVIL]


def test_the_page_is_small_even_for_long_runs_and_many_files():
    data = full_data()
    rows = [{"step": n, "tokens": n * 10**6, "loss": 3 + math.sin(n), "grad_norm": 1.0, "learning_rate": 1e-4} for n in range(1, 20_001)]
    data.runs = [TrainingRun.from_metrics(f"run {n}", "pretrain", rows) for n in range(4)]
    data.files = data.files * 200
    assert len(render(data).encode()) < 1_500_000


def test_the_page_stays_small_with_documents_beside_many_cuts():
    data = full_data()
    long = [Example(f"document {n}", n / 7, "一字" * 300, "edu < 2") for n in range(20)]
    cuts = [Cut(f"score{n} ≥ 2", "edu", 2.0, ["filters"], 1, 1, True, long, long) for n in range(6)]
    data.scores = [dataclasses.replace(data.scores[0], source=f"source {n}", cuts=cuts) for n in range(17)]
    text = render(data)
    assert text.count('class="doc"') == 17 * 6 * 40
    assert len(text.encode()) < 5_000_000
    assert "一字" * 50 in text


def bars(text: str) -> list[tuple[str, float, float, float]]:
    """(style, left, width, height) of each bar."""
    found = re.findall(r'<rect class="bar (\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', text)
    return [(style, float(x), float(width), float(height)) for style, x, width, height in found]


def test_a_threshold_stands_between_the_bars_that_it_parts_and_bars_are_as_high_as_counts():
    text = render(full_data())
    ((style0, x0, w0, h0), *_), ((_, x2, _, h2),) = bars(text)[:1], bars(text)[-1:]
    (line,) = re.findall(r'<line class="cut" x1="([\d.]+)"', text)
    assert style0 == "stage1" and x0 + w0 < float(line) <= x2
    assert h2 == pytest.approx(2 * h0, rel=0.01)  # 40 documents and 20


def test_a_bar_that_towers_over_the_others_is_cut_off_and_told_in_numbers():
    data = full_data()
    data.scores[0].histograms[0] = Histogram("edu", [0.0, 1.0, 2.0], [12_345, 10], [0, 0])
    text = render(data)
    tower, other = bars(text)
    assert tower[3] < 2 * other[3] and 'class="break"' in text and ">12.3k<" in text


def test_books_that_do_not_balance_are_named():
    data = full_data()
    data.flows[0].stages[0].kept = 96
    page = Page(render(data))
    assert "ingest: 100 documents read, 99 accounted for" in page.sections["documents"]
    assert "ingest kept 96 documents, filter read 97" in page.sections["documents"]
    assert page.sections["documents"].count("✓ balanced") == 2  # the other source, in the table and on its card
    assert full_data().flows[1].faults == []  # posts become documents: another unit


def test_waterfall_bars_stand_where_the_counts_say():
    text = render(full_data())
    falls = re.findall(r'<i class="(\w+)" style="left:([\d.]+)%;width:([\d.]+)%"', text)
    assert falls[:6] == [
        ("whole", "0.000", "100.000"),
        ("bad", "99.000", "1.000"),
        ("stage0", "97.000", "2.000"),
        ("stage1", "50.000", "47.000"),
        ("kept", "0.000", "50.000"),
        ("whole", "0.000", "100.000"),
    ]


def test_report_data_survives_json():
    data = full_data()
    again = ReportData.from_dict(json.loads(json.dumps(data.to_dict())))
    assert again == data
    assert render(again) == render(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flwos": []}, "report has an unknown key 'flwos'; did you mean 'flows'?"),
        ({"flows": [{"source": "web"}]}, r"report.flows\[0\] lacks the key 'stages'"),
        (
            {"files": [{"path": "a", "bytes": 1, "outcome": "gone"}]},
            r"report.files\[0\].outcome is 'gone'; it must be one of read, left out",
        ),
        ({"checkpoints": [3]}, r"report.checkpoints\[0\] must be a JSON object, not int"),
    ],
)
def test_a_wrong_key_is_named(change, message):
    with pytest.raises(UserError, match=message):
        ReportData.from_dict({"run": "r", "recipe_name": "n", "created": "c", **change})


def test_values_that_are_not_finite_are_left_out_of_the_curves_and_counted_as_spikes():
    rows = [{"step": n, "tokens": n, "loss": math.nan if n == 3 else 2.0, "grad_norm": math.inf, "learning_rate": 0.1} for n in range(1, 6)]
    run = TrainingRun.from_metrics("r", "pretrain", rows)
    assert run.loss == [2.0, 2.0, None, 2.0, 2.0]
    page = Page(render(ReportData("r", "n", "c", runs=[run])))
    assert "20.000" in page.sections["training"] and "100.000" in page.sections["training"]
    assert len(json.loads(page.scripts[0])["lines"][0]["p"]) == 4


def test_scores_along_training_are_a_chart_each_with_runs_behind_what_they_started_from():
    rows = [{"step": n, "tokens": 64 * n, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1} for n in range(1, 5)]
    rows[1] |= {"held_out/all/bits_per_byte": 2.5, "held_out/web/bits_per_byte": 2.0, "tasks/arc_easy/bits_per_byte": 1.5}
    rows[3] |= {"held_out/all/bits_per_byte": 2.25, "tasks/arc_easy/bits_per_byte": math.nan}
    runs = [TrainingRun.from_metrics("first", "pretrain", rows), TrainingRun.from_metrics("then", "anneal", rows, "", 256)]
    assert [run.name for run in runs] == ["first", "then"]
    page = Page(render(ReportData("r", "n", "c", runs=runs)))
    assert "Scores along training" in page.sections["training"] and "arc_easy" in page.sections["training"]
    found = [[line["p"] for line in json.loads(script)["lines"]] for script in page.scripts[-3:-1]]
    assert found == [[[[128, 2.5], [256, 2.25]], [[384, 2.5], [512, 2.25]]], [[[128, 1.5]], [[384, 1.5]]]]
    assert "Scores along training" not in Page(render(ReportData("r", "n", "c"))).text


def test_a_thinned_curve_keeps_its_spike_and_its_ends():
    points = [(float(n), 1.0) for n in range(10_000)]
    points[4321] = (4321.0, 50.0)
    data = json.loads(re.search(r"<script[^>]*>(.*)</script>", str(line_chart("t", [Line("a", points, 0)], "tokens"))).group(1))
    shown = data["lines"][0]["p"]
    assert len(shown) <= 500 and [4321, 50] in shown and shown[0] == [0, 1] and shown[-1] == [9999, 1]
    assert shown == sorted(shown)


def boxes(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="(-?[\d.]+)" width="152"', svg)]


def test_lineage_runs_left_to_right_and_no_two_nodes_overlap():
    rng = random.Random(3)
    artifacts = [
        Artifact(f"id{n:03d}", f"step{n % 7}", inputs=[f"id{m:03d}" for m in range(n) if rng.random() < 2 / (n + 1)]) for n in range(60)
    ]
    svg = str(lineage(artifacts))
    places = dict(zip(re.findall(r'data-id="(\w+)"', svg), boxes(svg), strict=True))
    assert len(places) == 60
    for artifact in artifacts:
        for name in artifact.inputs:
            assert places[name][0] < places[artifact.id][0]
    by_column: dict[float, list[float]] = {}
    for x, y in places.values():
        by_column.setdefault(x, []).append(y)
    for column in by_column.values():
        column.sort()
        assert all(below - above >= 46 for above, below in pairwise(column))


def test_lineage_draws_every_way_and_no_edge_that_another_way_makes_needless():
    rng = random.Random(4)
    artifacts = [Artifact(f"id{n:03d}", "s", inputs=[f"id{m:03d}" for m in range(n) if rng.random() < 3 / (n + 1)]) for n in range(40)]
    edges = re.findall(r'data-from="(\w+)" data-to="(\w+)"', str(lineage(artifacts)))

    def behind(name, pairs):
        direct = {start for start, end in pairs if end == name}
        return direct.union(*(behind(start, pairs) for start in direct))

    pairs = [(name, artifact.id) for artifact in artifacts for name in artifact.inputs]
    assert len(edges) < len(pairs)
    for artifact in artifacts:
        assert behind(artifact.id, edges) == behind(artifact.id, pairs)
    for edge in edges:
        assert edge[0] not in behind(edge[1], [other for other in edges if other != edge])


def test_lineage_in_a_circle_is_refused():
    with pytest.raises(UserError, match="circle"):
        lineage([Artifact("a", "s", inputs=["b"]), Artifact("b", "s", inputs=["a"])])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (752e9, "752B"),
        (1_260_000, "1.26M"),
        (999_700, "1M"),
        (483, "483"),
        (0.0312, "0.0312"),
        (4e-4, "4e-4"),
        (-1500, "-1.5k"),
        (None, "–"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(value) == text


def test_units_of_time_size_and_share():
    assert [duration(s) for s in (0.5, 42, 185, 7500, 273_600)] == ["0.5s", "42s", "3m 05s", "2h 05m", "3d 4h"]
    assert [size(b) for b in (12, 1500, 101e9)] == ["12 B", "1.5 kB", "101 GB"]
    assert [percent(s) for s in (0, 0.00001, 0.00126, 0.25, 4.0)] == ["0 %", "<0.01 %", "0.13 %", "25 %", "400 %"]


def test_ticks_are_round_and_inside():
    assert ticks(0.3, 9.7, 5) == [2, 4, 6, 8]
    assert ticks(-0.09, 0.02, 6) == [-0.08, -0.06, -0.04, -0.02, 0.0, 0.02]
    assert log_ticks(-0.2, 1.2) == [1, 2, 5, 10]
    assert log_ticks(-6.0, 6.0) == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


def test_a_scatter_plot_is_logarithmic_along_x_and_has_every_point_with_its_name():
    spots = [Spot(name, "soup", 10.0**power, y, 0) for name, power, y in (("a", 15, 2.0), ("b", 17, 1.0), ("c", 16, 1.5))]
    page = Page(str(scatter("Score", spots, "FLOPs")))
    dots = [attrs for tag, attrs in page.elements if tag == "circle"]
    x, y = ([float(dot[side]) for dot in dots] for side in ("cx", "cy"))
    assert x[2] - x[0] == pytest.approx(x[1] - x[2], abs=0.11) and x[0] < x[2] < x[1]
    assert y[2] - y[0] == pytest.approx(y[1] - y[2], abs=0.11) and y[0] < y[2] < y[1]  # down the screen
    assert [dot["data-tip"].split("\n")[0] for dot in dots] == ["a (soup)", "b (soup)", "c (soup)"]
    alone = Page(str(scatter("Score", spots[:1], "FLOPs")))
    assert alone.open == [] and any(tag == "circle" for tag, _ in alone.elements)


@pytest.mark.parametrize(("higher", "styles"), [(False, ["worse", "better"]), (True, ["better", "worse"])])
def test_a_bar_is_green_where_its_change_is_for_the_better(higher, styles):
    page = Page(str(bar_plot("Change", [BarRow("up", 1.0), BarRow("down", -1.0, (-2.0, 0.5))], higher_is_better=higher)))
    assert [attrs["class"] for tag, attrs in page.elements if tag == "rect"] == [f"shift {style}" for style in styles]
