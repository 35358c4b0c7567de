"""What the training of each evaluated checkpoint of a run cost, beside its scores (report, Figure 1 and Table 6); tokenizers compared so."""

from __future__ import annotations

import json
from typing import Any

from flows.report_mid_training import MidTraining, Node
from tasks import report_data_training
from tasks.report_micro_anneals import AVERAGE

TOKENIZERS = "tokenizers"
EVALUATIONS = {  # and what most of the checkpoints of each are
    "checkpoints": "anneal",
    "micro-anneals": "micro-anneal",
    "learning-rates": "learning rate",
    TOKENIZERS: "pretraining",
}


class Compute(MidTraining):
    """Adds up the training runs that checkpoints came of."""

    def compute(self) -> list[report_data_training.TrainedFor]:
        """Every evaluated checkpoint once, by what its training cost; what came of an older run that is gone stands last."""
        tasks, development = self._tasks_by_checkpoint(), self._development_by_checkpoint()
        nodes = {node["id"]: node for node in self.nodes}
        found: dict[str, report_data_training.TrainedFor] = {}
        for evaluation, kind in EVALUATIONS.items():
            for evaluated in (node for node in self._of("evaluate") if _labelled(node)[0] == evaluation):
                label = f" ({_labelled(evaluated)[1]})" if _labelled(evaluated)[1] else ""
                for (told, scores), checkpoint in zip(self._evaluation(evaluated["name"]).items(), evaluated["inputs"], strict=False):
                    node = nodes.get(checkpoint)
                    if node is None or node["step"] not in ("train", "soup"):  # the unigram model stands at a held-out mix's place
                        continue
                    row = self._row(f"{told}{label}", self._kind(told, node, kind), node, scores["all"])
                    row.tasks = {score.task: score.score for score in tasks.get(checkpoint, [])}
                    row.average = development.get(checkpoint, {}).get(AVERAGE)
                    found.setdefault(checkpoint, row)
        return sorted(found.values(), key=lambda row: (row.flops is None, row.flops or 0.0))

    def tokenizers(self) -> list[report_data_training.TokenizerRow]:
        """The recipe's own tokenizer, then the others; those whose run or mix is gone are left out."""
        return [row for row in self._compared().values() if row is not None]

    def uncompared(self) -> str:
        """A sentence about tokenizers that `tokenizers` leaves out."""
        gone = ", ".join(name for name, row in self._compared().items() if row is None)
        return f"No comparison with the tokenizers {gone}: their runs or mixes are not in the store any more." if gone else ""

    def _compared(self) -> dict[str, report_data_training.TokenizerRow | None]:
        own = self.recipe.tokenizer.kind
        found = {_labelled(node)[1] or own: node for node in self._of("evaluate") if _labelled(node)[0] == TOKENIZERS}
        return {name: self._tokenizer(name, found[name]) for name in sorted(found, key=lambda name: name != own)}

    def _tokenizer(self, name: str, evaluated: Node) -> report_data_training.TokenizerRow | None:
        run = next((node for node in self._of("train") if node["id"] == evaluated["inputs"][0]), None)
        cost = self._cost(run) if run else None
        if run is None or cost is None or self.recipe.model is None:
            return None
        header, (tokens, flops, _) = self._header(run), cost
        return report_data_training.TokenizerRow(
            name=name,
            vocabulary=header["vocab_size"],
            documents=header["documents"],
            bytes=header["bytes"],
            tokens=header["tokens"],
            steps=self._books(run).kept,
            trained_tokens=tokens,
            trained_bytes=round(header["bytes"] * tokens / header["tokens"]),
            parameters=self.recipe.model.config(header["vocab_size"], self.recipe.sequence_length).num_parameters(),
            flops=float(flops),
            scores=self._evaluation(evaluated["name"])["pretrained"],
            tasks=self._development_by_checkpoint().get(run["id"], {}),
        )

    def _kind(self, name: str, node: Node, kind: str) -> str:
        if node["step"] == "soup":
            return "soup"
        return "pretraining" if name == "pretrained" else kind

    def _row(self, name: str, kind: str, node: Node, score: report_data_training.Score) -> report_data_training.TrainedFor:
        runs = self._runs_of(node["id"])
        costs = [self._cost(run) for run in runs.values() if run is not None]
        if None in runs.values() or None in costs:
            return report_data_training.TrainedFor(name, kind, None, None, None, score.bits_per_byte)
        tokens, flops, kaplan = (sum(column) for column in zip(*(cost for cost in costs if cost is not None), strict=True))
        return report_data_training.TrainedFor(name, kind, int(tokens), float(flops), float(kaplan), score.bits_per_byte)

    def _runs_of(self, checkpoint: str) -> dict[str, Node | None]:
        """The training runs that a checkpoint came of, by id, its own among them; None for one that the store does not hold any more."""
        node = next(each for each in self.nodes if each["id"] == checkpoint)
        runs: dict[str, Node | None] = {}
        if node["step"] == "train":
            runs[checkpoint] = node if node in self._of("train") else None
        steps = {each["id"]: each["step"] for each in self.nodes}
        for name in node["inputs"]:
            if steps.get(name) in ("train", "soup"):
                runs |= self._runs_of(name)
        return runs

    def _cost(self, run: Node) -> tuple[int, int, int] | None:
        """Tokens of a training run, its FLOPs as `olmoflow plan` counts them, and as the report's Table 6 does; of this run alone."""
        header = self._header(run)
        if not header or self.recipe.model is None:
            return None
        model = self.recipe.model.config(header["vocab_size"], self.recipe.sequence_length)
        tokens = self._books(run).counts["tokens"]
        return tokens, tokens * model.flops_per_token(self.recipe.sequence_length), tokens * model.kaplan_flops_per_token()

    def _header(self, run: Node) -> dict[str, Any]:
        """Of the mix that a run was trained on; empty where that is gone."""
        mix = next((node for node in self._of("mix") if node["id"] in run["inputs"]), None)
        return dict(json.loads(self._file(mix, "mix.json").read_text())) if mix else {}


def _labelled(node: Node) -> tuple[str, str]:
    """The name of an evaluation, and the other tokenizer that it is under, if any."""
    name, _, label = node["name"].partition(" (")
    return name, label.removesuffix(")")
