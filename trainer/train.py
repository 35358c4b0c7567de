"""The training loop (OLMo 2 report, section 3): pretraining and anneals, resumable at any checkpoint."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer import checkpoint, health, optim, parallel
from trainer.config import TrainConfig, difference_on_restart, to_dict
from trainer.data import Batch, Loader, Mix
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.saving import Saver

log = logging.getLogger(__name__)

EXIT_TERMINATED = 128 + signal.SIGTERM


@dataclass
class Run:
    """Everything that a run's loop works with. `step`: steps done; `start_rate`: the schedule's peak, or where the anneal began."""

    config: TrainConfig
    world: World
    folder: Path
    loader: Loader
    model: parallel.TrainedOlmo2
    optimizer: torch.optim.AdamW
    steps: int
    start_rate: float
    step: int = 0
    loss: float = math.nan
    saved: Path | None = None

    @property
    def targets_per_step(self) -> int:
        """Target positions of a global batch, masked ones included: the loss's divisor."""
        return self.config.global_batch_instances * (self.config.sequence_length - 1)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.config.global_batch_instances * self.config.sequence_length


def train(config: TrainConfig, world: World) -> int:
    """Run to the end, or to SIGTERM. Returns the process's exit code: 0 when done, 143 after SIGTERM (saved, and to be started again).

    Raises TrainerError for what a user can mend: a config that does not fit the mix, a failed health check, a loss that is no number.
    """
    run = prepare(config, world)
    saver = Saver(run.model, run.optimizer, to_dict(config), config.checkpoint, world)
    with _StopRequest() as stop, ThreadPoolExecutor(1) as pool, _open_metrics(run) as metrics, saver:
        coming = pool.submit(run.loader.batch, run.step)
        while run.step < run.steps:
            began = time.perf_counter()
            batch = coming.result()
            if run.step + 1 < run.steps:
                coming = pool.submit(run.loader.batch, run.step + 1)
            values = _step(run, batch, stop.asked or saver.failed)
            stopping = values.pop("stopping") > 0
            _record(run, values, time.perf_counter() - began, metrics)
            if stopping or run.step == run.steps or config.checkpoint.due(run.step):
                _save(run, saver)
            if stopping and run.step < run.steps:
                saver.wait()
                log.info("SIGTERM: saved after step %d; start again to go on", run.step)
                return EXIT_TERMINATED
        saver.wait()
    if world.rank == 0:
        assert run.saved is not None
        done = {"checkpoint": str(run.saved.relative_to(run.folder)), "step": run.step, "loss": run.loss, "tokens": run.tokens}
        checkpoint.write_json(run.folder / "done.json", done)
    return 0


class _StopRequest:
    """SIGTERM from here on asks for a checkpoint after the running step instead of ending the process."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True


def prepare(config: TrainConfig, world: World) -> Run:
    """Check everything that can be checked, then build the model and put it where the run stands: fresh, annealing, or resumed."""
    folder = Path(config.run_folder)
    loader = Loader(Mix(config.data.mix, config.data.files), config, world.rank, world.size)
    _claim_folder(folder, config, world)
    health.check(config.model, world)
    torch.manual_seed(config.seed)
    model = parallel.build_model(config.model, world, config.precision, config.seed, config.parallel)
    optimizer = optim.make_optimizer(model, config.optimizer)
    steps = config.max_steps or loader.batches_per_epoch
    run = Run(config, world, folder, loader, model, optimizer, steps, config.optimizer.learning_rate)
    newest = checkpoint.newest_whole(folder / "checkpoints", world)
    if newest:
        _resume(run, newest)
    elif config.init_from:
        _begin_anneal(run, Path(config.init_from))
    log.info("%d parameters, %d ranks on %s, step %d of %d", config.model.num_parameters(), world.size, world.device.type, run.step, steps)
    return run


def _claim_folder(folder: Path, config: TrainConfig, world: World) -> None:
    """Write the run's `config.json`, or hold a restart to the one that is there."""
    path = folder / "config.json"
    new = json.loads(json.dumps(to_dict(config)))
    if path.exists():
        key = difference_on_restart(json.loads(path.read_text()), new)
        if key:
            raise TrainerError(f"{folder} holds a run whose {key} was another; give a new run_folder, or the {key} of its config.json.")
    dist.barrier()  # no rank may find the file that rank 0 writes now
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, new)


def _resume(run: Run, folder: Path) -> None:
    state = checkpoint.load(folder, run.model, run.optimizer)
    if state["loader"]["mix"] != run.loader.mix.identity:
        raise TrainerError(f"{run.loader.mix.folder} is another mix than {folder} was trained on; give the same mix or a new run_folder.")
    run.step, run.start_rate, run.loss, run.saved = state["step"], state["schedule"]["start"], state["loss"], folder
    if run.world.rank < len(state["rng"]):
        _set_rng_state(state["rng"][run.world.rank], run.world.device)
    log.info("resumed from %s", folder)


def _begin_anneal(run: Run, folder: Path) -> None:
    """Weights, optimizer state and learning rate of a finished checkpoint; the data order and the step count are the anneal's own."""
    faults = [fault for fault in run.world.gather(checkpoint.fault_in(folder, run.world.rank, run.world.size)) if fault]
    if faults:
        raise TrainerError(f"init_from {folder} is no whole checkpoint: {faults[0]}; give the folder of a whole one.")
    run.start_rate = checkpoint.load(folder, run.model, run.optimizer)["learning_rate"]
    log.info("annealing from %s, learning rate %.6g", folder, run.start_rate)


def _step(run: Run, batch: Batch, stop: bool) -> dict[str, float]:
    """One optimizer step. Its numbers come back in a single wait for the device."""
    config, device = run.config, run.world.device
    rate = _rate(run, run.step)
    ids, kept = _to_device(torch.from_numpy(batch.ids), device), _to_device(torch.from_numpy(batch.kept), device)
    # Cross-entropy, z-loss, masked instances, ranks asked to stop: one all-reduce carries them all, so that ranks stop at the same step.
    masked = int((~batch.kept).sum())
    sums = torch.tensor([0.0, 0.0, masked, float(stop)], device=device)
    micro_batches = list(zip(ids.split(config.micro_batch_instances), kept.split(config.micro_batch_instances), strict=True))
    for number, (micro_ids, micro_kept) in enumerate(micro_batches, 1):
        parallel.begin_micro_batch(run.model, number == len(micro_batches), config.parallel.accumulate)
        loss, parts = run.model.loss(micro_ids, micro_kept, run.targets_per_step, config.optimizer.z_loss)
        loss.backward()
        sums[:2] += parts
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.optimizer.max_grad_norm)
    optim.set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    dist.all_reduce(sums)
    numbers = torch.cat([sums, _whole(norm).reshape(1)]).tolist()
    run.step += 1
    run.loss = numbers[0]
    if not all(map(math.isfinite, numbers)):
        raise TrainerError(
            f"the loss or gradient norm of step {run.step} is no finite number ({numbers[0]}, {numbers[4]}); look at the steps before it "
            f"in {run.folder / 'metrics.jsonl'}, and go on from an older checkpoint with a lower learning rate or other data."
        )
    return {
        "loss": numbers[0],
        "z_loss": numbers[1],
        "grad_norm": numbers[4],
        "learning_rate": rate,
        "masked_instances": int(numbers[2]),
        "stopping": numbers[3],
    }


def _rate(run: Run, step: int) -> float:
    return optim.schedule(run.config.schedule, run.start_rate, run.steps)(step)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _open_metrics(run: Run) -> TextIO:
    """`metrics.jsonl`, cut back to the step that the run stands at. Only rank 0 writes to it."""
    path = run.folder / "metrics.jsonl"
    if run.world.rank != 0:
        return Path(os.devnull).open("w")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A line beyond the checkpoint, or one that a kill cut short, is trained again.
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(lines[: run.step]))
    partial.replace(path)
    return path.open("a", encoding="utf-8")


def _record(run: Run, values: dict[str, float], seconds: float, metrics: TextIO) -> None:
    if run.world.rank != 0:
        return
    per_step = run.config.global_batch_instances * run.config.sequence_length
    line = {"step": run.step, "tokens": run.tokens, **values, "tokens_per_second": per_step / seconds, "seconds": seconds}
    metrics.write(json.dumps(line) + "\n")
    metrics.flush()
    log.info(
        "step %d/%d loss %.4f grad norm %.3f learning rate %.4g, %.0f tokens/s",
        run.step,
        run.steps,
        values["loss"],
        values["grad_norm"],
        values["learning_rate"],
        line["tokens_per_second"],
    )


def _save(run: Run, saver: Saver) -> None:
    """Collective. The checkpoint is whole when the saver has written it, steps later."""
    folder = run.folder / "checkpoints" / f"step{run.step:07d}"
    epoch, batch = divmod(run.step, run.loader.batches_per_epoch)
    state = {
        "version": 1,
        "step": run.step,
        "tokens": run.tokens,
        "loss": run.loss,
        "learning_rate": _rate(run, run.step - 1),
        "loader": {
            "mix": run.loader.mix.identity,
            "seed": run.config.data.seed,
            "position": run.step,
            "epoch": epoch,
            "batch": batch,
        },
        "schedule": {"kind": run.config.schedule.kind, "start": run.start_rate, "steps": run.steps},
    }
    saver.save(folder, state, {"rng": _rng_state(run.world.device)})
    run.saved = folder


def _rng_state(device: torch.device) -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {kind: base64.b64encode(bytes(state.tolist())).decode() for kind, state in states.items()}


def _set_rng_state(states: dict[str, str], device: torch.device) -> None:
    tensors = {kind: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for kind, text in states.items()}
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
