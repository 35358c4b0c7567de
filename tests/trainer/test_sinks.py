"""TensorBoard and Weights & Biases get what `metrics.jsonl` gets."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.parsing import parse
from trainer.train import train


def _config(data: dict[str, Any]) -> TrainConfig:
    return parse(TrainConfig, data, "test")


def test_tensorboard_holds_each_step_once_also_where_the_run_went_on(
    make_config: Any, world: World, tmp_path: Path, read_metrics: Any
) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = _config(make_config(**{"metrics.tensorboard": True, "checkpoint.every_steps": 5}))
    train(config, world)
    # The last checkpoint is lost: steps 11 and 12 are trained again.
    (tmp_path / "run" / "checkpoints" / "step0000012" / "checkpoint.json").unlink()
    train(config, world)
    events = loader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = read_metrics(tmp_path / "run")
    for name in ("loss", "grad_norm", "tokens_per_second"):
        scalars = events.Scalars(name)
        assert [each.step for each in scalars] == list(range(1, 13))
        assert [each.value for each in scalars] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_wandb_keeps_a_run_offline(
    make_config: Any, world: World, tmp_path: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(_config(make_config(max_steps=3, **{"metrics.wandb": {"project": "tests", "mode": "offline"}})), world)
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = path.read_bytes()
    for line in read_metrics(tmp_path / "run"):
        assert json.dumps(line["loss"]).encode() in content


@pytest.mark.parametrize(("extra", "setting"), [("tensorboard", True), ("wandb", {"project": "tests"})])
def test_an_extra_that_is_not_there_is_named_before_anything_starts(
    extra: str, setting: Any, make_config: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match=rf"metrics\.{extra} needs the extra `{extra}`: pip install 'olmoflow\[{extra}\]'"):
        train(_config(make_config(metrics={extra: setting})), world)
    assert not (tmp_path / "run").exists()
