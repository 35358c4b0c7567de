"""The health check passes on a sound machine and names what is not sound."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from olmo_model.config import PRESETS, ModelConfig
from trainer import health
from trainer.__main__ import main
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.verdict import VERDICT


def test_a_sound_machine_passes(world: World, model_dict: dict) -> None:
    health.check(ModelConfig(**model_dict), world)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_entry_of_a_product_is_seen(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    multiply = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = multiply(left, right)
        if left.dtype == dtype:
            product[17, 33] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    assert str(dtype) in str(health.product_fault(torch.device("cpu")))


def test_the_failing_host_and_device_are_named(monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict) -> None:
    monkeypatch.setattr(health, "product_fault", lambda device: "a product came out wrong")
    with pytest.raises(TrainerError, match=rf"host {world.host}, device cpu \(rank 0\): a product came out wrong"):
        health.check(ModelConfig(**model_dict), world)


def test_a_device_that_raises_is_named(monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal instruction\nmore")

    monkeypatch.setattr(health, "product_fault", broken)
    with pytest.raises(TrainerError, match=rf"host {world.host}, device cpu .*an illegal instruction;"):
        health.check(ModelConfig(**model_dict), world)


def test_a_wrong_all_reduce_is_named(monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor[7].add_(1))
    with pytest.raises(TrainerError, match="all-reduce returned other sums"):
        health.check(ModelConfig(**model_dict), world)


def test_an_all_reduce_that_raises_is_named_even_where_no_rank_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict
) -> None:
    def broken(tensor: torch.Tensor) -> None:
        raise torch.distributed.DistBackendError("NCCL error: remote process exited\nLast error: ...")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    sentence = (
        rf"^the health check failed: host {world.host}, device cpu \(rank 0\): an all-reduce raised NCCL error: remote process exited; "
    )
    with pytest.raises(TrainerError, match=sentence):
        health.check(ModelConfig(**model_dict), world)

    calls = []

    def broken_after_one(values: list, value: object) -> None:
        calls.append(value)
        values[0] = value
        if len(calls) > 1:
            raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", broken_after_one)
    with pytest.raises(TrainerError, match=sentence):
        health.check(ModelConfig(**model_dict), world)


def test_ranks_that_cannot_hear_each_other_name_host_and_device(monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict) -> None:
    def broken(values: list, value: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", broken)
    with pytest.raises(TrainerError, match=rf"host {world.host}, device cpu .*hearing from the other ranks raised Connection closed"):
        health.check(ModelConfig(**model_dict), world)


def test_a_model_too_large_for_the_memory_is_named(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(health, "_free_bytes", lambda device: 50 << 30)
    with pytest.raises(TrainerError, match=r"50\.0 GiB of memory free, .* take 108\.8 GiB"):
        health.check(PRESETS["7b"], world)
    with pytest.raises(TrainerError, match=r"take 54\.4 GiB"):  # a copy of the model on four of eight ranks
        health.check(PRESETS["7b"], dataclasses.replace(world, size=8), replicas=4)


def test_the_verdict_is_left_as_a_file_that_names_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch, world: World, model_dict: dict, tmp_path: Path
) -> None:
    monkeypatch.setattr(health, "product_fault", lambda device: "a product came out wrong")
    with pytest.raises(TrainerError):
        health.check(ModelConfig(**model_dict), world, folder=tmp_path)
    told = {"host": world.host, "device": "cpu", "gpu": None, "rank": 0, "fault": "a product came out wrong", "own": True}
    assert json.loads((tmp_path / VERDICT).read_text()) == [told]
    monkeypatch.undo()
    monkeypatch.setattr(health, "_free_bytes", lambda device: 0)  # which may be a model that is too large
    with pytest.raises(TrainerError):
        health.check(ModelConfig(**model_dict), world, folder=tmp_path)
    (told,) = json.loads((tmp_path / VERDICT).read_text())
    assert not told["own"] and "GiB of memory free" in told["fault"]


def test_a_gpu_has_the_name_by_which_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    second = dataclasses.replace(world, device=torch.device("cuda", 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7a")
    assert health._fault(second, "x").gpu == "GPU-7a"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert health._fault(second, "x").gpu == "1"


def test_a_gpu_that_cannot_even_be_taken_is_named_in_the_verdict(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", broken)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(make_config(device="cuda")))
    assert main([str(tmp_path / "config.yaml")]) == 1
    assert "host gpu-17, device cuda:0 (rank 0): raised CUDA error: uncorrectable ECC error" in capsys.readouterr().err
    (told,) = json.loads((tmp_path / "run" / VERDICT).read_text())
    assert (told["host"], told["gpu"], told["own"]) == ("gpu-17", "5", True)
