"""The soup against a mean over plain dictionaries, and what it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from olmo_model.config import ModelConfig
from olmo_model.shards import write_tensors
from trainer.checkpoint import MARKER, fault_in, load_model_tensors, read_model_config, write_marker
from trainer.errors import TrainerError
from trainer.soup import SoupConfig, main, make_soup
from trainer.tensorfiles import Index

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path, model_dict: dict[str, Any]) -> Save:
    """`save(name, seed, **other_sizes)`: a weights-only checkpoint of random values in several files; returns its folder."""

    def build(name: str, seed: int, drop: str = "", **sizes: int) -> str:
        model = model_dict | sizes
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for each, shape in ModelConfig(**model).parameter_shapes().items():
            # Over many orders of magnitude, so that a sum in fp32 rounds differently from one in fp64.
            tensors[each] = torch.randn(shape, generator=generator) * 10 ** (4 * torch.rand(shape, generator=generator) - 2)
        tensors.pop(drop, None)
        folder = tmp_path / name
        folder.mkdir()
        write_tensors(tensors.items(), folder, max_shard_bytes=20_000)
        (folder / "config.json").write_text(json.dumps({"model": model}))
        write_marker(folder)
        return str(folder)

    return build


def _numpy(folder: str) -> dict[str, np.ndarray]:
    files = sorted(Path(folder).glob("model*.safetensors"))
    return {name: array for file in files for name, array in load_file(file).items()}


@pytest.mark.parametrize("weights", [None, [1.0, 2.5, 0.25]])
def test_soup_is_exactly_the_mean_in_fp64_rounded_once(tmp_path: Path, save: Save, weights: list[float] | None) -> None:
    ingredients = [save(f"ingredient-{seed}", seed) for seed in (1, 2, 3)]
    make_soup(SoupConfig(ingredients, str(tmp_path / "soup"), weights))

    arrays = [_numpy(folder) for folder in ingredients]
    factors = weights or [1.0, 1.0, 1.0]
    soup = dict(load_model_tensors(tmp_path / "soup"))
    assert soup.keys() == arrays[0].keys()
    for name, tensor in soup.items():
        mean = sum(array[name].astype(np.float64) * factor for array, factor in zip(arrays, factors, strict=True)) / sum(factors)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), np.asarray(mean).astype(np.float32)), name
    assert read_model_config(tmp_path / "soup") == read_model_config(ingredients[0])


def test_a_soup_of_one_is_the_ingredient_and_can_be_an_ingredient(tmp_path: Path, save: Save) -> None:
    ingredient = save("ingredient", 1)
    make_soup(SoupConfig([ingredient], str(tmp_path / "soup")))
    make_soup(SoupConfig([str(tmp_path / "soup"), ingredient], str(tmp_path / "again")))
    again = _numpy(str(tmp_path / "again"))
    assert all(np.array_equal(again[name], array) for name, array in _numpy(ingredient).items())


def test_more_and_larger_ingredients_are_read_in_no_larger_blocks(tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that cut every tensor, and memory for no more of them than threads work on them."""
    ingredients = [save(f"ingredient-{seed}", seed) for seed in range(6)]
    make_soup(SoupConfig(ingredients, str(tmp_path / "whole")))
    monkeypatch.setattr("trainer.soup._BLOCK_ELEMENTS", 100)
    read, held, most = Index.read, set(), []

    def watched(self: Index, wanted: Any) -> None:
        for name, start, tensor in wanted:
            assert tensor.numel() <= 100
            held.add((self.folder, name, start))
            most.append(len(held))
            read(self, [(name, start, tensor)])
            held.remove((self.folder, name, start))

    monkeypatch.setattr(Index, "read", watched)
    make_soup(SoupConfig(ingredients, str(tmp_path / "blocks")))
    assert max(most) <= len(os.sched_getaffinity(0))
    whole, blocks = _numpy(str(tmp_path / "whole")), _numpy(str(tmp_path / "blocks"))
    assert len(most) > 6 * len(whole)
    assert all(np.array_equal(blocks[name], array) for name, array in whole.items())
    assert fault_in(tmp_path / "blocks") is None


def test_a_failed_soup_has_no_marker(tmp_path: Path, save: Save) -> None:
    output = tmp_path / "soup"
    make_soup(SoupConfig([save("a", 1)], str(output)))
    assert (output / MARKER).exists()
    broken = save("broken", 3, drop="model.norm.weight")
    with pytest.raises(TrainerError, match=r"broken.*model\.norm\.weight"):
        make_soup(SoupConfig([save("b", 2), broken], str(output)))
    assert not (output / MARKER).exists()


def test_a_damaged_ingredient_is_refused(tmp_path: Path, save: Save) -> None:
    whole, damaged = save("whole", 1), save("damaged", 2)
    path = next(Path(damaged).glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainerError, match=f"damaged.*{path.name}"):
        make_soup(SoupConfig([whole, damaged], str(tmp_path / "soup")))


def test_what_cannot_be_mixed_is_named(tmp_path: Path, save: Save) -> None:
    whole, other = save("whole", 1), save("other", 2, mlp_hidden=128)
    lying = save("lying", 3)
    (Path(lying) / "config.json").write_text((Path(other) / "config.json").read_text())
    write_marker(Path(lying))
    output = str(tmp_path / "soup")
    for config, message in (
        (SoupConfig([whole, other], output), r"whole.*other.*different sizes"),
        (SoupConfig([other, lying], output), r"lying.*mlp\.\w+_proj\.weight.*shape"),
        (SoupConfig([whole, str(tmp_path / "none")], output), r"none"),
        (SoupConfig([], output), "ingredients"),
        (SoupConfig([whole], output, [1.0, 2.0]), "weights"),
        (SoupConfig([whole, whole], output, [1.0, -1.0]), "weights"),
        (SoupConfig([whole], whole), "output"),
    ):
        with pytest.raises(TrainerError, match=message):
            make_soup(config)


def test_command_line_writes_a_soup_or_says_why_not(tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "soup.yaml"
    path.write_text(json.dumps({"ingredients": [save("a", 1)], "output": str(tmp_path / "soup")}))
    assert main([str(path)]) == 0
    assert (tmp_path / "soup" / MARKER).exists()
    path.write_text(json.dumps({"ingredient": []}))
    assert main([str(path)]) == 1
    assert "ingredients" in capsys.readouterr().err
    assert main([]) == 2


def test_training_checkpoints_of_different_numbers_of_ranks_mix(
    tmp_path: Path, make_config: Callable[..., dict[str, Any]], run_ranks: Callable[..., str]
) -> None:
    folders = []
    for ranks in (1, 2):
        run = tmp_path / f"run-{ranks}"
        changes = {"run_folder": str(run), "max_steps": 1, "data.seed": ranks, "global_batch_instances": 2, "micro_batch_instances": 1}
        run_ranks(make_config(**changes), ranks)
        folders.append(str(run / json.loads((run / "done.json").read_text())["checkpoint"]))
    make_soup(SoupConfig(folders, str(tmp_path / "soup")))
    one, two = (dict(load_model_tensors(folder)) for folder in folders)
    for name, tensor in load_model_tensors(tmp_path / "soup"):
        assert torch.equal(tensor, ((one[name].double() + two[name].double()) / 2).float()), name
    assert not all(torch.equal(one[name], two[name]) for name in one)
