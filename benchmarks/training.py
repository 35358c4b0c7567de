"""Training steps against OLMo-core's and transformers': `python -m benchmarks.training`; on a GPU, alone, and needing no more than the
trainer does (torch, numpy, safetensors, pyyaml): `python -m benchmarks.training --device cuda --preset 1b`.

Ours is `python -m trainer` itself on a mix of random tokens: its loader, repetition mask, z-loss, metrics and all. Its speed is what its
`metrics.jsonl` says of the steps after the warm-up, and it is killed when that has enough of them, before it would write a checkpoint, which
the peers do not do. The peers are plain loops over the same tokens with the same sizes, AdamW and clipping, each at its best eager setting
on one thread. A peer that does other tokens, or whose first loss is another by over 5 %, ends the benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Run
from olmo_model.config import PRESETS, ModelConfig

PEERS = {"olmo_core": "benchmarks/peers/olmo_core_training.py", "transformers": "benchmarks/peers/transformers_training.py"}
BATCHES = 8  # in the mix
# What one GPU of 80 GB (1b) or 141 GB (7b) holds; instances: of a step.
GPU_SETTINGS: dict[str, dict[str, Any]] = {
    "1b": {"instances": 16, "micro_batch": 4, "activation_checkpointing": "none", "accumulate": "whole", "steps": 40, "warm_up": 20},
    "7b": {"instances": 8, "micro_batch": 1, "activation_checkpointing": "selected", "accumulate": "sharded", "steps": 20, "warm_up": 10},
}
CPU_SETTINGS = {"instances": 4, "micro_batch": 4, "activation_checkpointing": "none", "accumulate": "whole", "steps": 8, "warm_up": 2}
ON_CPU = "measured by `python -m benchmarks.training`"
ON_GPU = "needs a GPU: `python -m benchmarks.training --device cuda --preset {}`"
BYTES_PER_PARAMETER = 16  # weights, gradients and both moments in fp32


def make_mix(folder: Path, vocabulary: int, instances: int, length: int) -> Path:
    """A compiled mix of one file of random ids; returns the file."""
    folder.mkdir(parents=True)
    tokens = instances * length
    np.random.default_rng(0).integers(2, vocabulary, tokens).astype("<u4").tofile(folder / "tokens.npy")
    np.save(folder / "extents.npy", np.array([[0, 0, tokens, tokens]], np.int64))
    header = {"version": 1, "sequence_length": length, "tokens": tokens, "instances": instances, "vocab_size": vocabulary, "eos_id": 0}
    header |= {"pad_id": 1, "files": ["tokens.npy"], "sources": [{"name": "random", "tokens": tokens}], "documents": 1, "bytes": 4 * tokens}
    (folder / "mix.json").write_text(json.dumps(header))
    return folder / "tokens.npy"


def trainer_config(options: argparse.Namespace, model: ModelConfig, folder: Path) -> dict[str, Any]:
    on_gpu = options.device == "cuda"
    return {
        "model": asdict(model),
        "data": {"mix": str(folder / "mix"), "seed": 1},
        "sequence_length": options.sequence_length,
        "global_batch_instances": options.instances,
        "micro_batch_instances": options.micro_batch,
        "optimizer": {
            "learning_rate": 3e-4,
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.1,
            "z_loss": 1e-5,
            "max_grad_norm": 1.0,
        },
        "schedule": {"kind": "cosine", "warmup_steps": 100},
        "max_steps": 1_000_000,  # more than it will do
        "seed": 1,
        "run_folder": str(folder / "run"),
        "device": options.device,
        "precision": "bf16" if on_gpu else "fp32",
        "threads": None if on_gpu else 1,
        "parallel": {
            "activation_checkpointing": options.activation_checkpointing,
            "accumulate": options.accumulate,
            "compile": on_gpu,
        },
    }


def ours(options: argparse.Namespace, model: ModelConfig, folder: Path) -> Run:
    """The trainer on the mix in `folder`, from a fresh run folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        config = trainer_config(options, model, folder) | {"run_folder": f"{name}/run"}
        path = Path(name) / "trainer.json"
        path.write_text(json.dumps(config))
        metrics = Path(name) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "trainer", str(path)]
        said = partial(_said, metrics, options)
        return measure.run_until(command, said, Path(name) / "log", None if options.device == "cuda" else 1)


def _said(metrics: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    if not metrics.exists():
        return None
    whole = metrics.read_text().rpartition("\n")[0].splitlines()
    if len(whole) < options.warm_up + options.steps:
        return None
    lines = [json.loads(line) for line in whole[: options.warm_up + options.steps]]
    timed = lines[options.warm_up :]
    return {
        "seconds": sum(line["seconds"] for line in timed),
        "tokens": options.instances * options.sequence_length * len(timed),
        "losses": [line["loss"] for line in lines],
        "flops_share": timed[-1]["mfu"] / timed[-1]["tokens_per_second"] if "mfu" in timed[-1] else None,
        "device_bytes": max(line["peak_memory_bytes"] for line in timed),
    }


def speed(run: Run) -> float:
    """Tokens a second."""
    return run.said["tokens"] / run.seconds


def against_peers(options: argparse.Namespace, vocabulary: int, folder: Path) -> tuple[dict[str, list[Run]], list[str]]:
    """Ours and the peers that are here, in turns; and the peers that are not."""
    model = cpu_model(options, vocabulary)
    tokens = make_mix(folder / "mix", vocabulary, BATCHES * options.instances, options.sequence_length)
    config = folder / "config.json"
    config.write_text(json.dumps(trainer_config(options, model, folder)))
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    arguments = [str(config), str(tokens), str(options.warm_up + options.steps), str(options.warm_up)]
    contestants = {"ours": partial(ours, options, model, folder)}
    contestants |= {
        name: partial(measure.run_script, [sys.executable, script, *arguments]) for name, script in PEERS.items() if name not in missing
    }
    runs = measure.in_turns(options.rounds, contestants)
    for name, theirs in runs.items():
        (first, tokens_done), (expected, wanted) = ((run.said["losses"][0], run.said["tokens"]) for run in (theirs[0], runs["ours"][0]))
        if tokens_done != wanted or abs(first / expected - 1) > 0.05:
            done = f"{tokens_done} tokens from a loss of {first}"
            raise SystemExit(f"{name} did {done}, ours {wanted} from {expected}: that is not the same work")
    return runs, missing


def cpu_model(options: argparse.Namespace, vocabulary: int) -> ModelConfig:
    """Heads of 64, or one smaller head."""
    d, heads = options.d_model, max(1, options.d_model // 64)
    return ModelConfig(
        d_model=d,
        n_layers=options.layers,
        n_heads=heads,
        n_kv_heads=heads,
        mlp_hidden=4 * d,
        vocab_size=vocabulary,
        max_sequence_length=options.sequence_length,
    )


def ratio_claims(runs: dict[str, list[Run]], missing: list[str], name: str) -> dict[str, dict[str, Any]]:
    """Speed over that of the peer with the best median, and memory over that of the peer that needs least, round by round."""
    peers = {peer: theirs for peer, theirs in runs.items() if peer != "ours"}
    if not peers:
        why = f"none of {', '.join(missing)} can be imported here"
        return {f"{name}_vs_best_peer": measure.unmeasured(why), f"{name}_memory": measure.unmeasured(why)}
    more = {"why": f"without {', '.join(missing)}, which cannot be imported here"} if missing else {}
    fastest = max(peers, key=lambda peer: statistics.median(map(speed, peers[peer])))
    leanest = min(peers, key=lambda peer: statistics.median(run.peak_bytes for run in peers[peer]))
    speeds = [speed(mine) / speed(theirs) for mine, theirs in zip(runs["ours"], peers[fastest], strict=True)]
    memory = [mine.peak_bytes / theirs.peak_bytes for mine, theirs in zip(runs["ours"], peers[leanest], strict=True)]
    return {
        f"{name}_vs_best_peer": measure.claim(speeds, peer=fastest, **more),
        f"{name}_memory": measure.claim(memory, peer=leanest, **more),
    }


def on_cpu(options: argparse.Namespace, folder: Path) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    table, claims = [], {}
    for size, vocabulary in zip(("small", "large"), options.vocabularies, strict=True):
        runs, missing = against_peers(options, vocabulary, folder / size)
        claims |= ratio_claims(runs, missing, f"cpu_{size}_vocab")
        for name, theirs in runs.items():
            rate, peak = statistics.median(map(speed, theirs)), statistics.median(run.peak_bytes for run in theirs)
            table.append((f"vocabulary {vocabulary}, {name}", f"{rate:,.0f} tokens/s, {peak / 2**20:,.0f} MiB"))
    claims.pop("cpu_small_vocab_memory")
    return table, claims


def on_gpu(options: argparse.Namespace, folder: Path) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    import torch

    key, unit = ("mfu_1b_bf16", "MFU") if options.preset == "1b" else ("tokens_per_second_7b", "tokens/s")
    if not torch.cuda.is_available():
        return [("GPU", "none")], {key: measure.unmeasured("torch sees no GPU here", unit)}
    gpu, model = torch.cuda.get_device_properties(0), PRESETS[options.preset]
    need = BYTES_PER_PARAMETER * model.num_parameters()
    if gpu.total_memory < need:
        why = f"{gpu.name} has {gpu.total_memory / 1e9:.0f} GB; weights, gradients and AdamW's moments alone take {need / 1e9:.0f} GB"
        return [("GPU", gpu.name)], {key: measure.unmeasured(why, unit)}
    make_mix(folder / "mix", model.vocab_size, BATCHES * options.instances, options.sequence_length)
    runs = measure.in_turns(options.rounds, {"ours": partial(ours, options, model, folder)})["ours"]
    speeds = [speed(run) for run in runs]
    table = [
        ("GPU", gpu.name),
        ("a step", f"{options.instances} instances of {options.sequence_length}, {options.micro_batch} at once"),
        ("activation checkpointing, accumulation", f"{options.activation_checkpointing}, {options.accumulate}"),
        ("tokens/s", f"{statistics.median(speeds):,.0f}"),
        ("GPU memory", f"{max(run.said['device_bytes'] for run in runs) / 2**30:.1f} GiB"),
    ]
    share = runs[0].said["flops_share"]
    if share is not None:
        table.append(("MFU", f"{statistics.median(speeds) * share:.3f}"))
    if options.preset == "7b":
        return table, {key: measure.claim(speeds, unit)}
    if share is None:
        return table, {key: measure.unmeasured(f"the bf16 peak of {gpu.name} is not known here", unit)}
    beside = {"tokens_per_second": round(statistics.median(speeds))}
    return table, {key: measure.claim([each * share for each in speeds], unit, **beside)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", choices=sorted(GPU_SETTINGS), help="on a GPU; on a CPU see --d-model")
    parser.add_argument("--rounds", type=int, help="runs of each; 5, on a GPU 3")
    parser.add_argument("--steps", type=int, help="timed in a run")
    parser.add_argument("--warm-up", type=int, help="steps before those")
    parser.add_argument("--instances", type=int, help="of a step")
    parser.add_argument("--micro-batch", type=int, help="instances")
    parser.add_argument("--sequence-length", type=int, help="512, on a GPU 4096")
    parser.add_argument("--activation-checkpointing", choices=["none", "selected", "full"])
    parser.add_argument("--accumulate", choices=["whole", "sharded"])
    parser.add_argument("--d-model", type=int, default=256, help="on a CPU")
    parser.add_argument("--layers", type=int, default=8, help="on a CPU")
    parser.add_argument("--vocabularies", type=int, nargs=2, default=(8192, 100352), metavar=("SMALL", "LARGE"), help="on a CPU")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if (options.device == "cuda") != (options.preset is not None):
        parser.error("--device cuda and --preset go together")
    settings = GPU_SETTINGS[options.preset] if options.preset else CPU_SETTINGS
    defaults = settings | {"rounds": 3 if options.preset else 5, "sequence_length": 4096 if options.preset else 512}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.instances % options.micro_batch:
        parser.error(f"--instances {options.instances} is not divisible by --micro-batch {options.micro_batch}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    claims = {name: measure.unmeasured(ON_CPU) for name in ("cpu_small_vocab_vs_best_peer", "cpu_large_vocab_vs_best_peer")}
    claims["cpu_large_vocab_memory"] = measure.unmeasured(ON_CPU)
    claims["mfu_1b_bf16"] = measure.unmeasured(ON_GPU.format("1b"), "MFU")
    claims["tokens_per_second_7b"] = measure.unmeasured(ON_GPU.format("7b"), "tokens/s")
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=options.folder.resolve()) as name:
        table, measured = (on_gpu if options.device == "cuda" else on_cpu)(options, Path(name))
    measure.report(table, claims | measured, options.out)


if __name__ == "__main__":
    main()
