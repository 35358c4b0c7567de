"""A recipe says what it means: variables, overrides, faults in one sentence, and the same recipe back from a form."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from flows.recipe import Recipe, load
from flows.recipe_training import MicroAnneal
from tasks.engine import LocalConfig
from tasks.errors import RecipeError
from tasks.mix_plan import resolve
from tasks.train import Metrics, Parallel
from trainer.config import MetricsConfig, ParallelConfig, SkipStepConfig
from trainer.parsing import parse

SHIPPED = sorted((Path(__file__).parents[2] / "deployments" / "recipes").glob("*.yaml"))
SMALL = """\
name: small
store: made
sources:
  web:
    format: jsonl
    paths: [a.jsonl, b.jsonl]
    filters: [{column: votes, min: 1}, {column: length, max: 9}]
mixes:
  pre: {sources: {web: {repeat: 1}}}
model: {preset: 1b}
pretrain: {mix: pre, learning_rate: 3.0e-4, global_batch_instances: 8, micro_batch_instances: 8}
"""


@pytest.fixture
def write(tmp_path):
    def write_recipe(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write_recipe


@pytest.fixture
def small(write):
    return write(SMALL)


def fault(path, overrides=None) -> str:
    """The one sentence that a recipe is refused with."""
    with pytest.raises(RecipeError) as error:
        load(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_ablation_pretrains_but_is_refused_before_a_soup_that_could_not_be_exported(write):
    ablated = SMALL.replace("{preset: 1b}", "{preset: 1b, layer_norm: nonparametric}")
    assert load(write(ablated)).model.layer_norm == "nonparametric"
    annealed = ablated + "anneal: {mix: pre, seeds: [1, 2]}\n"
    assert "model.layer_norm is nonparametric" in fault(write(annealed))
    load(write(annealed.replace("layer_norm: nonparametric", "init: scaled")))


def test_ranks_share_the_model_as_in_the_trainer_unless_the_recipe_says_otherwise(small):
    assert load(small).where.parallel.model_dump() == dataclasses.asdict(ParallelConfig())
    assert load(small, ["where.parallel.activation_checkpointing=full"]).where.parallel.activation_checkpointing == "full"
    choices = typing.get_type_hints(ParallelConfig)
    assert {name: field.annotation for name, field in Parallel.model_fields.items()} == choices


def test_metrics_and_skipped_steps_are_what_the_trainer_takes(small):
    energy = {"power_usage_effectiveness": 1.1, "carbon_kg_per_kwh": 0.3, "water_offsite_litres_per_kwh": 1.3}
    metrics = Metrics(tensorboard=True, wandb={"project": "olmo"}, energy=energy)
    for told in (metrics, load(small).where.metrics):
        assert parse(MetricsConfig, told.model_dump(), "test").tensorboard == told.tensorboard
    assert load(small).pretrain.optimizer_ablations() == {}  # so that runs from before it existed keep their keys
    skip_step = load(small, ["pretrain.skip_step={}"]).pretrain.optimizer_ablations()["skip_step"]
    assert parse(SkipStepConfig, skip_step, "test") == SkipStepConfig()


def test_copies_of_the_model_that_do_not_divide_the_ranks_are_refused(small):
    eight = ["where.launcher.processes=8", "pretrain.micro_batch_instances=1"]
    assert load(small, [*eight, "where.parallel.replicas=4"]).where.parallel.replicas == 4
    nodes = ["where.launcher.kind=slurm", "where.launcher.nodes=2", "where.launcher.processes=4", "pretrain.micro_batch_instances=1"]
    assert load(small, [*nodes, "where.parallel.replicas=8"]).where.launcher.ranks == 8
    assert "which does not divide where.launcher.nodes x processes 8" in fault(small, [*nodes, "where.parallel.replicas=3"])
    assert "where.launcher: nodes is 2, but kind local" in fault(small, [*nodes[1:]])
    told = fault(small, [*eight, "where.parallel.replicas=3"])
    assert "where.parallel.replicas is 3, which does not divide where.launcher.processes 8" in told


# -- variables -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch):
    monkeypatch.setenv("OLMOFLOW_TEST_SET", "there")
    monkeypatch.setenv("OLMOFLOW_TEST_NUMBER", "64")
    monkeypatch.delenv("OLMOFLOW_TEST_UNSET", raising=False)


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ("${OLMOFLOW_TEST_SET}", "there"),
        ("s3://${OLMOFLOW_TEST_SET}/x-${OLMOFLOW_TEST_SET}", "s3://there/x-there"),
        ("${OLMOFLOW_TEST_SET:-other}", "there"),
        ("${OLMOFLOW_TEST_UNSET:-other}/deep", "other/deep"),
        ("x${OLMOFLOW_TEST_UNSET:-}", "x"),
        ("$OLMOFLOW_TEST_SET and $5", "$OLMOFLOW_TEST_SET and $5"),  # only braces are a variable
    ],
)
def test_variables_are_filled_in(small, variables, written, filled):
    assert load(small, [f"store={written}"]).store == filled


def test_variables_are_filled_in_at_every_depth_and_may_stand_for_numbers(write, variables):
    text = SMALL.replace("store: made", "sequence_length: ${OLMOFLOW_TEST_NUMBER}").replace("b.jsonl", '"${OLMOFLOW_TEST_SET}/b"')
    recipe = load(write(text))
    assert recipe.sources["web"].paths == ["a.jsonl", "there/b"]
    assert recipe.sequence_length == 64


def test_a_variable_that_is_not_set_is_named_with_the_way_to_write_a_default(small, variables):
    told = fault(small, ["sources.web.paths.1=${OLMOFLOW_TEST_UNSET}/x"])
    assert str(small) in told and "OLMOFLOW_TEST_UNSET is not set" in told and "${OLMOFLOW_TEST_UNSET:-default}" in told


# -- --set ---------------------------------------------------------------------------------------------------------------------------


def test_set_reaches_nested_keys_and_places_in_lists_and_reads_values_as_yaml(small):
    recipe = load(
        small,
        [
            "sources.web.filters.1.max=20",
            "sources.web.paths.0=c.jsonl",
            "pretrain.learning_rate=3e-4",
            "pretrain.deterministic=true",
            "held_out.share=0.1",
            "sources.web.tokenize_where.share=0.5",  # neither tokenize_where nor held_out is in the file
            "mixes.pre.sources.web={repeat: 2}",
            "description=a=b",
        ],
    )
    web = recipe.sources["web"]
    assert [rule.max for rule in web.filters] == [None, 20]
    assert web.paths == ["c.jsonl", "b.jsonl"]
    assert recipe.pretrain.learning_rate == 3e-4 and recipe.pretrain.deterministic is True
    assert recipe.held_out.share == 0.1 and web.tokenize_where.share == 0.5
    assert recipe.mixes["pre"].sources["web"].repeat == 2
    assert recipe.description == "a=b"


def test_a_later_set_wins(small):
    assert load(small, ["name=one", "name=two"]).name == "two"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("name", ["--set name", "a.b=value"]),
        ("=x", ["--set =x", "a.b=value"]),
        ("sources.web.paths.2=c", ["sources.web.paths.2", "list of 2", "0 to 1"]),
        ("sources.web.paths.first=c", ["sources.web.paths.first", "list of 2"]),
        ("sources.web.filters.5.min=1", ["sources.web.filters.5.min=1", "nothing under 5"]),
        ("store.folder=x", ["store.folder=x", "nothing under store"]),
        ("pretrain.stpes=3", ["unknown key pretrain.stpes", "did you mean steps?"]),
        ("sources.web.zzzz=3", ["unknown key sources.web.zzzz", "remove it"]),
        ("sequence_length=many", ["sequence_length"]),
    ],
)
def test_a_set_that_cannot_be_applied_is_told_with_its_key(small, override, words):
    told = fault(small, [override])
    for word in words:
        assert word in told


@pytest.mark.parametrize("value", ["[1, 2", "@there", "a: b: c"])
def test_a_set_whose_value_is_no_yaml_is_told_with_its_key(small, value):
    assert f"--set store={value}" in fault(small, [f"store={value}"])


# -- faults of the file --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: small\nsources: [a, b\nmixes: {}\n", 3),
        ("name: small\nsources:\n\tweb: 1\n", 3),
        ("name: small\n  store: x\n", 2),
        ('name: "small\n', 2),
    ],
)
def test_a_fault_of_yaml_names_the_file_and_the_line(write, text, line):
    path = write(text)
    told = fault(path)
    assert told.startswith(f"{path}, line {line}: not valid YAML")


@pytest.mark.parametrize("text", ["", "- name: small\n", "small\n", "3\n"])
def test_a_file_that_is_no_mapping_is_told(write, text):
    path = write(text)
    assert fault(path).startswith(f"{path} is no recipe: it should be a mapping")


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path):
    assert fault(tmp_path / "none.yaml") == f"there is no recipe {tmp_path / 'none.yaml'}"
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "bytes.yaml cannot be read" in fault(tmp_path / "bytes.yaml")


def test_of_many_faults_the_first_is_told_with_the_number_of_the_others(small):
    told = fault(small, ["sequence_length=many", "held_out.share=2", "modle=1"])
    assert "sequence_length" in told and "(2 more)" in told


# -- shipped recipes, and the form ---------------------------------------------------------------------------------------------------


def shipped(path: Path, monkeypatch) -> Recipe:
    monkeypatch.setenv("OLMOFLOW_DATA", "/data")
    return load(path)


def test_an_engine_is_local_unless_it_says_ray_and_each_takes_its_own_keys_only(small):
    assert load(small, ["where.engine.workers=3"]).where.engine == LocalConfig(workers=3)
    ray = load(small, ["where.engine={kind: ray, address: 'head:6379', cpus_per_shard: 2, memory_gb_per_shard: 1.5, gpus_per_shard: 0.25}"])
    assert ray.where.engine.resources == {"CPU": 2, "memory": 1_500_000_000, "GPU": 0.25}
    assert "workers" in fault(small, ["where.engine={kind: ray, workers: 3}"])
    assert "address" in fault(small, ["where.engine={kind: ray, address: local}"])  # Ray would start a cluster of its own
    assert "`kind` is local, ray or slurm" in fault(small, ["where.engine={kind: spark}"])


def test_there_are_shipped_recipes():
    assert {path.name for path in SHIPPED} >= {"demo.yaml", "sample.yaml"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_survives_a_form(path, monkeypatch):
    recipe = shipped(path, monkeypatch)
    sent = json.loads(json.dumps(recipe.model_dump(mode="json")))  # a form sends every field, as JSON
    assert Recipe.model_validate(sent) == recipe
    for name, source in recipe.sources.items():
        again = Recipe.model_validate(sent).sources[name]
        assert again.reader().model_dump(mode="json") == source.reader().model_dump(mode="json")


def test_bounds_of_filters_keep_their_type_through_a_form(small):
    recipe = load(small, ["sources.web.filters=[{column: a, equals: true}, {column: b, equals: 1}, {column: c, min: 1.5}]"])
    again = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    bounds = [(rule.equals, rule.min) for rule in again.sources["web"].filters]
    assert bounds == [(True, None), (1, None), (None, 1.5)]
    assert [type(equals) for equals, _ in bounds[:2]] == [bool, int]


def test_the_form_shows_every_field_in_the_order_of_the_recipe_with_a_description():
    from flows.end_to_end import end_to_end

    form = end_to_end.parameters.model_dump()["definitions"]  # what Prefect's page draws
    properties = form["Recipe"]["properties"]
    assert set(properties) == set(Recipe.model_fields)
    assert [name for name, _ in sorted(properties.items(), key=lambda item: item[1]["position"])] == list(Recipe.model_fields)
    assert sorted(field["position"] for field in properties.values()) == list(range(len(properties)))
    assert [name for name, field in properties.items() if not field.get("description")] == []
    parallel = form["Parallel"]["properties"]
    assert [name for name, _ in sorted(parallel.items(), key=lambda item: item[1]["position"])] == list(Parallel.model_fields)
    assert [name for name, field in parallel.items() if not field.get("description")] == []


def test_no_two_fields_of_a_section_ask_for_the_same_place():
    for name, section in Recipe.model_json_schema()["$defs"].items():
        positions = [field["position"] for field in section.get("properties", {}).values() if "position" in field]
        assert len(positions) == len(set(positions)), name


# -- micro-anneals -------------------------------------------------------------------------------------------------------------------


def test_a_micro_anneal_gives_the_general_mix_its_share_by_weight():
    micro = MicroAnneal(sources={"maths": 2.0, "code": 0.5}, general={"web": 3, "wiki": 1}, general_share=0.4, max_repeat=5, seed=11)
    spec = micro.spec(sequence_length=32)
    assert (spec.seed, spec.sequence_length, spec.tokens, spec.pack) == (11, 32, None, False)
    assert {name: source.repeat for name, source in spec.sources.items()} == {"maths": 2.0, "code": 0.5, "web": None, "wiki": None}
    assert spec.sources["web"].share == pytest.approx(0.3) and spec.sources["wiki"].share == pytest.approx(0.1)
    assert spec.sources["web"].max_repeat == 5

    available = {"maths": 1000, "code": 2000, "web": 10_000, "wiki": 10_000}
    repeats = resolve(spec, available)
    tokens = {name: repeats[name] * available[name] for name in available}
    assert (tokens["maths"], tokens["code"]) == (2000, 1000)
    total = sum(tokens.values())
    assert total == pytest.approx(3000 / 0.6)
    assert tokens["web"] == pytest.approx(0.3 * total) and tokens["wiki"] == pytest.approx(0.1 * total)


def test_half_of_a_micro_anneal_is_general_where_nothing_else_is_said():
    spec = MicroAnneal(sources={"maths": 1}, general={"web": 7}).spec(32)
    repeats = resolve(spec, {"maths": 500, "web": 5000})
    assert repeats == pytest.approx({"maths": 1, "web": 0.1})


def test_a_source_under_test_cannot_be_in_the_general_mix(small):
    told = fault(
        small, ["sources.maths={format: jsonl, paths: [m.jsonl]}", "micro_anneals.m={sources: {maths: 1, web: 1}, general: {web: 1}}"]
    )
    assert "micro_anneals.m: web is both under test and in the general mix" in told


def test_a_single_source_under_test_that_is_in_the_general_mix_is_told_as_such(small):
    told = fault(small, ["micro_anneals.m={sources: {web: 1}, general: {web: 1}}"])
    assert "micro_anneals.m: web is both under test and in the general mix" in told


def test_a_language_scorer_needs_no_model_and_a_crawl_takes_its_settings_but_not_as_examples(write) -> None:
    crawl = (
        "  crawl: {format: warc, paths: [a.warc.gz], warc: {extractor: trafilatura, url_filter: {domains: [bad.txt]}}, scores: {lid: {}}}\n"
    )
    text = SMALL.replace("sources:\n", "scorers:\n  lid: {scorer: {type: language}}\nsources:\n" + crawl)
    recipe = load(write(text))
    assert recipe.sources["crawl"].reader().warc.extractor == "trafilatura"
    trained = "  q: {scorer: {type: fasttext}, train: {type: fasttext, examples: [{format: warc, paths: [b], label: x, warc: {url_filter: {}}}]}}\n"
    with pytest.raises(RecipeError, match="examples take no `url_filter`"):
        load(write(text.replace("scorers:\n", "scorers:\n" + trained)))
