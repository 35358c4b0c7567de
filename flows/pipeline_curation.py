"""The first half of a recipe's artifacts: raw files to documents, their columns, their tokens and what is selected of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.recipe import Recipe
from tasks import (
    annotate,
    annotate_sample,
    clusters,
    contamination,
    duplicates,
    ingest,
    raw_files,
    rewrite,
    sample_corpus,
    score,
    select,
    signatures,
    tokenize,
    train_scorer,
    train_tokenizer,
)
from tasks.dump_files import done_files
from tasks.errors import UserError
from tasks.filters import Filter
from tasks.progress import ignore
from tasks.scorers import AnyScorerConfig, ContaminationConfig, column_names
from tasks.shards import Artifact, Input, Runner, ShardRef, ShardTask, input_files
from tasks.sources import SourceConfig
from tasks.sources.base import RawFile
from tasks.storage import Storage

Call = Callable[[str, Callable[[], Any]], Any]


def call_directly(name: str, function: Callable[[], Any]) -> Any:
    """Run a stage's work as an ordinary call; the flows put a Prefect task here instead."""
    return function()


class Curation:
    """The artifacts of a recipe's sources. `call(name, function)` is how work is run, `tell` gets lines about it."""

    def __init__(self, recipe: Recipe, runner: Runner, call: Call = call_directly, tell: Callable[[str], None] = ignore) -> None:
        self.recipe, self.runner, self.call, self.tell = recipe, runner, call, tell
        self.store = runner.store
        self.listed: dict[str, list[RawFile]] = {}
        self.copies: dict[str, list[RawFile]] = {}
        self.made: dict[tuple[str, str], Artifact] = {}

    def _once(self, step: str, name: str, make: Callable[[], Artifact]) -> Artifact:
        """The artifact of a step, made at its first mention."""
        if (step, name) not in self.made:
            self.made[step, name] = self.call(f"{step} {name}".strip(), make)
        return self.made[step, name]

    def corpus(self) -> None:
        """Write the sample corpus, if the recipe asks for one and it is not there."""
        config = self.recipe.sample_corpus
        if config is None:
            return
        if not self.runner.plan_only:
            self.call("sample corpus", lambda: sample_corpus.ensure(Path(config.folder), config.bytes, config.seed, self.tell))
        elif not sample_corpus.is_there(Path(config.folder), config.bytes, config.seed):
            raise UserError(
                f"the sample corpus is not in {config.folder} yet, so there is nothing to plan with: `olmoflow run curate` writes it"
            )

    def files(self, source: str) -> list[RawFile]:
        """The raw files of a source; none of one that is rewritten."""
        if self.recipe.sources[source].rewrite is not None:
            return []
        if source not in self.listed:
            config, dumps, key = self.recipe.sources[source], self.recipe.stackexchange_dumps, f"sources.{source}"
            if dumps is not None and config.reads_dump:
                self.listed[source], self.copies[source] = done_files(self.store, self.recipe.name, dumps.path, key, config)
            else:
                self.listed[source], self.copies[source] = raw_files.find_source(self.store, key, config)
        return self.listed[source]

    def documents(self, source: str) -> Artifact:
        config = self.recipe.sources[source]

        if config.rewrite is not None:
            return self._rewritten(source, config.rewrite)

        def make() -> Artifact:
            reader, mask, lists = config.reader(), config.mask_personal_data, self._url_lists(source)
            tasks = [ingest.task(source, reader, raw, mask, lists) for raw in self.files(source)]
            return self.runner.run(ingest.STEP, source, tasks, max_quarantined=config.max_quarantined)

        return self._once("ingest", source, make)

    def _rewritten(self, source: str, config: rewrite.Rewrite) -> Artifact:
        """What a language model makes of the documents that another source selects, shard by shard."""
        selected, documents = self.selection(config.source), self.documents(config.source.partition("/")[0])

        def make() -> Artifact:
            shards, afresh = zip(documents.refs, selected.refs, strict=True), self.runner.force
            tasks = [rewrite.task(source, config, ref, selection, self.store, afresh) for ref, selection in shards]
            made = self.runner.run(rewrite.STEP, source, _weighed(tasks, documents), inputs=[documents, selected])
            if made.is_whole and not self.runner.plan_only:
                rewrite.check(source, made.books, config.max_unusable, self.store, made.refs)
            return made

        return self._once("rewrite", source, make)

    def _url_lists(self, source: str) -> dict[str, list[RawFile]]:
        """The files of a source's URL filter by the name of their list."""
        url_filter = self.recipe.sources[source].warc.url_filter
        lists = url_filter.lists() if url_filter else {}
        return {name: raw_files.find(self.store, f"{source}.warc.url_filter.{name}", paths)[0] for name, paths in lists.items()}

    def duplicates(self, source: str) -> list[Artifact]:
        """The column that tells duplicates, where the source asks for it. Clusters are made from all shards at once."""
        config = self.recipe.sources[source].deduplicate
        if config is None:
            return []
        documents, signed = self.documents(source), self.signatures(source)

        def cluster() -> Artifact:
            return self.runner.run(clusters.STEP, source, [clusters.task(source, config, signed.refs)], inputs=[signed])

        found = self._once("clusters", source, cluster)

        def tell() -> Artifact:
            tasks = [duplicates.task(source, found.refs[0], number) for number in range(len(documents.keys))]
            return self.runner.run(duplicates.STEP, source, tasks, inputs=[found])

        return [self._once("duplicates", source, tell)]

    def signatures(self, source: str) -> Artifact:
        """What tells equal documents of a source: hashes of their texts, and nearly equal ones where it asks for that."""
        documents, config = self.documents(source), self.recipe.sources[source].deduplicate or signatures.Deduplicate()

        def sign() -> Artifact:
            tasks = _weighed([signatures.task(source, config, ref) for ref in documents.refs], documents)
            return self.runner.run(signatures.STEP, source, tasks, inputs=[documents])

        return self._once("signatures", source, sign)

    def scorer_model(self, name: str) -> list[Input]:
        """The model of a scorer as inputs of its shards: trained here, or given as files."""
        entry = self.recipe.scorers[name]
        if entry.train is None:
            return list(self._given_model(name, entry.scorer))
        training = entry.train
        trained = self._once("train-scorer", name, lambda: self._train_scorer(name, training))
        return list(trained.refs)

    def _train_scorer(self, name: str, training: Any) -> Artifact:
        inputs: dict[str, list[Input]] = {
            role: list(self._examples(config, f"scorers.{name}.train.{role.replace(':', '.')}"))
            for role, config in train_scorer.read_by(training).items()
        }
        annotation = self.recipe.annotation_of(name)
        labelled = [self.annotation(annotation)] if annotation else []
        if labelled:
            inputs["annotation"] = list(labelled[0].refs)
        return self.runner.run(train_scorer.STEP, name, [train_scorer.task(name, training, inputs)], inputs=labelled)

    def annotation(self, name: str) -> Artifact:
        """Labels by a language model for the documents of a source that are first in line."""
        config = self.recipe.annotations[name]
        documents = self.documents(config.source)

        def choose() -> Artifact:
            halved = annotate_sample.halvings(config.documents, documents.books.counts.get("documents", 0))
            tasks = _weighed([annotate_sample.task(name, config.documents, halved, ref) for ref in documents.refs], documents)
            return self.runner.run(annotate_sample.STEP, name, tasks, inputs=[documents])

        sample = self._once("annotate-sample", name, choose)

        def label() -> Artifact:
            task = annotate.task(name, config, sample.refs, self.store, afresh=self.runner.force)
            made = self.runner.run(annotate.STEP, name, [task], inputs=[sample])
            if made.is_whole and not self.runner.plan_only:
                table = pq.read_table(input_files(self.store, made.refs[0])[annotate.FILE], columns=["answer", "cause"])
                annotate.check(name, made.books, config.max_unusable, table)
            return made

        return self._once("annotate", name, label)

    def _examples(self, examples: SourceConfig, key: str) -> list[RawFile]:
        return raw_files.find_source(self.store, key, examples)[0]

    def _given_model(self, name: str, scorer: AnyScorerConfig) -> list[RawFile]:
        model = getattr(scorer, "model", None)
        if model is None:
            return []
        there = Storage(model).there() is not None
        if scorer.type == "edu" and not there:
            return []  # a name on the hub: the name and its revision stand for the content
        if not there:
            raise UserError(f"scorers.{name}: there is no model {model}; give the path of one, or `train` it")
        return raw_files.find(self.store, f"scorers.{name}", [model])[0]

    def scores(self, source: str) -> list[Artifact]:
        """Columns beside the documents: duplicates, then one artifact for each scorer of the source, after those whose columns it reads."""
        done = self.duplicates(source)
        documents = self.documents(source)
        for name in self.recipe.scorers_of(source):
            model, before = self.scorer_model(name), list(done)
            done.append(self._once("score", f"{source}: {name}", functools.partial(self._score, source, name, documents, model, before)))
        return done

    def _score(self, source: str, name: str, documents: Artifact, model: list[Input], before: list[Artifact]) -> Artifact:
        where = self.recipe.sources[source].scores[name].where
        cheaper = _aligned(self._read_by(source, where, before), len(documents.keys))
        scorer = self.recipe.scorers[name].scorer
        shards = zip(documents.refs, cheaper, strict=True)
        tasks = _weighed([score.task(f"{source}: {name}", scorer, model, ref, where, cheap) for ref, cheap in shards], documents)
        # asked to score again: what earlier cuts know is not taken over
        prepare = functools.partial(score.prepare, self.store, afresh=self.runner.force)
        trained = self.made.get(("train-scorer", name))
        inputs = [documents, *before, *([trained] if trained else [])]
        return self.runner.run(score.STEP, f"{source}: {name}", tasks, inputs=inputs, prepare=prepare)

    def _read_by(self, source: str, rules: list[Filter], scores: list[Artifact]) -> list[Artifact]:
        """Of a source's scores, those whose columns the rules read: another scorer must not change what depends on the rules."""
        columns = {rule.column for rule in rules}
        held = {f"{source}: {name}": column_names(self.recipe.scorers[name].scorer) for name in self.recipe.sources[source].scores}
        held[source] = {duplicates.COLUMN}
        return [artifact for artifact in scores if columns & held[artifact.name]]

    def tokenizer(self) -> Artifact:
        config = self.recipe.tokenizer

        def make() -> Artifact:
            sets: list[list[RawFile]] = []
            if isinstance(config, train_tokenizer.BytePairs):
                sets = [self._examples(examples, "tokenizer.train_on") for examples in config.train_on]
            elif isinstance(config, train_tokenizer.TokenizerFile):
                sets = [raw_files.find(self.store, "tokenizer", [config.path])[0]]
            return self.runner.run(train_tokenizer.STEP, config.kind, [train_tokenizer.task(config, sets)])

        return self._once("tokenizer", "", make)

    def tokens(self, source: str) -> Artifact:
        config = self.recipe.sources[source]
        documents, scores, tokenizer = self.documents(source), self.scores(source), self.tokenizer()

        def make() -> Artifact:
            read = self._read_by(source, config.tokenize_where.filters, scores)
            shards = zip(documents.refs, _aligned(read, len(documents.keys)), strict=True)
            tasks = _weighed(
                [tokenize.task(source, config.tokenize_where, ref, refs, tokenizer.refs[0]) for ref, refs in shards], documents
            )
            return self.runner.run(tokenize.STEP, source, tasks, inputs=[documents, *scores, tokenizer])

        return self._once("tokenize", source, make)

    def selection(self, name: str) -> Artifact:
        """The selected documents of a source, or of `SOURCE/SUBSET`: of the same documents, those that pass the subset's filters too."""
        source, _, subset = name.partition("/")
        config = self.recipe.sources[source]
        rules = [*config.filters, *(config.subsets[subset].filters if subset else [])]
        documents, scores, tokens = self.documents(source), self.scores(source), self.tokens(source)

        def make() -> Artifact:
            aligned = zip(documents.refs, _aligned(scores, len(documents.keys)), tokens.refs, strict=True)
            tasks = [select.task(name, rules, config.tokenize_where, ref, refs, token) for ref, refs, token in aligned]
            return self.runner.run(select.STEP, name, tasks, inputs=[documents, *scores, tokens])

        return self._once("select", name, make)

    def contamination(self, name: str, selections: list[str], mixed: Artifact | None) -> None:
        """How much of each evaluation is in a selection or, where `mixed` is given, in a mix: one artifact a scorer that looks for it."""
        source = {selection: selection.partition("/")[0] for selection in selections}
        for scorer, entry in self.recipe.scorers.items():
            looked_at = [selection for selection in selections if scorer in self.recipe.sources[source[selection]].scores]
            if looked_at and isinstance(entry.scorer, ContaminationConfig):
                scores = {selection: self.made["score", f"{source[selection]}: {scorer}"] for selection in looked_at}
                make = functools.partial(self._contamination, f"{name}: {scorer}", entry.scorer.column, source, scores, mixed)
                self._once("contamination", f"{name}: {scorer}", make)

    def _contamination(
        self, name: str, column: str, source: dict[str, str], scores: dict[str, Artifact], mixed: Artifact | None
    ) -> Artifact:
        model = self.scorer_model(name.rsplit(": ", 1)[1])
        shards = {selection: (self.documents(source[selection]).refs, found.refs) for selection, found in scores.items()}
        if mixed is None:
            (selection,) = scores
            last = self.selection(selection)
            task = contamination.source_task(name, column, model, selection, shards[selection], last.refs)
        else:
            last = mixed
            sizes = {selection: len(self.documents(of).keys) for selection, of in source.items()}
            task = contamination.mix_task(name, column, model, sizes, shards, last.refs[0])
        return self.runner.run(contamination.STEP, name, [task], inputs=[last])  # which comes of all the others

    def curate(self) -> None:
        for name in self.recipe.annotations:
            self.annotation(name)
        for name in self.recipe.selections():
            self.selection(name)
            self.contamination(name, [name], None)

    def tokenize_all(self) -> None:
        for source in self.recipe.sources:
            self.tokens(source)


def _aligned(scores: list[Artifact], shards: int) -> list[list[ShardRef]]:
    """For each documents shard, the score shards of the same rows."""
    columns = [artifact.refs for artifact in scores]
    return [[refs[number] for refs in columns] for number in range(shards)]


def _weighed(tasks: list[ShardTask], documents: Artifact) -> list[ShardTask]:
    """Tasks with the sizes of their documents, so that workers get equal loads."""
    for task, record in zip(tasks, documents.records, strict=True):
        task.weight = sum(stored.bytes for stored in record.files) if record else 0
    return tasks
