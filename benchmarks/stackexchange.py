"""How much memory the ingestion of a Stack Exchange dump takes: bytes a post, and what follows for a site of 60 million posts.

Makes dumps of two sizes (real `.7z` archives of made-up posts, the same each time), ingests each in a process of its own, and reads the
process's peak from the kernel, once for each of the two passes: what the first holds of every post grows with the dump, while the second,
which writes Parquet, has a peak of hundreds of megabytes at any size that would hide it. The slope of a pass's peak between the sizes is
its bytes a post; the projection is the larger of the two passes' at 60 million.

    python -m benchmarks.stackexchange                         # 200,000 and 2,000,000 posts, 3 rounds
    python -m benchmarks.stackexchange --posts 20000 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

LIMIT_GIB = 2.0
LARGEST_SITE_POSTS = 60_000_000
WORDS = (
    "the",
    "of",
    "to",
    "in",
    "value",
    "index",
    "list",
    "file",
    "type",
    "class",
    "function",
    "when",
    "return",
    "which",
    "error",
    "query",
    "table",
    "loop",
)


def bodies(seed: int) -> list[str]:
    """A pool of bodies as XML attributes: paragraphs, code, lists and formulas; about 900 bytes each."""
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(8, 25))).capitalize() + "."

    pool = []
    for _ in range(2000):
        parts = [f"<p>{' '.join(sentence() for _ in range(3))}</p>" for _ in range(draw.randint(1, 3))]
        parts += [f"<pre><code>def {draw.choice(WORDS)}_{draw.randint(0, 999)}(x):\n    return x &lt; {draw.random()}\n</code></pre>"]
        parts += [f"<ul><li>{sentence()}</li><li>see <a href='u'>{draw.choice(WORDS)}</a>: $x_{draw.randint(1, 9)}$</li></ul>"]
        pool.append(quoteattr("\n".join(parts), {"\n": "&#xA;"}))
    return pool


def rows(posts: int, seed: int) -> Iterator[str]:
    """Rows in the order of their ids, as in a real dump: an answer comes a while after its question, two in five questions qualify."""
    draw = random.Random(seed)
    pool = bodies(seed)
    attributes = 'CreationDate="2020-01-02T03:04:05.678" OwnerUserId="{}" ContentLicense="CC BY-SA 4.0"'
    due: dict[int, int] = {}
    for id in range(1, posts + 1):
        question = due.pop(id, None)
        author = attributes.format(draw.randint(1, 9_999_999))
        if question is None:
            accepted = ""
            for number in range(draw.choice((1, 1, 2, 2, 2))):
                at = id + draw.randint(1, 5_000)
                while at in due:
                    at += 1
                due[at] = id
                if number == 0 and draw.random() < 0.8:
                    accepted = f'AcceptedAnswerId="{at}" '
            score = draw.choice((-1, 0, 1, 3, 7))
            kind = f'PostTypeId="1" {accepted}Score="{score}" Title="How to {draw.choice(WORDS)}?" Tags="&lt;python&gt;&lt;list&gt;"'
        else:
            kind = f'PostTypeId="2" ParentId="{question}" Score="{draw.choice((0, 2, 5, 9))}"'
        yield f'  <row Id="{id}" {kind} Body={draw.choice(pool)} {author} />\n'


def write_dump(path: Path, posts: int, seed: int = 0) -> int:
    """A `.7z` with a Posts.xml of so many posts; returns the bytes of Posts.xml."""
    import py7zr

    xml = path.with_suffix(".xml")
    with xml.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        stream.writelines(rows(posts, seed))
        stream.write("</posts>")
    size = xml.stat().st_size
    with py7zr.SevenZipFile(path, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]) as archive:
        archive.write(xml, "Posts.xml")
    xml.unlink()
    return size


def peak_bytes() -> int:
    """This process's peak of resident memory since the last call, as the kernel counts it (getrusage's would begin with the parent's)."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


def ingest(path: Path, answers: str) -> dict[str, float]:
    """The ingest step on an archive, in this process; the peaks of its passes in bytes."""
    from tasks.ingest import run, task
    from tasks.shards import Shard
    from tasks.sources import RawFile, SourceConfig, stackexchange

    peaks = []
    judge = stackexchange.judge

    def end_of_first_pass(census: stackexchange.Census) -> object:
        settled = judge(census)
        peaks.append(peak_bytes())
        return settled

    setattr(stackexchange, "judge", end_of_first_pass)  # noqa: B010 - a probe, not a call that types know
    raw = RawFile(str(path), path.name, path.stat().st_size, "0" * 64)
    config = SourceConfig.model_validate({"format": "stackexchange", "paths": [str(path)], "answers": answers})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        books = run(Shard(task("se", config, raw).config, {"raw": [raw]}, Path(folder)))
        seconds = time.perf_counter() - started
    peaks.append(peak_bytes())
    return {"first": peaks[0], "second": peaks[1], "seconds": seconds, "posts": books.read, "documents": books.counts["documents"]}


def measure(path: Path, answers: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.stackexchange", "--ingest", str(path), "--answers", answers]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def at_largest_site(small: float, large: float, sizes: tuple[int, int]) -> float:
    """The peak of a pass at 60 million posts, from its peaks at two sizes."""
    return large + (large - small) / (sizes[1] - sizes[0]) * (LARGEST_SITE_POSTS - sizes[1])


def spread(values: list[float], unit: str) -> dict[str, object]:
    middle = sorted(values)[len(values) // 2]
    return {"value": round(middle, 3), "low": round(min(values), 3), "high": round(max(values), 3), "unit": unit, "rounds": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=2_000_000, help="posts of the larger dump; the smaller one has a tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", choices=["accepted", "all"], default="accepted")
    parser.add_argument(
        "--folder", type=Path, help="where the dumps are written, 1.3 KB a post for a moment; a temporary folder where not given"
    )
    parser.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ingest:
        print(json.dumps(ingest(arguments.ingest, arguments.answers)))
        return
    sizes = (arguments.posts // 10, arguments.posts)
    slopes: list[float] = []
    projected: list[float] = []
    print(
        f"{'posts':>10} {'documents':>10} {'XML MB':>8} {'.7z MB':>8} {'1st MiB':>8} {'2nd MiB':>8} {'posts/s':>9} {'XML MB/s':>9}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        dumps = {posts: Path(folder) / f"size{posts}.stackexchange.com.7z" for posts in sizes}
        xml_bytes = {posts: write_dump(path, posts) for posts, path in dumps.items()}
        for _ in range(arguments.rounds):
            peaks: dict[str, list[float]] = {"first": [], "second": []}
            for posts, path in dumps.items():
                found = measure(path, arguments.answers)
                assert found["posts"] == posts, "a post is not in the books"
                for name, values in peaks.items():
                    values.append(found[name])
                print(
                    f"{posts:>10,} {found['documents']:>10,.0f} {xml_bytes[posts] / 1e6:>8.1f} {path.stat().st_size / 1e6:>8.1f} "
                    f"{found['first'] / 2**20:>8.1f} {found['second'] / 2**20:>8.1f} {posts / found['seconds']:>9,.0f} {xml_bytes[posts] / 1e6 / found['seconds']:>9.1f}",
                    flush=True,
                )
            slopes.append(max((large - small) / (sizes[1] - sizes[0]) for small, large in peaks.values()))
            projected.append(max(at_largest_site(small, large, sizes) for small, large in peaks.values()) / 2**30)
    results = {
        "stackexchange_bytes_per_post": spread(slopes, "bytes"),
        "stackexchange_peak_60m_posts": spread(projected, "GiB"),
    }
    verdict = "within" if max(projected) <= LIMIT_GIB else "OVER"
    print(
        f"{max(slopes):.1f} bytes a post at most; 60 million posts: {max(projected):.2f} GiB at most, {verdict} the limit of {LIMIT_GIB:.0f} GiB"
    )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
