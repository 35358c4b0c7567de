"""Which dump is to be curated next: the newest that is whole and not done yet."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tasks import dumps
from tasks.dump_checksums import Checksum, checksums
from tasks.dump_record import Done, last_done, seconds_to_wait
from tasks.dumps import MARKER, Dump, DumpFile, Place, look, places, site, state_of, would_match
from tasks.sources import SourceConfig
from tasks.storage import public, shown
from tasks.store import Store

NAMED = 5  # sites or files in a sentence; more are counted


@dataclass
class Found:
    """A dump to curate, or None and why there is none.

    files: by source. state: of those files. closed: sites of the dump before that this one has not. number: of its record, when it is done.
    """

    why: str
    dump: Dump | None = None
    files: dict[str, list[DumpFile]] = field(default_factory=dict)
    sums: dict[str, Checksum] = field(default_factory=dict)
    state: str = ""
    closed: list[str] = field(default_factory=list)
    before: Done | None = None
    number: int = 1


@dataclass
class Search:
    """Looks for a dump. sources: those that read dumps, by name. closed_sites: names or globs of sites that a dump may lack.

    wait(seconds): how the time between two looks is spent.
    """

    store: Store
    recipe: str
    path: str
    sources: Mapping[str, SourceConfig]
    settle_seconds: float
    closed_sites: list[str]
    tell: Callable[[str], None]
    wait: Callable[[float], None]

    def newest(self, name: str | None = None) -> Found:
        """The newest dump that is whole and not done; of `name`, that one, done or not."""
        last = last_done(self.store, self.recipe)
        found = self._newest(name, last)
        found.number = last.number + 1 if last else 1
        return found

    def _newest(self, name: str | None, before: Done | None) -> Found:
        if before is not None and before.path != public(self.path):
            before = None  # dumps appear elsewhere now
        if name is not None:
            return self._judged(dumps.place_named(self.path, name), before)
        there = places(self.path)
        if not there:
            return Found(f"there is no dump at {shown(self.path)} yet", before=before)
        later = [place for place in there if before is None or place.order >= before.order]
        reasons = []
        for place in reversed(later):
            found = self._judged(place, before, unless_done=True)
            if found.dump is not None:
                return found
            if found.why:
                reasons.append(found.why)
        return Found(
            "; ".join(reasons) or f"nothing is newer than {before.dump if before else there[-1].name}, which is done", before=before
        )

    def _judged(self, place: Place, before: Done | None, unless_done: bool = False) -> Found:
        dump = look(place)
        found = self._of(dump, before)
        is_done = before is not None and before.dump == place.name and before.state == found.state
        if unless_done and is_done:
            return Found("", before=before)
        empty = next((source for source, files in found.files.items() if not files), None)
        if empty is not None:
            return Found(f"{place.name} has no file yet that the paths of {empty} name", before=before)
        found.sums, listed = checksums(dump)
        absent = sorted(name for name in {*(listed or ()), *found.sums} - dump.files.keys() if self._is_wanted(name))
        if absent:
            return Found(f"{place.name} is still being uploaded: {_some(absent)} of its list of checksums not there yet", before=before)
        wanted = {file.name for files in found.files.values() for file in files}
        is_updated = before is not None and before.dump == place.name  # its marker is of the time before
        declared_whole = (MARKER in dump.files and not is_updated) or (listed is not None and wanted <= listed)
        if not declared_whole and not is_done:
            changed = self._changes(dump)
            if changed:
                return Found(f"{place.name} is still being uploaded: {changed}", before=before)
            unexplained = [name for name in found.closed if not any(fnmatch.fnmatchcase(name, glob) for glob in self.closed_sites)]
            if unexplained:
                return Found(
                    f"{place.name} lacks {_some(unexplained)}, which {before.dump if before else ''} had: it is not taken; "
                    f"if it is whole, put a file {MARKER} into it, or name the site in stackexchange_dumps.closed_sites",
                    before=before,
                )
        return found

    def _of(self, dump: Dump, before: Done | None) -> Found:
        files = {name: dump.wanted(config) for name, config in self.sources.items()}
        state = state_of(file for wanted in files.values() for file in wanted)
        closed: set[str] = set()
        for name, config in self.sources.items():
            had = {file.site for file in (before.of_dump(name) if before else ()) if would_match(file.name, config)}
            closed |= had - {site(file, config) for file in files[name]}
        return Found("", dump, files, {}, state, sorted(closed), before)

    def _is_wanted(self, name: str) -> bool:
        return any(would_match(name, config) for config in self.sources.values())

    def _changes(self, dump: Dump) -> str:
        """What changes in a dump until it has looked the same for long enough; nothing if it does not change."""
        seconds = seconds_to_wait(self.store, self.recipe, dump, self.settle_seconds)
        if seconds:
            self.tell(
                f"{dump.place.name}: {len(dump.files)} files and no sign that it is whole; looking again in {seconds / 60:.1f} minutes"
            )
            self.wait(seconds)
        again = look(dump.place)
        if again.state == dump.state:
            return ""
        seconds_to_wait(self.store, self.recipe, again, self.settle_seconds)  # from now on it counts as it is now
        new = sorted(again.files.keys() - dump.files.keys())
        other = sorted(name for name, file in again.files.items() if name in dump.files and _version(file) != _version(dump.files[name]))
        gone = sorted(dump.files.keys() - again.files.keys())
        told = [f"{_some(names)} {what}" for names, what in ((new, "came"), (other, "changed"), (gone, "went")) if names]
        return " and ".join(told) + " while it was looked at"


def _version(file: DumpFile) -> tuple[int, str]:
    return file.size, file.stamp


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
