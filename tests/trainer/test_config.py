"""Configs are strict: what is wrong is named, and nothing is taken silently."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from olmo_model.config import PRESETS
from trainer.config import TrainConfig, difference_on_restart, load_config
from trainer.errors import TrainerError
from trainer.parsing import parse, to_dict


def _load(tmp_path: Path, data: Any) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_config(path)


def test_a_config_survives_json(make_config: Any, tmp_path: Path) -> None:
    config = _load(tmp_path, make_config(**{"optimizer.betas": [0.8, 0.9]}))
    assert parse(TrainConfig, json.loads(json.dumps(to_dict(config))), "json") == config
    assert config.optimizer.betas == (0.8, 0.9)


def test_a_number_that_yaml_reads_as_text_is_a_number(make_config: Any, tmp_path: Path) -> None:
    assert _load(tmp_path, make_config(**{"optimizer.learning_rate": "3e-4"})).optimizer.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.learning_rat": 1.0}, "unknown key optimizer.learning_rat; did you mean learning_rate"),
        ({"modell": {}}, "unknown key modell; did you mean model"),
        ({"model.d_modle": 3}, "unknown key model.d_modle; did you mean d_model"),
        ({"seed": "five"}, "seed is 'five'; give a whole number"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"max_steps": 1.5}, "max_steps is 1.5; give a whole number"),
        ({"optimizer.learning_rate": "fast"}, "optimizer.learning_rate is 'fast'; give a number"),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate is nan; give a number"),
        ({"optimizer.betas": [0.9]}, "optimizer.betas is [0.9]; give a list"),
        ({"precision": "fp8"}, "precision is 'fp8'; give one of fp32, bf16"),
        ({"schedule.kind": "linear"}, "schedule.kind is 'linear'; give one of cosine, linear_to_zero"),
        ({"data": "mix"}, "data must be a mapping"),
        ({"model.n_heads": 5}, "d_model 32 must be an even multiple of n_heads 5"),
        ({"global_batch_instances": 0}, "global_batch_instances is 0; give 1 or more"),
        ({"sequence_length": 64}, "sequence_length 64 is over model.max_sequence_length 32"),
        ({"init_from": "x"}, "init_from goes with schedule.kind linear_to_zero only"),
        ({"schedule.kind": "linear_to_zero"}, "schedule.warmup_steps does not go with kind linear_to_zero"),
        ({"schedule.decay_steps": 4}, "schedule.decay_steps 4 must be more than schedule.warmup_steps 4"),
        ({"optimizer.max_grad_norm": 0}, "optimizer.max_grad_norm is 0.0; give a number above 0"),
    ],
)
def test_what_is_wrong_is_named(make_config: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError) as error:
        _load(tmp_path, make_config(**changes))
    assert words in str(error.value)
    assert "run.yaml" in str(error.value)


def test_a_missing_key_is_named(make_config: Any, tmp_path: Path) -> None:
    config = make_config()
    del config["data"]["seed"]
    with pytest.raises(TrainerError, match=r"key data\.seed is missing"):
        _load(tmp_path, config)


def test_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"nowhere\.yaml cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(TrainerError, match=r"broken\.yaml is not valid YAML"):
        load_config(tmp_path / "broken.yaml")


def test_a_restart_may_move_but_not_train_something_else(make_config: Any, tmp_path: Path) -> None:
    old = to_dict(_load(tmp_path, make_config()))
    moved = make_config(**{"data.mix": "elsewhere", "micro_batch_instances": 2, "checkpoint.every_steps": 3, "threads": 2})
    assert difference_on_restart(old, to_dict(_load(tmp_path, moved))) is None
    for key, value in (("data.seed", 4), ("optimizer.betas", [0.9, 0.9]), ("model.n_layers", 3), ("max_steps", 13)):
        assert difference_on_restart(old, to_dict(_load(tmp_path, make_config(**{key: value})))) == key


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default_only(make_config: Any, tmp_path: Path) -> None:
    old = to_dict(_load(tmp_path, make_config()))
    del old["optimizer"]["decay_embeddings"], old["parallel"], old["model"]["init"]
    assert difference_on_restart(old, to_dict(_load(tmp_path, make_config()))) is None
    changed = make_config(**{"optimizer.decay_embeddings": True})
    assert difference_on_restart(old, to_dict(_load(tmp_path, changed))) == "optimizer.decay_embeddings"


def test_the_page_about_training_shows_configs_that_load(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    run, watched = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for name, text in {"run": run, "watched": run + watched}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        config = load_config(tmp_path / f"{name}.yaml")
        assert config.model == PRESETS["1b"] and config.parallel.compile
    assert config.metrics.energy and config.held_out and config.profile


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, trainer.config, trainer.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
