"""A plan tells what is known before anything runs: from declared sizes where no file can be listed, from counts where there are some.

The figures expected of OLMo 2's recipes come from the report's tables, worked out here by hand, and from public configurations.
"""

import json
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from in_process import InProcess
from typer.testing import CliRunner

from flows import cli
from flows.pipeline import Pipeline
from flows.plan import make_plan
from flows.recipe import Recipe, load
from olmo_model.config import PRESETS
from tasks.errors import RecipeError, UserError
from tasks.raw_files import find_source
from tasks.shards import Runner, ShardRef, input_files
from tasks.store import Store
from trainer.optim import cosine

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"
OLMO2 = sorted(RECIPES.glob("olmo2-*.yaml"))


@pytest.fixture
def offline(monkeypatch):
    """A machine without a network or credentials."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def plan_of(name: str, store: Path) -> dict:
    return make_plan(load(RECIPES / f"{name}.yaml", [f"store={store}"]), "end_to_end", 0.0)


def percents(plan: dict, mix: str) -> list[float]:
    table = next(table for table in plan["tables"] if table["name"] == mix)
    return [float(f"{row['mix_percent']['computed']:.3g}") for label, row in table["rows"].items() if label != "total"]


# -- the shipped recipes -------------------------------------------------------------------------------------------------------------


def test_all_sizes_of_olmo2_are_shipped():
    assert {path.stem for path in OLMO2} >= {"olmo2-1b", "olmo2-7b", "olmo2-13b"}


@pytest.mark.parametrize("path", OLMO2, ids=lambda path: path.stem)
def test_it_is_planned_without_a_network(path, offline, tmp_path):
    done = CliRunner().invoke(cli.app, ["plan", str(path), "--set", f"store={tmp_path}", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert set(plan["unlisted"]) == set(load(path).sources)
    assert any("could not list any of the" in note and "report, Table 1" in note for note in plan["notes"])
    assert all(run["tokens"] and run["gpu_hours"] for run in plan["training"])
    declared = {row["name"]: row["tokens"] for row in plan["steps"]}
    assert declared["dclm"] == 3_710_000_000_000 and declared["dclm/ft7_fw2"] == 752_000_000_000


@pytest.mark.parametrize("path", OLMO2, ids=lambda path: path.stem)
def test_its_text_fits_a_terminal_of_120_columns(path, offline, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.console, "width", 120)
    done = CliRunner().invoke(cli.app, ["plan", str(path), "--set", f"store={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert "Report, Table 13" in done.output and "contradicts itself" in done.output
    assert max(len(line.rstrip()) for line in done.output.splitlines()) <= 120


def test_table_13_follows_from_table_2(offline, tmp_path):
    plan = plan_of("olmo2-7b", tmp_path)
    assert percents(plan, "table-13-50b") == [47.2, 16.5, 2.45, 5.86, 7.19, 20.8]
    assert percents(plan, "table-13-100b") == [48.6, 16.1, 2.38, 9.24, 3.49, 20.2]
    tokens = [0.2078 * 752, 2 * 17.0, 4 * 1.26, 58.6, 4 * 3.7, 4 * (0.230 + 0.0287 + 6.48 + 3.87 + 0.0842 + 0.00178 + 0.00274)]
    assert percents(plan, "table-13-300b") == [float(f"{100 * part / sum(tokens):.3g}") for part in tokens]
    assert percents(plan, "table-13-300b")[-1] == 13.7


def test_the_difference_from_the_printed_table_is_told(offline, tmp_path):
    plan = plan_of("olmo2-13b", tmp_path)
    maths = {table["name"]: table["rows"]["Dolmino Math"]["mix_percent"] for table in plan["tables"] if table["mix"]}
    assert {name: row["reported"] for name, row in maths.items()} == {"table-13-50b": 20.8, "table-13-100b": 17.5, "table-13-300b": 10.8}
    assert [round(row["difference"], 1) for row in maths.values()] == [0.0, 2.7, 2.9]


def test_the_totals_of_tables_1_and_2_are_summed_not_copied(offline, tmp_path):
    totals = {table["name"]: table["rows"]["total"] for table in plan_of("olmo2-data", tmp_path)["tables"]}
    assert totals["table-1"]["tokens"]["computed"] == pytest.approx(3.9001e12)
    assert totals["table-1"]["words"]["computed"] == pytest.approx(3.48546e12)
    assert totals["table-1"]["bytes"]["computed"] == pytest.approx(22.3766e12)
    assert totals["table-1"]["documents"]["computed"] == pytest.approx(3.08334e9)
    assert totals["table-2-high-quality"]["tokens"]["computed"] == pytest.approx(832.56e9)
    assert totals["table-2-maths"]["tokens"]["computed"] == pytest.approx(10.69742e9)
    assert totals["table-2-maths"]["documents"]["computed"] == pytest.approx(21.18287e6)
    assert round(totals["table-2-maths"]["documents"]["difference"], 1) == -0.9


@pytest.mark.parametrize(
    ("name", "parameters", "tokens"), [("olmo2-1b", 1.485e9, 4e12), ("olmo2-7b", 7.299e9, 3.895e12), ("olmo2-13b", 13.716e9, 5e12)]
)
def test_the_pretraining_costs_about_six_flops_a_parameter_and_token(name, parameters, tokens, offline, tmp_path):
    run = plan_of(name, tmp_path)["training"][0]
    assert run["name"] == "pretrain" and run["tokens"] == pytest.approx(tokens, rel=1e-3)
    assert run["flops"] == pytest.approx(6 * parameters * tokens, rel=0.1)


@pytest.mark.parametrize(("name", "preset", "printed"), [("olmo2-7b", "7b", 1.8), ("olmo2-13b", "13b", 4.6)])
def test_table_6_counts_every_ingredient_of_the_soup_and_the_pretraining_once(name, preset, printed, offline, tmp_path):
    """The 13B's 4.6e23 FLOPs are of 5.6T tokens: 5T of pretraining, three anneals of 100B and one of 300B."""
    runs = [run for run in plan_of(name, tmp_path)["training"] if not run["name"].startswith("micro-anneal")]
    tokens = sum(run["tokens"] for run in runs)
    assert round(tokens * PRESETS[preset].kaplan_flops_per_token() / 1e23, 1) == printed


@pytest.mark.parametrize(
    ("name", "rate", "within"), [("olmo2-1b", 7.4487e-5, 1e-3), ("olmo2-7b", 6.1351e-5, 1e-4), ("olmo2-13b", 9e-5, 1e-9)]
)
def test_the_anneals_start_at_the_rate_of_the_public_configurations(name, rate, within):
    pretrain = load(RECIPES / f"{name}.yaml").pretrain
    assert cosine(pretrain.steps, pretrain.learning_rate, pretrain.warmup_steps, pretrain.decay_steps, 0.1) == pytest.approx(
        rate, rel=within
    )


def test_the_13b_is_the_soup_of_three_anneals_of_100b_and_one_of_300b(offline, tmp_path):
    runs = plan_of("olmo2-13b", tmp_path)["training"][1:]
    assert [run["name"] for run in runs] == ["anneal 1110", "anneal 2662", "anneal 6209", "anneal dolmino-300b 2662"]
    assert [round(run["tokens"] / 1e9) for run in runs] == [100, 100, 100, 300]


def test_a_copy_of_the_data_elsewhere_is_read_without_its_tests_issues_and_notebooks(tmp_path, monkeypatch):
    """The published folders hold evaluation data and files of other columns beside the training data."""
    wanted = {
        "starcoder": ["c/train-0.parquet", "go/train-0.parquet", "java/train-0.parquet", "julia/train-0.parquet"],
        "gsm8k": ["math/gsm8k/main/train/0.jsonl.zst", "math/gsm8k/socratic/train/0.jsonl.zst"],
        "dolmino_synth_math": ["math/dolmino_math_synth/basic_math/a_TRAIN.jsonl", "math/dolmino_math_synth/gsm_mind/debate/b.jsonl"],
        "pes2o": ["pes2o/pes2o-0000.json.gz"],
    }
    left = ["github-issues/a.parquet", "git-commits/b.parquet", "jupyter-scripts/c.parquet", "math/gsm8k/socratic/test/0.jsonl.zst"]
    left += ["math/dolmino_math_synth/basic_math/a_EVAL.jsonl", "pes2o/README.md"]
    wanted["dolmino_synth_math"].insert(1, "math/dolmino_math_synth/gsm8k-synth/resample_v1_6x/c.jsonl")
    for name in [*left, *(name for names in wanted.values() for name in names)]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for variable in ("STARCODER", "DOLMINO", "OLMO_MIX"):
        monkeypatch.setenv(f"OLMOFLOW_{variable}", str(tmp_path / "data"))
    recipe = load(RECIPES / "olmo2-data.yaml")
    for source, names in wanted.items():
        found, _ = find_source(Store(str(tmp_path / "store")), source, recipe.sources[source])
        assert {raw.url for raw in found} == {(tmp_path / "data" / name).as_uri() for name in names}


# -- recipes of one's own ------------------------------------------------------------------------------------------------------------


def small(folder: Path) -> dict:
    repeated = [{"column": "repeated", "equals": False}]
    votes = {"columns": {"votes": {"field": "votes", "type": "int"}}}
    return {
        "name": "small",
        "store": str(folder / "store"),
        "sources": {
            "web": {
                "format": "jsonl",
                "paths": [f"{folder}/web.jsonl"],
                "fields": votes,
                "filters": repeated,
                "subsets": {"good": {"filters": [{"column": "votes", "min": 3}]}},
                "declared": {"tokens": 1e6, "reference": "a guess"},
            },
            "maths": {"format": "jsonl", "paths": [f"{folder}/maths.jsonl"]},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [f"{folder}/maths.jsonl"]}]},
        "sequence_length": 16,
        "held_out": {"share": 0.3, "tokens_per_source": 100000},
        "mixes": {
            "pre": {"sources": {"web": {"repeat": 1}}},
            "mid": {"sources": {"web/good": {"repeat": 0.5}, "maths": {"share": 0.25, "max_repeat": 9}}},
        },
        "reported": {
            "mine": {"title": "Mine", "mix": "mid", "rows": {"both": {"sources": ["web/good", "maths"], "mix_percent": 90}}},
            "sizes": {"title": "Sizes", "rows": {"good": {"sources": ["web/good"], "documents": 100}}},
        },
    }


@pytest.fixture
def folder(tmp_path):
    lines = [
        {"id": str(i), "votes": i % 5, "text": f"Document {i} about {i * i} rivers and {'hills and ' * (i % 4)} seas"} for i in range(200)
    ]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sums = [{"id": str(i), "text": f"What is {i} and {i}? It is {2 * i}."} for i in range(100)]
    (tmp_path / "maths.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    return tmp_path


def run(recipe: Recipe, stage: str) -> Pipeline:
    pipeline = Pipeline(recipe, Runner(Store(recipe.store), InProcess()))
    getattr(pipeline, stage)()
    return pipeline


def test_what_has_been_counted_goes_before_what_is_declared(folder):
    recipe = Recipe.model_validate(small(folder))
    before = make_plan(recipe, "mix_all", 0.0)
    assert before["tables"][1]["rows"]["good"]["documents"]["computed"] is None
    assert any("mix mid is not planned: nobody has counted or declared the tokens of web/good, maths" in note for note in before["notes"])
    run(recipe, "curate")
    after = make_plan(recipe, "mix_all", 0.0)
    good = after["tables"][1]["rows"]["good"]["documents"]
    assert good == {"computed": 80, "reported": 100, "difference": -20}
    assert after["tables"][0]["rows"]["both"]["mix_percent"] == {"computed": 100, "reported": 90, "difference": 10}


def test_a_planned_mix_is_the_mix_that_is_made(folder):
    changed = small(folder) | {"held_out": {"share": 1e-9}}  # what is held back is not planned with
    recipe = Recipe.model_validate(changed)
    run(recipe, "curate")
    planned = make_plan(recipe, "mix_all", 0.0)["mixes"]["mid"]
    run(recipe, "mix_all")
    made = make_plan(recipe, "mix_all", 0.0)["mixes"]["mid"]
    assert [row["source"] for row in made] == [row["source"] for row in planned] == ["web/good", "maths"]
    for ours, theirs in zip(planned, made, strict=True):
        assert ours["available_tokens"] == theirs["available_tokens"] and ours["repeat"] == theirs["repeat"]
        assert ours["tokens"] == pytest.approx(theirs["tokens"], abs=60)  # whole documents are taken, and none is longer


def test_a_subset_shares_the_documents_and_tokens_of_its_source(folder):
    pipeline = run(Recipe.model_validate(small(folder)), "mix_all")
    names = {
        step: [artifact.name for artifact in pipeline.runner.artifacts.values() if artifact.step == step]
        for step in ("ingest", "tokenize", "select")
    }
    assert names["ingest"] == names["tokenize"] == ["web", "maths"]
    assert names["select"] == ["web", "web/good", "maths"]
    assert pipeline.selection("web").books.kept == 200 and pipeline.selection("web/good").books.kept == 80


def test_no_mix_of_a_subset_holds_a_document_held_out_of_its_source(folder):
    changed = small(folder)
    changed["mixes"]["mid"]["sources"]["web/good"] = {"repeat": 1}
    changed["held_out"]["tokens_per_source"] = 300  # cuts the source's held-out part short, but not the subset's at the same document
    pipeline = run(Recipe.model_validate(changed), "mix_all")

    def rows(mix: str, source: str) -> set[int]:
        made = pipeline.mix(mix)
        table = pq.read_table(input_files(pipeline.store, ShardRef(made.step, made.keys[0]))["plan.parquet"]).to_pylist()
        return {row["row"] for row in table if row["source"] == source}

    held = set(range(200)) - rows("pre", "web")
    assert held and not held & rows("mid", "web/good")


def test_the_openwebmath_filter_is_planned_without_a_network_and_states_the_reports_numbers(offline, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    recipe = load(RECIPES / "openwebmath-filter.yaml", [f"store={tmp_path}"])
    assert set(plan_of("openwebmath-filter", tmp_path)["unlisted"]) == set(recipe.sources)
    annotation = recipe.annotations["is-math"]
    assert (annotation.source, annotation.documents, annotation.model) == ("open_web_math", 10_000, "gpt-4o-2024-08-06")
    filtered = [name for name, source in recipe.sources.items() if "math" in source.scores]
    assert filtered == ["maths_college", "education_college_students", "metamath", "codesearchnet"]
    assert all(recipe.sources[name].filters[0].column == "math" for name in filtered)


def test_synthetic_maths_is_planned_without_a_network_and_states_the_reports_models_and_prompts(offline, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    recipe = load(RECIPES / "synthetic-maths.yaml", [f"store={tmp_path}"])
    plan = plan_of("synthetic-maths", tmp_path)
    assert set(plan["unlisted"]) == set(recipe.sources) - {"arithmetic"}  # which needs no file
    assert "tinygsm_two_students is made of tinygsm" in plan["unlisted"]["tinygsm_two_students"]
    rows = {(row["step"], row["name"]): row for row in plan["steps"]}
    assert rows["ingest", "arithmetic"]["to_run"] == 4 and rows["declared", "tinygsm_problem_solving"]["tokens"] == 3_070_000_000
    assert not any(step == "rewrite" for step, _ in rows)
    rewritings = {name: source.rewrite for name, source in recipe.sources.items() if source.rewrite}
    written = {name: (rewrite.source, rewrite.prompt, rewrite.model) for name, rewrite in rewritings.items()}
    qwen, gpt = "Qwen/Qwen2.5-7B-Instruct", "gpt-4o-2024-08-06"
    assert written == {
        "gsm8k_two_students": ("gsm8k", "mind_two_students", qwen),
        "gsm8k_problem_solving": ("gsm8k", "mind_problem_solving", qwen),
        "tinygsm_two_students": ("tinygsm", "mind_two_students", qwen),
        "tinygsm_problem_solving": ("tinygsm", "mind_problem_solving", qwen),
        "persona_hard": ("personas", "persona_hard", gpt),
        "persona_grade_school": ("personas", "persona_grade_school", gpt),
    }


def test_sources_that_can_be_listed_are_planned_beside_those_that_cannot(folder, offline):
    changed = small(folder)
    changed["sources"]["far"] = {
        "format": "jsonl",
        "paths": ["hf://datasets/nobody/nothing/*.jsonl"],
        "declared": {"tokens": 5e3, "reference": "me"},
    }
    changed["mixes"]["all"] = {"sources": {"far": {"repeat": 2}, "web": {"repeat": 1}}}
    plan = make_plan(Recipe.model_validate(changed), "end_to_end", 0.0)
    rows = {(row["step"], row["name"]): row for row in plan["steps"]}
    assert rows["ingest", "web"]["to_run"] == 1 and rows["mix", "mid"]["to_run"] == 1
    assert rows["declared", "far"]["tokens"] == 5000 and ("ingest", "far") not in rows and ("mix", "all") not in rows
    assert list(plan["unlisted"]) == ["far"] and "cannot be listed" in plan["unlisted"]["far"]
    assert [row["tokens"] for row in plan["mixes"]["all"]] == [10_000, 1_000_000]


def test_a_local_file_that_is_not_there_is_an_error_declared_or_not(folder):
    (folder / "web.jsonl").unlink()
    with pytest.raises(UserError, match=r"sources\.web: no file matches .*web\.jsonl"):
        make_plan(Recipe.model_validate(small(folder)), "end_to_end", 0.0)


def fault(folder: Path, **changes) -> str:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(small(folder) | ({"reported": {}} if "mixes" in next(iter(changes)) else {})))
    with pytest.raises(RecipeError) as error:
        load(path, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()])
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mixes.mid.sources", {"web/best": {"repeat": 1}}, ["mixes.mid.sources names 'web/best'", "web/good"]),
        ("reported.mine.mix", "none", ["reported.mine.mix names 'none'"]),
        ("reported.mine.rows.both.sources", ["web"], ["reported.mine.rows.both.sources names 'web'", "web/good, maths"]),
        ("reported.sizes.rows.good.mix_percent", 3, ["'good' has percentages", "name the `mix`"]),
        ("reported.mine.rows.both", {"sources": ["maths"], "tokens": 3}, ["neither source_percent nor mix_percent"]),
        ("reported.sizes.rows.good.tokes", 3, ["unknown key", "did you mean tokens?"]),
        ("sources.web.subsets", {"a/b": {"filters": [{"column": "votes", "min": 1}]}}, ["'a/b' has a /"]),
        ("sources.web.declared", {"tokens": 3}, ["sources.web.declared.reference"]),
    ],
)
def test_a_fault_in_what_is_declared_or_reported_is_told_with_its_key(folder, key, value, words):
    told = fault(folder, **{key: value})
    for word in words:
        assert word in told


def test_further_anneals_have_distinct_seeds_and_mixes(folder):
    changed = small(folder) | {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 1, "mlp_hidden": 16},
        "pretrain": {"mix": "pre", "learning_rate": 1e-3, "global_batch_instances": 1, "micro_batch_instances": 1},
        "anneal": {"mix": "mid", "seeds": [1, 2], "further": [{"mix": "pre", "seeds": [2], "steps": 3}]},
    }
    assert [(run.name, run.mix, run.steps) for run in Recipe.model_validate(changed).anneal.runs()] == [
        ("anneal 1", "mid", None),
        ("anneal 2", "mid", None),
        ("anneal pre 2", "pre", 3),
    ]
    for further, words in (
        ([{"mix": "mid", "seeds": [3]}], "a mix stands twice"),
        ([{"mix": "pre", "seeds": [3, 3]}], "a seed stands twice"),
    ):
        changed["anneal"]["further"] = further
        with pytest.raises(ValueError, match=words):
            Recipe.model_validate(changed)
