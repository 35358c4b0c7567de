"""What a run of a recipe used and made: the newest one is kept in the store, for the report and `olmoflow ls`."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from typing import Any

from flows.pipeline import Pipeline
from tasks.errors import UserError
from tasks.secrets import hidden
from tasks.shards import software
from tasks.storage import public
from tasks.store import Store


@dataclass
class RunSummary:
    """One run of a flow over a recipe.

    artifacts: by id: step, name, shard keys, how many of them this run made, ids of the inputs. counters: what this run did itself
    (documents ingested, scored, encoded; shards made by step).
    """

    recipe: dict[str, Any]
    flow: str
    started: str
    seconds: float
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    same_content: dict[str, list[str]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    shards_made: dict[str, int] = field(default_factory=dict)
    machine: str = ""
    software: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(pipeline: Pipeline, flow: str, started: str, seconds: float) -> RunSummary:
        runner = pipeline.runner
        artifacts = {
            artifact.id: {
                "step": artifact.step,
                "name": artifact.name,
                "keys": artifact.keys,
                "made": artifact.made,
                "inputs": artifact.inputs,
                "raw_files": [{"url": public(raw.url), "size": raw.size} for raw in artifact.raw_files],
            }
            for artifact in runner.artifacts.values()
        }
        summary = RunSummary(hidden(pipeline.recipe.model_dump(mode="json")), flow, started, round(seconds, 2), artifacts)
        summary.same_content = {source: [public(raw.url) for raw in copies] for source, copies in pipeline.copies.items() if copies}
        made = runner.made_books
        summary.counters = {
            "documents_ingested": made["ingest"].counts.get("documents", 0) if "ingest" in made else 0,
            "documents_scored": made["score"].counts.get("scored", 0) if "score" in made else 0,
            "documents_encoded": made["tokenize"].counts.get("encoded", 0) if "tokenize" in made else 0,
        }
        summary.shards_made = {step: number for step, number in runner.made_shards.items() if number}
        summary.machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        summary.software = software(["torch", "prefect", "transformers", "tiktoken"])
        return summary


def summary_path(recipe: str) -> str:
    return f"runs/{recipe}.json"


def load_summary(store: Store, recipe: str) -> RunSummary:
    """The newest run's summary of a recipe."""
    text = store.read_text(summary_path(recipe))
    if text is None:
        raise UserError(f"the recipe {recipe} has not run yet in the store {store.url}: `olmoflow run end-to-end` first")
    return RunSummary(**json.loads(text))
