"""How fast one process makes batches ready, and how a mix of a thousand million instances opens: `python -m benchmarks.loader`.

Real documents, six in ten of them taken by hash as a filter would, as a scattered mix (an extent for each run of them in the token files)
and as a packed one, repetition mask on; one epoch in its seeded order by the trainer's own Prefetcher, in a process of its own on one core,
with the files in the page cache and with them dropped from it. Both mixes are the same stream, so that their batches must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import corpus, measure, recipes, sparse_mix
from benchmarks.measure import Run

SEQUENCE_LENGTH, BATCH, SEED = 4096, 16, 7
TAKEN = 0.6  # of the documents
TOKEN_FILES = 8
HUGE, HUGE_FILES, RANKS = 10**9, 16384, 64
CLAIM = "loader_tokens_per_second"


def write_mixes(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The scattered and the packed mix in `folder`, by kind."""
    from tasks.mix_plan import extents
    from tasks.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(recipes.tokenizer(options.folder))
    names, starts, lengths, numbers = [], [], [], []
    scattered, packed = folder / "scattered", folder / "packed"
    scattered.mkdir(parents=True)
    packed.mkdir()
    for number, path in enumerate(corpus.write(options.folder, options.mb * 1_000_000, TOKEN_FILES)):
        documents = [np.append(ids, tokenizer.eos_id) for ids in tokenizer.encode_documents(corpus.texts([path]))]
        names.append(f"tokens-{number}.npy")
        np.concatenate(documents).astype("<u4").tofile(scattered / names[-1])
        sizes = np.array([len(ids) for ids in documents], np.int64)
        starts.append(np.cumsum(sizes) - sizes)
        lengths.append(sizes)
        numbers.append(np.full(len(sizes), number, np.int32))
    length = np.concatenate(lengths)
    taken = np.random.default_rng(SEED).random(len(length)) < TAKEN
    rows = extents(np.concatenate(numbers), np.concatenate(starts), length, taken.astype(np.uint16))
    header = {
        "version": 1,
        "sequence_length": SEQUENCE_LENGTH,
        "tokens": int(rows[-1, 3]),
        "instances": int(rows[-1, 3]) // SEQUENCE_LENGTH,
        "documents": int(taken.sum()),
        "vocab_size": tokenizer.padded_vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.sha256,
        "bytes": 1,
    }
    np.save(scattered / "extents.npy", rows)
    (scattered / "mix.json").write_text(json.dumps(header | {"files": names}))
    opened = [np.fromfile(scattered / name, "<u4") for name in names]
    stream = np.concatenate([opened[file][start : start + size] for file, start, size, _ in rows.tolist()])
    stream.tofile(packed / "part-0.npy")
    np.save(packed / "extents.npy", np.array([[0, 0, len(stream), len(stream)]], np.int64))
    (packed / "mix.json").write_text(json.dumps(header | {"files": ["part-0.npy"]}))
    return {"scattered": scattered, "packed": packed}


def loader_config(mix: Path, vocab_size: int) -> Any:
    from trainer.config import TrainConfig
    from trainer.parsing import parse

    model = {"d_model": 64, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "mlp_hidden": 64, "vocab_size": vocab_size}
    return parse(
        TrainConfig,
        {
            "model": model | {"max_sequence_length": SEQUENCE_LENGTH},
            "data": {"mix": str(mix), "seed": SEED},
            "sequence_length": SEQUENCE_LENGTH,
            "global_batch_instances": BATCH,
            "micro_batch_instances": 1,
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"kind": "cosine"},
            "seed": 1,
            "run_folder": "none",
        },
        "the benchmark",
    )


def epoch(folder: Path) -> dict[str, Any]:
    """One epoch of a mix; `digest` is of all ids and masks."""
    import torch

    from trainer.data import Loader, Mix
    from trainer.prefetch import Prefetcher

    before = _bytes_from_disk()
    started = time.perf_counter()
    mix = Mix(folder)
    loader = Loader(mix, loader_config(folder, mix.vocab_size), 0, 1)
    sums = np.zeros(BATCH, np.int64)
    masked = 0
    with Prefetcher(loader, 0, loader.batches_per_epoch, torch.device("cpu")) as prefetcher:
        for number in range(loader.batches_per_epoch):
            batch = prefetcher.next()
            assert batch is not None
            sums += batch.host.ids[:, number % SEQUENCE_LENGTH] * (number + 1)
            masked += int((~batch.host.kept).sum())
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "tokens": loader.batches_per_epoch * BATCH * SEQUENCE_LENGTH,
        "from_disk": _bytes_from_disk() - before,
        "masked": masked,
        "digest": hashlib.sha256(sums.tobytes()).hexdigest(),
    }


def open_huge(folder: Path) -> dict[str, Any]:
    """Open the large mix, look at one rank's share of its files, and read the first batch."""
    from trainer.data import Loader, Mix

    before = measure.high_water(os.getpid())
    started = time.perf_counter()
    mix = Mix(folder)
    loader = Loader(mix, loader_config(folder, mix.vocab_size), 0, 1)
    opened = time.perf_counter()
    fault = mix.fault_in_files(RANKS // 2, RANKS)
    looked = time.perf_counter()
    ids = loader.batch(0).ids
    read = time.perf_counter()
    assert fault is None and ids[:, 0].tolist() == (loader.instance_numbers(0) + 1).tolist()
    return {
        "seconds": read - started,
        "open": opened - started,
        "look": looked - opened,
        "batch": read - looked,
        "memory": measure.high_water(os.getpid()) - before,
    }


def _bytes_from_disk() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def run_epoch(folder: Path, cold: bool) -> Run:
    for path in folder.iterdir():
        with path.open("rb") as file:
            if cold:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass
    return measure.run_script([sys.executable, "-m", "benchmarks.loader", "--epoch", str(folder)])


def write_huge(folder: Path) -> Path:
    from trainer.data import permute

    first = permute(np.arange(BATCH, dtype=np.int64), HUGE, SEED, 0).tolist()
    return sparse_mix.write(folder, SEQUENCE_LENGTH, HUGE, HUGE_FILES, first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=256, help="MB of text")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epoch", type=Path, help="one epoch of this mix, and nothing else")
    parser.add_argument("--open", type=Path, help="open this mix, and nothing else")
    options = parser.parse_args()
    if options.epoch or options.open:
        print(json.dumps(epoch(options.epoch) if options.epoch else open_huge(options.open)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=options.folder))
    try:
        mixes = write_mixes(folder, options)
        contestants = {
            f"{kind}, {'cold' if cold else 'warm'}": lambda kind=kind, cold=cold: run_epoch(mixes[kind], cold)
            for kind in mixes
            for cold in (False, True)
        }
        huge = write_huge(folder / "huge")
        contestants["open"] = lambda: measure.run_script([sys.executable, "-m", "benchmarks.loader", "--open", str(huge)])
        runs = measure.in_turns(options.rounds, contestants)
        header, rows = json.loads((mixes["scattered"] / "mix.json").read_text()), len(np.load(mixes["scattered"] / "extents.npy"))
    finally:
        shutil.rmtree(folder)
    opened = runs.pop("open")
    if len({run.said["digest"] for each in runs.values() for run in each}) != 1:
        raise SystemExit("the scattered and the packed mix gave different batches")
    rates = {name: [run.said["tokens"] / run.seconds for run in each] for name, each in runs.items()}
    slowest = min(rates, key=lambda name: median(rates[name]))
    masked = next(iter(runs.values()))[0].said["masked"]
    table = [("mix", f"{header['documents']:,} documents, {header['tokens']:,} tokens, {rows:,} extents, {masked:,} instances masked")]
    for name, each in runs.items():
        read = median(run.said["from_disk"] for run in each) / 1e6
        table.append((name, f"{median(rates[name]) / 1e6:,.1f} million tokens/s, {read:,.0f} MB from the disk"))
    for part in ("open", "look", "batch"):
        table.append((f"1e9 instances: {part}", f"{median(run.said[part] for run in opened):.3f} s"))
    memory = max(run.said["memory"] for run in opened)
    table.append(("1e9 instances: memory", f"{memory / 2**20:,.0f} MiB more than before"))
    seconds = measure.claim([run.seconds for run in opened], "s", memory_mib=round(memory / 2**20, 1))
    claims = {CLAIM: measure.claim(rates[slowest], "tokens/s", slowest=slowest), "open_seconds_1e9_instances": seconds}
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
