"""Batches made ready in the background, as deep as asked, so that a step waits for data only where reading is slower than training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from trainer.data import Batch, Loader

_THREADS_REMOTE = 4  # batches read at once where reading waits for a network, not for this processor
_LOOK_SECONDS = 0.2  # between looks at `give_up`
_LEAVE_SECONDS = 2.0  # for readers to end; one that hangs in a storage's client is left behind, and ends with the process


_Result = tuple[Batch, Tensor, Tensor, torch.cuda.Event | None] | BaseException


@dataclass(frozen=True)
class ReadyBatch:
    """A step's batch on the device.

    Attributes:
        ids: int64 of shape (instances of this rank, sequence_length).
        kept: bool of shape (instances of this rank,), False: loss masked.
        host: the same in host memory.
        waited_seconds: how long `next` kept its caller.
    """

    ids: Tensor
    kept: Tensor
    host: Batch
    waited_seconds: float


class Prefetcher:
    """One rank's batches of steps `first_step` to `last_step` (not included), in order; a context manager.

    Daemon threads keep up to `ahead` batches ready or under way. On a GPU each batch is copied from pinned memory on a stream of its own:
    the host never waits for the device, and the caller's stream waits for the copy alone. What goes wrong with a step comes out of that
    step's `next`.
    """

    def __init__(self, loader: Loader, first_step: int, last_step: int, device: torch.device, ahead: int = 4) -> None:
        self._loader, self._last, self._ahead = loader, last_step, ahead
        self._next_to_read = self._next_to_give = first_step
        self._ready: dict[int, _Result] = {}
        self._change = threading.Condition()
        self._stopped = threading.Event()
        self._device = device
        if device.type == "cuda" and device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device) if device.type == "cuda" else None
        count = min(_THREADS_REMOTE, ahead) if loader.mix.remote else 1
        # Daemons: leaving after SIGTERM must not wait for a storage that does not answer.
        self._threads = [threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True) for number in range(count)]

    def __enter__(self) -> Prefetcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End reading, in at most two seconds."""
        self._stopped.set()
        with self._change:
            self._change.notify_all()
        end = time.monotonic() + _LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._ready.clear()

    @property
    def short(self) -> bool:
        """Whether `next` would have to wait."""
        with self._change:
            return self._next_to_give < self._last and self._next_to_give not in self._ready

    def next(self, give_up: Callable[[], bool] = lambda: False) -> ReadyBatch | None:
        """The next step's batch; None where it is not there yet and `give_up` says that nobody needs it any more.

        Raises the TrainerError with which reading it failed, and IndexError after the last step.
        """
        began = time.perf_counter()
        step = self._next_to_give
        if step >= self._last:
            raise IndexError(f"there is no step {step}, the last one is {self._last - 1}")
        with self._change:
            while step not in self._ready:
                if give_up():
                    return None
                self._change.wait(_LOOK_SECONDS)
            result = self._ready.pop(step)
            self._next_to_give += 1
            self._change.notify_all()
        if isinstance(result, BaseException):
            raise result
        batch, ids, kept, copied = result
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            # Their memory belongs to the copying stream, which must not use it again before this one is through.
            ids.record_stream(stream)
            kept.record_stream(stream)
        return ReadyBatch(ids, kept, batch, time.perf_counter() - began)

    def _work(self) -> None:
        if self._stream is not None:
            torch.cuda.set_device(self._device)  # a thread of its own begins on device 0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._through() or self._next_to_read < self._next_to_give + self._ahead)
                if self._through():
                    return
                step = self._next_to_read
                self._next_to_read += 1
                if self._through():
                    self._change.notify_all()  # the other readers end too
            try:
                batch = self._loader.batch(step, self._stopped)
                result: _Result = (batch, *self._on_device(batch))
            except BaseException as error:
                result = error
            with self._change:
                self._ready[step] = result
                self._change.notify_all()

    def _through(self) -> bool:
        return self._stopped.is_set() or self._next_to_read >= self._last

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        ids, kept = torch.from_numpy(batch.ids), torch.from_numpy(batch.kept)
        if self._stream is None:
            return ids, kept, None
        with torch.cuda.stream(self._stream):
            copies = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in (ids, kept)]
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return copies[0], copies[1], copied
