"""Training against independent loops, other numbers of ranks and micro-batches, kills and damage."""

import json
import os
import re
import signal
import statistics
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import Olmo2Config, Olmo2ForCausalLM

from olmo_model.config import ModelConfig
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from trainer.__main__ import main
from trainer.bookkeeping import Bookkeeper, StepNumbers
from trainer.checkpoint import MARKER, fault_in, load_model_tensors, write_marker
from trainer.config import TrainConfig
from trainer.data import Loader, Mix
from trainer.errors import TrainerError
from trainer.optim import step_count
from trainer.parallel import World
from trainer.parsing import parse
from trainer.train import EXIT_TERMINATED, prepare, train

SAME = ("step", "tokens", "loss", "z_loss", "grad_norm", "learning_rate", "masked_instances", "skipped")


def _config(data: dict[str, Any]) -> TrainConfig:
    return parse(TrainConfig, data, "test")


def _same(lines: list[dict[str, Any]]) -> list[tuple]:
    """What must not differ between two runs: all but the clock."""
    return [tuple(line[key] for key in SAME) for line in lines]


def _column(lines: list[dict[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines]


def _wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Read the process's log until it has done `step`."""
    seen = []
    for line in process.stdout:  # type: ignore[union-attr]
        seen.append(line)
        if re.search(rf"\bstep {step}/", line):
            return
    raise AssertionError("the run ended early:\n" + "".join(seen))


def _reference(
    model: ModelConfig,
    batches: list[torch.Tensor],
    rates: list[float],
    skip: Callable[[list[tuple[float, float, float]]], bool] | None = None,
) -> list[tuple[float, float, float]]:
    """Loss, z-loss and gradient norm of each step, by transformers' model and torch's plain AdamW.

    `skip` is told the steps so far and says whether the last one's update is left out.
    """
    ours = Olmo2(model)
    init_weights(ours, 5)
    theirs = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=model.vocab_size,
            hidden_size=model.d_model,
            intermediate_size=model.mlp_hidden,
            num_hidden_layers=model.n_layers,
            num_attention_heads=model.n_heads,
            num_key_value_heads=model.n_kv_heads,
            max_position_embeddings=model.max_sequence_length,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            pad_token_id=1,
            eos_token_id=0,
            attn_implementation="eager",
        )
    )
    theirs.load_state_dict(ours.state_dict())
    embedding = theirs.model.embed_tokens.weight
    others = [parameter for parameter in theirs.parameters() if parameter is not embedding]
    optimizer = torch.optim.AdamW(
        [{"params": [embedding], "weight_decay": 0.0}, {"params": others, "weight_decay": 0.1}], betas=(0.9, 0.95), eps=1e-8, foreach=False
    )
    steps = []
    for ids, rate in zip(batches, rates, strict=True):
        logits = theirs(input_ids=ids).logits[:, :-1]
        log_normaliser = torch.logsumexp(logits, dim=-1)
        nats = (log_normaliser - logits.gather(-1, ids[:, 1:, None])[..., 0]).mean()
        z_loss = 1e-3 * (log_normaliser**2).mean()
        optimizer.zero_grad()
        (nats + z_loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.8)
        steps.append((nats.item(), z_loss.item(), norm.item()))
        if skip and skip(steps):
            continue
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return steps


def test_fifty_steps_equal_transformers(make_config: Any, world: World, read_metrics: Any) -> None:
    changes = {"optimizer.z_loss": 1e-3, "optimizer.max_grad_norm": 0.8, "schedule.warmup_steps": 10, "schedule.decay_steps": 60}
    config = _config(make_config(max_steps=50, **changes))
    assert train(config, world) == 0
    metrics = read_metrics(config.run_folder)

    mix = Mix(config.data.mix)
    loader = Loader(mix, config, 0, 1)
    batches = [
        torch.from_numpy(np.stack([mix.instance(each) for each in loader.instance_numbers(step)]).astype(np.int64)) for step in range(50)
    ]
    cosine = [3e-4 + 2.7e-3 * (1 + np.cos(np.pi * (step - 10) / 50)) / 2 for step in range(10, 51)]
    rates = [3e-3 * step / 10 for step in range(1, 10)] + cosine
    expected = _reference(config.model, batches, rates)
    assert _column(metrics, "learning_rate") == pytest.approx(rates, rel=1e-9)
    # Against the same loop in float64, both fp32 runs' norms are off by 2e-4 to 3e-4 after 50 steps; their losses by 2e-6.
    tolerances = {"loss": 1e-5, "z_loss": 1e-5, "grad_norm": 1e-3}
    for (key, tolerance), column in zip(tolerances.items(), zip(*expected, strict=True), strict=True):
        assert _column(metrics, key) == pytest.approx(column, rel=tolerance), key
    assert min(_column(metrics, "grad_norm")) < 0.8 < max(_column(metrics, "grad_norm"))  # some steps are clipped, some are not
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.1
    assert metrics[-1]["tokens"] == 50 * 4 * 32


def _too_high(steps: list[tuple[float, float, float]]) -> bool:
    """The rule of skipped steps for a window of 5 and half a standard deviation."""
    before, last = steps[-6:-1], steps[-1]
    if len(before) < 5:
        return False
    series = [([step[column] for step in before], last[column]) for column in (0, 2)]
    return any(now > statistics.fmean(values) + 0.5 * statistics.stdev(values) for values, now in series)


def test_the_plain_loss_is_used_where_asked_for_and_trains_the_same(
    make_config: Any, world: World, tmp_path: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(_config(make_config(max_steps=3)), world)
    monkeypatch.delattr("trainer.parallel.next_token_loss")
    train(_config(make_config(max_steps=3, loss="plain", run_folder=str(tmp_path / "plain"))), world)
    chunked, plain = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "plain")
    for key in ("loss", "z_loss", "grad_norm", "largest_logit"):
        assert _column(plain, key) == pytest.approx(_column(chunked, key), rel=1e-5)


def test_a_skipped_step_changes_neither_weights_nor_moments_nor_the_optimizers_count(
    make_config: Any, world: World, read_metrics: Any
) -> None:
    skip_step = {"window": 5, "sigmas": 0.5}
    config = _config(
        make_config(max_steps=40, **{"optimizer.z_loss": 1e-3, "optimizer.max_grad_norm": 0.8, "optimizer.skip_step": skip_step})
    )
    train(config, world)
    metrics = read_metrics(config.run_folder)
    loader = Loader(Mix(config.data.mix), config, 0, 1)
    batches = [torch.from_numpy(loader.batch(step).ids) for step in range(40)]
    skipped = []

    def skip(steps: list[tuple[float, float, float]]) -> bool:
        skipped.append(_too_high(steps))
        return skipped[-1]

    expected = _reference(config.model, batches, _column(metrics, "learning_rate"), skip)
    assert _column(metrics, "skipped") == skipped and 3 <= sum(skipped) <= 30
    assert _column(metrics, "loss") == pytest.approx([loss for loss, _, _ in expected], rel=1e-5)
    state = json.loads((Path(config.run_folder) / "checkpoints" / "step0000040" / "state.json").read_text())
    assert state["optimizer"]["step"] == 40 - sum(skipped)


def test_micro_batches_change_nothing(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    runs = []
    for micro in (4, 2, 1):
        config = _config(make_config(micro_batch_instances=micro, run_folder=str(tmp_path / f"micro-{micro}")))
        train(config, world)
        runs.append(read_metrics(config.run_folder))
    for other in runs[1:]:
        for key in ("loss", "grad_norm"):
            assert _column(other, key) == pytest.approx(_column(runs[0], key), rel=1e-5)


def test_two_ranks_equal_one(make_config: Any, world: World, tmp_path: Path, run_trainer: Any, read_metrics: Any) -> None:
    alone = make_config(run_folder=str(tmp_path / "alone"))
    train(_config(alone), world)
    pair = make_config(run_folder=str(tmp_path / "pair"), micro_batch_instances=1)
    run_trainer(pair, ranks=2)
    one, two = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "pair")
    for key in ("loss", "z_loss", "grad_norm"):
        assert _column(two, key) == pytest.approx(_column(one, key), rel=1e-5)
    folders = [tmp_path / name / "checkpoints" / "step0000012" for name in ("alone", "pair")]
    assert len(list(folders[1].glob("*.safetensors"))) == 2
    first, second = (dict(load_model_tensors(folder)) for folder in folders)
    assert list(first) == sorted(ModelConfig(**alone["model"]).parameter_shapes())
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_masked_instances_are_counted_and_stay_in_the_divisor(
    make_config: Any, make_mix: Any, world: World, tmp_path: Path, read_metrics: Any
) -> None:
    # Instances 0 to 3 of ids in a row; instance 1 is one id, 32 times.
    documents = [np.arange(2, 33), np.full(31, 0), np.arange(34, 65), np.arange(66, 97)]
    folder = make_mix(tmp_path / "repeats", [document.astype(np.uint32) for document in documents])
    first = {}
    for mask in (True, False):
        changes = {"data.mix": str(folder), "data.mask_repetitions": mask, "max_steps": 1, "run_folder": str(tmp_path / f"mask-{mask}")}
        config = _config(make_config(**changes))
        train(config, world)
        first[mask] = read_metrics(config.run_folder)[0]
    assert (first[True]["masked_instances"], first[False]["masked_instances"]) == (1, 0)

    model = Olmo2(config.model)
    init_weights(model, 5)
    mix = Mix(folder)
    nats = []
    for number in range(4):
        ids = torch.from_numpy(mix.instance(number).astype(np.int64))
        with torch.no_grad():
            nats.append(torch.nn.functional.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="sum").item())
    assert first[False]["loss"] == pytest.approx(sum(nats) / (4 * 31), rel=1e-5)
    assert first[True]["loss"] == pytest.approx((sum(nats) - nats[1]) / (4 * 31), rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(
    make_config: Any, world: World, tmp_path: Path, launch: Any, read_metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_config(run_folder=str(tmp_path / "whole"), max_steps=80)
    train(_config(whole), world)
    config = make_config(max_steps=80, **{"checkpoint.every_steps": 7})
    process = launch(config)
    _wait_for_step(process, 24)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = tmp_path / "run"
    assert not (run / "done.json").exists()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line cut short
    caplog.set_level("INFO")
    assert train(_config(config), world) == 0
    assert "resumed from" in caplog.text
    assert _same(read_metrics(run)) == _same(read_metrics(tmp_path / "whole"))
    done = json.loads((run / "done.json").read_text())
    assert done == json.loads((tmp_path / "whole" / "done.json").read_text())
    assert done["checkpoint"] == "checkpoints/step0000080" and done["tokens"] == 80 * 4 * 32
    assert done["loss"] == read_metrics(run)[-1]["loss"]


def test_sigterm_saves_and_leaves_on_all_ranks(make_config: Any, launch: Any, run_trainer: Any, tmp_path: Path, read_metrics: Any) -> None:
    config = make_config(max_steps=100_000, micro_batch_instances=2, **{"schedule.decay_steps": 100_000})
    process = launch(config, ranks=2)
    _wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    last = read_metrics(tmp_path / "run")[-1]["step"]
    assert f"SIGTERM: saved after step {last}" in output
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step{last:07d}"]
    assert fault_in(checkpoints[0]) is None
    assert not (tmp_path / "run" / "done.json").exists()


def test_a_run_stopped_by_sigterm_goes_on_bit_for_bit(
    make_config: Any, world: World, tmp_path: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_step = {"optimizer.skip_step": {"window": 4, "sigmas": 0.1}, "optimizer.learning_rate": 0.03}
    whole = make_config(run_folder=str(tmp_path / "whole"), **skip_step)
    train(_config(whole), world)
    # A window that began anew after step 6 could skip nothing before step 11.
    assert sum(_column(read_metrics(tmp_path / "whole")[6:10], "skipped")) > 0
    config = _config(make_config(**skip_step))
    record = Bookkeeper.record

    def terminate_at_five(books: Bookkeeper, numbers: StepNumbers) -> None:
        record(books, numbers)
        if numbers.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Bookkeeper, "record", terminate_at_five)
    assert train(config, world) == EXIT_TERMINATED == 143
    assert read_metrics(tmp_path / "run")[-1]["step"] == 6  # the step that was running when every rank learned of it
    assert not (tmp_path / "run" / "done.json").exists()
    assert train(config, world) == 0
    assert _same(read_metrics(tmp_path / "run")) == _same(read_metrics(tmp_path / "whole"))


def test_a_killed_torchrun_leaves_no_ranks(make_config: Any, launch: Any) -> None:
    process = launch(make_config(max_steps=2000, micro_batch_instances=2), ranks=2)
    _wait_for_step(process, 2)
    process.kill()
    process.communicate(timeout=60)  # ends only when every process that holds the pipe has ended


@pytest.mark.parametrize("damage", ["flipped byte", "cut file", "no marker", "torn marker", "missing file"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(
    damage: str, make_config: Any, world: World, tmp_path: Path, read_metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(make_config(**{"checkpoint.every_steps": 5}))
    train(config, world)
    run = tmp_path / "run"
    before = _same(read_metrics(run))
    newest = run / "checkpoints" / "step0000012"
    tensors = next(newest.glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    if damage == "flipped byte":
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif damage == "cut file":
        tensors.write_bytes(content[:-100])
    elif damage == "missing file":
        tensors.unlink()
    elif damage == "no marker":
        (newest / MARKER).unlink()
    else:
        (newest / MARKER).write_text((newest / MARKER).read_text()[:50])
    (run / "done.json").unlink()
    caplog.set_level("INFO")
    assert train(config, world) == 0
    assert f"checkpoint {newest} is passed over: " in caplog.text
    assert "resumed from " + str(run / "checkpoints" / "step0000010") in caplog.text
    assert _same(read_metrics(run)) == before
    assert fault_in(newest) is None


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_an_anneal_starts_where_the_checkpoint_left_off(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    train(_config(make_config()), world)
    source = tmp_path / "run" / "checkpoints" / "step0000012"
    rate = read_metrics(tmp_path / "run")[-1]["learning_rate"]
    data = make_config(run_folder=str(tmp_path / "anneal"), init_from=str(source), max_steps=8)
    data["data"]["seed"] = 42
    data["schedule"] = {"kind": "linear_to_zero"}
    data["checkpoint"] = {"every_steps": 3}
    config = _config(data)

    run = prepare(config, world)
    stored = _tensors(source)
    assert run.step == 0 and step_count(run.optimizer) == 12
    seen = set()
    for name, parameter in run.model.named_parameters():
        state = run.optimizer.state[parameter]
        found = {
            name: parameter,
            f"optimizer.{name}.exp_avg": state["exp_avg"],
            f"optimizer.{name}.exp_avg_sq": state["exp_avg_sq"],
        }
        for key, tensor in found.items():
            assert torch.equal(tensor, stored[key]), key
            assert stored[key].any(), key
        assert state["step"].item() == 12
        seen |= set(found)
    assert seen == set(stored)

    train(config, world)
    annealed = read_metrics(tmp_path / "anneal")
    assert _column(annealed, "learning_rate") == [rate * (1 - step / 8) for step in range(8)]
    assert _column(annealed, "step") == list(range(1, 9))
    assert annealed[0]["loss"] < read_metrics(tmp_path / "run")[0]["loss"] - 0.05

    # A restart of the anneal goes on from its own checkpoint and keeps its starting rate.
    (tmp_path / "anneal" / "done.json").unlink()
    (tmp_path / "anneal" / "checkpoints" / "step0000008" / MARKER).unlink()
    train(config, world)
    assert _same(read_metrics(tmp_path / "anneal")) == _same(annealed)


def test_an_anneal_needs_a_whole_training_checkpoint_of_its_model_and_tokenizer(
    make_config: Any, make_mix: Any, make_documents: Any, world: World, tmp_path: Path
) -> None:
    train(_config(make_config(max_steps=2)), world)
    source = tmp_path / "run" / "checkpoints" / "step0000002"

    def anneal(**changes: Any) -> str:
        data = make_config(run_folder=str(tmp_path / "anneal"), init_from=str(source), **changes)
        data["schedule"] = {"kind": "linear_to_zero"}
        with pytest.raises(TrainerError) as error:
            prepare(_config(data), world)
        (tmp_path / "anneal" / "config.json").unlink(missing_ok=True)
        return str(error.value)

    for key, there, here in (
        ("mlp_hidden", 64, 96),
        ("n_layers", 2, 1),
        ("rope_theta", 500000.0, 1e4),
        ("qkv_normalization", "qk_norm", "none"),
    ):
        told = anneal(**{f"model.{key}": here})
        assert f"{source} is a checkpoint of another model ({key} {there}) than the config's ({key} {here})" in told
    # One whose config.json lies.
    written = json.loads((source / "config.json").read_text())
    written["model"]["mlp_hidden"] = 96
    (source / "config.json").write_text(json.dumps(written))
    write_marker(source)
    told = anneal(**{"model.mlp_hidden": 96})
    assert "holds model.layers.0.mlp.down_proj.weight of shape [32, 64], the config's model has [32, 96]" in told
    other = make_mix(tmp_path / "other", make_documents(20))
    (other / "mix.json").write_text((other / "mix.json").read_text().replace(sha256(b"test").hexdigest(), "ab" * 32))
    words = f"{other} was made by another tokenizer (abababababab) than the mix that {source} was trained on (9f86d081884c)"
    assert words in anneal(**{"data.mix": str(other)})
    assert f"{other} was made by another tokenizer (abababababab) than the mix {tmp_path / 'mix'}" in anneal(
        held_out={"sources": {"web": {"mix": str(other)}}, "every_steps": 1}
    )
    (tmp_path / "mix" / "tokens-1.npy").rename(tmp_path / "tokens-1.npy")
    assert f"token file {tmp_path / 'mix' / 'tokens-1.npy'} is not there" in anneal()
    (tmp_path / "tokens-1.npy").rename(tmp_path / "mix" / "tokens-1.npy")
    (source / "state.json").unlink()
    assert "state.json is missing" in anneal()
    (source / MARKER).unlink()
    assert "is no whole checkpoint" in anneal()


def test_a_checkpoint_holds_no_pickle(make_config: Any, world: World, tmp_path: Path) -> None:
    train(_config(make_config(max_steps=2)), world)
    files = list((tmp_path / "run").rglob("*"))
    assert {path.suffix for path in files if path.is_file()} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                assert file.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text())
    assert {path.name for path in files} >= {"checkpoint.json", "state.json", "config.json", "done.json", "metrics.jsonl"}


def test_equal_runs_leave_equal_bytes(make_config: Any, world: World, tmp_path: Path) -> None:
    """Not only equal tensors: a store knows a file by its checksum. Several runs, since what varies may agree by chance."""
    files = []
    for number in range(6):
        train(_config(make_config(max_steps=2, run_folder=str(tmp_path / f"run-{number}"))), world)
        (path,) = (tmp_path / f"run-{number}" / "checkpoints" / "step0000002").glob("*.safetensors")
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_old_checkpoints_are_removed(make_config: Any, world: World, tmp_path: Path) -> None:
    train(_config(make_config(**{"checkpoint.every_steps": 2, "checkpoint.keep": 2})), world)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step0000008", "step0000010", "step0000012"]


def test_a_run_without_max_steps_is_one_epoch(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    config = _config(make_config(max_steps=None, global_batch_instances=24))
    train(config, world)
    assert len(read_metrics(tmp_path / "run")) == Mix(config.data.mix).instances // 24


def _main(tmp_path: Path, config: dict[str, Any]) -> int:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return main([str(path)])


def test_a_done_run_is_left_alone(make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "done.json").write_text("{}")
    assert _main(tmp_path, make_config()) == 0
    assert "done already" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["done.json"]


def test_a_users_error_is_one_sentence(make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _main(tmp_path, make_config(sed=1)) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'config.yaml'}: unknown key sed; did you mean seed")
    assert main([]) == 2


def test_a_restart_with_another_config_or_mix_is_refused(
    make_config: Any, make_mix: Any, make_documents: Any, world: World, tmp_path: Path
) -> None:
    train(_config(make_config(max_steps=2)), world)
    with pytest.raises(TrainerError, match=r"holds a run whose data\.seed was another"):
        train(_config(make_config(**{"max_steps": 2, "data.seed": 4})), world)
    with pytest.raises(TrainerError, match=r"holds a run whose model\.n_layers was another"):
        train(_config(make_config(**{"max_steps": 2, "model.n_layers": 3})), world)
    other = make_mix(tmp_path / "other", make_documents(99, seed=9))
    with pytest.raises(TrainerError, match="is another mix than"):
        train(_config(make_config(**{"max_steps": 2, "data.mix": str(other)})), world)


def test_a_loss_that_is_no_number_ends_the_run(make_config: Any, world: World, tmp_path: Path) -> None:
    config = _config(make_config(**{"optimizer.learning_rate": 1e30, "schedule.warmup_steps": 0}))
    with pytest.raises(TrainerError, match=r"of step \d+ is no finite number"):
        train(config, world)
    assert not (tmp_path / "run" / "done.json").exists()


def test_bf16_follows_fp32(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        config = _config(make_config(precision=precision, run_folder=str(tmp_path / precision), deterministic=False))
        train(config, world)
        losses.append(_column(read_metrics(config.run_folder), "loss"))
        weights = dict(load_model_tensors(tmp_path / precision / "checkpoints" / "step0000012"))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
