"""Soup: the mean of checkpoints' weights (report, section 4.3), as a step around `python -m trainer.soup`.

A greedy soup (Wortsman et al., 2022) goes through the ingredients from the best to the worst by bits per byte of held-out text; one joins
where the plain mean with it is better than without. Each mean is made of the ingredients themselves, so nothing is rounded twice.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from tasks import evaluate
from tasks.cordon import Cordon
from tasks.launch import LauncherConfig, launch
from tasks.leases import held
from tasks.shards import ShardRef, ShardTask, Step
from tasks.store import Attempt, Books, Store
from tasks.train import checkpoint_folder

STEP = Step("soup", 2, "tasks.soup", ("torch",))
GREEDY = "greedy.json"  # of a greedy soup: every soup that was tried, with its score
NO_BETTER = "no better with it"
OUTPUT = "checkpoint"


def task(name: str, ingredients: list[ShardRef], weights: list[float] | None = None) -> ShardTask:
    """The mean of the ingredients, or with `weights` (one each, sum 1) their weighted mean."""
    return ShardTask(name, {"weights": weights}, {"ingredients": list(ingredients)})


def greedy_task(
    name: str, ingredients: dict[str, ShardRef], held_out: dict[str, ShardRef], sequence_length: int, precision: str, batch_instances: int
) -> ShardTask:
    """The greedy soup of the ingredients, by bits per byte over the held-out mixes together."""
    held_out = dict(sorted(held_out.items()))
    config = {"ingredients": list(ingredients), "sources": list(held_out), "sequence_length": sequence_length, "precision": precision}
    inputs: dict[str, Any] = {"ingredients": list(ingredients.values()), "held_out": list(held_out.values())}
    return ShardTask(name, {"weights": None, "greedy": config}, inputs, {"batch_instances": batch_instances})


class SoupJob:
    """Launches a soup as one process of its own; scoring what a greedy one tries takes the launcher's ranks."""

    def __init__(self, store: Store, launcher: LauncherConfig) -> None:
        self.store, self.launcher = store, launcher
        self.settings = {"launcher": launcher.model_dump(mode="json")}

    def __call__(self, task: ShardTask, key: str) -> None:
        with held(self.store, STEP.name, key, task.name) as missing:
            if missing:
                self._make(task, key)

    def _make(self, task: ShardTask, key: str) -> None:
        started = time.monotonic()
        attempt = Attempt(self.store, STEP.name, key, task.name)
        folders = [str(checkpoint_folder(self.store, ref)) for ref in task.inputs["ingredients"] if isinstance(ref, ShardRef)]
        if "greedy" in task.config:
            kept = self._greedy(task, folders, attempt.folder)
        else:
            self._mean(folders, task.config["weights"], attempt.folder / OUTPUT, attempt.folder)
            kept = len(folders)
        dropped = {NO_BETTER: len(folders) - kept} if kept < len(folders) else {}
        files = [path for path in (attempt.folder / OUTPUT).rglob("*") if path.is_file()]
        told = [attempt.folder / GREEDY] if "greedy" in task.config else []
        attempt.commit(Books("checkpoints", len(folders), kept, dropped), time.monotonic() - started, only=[*files, *told])

    def _mean(self, folders: list[str], weights: list[float] | None, output: Path, folder: Path) -> None:
        launcher = self.launcher.alone().model_copy(update={"device": "cpu"})
        launch(
            "trainer.soup", {"ingredients": folders, "weights": weights, "output": str(output)}, folder, launcher, cordon=Cordon(self.store)
        )

    def _greedy(self, task: ShardTask, folders: list[str], folder: Path) -> int:
        """Leave the best soup that was tried in `folder`, with the books of all of them; returns how many ingredients it has."""
        names = task.config["greedy"]["ingredients"]
        held_out = dict(zip(task.config["greedy"]["sources"], task.inputs["held_out"], strict=True))
        sources, empty = evaluate.held_out_mixes(self.store, held_out, folder)  # type: ignore[arg-type]
        places = dict(zip(names, folders, strict=True))
        own = self._scores(task, places, sources, folder)
        first, *others = sorted(names, key=lambda name: own[name])
        chosen, best, candidate = [first], own[first], folder / "tried"
        tried = [{"ingredients": [first], "bits_per_byte": best, "kept": True}]
        for name in others:
            self._mean([places[each] for each in [*chosen, name]], None, candidate, folder)
            score = self._scores(task, {"soup": str(candidate)}, sources, folder)["soup"]
            better = score < best
            tried.append({"ingredients": [*chosen, name], "bits_per_byte": score, "kept": better})
            if better:
                chosen, best = [*chosen, name], score
                shutil.rmtree(folder / OUTPUT, ignore_errors=True)
                candidate.rename(folder / OUTPUT)
        shutil.rmtree(candidate, ignore_errors=True)
        if len(chosen) == 1:
            self._mean([places[first]], None, folder / OUTPUT, folder)
        told = {"held_out": list(sources), "nothing_held_out": empty, "ingredients": own, "tried": tried, "chosen": chosen}
        (folder / GREEDY).write_text(json.dumps(told, indent=1))
        return len(chosen)

    def _scores(self, task: ShardTask, checkpoints: dict[str, str], sources: dict[str, Any], folder: Path) -> dict[str, float]:
        """Bits per byte of each checkpoint over all sources."""
        output = folder / "scores.json"
        config = {
            "checkpoints": checkpoints,
            "sources": sources,
            "sequence_length": task.config["greedy"]["sequence_length"],
            "batch_instances": task.hints["batch_instances"],
            "device": self.launcher.device,
            "precision": task.config["greedy"]["precision"],
            "output": str(output),
        }
        launch("trainer.evaluate", config, folder, self.launcher, cordon=Cordon(self.store))
        found = json.loads(output.read_text())["checkpoints"]
        return {name: float(found[name]["all"]["bits_per_byte"]) for name in checkpoints}
