"""The shard map: keys name content, only what is missing runs, and what goes wrong is told without losing what went well."""

import dataclasses
import itertools
import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.engine
import tasks.shard
import tasks.shards
from tasks.engine import LocalEngine, StepFailed, balanced, raise_errors
from tasks.errors import UserError
from tasks.shards import Runner, ShardRef, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Books, Store

MODULE = "olmoflow_test_step"
STEP = Step("upper", 1, MODULE)
NEXT = Step("lower", 1, MODULE)


def raw(path: Path, name: str | None = None, content: str | None = None) -> RawFile:
    text = path.read_text() if path.exists() else ""
    return RawFile(str(path), name or path.name, len(text), content or f"sha of {text}")


def task(name="a", config=None, inputs=None, **more) -> ShardTask:
    return ShardTask(name, config or {"case": "upper"}, inputs or {"raw": [RawFile("/x/a", "a", 3, "c0ffee")]}, **more)


@pytest.fixture
def step_runs(monkeypatch):
    """The step's function, by the module name that a plan carries; gives the names of the shards that it was run for."""
    ran: list[str] = []

    def run(shard) -> Books:
        """One line, one unit. A line may ask for trouble."""
        ran.append(shard.name)
        books = Books(unit="lines")
        lines = [(item.url, number, line) for item in shard.inputs.get("raw", []) for number, line in read(item)]
        for url, number, line in lines:
            books.read += 1
            if line == "bug":
                raise KeyError("no such thing")
            if line == "user":
                raise UserError(f"{url}, line {number}: mend it")
            if line == "gone":
                raise FileNotFoundError(2, "No such file", "/disk/left")
            if line == "bad":
                books.quarantined += 1
                shard.quarantine(url, f"line {number}", "not readable", line.encode())
            elif line != "lost":
                books.kept += 1
        (shard.folder / "out.txt").write_text("\n".join(line for _, _, line in lines).upper())
        return books

    def read(item: RawFile):
        return enumerate(Path(item.url).read_text().split("\n"), 1)

    module = types.ModuleType(MODULE)
    module.run = run
    monkeypatch.setitem(sys.modules, MODULE, module)
    return ran


@pytest.fixture
def in_process(monkeypatch, step_runs):
    """Workers as calls: the real engine and the real worker, without a second's start for each process."""
    monkeypatch.setattr(
        tasks.engine, "_run_all", lambda commands, threads, watcher: [tasks.shard.main(c[-2], int(c[-1])) for c in commands]
    )
    return step_runs


@pytest.fixture
def lab(tmp_path, in_process):
    return Lab(tmp_path, in_process)


class Lab:
    def __init__(self, folder: Path, ran: list[str]) -> None:
        self.folder, self.ran = folder, ran
        self.store = Store(str(folder / "store"))

    def tasks(self, **texts: str) -> list[ShardTask]:
        made = []
        for name, text in texts.items():
            (self.folder / name).write_text(text)
            made.append(task(name, inputs={"raw": [raw(self.folder / name)]}))
        return made

    def runner(self, workers: int = 2, **options) -> Runner:
        return Runner(self.store, LocalEngine(workers), **options)

    def committed(self, step: str = "upper") -> set[str]:
        return {self.store.record(step, key).name for key in self.store.names(f"shards/{step}") if self.store.record(step, key)}


# -- keys ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        (task(config={"case": "lower"}), STEP),
        (task(config={"case": "upper", "more": None}), STEP),
        (task(), Step("upper", 2, MODULE)),
        (task(), Step("other", 1, MODULE)),
        (task(inputs={"raw": [RawFile("/x/a", "a", 3, "decaf")]}), STEP),
        (task(inputs={"cooked": [RawFile("/x/a", "a", 3, "c0ffee")]}), STEP),
        (task(inputs={"raw": [RawFile("/x/a", "a", 3, "c0ffee")] * 2}), STEP),
        (task(inputs={"raw": [ShardRef("ingest", "c0ffee")]}), STEP),
    ],
)
def test_a_key_changes_with_config_version_step_and_content_of_inputs(changed, step):
    assert changed.key(step) != task().key(STEP)


def test_a_key_follows_the_shards_that_it_reads():
    keys = {task(inputs={"d": [ShardRef(step, key)]}).key(STEP) for step in ("score", "tokenize") for key in ("k", "l")}
    assert len(keys) == 4


@pytest.mark.parametrize(
    "same",
    [
        task(inputs={"raw": [RawFile("s3://elsewhere/b.gz", "renamed", 3, "c0ffee")]}),
        task(name="another name"),
        task(hints={"batch": 7, "earlier": []}),
        task(weight=99),
    ],
)
def test_a_key_does_not_know_places_names_hints_or_weights(same):
    assert same.key(STEP) == task().key(STEP)


def test_a_key_changes_with_a_release_of_a_library_but_not_with_its_build(monkeypatch):
    found = {"torch": "2.13.0+cpu"}
    monkeypatch.setattr(tasks.shards, "version", lambda name: found[name])
    monkeypatch.setattr(tasks.shards, "library_version", tasks.shards.library_version.__wrapped__)  # which looks once a process
    step = Step("upper", 1, MODULE, ("torch",))
    cpu = task().key(step)
    found["torch"] = "2.13.0+cu130"
    assert task().key(step) == cpu
    found["torch"] = "2.13.1+cpu"
    assert task().key(step) != cpu
    assert task().key(STEP) not in (cpu, task().key(step))


def test_the_version_of_a_library_is_looked_up_once_and_not_for_every_shard(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks.shards, "version", lambda name: asked.append(name) or "1.0")
    step = Step("upper", 1, MODULE, ("a-library-of-this-test",))
    assert len({task(config={"number": number}).key(step) for number in range(50)}) == 50
    assert asked == ["a-library-of-this-test"]


def test_an_absent_library_has_a_key_too():
    assert task().key(Step("upper", 1, MODULE, ("no-such-library-at-all",))) != task().key(STEP)


# -- what runs -----------------------------------------------------------------------------------------------------------------------


def test_shards_that_are_missing_are_prepared_before_they_are_made_and_no_others(lab):
    prepared = []

    def prepare(task):
        assert not lab.ran
        prepared.append(task.name)

    lab.runner().run(STEP, "web", lab.tasks(a="one"), prepare=prepare)
    lab.ran.clear()
    both = lab.tasks(a="one", b="two")
    lab.runner(plan_only=True).run(STEP, "web", both, prepare=prepare)
    assert prepared == ["a"]
    lab.runner().run(STEP, "web", both, prepare=prepare)
    assert prepared == ["a", "b"] and lab.ran == ["b"]


def test_a_new_shard_runs_alone(lab):
    lab.runner().run(STEP, "web", lab.tasks(a="one", b="two"))
    assert sorted(lab.ran) == ["a", "b"]
    lab.ran.clear()
    grown = lab.runner()
    artifact = grown.run(STEP, "web", lab.tasks(a="one", b="two", c="three\nfour"))
    assert lab.ran == ["c"] and artifact.made == 1 and artifact.is_whole
    assert (artifact.books.read, artifact.books.kept) == (4, 4)
    assert grown.made_books["upper"].read == 2 and grown.made_shards == {"upper": 1}  # what this run did itself


def test_a_changed_file_runs_again_and_a_moved_one_does_not(lab):
    (one,) = lab.tasks(a="one")
    lab.runner().run(STEP, "web", [one])
    lab.ran.clear()
    (lab.folder / "moved").write_text("one")
    moved = task("moved", inputs={"raw": [raw(lab.folder / "moved")]})
    artifact = lab.runner().run(STEP, "web", [moved])
    assert lab.ran == [] and artifact.made == 0
    lab.runner().run(STEP, "web", lab.tasks(a="other"))
    assert lab.ran == ["a"]


def test_an_artifact_names_its_shards_whatever_its_own_name(lab):
    shards = lab.tasks(a="one", b="two")
    first = lab.runner().run(STEP, "web", shards)
    assert lab.runner().run(STEP, "renamed", shards).id == first.id
    assert lab.runner().run(STEP, "web", shards[:1]).id != first.id


def test_a_manifest_lists_files_that_are_there_with_books_and_raw_files(lab):
    artifact = lab.runner().run(STEP, "web", lab.tasks(a="one", b="two\nthree"))
    manifest = json.loads(lab.store.read_text(f"artifacts/upper/{artifact.id}.json"))
    assert manifest["shards"] == artifact.keys
    assert [Path(lab.store.full(file["path"])).read_text() for file in manifest["files"]] == ["ONE", "TWO\nTHREE"]
    assert manifest["books"]["read"] == 3 and manifest["books"]["unit"] == "lines"
    assert [file["name"] for file in manifest["raw_files"]] == ["a", "b"]


def test_plan_only_runs_nothing_and_says_what_is_missing(lab):
    shards = lab.tasks(a="one", b="two")
    lab.runner().run(STEP, "web", shards[:1])
    lab.ran.clear()
    artifact = lab.runner(plan_only=True).run(STEP, "web", shards)
    assert lab.ran == [] and [record is None for record in artifact.records] == [False, True] and not artifact.is_whole
    assert len(lab.store.names("artifacts/upper")) == 1


def test_a_shard_reads_the_files_of_the_shards_before_it(lab, monkeypatch):
    first = lab.runner().run(STEP, "web", lab.tasks(a="one"))
    seen = []

    def run(shard) -> Books:
        seen.append(shard.one("upper")["out.txt"].read_text())
        seen.append([files["out.txt"].read_text() for files in shard.hints["earlier"]])
        return Books()

    monkeypatch.setattr(sys.modules[MODULE], "run", run)
    hints = {"earlier": [{"step": "upper", "key": first.keys[0]}]}
    lab.runner().run(NEXT, "web", [task("a", inputs={"upper": first.refs}, hints=hints)], inputs=[first])
    assert seen == ["ONE", ["ONE"]]


def test_a_shard_that_is_gone_from_the_store_is_told(lab):
    with pytest.raises(UserError, match=r"shard upper/nokey is gone from .*run the same command again"):
        lab.runner().run(NEXT, "web", [task("a", inputs={"upper": [ShardRef("upper", "nokey")]})])


# -- --only and --force --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "ran"),
    [
        (("upper", None), ["web: edu", "maths: edu"]),
        (("upper", "web"), ["web: edu"]),  # a source stands for all its scorers
        (("upper", "web: edu"), ["web: edu"]),
        (("upper", "web: length"), []),
        (("lower", None), []),
    ],
)
def test_only_runs_the_one_step_and_source(lab, only, ran):
    runner = lab.runner(only=only)
    for name, (shard,) in {"web: edu": lab.tasks(a="one"), "maths: edu": lab.tasks(b="two")}.items():
        shard.name = name
        artifact = runner.run(STEP, name, [shard])
        assert artifact.is_whole == (name in ran)
    assert lab.ran == ran


def test_only_says_which_step_before_it_is_missing(lab):
    runner = lab.runner(only=("lower", None))
    before = runner.run(STEP, "web", lab.tasks(a="one"))
    with pytest.raises(UserError, match="lower web needs upper web, which is not made yet: `olmoflow rerun upper` makes it"):
        runner.run(NEXT, "web", [task("a", inputs={"upper": before.refs})], inputs=[before])
    assert lab.ran == []


def test_only_without_force_makes_nothing_twice(lab):
    shards = lab.tasks(a="one")
    lab.runner().run(STEP, "web", shards)
    assert lab.runner(only=("upper", "web")).run(STEP, "web", shards).made == 0
    assert lab.ran == ["a"]


def test_force_makes_the_one_step_again_and_leaves_the_others(lab):
    upper, lower = lab.tasks(a="one", b="two"), lab.tasks(c="three")
    lab.runner().run(STEP, "web", upper)
    lab.runner().run(NEXT, "web", lower)
    lab.ran.clear()
    runner = lab.runner(only=("upper", None), force=True)
    artifact = runner.run(STEP, "web", upper)
    runner.run(NEXT, "web", lower)
    assert sorted(lab.ran) == ["a", "b"] and artifact.made == 2 and artifact.is_whole


def test_force_without_only_would_be_a_whole_new_run_and_does_nothing(lab):
    shards = lab.tasks(a="one")
    lab.runner().run(STEP, "web", shards)
    lab.runner(force=True).run(STEP, "web", shards)
    assert lab.ran == ["a"]


def test_after_force_the_manifest_lists_files_that_are_there(lab):
    shards = lab.tasks(a="one")
    lab.runner().run(STEP, "web", shards)
    artifact = lab.runner(only=("upper", None), force=True).run(STEP, "web", shards)
    manifest = json.loads(lab.store.read_text(f"artifacts/upper/{artifact.id}.json"))
    assert [Path(lab.store.full(file["path"])).exists() for file in manifest["files"]] == [True]


def test_after_a_rename_the_manifest_says_where_the_raw_file_lies_now(lab):
    lab.runner().run(STEP, "web", lab.tasks(old="one"))
    artifact = lab.runner().run(STEP, "web", lab.tasks(new="one"))
    manifest = json.loads(lab.store.read_text(f"artifacts/upper/{artifact.id}.json"))
    assert [file["name"] for file in manifest["raw_files"]] == ["new"]


# -- books and quarantine ------------------------------------------------------------------------------------------------------------


def test_a_shard_whose_books_do_not_balance_is_a_bug_and_is_not_committed(lab):
    with pytest.raises(StepFailed, match="3 lines read but 2 accounted for"):
        lab.runner().run(STEP, "web", lab.tasks(good="one", leaky="one\nlost\ntwo"))
    assert lab.committed() == {"good"}


def test_over_max_quarantined_the_first_file_and_line_are_named_and_the_shards_stay(lab):
    shards = lab.tasks(a="one\ntwo", b="one\nbad\nbad", c="bad")
    with pytest.raises(UserError) as error:
        lab.runner().run(STEP, "web", shards, max_quarantined=0.4)
    told = str(error.value)
    assert told.startswith(f"{lab.folder / 'b'}, line 2: not readable")
    assert "3 of 6 lines of web" in told and "raise max_quarantined over 0.5" in told
    assert lab.committed() == {"a", "b", "c"}
    lab.ran.clear()
    with pytest.raises(UserError):  # nor is it forgotten in the next run
        lab.runner().run(STEP, "web", shards)
    assert lab.runner().run(STEP, "web", shards, max_quarantined=0.5).books.quarantined == 3
    assert lab.ran == []


def test_without_a_tolerance_one_bad_line_is_enough(lab):
    with pytest.raises(UserError, match="line 1: not readable"):
        lab.runner().run(STEP, "web", lab.tasks(a="bad\n" + "fine\n" * 500))


def test_the_quarantine_holds_what_could_not_be_read(lab):
    artifact = lab.runner().run(STEP, "web", lab.tasks(a="one\nbad"), max_quarantined=1)
    (record,) = artifact.records
    (entry,) = [json.loads(line) for line in lab.store.read_text(record.quarantine["path"]).splitlines()]
    assert (entry["raw"], entry["position"], entry["cause"]) == ("bad", "line 2", "not readable")
    assert record.quarantine["count"] == 1
    assert [file.name for file in record.files] == ["out.txt"]


# -- failures ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_failing_shard_does_not_stop_the_others(lab, workers):
    shards = lab.tasks(a="one", b="user", c="two", d="one\nuser", e="three")
    with pytest.raises(UserError) as error:
        lab.runner(workers).run(STEP, "web", shards)
    assert lab.committed() == {"a", "c", "e"}
    told = str(error.value)
    assert "line" in told and "mend it" in told and "(1 more shards failed)" in told
    assert lab.store.names("artifacts/upper") == []  # no manifest of what is not whole
    lab.ran.clear()
    lab.runner(workers).run(STEP, "web", lab.tasks(a="one", b="mended", c="two", d="mended too", e="three"))
    assert sorted(lab.ran) == ["b", "d"]


def test_a_user_error_in_a_worker_comes_through_word_for_word(lab):
    with pytest.raises(UserError) as error:
        lab.runner().run(STEP, "web", lab.tasks(b="one\nuser"))
    assert str(error.value) == f"{lab.folder / 'b'}, line 2: mend it"


def test_a_bug_in_a_worker_comes_through_with_its_traceback_before_users_errors(lab):
    with pytest.raises(StepFailed) as error:
        lab.runner().run(STEP, "web", lab.tasks(a="user", b="bug"))
    told = str(error.value)
    assert told.startswith("upper web: b: KeyError: 'no such thing'\n")
    assert "Traceback (most recent call last)" in told and 'raise KeyError("no such thing")' in told
    assert not isinstance(error.value, UserError)


def test_a_fault_of_the_system_names_the_shard_and_the_file(lab):
    with pytest.raises(UserError, match=r"^a: .*No such file.*/disk/left"):
        lab.runner().run(STEP, "web", lab.tasks(a="gone"))


@pytest.mark.parametrize(("code", "words"), [(-9, "signal 9 .*lower engine.workers"), (-15, "signal 15"), (3, "exit code 3")])
def test_a_worker_that_ends_without_a_word_is_told(code, words):
    with pytest.raises(UserError, match=f"upper web: a worker process ended with {words}.*run the same command again"):
        raise_errors({"step": {"name": "upper"}, "name": "web"}, [], [0, code])


@pytest.mark.parametrize(
    ("there", "words"),
    [({"numpy": "0.1"}, "has numpy .* planned with 0.1"), ({"step upper": 9}, "has step upper version 9 .* planned with version 1")],
)
def test_a_worker_with_other_versions_than_the_run_refuses_its_shards(lab, monkeypatch, there, words):
    if "numpy" in there:
        monkeypatch.setattr(tasks.shards, "software", lambda libraries: there)
    else:
        sys.modules[MODULE].STEP = dataclasses.replace(STEP, version=9)
    with pytest.raises(UserError, match=words):
        lab.runner().run(STEP, "web", lab.tasks(f1="text"))
    assert lab.committed() == set() and lab.ran == []


# -- balance -------------------------------------------------------------------------------------------------------------------------


def loads(weights: list[int], ranks: list[int], workers: int) -> list[int]:
    return [sum(weight for weight, rank in zip(weights, ranks, strict=True) if rank == worker) for worker in range(workers)]


@settings(max_examples=80, deadline=None)
@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=7), workers=st.integers(1, 3))
def test_loads_are_as_near_to_the_best_as_longest_first_promises(weights, workers):
    """Graham (1969): at most 4/3 - 1/(3 m) times the best possible, found here by trying all."""
    best = min(max(loads(weights, list(ranks), workers)) for ranks in itertools.product(range(workers), repeat=len(weights)))
    found = max(loads(weights, balanced(weights, workers), workers))
    assert found * 3 * workers <= best * (4 * workers - 1)


def test_shards_of_unknown_size_are_dealt_out_evenly():
    ranks = balanced([0] * 7, 3)
    assert sorted(ranks.count(rank) for rank in range(3)) == [2, 2, 3]


def test_the_heavy_shard_has_a_worker_to_itself_wherever_it_stands():
    for place in range(4):
        weights = [10] * 4
        weights[place] = 40
        ranks = balanced(weights, 2)
        assert ranks.count(ranks[place]) == 1


def test_every_shard_goes_to_exactly_one_worker(lab):
    artifact = lab.runner(3).run(STEP, "web", lab.tasks(**{f"f{i}": f"text {i}" for i in range(7)}))
    assert artifact.is_whole and sorted(lab.ran) == [f"f{i}" for i in range(7)]
