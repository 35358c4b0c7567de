"""The report of a recipe's newest run: gathers what the store holds of it and writes one self-contained HTML file."""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from flows.recipe import Recipe
from flows.recipe_training import MICRO
from flows.report_compute import Compute
from flows.report_mid_training import Node
from flows.summary import load_summary
from tasks import annotate, contamination, corpus, evaluate, report_data, report_data_training, rewrite
from tasks.measure import Hits, Measured
from tasks.readable import compact
from tasks.report_page import render
from tasks.report_scores import source_scores
from tasks.scorers import ContaminationConfig
from tasks.store import Books, Store
from tasks.train_tokenizer import FROM_FILE


def write_report(recipe: Recipe) -> str:
    """Write the report of the recipe's newest run into the store and return where it lies."""
    store = Store(recipe.store)
    summary = load_summary(store, recipe.name)
    # the recipe as it ran, not as its file reads now
    return write(Gathering(store, Recipe.model_validate(summary.recipe), summary))


def write(gathering: Gathering) -> str:
    """Write `reports/NAME.html` and return where it lies."""
    gathering.store.replace(f"reports/{gathering.recipe.name}.html", render(gathering.data()))
    return place(gathering.store, gathering.recipe.name)


def place(store: Store, name: str) -> str:
    """Where the report of a recipe of this name lies: a whole path, or a URL."""
    path = f"reports/{name}.html"
    return str(Path(store.full(path)).resolve()) if store.is_local else f"{store.url.rstrip('/')}/{path}"


class Gathering(Compute):
    """Reads a run's artifacts into the report's dataclasses; what the run did not do stays empty."""

    def data(self) -> report_data.ReportData:
        """All of it; scores read columns of documents, and files walk folders of raw ones."""
        scores = [self._scores(node) for node in self._of("select") if not self._gone(node)]
        return replace(self.figures, scores=scores, files=self._files())

    @cached_property
    def figures(self) -> report_data.ReportData:
        """What manifests and small files tell."""
        config = self.summary.recipe
        return report_data.ReportData(
            run=f"{self.summary.flow} {self.recipe.name}",
            recipe_name=self.recipe.name,
            created=self.summary.started,
            machine=self.summary.machine,
            versions=self.summary.software,
            seconds=self.summary.seconds,
            notices=[
                text
                for text in (
                    config["description"],
                    corpus.describe() if config["sample_corpus"] else "",
                    self._unevaluated(),
                    self._unseen(),
                    self.uncompared(),
                    self._not_searched_for(),
                )
                if text
            ],
            model_name=self.recipe.model.preset or "" if self.recipe.model else "",
            model_parameters=self._parameters(),
            flows=[flow for flow in map(self._flow, self.recipe.sources) if flow.stages],
            annotations=[self._annotation(node) for node in self._of("annotate")],
            classifiers=[found for node in self._of("train-scorer") if (found := self._classifier(node)) is not None],
            mixes=[self._mix(node) for node in self._of("mix")],
            contamination=[self._place(node) for node in self._of("contamination")],
            runs=[self._run(node) for node in self._of("train")],
            micro_anneals=self.micro_anneals(),
            checkpoints=self._checkpoints(),
            learning_rates=self.learning_rates(),
            soups=self._soups(),
            tried_soups=self._tried_soups(),
            tasks=[score for node in self._of("downstream") for score in self._task_scores(node)],
            tokenizers=self.tokenizers(),
            compute=self.compute(),
            artifacts=[self._artifact(node) for node in self.nodes if self.records[node["id"]]],
            recipe=yaml.safe_dump(_without_defaults(self.recipe), sort_keys=False, allow_unicode=True),
        )

    def _unevaluated(self) -> str:
        """A sentence about sources too small to have a held-out document."""
        results = [json.loads(self._file(node, evaluate.FILE).read_text()) for node in self._of("evaluate")]
        names = sorted({name for result in results for name in result["nothing_held_out"]})
        return (
            f"No held-out document, and so no evaluation, of {', '.join(names)}: the source is too small for held_out.share."
            if names
            else ""
        )

    def _gone(self, node: Node) -> list[str]:
        """Inputs of an artifact that are not whole any more."""
        return [other["id"] for other in self.nodes if other["id"] in node["inputs"] and other not in self._of(other["step"])]

    def _unseen(self) -> str:
        """A sentence about sources of which only the selection is left in the store."""
        names = sorted(node["name"] for node in self._of("select") if self._gone(node))
        return f"No scores and cuts of {', '.join(names)}: their documents or scores are not in the store any more." if names else ""

    def _not_searched_for(self) -> str:
        """A sentence about files of evaluated tasks that no scorer has looked for in what the models were trained on."""
        scorers = {name: entry for name, entry in self.recipe.scorers.items() if isinstance(entry.scorer, ContaminationConfig)}
        if any(entry.train is None for entry in scorers.values()):  # an index that is there does not say of which files it is
            return ""
        searched = {file["url"] for node in self._of("train-scorer") if node["name"] in scorers for file in node["raw_files"]}
        asked = {file["url"] for node in self._of("downstream") for file in node["raw_files"]}
        names = ", ".join(sorted(map(self._shown, asked - searched)))
        return f"Sources and mixes were not searched for the evaluations in {names}: name them in a contamination scorer." if names else ""

    def _parameters(self) -> int | None:
        headers = [json.loads(self._file(node, "mix.json").read_text()) for node in self._of("mix")]
        if self.recipe.model is None or not headers:
            return None
        return self.recipe.model.config(headers[0]["vocab_size"], self.recipe.sequence_length).num_parameters()

    # -- documents and files -----------------------------------------------------------------------------------------------------

    def _flow(self, source: str) -> report_data.SourceFlow:
        stages, tokens, note = [], None, ""
        for step in ("ingest", rewrite.STEP.name, "select"):
            for node in self._of(step):
                if node["name"] == source:
                    books = self._books(node)
                    losses = [report_data.Loss(reason, count) for reason, count in books.dropped.items()]
                    if books.quarantined:
                        losses.append(report_data.Loss("quarantined", books.quarantined, quarantined=True))
                    stages.append(report_data.Stage(step, books.unit, books.read, books.kept, losses))
                    tokens = books.counts.get("tokens") if step == "select" else tokens
                    note = self._rewritten(source, books) if step == rewrite.STEP.name else note
        return report_data.SourceFlow(source, stages, tokens, note)

    def _rewritten(self, source: str, books: Books) -> str:
        config, counts = self.recipe.sources[source].rewrite, books.counts
        assert config is not None
        cost = f"{compact(counts['prompt_tokens'])} tokens asked, {compact(counts['completion_tokens'])} answered"
        return f"made of {config.source} by {config.model}: {counts['asked']:,} asked about, {cost}"

    def _scores(self, node: Node) -> report_data.SourceScores:
        source, _, subset = node["name"].partition("/")
        config = self.recipe.sources[source]
        rules = {f"scores.{name}.where": use.where for name, use in config.scores.items()}
        rules |= {"tokenize_where": config.tokenize_where.filters, "filters": config.filters}
        if subset:
            rules[f"subsets.{subset}"] = config.subsets[subset].filters
        made = [other for other in self.nodes if other["id"] in node["inputs"]] + [node]
        return source_scores(self.store, node["name"], [(other["step"], other["keys"]) for other in made], rules)

    def _files(self) -> list[report_data.FileEntry]:
        entries: dict[str, report_data.FileEntry] = {}
        for step, label in (("tokenizer", "trains the tokenizer"), ("train-scorer", "trains the scorer {}"), ("ingest", "")):
            for node in self._of(step):
                given = step == "tokenizer" and node["name"].startswith(FROM_FILE)
                for entry in self._files_of(node, "is a tokenizer" if given else label.format(node["name"])):
                    entries[entry.path] = entry
        for source, urls in self.summary.same_content.items():
            for url in urls:
                path = self._shown(url)
                entries.setdefault(
                    path, report_data.FileEntry(path, _size(url), "left out", source, why=f"the same bytes as another file of {source}")
                )
        for path, size in self._inventory():
            if path not in entries:
                why = next((rule.why for rule in self._left_out() if fnmatch.fnmatch(path, rule.paths)), None)
                entries[path] = report_data.FileEntry(path, size, "unmentioned" if why is None else "left out", why=why or "")
        return [entries[path] for path in sorted(entries)]

    def _files_of(self, node: Node, label: str) -> list[report_data.FileEntry]:
        raw = node["raw_files"]  # of this run: the manifest has the names that the files had when the artifact was first made
        if node["step"] != "ingest":
            entry = self.recipe.scorers.get(node["name"])
            evaluation = node["step"] == "train-scorer" and entry is not None and isinstance(entry.scorer, ContaminationConfig)
            label, kind = (f"looked for by {node['name']}", "evaluation") if evaluation else (label, "labelled texts")
            return [report_data.FileEntry(self._shown(file["url"]), file["size"], "read", label, kind) for file in raw]
        reader = self.recipe.sources[node["name"]].format
        return [
            report_data.FileEntry(
                self._shown(file["url"]),
                file["size"],
                "read",
                node["name"],
                reader,
                record.books.read,
                record.books.quarantined,
                record.quarantine["first"] if record.quarantine else "",
            )
            for file, record in zip(raw, self.records[node["id"]], strict=True)
        ]

    def _shown(self, url: str) -> str:
        """A file's path below the inventory's root or the working folder where it lies there, else in full."""
        path = url.removeprefix("file://")
        roots = [self.recipe.inventory.root] if self.recipe.inventory else []
        for root in (*roots, "."):
            folder = os.path.normpath(Path(root).absolute())
            if path.startswith(f"{folder}/"):
                return path[len(folder) + 1 :]
        return path

    def _inventory(self) -> list[tuple[str, int]]:
        if self.recipe.inventory is None:
            return []
        root = Path(self.recipe.inventory.root)
        return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in sorted(root.rglob("*")) if path.is_file()]

    def _left_out(self) -> list[Any]:
        return self.recipe.inventory.left_out if self.recipe.inventory else []

    # -- labels by a language model ---------------------------------------------------------------------------------------------

    def _annotation(self, node: Node) -> report_data.Annotation:
        config, books = self.recipe.annotations[node["name"]], self._books(node)
        labels = {name.removeprefix("label "): number for name, number in books.counts.items() if name.startswith("label ")}
        unusable = {cause: number for cause, number in books.dropped.items() if cause != annotate.LATER}
        tokens = books.counts["prompt_tokens"], books.counts["completion_tokens"]
        return report_data.Annotation(node["name"], config.source, config.model, books.counts["asked"], labels, unusable, *tokens)

    def _classifier(self, node: Node) -> report_data.Classifier | None:
        annotation = self.recipe.annotation_of(node["name"])
        if annotation is None:
            return None
        told = json.loads(self._file(node, "summary.json").read_text())["held_out"]
        measured = Measured(**{**told, "hits": [Hits(**hits) for hits in told["hits"]]})
        return report_data.Classifier(node["name"], annotation, self._books(node).kept, measured)

    # -- mixes and training ------------------------------------------------------------------------------------------------------

    def _place(self, node: Node) -> report_data.Place:
        """Sources as they were read, each with what is left of it once selected; mixes as they are."""
        told = json.loads(self._file(node, contamination.FILE).read_text())
        place = told["places"].get("mix") or told["places"]["read"]
        evaluations = {}
        for name, found in place["evaluations"].items():
            examples = [report_data.FoundInstance(**example) for example in found["examples"]]
            evaluations[name] = report_data.EvaluationInside(**{**found, "examples": examples})
            if "selected" in told["places"]:
                left = told["places"]["selected"]["evaluations"][name]
                evaluations[name].inside_when_selected, evaluations[name].touched_when_selected = left["inside"], left["touched"]
        kind: Literal["source", "mix"] = "mix" if "mix" in told["places"] else "source"
        name, scorer = node["name"].rsplit(": ", 1)
        several = sum(isinstance(entry.scorer, ContaminationConfig) for entry in self.recipe.scorers.values()) > 1
        shown = f"{name} ({scorer})" if several else name
        return report_data.Place(shown, kind, told["ngram"], place["documents"], evaluations, place["not_scored"], place["not_looked_at"])

    def _run(self, node: Node) -> report_data_training.TrainingRun:
        metrics = self._metrics(node)
        mix = next((other["name"] for other in self._of("mix") if other["id"] in node["inputs"]), "")
        start = next((other for other in self._of("train") if other["id"] in node["inputs"]), None)
        kind: Literal["pretrain", "micro-anneal", "anneal"] = "pretrain"
        if start is not None:
            kind = "micro-anneal" if node["name"].startswith(MICRO) else "anneal"
        before = self._books(start).counts["tokens"] if start else 0
        return report_data_training.TrainingRun.from_metrics(node["name"], kind, metrics, mix, before)

    def _artifact(self, node: Node) -> report_data.Artifact:
        records = self.records[node["id"]]
        known = {other["id"] for other in self.nodes}
        files = [stored for record in records for stored in record.files]
        return report_data.Artifact(
            node["id"],
            node["step"],
            node["name"],
            shards=len(node["keys"]),
            seconds=sum(record.seconds for record in records),
            reused=not node["made"],
            inputs=[name for name in node["inputs"] if name in known],
            rows=self._books(node).kept,
            bytes=sum(stored.bytes for stored in files),
        )


def _size(url: str) -> int:
    path = Path(url.removeprefix("file://"))
    return path.stat().st_size if path.exists() else 0


def _without_defaults(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_defaults=True)
