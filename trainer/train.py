"""The training loop (OLMo 2 report, section 3): pretraining and anneals, resumable at any checkpoint."""

from __future__ import annotations

import base64
import json
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer import checkpoint, energy, failures, health, optim, parallel
from trainer.bookkeeping import ON_DEVICE, Bookkeeper, NotFinite, StepNumbers
from trainer.config import TrainConfig, difference_on_restart
from trainer.data import Loader, Mix, check_files, check_tokenizer
from trainer.errors import TrainerError
from trainer.held_out import HeldOut
from trainer.interrupts import CollectedRarely, StopRequest
from trainer.moment import Moment
from trainer.own_work import OwnWork
from trainer.parallel import World
from trainer.parsing import to_dict
from trainer.prefetch import Prefetcher, ReadyBatch
from trainer.profiler import Profiler
from trainer.saving import Saver
from trainer.sinks import check_extras, cut_back, open_sinks, written
from trainer.stability import SkipStep, embedding_norm

log = logging.getLogger(__name__)

EXIT_TERMINATED = 128 + signal.SIGTERM


@dataclass
class Run:
    """Everything that a run's loop works with. `step`: steps done; `start_rate`: the schedule's peak, or where the anneal began; `own_work`:
    where there are other ranks to compare it with."""

    config: TrainConfig
    world: World
    folder: Path
    loader: Loader
    model: parallel.TrainedOlmo2
    optimizer: torch.optim.AdamW
    steps: int
    start_rate: float
    skip_step: SkipStep | None = None
    held_out: HeldOut | None = None
    own_work: OwnWork | None = None
    step: int = 0
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

    Raises TrainerError for what a user can mend: a config that does not fit the mix, a failed health check, a loss that is no number, a
    full disk, too little memory.
    """
    try:
        return _loop(prepare(config, world))
    except (OSError, MemoryError, RuntimeError) as error:
        told = failures.explain(error, config, world)
        if told is None:
            raise
        raise told from error


def _loop(run: Run) -> int:
    config, world = run.config, run.world
    try:
        with (
            StopRequest() as stop,
            CollectedRarely() as garbage,
            Saver(run.model, run.optimizer, to_dict(config), config.checkpoint, world) as saver,
            _open_books(run) as books,
            Profiler(config.profile, run.folder, world) as profiler,
            Prefetcher(run.loader, run.step, run.steps, world.device) as batches,
        ):
            began, stalled = Moment(world.device), 0.0
            while run.step < run.steps:
                batch = batches.next(give_up=stop.asked)
                if stop.short and stop.agree(unable=batch is None):
                    if run.step and run.saved != _checkpoint_folder(run):
                        _save(run, saver, books)
                    return _leave(run, saver)
                assert batch is not None  # a rank that may be short of data has said so
                stop.tell(saver.failed, batches.short)
                numbers = _timed_step(run, batch, profiler, began, stalled)
                # One step begins where the other ends: what the loop does between them is theirs, too.
                began, stalled = numbers.ended, 0.0
                if run.held_out and run.held_out.due(run.step, run.steps):
                    _score_held_out(run, run.held_out, numbers)
                    began = Moment(world.device)
                books.record(numbers)
                stopping = stop.heard()
                if stopping or run.step == run.steps or config.checkpoint.due(run.step):
                    stalled = _save(run, saver, books)
                    began = Moment(world.device)
                if stopping and run.step < run.steps:
                    return _leave(run, saver)
                garbage.after_step(run.step)
            saver.wait()
    except NotFinite as error:
        raise failures.not_finite(error, config, run.loader, world) from None
    if world.rank == 0:
        assert run.saved is not None
        done = {"checkpoint": str(run.saved.relative_to(run.folder)), "step": run.step, "loss": books.loss, "tokens": run.tokens}
        checkpoint.write_json(run.folder / "done.json", done | energy.totals(books.joules, config.metrics.energy))
    return 0


def _leave(run: Run, saver: Saver) -> int:
    saver.wait()
    log.info("SIGTERM: %s; start again to go on", f"saved after step {run.step}" if run.step else "no step was done")
    return EXIT_TERMINATED


def _open_books(run: Run) -> Bookkeeper:
    """Rank 0 writes what it keeps; it goes on where the run stands. Collective."""
    ranks = run.world.gather({"host": run.world.host, "device": str(run.world.device)})
    if run.world.rank != 0:
        return Bookkeeper(run.world, run.config, run.steps, (), [])
    checkpoint.write_json(run.folder / "ranks.json", ranks)
    cut_back(run.folder, run.step)
    sinks = open_sinks(run.folder, run.step, run.config.metrics, to_dict(run.config))
    return Bookkeeper(run.world, run.config, run.steps, written(run.folder), sinks)


def _timed_step(run: Run, batch: ReadyBatch, profiler: Profiler, began: Moment, stalled: float) -> StepNumbers:
    """`began`: when the step began to wait for its batch; `stalled`: seconds that the checkpoint before it took."""
    rate = _rate(run, run.step)
    profiler.before(run.step + 1)
    row = _step(run, batch, rate)
    profiler.after(run.step)
    masked = int((~batch.host.kept).sum())
    own = run.own_work.take() if run.own_work else []
    return StepNumbers(run.step, row, rate, masked, began, Moment(run.world.device), batch.waited_seconds, stalled, own=own)


def _score_held_out(run: Run, held_out: HeldOut, numbers: StepNumbers) -> None:
    began = time.perf_counter()
    numbers.scores = held_out.scores(run.model)
    numbers.held_out = time.perf_counter() - began


def prepare(config: TrainConfig, world: World) -> Run:
    """Check everything that can be checked, then build the model and put it where the run stands: fresh, annealing, or resumed."""
    folder = Path(config.run_folder)
    check_extras(config.metrics)
    loader = Loader(Mix(config.data.mix, config.data.files), config, world.rank, world.size)
    check_files(loader.mix, world)
    held_out = HeldOut(config.held_out, config, loader.mix, world) if config.held_out else None
    _claim_folder(folder, config, world)
    health.check(config.model, world, config.parallel.replicas, folder)
    torch.manual_seed(config.seed)
    model = parallel.build_model(config.model, world, config.precision, config.seed, config.parallel)
    model.plain_loss = config.loss == "plain"
    optimizer = optim.make_optimizer(model, config.optimizer)
    skip_step = SkipStep(config.optimizer.skip_step, world.device) if config.optimizer.skip_step else None
    steps = config.max_steps or loader.batches_per_epoch
    own_work = OwnWork(model, world.device) if world.size > 1 else None
    run = Run(config, world, folder, loader, model, optimizer, steps, config.optimizer.learning_rate, skip_step, held_out, own_work)
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
    run.step, run.start_rate, run.saved = state["step"], state["schedule"]["start"], folder
    if run.skip_step:
        run.skip_step.load(state["skip_step"])
    if run.world.rank < len(state["rng"]):
        _set_rng_state(state["rng"][run.world.rank], run.world.device)
    log.info("resumed from %s", folder)


def _begin_anneal(run: Run, folder: Path) -> None:
    """Weights, optimizer state and learning rate of a finished checkpoint; the data order and the step count are the anneal's own."""
    faults = [fault for fault in run.world.gather(checkpoint.fault_in(folder, run.world.rank, run.world.size)) if fault]
    if faults:
        raise TrainerError(f"init_from {folder} is no whole checkpoint: {faults[0]}; give the folder of a whole one.")
    check_tokenizer(run.loader.mix, checkpoint.tokenizer_of(folder), f"the mix that {folder} was trained on")
    run.start_rate = checkpoint.load(folder, run.model, run.optimizer)["learning_rate"]
    log.info("annealing from %s, learning rate %.6g", folder, run.start_rate)


def _step(run: Run, batch: ReadyBatch, rate: float) -> Tensor:
    """One optimizer step at learning rate `rate`. Its numbers stay on the device, as `StepNumbers.row`: nothing here waits for it."""
    config = run.config
    micro_batches = list(zip(batch.ids.split(config.micro_batch_instances), batch.kept.split(config.micro_batch_instances), strict=True))
    parts = []
    for number, (micro_ids, micro_kept) in enumerate(micro_batches, 1):
        parallel.begin_micro_batch(run.model, number == len(micro_batches), config.parallel.accumulate)
        if run.own_work:
            run.own_work.measure(number == 1)  # one micro-batch tells enough of a step, at a small number of events
        loss, micro_parts = run.model.loss(micro_ids, micro_kept, run.targets_per_step, config.optimizer.z_loss)
        loss.backward()
        parts.append(micro_parts)
    if run.own_work:
        run.own_work.measure(False)
    norm = _whole(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.optimizer.max_grad_norm))
    losses, z_losses, largest_logits = torch.stack(parts, dim=1)
    skipped = _update(run, losses.sum(), norm, rate)
    run.step += 1
    looked_at = run.step % config.metrics.embedding_norm_every_steps == 0
    embeddings = embedding_norm(run.model) if looked_at else norm.new_full((), math.nan)
    numbers = torch.stack([losses.sum(), z_losses.sum(), norm, skipped, embeddings, largest_logits.amax()])
    assert len(numbers) == ON_DEVICE
    return torch.cat([numbers, losses + z_losses])


def _update(run: Run, loss: Tensor, norm: Tensor, rate: float) -> Tensor:
    """The optimizer's step, unless it is to be left out; 1.0 on the device where it was. `loss`: this rank's share."""
    skipped = torch.zeros_like(norm)
    if run.skip_step:
        whole = loss.clone()
        dist.all_reduce(whole)
        skipped = run.skip_step.judge(whole, norm)
        run.optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optim.set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return skipped


def _rate(run: Run, step: int) -> float:
    return optim.schedule(run.config.schedule, run.start_rate, run.steps)(step)


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _save(run: Run, saver: Saver, books: Bookkeeper) -> float:
    """Begin a checkpoint, which is whole when the saver has written it, steps later; returns the seconds that it took here. Collective.

    What the step's numbers have against it is heard first: nothing that is no number is ever saved.
    """
    began = time.perf_counter()
    books.drain()
    folder = _checkpoint_folder(run)
    epoch, batch = divmod(run.step, run.loader.batches_per_epoch)
    state = {
        "version": 1,
        "step": run.step,
        "tokens": run.tokens,
        "loss": books.loss,
        "learning_rate": _rate(run, run.step - 1),
        "loader": {
            "mix": run.loader.mix.identity,
            "tokenizer": run.loader.mix.tokenizer,
            "seed": run.config.data.seed,
            "position": run.step,
            "epoch": epoch,
            "batch": batch,
        },
        "schedule": {"kind": run.config.schedule.kind, "start": run.start_rate, "steps": run.steps},
        "skip_step": run.skip_step.state() if run.skip_step else None,
    }
    saver.save(folder, state, {"rng": _rng_state(run.world.device)})
    run.saved = folder
    return time.perf_counter() - began


def _checkpoint_folder(run: Run) -> Path:
    return run.folder / "checkpoints" / f"step{run.step:07d}"


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
