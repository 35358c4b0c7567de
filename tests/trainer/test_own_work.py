"""What a run tells of each rank and its GPU."""

import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.nvml import open_gpu
from trainer.own_work import over_peers
from trainer.sinks import flat

SLOW_RANK = """
import os, sys, time
from olmo_model.model import Layer

if os.environ["RANK"] == "1":
    forward = Layer.forward
    def slow(*args, **kwargs):
        time.sleep(0.25)
        return forward(*args, **kwargs)
    Layer.forward = slow
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("seconds", [[1.0, 1.5, 4.0, 2.0, 0.5], [3.0, 1.0], [2.0, 2.0, 2.0, 9.0]])
def test_each_rank_is_measured_by_the_median_of_the_others(seconds: list[float]) -> None:
    expected = [mine / statistics.median(seconds[:rank] + seconds[rank + 1 :]) for rank, mine in enumerate(seconds)]
    assert over_peers(seconds) == pytest.approx(expected)


def test_a_slow_rank_stands_out_of_those_that_wait_for_it_and_the_losses_are_the_same(
    make_config: Any, tmp_path: Path, read_metrics: Any, run_ranks: Any
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_RANK)
    settings = {"micro_batch_instances": 1, "max_steps": 4, "metrics.ranks_every_steps": 2}
    run_ranks(make_config(run_folder=str(tmp_path / "plain"), **settings), 2)
    run_ranks(make_config(run_folder=str(tmp_path / "slow-run"), **settings), 2, module="slow")
    lines = read_metrics(tmp_path / "slow-run")
    stands_out = [line["slowest_rank"] == 1 and line["slowest_rank_over_median"] > 1.5 for line in lines]
    assert sum(stands_out) >= 3  # a busy machine may stop the other rank for as long once
    assert ["rank_over_median" in line for line in lines] == [True, False, True, False]
    assert lines[0]["rank_over_median"][1] == pytest.approx(lines[0]["slowest_rank_over_median"], abs=1e-3)
    assert [line["loss"] for line in lines] == [line["loss"] for line in read_metrics(tmp_path / "plain")]
    assert [each["device"] for each in json.loads((tmp_path / "slow-run" / "ranks.json").read_text())] == ["cpu", "cpu"]


class NoSuchThing(Exception):
    """As NVML's errors: of no class of Python's own but this."""


def test_nvml_tells_what_it_can_and_what_it_cannot_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an NVML of the test's own: no GPU is at hand."""
    energy = iter([5_000, 12_000, None, 20_000])

    def total_energy(handle: str) -> int:
        value = next(energy)
        if value is None:
            raise NoSuchThing
        return value

    def memory_errors(handle: str, kind: int, counter: int) -> int:
        if kind == 1:
            raise NoSuchThing
        return 3

    nvml = SimpleNamespace(
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        NVML_MEMORY_ERROR_TYPE_CORRECTED=0,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=total_energy,
        nvmlDeviceGetTemperature=lambda handle, sensor: 61,
        nvmlDeviceGetPowerUsage=lambda handle: 654_300,
        nvmlDeviceGetClockInfo=lambda handle, clock: 1980 if clock == 1 else 0,
        nvmlDeviceGetTotalEccErrors=memory_errors,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = open_gpu("abc")
    assert gpu is not None
    assert gpu.readings() == pytest.approx([61, 654.3, 1980, 3, float("nan")], nan_ok=True)
    # an answer that does not come loses no energy
    assert [gpu.joules(), gpu.joules(), gpu.joules()] == pytest.approx([7, float("nan"), 8], nan_ok=True)


def test_sinks_that_take_numbers_only_get_a_number_a_rank() -> None:
    assert flat({"step": 3, "rank_gpu_celsius": [61.0, None, 70.0]}) == {"step": 3, "rank_gpu_celsius/0": 61.0, "rank_gpu_celsius/2": 70.0}
