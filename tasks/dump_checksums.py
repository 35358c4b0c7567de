"""Checksums that a dump brings: archive.org's `_files.xml`, `MD5SUMS` and their kin, `FILE.sha1`; and the verification of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lxml import etree

from tasks.dumps import Dump, DumpFile
from tasks.errors import UserError
from tasks.sources.base import RawFile
from tasks.storage import open_file, shown
from tasks.store import Store, fingerprint

ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the digits of a digest
LIST_BYTES = 64 << 20  # a list that is larger is none
FILES_AT_ONCE = 2
_LINE = re.compile(r"(?P<digest>[0-9A-Fa-f]{32,64})(?: [ *]?(?P<name>.+))?|[A-Z0-9]+ \((?P<of>.+)\) = (?P<bsd>[0-9A-Fa-f]{32,64})")


@dataclass(frozen=True)
class Checksum:
    """What a list says of a file. size: bytes, where the list has them."""

    algorithm: str
    digest: str
    listed_in: str
    size: int | None = None


def checksums(dump: Dump) -> tuple[dict[str, Checksum], set[str] | None]:
    """The strongest checksum of each file of a dump that a list of it names, and the names that make up the dump where a list tells them.

    archive.org writes its `_files.xml` anew with each file that arrives, so it does not tell what is still to come; nor does `FILE.md5`.
    """
    found: dict[str, Checksum] = {}
    whole: set[str] | None = None
    for listed in dump.lists_of_checksums():
        sums = _read(listed)
        folder = listed.name.rpartition("/")[0]
        named = {f"{folder}/{name}" if folder else name: checksum for name, checksum in sums.items()}
        for name, checksum in named.items():
            known = found.get(name)
            if known is None or len(checksum.digest) > len(known.digest):
                found[name] = checksum
        is_of_one = listed.name.rpartition(".")[0] in dump.files
        if not listed.name.endswith("_files.xml") and not is_of_one:
            whole = (whole or set()) | set(named)
    return found, whole


def _read(listed: DumpFile) -> dict[str, Checksum]:
    if listed.size > LIST_BYTES:
        raise UserError(f"{shown(listed.url)} has {listed.size} bytes, too many for a list of checksums: move it out of the dump")
    with open_file(listed.url, listed.size) as stream:
        content = stream.read(listed.size)
    if listed.name.endswith("_files.xml"):
        return _archive_org(content, listed)
    one = listed.name.rsplit("/", 1)[-1].rpartition(".")[0]
    found = {}
    for line in content.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line.strip())
        digest = (match["digest"] or match["bsd"]).lower() if match else ""
        if match and len(digest) in ALGORITHMS:
            name = (match["name"] or match["of"] or one).removeprefix("./")
            found[name] = Checksum(ALGORITHMS[len(digest)], digest, listed.name)
    return found


def _archive_org(content: bytes, listed: DumpFile) -> dict[str, Checksum]:
    try:
        root = etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError:
        return {}  # half of it is there
    found = {}
    for file in root.iter("file"):
        name, size = file.get("name"), file.findtext("size")
        digest = next((text.strip().lower() for kind in ("sha256", "sha1", "md5") if (text := file.findtext(kind))), "")
        if name and len(digest) in ALGORITHMS:
            found[name] = Checksum(ALGORITHMS[len(digest)], digest, listed.name, int(size) if size and size.isdigit() else None)
    return found


def verify(store: Store, files: Mapping[str, RawFile], sums: Mapping[str, Checksum], tell: Callable[[str], None]) -> None:
    """Compare each file with its checksum; one that was compared before, as the same content, is not read again.

    Raises UserError naming the first file that differs.
    """
    asked = {name: (raw, sums[name]) for name, raw in sorted(files.items()) if name in sums}
    left = {name: pair for name, pair in asked.items() if not _is_known(store, *pair)}
    if left:
        tell(f"comparing {len(left)} of {len(files)} files with their checksums")
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for _ in pool.map(lambda pair: _compare(store, *pair), left.values()):
            pass


def _is_known(store: Store, raw: RawFile, checksum: Checksum) -> bool:
    return store.read_text(_known_path(raw, checksum)) is not None


def _known_path(raw: RawFile, checksum: Checksum) -> str:
    return f"cache/verified/{fingerprint([raw.content_id, raw.size, checksum.digest])}.json"


def _compare(store: Store, raw: RawFile, checksum: Checksum) -> None:
    differs = checksum.size is not None and checksum.size != raw.size
    if not differs:
        with raw.open() as stream:
            digest = hashlib.file_digest(stream, checksum.algorithm).hexdigest()  # type: ignore[arg-type]
        raw.check()
        differs = digest != checksum.digest
    if differs:
        raise UserError(
            f"{raw.shown} is not what {checksum.listed_in} says ({checksum.algorithm} {checksum.digest}): it is still being uploaded, or damaged; "
            "the dump is not taken, and the next run looks again"
        )
    store.replace(_known_path(raw, checksum), json.dumps({"content_id": raw.content_id, checksum.algorithm: checksum.digest}))
