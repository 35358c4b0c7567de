"""Micro-anneals, anneals, soups and the learning-rate study of a run, as the store holds them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from flows.recipe import Recipe
from flows.recipe_training import mix_soup
from flows.summary import RunSummary
from flows.tables import in_order
from tasks import downstream, evaluate, report_data, report_data_training, soup
from tasks.olmes.run import SCORES
from tasks.report_micro_anneals import AVERAGE, by_experiment, gpu_hours, mean_scores
from tasks.shards import ShardRef, input_files
from tasks.store import Books, Record, Store

Node = dict[str, Any]  # an artifact of a run's summary


class MidTraining:
    """Reads what a run trained and scored into the report's dataclasses; what the run did not do stays empty."""

    def __init__(self, store: Store, recipe: Recipe, summary: RunSummary) -> None:
        self.store, self.recipe, self.summary = store, recipe, summary
        self.nodes: list[Node] = [{"id": name, **node} for name, node in summary.artifacts.items()]
        self.records: dict[str, list[Record]] = {node["id"]: self._records(node) for node in self.nodes}

    def _records(self, node: Node) -> list[Record]:
        return [record for record in self.store.records(node["step"], node["keys"]) if record is not None]

    def _of(self, step: str) -> list[Node]:
        """The artifacts of a step that are whole."""
        return [node for node in self.nodes if node["step"] == step and len(self.records[node["id"]]) == len(node["keys"])]

    def _books(self, node: Node) -> Books:
        return sum((record.books for record in self.records[node["id"]]), Books())

    def _file(self, node: Node, name: str) -> Path:
        return input_files(self.store, ShardRef(node["step"], node["keys"][0]))[name]

    def _mix(self, node: Node) -> report_data.Mix:
        rows = [
            report_data.MixRow(row["source"], row["available_tokens"], row["tokens"], row["documents"], row["repeat"])
            for row in in_order(json.loads(self._file(node, "composition.json").read_text()), self.recipe, node["name"])
        ]
        users = [run["name"] for run in self._of("train") if node["id"] in run["inputs"]]
        return report_data.Mix(node["name"], rows, users)

    def _evaluation(self, name: str) -> dict[str, dict[str, report_data_training.Score]]:
        node = next((node for node in self._of("evaluate") if node["name"] == name), None)
        if node is None:
            return {}
        scores = json.loads(self._file(node, evaluate.FILE).read_text())["checkpoints"]
        return {
            model: {source: report_data_training.Score(score["bits_per_byte"], score["loss"]) for source, score in by_source.items()}
            for model, by_source in scores.items()
        }

    def micro_anneals(self) -> list[report_data_training.MicroAnneal]:
        """The rows of the micro-anneal table: the baseline, then the recipe's order."""
        node = next((node for node in self._of("evaluate") if node["name"] == "micro-anneals"), None)
        if node is None:
            return []
        scores = self._evaluation("micro-anneals")
        # by their place, since one run may stand in several experiments: the artifact then has the name of one of them
        runs = dict(zip(scores, node["inputs"], strict=False))
        on_tasks = self._development_by_checkpoint()
        rows = [
            report_data_training.MicroAnneal(name, each, baseline=True, tasks=on_tasks.get(runs[name], {}))
            for name, each in scores.items()
            if name == "pretrained"
        ]
        for name, micro in self.recipe.micro_anneals.items():
            labels = {run.label: str(run.seed) for run in micro.runs(name) if run.label in scores}
            if labels:
                row = self._micro_anneal(name, {seed: scores[label] for label, seed in labels.items()}, [runs[label] for label in labels])
                if all(runs[label] in on_tasks for label in labels):
                    row.tasks_by_seed = {seed: on_tasks[runs[label]] for label, seed in labels.items()}
                    row.tasks = {
                        task: fmean(each[task] for each in row.tasks_by_seed.values()) for task in on_tasks[runs[next(iter(labels))]]
                    }
                rows.append(row)
        return by_experiment(rows)

    def _development_by_checkpoint(self) -> dict[str, dict[str, float]]:
        """Scores on development's tasks by the id of the checkpoint, their average first where there are several."""
        found = {}
        for checkpoint, scores in self._tasks_by_checkpoint().items():
            tasks = {score.task: score.score for score in scores if score.suite == "development"}
            if tasks:
                found[checkpoint] = {AVERAGE: fmean(tasks.values()), **tasks} if len(tasks) > 1 else tasks
        return found

    def _micro_anneal(
        self, name: str, by_seed: dict[str, dict[str, report_data_training.Score]], runs: list[str]
    ) -> report_data_training.MicroAnneal:
        trained = {node["id"]: node for node in self._of("train")}
        row = report_data_training.MicroAnneal(
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
        anneal = self._anneal_tokens()
        for run in runs:
            lines = self._metrics(trained[run])
            row.tokens = int(lines[-1]["tokens"])
            row.hours_by_run[run] = gpu_hours(lines)
            row.share_by_run[run] = row.tokens / anneal if anneal else None
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

    def _checkpoints(self) -> list[report_data_training.Checkpoint]:
        roles: dict[str, Literal["pretrained", "ingredient", "soup", "baseline"]] = {
            "pretrained": "pretrained",
            "soup": "soup",
            evaluate.UNIGRAM: "baseline",
        }
        if self.recipe.anneal is not None:
            roles |= {mix_soup(mix): "soup" for mix in self.recipe.anneal.by_mix()}
        return [
            report_data_training.Checkpoint(name, roles.get(name, "ingredient"), scores)
            for name, scores in self._evaluation("checkpoints").items()
        ]

    def learning_rates(self) -> list[report_data_training.RateRow]:
        """The rows of the learning-rate study, peak by peak."""
        node = next((node for node in self._of("evaluate") if node["name"] == "learning-rates"), None)
        if node is None or self.recipe.learning_rates is None:
            return []
        scores, trained = self._evaluation("learning-rates"), {each["id"]: each for each in self._of("train")}
        nodes = {name: trained[run] for name, run in zip(scores, node["inputs"], strict=False) if run in trained}
        tokens = {name: self._books(each).counts["tokens"] for name, each in nodes.items()}
        rows = []
        for run in self.recipe.learning_rates.runs():
            before = run._replace(decay=None).name
            if run.name in nodes and before in nodes:
                losses = [line["loss"] for line in self._metrics(nodes[run.name])]
                mix = next((other["name"] for other in self._of("mix") if other["id"] in nodes[run.name]["inputs"]), "")
                last = losses[-max(1, len(losses) // 20) :]
                decayed = tokens[run.name] if run.decay else 0
                rows.append(
                    report_data_training.RateRow(run.peak, tokens[before], run.decay or "", decayed, mix, fmean(last), scores[run.name])
                )
        return rows

    def _soups(self) -> list[report_data_training.SoupRow]:
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
                told = f"soup of {len(names)}"
                if soups[mix] == "soup" and config.soup.kind == "weighted":
                    told = f"weighted {told}"
                elif soups[mix] == "soup" and config.soup.kind == "greedy":
                    kept = [tried.ingredients for tried in self._tried_soups() if tried.kept]
                    told = f"greedy soup, {len(kept[-1])} of {len(names)}" if kept else "greedy soup"
                rows.append(report_data_training.SoupRow(mix, best, scores[best], told, scores[soups[mix]]))
        return rows

    def _tried_soups(self) -> list[report_data_training.TriedSoup]:
        node = next((node for node in self._of("soup") if node["name"] == "soup"), None)
        if node is None or self.recipe.anneal is None or self.recipe.anneal.soup.kind != "greedy":
            return []
        return [report_data_training.TriedSoup(**tried) for tried in json.loads(self._file(node, soup.GREEDY).read_text())["tried"]]

    def _tasks_by_checkpoint(self) -> dict[str, list[report_data_training.TaskScore]]:
        """Scores on tasks by the id of the train or soup artifact; one checkpoint may bear several names."""
        models = {node["id"]: node for node in self._of("model")}
        found: dict[str, list[report_data_training.TaskScore]] = {}
        for node in self._of("downstream"):
            model = next((models[name] for name in node["inputs"] if name in models), None)
            if model is not None:
                found.setdefault(model["inputs"][0], []).extend(self._task_scores(node))
        return found

    def _task_scores(self, node: Node) -> list[report_data_training.TaskScore]:
        found = []
        for key in node["keys"]:
            told = json.loads(input_files(self.store, ShardRef(node["step"], key))[SCORES].read_text())
            forms = {form: ways[told["normalization"] if form == "cf" else "none"]["score"] for form, ways in told.get("forms", {}).items()}
            found.append(
                report_data_training.TaskScore(
                    node["name"].removesuffix(downstream.HELD_OUT),
                    told["task"],
                    told["suite"],
                    told["metric"],
                    told["score"],
                    told["standard_error"],
                    told["instances"],
                    told.get("form", ""),
                    forms,
                    told["bits_per_byte"]["score"] if "bits_per_byte" in told else None,
                    max(each["cut"] for each in told["runs"].values()),
                )
            )
        return found
