"""`why` names what differs from the last artifact, root causes first, and agrees with what a run would make."""

import copy
import json
import shutil

import pytest
import yaml
from small_store import make, small, write_web
from typer.testing import CliRunner

import tasks.shards
from flows import cli
from flows.recipe import Recipe
from flows.why import explain, lines
from tasks import select
from tasks.errors import RecipeError
from tasks.store import Store


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("why")
    make(small(folder))
    return folder


@pytest.fixture
def folder(once, tmp_path):
    """The store and its files; a file's place is no part of a key."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def why(config: dict, step: str, name: str | None = None):
    (found,) = explain(Recipe.model_validate(config), step, name)
    return found


def causes(config: dict, step: str, name: str | None = None) -> list[str]:
    return list(why(config, step, name).root_causes())


def test_nothing_differs_after_a_run(folder):
    for step in ("ingest", "score", "tokenizer", "tokenize", "select", "mix"):
        found = why(small(folder), step)
        assert found.to_make == 0 and found.root_causes() == {}
        assert list(lines(found)) == [f"{found.called}: nothing differs, it would be reused"]


def test_a_changed_setting_is_told_by_its_key_with_both_values(folder):
    config = small(folder)
    config["sources"]["web"]["filters"][0]["min"] = 3
    found = why(config, "select")
    assert (found.to_make, found.shards) == (3, 3)
    assert [(each.key, float(each.old), float(each.new)) for each in found.differences] == [("filters.0.min", 2, 3)]
    assert why(config, "tokenize").to_make == 0  # what does not read the filters


def test_a_changed_input_is_followed_to_where_it_began(folder):
    config = small(folder)
    config["scorers"]["quality"]["train"]["dim"] = 5
    found = why(config, "mix")
    (cause,) = found.root_causes()
    assert cause.startswith("train-scorer quality: ") and cause.endswith("dim: 4 -> 5")
    assert found.root_causes()[cause] == ["train-scorer quality", "score web: quality", "select web", "mix pre"]


def test_raw_files_that_came_went_and_changed_are_named(folder):
    config = small(folder)
    write_web(folder, 3)
    (folder / "web" / "1.jsonl").unlink()
    write_web(folder, 2, label="edited ")
    found = why(config, "ingest")
    assert (found.to_make, found.shards) == (2, 3)
    (reason,) = found.reasons
    assert reason == "of its raw files 1 is new (3.jsonl), 1 is gone (1.jsonl), 1 has other content (2.jsonl)"
    assert causes(config, "select") == [f"ingest web: {reason}"]


def test_a_file_that_was_renamed_is_no_reason(folder):
    (folder / "web" / "1.jsonl").rename(folder / "web" / "9.jsonl")
    assert why(small(folder), "select").to_make == 0


def test_the_steps_version_and_its_libraries_are_told(folder, monkeypatch):
    config = small(folder)
    real = tasks.shards.library_version
    monkeypatch.setattr(tasks.shards, "library_version", lambda name: "99" if name == "tokenizers" else real(name))
    (cause,) = causes(config, "tokenize")
    assert cause == f"tokenizer bpe: the library tokenizers: {real('tokenizers')} -> 99"
    monkeypatch.setattr(select, "STEP", tasks.shards.Step("select", 7, "tasks.select"))
    assert "select web: the step's version: 1 -> 7" in causes(config, "select")


def test_shards_that_are_gone_are_counted(folder):
    store = Store(str(folder / "store"))
    key = store.names("shards/select")[0]
    store.forget("select", key)
    found = why(small(folder), "select")
    assert found.to_make == 1 and found.reasons == ["1 of its 3 shards are gone from the store, or not whole any more"]


def test_going_back_to_what_was_there_before_is_told_as_reuse(folder):
    config = small(folder)
    changed = copy.deepcopy(config)
    changed["sources"]["web"]["filters"][0]["min"] = 3
    (manifest,) = [each for each in Store(config["store"]).manifests() if each["step"] == "select"]
    manifest["created"] = "2020-01-01T00:00:00+00:00"
    Store(config["store"]).replace(f"artifacts/select/{manifest['id']}.json", json.dumps(manifest))
    make(changed)
    found = why(config, "select")
    assert found.to_make == 0 and [each.key for each in found.differences] == ["filters.0.min"]
    assert "it would be reused" in next(iter(lines(found)))


def test_an_artifact_of_an_older_olmoflow_is_compared_as_far_as_its_manifest_goes(folder):
    shutil.rmtree(folder / "store" / "tasks")
    config = small(folder)
    config["scorers"]["quality"]["train"]["dim"] = 5
    write_web(folder, 3)
    found = causes(config, "mix")
    assert any(cause.endswith("dim: 4 -> 5") for cause in found)
    assert "ingest web: of its raw files 1 is new (3.jsonl)" in found


def test_a_step_that_was_never_made_says_so(folder):
    config = small(folder)
    config["mixes"]["other"] = {"sources": {"web": {"repeat": 2}}}
    found = why(config, "mix", "other")
    assert found.to_make == 1 and found.reasons == ["nothing of this step and name is in the store"]


def test_a_step_or_a_name_that_the_recipe_does_not_have_is_an_error(folder):
    with pytest.raises(RecipeError, match="no step 'cook'; it has ingest"):
        explain(Recipe.model_validate(small(folder)), "cook", None)
    with pytest.raises(RecipeError, match="select has no 'wiki'; it has web"):
        explain(Recipe.model_validate(small(folder)), "select", "wiki")


def test_the_command_tells_it_in_words_and_as_json(folder):
    config = small(folder)
    config["sources"]["web"]["filters"].append({"column": "votes", "max": 4})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    told = CliRunner().invoke(cli.app, ["why", "mix", str(folder / "recipe.yaml")])
    assert told.exit_code == 0, told.output
    assert "mix pre: 1 of 1 shards would be made" in told.output and "by way of select web -> mix pre" in told.output
    answer = json.loads(CliRunner().invoke(cli.app, ["why", "mix", str(folder / "recipe.yaml"), "--json"]).stdout)
    assert answer[0]["to_make"] == 1 and answer[0]["root_causes"][0]["way"] == ["select web", "mix pre"]
