"""Energy of the GPUs by NVML, and what it stands for in CO2 and water (OLMo 2 report, section 6.5)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from trainer.config import EnergyConfig

log = logging.getLogger(__name__)

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Footprint:
    """CO2 in tonnes, and water in kilolitres."""

    co2_tonnes: float
    water_kilolitres: float


def footprint(gpu_kwh: float, config: EnergyConfig) -> Footprint:
    """CO2 = P * PUE * carbon intensity; water = P * PUE * (WUE on site + off site). A lower bound: hardware's making is not in it."""
    kwh = gpu_kwh * config.power_usage_effectiveness
    litres = kwh * (config.water_onsite_litres_per_kwh + config.water_offsite_litres_per_kwh)
    return Footprint(kwh * config.carbon_kg_per_kwh / 1000, litres / 1000)


def totals(joules: float, config: EnergyConfig | None) -> dict[str, float]:
    """What a run's `done.json` says of its energy, where it was measured: kWh of the GPUs alone, and CO2 and water where the data centre is
    described."""
    if not joules:
        return {}
    kwh = joules / _JOULES_PER_KWH
    if config is None:
        return {"gpu_kwh": kwh}
    whole = footprint(kwh, config)
    return {"gpu_kwh": kwh, "co2_tonnes": whole.co2_tonnes, "water_kilolitres": whole.water_kilolitres}


class EnergyMeter:
    """Joules that one GPU took since the last look, from NVML's counter of total energy (Volta and newer)."""

    def __init__(self, uuid: str) -> None:
        """`uuid` as torch or NVML writes it. Raises what NVML raises where it is not there or the GPU has no counter."""
        import pynvml

        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        self._last = self._millijoules()

    def joules(self) -> float:
        """Energy since the last call, or since the meter was made."""
        before, self._last = self._last, self._millijoules()
        return (self._last - before) / 1000

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def open_meter(uuid: str) -> EnergyMeter | None:
    """The meter of a GPU, or None with a line in the log where its energy cannot be measured."""
    try:
        return EnergyMeter(uuid)
    except ImportError:
        log.info("energy is not measured: install nvidia-ml-py (the extra `gpu`) to have it")
    except Exception as error:  # NVML's errors derive from Exception alone, and none of them may stop a run
        log.info("energy is not measured: NVML says %s", error)
    return None
