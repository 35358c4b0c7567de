"""A new dump: which one is taken, what is made again, what it is said to have changed, and when it counts as done."""

import hashlib
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
from dumps import recipe, site_archive, write_dump
from in_process import InProcess

from flows import recuration
from flows.pipeline import Pipeline
from flows.plan import make_plan
from flows.recipe import Recipe
from tasks.dump_record import last_done
from tasks.errors import UserError
from tasks.shards import Runner
from tasks.store import Store

A = {number: f"answer {number} of a" for number in range(12)}
B = {number: f"answer {number} of b" for number in range(8)}


class Forum:
    """A folder in which dumps appear, and a recipe over it."""

    def __init__(self, folder, **section):
        self.folder, self.dumps = folder, folder / "dumps"
        self.dumps.mkdir()
        (folder / "words.jsonl").write_text("".join(json.dumps({"text": f"why answer {n} of a and b T{n}"}) + "\n" for n in range(50)))
        self.config = recipe(folder, self.dumps, **section)
        self.waited, self.during = [], None

    @property
    def recipe(self):
        return Recipe.model_validate(self.config)

    @property
    def store(self):
        return Store(self.config["store"])

    def wait(self, seconds):
        self.waited.append(seconds)
        if self.during:
            self.during()

    def find(self, name=None):
        return recuration.find(self.recipe, name, lambda line: None, self.wait)

    def pipeline(self):
        return Pipeline(self.recipe, Runner(self.store, InProcess()))

    def recurate(self, name=None):
        found = self.find(name)
        assert found.dump is not None, found.why
        return recuration.recurate(self.pipeline(), found)


@pytest.fixture
def forum(tmp_path):
    return Forum(tmp_path)


def write(forum, name, sites, **options):
    return write_dump(forum.dumps / name, {f"{site}.stackexchange.com": documents for site, documents in sites.items()}, **options)


def counts(done):
    return {each.site.split(".")[0]: (each.new, each.gone, each.edited, each.same) for each in done.changes}


def test_only_the_sites_that_changed_are_curated_again_and_the_mix_is_built_anew(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    first = forum.recurate()
    assert first.shards_made == {"tokenizer": 1, "ingest": 2, "tokenize": 2, "select": 2, "mix": 1, "signatures": 2}
    write(forum, "2026-09-30", {"a": A, "b": B | {3: "another text"}})
    second = forum.recurate()
    assert second.shards_made == {"ingest": 1, "tokenize": 1, "select": 1, "mix": 1, "signatures": 1}
    assert counts(second) == {"a": (0, 0, 0, 12), "b": (0, 0, 1, 7)}
    assert (second.dump, second.before, second.number) == ("2026-09-30", "2026-06-30", 2)


def test_what_a_dump_changed_is_what_comparing_every_document_gives(forum):
    rng = random.Random(5)
    old = {f"s{n}": {i: f"text {rng.randrange(40)}" for i in rng.sample(range(60), 25)} for n in range(3)}
    new = {
        f"s{n}": {i: f"text {rng.randrange(40)}" if rng.random() < 0.3 else f"t{i}" for i in rng.sample(range(60), 30)} for n in (0, 1, 3)
    }
    new["s0"] |= {i: text for i, text in old["s0"].items() if i % 2}
    write(forum, "stackexchange_20260630", old)
    assert counts(forum.recurate()) == {site: (len(documents), 0, 0, 0) for site, documents in old.items()}
    write(forum, "stackexchange_20260930", new)
    done = forum.recurate()
    expected = {}
    for site in ("s0", "s1", "s2", "s3"):
        a, b = old.get(site, {}), new.get(site, {})
        edited = sum(a[i] != b[i] for i in a.keys() & b.keys())
        expected[site] = (len(b.keys() - a.keys()), len(a.keys() - b.keys()), edited, len(a.keys() & b.keys()) - edited)
    assert counts(done) == expected
    lines = "\n".join(recuration.told(done))
    assert done.closed == ["s2.stackexchange.com"] and "s2.stackexchange.com (not in this dump): 0 documents new, 25 gone" in lines
    assert f"{sum(each[2] for each in expected.values())} edited" in lines


def test_a_comparison_in_several_ranges_of_keys_gives_the_same(forum, monkeypatch):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    write(forum, "2026-09-30", {"a": {n + 3: text for n, text in A.items()}, "b": B | {99: "more"}})
    monkeypatch.setattr("tasks.dump_changes.ROWS_AT_ONCE", 3)
    assert counts(forum.recurate()) == {"a": (3, 3, 9, 0), "b": (1, 0, 0, 8)}


def test_where_nothing_is_new_nothing_is_done(forum):
    assert "there is no dump at" in forum.find().why
    write(forum, "2026-06-30", {"a": A})
    forum.recurate()
    found = forum.find()
    assert found.dump is None and found.why == "nothing is newer than 2026-06-30, which is done"
    write(forum, "2026-03-31", {"a": B})
    (forum.dumps / "notes-2026-10-01.txt").write_text("no folder")
    assert forum.find().why == "nothing is newer than 2026-06-30, which is done"


def test_a_dump_that_grows_between_two_looks_is_not_taken_until_it_rests(tmp_path):
    forum = Forum(tmp_path, settle_minutes=30)
    folder = write(forum, "2026-06-30", {"a": A}, marker=False)
    forum.during = lambda: (folder / "b.stackexchange.com.7z").write_bytes(site_archive(B))
    found = forum.find()
    assert found.dump is None and found.why.endswith("still being uploaded: b.stackexchange.com.7z came while it was looked at")
    forum.during = lambda: (folder / ".c.stackexchange.com.7z.x7Gq").write_bytes(b"half")  # rsync's name for what is not there yet
    assert "c.stackexchange.com.7z.x7Gq came" in forum.find().why
    forum.during = lambda: (folder / ".c.stackexchange.com.7z.x7Gq").unlink()
    assert "c.stackexchange.com.7z.x7Gq went" in forum.find().why
    forum.during = None
    assert forum.find().dump.place.name == "2026-06-30"
    assert [round(seconds, -1) for seconds in forum.waited] == [1800] * 4


def test_the_time_that_a_dump_has_rested_is_kept_and_no_jump_of_the_clock_shortens_it(tmp_path, monkeypatch):
    forum = Forum(tmp_path, settle_minutes=30)
    write(forum, "2026-06-30", {"a": A}, marker=False)
    seconds, wall = 1000.0, 0.0
    monkeypatch.setattr("tasks.dump_record._seconds", lambda: seconds)
    monkeypatch.setattr("time.time", lambda: wall)

    def killed():
        raise KeyboardInterrupt

    forum.during = killed
    with pytest.raises(KeyboardInterrupt):
        forum.find()
    seconds, wall = seconds + 600, 1e9
    forum.during = None
    assert forum.find().dump is not None
    assert forum.waited == [1800, 1200]
    monkeypatch.setattr("tasks.dump_record._boot", lambda: "another machine")
    assert forum.find().dump is not None
    assert forum.waited[-1] == 1800


def test_a_list_of_checksums_tells_what_is_still_to_come_and_what_is_damaged(forum):
    folder = write(forum, "2026-06-30", {"a": A}, marker=False)
    b = site_archive(B)
    lines = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "MD5SUMS").write_text("".join(lines) + f"{hashlib.md5(b).hexdigest()} *b.stackexchange.com.7z\n{'0' * 32}  other.txt\n")
    assert forum.find().why == "2026-06-30 is still being uploaded: b.stackexchange.com.7z of its list of checksums not there yet"
    (folder / "b.stackexchange.com.7z").write_bytes(b[:-9])
    with pytest.raises(
        UserError, match=r"b\.stackexchange\.com\.7z is not what MD5SUMS says \(md5 .*\): it is still being uploaded, or damaged"
    ):
        forum.recurate()
    assert last_done(forum.store, "forum") is None and not (forum.folder / "store/shards/ingest").exists()
    (folder / "b.stackexchange.com.7z").write_bytes(b)
    assert forum.recurate().dump == "2026-06-30"
    assert forum.waited == []


def test_a_list_that_does_not_name_all_that_is_there_is_no_sign_that_all_is_there(tmp_path):
    forum = Forum(tmp_path, settle_minutes=2)
    folder = write(forum, "2026-06-30", {"a": A, "b": B}, marker=False)
    (folder / "sha256sums.txt").write_text(f"{hashlib.sha256(site_archive(A)).hexdigest()}  ./a.stackexchange.com.7z\n")
    assert forum.find().dump is not None and forum.waited == [120]


def test_a_list_of_archive_org_is_compared_but_does_not_say_that_all_is_there(forum):
    folder = write(forum, "stackexchange_20260630", {"a": A, "b": B}, marker=False)
    files = sorted(folder.iterdir())
    entries = [
        f'<file name="{path.name}" source="original"><size>{path.stat().st_size}</size><sha1>{hashlib.sha1(path.read_bytes()).hexdigest()}</sha1></file>'
        for path in files
    ]
    (folder / "stackexchange_20260630_files.xml").write_text("<files>" + entries[0] + entries[1].replace("<size>", "<size>1") + "</files>")
    forum.config["stackexchange_dumps"]["settle_minutes"] = 1
    with pytest.raises(UserError, match=r"b\.stackexchange\.com\.7z is not what stackexchange_20260630_files\.xml says"):
        forum.recurate()
    assert len(forum.waited) == 1


def test_a_site_that_is_missing_from_a_dump_without_an_end_is_told_and_not_taken_as_closed(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    folder = write(forum, "2026-09-30", {"a": A}, marker=False)
    assert "2026-09-30 lacks b.stackexchange.com, which 2026-06-30 had: it is not taken" in forum.find().why
    forum.config["stackexchange_dumps"]["closed_sites"] = ["b.*"]
    assert forum.find().closed == ["b.stackexchange.com"]
    forum.config["stackexchange_dumps"]["closed_sites"] = []
    (folder / "_SUCCESS").touch()
    assert counts(forum.recurate()) == {"a": (0, 0, 0, 12), "b": (0, 8, 0, 0)}


def test_a_site_that_the_recipe_does_not_ask_for_any_more_is_not_closed(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    write(forum, "2026-09-30", {"a": A | {1: "edited"}, "b": B}, marker=False)
    forum.config["sources"]["forum"]["paths"] = ["{dump}/a.*"]
    done = forum.recurate()
    assert done.closed == [] and counts(done) == {"a": (0, 0, 1, 11), "b": (0, 8, 0, 0)}


def test_while_the_newest_is_uploaded_the_one_before_it_is_taken(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    write_dump(forum.folder / "disk2", {"a.stackexchange.com": A, "b.stackexchange.com": A})
    (forum.dumps / "2026-09-30").symlink_to(forum.folder / "disk2")
    write(forum, "2026-12-31", {"a": B}, marker=False)
    assert forum.find().dump.place.name == "2026-09-30"


def test_a_run_that_fails_is_not_done_and_the_next_one_goes_on(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    good = site_archive(B | {1: "edited"})
    folder = write(forum, "2026-09-30", {"a": A | {50: "new"}})
    (folder / "b.stackexchange.com.7z").write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="damaged archive"):
        forum.recurate()
    assert last_done(forum.store, "forum").dump == "2026-06-30"
    (folder / "b.stackexchange.com.7z").write_bytes(good)
    done = forum.recurate()
    assert done.shards_made["ingest"] == 1, "the site that was whole is not read again"
    assert counts(done) == {"a": (1, 0, 0, 12), "b": (0, 0, 1, 7)}


def test_a_dump_that_changes_while_it_is_curated_is_not_done(forum, monkeypatch):
    folder = write(forum, "2026-06-30", {"a": A})
    found = forum.find()
    write_dump(folder, {"b.stackexchange.com": B})
    with pytest.raises(UserError, match="2026-06-30 changed while it was curated"):
        recuration.recurate(forum.pipeline(), found)
    assert last_done(forum.store, "forum") is None
    assert counts(forum.recurate()) == {"a": (12, 0, 0, 0), "b": (8, 0, 0, 0)}


def test_of_two_runs_at_once_one_writes_and_a_newer_dump_is_never_undone(forum):
    write(forum, "2026-06-30", {"a": A})
    slow, twin = forum.find(), forum.find()
    write(forum, "2026-09-30", {"a": A | {77: "new"}})
    newer = forum.find()
    done = recuration.recurate(forum.pipeline(), twin)
    assert asdict(recuration.recurate(forum.pipeline(), forum.find("2026-06-30")))["number"] == 2
    assert recuration.recurate(forum.pipeline(), slow).dump == done.dump  # the same dump: done is done
    with pytest.raises(UserError, match="another run has finished the dump 2026-06-30 meanwhile"):
        recuration.recurate(forum.pipeline(), newer)
    assert forum.recurate().dump == "2026-09-30"


def test_two_runs_at_the_same_moment_end_with_one_record(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(recuration.recurate, forum.pipeline(), forum.find()) for _ in range(2)]
    assert [counts(run.result()) for run in runs] == [{"a": (12, 0, 0, 0), "b": (8, 0, 0, 0)}] * 2
    assert forum.store.names("dumps/forum/done") == ["000001.json"]


def test_plain_flows_read_the_newest_dump_that_is_done_even_when_it_is_removed_or_another_recipe_did_it(forum):
    with pytest.raises(UserError, match=r"sources\.forum: no dump of .* has been curated yet, so \{dump\} stands for nothing"):
        forum.pipeline().curate()
    folder = write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    write(forum, "2026-09-30", {"a": A, "b": A})
    forum.config["name"] = "experiment"
    pipeline = forum.pipeline()
    pipeline.curate()
    assert [raw.name for raw in pipeline.files("forum")] == ["a.stackexchange.com.7z", "b.stackexchange.com.7z"]
    assert not any(pipeline.runner.made_shards.values())
    forum.config["sources"]["forum"]["paths"] = ["{dump}/b*.7z"]
    assert [raw.url for raw in forum.pipeline().files("forum")] == [f"file://{folder}/b.stackexchange.com.7z"]
    forum.config["sources"]["forum"]["paths"] = ["{dump}"]
    shutil.rmtree(folder)
    pipeline = forum.pipeline()
    pipeline.recurated()
    assert not any(pipeline.runner.made_shards.values())


def test_a_path_that_is_updated_in_place_is_a_dump_each_time_that_a_file_changes(forum):
    write_dump(forum.dumps, {"a.stackexchange.com": A, "b.stackexchange.com": B})
    assert forum.recurate().date == ""
    assert forum.find().dump is None
    write_dump(forum.dumps, {"b.stackexchange.com": B | {1: "edited"}})
    os.utime(forum.dumps / "a.stackexchange.com.7z")  # touched, but the same
    forum.config["stackexchange_dumps"]["settle_minutes"] = 1
    done = forum.recurate()
    assert counts(done) == {"a": (0, 0, 0, 12), "b": (0, 0, 1, 7)} and done.shards_made["ingest"] == 1
    assert forum.waited == [60], "a marker of the time before says nothing of the update"


def test_a_plan_tells_what_the_newest_dump_would_make_and_writes_nothing_down(forum):
    write(forum, "2026-06-30", {"a": A, "b": B})
    forum.recurate()
    write(forum, "2026-09-30", {"a": A, "b": B | {9: "new"}}, marker=False)
    steps = {(row["step"], row["name"]): (row["reused"], row["to_run"]) for row in make_plan(forum.recipe, "recurated", 0.0)["steps"]}
    assert steps["ingest", "forum"] == steps["signatures", "forum"] == (1, 1) and steps["mix", "mid"] == (0, 1)
    assert forum.store.names("dumps/forum") == ["done"] and len(forum.store.names("dumps/forum/done")) == 1


def test_documents_that_were_removed_from_the_store_are_said_to_be_unknown(forum):
    write(forum, "2026-06-30", {"a": A})
    forum.recurate()
    shutil.rmtree(forum.folder / "store" / "shards" / "signatures")
    write(forum, "2026-09-30", {"a": A | {1: "b"}})
    done = forum.recurate()
    assert counts(done) == {"a": (None, None, None, None)}
    assert "what changed is not known" in recuration.told(done)[-1] and recuration.table(done)[0]["new"] == "unknown"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stackexchange_dumps": None}, "sources.forum reads {dump}: say where dumps appear, in stackexchange_dumps.path"),
        ({"sources": {"forum": {"format": "stackexchange", "paths": ["/x"]}}}, "no source reads a dump"),
        ({"sources": {"forum": {"format": "stackexchange", "paths": ["/x/{dump}"]}}}, "write {dump}/\\*.7z, not /x/{dump}"),
        ({"sources": {"forum": {"format": "text", "paths": ["{dump}"]}}}, "only the format stackexchange reads {dump}, not text"),
    ],
)
def test_a_recipe_that_cannot_find_its_dumps_is_refused(forum, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe.model_validate(forum.config | change)


def test_a_path_where_nothing_is_is_no_empty_week(forum):
    forum.config["stackexchange_dumps"]["path"] = str(forum.folder / "dumsp")
    with pytest.raises(UserError, match=r"there is nothing at .*dumsp, where dumps should appear"):
        forum.find()
