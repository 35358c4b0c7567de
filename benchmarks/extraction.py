"""How well, and how fast, each extractor finds the main text of real pages: `python -m benchmarks.extraction FOLDER`.

FOLDER (or OLMOFLOW_DATA) holds the samples. The truth is trafilatura's own evaluation set: for each page strings that belong to the main text
and strings that do not (menus, teasers, cookie notes). Precision: of the strings found, those that belong. Recall: of those that belong, the
found. One string counts as one. The truth was made by trafilatura's author, for a library that has been tuned on it since: read the difference
with that in mind. Speeds are MB of HTML a CPU second, in which a busy machine shows less than on the wall's clock.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import get_args

from benchmarks import measure
from tasks.sources import Bad, Dropped, RawFile, SourceConfig
from tasks.sources.extraction import Extractor, decode, extract
from tasks.sources.sandbox import Sandbox
from tasks.sources.warc import read
from tasks.sources.warc_records import records

PAGES = "web/warc/trafilatura_eval_pages.warc.gz"
TRUTH = "web/trafilatura_evaldata.json.gz"


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


def quality(texts: dict[str, str], truth: dict[str, dict[str, list[str]]]) -> dict[str, float]:
    """Precision, recall and F1 of extracted texts by URL."""
    right = sum(part in text for url, text in texts.items() for part in truth[url]["with"])
    wrong = sum(part in text for url, text in texts.items() for part in truth[url]["without"])
    precision, recall = right / (right + wrong), right / sum(len(truth[url]["with"]) for url in texts)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}


def _extracted(extractor: Extractor, pages: dict[str, bytes]) -> tuple[dict[str, str], float]:
    """(texts, CPU seconds)"""
    extract(extractor, "<p>A first page, so that imports take no part in the measurement.</p>")
    began = _cpu_seconds()
    return {url: extract(extractor, decode(page, None)[0]) for url, page in pages.items()}, _cpu_seconds() - began


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path(os.environ.get("OLMOFLOW_DATA", "shared/data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    file = options.folder / PAGES
    if not file.is_file() or not (options.folder / TRUTH).is_file():
        why = f"{options.folder} has no {PAGES} or no {TRUTH}"
        measure.report([("skipped", why)], {f"extraction_f1_{name}": measure.unmeasured(why, "") for name in get_args(Extractor)}, None)
        return
    truth = json.loads(gzip.decompress((options.folder / TRUTH).read_bytes()))
    pages = {url: page for url, page in _pages(file).items() if url in truth}
    megabytes = sum(map(len, pages.values())) / 1e6
    table, claims = [("pages", f"{len(pages)}, {megabytes:.1f} MB of HTML")], {}
    for name in get_args(Extractor):
        found, alone = {}, []
        for _ in range(options.rounds):
            texts, seconds = _extracted(name, pages)
            found = quality(texts, truth)
            alone.append(megabytes / seconds)
        table.append((name, ", ".join(f"{measured} {value:.3f}" for measured, value in found.items())))
        claims[f"extraction_f1_{name}"] = measure.claim(
            [found["f1"]], "", precision=round(found["precision"], 3), recall=round(found["recall"], 3)
        )
        claims[f"extraction_speed_{name}"] = measure.claim(alone, "MB/s")
        whole = [megabytes / _source_seconds(name, file) for _ in range(options.rounds)]
        claims[f"warc_source_speed_{name}"] = measure.claim(whole, "MB/s")
    claims["sandbox_cost"] = measure.claim([_sandbox_milliseconds(pages) for _ in range(options.rounds)], "ms a page")
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
