"""Raw files are found by path, told by a short name, and known by content."""

import hashlib
import os
import shutil

import fsspec
import fsspec.implementations.memory
import pytest

from tasks import raw_files
from tasks.errors import UserError
from tasks.raw_files import Unreachable, find, find_source
from tasks.sources import SourceConfig
from tasks.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    """Files with their own name as content."""
    names = ["b.jsonl", "a.jsonl.gz", "README.md", "deep/er/c.jsonl", "deep/d.json", "deep/notes.txt"]
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


@pytest.fixture
def hashed(monkeypatch):
    """The files whose content was read."""
    read = []

    def sha256_of(path):
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(raw_files, "sha256_of", sha256_of)
    return read


def names(store, *paths):
    return [raw.name for raw in find(store, "web", [str(path) for path in paths])[0]]


# -- where -----------------------------------------------------------------------------------------------------------------------------


def test_a_glob_takes_what_it_matches_named_from_its_last_plain_folder(store, folder):
    assert names(store, folder / "*.jsonl*") == ["a.jsonl.gz", "b.jsonl"]
    assert names(store, folder / "**" / "*.json") == ["deep/d.json"]
    assert names(store, folder / "d*p" / "er" / "?.jsonl") == ["deep/er/c.jsonl"]
    assert names(store, folder / "deep" / "[a-d].json") == ["d.json"]


def test_a_glob_never_takes_a_folder(store, folder):
    assert names(store, folder / "*") == ["README.md", "a.jsonl.gz", "b.jsonl"]


def test_a_glob_leaves_out_hidden_files_as_a_folder_does(store, folder):
    (folder / "._b.jsonl").write_text("a resource fork")
    assert names(store, folder / "*.jsonl") == ["b.jsonl"]


@pytest.mark.parametrize("end", ["", "/"])
def test_of_a_folder_the_files_of_the_format_are_taken_however_deep(store, folder, end):
    (folder / ".hidden.jsonl").write_text("left over by an editor")

    def taken(format):
        return [raw.name for raw in find_source(store, "web", SourceConfig(format=format, paths=[f"{folder}{end}"]))[0]]

    assert taken("jsonl") == ["a.jsonl.gz", "b.jsonl", "deep/d.json", "deep/er/c.jsonl"]
    assert taken("text") == ["deep/notes.txt"]


def test_a_file_named_by_itself_is_taken_whatever_its_name(store, folder):
    found, _ = find_source(store, "web", SourceConfig(format="jsonl", paths=[str(folder / "README.md")]))
    assert [raw.name for raw in found] == ["README.md"]


def test_a_file_named_by_two_paths_is_one(store, folder):
    found, copies = find(store, "web", [str(folder / "*.jsonl"), str(folder / "b.jsonl"), f"file://{folder}/b.jsonl"])
    assert [raw.name for raw in found] == ["b.jsonl"] and copies == []


def test_files_come_in_the_order_of_their_names_not_of_the_paths(store, folder):
    assert names(store, folder / "deep" / "notes.txt", folder / "b.jsonl", folder / "a.jsonl.gz") == ["a.jsonl.gz", "b.jsonl", "notes.txt"]


def test_a_found_file_opens_and_knows_its_size_and_content(store, folder):
    ((raw,), _) = find(store, "web", [str(folder / "b.jsonl")])
    with raw.open() as stream:
        assert stream.read() == b"b.jsonl"
    assert (raw.size, raw.content_id) == (7, hashlib.sha256(b"b.jsonl").hexdigest())


@pytest.mark.parametrize("path", ["none.jsonl", "none/*.jsonl", "*.parquet"])
def test_a_path_that_matches_nothing_is_named_with_its_source(store, folder, path):
    with pytest.raises(UserError, match="web: no file matches") as error:
        find(store, "web", [str(folder / "b.jsonl"), str(folder / path)])
    assert str(folder / path) in str(error.value)


def test_a_folder_without_a_file_of_the_format_is_named(store, folder):
    with pytest.raises(UserError, match="no file matches"):
        find_source(store, "web", SourceConfig(format="parquet", paths=[str(folder)]))


# -- what ------------------------------------------------------------------------------------------------------------------------------


def test_the_same_content_twice_is_taken_once_and_told(store, folder):
    for copy in ("z.jsonl", "deep/y.jsonl"):
        shutil.copy(folder / "b.jsonl", folder / copy)
    found, copies = find(store, "web", [str(folder / "**" / "*.jsonl")])
    assert [raw.name for raw in found] == ["b.jsonl", "deep/er/c.jsonl"]
    assert [raw.name for raw in copies] == ["deep/y.jsonl", "z.jsonl"]


def test_a_content_is_read_once_and_then_remembered(store, folder, hashed):
    first = find(store, "web", [str(folder / "*.jsonl")])
    assert hashed == ["b.jsonl"]
    assert find(store, "other", [str(folder / "b.jsonl")]) == first
    assert find(Store(store.url), "web", [str(folder / "*.jsonl")]) == first
    assert hashed == ["b.jsonl"]


@pytest.mark.parametrize("text", ["b.jsonX", "a longer content"])
def test_a_changed_file_is_noticed(store, folder, hashed, text):
    path = folder / "b.jsonl"
    ((before,), _) = find(store, "web", [str(path)])
    path.write_text(text)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))  # a write within the clock's tick
    ((after,), _) = find(store, "web", [str(path)])
    assert after.content_id == hashlib.sha256(text.encode()).hexdigest() != before.content_id
    assert after.size == len(text)
    find(store, "web", [str(path)])
    assert hashed == ["b.jsonl", "b.jsonl"]


def test_a_change_that_keeps_the_time_but_not_the_size_is_noticed(store, folder):
    path = folder / "b.jsonl"
    find(store, "web", [str(path)])
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("longer than it was")
    os.utime(path, ns=times)
    ((after,), _) = find(store, "web", [str(path)])
    assert after.content_id == hashlib.sha256(b"longer than it was").hexdigest()


def test_content_does_not_depend_on_the_place(store, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    ids = [[raw.content_id for raw in find(store, "web", [str(root / "*.jsonl*")])[0]] for root in (folder, tmp_path / "elsewhere")]
    assert ids[0] == ids[1]


# -- other file systems ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(request):
    fs = fsspec.filesystem("memory")
    root = f"/{request.node.name}"
    fs.pipe({f"{root}/raw/a.jsonl": b"one", f"{root}/raw/deep/b.jsonl": b"two", f"{root}/raw/README": b"three"})
    yield f"memory:/{root}/raw"
    fs.rm(root, recursive=True)


def test_a_url_of_another_file_system_works_as_a_folder_a_glob_and_a_file(store, memory):
    found, _ = find_source(store, "web", SourceConfig(format="jsonl", paths=[memory]))
    assert [(raw.name, raw.size, raw.content_id) for raw in found] == [
        ("a.jsonl", 3, hashlib.sha256(b"one").hexdigest()),
        ("deep/b.jsonl", 3, hashlib.sha256(b"two").hexdigest()),
    ]
    for raw, text in zip(found, (b"one", b"two"), strict=True):
        with raw.open() as stream:
            assert stream.read() == text
    assert names(store, f"{memory}/**/b.jsonl") == ["deep/b.jsonl"]
    assert names(store, f"{memory}/README") == ["README"]
    with pytest.raises(UserError, match=r"no file matches memory://.*none"):
        find(store, "web", [f"{memory}/none*"])


def test_an_object_stores_tag_stands_for_the_content(store, memory, monkeypatch):
    fs = fsspec.filesystem("memory")
    tags = {"a.jsonl": '"tag1"', "b.jsonl": '"tag2"'}
    plain = type(fs).find

    def listed(self, path, **options):
        return {
            name: {**info, "ETag": tags[name.rsplit("/", 1)[-1]]} for name, info in plain(self, path, **options).items() if name[-1] == "l"
        }

    def no_reading(*arguments, **options):
        raise AssertionError("content was read although the object store tells its tag")

    monkeypatch.setattr(type(fs), "find", listed)
    monkeypatch.setattr(type(fs), "open", no_reading)
    before, copies = find(store, "web", [f"{memory}/**/*.jsonl"])
    assert len({raw.content_id for raw in before}) == 2 and copies == []
    assert find(store, "web", [f"{memory}/**/*.jsonl"])[0] == before
    tags["a.jsonl"] = '"tag3"'
    after, _ = find(store, "web", [f"{memory}/**/*.jsonl"])
    assert [one.content_id == two.content_id for one, two in zip(before, after, strict=True)] == [False, True]


# -- places that do not answer, and the Hugging Face hub --------------------------------------------------------------------------------


class Hub(fsspec.implementations.memory.MemoryFileSystem):
    """As the hub's file system tells of its files: no ETag, git's hash of the content. Nobody may read a file to know it."""

    protocol = "hubtest"
    blob, fault = "1" * 40, None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("hubtest:"))

    def info(self, path, **kwargs):
        return {**super().info(path, **kwargs), "blob_id": Hub.blob}

    def find(self, path, **kwargs):
        return {name: {**info, "blob_id": Hub.blob} for name, info in super().find(path, **kwargs).items()}

    def glob(self, path, **kwargs):
        if Hub.fault:
            raise Hub.fault
        return super().glob(path, **kwargs)

    def open(self, path, mode="rb", **kwargs):
        assert "r" not in mode, "a listing reads no file"
        return super().open(path, mode, **kwargs)


@pytest.fixture
def hub():
    fsspec.register_implementation("hubtest", Hub, clobber=True)
    Hub.blob, Hub.fault = "1" * 40, None
    fsspec.filesystem("hubtest").pipe_file("/set/a.jsonl", b"{}")
    return "hubtest://set/*.jsonl"


def test_a_file_of_the_hub_is_known_by_gits_hash_and_not_read(store, hub):
    (first,) = find(store, "web", [hub])[0]
    Hub.blob = "2" * 40
    (second,) = find(store, "web", [hub])[0]
    assert first.content_id != second.content_id


def test_a_place_that_does_not_answer_is_told_with_the_source_and_the_path(store, hub):
    Hub.fault = RuntimeError("no network")  # whatever its client library raises
    with pytest.raises(Unreachable, match=r"^sources\.web: hubtest://set/\*\.jsonl cannot be listed: no network$"):
        find(store, "sources.web", [hub])


def test_a_place_that_answers_without_the_folder_is_no_place_that_does_not_answer(store, hub):
    Hub.fault = FileNotFoundError("no such repository")
    with pytest.raises(UserError, match="no file matches") as error:
        find(store, "sources.web", [hub])
    assert not isinstance(error.value, Unreachable)
