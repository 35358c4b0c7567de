"""How well, and how fast, each extractor finds the main text of real pages.

    OLMOFLOW_DATA=/path/to/samples python -m benchmarks.extraction [FOLDER]

The truth is trafilatura's own evaluation set: for each page strings that belong to the main text and strings that do not (menus, teasers,
cookie notes). Precision: of the strings found, those that belong. Recall: of those that belong, the found. One string counts as one. The
truth was made by trafilatura's author, for a library that has been tuned on it since; read the difference with that in mind.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import get_args

from tasks.sources import Bad, Dropped, RawFile, SourceConfig
from tasks.sources.extraction import Extractor, decode, extract
from tasks.sources.sandbox import Sandbox
from tasks.sources.warc import read
from tasks.sources.warc_records import records

PAGES = "web/warc/trafilatura_eval_pages.warc.gz"
TRUTH = "web/trafilatura_evaldata.json.gz"


def main(folder: Path) -> int:
    if not (folder / PAGES).is_file() or not (folder / TRUTH).is_file():
        print(f"skipped: {folder} has no {PAGES} and {TRUTH}; give the folder of samples, or set OLMOFLOW_DATA")
        return 0
    truth = json.loads(gzip.decompress((folder / TRUTH).read_bytes()))
    pages = {url: page for url, page in _pages(folder / PAGES).items() if url in truth}
    megabytes = sum(map(len, pages.values())) / 1e6
    print(f"{len(pages)} pages, {megabytes:.1f} MB of HTML\n")
    print(
        "extractor      precision  recall     F1   MB/s   empty   MB/s as a source, with WARC and child process (MB of HTML a CPU second)"
    )
    results = {}
    for extractor in get_args(Extractor):
        row = _quality(extractor, pages, truth) | {"source_mb_per_second": round(megabytes / _source_seconds(extractor, folder / PAGES), 1)}
        results[extractor] = row
        cells = "{precision:10.3f} {recall:7.3f} {f1:6.3f} {mb_per_second:6.1f} {empty:7} {source_mb_per_second:6.1f}"
        print(f"{extractor:13} {cells.format(**row)}")
    cost = _sandbox_milliseconds(pages)
    print(f"\nthe sandbox costs {cost:.2f} ms a page")
    print(json.dumps({"claim": "extraction", "pages": len(pages), "extractors": results, "sandbox_ms_per_page": round(cost, 2)}))
    return 0


def _cpu_seconds() -> float:
    """Of this process and of the children that it has waited for: a busy machine sways them less than the clock on the wall."""
    return sum(os.times()[:4])


def _pages(path: Path) -> dict[str, bytes]:
    """The HTML of each page by its URL; the pages of the file are whole, uncompressed HTTP responses."""
    found = {}
    for item in records(_raw(path)):
        assert not isinstance(item, Bad), item.cause
        header, _, http = item.content.partition(b"\r\n\r\n")
        urls = [line for line in header.split(b"\r\n") if line.lower().startswith(b"warc-target-uri:")]
        if urls:
            found[urls[0].split(b":", 1)[1].strip().decode()] = http.partition(b"\r\n\r\n")[2]
    return found


def _raw(path: Path) -> RawFile:
    return RawFile(str(path), path.name, path.stat().st_size, "0" * 64)


def _quality(extractor: Extractor, pages: dict[str, bytes], truth: dict[str, dict[str, list[str]]]) -> dict[str, float]:
    extract(extractor, "<p>A first page, so that imports take no part in the measurement.</p>")
    right = missed = wrong = empty = 0
    seconds = 0.0
    for url, page in pages.items():
        began = _cpu_seconds()
        text = extract(extractor, decode(page, None)[0])
        seconds += _cpu_seconds() - began
        empty += not text
        found = sum(part in text for part in truth[url]["with"])
        right += found
        missed += len(truth[url]["with"]) - found
        wrong += sum(part in text for part in truth[url]["without"])
    precision, recall = right / (right + wrong), right / (right + missed)
    speed = sum(map(len, pages.values())) / 1e6 / seconds
    return {
        "precision": round(precision, 3),
        "recall": round(recall, 3),
        "f1": round(2 * precision * recall / (precision + recall), 3),
        "mb_per_second": round(speed, 1),
        "empty": empty,
    }


def _source_seconds(extractor: Extractor, path: Path) -> float:
    """CPU seconds to read the file as a source, as the ingest step does."""
    config = SourceConfig.model_validate({"format": "warc", "paths": [str(path)], "warc": {"extractor": extractor}})
    began = _cpu_seconds()
    kept = sum(not isinstance(item, Bad | Dropped) for item in read(_raw(path), config))
    assert kept > 0
    return _cpu_seconds() - began


def _sandbox_milliseconds(pages: dict[str, bytes]) -> float:
    """Milliseconds on both sides to send a page to the child process and hear back; its start, once a file, is left out."""
    rounds = (1, 6)
    spent = []
    for count in rounds:
        began = _cpu_seconds()
        with Sandbox(len, 60, (b"",)) as sandbox:
            for page in [*pages.values()] * count:
                sandbox.call(page)
        spent.append(_cpu_seconds() - began)
    return (spent[1] - spent[0]) * 1000 / (len(pages) * (rounds[1] - rounds[0]))


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OLMOFLOW_DATA", "")
    sys.exit(main(Path(given or "shared/data")))
