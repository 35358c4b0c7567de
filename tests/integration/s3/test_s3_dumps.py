"""Stack Exchange dumps under an S3 prefix."""

import pytest
from dumps import recipe, site_archive
from in_process import InProcess

from flows import recuration
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from tasks.dump_record import last_done
from tasks.shards import Runner
from tasks.store import Store

A = {number: f"answer {number} of a" for number in range(12)}
B = {number: f"answer {number} of b" for number in range(8)}


@pytest.fixture
def forum(s3, tmp_path):
    """The recipe, and how a dump is put under the prefix."""
    config = recipe(tmp_path, f"{s3.raw}/dumps/stackexchange_*", settle_minutes=1)
    (tmp_path / "words.jsonl").write_text('{"text": "why answer of a and b"}\n')

    def put(dump, **sites):
        for site, documents in sites.items():
            s3.server.pipe_file(f"{s3.raw.removeprefix('s3://')}/dumps/{dump}/{site}.stackexchange.com.7z", site_archive(documents))

    return Recipe.model_validate(config), put


def test_a_prefix_is_watched_by_etags_and_what_did_not_change_is_not_read(forum, s3):
    config, put = forum
    waits = []
    put("stackexchange_20260630", a=A, b=B)
    put("other_20261231", a=B)

    def work():
        found = recuration.find(config, None, lambda line: None, waits.append)
        return recuration.recurate(Pipeline(config, Runner(Store(config.store), InProcess())), found) if found.dump else found.why

    assert work().dump == "stackexchange_20260630" and waits == [60]
    assert work() == "nothing is newer than stackexchange_20260630, which is done"
    put("stackexchange_20260930", a=A)
    waits[:] = []
    real_wait = waits.append

    def upload(seconds):
        real_wait(seconds)
        put("stackexchange_20260930", b=B | {1: "edited"})

    found = recuration.find(config, None, lambda line: None, upload)
    assert found.why == "stackexchange_20260930 is still being uploaded: b.stackexchange.com.7z came while it was looked at"
    s3.proxy.seen.clear()
    done = work()
    assert [(each.new, each.gone, each.edited, each.same) for each in done.changes] == [(0, 0, 0, 12), (0, 0, 1, 7)]
    assert not [path for method, path, _ in s3.proxy.seen if method == "GET" and path.endswith("20260930/a.stackexchange.com.7z")]
    assert last_done(Store(config.store), "forum") == done
