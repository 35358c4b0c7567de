"""What checkpoints cost: `python -m benchmarks.checkpoint`, on a GPU `python -m benchmarks.checkpoint --device cuda --preset 1b`.

Loading at 1,024 ranks: a folder as 1,024 ranks write it, 2,100 keys each (tiny tensors, written outside the timing). Timed is everything up
to the weights being there: rank 0 opens the index, a rank decodes it and reads its own ranges, on as many ranks and on another number. The
broadcast over a network is not in it. Beside it torch's own reader, which opens all files' headers on every rank, for its metadata alone.

Stall: a training step again and again, a checkpoint after every 250th. On a GPU the stall is what an interval takes longer than its steps
would at the median of those that no checkpoint is written beside, so that a copy or an update that waits on the device counts too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import measure
from olmo_model.config import PRESETS, ModelConfig
from trainer import optim, parallel
from trainer.config import CheckpointConfig, OptimizerConfig, ParallelConfig
from trainer.saving import Saver
from trainer.tensorfiles import INDEX, Index, Part, header, make_index

RANKS, KEYS, ROW = 1024, 2100, 2
STEPS = 250
SMALL = ModelConfig(d_model=256, n_layers=4, n_heads=4, n_kv_heads=4, mlp_hidden=1024, vocab_size=8192, max_sequence_length=256)


def names() -> list[str]:
    """700 weights and both moments of each, in the order of a checkpoint."""
    weights = sorted(f"model.layers.{number // 10}.self_attn.{number % 10}_proj.weight" for number in range(KEYS // 3))
    return weights + sorted(f"optimizer.{name}.{moment}" for name in weights for moment in ("exp_avg", "exp_avg_sq"))


def write_shards(folder: Path) -> None:
    """Each tensor has a row a rank, whose values are the rank."""
    folder.mkdir(parents=True)
    files, table = [f"rank-{rank:05d}-of-{RANKS:05d}.safetensors" for rank in range(RANKS)], []
    numbers = np.arange(KEYS, dtype=np.int64)
    for rank, name in enumerate(files):
        head = header([Part(each, torch.float32, (1, ROW), rank) for each in names()])
        (folder / name).write_bytes(head + np.full(KEYS * ROW, rank, np.float32).tobytes())
        same = np.ones_like(numbers)
        table.append(np.stack([numbers, same * rank, len(head) + numbers * 4 * ROW, same * rank * ROW, same * ROW], 1))
    known = dict.fromkeys(names(), (torch.float32, (RANKS, ROW)))
    (folder / INDEX).write_bytes(make_index(Path(), files, known, np.concatenate(table)).encode())


def load(folder: Path) -> dict[str, float]:
    """Seconds of each part of it; what was read is compared."""
    took: dict[str, float] = {}
    started = time.perf_counter()
    text = (folder / INDEX).read_bytes()  # what rank 0 does
    took["open"] = time.perf_counter() - started
    started = time.perf_counter()
    index = Index.decode(folder, text)
    took["decode"] = time.perf_counter() - started
    # One row of every tensor, and two that lie in two files, as a rank of half as many has.
    for label, rows, first in (("read on 1,024 ranks", 1, 700), ("read on 512 ranks", 2, 350)):
        wanted = [(name, first * ROW, torch.empty(rows, ROW)) for name in names()]
        started = time.perf_counter()
        index.read(wanted)
        took[label] = time.perf_counter() - started
        if any(not torch.equal(tensor[:, 0], torch.arange(first, first + rows).float()) for _, _, tensor in wanted):
            raise SystemExit("what was read is not what was written")
    return took


def torch_metadata(folder: Path) -> float:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    started = time.perf_counter()
    HuggingFaceStorageReader(str(folder)).read_metadata()
    return time.perf_counter() - started


def stall(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with a checkpoint in every `STEPS` steps; returns shares of wall time by round, and what a step is."""
    world = parallel.start(options.device, None if options.device == "cuda" else 1)
    try:
        config = PRESETS[options.preset] if options.preset else SMALL
        length = min(options.sequence_length, config.max_sequence_length)
        settings = ParallelConfig(compile=world.device.type == "cuda", activation_checkpointing=options.activation_checkpointing)
        model = parallel.build_model(config, world, "bf16" if world.device.type == "cuda" else "fp32", 1, settings)
        optimizer = optim.make_optimizer(model, OptimizerConfig(3e-4))
        ids = torch.randint(0, config.vocab_size, (options.instances, length), device=world.device)
        kept = torch.ones(options.instances, dtype=torch.bool, device=world.device)

        def step() -> float:
            began = time.perf_counter()
            parts = list(zip(ids.split(options.micro_batch), kept.split(options.micro_batch), strict=True))
            for number, (micro, mask) in enumerate(parts, 1):
                parallel.begin_micro_batch(model, number == len(parts), "whole")
                loss, _ = model.loss(micro, mask, options.instances * (length - 1), 1e-5)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            return time.perf_counter() - began

        for _ in range(5):
            step()
        lost, told, written, seconds = [], [], [], []
        with Saver(model, optimizer, {}, CheckpointConfig(keep=0), world) as saver:
            saver.save(folder / "step0000000", {}, {})  # the first one touches the buffer's pages
            saver.wait()
            for number in range(options.rounds):
                before, started, marked = saver.stall_seconds, time.perf_counter(), None
                path, alone = folder / f"step{number + 1:07d}", []
                saver.save(path, {"step": number + 1}, {})
                for _ in range(STEPS):
                    took = step()
                    if marked is not None:
                        alone.append(took)
                    elif (path / "checkpoint.json").exists():
                        marked = time.perf_counter() - started
                wall = time.perf_counter() - started
                if not alone:
                    raise SystemExit("the checkpoint took longer than the interval; take larger steps")
                lost.append(1 - STEPS * statistics.median(alone) / wall)
                told.append((saver.stall_seconds - before) / wall)
                written.append(marked)
                seconds.append(statistics.median(alone))
        tensors = sum(3 * parameter.numel() for parameter in model.parameters()) * 4
    finally:
        dist.destroy_process_group()
    return {
        "lost": lost,
        "told": told,
        "tokens": options.instances * length,
        "step": statistics.median(seconds),
        "written": statistics.median(written),
        "gb": tensors / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="without: a model of 8 million parameters")
    parser.add_argument("--instances", type=int, help="of a step; on a GPU as many as make 32k tokens")
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=2, help="instances")
    parser.add_argument("--activation-checkpointing", choices=["none", "selected", "full"], default="none")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.instances = options.instances or (max(1, 32768 // options.sequence_length) if options.device == "cuda" else 1)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as name:
        shards = Path(name) / "shards"
        write_shards(shards)
        loads = []
        for number in range(options.rounds):
            loads.append(load(shards))
            print(f"round {number + 1}: {json.dumps(loads[-1])}", file=sys.stderr, flush=True)
        peer = torch_metadata(shards)
        found = stall(options, Path(name) / "run")
        index_bytes = (shards / INDEX).stat().st_size
    totals = [each["open"] + each["decode"] + max(each[key] for key in each if key.startswith("read")) for each in loads]
    table = [(f"load: {key}", f"{statistics.median(each[key] for each in loads):.3f} s") for key in loads[0]]
    table += [
        ("index", f"{index_bytes / 1e6:.0f} MB"),
        ("torch's reader, metadata alone, on every rank", f"{peer:.1f} s (one round)"),
        ("a step", f"{found['tokens']:,} tokens in {found['step']:.4f} s"),
        ("a checkpoint", f"{found['gb']:.2f} GB, whole after {found['written']:.2f} s"),
        (f"time in save, one checkpoint in {STEPS} steps", f"{statistics.median(found['told']):.5f} of wall time"),
        ("wall time over undisturbed steps", f"{statistics.median(found['lost']):.5f} of wall time"),
    ]
    share = (
        measure.claim(found["lost"], "share")
        if options.device == "cuda" and found["tokens"] >= 32768
        else measure.unmeasured("needs a GPU and steps of 32k tokens or more; on a CPU writing and training share the cores", "share")
    )
    measure.report(table, {"checkpoint_stall_share": share, "load_1024_ranks_seconds": measure.claim(totals, "s")}, options.out)


if __name__ == "__main__":
    main()
