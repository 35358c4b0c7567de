"""The flow `train`: one GPU job, as a child of the flow that needs what it makes. The deployment runs it on the work pool `gpu`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow, get_run_logger

from flows.alerts import TrainingAlerts
from flows.jobs import STEPS, GpuJob
from flows.live import LiveLoss
from flows.telling import Watching, alert, disks, lines_from_below
from tasks.cordon import Cordon
from tasks.gpus import lent
from tasks.launch import LauncherConfig
from tasks.launch_local import visible_gpus
from tasks.progress import Progress
from tasks.store import Store
from tasks.train import run_folder


@flow(name="train", flow_run_name="{job.title}", persist_result=False)
def train(job: GpuJob) -> None:
    """A training run, a soup or an evaluation of a recipe's flow, to its end; run again it goes on where it stopped.

    Args:
        job: What is done and where, as the flow that needs it writes it.
    """
    job = job.here()
    store, tasks = Store(job.store), job.tasks()
    look_at_disks = disks(store, job.launcher.work_folder)
    watching = Watching()
    with lines_from_below(), _gpus(job.launcher, store):
        for key, task in tasks.items():
            folder, is_training = run_folder(store, job.launcher, key), job.step == "train"
            live = LiveLoss(f"loss {task.name} {job.recipe}", folder) if is_training else None
            alerts = TrainingAlerts(f"{task.name} of {job.recipe}", folder, alert) if is_training else None

            def watch(progress: Progress, live: LiveLoss | None = live) -> None:
                watching(progress)
                if live:
                    live(progress)

            def look(alerts: TrainingAlerts | None = alerts) -> None:
                look_at_disks()
                if alerts:
                    alerts()

            if store.record(STEPS[job.step].name, key) is None:
                job.make(store, watch, look)(task, key)


@contextmanager
def _gpus(launcher: LauncherConfig, store: Store) -> Iterator[None]:
    """GPUs of this machine for as many ranks as the job has here, which no other job has meanwhile; a cluster deals out its own."""
    names = visible_gpus(launcher.device) if launcher.kind == "local" else []
    if not names:
        yield
        return
    cordoned = Cordon(store).here()
    sound = [name for name in names if not cordoned or name not in cordoned.devices]
    with lent(sound, launcher.processes, lambda: get_run_logger().info("waiting for free GPUs on this machine")) as mine:
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        get_run_logger().info("GPUs %s", ", ".join(mine))
        try:
            yield
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
