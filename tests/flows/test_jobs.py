"""GPU jobs as the parameter of a flow run, and a training as it goes."""

import base64
import json
import math
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flows import live
from flows.jobs import GpuJob, describe
from flows.recipe import Recipe, in_environment, load_form
from tasks import downstream, evaluate, soup, train
from tasks.errors import UserError
from tasks.launch import LauncherConfig
from tasks.progress import Progress, ignore
from tasks.secrets import variables_of
from tasks.shards import ShardRef, ShardTask
from tasks.sources.base import RawFile
from tasks.store import Store

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"
SECRET = "planted-3f9c1e77"


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED", SECRET)
    return Recipe.model_validate(load_form(RECIPES / "demo.yaml") | {"store": f"{tmp_path}/${{PLANTED}}/store"})


def jobs(store):
    ref, launcher = ShardRef("mix", "a" * 64), LauncherConfig(processes=2, device="cpu")
    raw = RawFile(f"https://host/{SECRET}/arc.jsonl", "arc.jsonl", 10, "etag:1")
    hints = {"held_out": {"every_steps": 2, "sources": {"web": ref}, "answers": {"arc": ref}}, "metrics": {"wandb": {"project": SECRET}}}
    tasks = [ShardTask(name, {"task": name, "share": 1e-5, "none": None}, {"files": [raw], "model": [ref]}) for name in "ab"]
    return {
        "train": (train.TrainJob(store, launcher, ignore), train.task("pretrain", {"seed": 1, "rate": 4e-4}, hints, ref, None)),
        "soup": (soup.SoupJob(store, launcher), soup.task("soup", [ref, ref])),
        "evaluate": (evaluate.EvaluateJob(store, launcher, 8, "fp32"), evaluate.task("all", {"sequence_length": 8}, {"a": ref}, {}, ref)),
        "downstream": (downstream.DownstreamJob(store, launcher, 4, tasks), tasks[0]),
    }


@pytest.mark.parametrize("kind", ["train", "soup", "evaluate", "downstream"])
def test_a_job_s_parameters_make_the_same_job_and_hold_no_secret(recipe, kind):
    here = in_environment(recipe)
    store = Store(here.store)
    job, task = jobs(store)[kind]
    parameter = json.dumps(describe(job, task, here, variables_of(recipe.model_dump(mode="json"))))
    assert SECRET not in parameter and "${PLANTED}" in parameter
    there = GpuJob.model_validate(json.loads(parameter)).here()
    made = there.make(store, ignore)
    assert there.store == here.store
    assert type(made) is type(job) and made.launcher == job.launcher
    assert asdict(next(iter(there.tasks().values()))) == asdict(task)
    assert {name: value for name, value in vars(made).items() if isinstance(value, int | str)} == {
        name: value for name, value in vars(job).items() if isinstance(value, int | str)
    }


def test_a_job_that_has_another_key_where_it_runs_is_refused(recipe):
    job, task = jobs(Store(recipe.store))["soup"]
    described = describe(job, task, recipe, {})
    described["shards"][0]["key"] = "0" * 64
    with pytest.raises(UserError, match="install the same olmoflow"):
        GpuJob.model_validate(described).tasks()


def test_the_picture_of_a_loss_is_an_svg_whose_line_holds_every_step_it_can():
    losses = [(step, 5.0 if step != 7 else math.nan) for step in range(1, 1001)]
    root = ElementTree.fromstring(live.curve(losses))
    (line,) = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert root[0].tag.endswith("rect") and root[0].get("fill") == "#ffffff"  # Prefect's page may be dark
    assert 200 < len(line.get("points").split()) <= live.POINTS
    assert "nan" not in live.curve(losses) and ElementTree.fromstring(live.curve([])) is not None


def test_the_table_of_a_training_says_its_newest_step_and_what_is_left():
    lines = [
        {"step": step, "loss": 6.0 - step / 10, "tokens": step * 64, "tokens_per_second": 1234.5, "learning_rate": 4e-4}
        for step in range(1, 11)
    ]
    text = live.markdown(lines, Progress("train", "pretrain", 10, 40, "steps", 0.25, 60.0))
    assert "| step | 10 of 40 |" in text and "| loss | 5.0000 |" in text and "| time left | 3m 00s |" in text
    assert ElementTree.fromstring(base64.b64decode(text.split("base64,")[1].split(")")[0])) is not None
