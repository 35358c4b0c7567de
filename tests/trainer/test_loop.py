"""What the loop does beside training: its books, held-out scores, profiles, and the sentences that it ends with."""

import errno
import gc
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.bookkeeping import Bookkeeper
from trainer.checkpoint import write_marker
from trainer.config import TrainConfig
from trainer.data import Loader, Mix
from trainer.errors import TrainerError
from trainer.evaluate import EvaluateConfig, evaluate, load_model
from trainer.interrupts import CollectedRarely
from trainer.parallel import TrainedOlmo2, World
from trainer.parsing import parse
from trainer.sinks import JsonLines
from trainer.spikes import spike_score
from trainer.train import train

SAME = ("step", "tokens", "loss", "z_loss", "grad_norm", "largest_logit", "learning_rate", "masked_instances", "skipped")


def _config(data: dict[str, Any]) -> TrainConfig:
    return parse(TrainConfig, data, "test")


def _same(lines: list[dict[str, Any]]) -> list[tuple]:
    return [tuple(line[key] for key in SAME) for line in lines]


def test_every_step_has_its_line_however_many_leave_together(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    runs = []
    for every in (1, 5):
        folder = tmp_path / f"every-{every}"
        train(_config(make_config(run_folder=str(folder), metrics={"every_steps": every}, **{"checkpoint.every_steps": 8})), world)
        runs.append(read_metrics(folder))
    assert [line["step"] for line in runs[0]] == list(range(1, 13))
    assert _same(runs[0]) == _same(runs[1])
    for name in ("loss", "grad_norm"):
        assert runs[1][-1][f"{name}_spike_score"] == spike_score(line[name] for line in runs[1])


def test_lines_tell_the_embedding_norm_and_the_largest_logit(make_config: Any, world: World, tmp_path: Path, read_metrics: Any) -> None:
    config = _config(make_config(max_steps=4, micro_batch_instances=2, **{"metrics.embedding_norm_every_steps": 4}))
    train(config, world)
    lines = read_metrics(tmp_path / "run")
    assert ["embedding_norm" in line for line in lines] == [False, False, False, True]
    (path,) = (tmp_path / "run" / "checkpoints" / "step0000004").glob("*.safetensors")
    norms = np.linalg.norm(load_file(path)["model.embed_tokens.weight"].numpy(), axis=1)
    assert lines[-1]["embedding_norm"] == pytest.approx(norms.mean(), rel=1e-6)

    # The largest logit of the first step is that of the initial weights.
    from olmo_model.init import init_weights
    from olmo_model.model import Olmo2

    model = Olmo2(config.model)
    init_weights(model, config.seed)
    ids = torch.from_numpy(Loader(Mix(config.data.mix), config, 0, 1).batch(0).ids)
    assert lines[0]["largest_logit"] == pytest.approx(model(ids).max().item(), rel=1e-5)


def test_held_out_scores_are_the_evaluations_own_and_disturb_nothing(
    make_config: Any, make_mix: Any, make_documents: Any, make_answers: Any, world: World, tmp_path: Path, read_metrics: Any, run_ranks: Any
) -> None:
    mixes = {
        "web": str(make_mix(tmp_path / "web", make_documents(9, seed=1))),
        "maths": str(make_mix(tmp_path / "maths", make_documents(2))),
    }
    instances = [([5, 6, 7], [8]), ([9] * 20, [10, 11]), ([3], [4] * 25), ([12, 13], [14, 15, 16]), ([17], [18])]
    answers = make_answers(tmp_path / "answers", instances)
    sources = {name: {"mix": mix} for name, mix in mixes.items()}
    held_out = {"every_steps": 8, "sources": sources, "answers": {"arc": str(answers)}}
    train(_config(make_config(run_folder=str(tmp_path / "plain"))), world)
    scored = make_config(held_out=held_out, **{"checkpoint.every_steps": 8})
    train(_config(scored), world)
    lines = read_metrics(tmp_path / "run")
    assert _same(lines) == _same(read_metrics(tmp_path / "plain"))
    assert [line["step"] for line in lines if "held_out/all/loss" in line] == [8, 12]

    checkpoints = {str(step): str(tmp_path / "run" / "checkpoints" / f"step{step:07d}") for step in (8, 12)}
    settings = {
        "sources": held_out["sources"],
        "sequence_length": 32,
        "batch_instances": 3,
        "output": "",
        "device": "cpu",
        "precision": "fp32",
    }
    expected = evaluate(parse(EvaluateConfig, {"checkpoints": checkpoints, **settings}, "test"), world)["checkpoints"]
    run_ranks({**scored, "run_folder": str(tmp_path / "pair"), "micro_batch_instances": 2}, 2)
    for run in (lines, read_metrics(tmp_path / "pair")):
        for step, sources in expected.items():
            for name, score in sources.items():
                for key in ("loss", "bits_per_byte"):
                    assert run[int(step) - 1][f"held_out/{name}/{key}"] == pytest.approx(score[key], rel=1e-5)
            model = load_model(checkpoints[step], world.device, torch.float32)
            bits = _bits_per_byte(model, instances)
            assert run[int(step) - 1]["tasks/arc/bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def _bits_per_byte(model: Any, instances: list[tuple[list[int], list[int]]]) -> float:
    """By itself, instance by instance; each answer has two bytes a token, and an instance counts more the later it stands."""
    total = 0.0
    for number, (context, answer) in enumerate(instances):
        chances = model(torch.tensor([context + answer]))[0].float().log_softmax(dim=-1)
        nats = -sum(float(chances[len(context) - 1 + place, token]) for place, token in enumerate(answer))
        total += nats / np.log(2) / (2 * len(answer)) * (number + 1) / 15
    return total


def test_gold_answers_of_another_tokenizer_or_window_are_refused_before_the_start(
    make_config: Any, make_answers: Any, world: World, tmp_path: Path
) -> None:
    foreign = make_answers(tmp_path / "foreign", [([1], [2])], vocab_size=256)
    long = make_answers(tmp_path / "long", [([1] * 32, [2, 3])])
    for folder, said in (
        (foreign, "the gold answers of arc are of another tokenizer"),
        (long, "of 34 tokens, over the model's window of 32"),
    ):
        with pytest.raises(TrainerError, match=said):
            train(_config(make_config(held_out={"every_steps": 8, "sources": {}, "answers": {"arc": str(folder)}})), world)
    (long / "rows.npy").unlink()
    with pytest.raises(TrainerError, match=r"holds no gold answers that can be read .*rows\.npy"):
        train(_config(make_config(held_out={"every_steps": 8, "sources": {}, "answers": {"arc": str(long)}})), world)
    assert not (tmp_path / "run").exists()


def test_a_held_out_mix_of_another_vocabulary_is_refused_before_the_start(
    make_config: Any, make_mix: Any, make_documents: Any, world: World, tmp_path: Path
) -> None:
    foreign = make_mix(tmp_path / "foreign", make_documents(3), vocab_size=256)
    with pytest.raises(TrainerError, match="the mix of source web has a vocabulary of 256, the model of"):
        train(_config(make_config(held_out={"every_steps": 8, "sources": {"web": {"mix": str(foreign)}}})), world)
    assert not (tmp_path / "run").exists()


def test_a_profile_of_the_steps_asked_for_can_be_opened(make_config: Any, world: World, tmp_path: Path) -> None:
    train(_config(make_config(max_steps=4, profile={"first_step": 2, "steps": 2})), world)
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "steps-2-3.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2


def test_the_garbage_collector_runs_when_the_loop_says(make_config: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = []
    record = Bookkeeper.record
    monkeypatch.setattr(Bookkeeper, "record", lambda books, numbers: (enabled.append(gc.isenabled()), record(books, numbers))[1])
    train(_config(make_config(max_steps=2)), world)
    assert enabled == [False, False] and gc.isenabled()

    class Ring:
        def __init__(self) -> None:
            self.itself = self

    with CollectedRarely() as garbage:
        Ring()
        garbage.after_step(499)
        assert any(isinstance(each, Ring) for each in gc.get_objects())
        garbage.after_step(500)
        assert not any(isinstance(each, Ring) for each in gc.get_objects())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_no_number_names_rank_step_and_instances(
    ranks: int, make_config: Any, make_mix: Any, make_documents: Any, world: World, tmp_path: Path, run_ranks: Any, read_metrics: Any
) -> None:
    """A checkpoint's embedding of one id is made infinite; the id stands in one instance alone."""
    documents = make_documents(150, high=20)
    documents[77][3] = 99
    mix = make_mix(tmp_path / "poisoned", documents)
    train(_config(make_config(max_steps=1, run_folder=str(tmp_path / "before"), **{"data.mix": str(mix)})), world)
    source = tmp_path / "before" / "checkpoints" / "step0000001"
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][99] = torch.inf
    save_file(tensors, path)
    (source / "tensors.json").unlink()  # what was known of the file's layout
    write_marker(source)
    changes = {"init_from": str(source), "schedule": {"kind": "linear_to_zero"}, "max_steps": 60, "micro_batch_instances": 1}
    data = make_config(**changes, **{"data.mix": str(mix), "metrics.every_steps": 7})

    opened = Mix(mix)
    (bad,) = (number for number in range(opened.instances) if 99 in opened.instance(number))
    loaders = [Loader(opened, _config(data), rank, ranks) for rank in range(ranks)]
    step, rank = next((step, rank) for step in range(60) for rank, each in enumerate(loaders) if bad in each.instance_numbers(step))
    data["checkpoint"] = {"every_steps": step + 1}
    if ranks == 1:
        with pytest.raises(TrainerError) as error:
            train(_config(data), world)
        told = str(error.value)
    else:
        told = run_ranks(data, ranks, code=1)
    assert f"the loss or gradient norm of step {step + 1} is no finite number" in told
    assert f"it came from rank {rank} (host {world.host}, device cpu), instances {bad} of {mix}" in told
    written = tmp_path / "run" / "bad-batches" / f"step{step + 1:07d}-rank{rank}.npy"
    assert str(written) in told
    assert np.array_equal(np.load(written), loaders[rank].batch(step).ids)
    facts = json.loads(written.with_suffix(".json").read_text())
    assert facts["bad_instances"] == [bad] and facts["instances"] == loaders[rank].instance_numbers(step).tolist()
    # The steps before it are written, and nothing after it is saved.
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, step + 1))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_full_disk_is_one_sentence(make_config: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(sink: JsonLines, lines: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLines, "write", full)
    with pytest.raises(TrainerError, match=rf"the disk of {tmp_path / 'run'} is full \(rank 0, host .*make room.* and start again"):
        train(_config(make_config()), world)


def test_too_little_memory_is_one_sentence_that_says_what_to_lower(make_config: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedOlmo2, "loss", lambda *arguments: torch.empty(1 << 50))
    with pytest.raises(
        TrainerError, match=r"^out of memory \(rank 0, .*lower micro_batch_instances \(now 4\), set parallel\.activation_checkp"
    ):
        train(_config(make_config()), world)
