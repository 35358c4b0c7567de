"""Sizes of sources and compositions of mixes as a plan knows them, and their comparison with the tables that a recipe calls `reported`.

What the store has counted goes before what a recipe declares. A mix that is not made yet is planned by the same `mix_plan` that makes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from flows.declared import Reported, Sizes
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.recipe_training import MICRO
from tasks import mix_plan
from tasks.errors import UserError
from tasks.mix_plan import CompositionRow, MixSpec, Taken
from tasks.shards import ShardRef, input_files

SIZES = ("tokens", "words", "bytes", "documents")
PERCENTS = ("source_percent", "mix_percent")

# What a table compares: measure -> {"computed", "reported", "difference"}; the difference is in percent of a reported size, in points of a
# reported percentage, and None where one of the two is not known.
Comparison = dict[str, dict[str, float | None]]


def known_sizes(pipeline: Pipeline) -> dict[str, Sizes]:
    """Sizes of every source and subset: counted by its selection where that is there, else declared; all None where neither is."""
    sizes: dict[str, Sizes] = {}
    for name, config in pipeline.recipe.selections().items():
        selected = pipeline.made.get(("select", name))
        if selected is not None and selected.is_whole:
            # no step counts words or bytes of what is selected
            sizes[name] = Sizes(tokens=selected.books.counts.get("tokens") or None, documents=selected.books.kept or None)
        else:
            declared = config.declared or Sizes()
            sizes[name] = Sizes(**{measure: getattr(declared, measure) for measure in SIZES})
    return sizes


def specs(recipe: Recipe) -> dict[str, MixSpec]:
    """All mixes of a recipe by the name of their artifact, those of micro-anneals among them."""
    length = recipe.sequence_length
    named = {name: mix.spec(length) for name, mix in recipe.mixes.items()}
    return named | {f"{MICRO}{name}": micro.spec(length) for name, micro in recipe.micro_anneals.items()}


def in_order(rows: list[CompositionRow], recipe: Recipe, mix: str) -> list[CompositionRow]:
    """The composition of a made mix, whose sources stand by name, in the order that the recipe has them in."""
    spec = specs(recipe).get(mix)
    order = list(spec.sources) if spec else []
    return sorted(rows, key=lambda row: order.index(row["source"]) if row["source"] in order else len(order))


def compositions(pipeline: Pipeline, sizes: Mapping[str, Sizes]) -> tuple[dict[str, list[CompositionRow]], dict[str, str]]:
    """The composition of each mix, as made or as planned, and for each mix that cannot be planned the reason."""
    found, failed = {}, {}
    for name, spec in specs(pipeline.recipe).items():
        made = pipeline.made.get(("mix", name))
        if made is not None and made.is_whole:
            files = input_files(pipeline.store, ShardRef(made.step, made.keys[0]))
            found[name] = in_order(json.loads(files["composition.json"].read_text()), pipeline.recipe, name)
            continue
        unknown = [source for source in spec.sources if sizes[source].tokens is None]
        if unknown:
            failed[name] = f"nobody has counted or declared the tokens of {', '.join(unknown)}"
            continue
        try:
            found[name] = planned(spec, sizes)
        except UserError as error:
            failed[name] = str(error)
    return found, failed


def planned(spec: MixSpec, sizes: Mapping[str, Sizes]) -> list[CompositionRow]:
    """The composition of a mix before any document is chosen, from the tokens that its sources have."""
    available = {name: round(sizes[name].tokens or 0) for name in spec.sources}
    repeats = mix_plan.resolve(spec, available)
    taken = {
        name: Taken(
            available=available[name],
            tokens=round(repeat * available[name]),
            documents=round((sizes[name].documents or 0) * min(repeat, 1.0)),
            repeat=repeat,
        )
        for name, repeat in repeats.items()
    }
    return mix_plan.composition(taken)


def tables(recipe: Recipe, sizes: Mapping[str, Sizes], mixes: Mapping[str, list[CompositionRow]]) -> list[dict[str, Any]]:
    """Each reported table beside what is computed: rows of comparisons, the measures that the table has, its note."""
    return [_table(name, table, sizes, mixes) for name, table in recipe.reported.items()]


def _table(name: str, table: Reported, sizes: Mapping[str, Sizes], mixes: Mapping[str, list[CompositionRow]]) -> dict[str, Any]:
    def computed(sources: list[str]) -> dict[str, float | None]:
        return _summed(sources, sizes) if table.mix is None else _of_mix(sources, mixes.get(table.mix, []))

    rows = {label: _compared(computed(row.sources), row) for label, row in table.rows.items()}
    everything = computed([source for row in table.rows.values() for source in row.sources])
    rows["total"] = _compared(everything | {"source_percent": None}, table.total)
    reported = [measure for measure in (*PERCENTS, *SIZES) if any(row[measure]["reported"] is not None for row in rows.values())]
    measures = dict.fromkeys([*reported, *(["tokens"] if table.mix else [])])
    return {
        "name": name,
        "title": table.title,
        "mix": table.mix,
        "rows": {label: {measure: row[measure] for measure in measures} for label, row in rows.items()},
        "note": table.note,
    }


def _summed(sources: list[str], sizes: Mapping[str, Sizes]) -> dict[str, float | None]:
    """The sum of a measure over sources; None where one of them does not know it."""
    sums: dict[str, float | None] = {}
    for measure in SIZES:
        values = [getattr(sizes[source], measure) for source in sources]
        sums[measure] = None if None in values else math.fsum(values)
    return sums


def _of_mix(sources: list[str], composition: list[CompositionRow]) -> dict[str, float | None]:
    rows = [row for row in composition if row["source"] in sources]
    if not rows:
        return {}
    tokens = sum(row["tokens"] for row in rows)
    return {
        "source_percent": 100 * tokens / sum(row["available_tokens"] for row in rows),
        "mix_percent": sum(row["mix_percent"] for row in rows),
        "tokens": tokens,
    }


def _compared(computed: dict[str, float | None], reported: Sizes | None) -> Comparison:
    comparison: Comparison = {}
    for measure in (*PERCENTS, *SIZES):
        ours, theirs = computed.get(measure), getattr(reported, measure, None)
        comparison[measure] = {"computed": ours, "reported": theirs, "difference": _difference(measure, ours, theirs)}
    return comparison


def _difference(measure: str, computed: float | None, reported: float | None) -> float | None:
    if computed is None or reported is None:
        return None
    return computed - reported if measure in PERCENTS else 100 * (computed - reported) / reported
