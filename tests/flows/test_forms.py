"""What Prefect's server asks of a deployment's form before it takes it."""

import importlib
from pathlib import Path

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.end_to_end import end_to_end
from flows.recipe import load_form

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deployments" / "recipes"
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("engine", [None, {"workers": 2}, {"kind": "slurm", "workers": 2}, {"kind": "ray"}, {}])
def test_a_recipe_of_every_engine_is_taken_as_a_form_s_values(engine):
    recipe = load_form(RECIPES / "demo.yaml")
    if engine is not None:
        recipe["where"]["engine"] = engine
    schema = parameter_schema(end_to_end).model_dump_for_openapi()
    validate({"recipe": recipe}, schema, preprocess=True, raise_on_error=True, ignore_required=True, allow_none_with_default=True)


@pytest.mark.parametrize("entrypoint", [each["entrypoint"] for each in DEPLOYMENTS])
def test_every_field_of_every_form_says_what_it_is(entrypoint):
    path, name = entrypoint.split(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    schema = parameter_schema(getattr(module, name)).model_dump_for_openapi()
    objects = {name: schema} | schema["definitions"]
    fields = {f"{of}.{key}": field for of, its in objects.items() for key, field in its.get("properties", {}).items()}
    fixed = {key for key, field in fields.items() if "const" in field}  # which kind a part is: nothing to fill in
    told = {key for key, field in fields.items() if objects.get(Path(field.get("$ref", "")).name, {}).get("description")}
    assert [key for key, field in fields.items() if key not in fixed | told and not field.get("description")] == []
