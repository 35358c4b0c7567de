"""Checkpoints in the background, their keep rules, and reading them on other numbers of ranks."""

import functools
import json
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from trainer.checkpoint import MARKER, fault_in, load_model_tensors, remove_older
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.parsing import parse
from trainer.tensorfiles import INDEX, Part, header, make_index, read_index
from trainer.train import train


def _config(data: dict[str, Any]) -> TrainConfig:
    return parse(TrainConfig, data, "test")


def _same(metrics: list[dict[str, Any]]) -> list[tuple]:
    return [tuple(line[key] for key in ("step", "loss", "z_loss", "grad_norm", "learning_rate")) for line in metrics]


def _losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in metrics]


HSDP = {"replicas": 2}


@pytest.mark.parametrize(
    "rounds",
    [
        [(1, {}), (4, HSDP), (2, {}), (1, {})],
        pytest.param([(2, {}), (4, {}), (2, {"accumulate": "sharded"}), (4, HSDP)], marks=pytest.mark.soak),
    ],
    ids=["1, 2x2, 2, 1", "2, 4, 2, 2x2"],
)
def test_other_numbers_of_ranks_go_on_with_the_same_data_and_loss(
    rounds: list, make_config: Any, tmp_path: Path, run_ranks: Any, read_metrics: Any, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Each round trains on to the end; the next finds only the checkpoint of its own beginning whole."""
    changes = {"micro_batch_instances": 1, "schedule.decay_steps": 12, "checkpoint.every_steps": 3}
    train(_config(make_config(run_folder=str(tmp_path / "alone"), **changes)), world)
    run = tmp_path / "run"
    for number, (ranks, parallel) in enumerate(rounds):
        config = make_config(parallel=parallel, **changes)
        if ranks == 1:
            with caplog.at_level("INFO"):
                train(_config(config), world)
            output = caplog.text
        else:
            output = run_ranks(config, ranks)
        assert number == 0 or f"resumed from {run / 'checkpoints' / f'step{3 * number:07d}'}" in output
        assert _losses(read_metrics(run)) == pytest.approx(_losses(read_metrics(tmp_path / "alone")), rel=1e-5)
        for late in range(3 * number + 6, 13, 3):
            (run / "checkpoints" / f"step{late:07d}" / MARKER).unlink()
        (run / "done.json").unlink()


def test_a_checkpoint_of_a_compiled_recomputing_model_is_one_of_a_plain_model(
    make_config: Any, world: World, tmp_path: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by the one and gone on with by the other, and back, the losses are a plain run's."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    changes = {"schedule.decay_steps": 9, "max_steps": 9, "checkpoint.every_steps": 3}
    train(_config(make_config(run_folder=str(tmp_path / "plain"), **changes)), world)
    checkpoints = tmp_path / "run" / "checkpoints"
    for late, parallel in enumerate([{"activation_checkpointing": "full", "compile": True}, {}, {"compile": True}]):
        train(_config(make_config(parallel=parallel, **changes)), world)
        (tmp_path / "run" / "done.json").unlink()
        assert _losses(read_metrics(tmp_path / "run")) == pytest.approx(_losses(read_metrics(tmp_path / "plain")), rel=1e-5)
        for step in range(3 * late + 6, 10, 3):
            (checkpoints / f"step{step:07d}" / MARKER).unlink()
    names = [list(read_index(tmp_path / run / "checkpoints" / "step0000003").tensors) for run in ("plain", "run")]
    assert names[0] == names[1]


def test_index_headers_and_torch_agree_about_what_two_ranks_wrote(make_config: Any, run_ranks: Any, tmp_path: Path, world: World) -> None:
    run_ranks(make_config(max_steps=2, micro_batch_instances=1), 2)
    folder = tmp_path / "run" / "checkpoints" / "step0000002"
    index = read_index(folder)
    assert len(index.tensors) == 3 * len(dict(load_model_tensors(folder)))
    ours = {name: index.whole(name) for name in index.tensors}
    theirs = {name: torch.zeros_like(tensor) for name, tensor in ours.items()}
    dcp.load(theirs, storage_reader=HuggingFaceStorageReader(str(folder)))
    assert all(torch.equal(theirs[name], tensor) and tensor.any() == theirs[name].any() for name, tensor in ours.items())
    written = json.loads((folder / INDEX).read_text())
    (folder / INDEX).unlink()
    assert json.loads(read_index(folder).encode()) == written
    dcp.save(ours, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "torch"), save_distributed=True))
    back = read_index(tmp_path / "torch")
    assert back.tensors.keys() == ours.keys()
    assert all(torch.equal(back.whole(name), tensor) for name, tensor in ours.items())


def test_any_range_is_read_from_any_cut(tmp_path: Path) -> None:
    """Brute force: a tensor of 10 rows in files of 3, 0, 4 and 3 rows; every range of its elements."""
    whole = torch.randn(10, 3)
    cuts = [(0, 3), (3, 3), (3, 7), (7, 10)]
    for number, (low, high) in enumerate(cuts):
        part = Part("a", torch.float32, (high - low, 3), low)
        (tmp_path / f"{number}.safetensors").write_bytes(header([part]) + whole[low:high].numpy().tobytes())
        assert torch.equal(load_file(tmp_path / f"{number}.safetensors")["a"], whole[low:high])
    index = read_index(tmp_path)
    for start in range(30):
        for count in range(1, 31 - start):
            found = torch.empty(count)
            index.read([("a", start, found)])
            assert torch.equal(found, whole.reshape(-1)[start : start + count])
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(TrainerError, match="holds only a part of a"):
        read_index(tmp_path).whole("a")


def test_permanent_checkpoints_stay_and_torn_ones_count_for_nothing(tmp_path: Path) -> None:
    for step in range(10, 110, 10):
        (tmp_path / f"step{step:07d}").mkdir()
        (tmp_path / f"step{step:07d}" / MARKER).write_text("{}")
    (tmp_path / "step0000090" / MARKER).unlink()
    remove_older(tmp_path / "step0000100", 2, 40)
    assert sorted(int(path.name[4:]) for path in tmp_path.iterdir()) == [40, 60, 70, 80, 100]


def test_permanent_checkpoints_are_saved_at_their_steps(make_config: Any, world: World, tmp_path: Path) -> None:
    train(_config(make_config(**{"checkpoint.every_steps": 4, "checkpoint.keep": 0, "checkpoint.permanent_every_steps": 5})), world)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [int(path.name[4:]) for path in folders] == [5, 10, 12]
    assert [fault_in(path) for path in folders] == [None] * 3


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(make_config: Any, world: World, tmp_path: Path) -> None:
    config = _config(make_config(**{"checkpoint.every_steps": 3}))
    train(_config(make_config(max_steps=3, **{"schedule.decay_steps": 40, "checkpoint.every_steps": 3})), world)
    (tmp_path / "run" / "done.json").unlink()
    (tmp_path / "run" / "config.json").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # what a file may hold: Python sees an OSError, as on a full disk
    try:
        with pytest.raises(TrainerError, match=r"step0000006 could not be written: File too large \(host .*rank 0\); make room"):
            train(config, world)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step0000003"]
    assert train(config, world) == 0


def test_whatever_fails_on_one_rank_ends_the_checkpoint_on_all(make_config: Any, run_ranks: Any, tmp_path: Path) -> None:
    """Not only what the disk says: the other rank must not wait for one that gave up."""
    (tmp_path / "faulty.py").write_text("""
import sys
import torch.distributed as dist
from trainer.__main__ import main
from trainer.saving import Saver

write = Saver._write_tensors

def fail(self, folder):
    if dist.get_rank() == 1 and folder.name == "step0000004":
        raise ValueError("no such\\nluck")
    return write(self, folder)

Saver._write_tensors = fail
sys.exit(main(sys.argv[1:]))
""")
    config = make_config(max_steps=100_000, micro_batch_instances=2, **{"checkpoint.every_steps": 2})
    output = run_ranks(config, 2, module="faulty", code=1)
    assert "step0000004 could not be written: ValueError: no such luck (host" in output and "rank 1); start again" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step0000002"]


def test_sigterm_in_the_middle_of_saving_leaves_a_whole_checkpoint_in_time(
    make_config: Any, launch: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    config = make_config(max_steps=100_000, micro_batch_instances=2, **{"checkpoint.every_steps": 1, "checkpoint.keep": 1})
    process = launch(config, ranks=2)
    assert any("step 4/" in line for line in process.stdout)  # type: ignore[union-attr]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=25)
    assert "SIGTERM: saved after step" in output
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert fault_in(newest) is None


def test_a_step_after_the_copy_does_not_change_what_is_written(
    make_config: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writing of step 4 begins only when step 6 is done; its weights are those of a run that ends at step 4."""
    import threading

    from trainer.bookkeeping import Bookkeeper
    from trainer.saving import Saver

    train(_config(make_config(max_steps=4, run_folder=str(tmp_path / "short"), **{"schedule.decay_steps": 40})), world)
    reached, write, record = threading.Event(), Saver._write, Bookkeeper.record

    def late(self: Any, *arguments: Any) -> None:
        assert reached.wait(60)
        write(self, *arguments)

    def tell(books: Bookkeeper, numbers: Any) -> None:
        record(books, numbers)
        if numbers.step == 6:
            reached.set()

    monkeypatch.setattr(Saver, "_write", late)
    monkeypatch.setattr(Bookkeeper, "record", tell)
    train(_config(make_config(**{"checkpoint.permanent_every_steps": 4})), world)
    names = [tmp_path / name / "checkpoints" / "step0000004" for name in ("short", "run")]
    first, second = (read_index(name) for name in names)
    assert all(torch.equal(first.whole(name), second.whole(name)) for name in first.tensors)


def test_an_index_of_many_ranks_round_trips() -> None:
    table = np.array([(number, rank, 8 + number * 40, rank * 10, 10) for rank in range(50) for number in range(3)], np.int64)
    known = dict.fromkeys("abc", (torch.float32, (500,)))
    index = make_index(Path(), [f"{rank}" for rank in range(50)], known, table)
    again = type(index).decode(Path(), index.encode())
    assert list(again.pieces("b", 15, 20)) == [(1, 48 + 20, 0, 5), (2, 48, 5, 10), (3, 48, 15, 5)]
