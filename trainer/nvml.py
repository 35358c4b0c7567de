"""What NVML tells of a GPU: its energy, temperature, power, clock and memory errors. None of it may stop a run."""

from __future__ import annotations

import logging
import math
from typing import Any

log = logging.getLogger(__name__)

# What `Gpu.readings` gives, in this order: degrees Celsius, watts, MHz of the streaming multiprocessors, and errors of its memory since the
# driver was loaded that ECC has corrected or could not correct.
READINGS = ("celsius", "watts", "sm_mhz", "ecc_corrected", "ecc_uncorrected")


class Gpu:
    """One GPU. What it does not tell (a consumer card has no ECC) is NaN."""

    def __init__(self, uuid: str) -> None:
        """`uuid` as torch or NVML writes it. Raises what NVML raises where it is not there."""
        import pynvml

        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        self._last = self._millijoules()

    def joules(self) -> float:
        """Energy since the last call that knew it, or since this was made, by the counter of total energy (Volta and newer)."""
        now = self._millijoules()
        if math.isnan(now):
            return math.nan
        before, self._last = self._last, now
        return (now - before) / 1000

    def readings(self) -> list[float]:
        """What it is like now, as `READINGS` names it."""
        nvml = self._nvml
        return [
            self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            self._ask("nvmlDeviceGetPowerUsage") / 1000,
            self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            self._ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC),
            self._ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
        ]

    def _millijoules(self) -> float:
        return self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def _ask(self, function: str, *arguments: int) -> float:
        try:
            return float(getattr(self._nvml, function)(self._handle, *arguments))
        except Exception:  # NVML's errors derive from Exception alone
            return math.nan


def open_gpu(uuid: str) -> Gpu | None:
    """The GPU, or None with a line in the log where NVML does not tell of it."""
    try:
        return Gpu(uuid)
    except ImportError:
        log.info("energy, temperature and memory errors are not measured: install nvidia-ml-py (the extra `gpu`) to have them")
    except Exception as error:
        log.info("energy, temperature and memory errors are not measured: NVML says %s", error)
    return None
