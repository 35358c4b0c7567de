"""Mixes read back, the order of instances, and what does not fit together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sparse_mix
from trainer.config import TrainConfig
from trainer.data import Loader, Mix, check_tokenizer, permute
from trainer.errors import TrainerError
from trainer.parsing import parse


def _config(data: dict[str, Any]) -> TrainConfig:
    return parse(TrainConfig, data, "test")


def _stream(documents: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.append(document, 0) for document in documents])


def test_instances_are_the_stream_cut_into_pieces(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    documents = make_documents(40)
    mix = Mix(make_mix(tmp_path, documents))
    stream = _stream(documents)
    assert mix.tokens == len(stream) and mix.instances == len(stream) // 32
    for number in range(mix.instances):
        assert mix.instance(number).tolist() == stream[32 * number : 32 * (number + 1)].tolist()
    assert mix.read(7, mix.tokens - 7).tolist() == stream[7:].tolist()


def test_token_files_may_lie_elsewhere(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    documents = make_documents(10)
    folder = make_mix(tmp_path / "mix", documents)
    paths = []
    for number, name in enumerate(json.loads((folder / "mix.json").read_text())["files"]):
        (folder / name).rename(tmp_path / f"moved-{number}")
        paths.append(str(tmp_path / f"moved-{number}"))
    for number, listed in enumerate((paths, [f"file://{path}" for path in paths])):
        files = tmp_path / f"files-{number}.json"
        files.write_text(json.dumps(listed))
        mix = Mix(folder, files)
        assert mix.read(0, mix.tokens).tolist() == _stream(documents).tolist()


@pytest.mark.parametrize("size", [1, 2, 5, 255, 256, 257, 1000])
def test_every_epoch_is_a_permutation_of_its_own(size: int) -> None:
    everything = np.arange(size, dtype=np.int64)
    orders = [permute(everything, size, seed, epoch).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1))]
    for order in orders:
        assert sorted(order) == everything.tolist()
    if size >= 5:
        assert len({tuple(order) for order in orders}) == 4


def test_orders_are_spread_evenly() -> None:
    """Over many seeds each instance comes first about equally often, and each pair of neighbours too."""
    size, seeds = 6, 3000
    orders = np.array([permute(np.arange(size), size, seed, 0) for seed in range(seeds)])
    first = np.bincount(orders[:, 0], minlength=size)
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size * size).reshape(size, size)
    for counts in (first, pairs[~np.eye(size, dtype=bool)]):
        expected = seeds / len(counts)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        freedom = len(counts) - 1
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # 4 standard deviations; the seeds are fixed


def test_the_global_batch_does_not_depend_on_ranks(make_config: Any) -> None:
    config = _config(make_config(micro_batch_instances=1))
    mix = Mix(config.data.mix)
    alone = Loader(mix, config, 0, 1)
    for number in (0, 1, alone.batches_per_epoch, 2 * alone.batches_per_epoch + 3):
        whole = alone.instance_numbers(number).tolist()
        for ranks in (2, 4):
            shared = [each for rank in range(ranks) for each in Loader(mix, config, rank, ranks).instance_numbers(number)]
            assert shared == whole


def test_an_epoch_visits_no_instance_twice_and_the_next_has_another_order(make_config: Any) -> None:
    config = _config(make_config())
    loader = Loader(Mix(config.data.mix), config, 0, 1)
    epochs = []
    for epoch in range(2):
        numbers = range(epoch * loader.batches_per_epoch, (epoch + 1) * loader.batches_per_epoch)
        epochs.append(np.concatenate([loader.instance_numbers(number) for number in numbers]).tolist())
        assert len(set(epochs[-1])) == len(epochs[-1]) == loader.mix.instances // 4 * 4
    assert epochs[0] != epochs[1]


def test_a_repeating_instance_is_marked(tmp_path: Path, make_mix: Any, make_documents: Any, make_config: Any) -> None:
    # Document 1 fills instance 2 with one token, 32 times in a row; nothing else repeats.
    documents = [np.arange(2, 65, dtype=np.uint32), np.full(31, 0, np.uint32), np.arange(2, 98, dtype=np.uint32)]
    folder = make_mix(tmp_path / "repeats", documents)
    for mask, expected in ((True, [2]), (False, [])):
        changes = {"data.mix": str(folder), "data.mask_repetitions": mask, "global_batch_instances": 6, "micro_batch_instances": 1}
        loader = Loader(Mix(folder), _config(make_config(**changes)), 0, 1)
        assert loader.instance_numbers(0)[~loader.batch(0).kept].tolist() == expected


@pytest.mark.parametrize(
    ("changes", "ranks", "words"),
    [
        ({"model.vocab_size": 256}, 1, "made with another vocabulary (128 ids) than the model's (model.vocab_size 256)"),
        ({"sequence_length": 16}, 1, "sequence_length is 16 but the mix"),
        ({"micro_batch_instances": 3}, 1, "global_batch_instances 4 is not divisible by ranks x micro_batch_instances (1 x 3 = 3)"),
        ({}, 2, "(2 x 4 = 8)"),
        ({"global_batch_instances": 4000}, 1, "fewer than one batch of 4000"),
    ],
)
def test_what_does_not_fit_is_named(make_config: Any, changes: dict[str, Any], ranks: int, words: str) -> None:
    config = _config(make_config(**changes))
    with pytest.raises(TrainerError) as error:
        Loader(Mix(config.data.mix), config, 0, ranks)
    assert words in str(error.value)


def test_an_id_outside_the_vocabulary_is_an_error(tmp_path: Path, make_mix: Any, make_config: Any) -> None:
    folder = make_mix(tmp_path / "bad", [np.arange(2, 130, dtype=np.uint32)])
    config = _config(make_config(**{"data.mix": str(folder)}))
    with pytest.raises(TrainerError, match="holds id 129, outside its vocabulary of 128"):
        Loader(Mix(folder), config, 0, 1).batch(0)


def test_damaged_mixes_are_named(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    def broken(name: str) -> Path:
        return make_mix(tmp_path / name, make_documents(10))

    with pytest.raises(TrainerError, match=r"mix\.json cannot be read"):
        Mix(tmp_path / "nowhere")
    short = broken("short")
    (short / "tokens-1.npy").write_bytes((short / "tokens-1.npy").read_bytes()[:-4])
    with pytest.raises(TrainerError, match=r"tokens-1\.npy ends before token"):
        Mix(short).read(0, Mix(short).tokens)
    gone = broken("gone")
    (gone / "tokens-0.npy").unlink()
    with pytest.raises(TrainerError, match=r"tokens-0\.npy cannot be read"):
        Mix(gone).instance(0)
    extents = broken("extents")
    np.save(extents / "extents.npy", np.load(extents / "extents.npy")[:-1])
    with pytest.raises(TrainerError, match=r"extents\.npy holds \d+ tokens where mix\.json says"):
        Mix(extents)
    inside = broken("inside")
    rows = np.load(inside / "extents.npy")
    rows[-4:, 2] = 0
    np.save(inside / "extents.npy", rows)
    with pytest.raises(TrainerError, match=r"extents\.npy contradicts itself at token"):
        Mix(inside).read(0, Mix(inside).tokens)
    header = broken("header")
    (header / "mix.json").write_text("{")
    with pytest.raises(TrainerError, match=r"mix\.json is not valid JSON"):
        Mix(header)


def test_a_token_file_that_is_missing_or_short_is_named_before_the_start(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    """Whoever of two ranks looks; a file longer than needed, and one that no extent names, are no faults."""

    def faults(folder: Path) -> list[str | None]:
        mix = Mix(folder)
        found = mix.fault_in_files()
        assert [found] == [each for each in (mix.fault_in_files(rank, 2) for rank in range(2)) if each][:1] or found is None
        return [found, *(mix.fault_in_files(rank, 2) for rank in range(2))]

    folder = make_mix(tmp_path / "mix", make_documents(10))
    header = json.loads((folder / "mix.json").read_text())
    (folder / "mix.json").write_text(json.dumps(header | {"files": [*header["files"], "unused.npy"]}))
    assert faults(folder) == [None] * 3
    whole = (folder / "tokens-1.npy").read_bytes()
    (folder / "tokens-1.npy").write_bytes(whole + bytes(4))
    assert faults(folder) == [None] * 3
    (folder / "tokens-1.npy").write_bytes(whole[:-1])
    words = f"tokens-1.npy has {len(whole) - 1} bytes, of which the mix {folder} needs {len(whole)}"
    assert words in str(faults(folder)[0]) and words in str(faults(folder)[2])
    (folder / "tokens-1.npy").unlink()
    assert all(f"token file {folder / 'tokens-1.npy'} is not there" in str(fault) for fault in faults(folder))
    extents = np.load(folder / "extents.npy")
    extents[0, 0] = 3
    np.save(folder / "extents.npy", extents)
    assert "extents.npy names a token file that mix.json does not" in str(faults(folder)[0])


def test_a_mix_of_another_tokenizer_is_named(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    folder = make_mix(tmp_path / "mix", make_documents(10))
    mix = Mix(folder)
    check_tokenizer(mix, mix.tokenizer, "the model")
    check_tokenizer(mix, None, "a model that does not say")
    with pytest.raises(TrainerError, match=rf"{folder} was made by another tokenizer \(9f86d081884c\) than the model \(abcabcabcabc\)"):
        check_tokenizer(mix, "abc" * 20, "the model")


def test_a_mix_of_a_thousand_million_instances_opens_and_is_read_in_little_memory(tmp_path: Path) -> None:
    """32 GB of extents, one an instance, over 1,024 files of 16 GB each; sparse, but for what reading some instances looks at."""
    length, instances, files = 4096, 10**9, 1024
    folder = sparse_mix.write(tmp_path / "huge", length, instances, files, [0, 123_456_789, instances - 1])
    script = f"""
import json, resource
from trainer.data import Mix, permute
import numpy as np
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mix = Mix({str(folder)!r})
ids = [mix.instance(number) for number in (0, 123_456_789, {instances - 1})]
assert mix.fault_in_files(500, 10_000) is None
order = permute(np.arange(4096), mix.instances, 1, 0)
assert len(set(order.tolist())) == 4096 and order.max() > 9e8
print(json.dumps([[int(each[0]) for each in ids], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first_ids, kilobytes = json.loads(out.stdout)
    assert first_ids == [1, 123_456_790, instances] and kilobytes < 64 * 1024


def test_a_storage_that_nothing_here_can_read_is_named_at_once(tmp_path: Path, make_mix: Any, make_documents: Any) -> None:
    folder = make_mix(tmp_path / "mix", make_documents(10))
    files = tmp_path / "files.json"
    files.write_text(json.dumps(["nosuch://bucket/0.npy", "nosuch://bucket/1.npy"]))
    mix = Mix(folder, files)
    assert "token file nosuch://bucket/0.npy cannot be read (Protocol not known: nosuch); install fsspec" in str(mix.fault_in_files())
    with pytest.raises(TrainerError, match=r"nosuch://bucket/0\.npy cannot be read"):
        mix.instance(0)
