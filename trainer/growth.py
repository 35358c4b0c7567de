"""How activations and gradients grow across the layers of freshly initialised models: `python -m trainer.growth CONFIG.yaml`.

The measure of the report's Figures 5 and 6 (section 3.2), which has no training in it. One process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from olmo_model.config import ModelConfig
from olmo_model.growth import growth
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from trainer import parallel
from trainer.checkpoint import write_json
from trainer.data import Mix, permute
from trainer.errors import TrainerError
from trainer.parsing import parse, read_yaml


@dataclass(frozen=True)
class GrowthConfig:
    """Which models to measure, on which text.

    Attributes:
        models: name -> sizes.
        mix: folder of a compiled mix; `files` as in `DataConfig.files`.
        documents: so many of its instances are put through each model, one at a time; the report took 50 documents.
        seed: of the choice of instances and of the initial weights.
        output: path of the JSON to write. Models that it holds are not measured again.
    """

    models: dict[str, ModelConfig]
    mix: str
    documents: int
    seed: int
    output: str
    files: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None


def measure(config: GrowthConfig, world: parallel.World) -> None:
    """Measure every model and write the output after each, so that a run that was stopped goes on where it was."""
    mix, output = Mix(config.mix, config.files), Path(config.output)
    if not 1 <= config.documents <= mix.instances:
        raise TrainerError(
            f"documents is {config.documents}, but the mix {mix.folder} has {mix.instances} instances; give a number from 1 to that."
        )
    numbers = permute(np.arange(config.documents), mix.instances, config.seed, 0)
    documents = [torch.from_numpy(mix.instance(int(each)).astype(np.int64)).to(world.device) for each in numbers]
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    for name, sizes in config.models.items():
        if sizes.vocab_size != mix.vocab_size:
            raise TrainerError(
                f"model {name} has a vocabulary of {sizes.vocab_size} ids, the mix {mix.folder} one of {mix.vocab_size}; set the same."
            )
        if name not in found:
            found[name] = _measured(sizes, config.seed, documents, world.device)
            write_json(output, found)


def _measured(sizes: ModelConfig, seed: int, documents: list[torch.Tensor], device: torch.device) -> dict[str, dict[str, float]]:
    with torch.device("meta"):
        model = Olmo2(sizes)
    model.to_empty(device=device)
    init_weights(model, seed)
    activations, gradients = growth(model, documents)
    return {name: {**asdict(each), "exponent": each.exponent} for name, each in (("activations", activations), ("gradients", gradients))}


def main(arguments: list[str]) -> int:
    """Run from the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m trainer.growth CONFIG.yaml", file=sys.stderr)
        return 2
    try:
        config = parse(GrowthConfig, read_yaml(arguments[0]), arguments[0])
        measure(config, parallel.start(config.device, config.threads))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parallel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
