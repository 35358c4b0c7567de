"""A soup of 8 training checkpoints against a soup of 2 (peak memory) and against a plain copy (bytes a second): `python -m benchmarks.soup`.

Every byte counts once: a soup reads its ingredients' files, moments included, since it compares their checksums, and writes its weights; a
copy reads and writes the same files. Both end with fsync, run on the same cores, and begin with nothing of the ingredients in the page cache
(`cold`, the claim, since the checkpoints of a real run are larger than memory) or with all of it (`warm`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.measure import Run
from olmo_model.config import ModelConfig
from trainer.checkpoint import fault_in, write_json, write_marker
from trainer.parsing import to_dict
from trainer.soup import SoupConfig, make_soup
from trainer.tensorfiles import INDEX, Part, bytes_of, header, read_index

RANKS = 2


def write_ingredient(folder: Path, model: ModelConfig, seed: int) -> None:
    """A training checkpoint of random values, as two ranks write it."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 << 22, generator=generator)
    shapes = dict(sorted(model.parameter_shapes().items()))
    moments = sorted(f"optimizer.{name}.{moment}" for name in shapes for moment in ("exp_avg", "exp_avg_sq"))
    whole = shapes | {name: shapes[name.removeprefix("optimizer.").rpartition(".")[0]] for name in moments}
    for rank in range(RANKS):
        parts = []
        for name, (rows, *rest) in whole.items():
            low, high = (rows * each // RANKS for each in (rank, rank + 1))
            parts.append(Part(name, torch.float32, (high - low, *rest), low))
        with (folder / f"rank-{rank:05d}-of-{RANKS:05d}.safetensors").open("wb") as file:
            file.write(header(parts))
            for part in parts:
                for start in range(0, part.elements, len(noise)):
                    file.write(bytes_of(noise[: part.elements - start]))
    (folder / INDEX).write_bytes(read_index(folder).encode())
    write_json(folder / "config.json", {"model": to_dict(model)})
    write_marker(folder)


def to_disk(paths: list[Path], forget: bool = False) -> None:
    """Write what the page cache holds of the files; `forget`: and let go of it."""
    for path in paths:
        descriptor = os.open(path, os.O_RDWR)
        os.fsync(descriptor)
        if forget:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm_up(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def soup(ingredients: list[str], output: Path) -> None:
    make_soup(SoupConfig(ingredients, str(output)))


def copy(ingredients: list[str], output: Path) -> None:
    for number, folder in enumerate(ingredients):
        shutil.copytree(folder, output / str(number))
    to_disk([path for path in output.rglob("*") if path.is_file()])


def one(what: str, cache: str, ingredients: list[str], output: Path) -> None:
    """In a process of its own: make the output, say the seconds and the bytes."""
    files = [path for folder in ingredients for path in Path(folder).iterdir()]
    to_disk(files, forget=cache == "cold")
    if cache == "warm":
        warm_up(files)
    started = time.perf_counter()
    {"soup": soup, "copy": copy}[what](ingredients, output)
    seconds = time.perf_counter() - started
    if what == "soup" and (fault := fault_in(output)):
        raise SystemExit(f"the soup is not whole: {fault}")
    moved = sum(path.stat().st_size for path in [*files, *(each for each in output.rglob("*") if each.is_file())])
    shutil.rmtree(output)
    print(json.dumps({"seconds": seconds, "bytes": moved}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8, help="of a model 512 wide with a vocabulary of 32768: 134 MB and 17 MB a layer")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, cache, output, *ingredients = options.one
        one(what, cache, ingredients, Path(output))
        return
    model = ModelConfig(d_model=512, n_layers=options.layers, n_heads=8, n_kv_heads=8, mlp_hidden=2048, vocab_size=32768)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soup-", dir=options.folder) as name:
        ingredients = [f"{name}/ingredient-{number}" for number in range(8)]
        for number, each in enumerate(ingredients):
            write_ingredient(Path(each), model, number)

        def run(what: str, cache: str, number: int) -> Run:
            command = [sys.executable, "-m", "benchmarks.soup", "--one", what, cache, f"{name}/out", *ingredients[:number]]
            return measure.run_script(command, options.cores)

        runs = measure.in_turns(
            options.rounds,
            {
                "soup of 8, cold": lambda: run("soup", "cold", 8),
                "copy of 8, cold": lambda: run("copy", "cold", 8),
                "soup of 8, warm": lambda: run("soup", "warm", 8),
                "copy of 8, warm": lambda: run("copy", "warm", 8),
                "soup of 2, cold": lambda: run("soup", "cold", 2),
            },
        )
    rates = {name: [each.said["bytes"] / each.seconds for each in of] for name, of in runs.items()}
    table = [("parameters", f"{model.num_parameters():,}"), ("cores", str(options.cores))]
    for name, of in runs.items():
        mebibytes = max(each.peak_bytes for each in of) / 2**20
        table.append(
            (name, f"{sorted(rates[name])[len(of) // 2] / 1e6:,.0f} MB/s read and written, at most {mebibytes:,.0f} MiB of memory")
        )
    versus = {
        cache: [a / b for a, b in zip(rates[f"soup of 8, {cache}"], rates[f"copy of 8, {cache}"], strict=True)]
        for cache in ("cold", "warm")
    }
    table.append(("soup of 8 against the copy, warm", f"{sorted(versus['warm'])[options.rounds // 2]:.2f} x"))
    growth = [large.peak_bytes / small.peak_bytes for large, small in zip(runs["soup of 8, cold"], runs["soup of 2, cold"], strict=True)]
    measure.report(table, {"soup_memory_growth": measure.claim(growth), "soup_vs_copy": measure.claim(versus["cold"])}, options.out)


if __name__ == "__main__":
    main()
