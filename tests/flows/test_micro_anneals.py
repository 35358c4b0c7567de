"""Micro-anneals as data: several seeds beside each other, and a table whose numbers are those of the runs."""

import json
import random
import shutil
import socket
import statistics
from hashlib import sha256
from pathlib import Path

import pytest
from in_process import InProcess
from typer.testing import CliRunner

from flows import cli
from flows.pipeline import Pipeline
from flows.plan import make_plan
from flows.recipe import Recipe
from flows.report import Gathering, write_report
from flows.summary import RunSummary, summary_path
from tasks import downstream
from tasks import launch_local as launcher
from tasks.errors import UserError
from tasks.mix_plan import MixSource
from tasks.olmes.definitions import TASKS
from tasks.report_data_training import MicroAnneal
from tasks.report_micro_anneals import by_experiment, cell, gpu_hours, micro_anneals, task_cell
from tasks.report_page import render
from tasks.score import model_folder
from tasks.shards import Runner, input_files
from tasks.store import Store

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"
BATCH, LENGTH = 4, 16


def config(folder: Path) -> dict:
    one = {"sources": {"maths": 1.0}, "general": {"web": 1}, "experiment": "1: does maths help"}
    return {
        "name": "micro",
        "store": str(folder / "store"),
        "sources": {name: {"format": "jsonl", "paths": [f"{folder}/{name}.jsonl"]} for name in ("web", "maths")},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [f"{folder}/maths.jsonl"]}]},
        "sequence_length": LENGTH,
        "held_out": {"share": 0.2, "tokens_per_source": 1000},
        "mixes": {"pre": {"sources": {"web": {"repeat": 1}}}},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden": 32},
        "pretrain": {
            "mix": "pre",
            "steps": 4,
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "decay_steps": 10,
            "global_batch_instances": BATCH,
            "micro_batch_instances": BATCH,
            "precision": "fp32",
        },
        "anneal": {"mix": "pre", "seeds": [1], "steps": 30},
        "micro_anneals": {
            "maths": {**one, "seeds": [1, 2], "tokens": 3 * BATCH * LENGTH},
            "again": {**one, "seeds": [1, 2], "tokens": 3 * BATCH * LENGTH, "experiment": "2: the same"},
        },
        "where": {"launcher": {"processes": 1, "threads": 1, "device": "cpu"}, "micro_anneals": {"gpus": 2}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    rng = random.Random(0)
    words = ["rivers", "hills", "seas", "models", "tokens", "steps", "seven"]
    web = [{"id": str(i), "text": f"Document {i} about {' '.join(rng.choices(words, k=12))}."} for i in range(150)]
    sums = [{"id": str(i), "text": f"What is {i} and {i}? It is {2 * i}. {rng.choice(words)}"} for i in range(60)]
    (folder / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in web))
    (folder / "maths.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    return folder


def pipeline_of(recipe: Recipe) -> Pipeline:
    return Pipeline(recipe, Runner(Store(recipe.store), InProcess()))


def run(recipe: Recipe) -> tuple[Pipeline, RunSummary]:
    pipeline = pipeline_of(recipe)
    pipeline.micro_anneal_all()
    summary = RunSummary.of(pipeline, "micro-anneal", "now", 1.0)
    return pipeline, summary


@pytest.fixture(scope="module")
def made(folder):
    """A run of the recipe, undisturbed; the trainer is looked at ten times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "POLL_SECONDS", 0.1)
        recipe = Recipe.model_validate(config(folder))
        pipeline, summary = run(recipe)
        return recipe, pipeline, summary, Gathering(pipeline.store, recipe, summary)


def scores_of(gathering) -> dict:
    (path,) = Path(gathering.recipe.store).glob("shards/evaluate/*/*/evaluation.json")
    return json.loads(path.read_text())["checkpoints"]


def test_a_run_for_each_seed_is_trained_once_though_two_experiments_have_it(made):
    _, pipeline, summary, _ = made
    assert summary.shards_made["train"] == 1 + 2  # pretraining, two seeds
    assert set(pipeline.micro_anneals()) == {"maths 1", "maths 2", "again 1", "again 2"}


def test_the_table_has_each_seeds_scores_and_the_spread_of_their_difference(made):
    *_, gathering = made
    baseline, maths, again = gathering.micro_anneals()
    scores = scores_of(gathering)
    assert baseline.baseline and not maths.baseline
    assert (maths.mix, again.mix) == ("maths", "again")
    assert maths.scores == again.scores and (maths.experiment, again.experiment) == ("1: does maths help", "2: the same")
    changes = [scores[f"maths {seed}"]["maths"]["bits_per_byte"] - scores["pretrained"]["maths"]["bits_per_byte"] for seed in (1, 2)]
    assert len(set(changes)) == 2
    found = cell(maths, "maths", baseline).change
    assert found.mean == pytest.approx(statistics.fmean(changes))
    assert found.deviation == pytest.approx(statistics.stdev(changes))
    low, high = pytest.importorskip("scipy.stats").t.interval(
        0.95, 1, loc=statistics.fmean(changes), scale=statistics.stdev(changes) / 2**0.5
    )
    assert found.interval == pytest.approx((low, high), rel=1e-4)


def test_cost_is_the_steps_time_on_all_ranks_and_the_share_of_an_anneals_tokens(made):
    recipe, pipeline, _, gathering = made
    row = gathering.micro_anneals()[1]
    assert row.tokens == 3 * BATCH * LENGTH  # of each run
    assert row.anneal_share == pytest.approx(2 * 3 / 30)  # two runs of three steps; an anneal has thirty
    seconds = 0.0
    for label in ("maths 1", "maths 2"):
        artifact = pipeline.micro_anneals()[label]
        record = artifact.records[0]
        for line in (Path(recipe.store) / record.file("metrics.jsonl").path).read_text().splitlines():
            told = json.loads(line)
            assert told["ranks"] == 1
            seconds += told["seconds"] + told["checkpoint_seconds"] + told["held_out_seconds"]
    assert row.gpu_hours == pytest.approx(seconds / 3600)
    together = micro_anneals(gathering.micro_anneals())  # the second experiment has the same runs
    assert together["hours"] == pytest.approx(row.gpu_hours) and together["anneals"] == pytest.approx(row.anneal_share)


def test_gpu_hours_count_every_rank_and_are_not_guessed_where_a_line_does_not_say():
    lines = [{"seconds": 900.0, "ranks": 4}, {"seconds": 800.0, "checkpoint_seconds": 100.0, "ranks": 8}]
    assert gpu_hours(lines) == pytest.approx(1 + 2)
    assert gpu_hours([*lines, {"seconds": 1.0}]) is None


def test_the_web_ratio_is_that_of_the_mix(made):
    recipe, pipeline, _, gathering = made
    mix = Path(recipe.store) / pipeline.made["mix", "micro-anneal maths"].records[0].file("composition.json").path
    rows = {row["source"]: row["tokens"] for row in json.loads(mix.read_text())}
    assert gathering.micro_anneals()[2].web_ratio == pytest.approx(rows["web"] / (rows["web"] + rows["maths"]))


def test_what_a_run_leaves_does_not_depend_on_how_many_run_beside_each_other(made, folder, tmp_path):
    recipe, pipeline, *_ = made
    shutil.copytree(recipe.store, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "shards" / "train" / pipeline.micro_anneals()["maths 2"].keys[0])
    where = {"launcher": recipe.where.launcher.model_dump()}
    alone = Recipe.model_validate(config(folder) | {"store": str(tmp_path / "store"), "where": where})
    alone.micro_anneals = {"maths": alone.micro_anneals["maths"].model_copy(update={"seeds": [2]})}
    other = pipeline_of(alone).micro_anneals()["maths"]  # with one seed, its name is the micro-anneal's own
    beside = pipeline.micro_anneals()["maths 2"]
    assert other.name == "micro-anneal maths" and other.keys == beside.keys and other.made == 1
    weights = [{file.name: file.sha256 for file in made.records[0].files if file.name.endswith(".safetensors")} for made in (other, beside)]
    assert weights[0] and weights[0] == weights[1]


def test_one_seed_is_the_run_that_the_recipe_always_meant(folder):
    """Keys of recipes from before `seeds` existed."""
    old, new = config(folder), config(folder)
    old["micro_anneals"] = {"maths": {"sources": {"maths": 0.5}, "general": {"web": 1}, "seed": 7}}
    new["micro_anneals"] = {"maths": {"sources": {"maths": 0.5}, "general": {"web": 1}, "seed": 7, "seeds": [7]}}
    plans = [pipeline_of(Recipe.model_validate(each)) for each in (old, new)]
    for each in plans:
        each.runner.plan_only = True
    (one,), (other,) = (each.micro_anneals().values() for each in plans)
    assert one.name == other.name == "micro-anneal maths" and one.keys == other.keys


def test_a_plan_counts_every_seed(folder):
    recipe = Recipe.model_validate(config(folder))
    recipe.micro_anneals["more"] = recipe.micro_anneals["maths"].model_copy(update={"seeds": [8, 9], "tokens": 5 * BATCH * LENGTH})
    runs = {run["name"]: run for run in make_plan(recipe, "micro_anneal_all", 0.0)["training"]}
    assert {name: run["steps"] for name, run in runs.items() if "more" in name} == {"micro-anneal more 8": 5, "micro-anneal more 9": 5}


def test_rows_of_one_experiment_stand_together_whatever_stands_between_them_in_the_recipe():
    rows = [MicroAnneal("start", {}, baseline=True)] + [MicroAnneal(name, {}, name[0]) for name in ("b1", "a1", "b2", "a2", "c1", "b3")]
    assert [row.mix for row in by_experiment(rows)] == ["start", "b1", "b2", "b3", "a1", "a2", "c1"]


def test_page_and_terminal_have_the_table(made, tmp_path, monkeypatch):
    recipe, pipeline, summary, gathering = made
    pipeline.store.replace(summary_path(recipe.name), json.dumps(vars(summary)))
    page = Path(write_report(recipe)).read_text()
    for text in ("1: does maths help", "2: the same", "±", "20 %", "all micro-anneals took", "Change of held-out bits per byte on maths"):
        assert text in page
    from flows.micro_anneal_text import as_json, micro_anneal_table

    rows = gathering.micro_anneals()
    with cli.console.capture() as captured:
        cli.console.print(micro_anneal_table(rows))
    assert "1: does maths help" in captured.get() and "20 %" in captured.get() and "±" in captured.get()
    told = json.loads(json.dumps(as_json(rows)))
    assert [row["mix"] for row in told] == ["pretrained", "maths", "again"]
    assert told[1]["scores"]["all"]["low"] <= told[1]["scores"]["all"]["change"] <= told[1]["scores"]["all"]["high"]


# -- scores on tasks -----------------------------------------------------------------------------------------------------------------


def score_at_once(told):
    """Stands for lm-eval: each model gets scores that follow from its weights' bytes, kept in `told` by the model's folder."""

    def launch(module, config, folder, launcher, *rest, **more):
        assert module == "tasks.olmes.run"
        weights = Path(config["model"], "model.safetensors").read_bytes()
        told[config["model"]] = {task: int(sha256(weights + task.encode()).hexdigest(), 16) % 101 / 100 for task in config["tasks"]}
        for task, place in config["tasks"].items():
            scored = {"score": told[config["model"]][task], "standard_error": 0.1, "instances": 3, "runs": {"generate": {"cut": 0}}}
            scored |= {"task": task, "suite": TASKS[task].suite, "metric": "f1"}
            (Path(place) / "scores.json").write_text(json.dumps(scored))
            (Path(place) / "samples.jsonl").write_text("")

    return launch


@pytest.fixture(scope="module")
def on_tasks(made, folder):
    """The same runs scored on two tasks; and the scores of the checkpoint and of the two seeds, in that order."""
    (folder / "asked.jsonl").write_text("".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(9)))
    files = {"paths": [str(folder / "asked.jsonl")], "shots": 0, "instances": 3}
    recipe = Recipe.model_validate(config(folder) | {"evaluation": {"tasks": {"naturalqs": files, "gsm_star": files, "gsm8k": files}}})
    told: dict[str, dict[str, float]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream, "launch", score_at_once(told))
        patch.setattr(downstream, "check_installed", lambda: None)
        pipeline, summary = run(recipe)
    assert "train" not in summary.shards_made
    places = [str(model_folder(input_files(pipeline.store, pipeline.made["model", name].refs[0]))) for name in MODELS]
    return recipe, Gathering(pipeline.store, recipe, summary), [told[place] for place in places]


MODELS = ["pretrained", "micro-anneal maths 1", "micro-anneal maths 2"]


def test_scores_on_tasks_have_the_spread_of_their_difference_over_seeds(on_tasks):
    _, gathering, (start, *seeds) = on_tasks
    baseline, maths, again = gathering.micro_anneals()
    assert list(maths.tasks) == ["average", "naturalqs", "gsm_star"] and maths.tasks == again.tasks  # nothing of the held-out suite
    for task in ("naturalqs", "gsm_star"):
        assert baseline.tasks[task] == start[task]
        changes = [100 * (each[task] - start[task]) for each in seeds]
        found = task_cell(maths, task, baseline)
        assert found.score == pytest.approx(100 * statistics.fmean(each[task] for each in seeds))
        assert found.change.mean == pytest.approx(statistics.fmean(changes))
        assert found.change.deviation == pytest.approx(statistics.stdev(changes))
        assert found.change.half_width == pytest.approx(12.7062 * statistics.stdev(changes) / 2**0.5)
    average = [statistics.fmean(each.values()) for each in (start, *seeds)]
    found = task_cell(maths, "average", baseline)
    assert found.change.mean == pytest.approx(100 * (statistics.fmean(average[1:]) - average[0]))
    assert task_cell(baseline, "average", baseline).change is None


def test_page_terminal_and_json_have_the_scores_on_tasks(on_tasks):
    _, gathering, (start, *_) = on_tasks
    from flows.micro_anneal_text import as_json, micro_anneal_tasks

    rows = gathering.micro_anneals()
    with cli.console.capture() as captured:
        cli.console.print(micro_anneal_tasks(rows))
    assert all(text in captured.get() for text in ("average", "naturalqs", "gsm_star", "1: does maths help", "±"))
    told = json.loads(json.dumps(as_json(rows)))
    assert told[0]["tasks"]["gsm_star"] == {"score": 100 * start["gsm_star"]}
    assert set(told[1]["tasks"]["average"]) == {"score", "change", "deviation", "low", "high"}
    page = render(gathering.data())
    for text in ("average of tasks", "Change of the average score on tasks, points", "Change of the score on gsm_star, points"):
        assert text in page
    shown = {row.name: row for row in gathering.compute()}
    assert shown["pretrained"].tasks == start and shown["pretrained"].average == pytest.approx(statistics.fmean(start.values()))


def test_without_tasks_the_terminal_has_one_table(made):
    from flows.micro_anneal_text import micro_anneal_tasks

    assert micro_anneal_tasks(made[3].micro_anneals()) is None


# -- bad input -----------------------------------------------------------------------------------------------------------------------


def refused(folder, **changes) -> str:
    faulty = config(folder)
    for key, value in changes.items():
        place, *path = key.split("__")
        where = faulty[place]
        for part in path[:-1]:
            where = where[part]
        where[path[-1]] = value
    with pytest.raises(ValueError) as error:
        Recipe.model_validate(faulty)
    return str(error.value)


def test_a_faulty_micro_anneal_is_refused_with_its_key(folder):
    assert "a seed stands twice in [1, 1]" in refused(folder, micro_anneals__maths__seeds=[1, 1])
    assert "micro_anneals.maths.tokens is 63, under a batch of 64 tokens" in refused(folder, micro_anneals__maths__tokens=63)
    clash = {"sources": {"maths": 1}, "general": {"web": 1}}
    told = refused(folder, **{"micro_anneals__maths 2": clash})
    assert "both have a run 'maths 2'" in told
    told = refused(folder, where__micro_anneals={"gpus": 1, "ranks": 2}, pretrain__micro_batch_instances=2)
    assert "where.micro_anneals.gpus is 1, too few for one run of 2 ranks" in told
    told = refused(folder, where__micro_anneals={"gpus": 3, "ranks": 3})
    assert "not a multiple of 12 (where.micro_anneals.ranks x" in told


def test_more_tokens_than_the_mix_has_are_refused_before_training_with_the_repeat_that_would_do(made, folder):
    recipe, pipeline, *_ = made
    artifact = pipeline.made["mix", "micro-anneal maths"].records[0].file("mix.json")
    instances = json.loads((Path(recipe.store) / artifact.path).read_text())["instances"]
    large = Recipe.model_validate(config(folder))
    steps = instances // BATCH + 1
    large.micro_anneals = {"maths": large.micro_anneals["maths"].model_copy(update={"tokens": steps * BATCH * LENGTH})}
    with pytest.raises(
        UserError, match=rf"the mix micro-anneal maths has {instances * LENGTH:,} tokens .*maths: ([\d.]+) would do"
    ) as error:
        pipeline_of(large).micro_anneals()
    repeat = float(str(error.value).split("maths: ")[1].split(" ")[0])
    assert instances * repeat >= steps * BATCH > instances * (repeat - 0.001)


def test_a_mix_of_a_micro_anneals_name_need_not_hold_what_that_trains_on(made, folder):
    large = Recipe.model_validate(config(folder))
    large.mixes["maths"] = large.mixes["pre"].model_copy(update={"sources": {"maths": MixSource(repeat=0.3)}})
    large.micro_anneals["again"] = large.micro_anneals["again"].model_copy(update={"tokens": 10 * BATCH * LENGTH})
    large.micro_anneals["maths"] = large.micro_anneals["maths"].model_copy(update={"tokens": 10 * BATCH * LENGTH})
    large.anneal.mix = "maths"
    pipeline = pipeline_of(large)
    pipeline.training_mixes()
    header = json.loads((Path(large.store) / pipeline.made["mix", "maths"].records[0].file("mix.json").path).read_text())
    assert BATCH <= header["instances"] < 10 * BATCH


# -- the shipped recipes -------------------------------------------------------------------------------------------------------------


def test_table_12_is_planned_with_the_reports_web_ratios(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    done = CliRunner().invoke(cli.app, ["plan", str(RECIPES / "olmo2-table-12.yaml"), "--set", f"store={tmp_path}", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    printed = {"math-35-65": 65.0, "math-10-90": 88.3, "math-1x": 65.0, "math-2x": 49.3, "math-4x": 48.6}
    printed |= {"tinygsm-inline": 47.9, "tinygsm-mind": 52.1, "tinygsm-mind-2x": 51.3}
    for name, ratio in printed.items():
        rows = plan["mixes"][f"micro-anneal {name}"]
        assert next(row["mix_percent"] for row in rows if row["source"] == "dclm/ft7_fw2") == pytest.approx(ratio, abs=0.05)
    tables = [table for table in plan["tables"] if table["title"].startswith("Report, Table 12")]
    assert len(tables) == 7  # 1x Math is Math 35/65
    assert max(abs(row["mix_percent"]["difference"] or 0) for table in tables for row in table["rows"].values()) < 0.05
    assert sum(run["name"].startswith("micro-anneal") for run in plan["training"]) == 3 * (
        len(printed) - 1
    )  # math-1x is math-35-65, trained once
