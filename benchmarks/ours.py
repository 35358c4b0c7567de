"""One stage of a recipe in a process of its own, without Prefect: `python -m benchmarks.ours STAGE RECIPE.json [--made-before STAGE]`.

What `--made-before` makes does not count. The last line is a JSON object: seconds of the stage, its worker processes and its records in the
store included, what it made by step, and the seconds that passed inside the steps' own functions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--made-before")
    options = parser.parse_args()
    recipe = Recipe.model_validate_json(options.recipe.read_text())
    if options.made_before:
        _run(recipe, options.made_before)
    started = time.perf_counter()
    pipeline = _run(recipe, options.stage)
    seconds = time.perf_counter() - started
    made = {step: {"read": books.read, "kept": books.kept, **books.counts} for step, books in pipeline.runner.made_books.items()}
    inside = sum(artifact.seconds for artifact in pipeline.runner.artifacts.values() if artifact.made)
    print(json.dumps({"seconds": seconds, "inside": inside, "made": made}))


def _run(recipe: Recipe, stage: str) -> Pipeline:
    pipeline = Pipeline(recipe, make_runner(recipe))
    if stage == "documents":
        for source in recipe.sources:
            pipeline.documents(source)
        pipeline.tokenizer()
    else:
        getattr(pipeline, stage)()
    return pipeline


if __name__ == "__main__":
    main()
