"""The books of a run: each step's numbers leave the device in company, and a thread of its own brings the ranks' together and writes them.

The loop hands over a row of numbers that is still on the device, and goes on. Every few steps the rows are copied to the host without
waiting; the thread waits for the copy, gathers all ranks' rows over a gloo group that nobody else uses, and rank 0 writes one line a
step. What is wrong comes back to the loop when it hands over later rows, at the same step on all ranks.
"""

from __future__ import annotations

import logging
import math
import queue
import resource
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config import TrainConfig
from trainer.moment import Moment
from trainer.nvml import READINGS, open_gpu
from trainer.own_work import over_peers
from trainer.parallel import World
from trainer.sinks import Sink
from trainer.spikes import SpikeScore

log = logging.getLogger(__name__)

# What a step leaves on the device, in this order; behind them the loss of each of the rank's micro-batches.
LOSS, Z_LOSS, GRAD_NORM, SKIPPED, EMBEDDING_NORM, LARGEST_LOGIT = range(6)
ON_DEVICE = 6
# What a rank tells the others of a step, in this order: the above (the loss as all micro-batches' sum), and these.
_MASKED, _SECONDS, _WAIT, _CHECKPOINT, _HELD_OUT, _MEMORY, _JOULES, _BAD, _OWN = range(ON_DEVICE, ON_DEVICE + 9)
_CELSIUS, _WATTS, _SM_MHZ, _CORRECTED, _UNCORRECTED = _READ = range(ON_DEVICE + 9, ON_DEVICE + 14)  # as `READINGS`
_COLUMNS = ON_DEVICE + 14
_SUMMED = (LOSS, Z_LOSS, _MASKED, _JOULES, _WATTS, _CORRECTED, _UNCORRECTED)
_GREATEST = (LARGEST_LOGIT, _WAIT, _CHECKPOINT, _HELD_OUT, _MEMORY, _CELSIUS)
_LEAST = (_SM_MHZ,)
_EVERY_STEPS = {"cpu": 1, "cuda": 10}
_SCORED = ("loss", "bits_per_byte")
_GRACE_SECONDS = 5  # for the thread, where the run fails

# Dense bf16 without sparsity, FLOP/s, by a part of the device's name; the first that fits.
_PEAK_FLOPS = (("H100 PCIe", 756.5e12), ("H100 NVL", 835.5e12), ("H100", 989.5e12), ("H200", 989.5e12), ("A100", 312e12))


def _peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s that the device could do at best; None where that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS if part in name), None)


@dataclass
class StepNumbers:
    """One step, as the loop hands it over.

    Attributes:
        row: shape (ON_DEVICE + micro-batches,), fp32, on the device; NaN in a norm that was not looked at.
        rate: learning rate.
        masked: instances of this rank whose loss is masked.
        wait: seconds of the step that the loop waited for data.
        checkpoint: seconds that it stood still for a checkpoint before the step.
        held_out: seconds that it stood still for held-out scores after the step.
        scores: held-out numbers by flat name, the same on all ranks.
        own: beginning and end of what this rank computed without waiting for others; where there are none, none.
    """

    step: int
    row: Tensor
    rate: float
    masked: int
    began: Moment
    ended: Moment
    wait: float = 0.0
    checkpoint: float = 0.0
    held_out: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    own: list[tuple[Moment, Moment]] = field(default_factory=list)


class NotFinite(Exception):
    """The loss or gradient norm of `step` is no finite number; the same on every rank.

    `losses`: each rank's share of the loss; `bad`: the first of its micro-batches whose loss is none, by rank.
    """

    def __init__(self, step: int, loss: float, grad_norm: float, losses: list[float], bad: dict[int, int]) -> None:
        super().__init__(step)
        self.step, self.loss, self.grad_norm, self.losses, self.bad = step, loss, grad_norm, losses, bad


class _Copy:
    """Rows on their way to the host."""

    def __init__(self, rows: list[Tensor]) -> None:
        stacked = torch.stack(rows)
        self._event = None
        if stacked.device.type == "cuda":
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = stacked

    def wait(self) -> Tensor:
        if self._event:
            self._event.synchronize()
        return self._host


class Bookkeeper:
    """Collective: every rank makes one, at the same step, and hands over the same steps.

    Attributes:
        loss: of the last step that is written.
        joules: that all GPUs have taken since the run's first step; 0 where it is not measured.
    """

    def __init__(self, world: World, config: TrainConfig, steps: int, before: Iterable[dict[str, Any]], sinks: list[Sink]) -> None:
        """`steps`: length of the run; `before`: the lines of the steps done earlier; `sinks`: rank 0's, closed at the end."""
        self._world, self._steps, self._sinks = world, steps, sinks
        self._every = config.metrics.every_steps or _EVERY_STEPS[world.device.type]
        self._tokens_per_step = config.global_batch_instances * config.sequence_length
        self._spikes = {"loss": SpikeScore(), "grad_norm": SpikeScore()}
        self.loss, self.joules = math.nan, 0.0
        for line in before:
            for name, score in self._spikes.items():
                score.add(line[name])
            self.loss, self.joules = line["loss"], self.joules + line.get("gpu_joules", 0.0)
        peak = _peak_flops(world.device)
        self._peak_tokens = world.size * peak / config.model.flops_per_token(config.sequence_length) if peak else None
        cuda = world.device.type == "cuda"
        self._gpu = open_gpu(str(torch.cuda.get_device_properties(world.device).uuid)) if cuda else None
        self._ranks_every, self._ranks_told = config.metrics.ranks_every_steps, -math.inf  # step whose line told of each rank
        self._group = dist.new_group(backend="gloo")
        self._waiting: list[StepNumbers] = []
        self._work: queue.SimpleQueue[tuple[list[StepNumbers], _Copy] | None] = queue.SimpleQueue()
        self._handed = self._done = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None  # of the hand-over after the last that is done
        # A daemon: a rank that ends with an error must not wait here for ranks that will not come.
        self._thread = threading.Thread(target=self._keep, name="bookkeeping", daemon=True)
        self._thread.start()

    def __enter__(self) -> Bookkeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what was handed over and close the sinks; where the run fails, as far as that needs no other rank."""
        if kind is None:
            self.drain()
        self._work.put(None)
        self._thread.join(None if kind is None else _GRACE_SECONDS)
        if self._thread.is_alive():
            return
        for sink in self._sinks:
            sink.close()
        if kind is None:
            dist.destroy_process_group(self._group)

    def record(self, numbers: StepNumbers) -> None:
        """Hand over a step. Raises what went wrong with steps before it, at the same step on every rank."""
        self._waiting.append(numbers)
        if numbers.step % self._every == 0:
            self._hand_over()
            self._wait_for(self._handed - 1)

    def drain(self) -> None:
        """Wait until everything handed over is written; `loss` is then the last step's. Raises as `record` does."""
        if self._waiting:
            self._hand_over()
        self._wait_for(self._handed)

    def _hand_over(self) -> None:
        steps, self._waiting = self._waiting, []
        self._work.put((steps, _Copy([each.row for each in steps])))
        self._handed += 1

    def _wait_for(self, done: int) -> None:
        """Until so many hand-overs are done. An error of a later one stays where it is: other ranks may not know of it yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._done >= done or self._error is not None)
            if self._done < done and self._error is not None:
                raise self._error

    def _keep(self) -> None:
        try:
            if self._world.device.type == "cuda":
                torch.cuda.set_device(self._world.device)
            while (work := self._work.get()) is not None:
                self._write(*work)
                with self._changed:
                    self._done += 1
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _write(self, steps: list[StepNumbers], copy: _Copy) -> None:
        rows_here = copy.wait()  # before the GPU is looked at: it has done the steps then
        joules, readings = (self._gpu.joules(), self._gpu.readings()) if self._gpu else (math.nan, [math.nan] * len(READINGS))
        ranks = self._gather(_told(steps, rows_here, joules, readings))
        lines, fault = [], None
        for each, rows in zip(steps, ranks.unbind(1), strict=True):
            values = rows[0].clone()
            values[list(_SUMMED)] = rows[:, _SUMMED].sum(dim=0)
            values[list(_GREATEST)] = rows[:, _GREATEST].amax(dim=0)
            values[list(_LEAST)] = rows[:, _LEAST].amin(dim=0)
            numbers = values.tolist()
            fault = _fault(each.step, numbers, rows)
            if fault:
                break
            lines.append(self._line(each, numbers) | self._of_ranks(each.step, rows, is_last=each is steps[-1]))
        for sink in self._sinks:
            sink.write(lines)
        if lines:
            self.loss = lines[-1]["loss"]
            if self._world.rank == 0:
                self._log(lines)
        if fault:
            raise fault

    def _gather(self, mine: Tensor) -> Tensor:
        """All ranks' numbers, shape (ranks, steps, _COLUMNS)."""
        ranks = [torch.empty_like(mine) for _ in range(self._world.size)]
        dist.all_gather(ranks, mine, group=self._group)
        return torch.stack(ranks)

    def _line(self, each: StepNumbers, numbers: list[float]) -> dict[str, Any]:
        speed = self._tokens_per_step / numbers[_SECONDS]
        line: dict[str, Any] = {
            "step": each.step,
            "tokens": each.step * self._tokens_per_step,
            "loss": numbers[LOSS],
            "z_loss": numbers[Z_LOSS],
            "grad_norm": numbers[GRAD_NORM],
            "largest_logit": numbers[LARGEST_LOGIT],
            "learning_rate": each.rate,
            "masked_instances": int(numbers[_MASKED]),
            "skipped": int(numbers[SKIPPED]),
            "tokens_per_second": speed,
            "seconds": numbers[_SECONDS],
            "ranks": self._world.size,
            "data_wait_seconds": numbers[_WAIT],
            "checkpoint_seconds": numbers[_CHECKPOINT],
            "held_out_seconds": numbers[_HELD_OUT],
            "peak_memory_bytes": int(numbers[_MEMORY]),
        }
        for name, score in self._spikes.items():
            line[f"{name}_spike"] = int(score.add(line[name]))
            line[f"{name}_spike_score"] = score.percent
        if self._peak_tokens:
            line["mfu"] = speed / self._peak_tokens
        looked_at = {"embedding_norm": EMBEDDING_NORM, "gpu_joules": _JOULES}
        looked_at |= {f"gpu_{name}": column for name, column in zip(READINGS, _READ, strict=True)}
        line |= {name: numbers[column] for name, column in looked_at.items() if not math.isnan(numbers[column])}
        self.joules += line.get("gpu_joules", 0.0)
        return line | each.scores

    def _of_ranks(self, step: int, rows: Tensor, is_last: bool) -> dict[str, Any]:
        """Which rank is behind the others, and now and then what each is like. `rows`: shape (ranks, _COLUMNS)."""
        if self._world.size == 1 or self._world.rank != 0:
            return {}
        behind = over_peers(rows[:, _OWN].tolist())
        slowest = behind.index(max(behind))
        line: dict[str, Any] = {"slowest_rank": slowest, "slowest_rank_over_median": behind[slowest]}
        if is_last and step - self._ranks_told >= self._ranks_every:  # the GPUs' numbers are the last step's
            self._ranks_told = step
            line["rank_over_median"] = [round(each, 3) for each in behind]
            for name, column in zip(READINGS, _READ, strict=True):
                if not rows[:, column].isnan().all():
                    line[f"rank_gpu_{name}"] = [None if math.isnan(value) else value for value in rows[:, column].tolist()]
        return line

    def _log(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["skipped"]:
                log.warning("step %d left out: loss %.4f, grad norm %.3f", line["step"], line["loss"], line["grad_norm"])
            if "held_out/all/loss" in line:
                log.info("step %d held out: loss %.4f, %.4f bits a byte", line["step"], *(line[f"held_out/all/{key}"] for key in _SCORED))
        line = lines[-1]
        log.info(
            "step %d/%d loss %.4f grad norm %.3f learning rate %.4g, %.0f tokens/s",
            line["step"],
            self._steps,
            line["loss"],
            line["grad_norm"],
            line["learning_rate"],
            line["tokens_per_second"],
        )


def _fault(step: int, numbers: list[float], rows: Tensor) -> NotFinite | None:
    if math.isfinite(numbers[LOSS]) and math.isfinite(numbers[GRAD_NORM]):
        return None
    bad = {rank: int(index) for rank, index in enumerate(rows[:, _BAD].tolist()) if index >= 0}
    return NotFinite(step, numbers[LOSS], numbers[GRAD_NORM], rows[:, LOSS].tolist(), bad)


def _told(steps: list[StepNumbers], rows: Tensor, joules: float, readings: list[float]) -> Tensor:
    """What this rank tells the others, float64 of shape (steps, _COLUMNS).

    Energy is known for all of the steps together, and the GPU is looked at after them: the last has both.
    """
    told = torch.full((len(steps), _COLUMNS), math.nan, dtype=torch.float64)
    told[:, :ON_DEVICE] = rows[:, :ON_DEVICE]
    told[:, _JOULES] = math.nan if math.isnan(joules) else 0.0
    told[-1, _JOULES] = joules
    told[-1, list(_READ)] = torch.tensor(readings, dtype=torch.float64)
    told[:, _MEMORY] = _peak_memory_bytes(steps[0].row.device)
    for each, mine, losses in zip(steps, told, rows[:, ON_DEVICE:], strict=True):
        host = (each.masked, each.ended.seconds_since(each.began), each.wait, each.checkpoint, each.held_out)
        mine[_MASKED : _HELD_OUT + 1] = torch.tensor(host, dtype=torch.float64)
        bad = losses.isfinite().logical_not().nonzero()
        mine[_BAD] = int(bad[0]) if len(bad) else -1
        mine[_OWN] = each.wait + sum(ended.seconds_since(began) for began, ended in each.own)
    return told


def _peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this rank has held so far: of its GPU, or of the host where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
