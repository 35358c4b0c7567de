"""Dumps on a web server that has nothing but pages with links."""

import hashlib
import os

import pytest
from dumps import site_archive, write_dump
from web_index import WebIndex

from flows import recuration
from tasks import storage
from tasks.dumps import look, places
from tasks.errors import UserError
from tasks.storage import open_file

from .test_recuration import A, B, Forum, counts, write


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))
    forum = Forum(tmp_path)
    forum.web = WebIndex(forum.dumps)
    forum.config["stackexchange_dumps"]["path"] = forum.web.url
    yield forum
    forum.web.close()


def sums(folder):
    """As archive.org writes it."""
    entries = [f'<file name="{p.name}"><sha1>{hashlib.sha1(p.read_bytes()).hexdigest()}</sha1></file>' for p in sorted(folder.glob("*.7z"))]
    (folder / f"{folder.name}_files.xml").write_text("<files>" + "".join(entries) + "</files>")


def test_a_dump_on_a_web_index_is_read_through_broken_connections_and_again_only_where_it_changed(web):
    write(web, "stackexchange_20260630", {"a": A, "b": B})
    web.web.cut = ["a.stackexchange.com.7z"] * 2
    first = web.recurate()
    assert counts(first) == {"a": (12, 0, 0, 0), "b": (8, 0, 0, 0)} and web.web.cut == []
    folder = write(web, "stackexchange_20260930", {"a": A, "b": B | {1: "edited"}})
    os.utime(folder / "a.stackexchange.com.7z", (5, 5))  # an ETag of its own: only the content tells that it is the same
    second = web.recurate()
    assert counts(second) == {"a": (0, 0, 0, 12), "b": (0, 0, 1, 7)} and second.shards_made["ingest"] == 1
    web.web.close()
    pipeline = web.pipeline()
    pipeline.recurated()  # what is done needs no server
    assert not any(pipeline.runner.made_shards.values())


def test_a_checksum_spares_the_reading_of_a_file_that_did_not_change(web):
    sums(write(web, "stackexchange_20260630", {"a": A, "b": B}))
    web.recurate()
    sums(write(web, "stackexchange_20260930", {"a": A, "b": B | {1: "edited"}}))
    web.web.read.clear()
    assert web.recurate().shards_made["ingest"] == 1
    assert sorted(web.web.read) == ["b.stackexchange.com.7z", "stackexchange_20260930_files.xml"]


def test_a_file_that_changes_while_it_is_read_is_not_taken(web, monkeypatch):
    folder = write(web, "2026-06-30", {"a": A})
    found = web.find()
    (folder / "a.stackexchange.com.7z").write_bytes(site_archive(B))
    os.utime(folder / "a.stackexchange.com.7z", (5, 5))
    with pytest.raises(UserError, match=r"a\.stackexchange\.com\.7z has changed since this run looked at it"):
        recuration.recurate(web.pipeline(), found)


def test_an_index_tells_folders_from_files_and_leads_nowhere_else(web):
    write_dump(web.dumps / "2026-06-30" / "my site.stackexchange.com", {})
    (web.dumps / "2026-06-30" / "my site.stackexchange.com" / "Posts.xml").write_bytes(b"<posts></posts>")
    (web.dumps / "2026-06-30.torrent").write_bytes(b"x")
    (web.dumps / "about").mkdir()
    (place,) = places(web.web.url)
    assert (place.name, place.date) == ("2026-06-30", "20260630")
    files = look(place).files
    assert sorted(files) == ["my site.stackexchange.com/Posts.xml", "my site.stackexchange.com/_SUCCESS"]
    assert files["my site.stackexchange.com/Posts.xml"].size == 15


def test_a_server_that_serves_no_parts_or_tells_no_sizes_is_told_so(web):
    folder, content = write(web, "2026-06-30", {"a": A}), os.urandom(12 << 20)
    (folder / "b.stackexchange.com.7z").write_bytes(content)
    url = f"{web.web.url}/2026-06-30/b.stackexchange.com.7z"
    with open_file(url, len(content)) as stream:
        assert stream.seek(-9, os.SEEK_END) and stream.read() == content[-9:]
    web.web.ranges = False
    with (
        pytest.raises(UserError, match=r"b\.stackexchange\.com\.7z: its server serves no parts of files"),
        open_file(url, len(content)) as stream,
    ):
        stream.seek(-9, os.SEEK_END)
        stream.read()
    web.web.sizes = False
    with pytest.raises(UserError, match=r"a\.stackexchange\.com\.7z: its server does not say how large it is"):
        web.find()
