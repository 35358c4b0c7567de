"""`olmoflow why`: what differs between a step as a recipe asks for it now and its last artifact in the store, down to the root causes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.differences import Difference, differences, files_differ
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import summary_path
from tasks import downstream, shard_tasks
from tasks.engine import LocalEngine
from tasks.errors import RecipeError
from tasks.shard_tasks import StoredTask, StoredTasks
from tasks.shards import Artifact, Runner, ShardTask, Step, key_libraries
from tasks.storage import asking_once
from tasks.store import Store

Manifest = dict[str, Any]


@dataclass
class Why:
    """Why shards of an artifact would be made, or `to_make` 0: it would be reused.

    last: id and date of the artifact that it is compared with. reasons: what differs in itself, in words; differences: those of its config.
    inputs: the inputs that changed, each with its own reasons.
    """

    step: str
    name: str
    id: str
    shards: int
    to_make: int
    last: dict[str, str] | None = None
    reasons: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    inputs: list[Why] = field(default_factory=list)

    @property
    def called(self) -> str:
        return f"{self.step} {self.name}".strip()

    def root_causes(self) -> dict[str, list[str]]:
        """What began it, in words, with the shortest way from there to this artifact: names of artifacts."""
        found: dict[str, list[str]] = {}
        paths: list[list[Why]] = [[self]]
        for path in paths:  # which grows: the nearest first
            here = path[-1]
            for words in [*here.reasons, *map(str, here.differences)]:
                found.setdefault(f"{here.called}: {words}", [each.called for each in reversed(path)])
            paths += [[*path, each] for each in here.inputs]
        return found


def explain(recipe: Recipe, step: str, name: str | None) -> list[Why]:
    """One for each artifact of the step, or for those of one name. Raises RecipeError where the recipe has no such step or name in it."""
    plan = Plan(Store(recipe.store), LocalEngine(1), plan_only=True)
    everything(Pipeline(recipe, plan))
    artifacts = list(plan.artifacts.values())
    found = [artifact for artifact in artifacts if artifact.step == step]
    if not found:
        steps = ", ".join(dict.fromkeys(artifact.step for artifact in artifacts))
        raise RecipeError(f"the recipe {recipe.name} has no step {step!r}; it has {steps}")
    chosen = [artifact for artifact in found if name is None or name in (artifact.name, artifact.name.split(":")[0])]
    if not chosen:
        raise RecipeError(f"the step {step} has no {name!r}; it has {', '.join(artifact.name for artifact in found)}")
    comparison = _Comparison(plan, recipe)
    return [comparison.why(artifact, comparison.last(artifact)) for artifact in chosen]


@dataclass
class Plan(Runner):
    """Runs nothing, and remembers what was asked for."""

    asked: dict[str, tuple[Step, Sequence[ShardTask]]] = field(default_factory=dict)

    def run(self, step: Step, name: str, tasks: Sequence[ShardTask], **options: Any) -> Artifact:
        artifact = super().run(step, name, tasks, **options)
        self.asked[artifact.id] = step, tasks
        return artifact


def everything(pipeline: Pipeline) -> None:
    """Plan all that the flows of a recipe may make."""
    recipe = pipeline.recipe
    with asking_once():
        pipeline.corpus()
        pipeline.end_to_end()
        if recipe.learning_rates is not None:
            pipeline.learning_rates_all()
        if recipe.other_tokenizers and recipe.pretrain is not None:
            pipeline.tokenizers_all()
        if recipe.pretrain is not None and downstream.names("held_out", recipe.evaluation.tasks):
            pipeline.evaluate_held_out()


class _Comparison:
    def __init__(self, plan: Plan, recipe: Recipe) -> None:
        self.plan, self.store = plan, plan.store
        self.made_of = {(artifact.step, key): artifact for artifact in plan.artifacts.values() for key in artifact.keys}
        self.manifests: dict[str, Manifest | None] = {}
        self.known: dict[tuple[str, str | None], Why] = {}
        newest = json.loads(self.store.read_text(summary_path(recipe.name)) or "{}")
        self.used: dict[str, str] = dict.fromkeys(newest.get("artifacts", {}), newest.get("started", ""))

    def last(self, artifact: Artifact) -> Manifest | None:
        """Of the artifacts of this step and name, the one that was made, or used by the recipe's newest run, last."""
        identities = [name.removesuffix(".json") for name in self.store.names(f"artifacts/{artifact.step}")]
        manifests = [manifest for identity in identities if (manifest := self.manifest(identity)) and manifest["name"] == artifact.name]
        return max(manifests, key=lambda each: (max(each["created"], self.used.get(each["id"], "")), each["id"]), default=None)

    def manifest(self, identity: str) -> Manifest | None:
        if identity not in self.manifests:
            text = self.store.read_text(f"artifacts/{identity.rpartition('-')[0]}/{identity}.json")
            self.manifests[identity] = json.loads(text) if text else None
        return self.manifests[identity]

    def why(self, artifact: Artifact, last: Manifest | None) -> Why:
        place = artifact.id, str(last["id"]) if last else None
        if place not in self.known:
            self.known[place] = self._why(artifact, last)
        return self.known[place]

    def _why(self, artifact: Artifact, last: Manifest | None) -> Why:
        missing = sum(record is None for record in artifact.records)
        told = Why(artifact.step, artifact.name, artifact.id, len(artifact.keys), missing)
        if last is not None:
            told.last = {"id": last["id"], "created": last["created"]}
        if last is None:
            told.reasons.append("nothing of this step and name is in the store" if missing else "it is there")
        elif last["id"] != artifact.id:
            self._compare(told, artifact, last)
        elif missing:
            told.reasons.append(f"{missing:,} of its {len(artifact.keys):,} shards are gone from the store, or not whole any more")
        return told

    def _compare(self, told: Why, artifact: Artifact, last: Manifest) -> None:
        step, tasks = self.plan.asked[artifact.id]
        now, before = shard_tasks.stored(tasks), shard_tasks.read(self.store, last["step"], last["id"])
        if step.version != last["version"]:
            told.reasons.append(f"the step's version: {last['version']} -> {step.version}")
        told.reasons += _libraries(step, last, before)
        told.differences = differences(
            _configs(now[: None if before else 1]), _configs(before.shards) if before else [("", last["config"])]
        )
        told.reasons += _files(now, before, last)
        self._inputs(told, artifact, now, before, last)
        if not (told.reasons or told.differences or told.inputs):
            told.reasons.append(
                "its inputs come in another order"
                if before
                else "its last artifact was made by an older olmoflow, which kept too little to tell what differs"
            )

    # -- inputs ------------------------------------------------------------------------------------------------------------------

    def _inputs(self, told: Why, artifact: Artifact, now: list[StoredTask], before: StoredTasks | None, last: Manifest) -> None:
        if before is None:
            new = {_place(self.plan.artifacts[each]): {each} for each in artifact.inputs if each in self.plan.artifacts}
            old = {_named(manifest): {manifest["id"]} for manifest in map(self.manifest, last["inputs"]) if manifest}
        else:
            new, old = self._read_now(now), self._read_before(before, last)
        changed = [place for place in new if place in old and new[place] != old[place]]
        appeared, gone = [place for place in new if place not in old], [place for place in old if place not in new]
        by_place = {_place(each): each for each in self.plan.artifacts.values()}
        descent = {_named(manifest): manifest for manifest in self._descent(last)}
        told.inputs += [self.why(by_place[place], descent.get(place)) for place in changed]
        for place in appeared:
            instead = next((each for each in gone if each[0] == place[0]), None)
            if instead is not None:
                gone.remove(instead)
            told.reasons.append(
                f"it reads {_words(place)}" + (f" in place of {_words(instead)}" if instead else ", which it did not before")
            )
        told.reasons += [f"it reads {_words(place)} no more" for place in gone]

    def _read_now(self, tasks: list[StoredTask]) -> dict[tuple[str, str], set[str]]:
        """The contents that shards read of each artifact, by its step and name."""
        found: dict[tuple[str, str], set[str]] = {}
        for item in (item for task in tasks for item in task.all_inputs() if item.step):
            made = self.made_of.get((item.step, item.key))
            found.setdefault(_place(made) if made else (item.step, ""), set()).add(item.content)
        return found

    def _read_before(self, tasks: StoredTasks, last: Manifest) -> dict[tuple[str, str], set[str]]:
        names = {(manifest["step"], key): manifest["name"] for manifest in self._descent(last) for key in manifest["shards"]}
        found: dict[tuple[str, str], set[str]] = {}
        for item in (item for task in tasks.shards for item in task.all_inputs() if item.step):
            found.setdefault((item.step, names.get((item.step, item.key), "")), set()).add(item.content)
        return found

    def _descent(self, manifest: Manifest) -> Iterator[Manifest]:
        """The manifests of all that an artifact was made of, as far as they are there."""
        waiting, seen = list(manifest["inputs"]), set[str]()
        while waiting:
            identity = waiting.pop()
            if identity not in seen:
                seen.add(identity)
                found = self.manifest(identity)
                if found is not None:
                    yield found
                    waiting += found["inputs"]


def _place(artifact: Artifact) -> tuple[str, str]:
    return artifact.step, artifact.name


def _named(manifest: Manifest) -> tuple[str, str]:
    return manifest["step"], manifest["name"]


def _words(place: tuple[str, str]) -> str:
    return " ".join(place) if place[1] else f"a {place[0]} that is not in the store any more"


def _configs(tasks: Iterable[StoredTask]) -> list[tuple[str, dict[str, Any]]]:
    return [(task.name, json.loads(json.dumps(task.config))) for task in tasks]


def _libraries(step: Step, last: Manifest, before: StoredTasks | None) -> list[str]:
    old: Mapping[str, str] = before.libraries if before else {name: last["software"].get(name, "unknown") for name in step.libraries}
    new = key_libraries(step)
    return [
        f"the library {name}: {old.get(name, 'of no matter')} -> {new.get(name, 'of no matter')}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _files(now: list[StoredTask], before: StoredTasks | None, last: Manifest) -> list[str]:
    new = [item.raw for task in now for item in task.all_inputs() if item.raw is not None]
    old = [item.raw for task in before.shards for item in task.all_inputs() if item.raw is not None] if before else last["raw_files"]
    return files_differ(new, old)


# -- told ----------------------------------------------------------------------------------------------------------------------------


def lines(why: Why) -> Iterator[str]:
    """A paragraph: what would be made, then the root causes, each with its way here."""
    last = f"the last is {why.last['id']} of {why.last['created']}" if why.last else "none was made before"
    if not why.to_make:
        yield (
            f"{why.called}: nothing differs, it would be reused"
            if not why.root_causes() or why.last is None
            else (f"{why.called}: it would be reused, {why.id} is there; {last}, from which it differs:")
        )
    else:
        reused = f", {why.shards - why.to_make:,} are reused" if why.to_make < why.shards else ""
        yield f"{why.called}: {why.to_make:,} of {why.shards:,} shards would be made{reused}; {last}"
    if not why.to_make and why.last is None:
        return
    for cause, way in sorted(why.root_causes().items(), key=lambda item: -len(item[1])):
        yield f"  {cause}"
        if len(way) > 1:
            yield f"    by way of {' -> '.join(way)}"


def as_json(why: Why) -> dict[str, Any]:
    causes = [{"cause": cause, "way": way} for cause, way in why.root_causes().items()]
    return {**{name: value for name, value in asdict(why).items() if name != "inputs"}, "root_causes": causes}
