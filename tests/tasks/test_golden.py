"""The output of each step for a fixed input, as a hash of its rows: a change of behaviour asks for a new version of the step.

Keys hash a step's version, not its code. Code that gives other rows under the old version would leave stores in which old and new rows pass
for each other. Where a test here fails, either the change is a fault, or it is meant: then raise the version in the step's `STEP` and put
the new hash beside it below.
"""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from in_process import InProcess

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from tasks.shards import input_files

# (step, name of its artifact) -> (version of the step, hash of the rows)
GOLDEN = {
    ("ingest", "web"): (2, "df5d1ebf5dfaad4e"),
    ("ingest", "papers"): (2, "8a9ef237397734e6"),
    ("ingest", "code"): (2, "7231f8779b6b0f67"),
    ("ingest", "answers"): (2, "54f7ce27076f0119"),
    ("ingest", "rows"): (2, "847b89cd7b1d35c3"),
    ("ingest", "books"): (2, "3a59093b4c44986d"),
    ("signatures", "rows"): (1, "faacf0f5b8397a9e"),
    ("clusters", "rows"): (1, "c0c1ae38e25a8ba8"),
    ("duplicates", "rows"): (1, "61c2764d9bf8a29a"),
    ("score", "code: words"): (1, "cbb4b5c10ebbc962"),
    ("score", "code: lengths"): (1, "a6f457cb7c479493"),
    ("train-scorer", "evaluations"): (1, "d42c558293e1bfdd"),
    ("score", "rows: evaluations"): (1, "d24d06631e856e54"),
    ("contamination", "rows: evaluations"): (1, "17dc7d0804f0f339"),
    ("contamination", "mix scattered: evaluations"): (1, "11597ed2984078ea"),
    ("tokenizer", "bpe"): (1, "cf08207a575c39f3"),
    ("tokenize", "rows"): (1, "3ac8ffd57e672500"),
    ("select", "code"): (1, "27daa80d8d819868"),
    ("mix", "scattered"): (1, "a3a463f9440d1c65"),
    ("mix", "packed"): (1, "7f3b47f2a991f553"),
    ("held-out", "rows"): (1, "1932cf5b0db518d4"),
}
POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" AcceptedAnswerId="2" Score="7" Title="Why does it sum?" Tags="&lt;maths&gt;&lt;sums&gt;" CreationDate="2020-01-02"
       ContentLicense="CC BY-SA 4.0" OwnerUserId="11" Body="&lt;p&gt;Given &lt;code&gt;x + y&lt;/code&gt;, see &lt;a href=&quot;u&quot;&gt;here&lt;/a&gt;:&lt;/p&gt;&lt;pre&gt;&lt;code&gt;for i in x:&#xA;    print(i)&#xA;&lt;/code&gt;&lt;/pre&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="9" CreationDate="2020-01-03" ContentLicense="CC BY-SA 4.0" OwnerUserId="12"
       Body="&lt;ol&gt;&lt;li&gt;First, $a_1$&lt;/li&gt;&lt;li&gt;then &lt;b&gt;second&lt;/b&gt;&lt;/li&gt;&lt;/ol&gt;&lt;blockquote&gt;&lt;p&gt;quoted&lt;/p&gt;&lt;/blockquote&gt;" />
  <row Id="3" PostTypeId="1" Score="1" Title="Unanswered" Body="&lt;p&gt;?&lt;/p&gt;" />
</posts>
"""


def row(number: int) -> dict:
    words = [f"word{(number * step) % 17}" for step in range(1, 30)]
    return {"id": f"r{number}", "text": f"Row {number}: {' '.join(words)}, naïve 日本語 x{number}²."}


def write_raw(folder: Path) -> None:
    for name in ("web", "papers", "code", "ai.stackexchange.com", "rows", "books"):
        (folder / name).mkdir()
    web = [
        {"text": f"Page {i}\n\nwith lines", "url": f"https://a.test/{i}", "metadata": {"WARC-Date": "2024", "WARC-Record-ID": f"<{i}>"}}
        | {"fasttext_oh_eli5_vs_rw_v2_prob": i / 4}
        for i in range(4)
    ]
    lines = "".join(json.dumps(page) + "\n" for page in web)
    (folder / "web" / "0.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    papers = [{"id": str(i), "source": "p", "text": f"Paper {i} \ud800", "added": "a", "metadata": {"year": i}} for i in range(3)]
    (folder / "papers" / "0.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in papers).encode(), mtime=0))
    stars = ["12", "None", "0", "3"]
    code = {
        "id": list("abcd"),
        "content": ["x = 1\n", "y y y y\n", "def f():\n    return 2\n", "z z z z z z z z w"],
        "max_stars_count": stars,
    }
    code |= {"max_stars_repo_name": ["r"] * 4, "max_stars_repo_path": ["p"] * 4}
    pq.write_table(pa.table(code), folder / "code" / "0.parquet")
    (folder / "ai.stackexchange.com" / "Posts.xml").write_text(POSTS)
    (folder / "rows" / "0.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    (folder / "rows" / "1.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(60, 90)))
    instances = [row(3)["text"], "short: ROW 5: word5 word10!", f"nothing of {row(7)['text'][:120]}", "Ünïcode ﬁve １２ x² of rows"]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in instances))
    book = "front\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nIt was.\r\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence"
    (folder / "books" / "0.txt").write_text(book)


def recipe(folder: Path) -> Recipe:
    mix = {"sources": {"rows": {"repeat": 0.6}, "code": {"repeat": 2}}}
    sources = {
        "web": {"format": "dclm", "paths": [f"{folder}/web"]},
        "papers": {"format": "dolma", "paths": [f"{folder}/papers"]},
        "code": {
            "format": "starcoder",
            "paths": [f"{folder}/code"],
            "scores": {"words": {}, "lengths": {}},
            "filters": [{"column": "stars", "min": 1, "null": "keep"}, {"column": "top_word_share", "max": 0.8}],
        },
        "answers": {"format": "stackexchange", "paths": [f"{folder}/ai.stackexchange.com"]},
        "rows": {
            "format": "jsonl",
            "paths": [f"{folder}/rows"],
            "deduplicate": {"minhash": {"ngram": 2}},
            "scores": {"evaluations": {}},
        },
        "books": {"format": "text", "paths": [f"{folder}/books"]},
    }
    evaluation = {"format": "jsonl", "paths": [f"{folder}/evaluation.jsonl"]}
    scorers = {"words": {"scorer": {"type": "word_frequency"}}, "lengths": {"scorer": {"type": "length"}}}
    scorers["evaluations"] = {
        "scorer": {"type": "contamination"},
        "train": {"type": "contamination", "ngram": 8, "evaluations": {"some": [evaluation]}},
    }
    return Recipe.model_validate(
        {
            "name": "golden",
            "store": str(folder / "store"),
            "sources": sources,
            "scorers": scorers,
            "tokenizer": {"kind": "bpe", "vocab_size": 400, "train_on": [{"format": "jsonl", "paths": [f"{folder}/rows/0.jsonl"]}]},
            "sequence_length": 32,
            "held_out": {"share": 0.1, "tokens_per_source": 200},
            "mixes": {"scattered": mix, "packed": {**mix, "seed": 3, "pack": True}},
        }
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    write_raw(folder)
    config = recipe(folder)
    runner = make_runner(config)
    runner.engine = InProcess()
    made = Pipeline(config, runner)
    made.curate()
    made.mix_all()
    made.held_out("rows")
    return made


def rows_of(path: Path):
    """What a file says, whatever the library that wrote it: a newer Parquet or gzip has other bytes for the same rows."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return {name: [str(table.schema.field(name).type), table.column(name).to_pylist()] for name in table.column_names}
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes()).decode()
    if path.name == "mix.json":  # the files in it are named by their shards' keys, which hash the versions of the steps before
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "files"}
    if path.name in ("extents.npy", "hashes.npy", "offsets.npy", "postings.npy"):  # token files have no header
        return np.load(path).tolist()
    return path.read_bytes().hex()


EXACT = {"tokenizer": ["ranks.tiktoken"]}  # beside the ranks stand files in another library's form


def hash_of(pipeline: Pipeline, artifact) -> str:
    shards = [input_files(pipeline.store, ref) for ref in artifact.refs]
    rows = [{name: rows_of(files[name]) for name in EXACT.get(artifact.step, sorted(files))} for files in shards]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("step, name", GOLDEN)
def test_a_step_gives_the_rows_that_its_version_stands_for(pipeline, step, name):
    (artifact,) = [made for made in pipeline.runner.artifacts.values() if (made.step, made.name) == (step, name)]
    manifest = json.loads(pipeline.store.read_text(f"artifacts/{step}/{artifact.id}.json"))
    found = (manifest["version"], hash_of(pipeline, artifact))
    assert found == GOLDEN[step, name], "raise the step's version, and put the new rows' hash here"


def test_every_step_that_is_exact_has_a_golden_output(pipeline):
    """Steps that train or judge with floating point (fastText, neural scorers, training, soups, evaluation) differ between machines."""
    assert {artifact.step for artifact in pipeline.runner.artifacts.values()} == {step for step, _ in GOLDEN}
