"""A new Stack Exchange dump through curation and mixes, and what it changed. That it is done is written after all else."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.recipe_curation import StackExchangeDumps
from tasks.dump_changes import Change, change
from tasks.dump_checksums import checksums, verify
from tasks.dump_files import joined, raw_of
from tasks.dump_record import Done, DoneFile, DoneSource, last_done, write_done
from tasks.dump_search import Found, Search
from tasks.dumps import Dump, is_web, look, places, state_of
from tasks.errors import UserError
from tasks.sources.stackexchange import site_of
from tasks.storage import Storage, public
from tasks.store import Store

Tell = Callable[[str], None]


def dumps_of(recipe: Recipe) -> StackExchangeDumps:
    """Raises UserError where a recipe does not say where dumps appear."""
    if recipe.stackexchange_dumps is None:
        raise UserError(f"the recipe {recipe.name} has no `stackexchange_dumps`: say there where dumps appear")
    return recipe.stackexchange_dumps


def find(recipe: Recipe, name: str | None, tell: Tell, wait: Callable[[float], None] = time.sleep) -> Found:
    """The newest dump that is whole and not done, or that of a name, done or not; or why there is none."""
    config = dumps_of(recipe)
    readers = {source: each.reader() for source, each in recipe.dump_sources().items()}
    seconds = 60 * config.settle_minutes
    return Search(Store(recipe.store), recipe.name, config.path, readers, seconds, config.closed_sites, tell, wait).newest(name)


def take(pipeline: Pipeline, found: Found) -> None:
    """Let a pipeline's sources read the dump that was found, after its files were held against their checksums."""
    for source, files in found.files.items():
        raw = raw_of(pipeline.store, files, found.sums)
        pipeline.call(f"verify {source}", functools.partial(verify, pipeline.store, raw, found.sums, pipeline.tell))
        config = pipeline.recipe.sources[source]
        pipeline.listed[source], pipeline.copies[source] = joined(pipeline.store, f"sources.{source}", config, raw.values())


def preview(pipeline: Pipeline) -> None:
    """Let a plan read the newest dump that is there, whole or not; of its files only what tells their content is read."""
    recipe = pipeline.recipe
    there = places(dumps_of(recipe).path)
    if not there:
        raise UserError(f"there is no dump at {public(dumps_of(recipe).path)} yet, so there is nothing to plan")
    dump = look(there[-1])
    sums, _ = checksums(dump)
    for source, config in recipe.dump_sources().items():
        files = dump.wanted(config.reader())
        if is_web(Storage(dump.place.url)) and not all(file.name in sums for file in files):
            raise UserError(f"{public(dump.place.url)} has no checksums: which sites changed is only known when they are read, so run it")
        raw = raw_of(pipeline.store, files, sums)
        pipeline.listed[source], pipeline.copies[source] = joined(pipeline.store, f"sources.{source}", config, raw.values())


def recurate(pipeline: Pipeline, found: Found) -> Done:
    """Curate the dump that was found, build the mixes again, compare with the dump before, and write down that it is done.

    Raises UserError where the dump changed meanwhile: nothing is written then, and the next run looks again.
    """
    dump = found.dump
    assert dump is not None
    before = found.before.dump if found.before else None
    pipeline.tell(f"dump {dump.place.name}: {sum(map(len, found.files.values()))} files" + (f", after {before}" if before else ""))
    for site in found.closed:
        pipeline.tell(f"{site}: {before} had it and {dump.place.name} has not; its documents go")
    take(pipeline, found)
    pipeline.recurated()
    sources = {name: _source(pipeline, dump, name) for name in found.files}
    changes = pipeline.call("compare dumps", lambda: _changes(pipeline.store, found.before, sources))
    _check_unchanged(pipeline, found)
    done = Done(
        number=found.number,
        recipe=pipeline.recipe.name,
        path=public(dumps_of(pipeline.recipe).path),
        dump=dump.place.name,
        date=dump.place.date,
        state=found.state,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        before=before,
        sources=sources,
        closed=found.closed,
        changes=changes,
        shards_made={step: number for step, number in pipeline.runner.made_shards.items() if number},
        mixes={name: pipeline.mix(name).books.counts.get("tokens", 0) for name in pipeline.recipe.mixes},
        artifacts=list(pipeline.runner.artifacts),
    )
    if not write_done(pipeline.store, done):
        won = last_done(pipeline.store, done.recipe)
        if won is None or (won.dump, won.state) != (done.dump, done.state):
            raise UserError(
                f"another run has finished the dump {won.dump if won else ''} meanwhile, so that {done.dump} is not written down as done: "
                "run again, and it goes on from there; what is made is reused"
            )
    return done


def _source(pipeline: Pipeline, dump: Dump, source: str) -> DoneSource:
    config = pipeline.recipe.sources[source]
    documents, signed = pipeline.documents(source), pipeline.signatures(source)
    found = DoneSource(config.paths, config.reader().output_config())
    for raw, record, signature in zip(pipeline.files(source), documents.records, signed.keys, strict=True):
        assert record is not None
        place = raw.url.removeprefix(f"{dump.place.url}/") if raw.url.startswith(f"{dump.place.url}/") else ""
        site, number = site_of(raw, config.reader()), record.books.counts.get("documents", 0)
        found.files.append(DoneFile(raw.name, place, raw.size, raw.content_id, raw.stamp, site, record.key, signature, number))
    return found


def _changes(store: Store, before: Done | None, sources: dict[str, DoneSource]) -> list[Change]:
    """What changed at each site; all of it is new where no dump was done before."""
    found = []
    for source, now in sources.items():
        old = _by_site(before.sources[source]) if before and source in before.sources else {}
        new = _by_site(now)
        found += [change(store, source, site, old.get(site, []), new.get(site, [])) for site in sorted(old.keys() | new.keys())]
    return found


def _by_site(source: DoneSource) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for file in source.files:
        shards.setdefault(file.site, []).append(file.signatures)
    return shards


def _check_unchanged(pipeline: Pipeline, found: Found) -> None:
    """What is written down as done must be what lies there: a dump that somebody was still adding to is not."""
    assert found.dump is not None
    again = look(found.dump.place)
    if state_of(file for source in found.files for file in again.wanted(pipeline.recipe.sources[source])) != found.state:
        raise UserError(
            f"the dump {found.dump.place.name} changed while it was curated, so that it is not written down as done: "
            "run again when nothing writes to it; what did not change is reused"
        )


# -- in words -----------------------------------------------------------------------------------------------------------------------------

HEADER = ("site", "new", "gone", "edited", "same")


def told(done: Done) -> list[str]:
    """What a dump changed, on lines: in sum, then by site where something changed."""
    since = f"since {done.before}" if done.before else "the first dump"
    unknown = [each for each in done.changes if each.new is None]
    known = [each for each in done.changes if each.new is not None]
    lines = [f"{done.dump}, {since}: {_words(known)}, {sum(each.is_change for each in done.changes)} of {len(done.changes)} sites changed"]
    for each in known:
        if each.is_change:
            lines.append(f"  {each.site}{_closed(done, each.site)}: {_words([each])}")
    lines += [f"  {each.site}: what changed is not known, its documents of {done.before} are gone from the store" for each in unknown]
    return lines


def as_json(recipe: Recipe) -> dict[str, Any] | None:
    """The record of the last dump that is done."""
    done = last_done(Store(recipe.store), recipe.name)
    return asdict(done) if done else None


def _closed(done: Done, site: str) -> str:
    return " (not in this dump)" if site in done.closed else ""


def _words(changes: list[Change]) -> str:
    new, gone, edited = (sum(getattr(each, name) or 0 for each in changes) for name in ("new", "gone", "edited"))
    return f"{new:,} documents new, {gone:,} gone, {edited:,} edited"


def table(done: Done) -> list[dict[str, Any]]:
    """Rows by site for Prefect's table artifact."""
    sources = {each.source for each in done.changes}
    rows = []
    for each in done.changes:
        row = {name: "unknown" if getattr(each, name) is None else getattr(each, name) for name in HEADER}
        row["site"] += _closed(done, each.site)
        rows.append(({"source": each.source} if len(sources) > 1 else {}) | row)
    return rows
