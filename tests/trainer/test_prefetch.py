"""Batches made ready in the background: the right ones in order, no more than asked, and no storage that keeps a run from leaving."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from trainer import token_files
from trainer.config import TrainConfig
from trainer.data import Batch, Loader, Mix
from trainer.errors import TrainerError
from trainer.parsing import parse
from trainer.prefetch import Prefetcher

CPU = torch.device("cpu")
PATIENCE_SECONDS = 60  # a bound on waiting for a condition, not a measurement


class Storage(fsspec.AbstractFileSystem):
    """Files of the disk behind `made://`; `answer` may delay or refuse a read. Remembers the reads as (file name, start, end)."""

    protocol = "made"
    cachable = False
    answer: Callable[[int], None]
    reads: list[tuple[str, int, int]]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        assert start is not None and end is not None
        Storage.reads.append((Path(path).name, start, end))
        Storage.answer(len(Storage.reads))
        return Path("/" + path.lstrip("/")).read_bytes()[start:end]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": Path("/" + path.lstrip("/")).stat().st_size, "type": "file"}


@pytest.fixture
def storage() -> Iterator[type[Storage]]:
    fsspec.register_implementation("made", Storage, clobber=True)
    Storage.answer, Storage.reads = staticmethod(lambda number: None), []
    yield Storage


@pytest.fixture
def make_loader(make_config: Any, tmp_path: Path) -> Callable[..., Loader]:
    """`make_loader(remote=False, **changes)`: of a run's mix, its token files behind `made://` where remote."""

    def build(remote: bool = False, **changes: Any) -> Loader:
        config = parse(TrainConfig, make_config(**changes), "test")
        files = None
        if remote:
            names = json.loads((Path(config.data.mix) / "mix.json").read_text())["files"]
            files = tmp_path / "files.json"
            files.write_text(json.dumps([f"made://{config.data.mix}/{name}" for name in names]))
        return Loader(Mix(config.data.mix, files), config, 0, 1)

    return build


class Scripted(Loader):
    """A loader that does as `act(number, stopped)` says before it reads."""

    def __init__(self, loader: Loader, act: Callable[[int, threading.Event], None]) -> None:
        self.__dict__.update(loader.__dict__)
        self.act = act

    def batch(self, number: int, stopped: threading.Event = token_files.NEVER) -> Batch:
        self.act(number, stopped)
        return super().batch(number, stopped)


@pytest.mark.parametrize("remote", [False, True])
def test_batches_come_in_order_whoever_reads_first(make_loader: Any, storage: type[Storage], remote: bool) -> None:
    loader = make_loader(remote)
    reading = threading.Barrier(4)

    def together(number: int, stopped: threading.Event) -> None:
        if remote:  # four readers at once, and the later step's goes first
            reading.wait(PATIENCE_SECONDS)
            for later in range(number + 1, number - number % 4 + 4):
                done[later].wait(PATIENCE_SECONDS)

    class Marked(Scripted):
        def batch(self, number: int, stopped: threading.Event = token_files.NEVER) -> Batch:
            batch = super().batch(number, stopped)
            done[number].set()
            return batch

    done = [threading.Event() for _ in range(12)]
    with Prefetcher(Marked(loader, together), 0, 12, CPU, ahead=4) as prefetcher:
        for step in range(12):
            given, expected = prefetcher.next(), loader.batch(step)
            assert given is not None
            assert given.ids.tolist() == expected.ids.tolist() == given.host.ids.tolist()
            assert given.kept.tolist() == expected.kept.tolist()
        with pytest.raises(IndexError, match="there is no step 12"):
            prefetcher.next()


def test_a_run_goes_on_at_any_step(make_loader: Any) -> None:
    loader = make_loader()
    with Prefetcher(loader, 7, 9, CPU) as prefetcher:
        for step in (7, 8):
            given = prefetcher.next()
            assert given is not None and given.ids.tolist() == loader.batch(step).ids.tolist()


def test_no_more_batches_are_held_than_asked(make_loader: Any) -> None:
    asked, ahead, excess = 0, 3, []
    full = threading.Event()

    def count(number: int, stopped: threading.Event) -> None:
        excess.append(number - asked - ahead)
        if number + 1 == ahead:
            full.set()

    with Prefetcher(Scripted(make_loader(), count), 0, 50, CPU, ahead=ahead) as prefetcher:
        assert full.wait(PATIENCE_SECONDS)  # it runs ahead without being asked
        for _ in range(50):
            asked += 1
            prefetcher.next()
    assert len(excess) == 50 and max(excess) < 0


def test_an_error_comes_out_at_its_own_step(make_loader: Any) -> None:
    def fail(number: int, stopped: threading.Event) -> None:
        if number == 2:
            raise TrainerError("instance 7 is bad; mend it.")

    with Prefetcher(Scripted(make_loader(), fail), 0, 12, CPU) as prefetcher:
        assert prefetcher.next() and prefetcher.next()
        with pytest.raises(TrainerError, match=r"instance 7 is bad; mend it\."):
            prefetcher.next()


def test_a_storage_that_hangs_keeps_nobody_from_leaving(make_loader: Any, storage: type[Storage]) -> None:
    hung, free = threading.Event(), threading.Event()

    def hang(number: int) -> None:
        hung.set()
        free.wait(PATIENCE_SECONDS)

    storage.answer = staticmethod(hang)
    prefetcher = Prefetcher(make_loader(remote=True), 0, 12, CPU)
    with prefetcher:
        assert hung.wait(PATIENCE_SECONDS)
        assert prefetcher.next(give_up=hung.is_set) is None
    assert not free.is_set()
    assert all(thread.daemon for thread in prefetcher._threads)  # so that the interpreter does not wait for them either
    free.set()


def test_a_wait_between_attempts_ends_when_nobody_needs_the_batch(
    make_loader: Any, storage: type[Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "RANGE_WAITS_SECONDS", (10_000.0,))
    asked = threading.Event()

    def refuse(number: int) -> None:
        asked.set()
        raise ConnectionError("made by the test")

    storage.answer = staticmethod(refuse)
    prefetcher = Prefetcher(make_loader(remote=True), 0, 12, CPU)
    with prefetcher:
        assert asked.wait(PATIENCE_SECONDS)
    for thread in prefetcher._threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_a_batch_from_a_storage_is_asked_for_in_few_reads_and_only_again_where_they_failed(
    make_loader: Any, storage: type[Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "RANGE_WAITS_SECONDS", (0.0,) * 3)
    loader = make_loader(remote=True, global_batch_instances=64, micro_batch_instances=1)
    local = make_loader(global_batch_instances=64, micro_batch_instances=1)

    def refuse_the_first(number: int) -> None:
        if number == 1:
            raise ConnectionError("made by the test")

    # All 64 instances of 32 tokens lie within two small files: one read each.
    assert np.array_equal(loader.batch(0).ids, local.batch(0).ids)
    assert sorted(name for name, _, _ in storage.reads) == ["tokens-0.npy", "tokens-1.npy"]
    storage.reads, storage.answer = [], staticmethod(refuse_the_first)
    assert np.array_equal(loader.batch(1).ids, local.batch(1).ids)
    assert [storage.reads.count(read) for read in sorted(set(storage.reads))] == [2, 1]
    # Nothing joined: a read for every piece, and the same ids.
    monkeypatch.setattr(token_files, "_GAP_BYTES", -1)
    storage.reads, storage.answer = [], staticmethod(lambda number: None)
    assert np.array_equal(loader.batch(2).ids, local.batch(2).ids)
    assert len(storage.reads) > 64


class Server(ThreadingHTTPServer):
    """Files of a folder by ranged reads over HTTP; when `hangs` is set no read is answered, until `freed`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.hangs, self.freed, self.hung = folder, threading.Event(), threading.Event(), threading.Semaphore(0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side has left


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str((self.server.folder / self.path[1:]).stat().st_size))
        self.end_headers()

    def do_GET(self) -> None:
        if self.server.hangs.is_set():
            self.server.hung.release()
            self.server.freed.wait()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        content = (self.server.folder / self.path[1:]).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/*")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(make_config: Any) -> Iterator[Server]:
    """Serves the token files of `make_config`'s mix, which are one: so each batch takes one read."""
    folder = Path(make_config()["data"]["mix"])
    parts = [(folder / f"tokens-{number}.npy").read_bytes() for number in range(2)]
    (folder / "tokens.npy").write_bytes(b"".join(parts))
    extents = np.load(folder / "extents.npy")
    extents[:, 1] += extents[:, 0] * (len(parts[0]) // 4)
    extents[:, 0] = 0
    np.save(folder / "extents.npy", extents)
    (folder / "mix.json").write_text(json.dumps(json.loads((folder / "mix.json").read_text()) | {"files": ["tokens.npy"]}))
    served = Server(folder)
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield served
    served.freed.set()
    served.shutdown()
    served.server_close()


def test_ranks_save_and_leave_on_sigterm_while_a_storage_hangs(
    make_config: Any, launch: Any, server: Server, tmp_path: Path, read_metrics: Any
) -> None:
    files = tmp_path / "files.json"
    files.write_text(json.dumps([f"http://127.0.0.1:{server.server_port}/tokens.npy"]))
    process = launch(make_config(max_steps=100_000, micro_batch_instances=2, **{"data.files": str(files)}), ranks=2)
    run = tmp_path / "run"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)  # between looks at the file
    server.hangs.set()
    for _ in range(8):  # two ranks read four batches ahead each: none of them has one that is ready
        assert server.hung.acquire(timeout=PATIENCE_SECONDS)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=25)  # torchelastic kills after 30 s
    assert "SIGTERM: saved after step" in output
    last = read_metrics(run)[-1]["step"]
    assert (run / "checkpoints" / f"step{last:07d}" / "checkpoint.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_reach_the_gpu_without_a_wait_for_it(make_loader: Any) -> None:
    loader, device = make_loader(), torch.device("cuda")
    sums = []
    with Prefetcher(loader, 0, 12, device) as prefetcher:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(12):
                given = prefetcher.next()
                assert given is not None
                sums.append((given.ids * given.kept[:, None]).sum())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    expected = [int((batch.ids * batch.kept[:, None]).sum()) for batch in map(loader.batch, range(12))]
    assert [int(each) for each in sums] == expected
