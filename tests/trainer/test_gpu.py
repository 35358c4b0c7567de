"""Promises that only a GPU can break."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainer import parallel
from trainer.bookkeeping import Bookkeeper, StepNumbers
from trainer.config import TrainConfig
from trainer.own_work import OwnWork
from trainer.parsing import parse
from trainer.train import EXIT_TERMINATED, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def gpu_world(request: pytest.FixtureRequest) -> Any:
    yield parallel.start("cuda", 1, deterministic=getattr(request, "param", False))
    torch.use_deterministic_algorithms(False)
    dist.destroy_process_group()


def _config(data: dict[str, Any], **changes: Any) -> TrainConfig:
    return parse(TrainConfig, {**data, "device": "cuda", "precision": "bf16", **changes}, "test")


@pytest.mark.parametrize("skip_step", [None, {"window": 3}])
def test_a_step_that_logs_nothing_never_waits_for_the_gpu(
    skip_step: Any, make_config: Any, gpu_world: parallel.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third step, when everything is compiled and allocated, to the last a wait is an error."""
    record, quiet = Bookkeeper.record, []

    def watched(books: Bookkeeper, numbers: StepNumbers) -> None:
        record(books, numbers)
        torch.cuda.set_sync_debug_mode("error" if 2 <= numbers.step < 12 else "default")
        quiet.append(torch.cuda.get_sync_debug_mode())

    monkeypatch.setattr(Bookkeeper, "record", watched)
    try:
        settings = {"metrics.every_steps": 1000, "metrics.embedding_norm_every_steps": 5, "optimizer.skip_step": skip_step}
        train(_config(make_config(**settings), micro_batch_instances=2), gpu_world)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert quiet.count(2) == 10


@pytest.mark.parametrize("gpu_world", [True], ids=["deterministic"], indirect=True)
def test_a_deterministic_run_goes_on_bit_for_bit(
    make_config: Any, gpu_world: parallel.World, tmp_path: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(_config(make_config(run_folder=str(tmp_path / "whole")), deterministic=True), gpu_world)
    record = Bookkeeper.record

    def terminate_at_five(books: Bookkeeper, numbers: StepNumbers) -> None:
        record(books, numbers)
        if numbers.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Bookkeeper, "record", terminate_at_five)
    config = _config(make_config(), deterministic=True)
    assert train(config, gpu_world) == EXIT_TERMINATED
    assert train(config, gpu_world) == 0
    whole, resumed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "run")
    assert [(line["loss"], line["grad_norm"]) for line in resumed] == [(line["loss"], line["grad_norm"]) for line in whole]


def test_a_rank_s_own_work_is_timed_without_waiting_for_the_gpu(make_config: Any, gpu_world: parallel.World) -> None:
    config = _config(make_config())
    model = parallel.build_model(config.model, gpu_world, "bf16", 1)
    own_work = OwnWork(model, gpu_world.device)
    ids = torch.ones(2, 32, dtype=torch.long, device=gpu_world.device)
    kept = torch.ones(2, dtype=torch.bool, device=gpu_world.device)
    for watched in (False, True):  # once for what the first pass makes ready
        own_work.measure(watched)
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            model.loss(ids, kept, 64, 0.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    spans = own_work.take()
    assert len(spans) == config.model.n_layers
    assert all(ended.seconds_since(began) > 0 for began, ended in spans)
