"""The plan of a recipe: what is there, what is missing, and what the training would cost. Runs nothing and needs no Prefect."""

from __future__ import annotations

import json
from typing import Any

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from tasks.errors import RecipeError
from tasks.shards import Artifact, ShardRef, input_files

PEAK_FLOPS = 989.5e12  # dense bf16 of an H100 or H200
UTILISATION = 0.4  # of the peak; what well-tuned trainers of this size reach is 0.4 to 0.5


def make_plan(recipe: Recipe, stage: str, price: float) -> dict[str, Any]:
    """Rows by step and notes in words. Documents and tokens are told where a step has run; nobody knows them before."""
    pipeline = _dry(recipe, stage)
    rows = [_row(artifact) for artifact in pipeline.runner.artifacts.values()]
    training = [
        _training(pipeline, artifact)
        for artifact in pipeline.runner.artifacts.values()
        if artifact.step == "train" and not artifact.is_whole
    ]
    return {"recipe": recipe.name, "store": recipe.store, "steps": rows, "training": training, "notes": _notes(rows, training, price)}


def _dry(recipe: Recipe, stage: str) -> Pipeline:
    pipeline = Pipeline(recipe, make_runner(recipe, plan_only=True))
    pipeline.corpus()
    getattr(pipeline, stage)()
    return pipeline


def _row(artifact: Artifact) -> dict[str, Any]:
    missing = sum(record is None for record in artifact.records)
    row: dict[str, Any] = {"step": artifact.step, "name": artifact.name, "id": artifact.id, "shards": len(artifact.keys)}
    row |= {"reused": len(artifact.keys) - missing, "to_run": missing, "documents": None, "tokens": None, "bytes": None}
    if missing < len(artifact.keys):
        books = artifact.books
        row["documents"] = books.kept if books.unit == "documents" else books.counts.get("documents")
        row |= {"tokens": books.counts.get("tokens"), "bytes": artifact.bytes}
    return row


def _training(pipeline: Pipeline, artifact: Artifact) -> dict[str, Any]:
    """Tokens, FLOPs and GPU hours of a run that is still to be made; None where its mix is not made yet and the recipe sets no steps."""
    recipe = pipeline.recipe
    assert recipe.pretrain and recipe.model
    batch = recipe.pretrain.global_batch_instances * recipe.sequence_length
    steps = (
        recipe.pretrain.steps
        if artifact.name == "pretrain"
        else recipe.anneal.steps
        if recipe.anneal and artifact.name.startswith("anneal ")
        else None
    )
    mix = next(pipeline.runner.artifacts[name] for name in artifact.inputs if pipeline.runner.artifacts[name].step == "mix")
    if steps is None and mix.is_whole:
        header = json.loads(input_files(pipeline.store, ShardRef(mix.step, mix.keys[0]))["mix.json"].read_text())
        steps = header["instances"] // recipe.pretrain.global_batch_instances
    if steps is None:
        return {"name": artifact.name, "tokens": None, "flops": None, "gpu_hours": None}
    vocabulary = getattr(recipe.tokenizer, "vocab_size", 100_352)
    flops = steps * batch * recipe.model.config(vocabulary, recipe.sequence_length).flops_per_token(recipe.sequence_length)
    return {"name": artifact.name, "tokens": steps * batch, "flops": flops, "gpu_hours": flops / (PEAK_FLOPS * UTILISATION) / 3600}


def _notes(rows: list[dict[str, Any]], training: list[dict[str, Any]], price: float) -> list[str]:
    to_run = sum(row["to_run"] for row in rows)
    notes = [f"{to_run:,} of {sum(row['shards'] for row in rows):,} shards to run" if to_run else "everything is there: nothing to run"]
    known = [run for run in training if run["flops"] is not None]
    if known:
        hours = sum(run["gpu_hours"] for run in known)
        cost = f", {hours * price:,.2f} at {price:g} an hour" if price else ""
        tokens, flops = sum(run["tokens"] for run in known), sum(run["flops"] for run in known)
        notes.append(f"training: {tokens:,} tokens, {flops:.3g} FLOPs, {hours:.3g} H100 hours at {UTILISATION:.0%} of the peak{cost}")
    unknown = [run["name"] for run in training if run["flops"] is None]
    if unknown:
        notes.append(f"not known before their mixes are made: the tokens of {', '.join(unknown)}")
    return notes


def check_step(recipe: Recipe, step: str, name: str | None) -> None:
    """Raise RecipeError where a recipe has no such step, or no such source, mix or run in it."""
    found = [(artifact.step, artifact.name) for artifact in _dry(recipe, "end_to_end").runner.artifacts.values()]
    if step not in {each for each, _ in found}:
        raise RecipeError(f"the recipe {recipe.name} has no step {step!r}; it has {', '.join(dict.fromkeys(each for each, _ in found))}")
    names = [each for kind, each in found if kind == step]
    if name is not None and not any(name in (each, each.split(":")[0]) for each in names):
        raise RecipeError(f"the step {step} has no {name!r}; it has {', '.join(names)}")
