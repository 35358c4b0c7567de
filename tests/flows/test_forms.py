"""What Prefect's server asks of a deployment's form before it takes it."""

from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.end_to_end import end_to_end
from flows.recipe import load_form

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"


@pytest.mark.parametrize("engine", [None, {"workers": 2}, {"kind": "slurm", "workers": 2}, {"kind": "ray"}, {}])
def test_a_recipe_of_every_engine_is_taken_as_a_form_s_values(engine):
    recipe = load_form(RECIPES / "demo.yaml")
    if engine is not None:
        recipe["where"]["engine"] = engine
    schema = parameter_schema(end_to_end).model_dump_for_openapi()
    validate({"recipe": recipe}, schema, preprocess=True, raise_on_error=True, ignore_required=True, allow_none_with_default=True)
