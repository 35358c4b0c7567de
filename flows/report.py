"""The report of a recipe's newest run: gathers what the store holds of it and writes one self-contained HTML file."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml

from flows.recipe import Recipe
from flows.recipe_training import MICRO, mix_soup
from flows.summary import RunSummary, load_summary
from tasks import annotate, contamination, corpus, evaluate, report_data, soup
from tasks.measure import Hits, Measured
from tasks.report_micro_anneals import gpu_hours, mean_scores
from tasks.report_page import render
from tasks.report_scores import source_scores
from tasks.scorers import ContaminationConfig
from tasks.shards import ShardRef, input_files
from tasks.store import Books, Record, Store

Node = dict[str, Any]  # an artifact of a run's summary


def write_report(recipe: Recipe) -> str:
    """Write `reports/NAME.html` in the store and return where it lies."""
    store = Store(recipe.store)
    summary = load_summary(store, recipe.name)
    path = f"reports/{recipe.name}.html"
    # the recipe as it ran, not as its file reads now
    store.replace(path, render(Gathering(store, Recipe.model_validate(summary.recipe), summary).data()))
    return str(Path(store.full(path)).resolve()) if store.is_local else f"{recipe.store.rstrip('/')}/{path}"


class Gathering:
    """Reads a run's artifacts into the report's dataclasses; what the run did not do stays empty."""

    def __init__(self, store: Store, recipe: Recipe, summary: RunSummary) -> None:
        self.store, self.recipe, self.summary = store, recipe, summary
        self.nodes: list[Node] = [{"id": name, **node} for name, node in summary.artifacts.items()]
        self.records: dict[str, list[Record]] = {node["id"]: self._records(node) for node in self.nodes}

    def _records(self, node: Node) -> list[Record]:
        found = (self.store.record(node["step"], key) for key in node["keys"])
        return [record for record in found if record is not None]

    def _of(self, step: str) -> list[Node]:
        """The artifacts of a step that are whole."""
        return [node for node in self.nodes if node["step"] == step and len(self.records[node["id"]]) == len(node["keys"])]

    def _books(self, node: Node) -> Books:
        return sum((record.books for record in self.records[node["id"]]), Books())

    def _file(self, node: Node, name: str) -> Path:
        return input_files(self.store, ShardRef(node["step"], node["keys"][0]))[name]

    def data(self) -> report_data.ReportData:
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
                )
                if text
            ],
            model_name=self.recipe.model.preset or "" if self.recipe.model else "",
            model_parameters=self._parameters(),
            flows=[flow for flow in map(self._flow, self.recipe.sources) if flow.stages],
            scores=[self._scores(node) for node in self._of("select") if not self._gone(node)],
            files=self._files(),
            annotations=[self._annotation(node) for node in self._of("annotate")],
            classifiers=[found for node in self._of("train-scorer") if (found := self._classifier(node)) is not None],
            mixes=[self._mix(node) for node in self._of("mix")],
            contamination=[self._place(node) for node in self._of("contamination")],
            runs=[self._run(node) for node in self._of("train")],
            micro_anneals=self.micro_anneals(),
            checkpoints=self._checkpoints(),
            soups=self._soups(),
            tried_soups=self._tried_soups(),
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

    def _parameters(self) -> int | None:
        headers = [json.loads(self._file(node, "mix.json").read_text()) for node in self._of("mix")]
        if self.recipe.model is None or not headers:
            return None
        return self.recipe.model.config(headers[0]["vocab_size"], self.recipe.sequence_length).num_parameters()

    # -- documents and files -----------------------------------------------------------------------------------------------------

    def _flow(self, source: str) -> report_data.SourceFlow:
        stages, tokens = [], None
        for step in ("ingest", "select"):
            for node in self._of(step):
                if node["name"] == source:
                    books = self._books(node)
                    losses = [report_data.Loss(reason, count) for reason, count in books.dropped.items()]
                    if books.quarantined:
                        losses.append(report_data.Loss("quarantined", books.quarantined, quarantined=True))
                    stages.append(report_data.Stage(step, books.unit, books.read, books.kept, losses))
                    tokens = books.counts.get("tokens") if step == "select" else tokens
        return report_data.SourceFlow(source, stages, tokens)

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
                for entry in self._files_of(node, label.format(node["name"])):
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

    def _mix(self, node: Node) -> report_data.Mix:
        rows = [
            report_data.MixRow(row["source"], row["available_tokens"], row["tokens"], row["documents"], row["repeat"])
            for row in json.loads(self._file(node, "composition.json").read_text())
        ]
        users = [run["name"] for run in self._of("train") if node["id"] in run["inputs"]]
        return report_data.Mix(node["name"], rows, users)

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

    def _run(self, node: Node) -> report_data.TrainingRun:
        kind: Literal["pretrain", "micro-anneal", "anneal"] = "pretrain"
        if node["name"] != "pretrain":
            kind = "micro-anneal" if node["name"].startswith(MICRO) else "anneal"
        metrics = self._metrics(node)
        mix = next((other["name"] for other in self._of("mix") if other["id"] in node["inputs"]), "")
        start = next((other for other in self._of("train") if other["id"] in node["inputs"]), None)
        before = self._books(start).counts["tokens"] if start else 0
        return report_data.TrainingRun.from_metrics(node["name"], kind, metrics, mix, before)

    def _evaluation(self, name: str) -> dict[str, dict[str, report_data.Score]]:
        node = next((node for node in self._of("evaluate") if node["name"] == name), None)
        if node is None:
            return {}
        scores = json.loads(self._file(node, evaluate.FILE).read_text())["checkpoints"]
        return {
            model: {source: report_data.Score(score["bits_per_byte"], score["loss"]) for source, score in by_source.items()}
            for model, by_source in scores.items()
        }

    def micro_anneals(self) -> list[report_data.MicroAnneal]:
        """The rows of the micro-anneal table: the baseline, then the recipe's order."""
        node = next((node for node in self._of("evaluate") if node["name"] == "micro-anneals"), None)
        if node is None:
            return []
        scores = self._evaluation("micro-anneals")
        # by their place, since one run may stand in several experiments: the artifact then has the name of one of them
        runs = dict(zip(scores, node["inputs"], strict=False))
        rows = [report_data.MicroAnneal(name, each, baseline=True) for name, each in scores.items() if name == "pretrained"]
        for name, micro in self.recipe.micro_anneals.items():
            labels = {run.label: str(run.seed) for run in micro.runs(name) if run.label in scores}
            if labels:
                rows.append(
                    self._micro_anneal(name, {seed: scores[label] for label, seed in labels.items()}, [runs[label] for label in labels])
                )
        return rows

    def _micro_anneal(self, name: str, by_seed: dict[str, dict[str, report_data.Score]], runs: list[str]) -> report_data.MicroAnneal:
        trained = {node["id"]: node for node in self._of("train")}
        row = report_data.MicroAnneal(
            name, mean_scores(list(by_seed.values())), self.recipe.micro_anneals[name].experiment, by_seed=by_seed
        )
        row.tested = list(self.recipe.micro_anneals[name].sources)
        if any(run not in trained for run in runs):
            return row
        mix = next((other for other in self._of("mix") if other["id"] in trained[runs[0]]["inputs"]), None)
        if mix is not None:
            taken = self._mix(mix).rows
            web = sum(source.tokens for source in taken if source.source in self.recipe.micro_anneals[name].general)
            row.web_ratio = web / sum(source.tokens for source in taken)
        lines = [self._metrics(trained[run]) for run in runs]
        row.tokens = lines[0][-1]["tokens"]
        row.gpu_hours = gpu_hours([line for run in lines for line in run])
        anneal = self._anneal_tokens()
        row.anneal_share = sum(run[-1]["tokens"] for run in lines) / anneal if anneal else None
        return row

    def _anneal_tokens(self) -> int | None:
        """Tokens of one full anneal, the recipe's first; None where there is none, or its mix is not made."""
        if self.recipe.anneal is None or self.recipe.pretrain is None:
            return None
        first, batch = self.recipe.anneal.runs()[0], self.recipe.pretrain.global_batch_instances
        steps = first.steps
        if steps is None:
            made = next((node for node in self._of("mix") if node["name"] == first.mix), None)
            steps = json.loads(self._file(made, "mix.json").read_text())["instances"] // batch if made else None
        return None if steps is None else steps * batch * self.recipe.sequence_length

    def _metrics(self, node: Node) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file(node, "metrics.jsonl").read_text().splitlines()]

    def _checkpoints(self) -> list[report_data.Checkpoint]:
        roles: dict[str, Literal["pretrained", "ingredient", "soup", "baseline"]] = {
            "pretrained": "pretrained",
            "soup": "soup",
            evaluate.UNIGRAM: "baseline",
        }
        if self.recipe.anneal is not None:
            roles |= {mix_soup(mix): "soup" for mix in self.recipe.anneal.by_mix()}
        return [
            report_data.Checkpoint(name, roles.get(name, "ingredient"), scores) for name, scores in self._evaluation("checkpoints").items()
        ]

    def _soups(self) -> list[report_data.SoupRow]:
        """For each mix its best anneal and its soup, then all anneals and the soup of all."""
        scores, config = self._evaluation("checkpoints"), self.recipe.anneal
        if config is None:
            return []
        groups = config.by_mix()
        soups = {mix: mix_soup(mix) for mix in groups} if len(groups) > 1 else dict.fromkeys(groups, "soup")
        if len(groups) > 1:
            groups, soups = {**groups, "all of them": [run.name for run in config.runs()]}, {**soups, "all of them": "soup"}
        rows = []
        for mix, names in groups.items():
            singles = [name for name in names if name in scores]
            if singles and soups[mix] in scores:
                best = min(singles, key=lambda name: scores[name]["all"].bits_per_byte)
                kind = "" if soups[mix] != "soup" or config.soup.kind == "uniform" else f"{config.soup.kind} "
                rows.append(report_data.SoupRow(mix, best, scores[best], f"{kind}soup of {len(names)}", scores[soups[mix]]))
        return rows

    def _tried_soups(self) -> list[report_data.TriedSoup]:
        node = next((node for node in self._of("soup") if node["name"] == "soup"), None)
        if node is None or self.recipe.anneal is None or self.recipe.anneal.soup.kind != "greedy":
            return []
        return [report_data.TriedSoup(**tried) for tried in json.loads(self._file(node, soup.GREEDY).read_text())["tried"]]

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
