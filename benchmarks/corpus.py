"""The benchmarks' corpus: source files and documentation of the Python installation at hand, as JSON lines in gzip, made once a folder.

Real text of many lengths, the same on every machine with the same packages; nothing is downloaded. Each line has `id`, `text` and
`quality`, a number in [0, 1) made of the text's hash, which stands for a published score.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {
    ".py",
    ".pyi",
    ".md",
    ".rst",
    ".txt",
    ".html",
    ".css",
    ".js",
    ".json",
    ".yaml",
    ".toml",
    ".h",
    ".hpp",
    ".c",
    ".cpp",
    ".cu",
    ".cuh",
}
LONGEST_BYTES = 1_000_000
Document = dict[str, object]


def documents() -> Iterator[Document]:
    """Each text file of the installation once, in the order of a hash of its path below it."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found = {str(path.relative_to(root)): path for root in roots for path in _files(root)}
    seen = set()
    for name in sorted(found, key=lambda name: hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()):
        raw = found[name].read_bytes()
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue
        if text and not text.isspace() and digest not in seen:
            seen.add(digest)
            yield {"id": name, "text": text, "quality": int.from_bytes(digest, "big") / 2**64}


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", "node_modules"))
        yield from (
            Path(folder) / name for name in names if Path(name).suffix in SUFFIXES and (Path(folder) / name).stat().st_size < LONGEST_BYTES
        )


def write(folder: Path, text_bytes: int, files: int) -> list[Path]:
    """About `text_bytes` of UTF-8 text, dealt to `files` files of equal text size; what is there already is used again.

    Raises SystemExit where the installation holds less text.
    """
    paths = [folder / f"{text_bytes}-{files}" / f"{number:03}.jsonl.gz" for number in range(files)]
    if not all(path.exists() for path in paths):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        source = documents()
        for path in paths:
            _write_file(path, source, text_bytes // files)
    return paths


def _write_file(path: Path, source: Iterator[Document], size: int) -> None:
    done = 0
    temporary = path.with_suffix(".part")
    with gzip.open(temporary, "wt", compresslevel=6, encoding="utf-8") as stream:
        for document in source:
            stream.write(json.dumps(document, ensure_ascii=False) + "\n")
            done += len(str(document["text"]).encode())
            if done >= size:
                break
        else:
            raise SystemExit(f"this Python installation holds too little text for {path.name}: ask for less")
    temporary.replace(path)


def texts(paths: list[Path]) -> list[str]:
    """All texts of the corpus, in order."""
    return [json.loads(line)["text"] for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]
