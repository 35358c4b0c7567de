"""The plan of a recipe: what is there, what is missing, and what the training would cost. Runs nothing and needs no Prefect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from flows import recuration, tables
from flows.declared import Sizes
from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.recipe_training import MICRO
from tasks.errors import RecipeError
from tasks.mix_plan import CompositionRow
from tasks.raw_files import Unreachable
from tasks.shards import Artifact, ShardRef, input_files
from tasks.storage import asking_once
from tasks.train_tokenizer import BytePairs, Cl100k

PEAK_FLOPS = 989.5e12  # dense bf16 of an H100 or H200
UTILISATION = 0.4  # of the peak; what well-tuned trainers of this size reach is 0.4 to 0.5
NAMED = 4  # runs in a sentence; more are counted
LISTINGS_AT_ONCE = 16  # they wait for servers
STAGES = {  # what a flow does, by its name, where the two are not called the same
    "mix": "mix_all",
    "tokenize": "tokenize_all",
    "micro-anneal": "micro_anneal_all",
    "anneal": "anneals",
    "soup": "soup_all",
    "evaluate": "evaluate_all",
    "learning-rates": "learning_rates_all",
    "compare-tokenizers": "tokenizers_all",
    "recurate-stackexchange": "recurated",
    "poll-stackexchange": "recurated",
}


def stage_of(flow: str) -> str:
    """The stage of the pipeline that a flow runs."""
    return STAGES.get(flow, flow.replace("-", "_"))


def make_plan(recipe: Recipe, stage: str, price: float) -> dict[str, Any]:
    """Rows by step, training runs, tables beside those that the recipe calls `reported`, and notes in words.

    Documents and tokens are told where a step has run; before, nobody knows them but by what the recipe declares. Sources whose place does
    not answer are planned from that alone: which shards they would have is not known.
    """
    pipeline = Pipeline(recipe, make_runner(recipe, plan_only=True))
    pipeline.corpus()
    if stage == "recurated":
        recuration.preview(pipeline)
    unlisted = _unlisted(pipeline)
    if unlisted:
        _plan_listed(pipeline, unlisted, stage)
    else:
        getattr(pipeline, stage)()
    sizes = tables.known_sizes(pipeline)
    mixes, failed = tables.compositions(pipeline, sizes)
    rows = [_row(artifact) for artifact in pipeline.runner.artifacts.values()]
    rows += [_declared_row(name, sizes[name]) for source in unlisted for name in recipe.selections_of(source)]
    training = [_cost(pipeline, run, mixes) for run in _runs(recipe, stage) if _made(pipeline, "train", run.name) is None]
    notes = _notes(rows, training, price) + _caveats(recipe, unlisted, failed)
    return {
        "recipe": recipe.name,
        "store": recipe.store,
        "steps": rows,
        "mixes": mixes,
        "training": training,
        "tables": tables.tables(recipe, sizes, mixes),
        "unlisted": unlisted,
        "notes": notes,
    }


def _unlisted(pipeline: Pipeline) -> dict[str, str]:
    """The sources whose shards cannot be known since a place does not answer, with the fault.

    Raises UserError for any other fault of a source's files.
    """

    def fault(source: str) -> str | None:
        try:
            pipeline.files(source)
        except Unreachable as error:
            return str(error)
        return None

    sources = list(pipeline.recipe.sources)
    with asking_once(), ThreadPoolExecutor(LISTINGS_AT_ONCE) as pool:
        faults = dict(zip(sources, pool.map(fault, sources), strict=True))
    unlisted = {source: told for source, told in faults.items() if told is not None}
    while True:  # what is trained on a source that is not listed is not known either, nor what is made of one, nor what is made of that
        further = {source: told for source in sources if source not in unlisted and (told := _needs_unlisted(pipeline, source, unlisted))}
        if not further:
            return {source: unlisted[source] for source in sources if source in unlisted}
        unlisted |= further


def _needs_unlisted(pipeline: Pipeline, source: str, unlisted: Mapping[str, str]) -> str | None:
    first = pipeline.recipe.rewritten_from(source)
    if first is not None and first in unlisted:
        return f"{source} is made of {first}: {unlisted[first]}"
    missing = next((each for each in pipeline.recipe.annotated_for(source) if each in unlisted), None)
    return f"{source} is scored by what is trained on {missing}: {unlisted[missing]}" if missing is not None else None


def _plan_listed(pipeline: Pipeline, unlisted: Mapping[str, str], stage: str) -> None:
    """What can be planned of a recipe some of whose sources are not listed: the curation of the others, and the mixes of them alone."""
    make = pipeline.tokens if stage == "tokenize_all" else pipeline.selection
    for source in pipeline.recipe.sources:
        if source not in unlisted:
            for name in [source] if stage == "tokenize_all" else pipeline.recipe.selections_of(source):
                make(name)
    for name, mix in pipeline.recipe.mixes.items():
        if stage not in ("curate", "tokenize_all") and not any(source.partition("/")[0] in unlisted for source in mix.sources):
            pipeline.mix(name)


def _row(artifact: Artifact) -> dict[str, Any]:
    missing = sum(record is None for record in artifact.records)
    row: dict[str, Any] = {"step": artifact.step, "name": artifact.name, "id": artifact.id, "shards": len(artifact.keys)}
    row |= {"reused": len(artifact.keys) - missing, "to_run": missing, "documents": None, "tokens": None, "bytes": None}
    if missing < len(artifact.keys):
        books = artifact.books
        row["documents"] = books.kept if books.unit == "documents" else books.counts.get("documents")
        row |= {"tokens": books.counts.get("tokens"), "bytes": artifact.bytes}
    return row


def _declared_row(name: str, sizes: Sizes) -> dict[str, Any]:
    row: dict[str, Any] = {"step": "declared", "name": name, "id": None, "shards": None, "reused": None, "to_run": None}
    return row | {measure: _whole(getattr(sizes, measure)) for measure in ("documents", "tokens", "bytes")}


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


class Run(NamedTuple):
    """A training run of a recipe: its name, the mix that it reads and its steps (None: one epoch)."""

    name: str
    mix: str
    steps: int | None


def _runs(recipe: Recipe, stage: str) -> list[Run]:
    """The training runs of a stage, whether they are made or not."""
    if recipe.pretrain is None or stage in ("curate", "tokenize_all", "mix_all"):
        return []
    if stage == "learning_rates_all" and recipe.learning_rates is not None:
        study, first = recipe.learning_rates, Run("", recipe.pretrain.mix, recipe.learning_rates.steps or recipe.pretrain.steps)
        decays = {name: Run("", decay.mix or recipe.pretrain.mix, decay.steps) for name, decay in study.decays.items()}
        return [(decays[run.decay] if run.decay else first)._replace(name=run.name) for run in study.runs()]
    runs = [Run("pretrain", recipe.pretrain.mix, recipe.pretrain.steps)]
    if stage == "tokenizers_all":
        return runs + [Run(f"pretrain ({name})", f"{recipe.pretrain.mix} ({name})", None) for name in recipe.other_tokenizers]
    if stage in ("end_to_end", "micro_anneal_all"):
        runs += _micro_anneals(recipe, recipe.pretrain.global_batch_instances * recipe.sequence_length)
    if recipe.anneal is not None and stage in ("end_to_end", "anneals", "soup_all", "evaluate_all"):
        runs += [Run(run.name, run.mix, run.steps) for run in recipe.anneal.runs()]
    return runs


def _micro_anneals(recipe: Recipe, batch: int) -> list[Run]:
    """Those that are the same but for their name are trained, and stand here, once. batch: tokens of a step."""
    found: dict[tuple[Any, ...], Run] = {}
    for run in recipe.micro_anneal_runs():
        micro = recipe.micro_anneals[run.micro]
        steps, mix = micro.steps(batch), micro.spec(recipe.sequence_length)
        found.setdefault((mix.model_dump_json(), steps, run.seed), Run(run.name, f"{MICRO}{run.micro}", steps))
    return list(found.values())


def _made(pipeline: Pipeline, step: str, name: str) -> Artifact | None:
    """The artifact of a step, where it is made; those under another tokenizer are known to the runner alone."""
    others = (artifact for artifact in pipeline.runner.artifacts.values() if (artifact.step, artifact.name) == (step, name))
    found = pipeline.made.get((step, name)) or next(others, None)
    return found if found is not None and found.is_whole else None


def _cost(pipeline: Pipeline, run: Run, mixes: Mapping[str, list[CompositionRow]]) -> dict[str, Any]:
    """Tokens, FLOPs and GPU hours of a run; None where its mix cannot be planned and the recipe sets no steps."""
    recipe = pipeline.recipe
    assert recipe.pretrain and recipe.model
    steps = run.steps if run.steps is not None else _epoch(pipeline, run.mix, mixes)
    if steps is None:
        return {"name": run.name, "mix": run.mix, "steps": None, "tokens": None, "flops": None, "gpu_hours": None}
    tokens = steps * recipe.pretrain.global_batch_instances * recipe.sequence_length
    vocabulary = _vocabulary(pipeline, run.mix)
    if vocabulary is None:
        return {"name": run.name, "mix": run.mix, "steps": steps, "tokens": tokens, "flops": None, "gpu_hours": None}
    flops = tokens * recipe.model.config(vocabulary, recipe.sequence_length).flops_per_token(recipe.sequence_length)
    hours = flops / (PEAK_FLOPS * UTILISATION) / 3600
    return {"name": run.name, "mix": run.mix, "steps": steps, "tokens": tokens, "flops": flops, "gpu_hours": hours}


def _epoch(pipeline: Pipeline, mix: str, mixes: Mapping[str, list[CompositionRow]]) -> int | None:
    """Steps of one epoch of a mix: of its instances where it is made, of its tokens where it is planned."""
    recipe, made = pipeline.recipe, _header(pipeline, mix)
    assert recipe.pretrain
    if made is not None:
        instances = made["instances"]
    elif mix in mixes:
        instances = sum(row["tokens"] for row in mixes[mix]) // recipe.sequence_length
    else:
        return None
    return int(instances) // recipe.pretrain.global_batch_instances


def _header(pipeline: Pipeline, mix: str) -> dict[str, Any] | None:
    """Of a mix that is made."""
    made = _made(pipeline, "mix", mix)
    if made is None:
        return None
    return dict(json.loads(input_files(pipeline.store, ShardRef(made.step, made.keys[0]))["mix.json"].read_text()))


def _vocabulary(pipeline: Pipeline, mix: str) -> int | None:
    """The vocabulary of a mix's tokens; None of one from a file, before the mix is made."""
    made, tokenizer = _header(pipeline, mix), pipeline.recipe.tokenizer
    if made is not None:
        return int(made["vocab_size"])
    if isinstance(tokenizer, Cl100k):
        return 100_352
    return tokenizer.vocab_size if isinstance(tokenizer, BytePairs) else None


def _notes(rows: list[dict[str, Any]], training: list[dict[str, Any]], price: float) -> list[str]:
    counted = [row for row in rows if row["shards"] is not None]
    to_run = sum(row["to_run"] for row in counted)
    notes = [f"{to_run:,} of {sum(row['shards'] for row in counted):,} shards to run" if to_run else "everything is there: nothing to run"]
    if not counted:
        notes = []
    known = [run for run in training if run["flops"] is not None]
    if known:
        hours = sum(run["gpu_hours"] for run in known)
        hours_text = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
        cost = f", {hours * price:,.2f} at {price:g} an hour" if price else ""
        tokens, flops = sum(run["tokens"] for run in known), sum(run["flops"] for run in known)
        notes.append(f"training: {tokens:,} tokens, {flops:.3g} FLOPs, {hours_text} H100 hours at {UTILISATION:.0%} of the peak{cost}")
    unknown = [run["name"] for run in training if run["flops"] is None]
    if unknown:
        names = ", ".join(unknown) if len(unknown) <= NAMED else f"{len(unknown)} runs"
        notes.append(f"not known before their mixes are made: tokens or FLOPs of {names}")
    return notes


def _caveats(recipe: Recipe, unlisted: Mapping[str, str], failed: Mapping[str, str]) -> list[str]:
    """What the plan does not know, and whose word it takes instead."""
    notes = []
    if unlisted:
        names = ", ".join(unlisted) if len(unlisted) < len(recipe.sources) else f"any of the {len(unlisted)} sources"
        config = recipe.selections()
        declared = [config[name].declared for source in unlisted for name in recipe.selections_of(source)]
        references = ", ".join(dict.fromkeys(each.reference for each in declared if each)) or "nobody"
        first = next(iter(unlisted.values()))
        notes.append(f"could not list {names}: their shards are not known, and their sizes are those declared by {references} ({first})")
    if recipe.reported or unlisted:
        notes += [f"the mix {name} is not planned: {reason}" for name, reason in failed.items()]
    return notes


def step_names(recipe: Recipe) -> list[tuple[str, str]]:
    """Each step of a recipe with the name of a source, mix or run of it, in the order of their making."""
    pipeline = Pipeline(recipe, make_runner(recipe, plan_only=True))
    pipeline.corpus()
    pipeline.end_to_end()
    return [(artifact.step, artifact.name) for artifact in pipeline.runner.artifacts.values()]


def check_step(recipe: Recipe, step: str, name: str | None) -> None:
    """Raise RecipeError where a recipe has no such step, or no such source, mix or run in it."""
    found = step_names(recipe)
    if step not in {each for each, _ in found}:
        raise RecipeError(f"the recipe {recipe.name} has no step {step!r}; it has {', '.join(dict.fromkeys(each for each, _ in found))}")
    names = [each for kind, each in found if kind == step]
    if name is not None and not any(name in (each, each.split(":")[0]) for each in names):
        raise RecipeError(f"the step {step} has no {name!r}; it has {', '.join(names)}")
