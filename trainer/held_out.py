"""Held-out loss and bits per byte by source, and bits per byte of tasks' gold answers, of a model that is being trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.fsdp import FSDPModule

from olmo_model.model import Olmo2
from trainer.answers import Answers, bits_per_byte
from trainer.config import HeldOutConfig, TrainConfig
from trainer.data import Mix, check_files, check_tokenizer
from trainer.evaluate import Score, check_fit, score
from trainer.parallel import World

_LOGITS = 1 << 28  # that exist at once


class HeldOut:
    """The held-out mixes and gold answers of a run, opened and checked before it starts."""

    def __init__(self, held_out: HeldOutConfig, config: TrainConfig, training: Mix, world: World) -> None:
        """Collective. Raises TrainerError where a mix or a file of it is missing, empty, or of another tokenizer than the training's mix."""
        self._mixes = {name: Mix(source.mix, source.files) for name, source in held_out.sources.items()}
        check_fit(config.run_folder, config.model, self._mixes, config.sequence_length)
        for mix in self._mixes.values():
            check_tokenizer(mix, training.tokenizer, f"the mix {training.folder}")
            check_files(mix, world)
        self._answers = {name: Answers(folder) for name, folder in held_out.answers.items()}
        for name, answers in self._answers.items():
            answers.check_fit(name, config.model.vocab_size, training.tokenizer, config.sequence_length)
        self._every, self._length, self._world = held_out.every_steps, config.sequence_length, world
        self._batch = max(1, min(config.micro_batch_instances, _LOGITS // (self._length * config.model.vocab_size)))

    def due(self, step: int, steps: int) -> bool:
        """Whether the model is scored after step `step` of `steps`."""
        return step % self._every == 0 or step == steps

    def scores(self, model: Olmo2) -> dict[str, float]:
        """`held_out/SOURCE/loss` (nats a token) and `held_out/SOURCE/bits_per_byte`, by source and for "all" together; collective.

        Beside them `tasks/TASK/bits_per_byte` of gold answers.
        """
        with _resharded(model):
            found = {name: score(model, mix, self._length, self._batch, self._world) for name, mix in self._mixes.items()}
            told = {
                f"tasks/{name}/bits_per_byte": bits_per_byte(model, answers, self._batch, self._length, self._world)
                for name, answers in self._answers.items()
            }
        if found:
            found["all"] = sum(found.values(), Score(0.0, 0, 0))
        reports = {name: each.report() for name, each in found.items()}
        return {f"held_out/{name}/{key}": report[key] for name, report in reports.items() for key in ("loss", "bits_per_byte")} | told


@contextmanager
def _resharded(model: Olmo2) -> Iterator[None]:
    """Leave a sharded model sharded: without a backward pass FSDP would keep the outermost module's weights whole."""
    yield
    if isinstance(model, FSDPModule):
        model.reshard()
