"""What the energy of the GPUs (`trainer.nvml`) stands for in CO2 and water (OLMo 2 report, section 6.5)."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import EnergyConfig

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
