"""A recipe may extend another: one text for what several share, and a fault names the file that it is in."""

from pathlib import Path

import pytest

from flows import recipe_file
from flows.recipe import in_environment, load, load_form, without_secrets
from tasks.errors import RecipeError
from tasks.secrets import hidden

BASE = """\
name: base
sources:
  web: {format: jsonl, paths: [a.jsonl, b.jsonl], filters: [{column: votes, min: 1}]}
  maths: {format: jsonl, paths: [m.jsonl]}
mixes:
  pre: {sources: {web: {repeat: 1}, maths: {repeat: 2}}}
"""


@pytest.fixture
def files(tmp_path):
    def write(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".yaml").write_text(text)
        return tmp_path

    return write


def fault(path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_extends_wins_mappings_are_merged_and_lists_replaced(files):
    folder = files(base=BASE, own="extends: base.yaml\nname: own\nsources: {web: {paths: [c.jsonl]}}\nmixes: {pre: {seed: 3}}\n")
    recipe = load(folder / "own.yaml")
    assert recipe.name == "own"
    assert recipe.sources["web"].paths == ["c.jsonl"] and recipe.sources["maths"].paths == ["m.jsonl"]
    assert [rule.column for rule in recipe.sources["web"].filters] == ["votes"]
    assert recipe.mixes["pre"].seed == 3 and recipe.mixes["pre"].sources["maths"].repeat == 2


def test_extends_is_read_beside_the_file_it_stands_in_and_may_go_on(files):
    folder = files(base=BASE, deep__middle="extends: ../base.yaml\nsequence_length: 64\n", deep__own="extends: middle.yaml\nname: own\n")
    recipe = load(folder / "deep" / "own.yaml", ["sources.maths.max_quarantined=0.5"])
    assert (recipe.name, recipe.sequence_length, recipe.sources["maths"].max_quarantined) == ("own", 64, 0.5)


def test_a_file_to_extend_that_is_not_there_is_told_with_the_file_that_asks(files):
    folder = files(own="extends: none.yaml\nname: own\n")
    told = fault(folder / "own.yaml")
    assert str(folder / "own.yaml") in told and str(folder / "none.yaml") in told


def test_files_that_extend_each_other_are_told(files):
    folder = files(one="extends: two.yaml\n", two="extends: one.yaml\n")
    assert "circle" in fault(folder / "one.yaml")


def test_a_fault_in_an_extended_file_names_that_file_and_its_line(files):
    folder = files(base="name: a\nname: b\n", own="extends: base.yaml\n")
    assert fault(folder / "own.yaml").startswith(f"{folder / 'base.yaml'}, line 2: not valid YAML")


@pytest.mark.parametrize("written", ["[base.yaml]", "3", "{a: 1}", ""])
def test_extends_is_one_path(files, written):
    folder = files(base=BASE, own=f"extends: {written}\n")
    assert "`extends` should be the path of one other recipe" in fault(folder / "own.yaml")


def test_an_unknown_key_of_an_extended_file_is_an_error(files):
    folder = files(base=BASE + "mixxes: {}\n", own="extends: base.yaml\n")
    assert "unknown key mixxes; did you mean mixes?" in fault(folder / "own.yaml")


def test_a_flow_gets_the_names_of_secrets_and_fills_them_in_where_it_runs(files, monkeypatch):
    monkeypatch.setenv("LAB_SECRET", "planted-3f9c1e77")
    monkeypatch.setattr(recipe_file, "_block", lambda name, path: {"lab-store": "planted-block-77c0"}[name])
    folder = files(base="store: s3://${block:lab-store}/${LAB_SECRET}\n" + BASE)
    recipe = load(folder / "base.yaml")
    assert recipe.store == "s3://planted-block-77c0/planted-3f9c1e77"
    given = without_secrets(recipe)
    assert given.store == load_form(folder / "base.yaml")["store"] == "s3://${block:lab-store}/${LAB_SECRET}"
    assert in_environment(given) == recipe
    assert hidden(f"no such bucket {recipe.store}") == f"no such bucket {given.store}"


def test_a_block_without_a_server_to_ask_is_a_sentence(files, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert "the block lab-store lies on Prefect's server: set PREFECT_API_URL" in fault(
        files(base="store: ${block:lab-store}\n" + BASE) / "base.yaml"
    )
