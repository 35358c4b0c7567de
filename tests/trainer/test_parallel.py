"""Ranks, copies, micro-batches, activation checkpointing and compilation: none of them may change what is learned."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from olmo_model.config import ModelConfig
from trainer import parallel
from trainer.checkpoint import load_model_tensors
from trainer.config import ParallelConfig, TrainConfig
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.parsing import parse
from trainer.train import train

STEPS = 50


@pytest.mark.parametrize(
    ("ranks", "micro", "settings"),
    [
        (1, 2, {}),
        (1, 1, {"accumulate": "sharded"}),
        (2, 1, {}),
        pytest.param(4, 1, {"accumulate": "sharded"}, marks=pytest.mark.soak),
        pytest.param(4, 1, {"replicas": 2}, marks=pytest.mark.soak),
        (4, 1, {"replicas": 2, "accumulate": "sharded", "activation_checkpointing": "full"}),
    ],
    ids=["2 micro-batches", "4 micro-batches", "2 ranks", "4 ranks", "2x2", "2x2, sharded sums"],
)
def test_ranks_copies_and_micro_batches_leave_the_loss_curve_alone(
    ranks: int, micro: int, settings: dict[str, Any], make_config: Any, world: World, tmp_path: Path, run_ranks: Any, read_metrics: Any
) -> None:
    # A batch of 8 leaves 2 micro-batches to each of 4 ranks.
    changes = {"max_steps": STEPS, "global_batch_instances": 8 if ranks == 4 else 4, "schedule.decay_steps": 60}
    alone = make_config(**changes, micro_batch_instances=changes["global_batch_instances"], run_folder=str(tmp_path / "alone"))
    train(parse(TrainConfig, alone, "test"), world)
    shared = make_config(**changes, micro_batch_instances=micro, parallel=settings)
    if ranks == 1:
        train(parse(TrainConfig, shared, "test"), world)
    else:
        run_ranks(shared, ranks)
    one, many = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "run")
    assert len(one) == len(many) == STEPS
    for key in ("loss", "z_loss"):
        assert [line[key] for line in many] == pytest.approx([line[key] for line in one], rel=1e-5), key
    names = [name for name, _ in load_model_tensors(tmp_path / "run" / "checkpoints" / f"step{STEPS:07d}")]
    assert names == sorted(ModelConfig(**alone["model"]).parameter_shapes())


def _gradients(config: ModelConfig, world: World, precision: str, settings: ParallelConfig) -> dict[str, torch.Tensor]:
    model = parallel.build_model(config, world, precision, 5, settings)
    ids = torch.randint(0, config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))
    for number, part in enumerate(ids.split(2)):
        parallel.begin_micro_batch(model, number == 1, settings.accumulate)
        loss, _ = model.loss(part, torch.tensor([True, number == 1]), 124, 1e-3)
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in gradients.items()}  # type: ignore[misc]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activations", ["none", "selected", "full"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_checkpointing_and_compilation_keep_gradients_and_names(
    compiled: bool, activations: Any, precision: str, model_dict: dict, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(**model_dict)
    torch._dynamo.reset()
    # Traces as inductor does, refuses a graph break, and needs no C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    expected = _gradients(config, world, precision, ParallelConfig())
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = _gradients(config, world, precision, ParallelConfig(activation_checkpointing=activations, compile=compiled))
    assert list(found) == list(config.parameter_shapes())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 if precision == "fp32" else 1e-4, msg=name)


def _flops(model: parallel.TrainedOlmo2) -> int:
    """Of the matrix products and attention that a step really runs."""
    with FlopCounterMode(display=False) as counter:
        loss, _ = model.loss(torch.zeros(1, 32, dtype=torch.int64), torch.tensor([True]), 31, 0.0)
        loss.backward()
    return counter.get_total_flops()


def test_full_checkpointing_repeats_matrix_products_and_selected_does_not(model_dict: dict, world: World) -> None:
    flops = {
        kind: _flops(parallel.build_model(ModelConfig(**model_dict), world, "fp32", 5, ParallelConfig(activation_checkpointing=kind)))
        for kind in ("none", "selected", "full")
    }
    assert flops["selected"] == flops["none"] < flops["full"]


def test_copies_that_do_not_share_the_ranks_are_refused(model_dict: dict, world: World) -> None:
    with pytest.raises(TrainerError, match=r"parallel\.replicas is 2, which does not divide 1 ranks"):
        parallel.build_model(ModelConfig(**model_dict), world, "fp32", 5, ParallelConfig(replicas=2))
