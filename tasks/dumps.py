"""Stack Exchange dumps where they appear: a folder each, on a disk, an object store or a web index; and whether one is whole.

A dump is a folder with a date in its name (`2026-09-30`, `stackexchange_20260930`). A path that has no such folder but archives is one dump
itself, which is updated in place.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.utils import glob_translate

from tasks.errors import UserError
from tasks.sources import SourceConfig, belongs
from tasks.sources.base import RawFile
from tasks.sources.stackexchange import site_of
from tasks.storage import Storage, public, shown, stamp
from tasks.store import fingerprint

PLACEHOLDER = "{dump}"  # in a source's paths: the folder of the dump
MARKER = "_SUCCESS"  # written into a folder when all else is there, as Hadoop and Spark do
DEPTH = 2  # archives lie in the dump's folder, unpacked tables in a folder for each site
QUESTIONS_AT_ONCE = 8  # to a web server that tells sizes one by one
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?(0[1-9]|1[0-2])(?:[-_.]?(0[1-9]|[12]\d|3[01]))?(?!\d)")
_SUMS = re.compile(r"(md5|sha1|sha256)(sums?)?(\.txt)?|.*\.(md5|sha1|sha256)(sums?)?|.*_files\.xml", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a dump lies. date: as its name has it, in digits; empty for a path that is updated in place."""

    name: str
    url: str
    date: str

    @property
    def order(self) -> tuple[str, str]:
        """Later dumps come after earlier ones."""
        return self.date, self.name


@dataclass(frozen=True)
class DumpFile:
    """A file of a dump: its name below the dump's folder, bytes, and what its storage says of its version (ETag, else time of change)."""

    name: str
    url: str
    size: int
    stamp: str
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Dump:
    """A dump as it was listed: every file, those that are still hidden or temporary too."""

    place: Place
    files: dict[str, DumpFile]

    @property
    def state(self) -> str:
        """Changes whenever a file comes, goes or changes."""
        return state_of(self.files.values())

    def wanted(self, config: SourceConfig) -> list[DumpFile]:
        """The files that a source's paths name, by name."""
        names = [name for name in self.files if any(_matches(name, path) for path in of_dump(config.paths))]
        return [self.files[name] for name in sorted(names)]

    def lists_of_checksums(self) -> list[DumpFile]:
        return [file for name, file in sorted(self.files.items()) if is_list_of_checksums(name)]


def state_of(files: Iterable[DumpFile]) -> str:
    """A fingerprint of names, sizes and versions."""
    return fingerprint(sorted([file.name, file.size, file.stamp] for file in files))


def of_dump(paths: list[str]) -> list[str]:
    """What follows the placeholder in those paths that begin with it."""
    return [path.removeprefix(PLACEHOLDER).strip("/") for path in paths if path.startswith(PLACEHOLDER)]


def is_list_of_checksums(name: str) -> bool:
    return _SUMS.fullmatch(name.rsplit("/", 1)[-1]) is not None


def site(file: DumpFile, config: SourceConfig) -> str:
    return site_of(RawFile(file.url, file.name, file.size, ""), config)


def would_match(name: str, config: SourceConfig) -> bool:
    """Whether a file of this name in a dump is one that a source's paths name."""
    return any(_matches(name, path) for path in of_dump(config.paths))


def _matches(name: str, path: str) -> bool:
    file = name.rsplit("/", 1)[-1]
    if file.startswith("."):
        return False
    if path == name:
        return True
    if path == "" or name.startswith(f"{path}/"):  # a folder
        return belongs(file, "stackexchange")
    return re.match(glob_translate(path), name) is not None and belongs(file, "stackexchange")


def places(path: str) -> list[Place]:
    """The dumps at a path, the oldest first. A last part with a wildcard (`dumps/stackexchange_*`) chooses among the folders.

    Raises UserError where nothing is there.
    """
    base, names = base_of(path), _parted(path)[1]
    try:
        entries = list(_entries(Storage(base), base))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is nothing at {shown(base)}, where dumps should appear: check stackexchange_dumps.path") from error
    dated = [
        Place(name, url, "".join(part or "" for part in date.groups()))
        for name, url, is_folder in entries
        if is_folder and fnmatch.fnmatchcase(name, names) and (date := _DATE.search(name))
    ]
    if dated or names != "*":
        return sorted(dated, key=lambda place: place.order)
    itself = Place(public(base).rsplit("/", 1)[-1], base, "")
    return [itself] if any(belongs(file.name.rsplit("/", 1)[-1], "stackexchange") for file in look(itself).files.values()) else []


def base_of(path: str) -> str:
    """The URL of the folder that dumps appear in: the path, without a last part that has wildcards."""
    storage = Storage(_parted(path)[0])
    return str(storage.fs.unstrip_protocol(storage.path)).rstrip("/")


def _parted(path: str) -> tuple[str, str]:
    """The folder that dumps appear in, and the glob of their names."""
    folder, _, last = path.rstrip("/").rpartition("/")
    return (folder, last) if any(sign in last for sign in "*?[") else (path.rstrip("/"), "*")


def place_named(path: str, name: str) -> Place:
    """The dump of a name. Raises UserError where it is not there."""
    there = places(path)
    found = next((place for place in there if place.name == name), None)
    if found is None:
        raise UserError(
            f"there is no dump {name} at {shown(path)}; it has {', '.join(place.name for place in there) or 'none'}: choose one, or none for the newest"
        )
    return found


def look(place: Place) -> Dump:
    """List a dump. Of files on a web server only those that matter are asked about, one by one."""
    storage = Storage(place.url)
    try:
        if is_web(storage):
            return Dump(place, {file.name: file for file in _web_files(storage, place.url)})
        found = storage.find(storage.path, maxdepth=DEPTH, detail=True)
    except FileNotFoundError as error:
        raise UserError(f"the dump {shown(place.url)} is gone; run again to look for another") from error
    root = storage.path.rstrip("/")
    files = {}
    for path, info in found.items():
        if info["type"] != "directory":
            name = str(path).removeprefix(root).lstrip("/")
            files[name] = DumpFile(name, f"{place.url}/{name}", int(info.get("size") or 0), stamp(info), info)
    return Dump(place, files)


def _entries(storage: Storage, url: str) -> Iterator[tuple[str, str, bool]]:
    """Name, URL and whether it is a folder, of what lies directly in a folder."""
    if is_web(storage):
        for name, link in _links(storage, url):
            yield name.rstrip("/"), link.rstrip("/"), name.endswith("/")
        return
    for info in storage.ls(storage.path, detail=True):
        name = str(info["name"]).rstrip("/").rsplit("/", 1)[-1]
        yield name, f"{url}/{name}", info["type"] == "directory" or (storage.is_local and Path(info["name"]).is_dir())  # a link to one


# -- a web server's index, whose links are its files --------------------------------------------------------------------------------------


def is_web(storage: Storage) -> bool:
    """Whether it is a plain web server, which has no listings but pages and no content hash but what it makes up."""
    return "http" in (storage.fs.protocol if isinstance(storage.fs.protocol, tuple) else (storage.fs.protocol,))


def _links(storage: Storage, url: str) -> Iterator[tuple[str, str]]:
    """Name and URL of what an index links to directly below it; a folder's name ends in /."""
    folder = f"{url.rstrip('/')}/"
    for link in sorted({str(info["name"]) for info in storage.ls(folder, detail=True)}):
        encoded = link.split("#")[0].removeprefix(folder).removeprefix("./")
        if encoded and "?" not in encoded and "/" not in encoded.rstrip("/") and encoded.rstrip("/") not in (".", ".."):
            yield unquote(encoded), folder + encoded


def _web_files(storage: Storage, url: str, below: str = "", depth: int = DEPTH) -> list[DumpFile]:
    links = list(_links(storage, url))
    names = {below + name: link for name, link in links if not name.endswith("/")}
    asked = {name: link for name, link in names.items() if _matters(name)}
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:
        told = list(pool.map(lambda item: _head(storage, *item), asked.items()))
    files = [file for file in told if file is not None]
    files += [DumpFile(name, link, 0, "", {}) for name, link in names.items() if name not in asked]
    for name, link in links if depth > 1 else ():
        if name.endswith("/"):
            files += _web_files(storage, link.rstrip("/"), below + name, depth - 1)
    return files


def _matters(name: str) -> bool:
    return belongs(name.rsplit("/", 1)[-1], "stackexchange") or is_list_of_checksums(name)


def _head(storage: Storage, name: str, link: str) -> DumpFile | None:
    try:
        info = storage.info(link)
    except FileNotFoundError:
        return None  # gone since it was listed
    if info.get("size") is None:
        raise UserError(f"{shown(link)}: its server does not say how large it is, so that nobody can tell when it is whole; copy the dump")
    return DumpFile(name, link, int(info["size"]), stamp(info), info)
