"""Soup: the mean of checkpoints' weights (report, section 4.3), as a step around `python -m trainer.soup`."""

from __future__ import annotations

import time

from tasks.launch import LauncherConfig, launch
from tasks.shards import ShardRef, ShardTask, Step
from tasks.store import Attempt, Books, Store
from tasks.train import checkpoint_folder

STEP = Step("soup", 2, "tasks.soup", ("torch",))


def task(name: str, ingredients: list[ShardRef]) -> ShardTask:
    return ShardTask(name, {"weights": None}, {"ingredients": list(ingredients)})


class SoupJob:
    """Launches a soup as one process of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, task: ShardTask, key: str) -> None:
        started = time.monotonic()
        attempt = Attempt(self.store, STEP.name, key, task.name)
        folders = [str(checkpoint_folder(self.store, ref)) for ref in task.inputs["ingredients"] if isinstance(ref, ShardRef)]
        output = attempt.folder / "checkpoint"
        launch(
            "trainer.soup",
            {"ingredients": folders, "weights": task.config["weights"], "output": str(output)},
            attempt.folder,
            LauncherConfig(),
        )
        attempt.commit(
            Books("checkpoints", len(folders), len(folders)),
            time.monotonic() - started,
            only=[path for path in output.rglob("*") if path.is_file()],
        )
