"""The text of a figure: a compiled mix of the store or of a folder, and the long repetitions that Figure 3 plants in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import UserError
from tasks.shards import ShardRef, input_files
from tasks.store import Store
from tasks.train import write_files
from trainer.data import Mix
from trainer.errors import TrainerError

REPEATS, LONGEST_NGRAM = 32, 13  # what counts as a repetition (report, section 3.1)
PLANTED = "repetitions.npy"


@dataclass(frozen=True)
class Text:
    """A compiled mix on this machine: its folder, the JSON list of its token files, its header, and the sha256 of it."""

    folder: Path
    files: Path
    header: dict[str, Any]
    identity: str


def find(named: str, url: str, into: Path) -> Text:
    """The mix in the folder `named`, or the newest of the store that is called so or whose id begins so.

    The list of its token files is written into the folder `into`. Raises UserError where there is none.
    """
    into.mkdir(parents=True, exist_ok=True)
    if (Path(named) / "mix.json").exists():
        return _in_folder(Path(named).resolve(), into)
    store = Store(url)
    mixes = [each for each in store.manifests() if each["step"] == "mix"]
    found = [each for each in mixes if each["name"] == named] or [each for each in mixes if each["id"].startswith(named)]
    if not found:
        raise UserError(f"{named} is neither a folder with a mix.json nor a mix of the store {url}; `olmoflow ls` lists the mixes")
    if len({each["name"] for each in found}) > 1:
        raise UserError(f"{len(found)} mixes of the store {url} have an id that begins with {named}; `olmoflow ls` lists them")
    newest = max(found, key=lambda each: each["created"])
    header = input_files(store, ShardRef("mix", newest["shards"][0]))["mix.json"]
    return _opened(header.parent, write_files(store, json.loads(header.read_text()), into / f"{newest['id']}.json", header.parent))


def _in_folder(folder: Path, into: Path) -> Text:
    mix = _mix(folder)
    paths = [folder / name for name in mix.header["files"]]
    for path in paths:
        if not path.exists():
            raise UserError(f"the mix {folder} has no token file {path} beside it; name the mix as `olmoflow ls` does, and give --store")
    files = into / f"mix-{mix.identity[:12]}.json"
    files.write_text(json.dumps([str(path) for path in paths]))
    return _opened(folder, files)


def _opened(folder: Path, files: Path) -> Text:
    mix = _mix(folder)
    return Text(folder, files, mix.header, mix.identity)


def _mix(folder: Path) -> Mix:
    try:
        return Mix(folder)
    except TrainerError as error:
        raise UserError(str(error)) from None


def plant_repetitions(text: Text, share: float, seed: int, folder: Path) -> Text:
    """The same mix with further instances, `share` of them all, that hold a long repetition; written to `folder`.

    A planted instance is one of the mix's own in which an n-gram of 1 to 13 tokens, found in the mix, stands 32 or more times in a row. Raises
    UserError where instances are too short for that.
    """
    mix = Mix(text.folder, text.files)
    length = mix.sequence_length
    if length < REPEATS:
        raise UserError(f"the mix {text.folder} has instances of {length} tokens; {REPEATS} repetitions need at least {REPEATS}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [*json.loads(text.files.read_text()), str(folder / PLANTED)]
    (folder / "files.json").write_text(json.dumps(paths))
    if not (folder / "mix.json").exists():  # else another figure may be reading it
        random = np.random.default_rng(seed)
        planted = np.stack([_planted(mix, random) for _ in range(max(1, round(mix.instances * share / (1 - share))))])
        (folder / PLANTED).write_bytes(planted.astype("<u4").tobytes())
        extents = _cut(np.load(text.folder / "extents.npy"), mix.instances * length)
        tokens = mix.instances * length + planted.size
        np.save(folder / "extents.npy", np.concatenate([extents, np.array([[len(paths) - 1, 0, planted.size, tokens]], np.int64)]))
        header = {**mix.header, "tokens": tokens, "instances": tokens // length, "documents": len(extents) + len(planted)}
        header["files"] = [*mix.header["files"], PLANTED]
        header["sources"] = [*mix.header["sources"], {"name": "repetitions", "tokens": planted.size}]
        partial = folder / "mix.json.partial"
        partial.write_text(json.dumps(header, indent=1))
        partial.replace(folder / "mix.json")  # last and at once: a kill leaves no mix that looks whole
    return _opened(folder, folder / "files.json")


def _planted(mix: Mix, random: np.random.Generator) -> np.ndarray:
    length = mix.sequence_length
    instance = mix.instance(int(random.integers(mix.instances)))
    n = int(random.integers(1, min(LONGEST_NGRAM, length // REPEATS) + 1))
    size = int(random.integers(REPEATS * n, length + 1))
    start = int(random.integers(length - size + 1))
    ngram = mix.read(int(random.integers(mix.tokens - n)), n)
    instance[start : start + size] = np.resize(ngram, size)
    return instance


def _cut(extents: np.ndarray, tokens: int) -> np.ndarray:
    """The extents of the first so many tokens of a mix."""
    kept = extents[: int(np.searchsorted(extents[:, 3], tokens)) + 1].copy()
    over = kept[-1, 3] - tokens
    kept[-1, 2:] -= over
    return kept
