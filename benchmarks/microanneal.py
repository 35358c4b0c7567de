"""Do micro-anneals rank sources as full anneals do, and is a soup better than the best of its ingredients? `python -m benchmarks.microanneal`.

The question is that of the report's section 4.2.2, small: which of six sources helps on word problems? One pretrained model of 0.4 million
parameters is annealed on each source beside as much general text, for 200 steps and, from other seeds, for ten times as many, three seeds
each. That is one recipe (`recipe.json` in the store's folder), run by the pipeline as `olmoflow run micro-anneal` and `evaluate` run it. The
score is bits per byte on held-out word problems, which no run trains on; it was chosen before anything was run.

All text is made on the spot from the Python installation and by generators. The store stays, so that the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import agreement, measure
from benchmarks.agreement import Values
from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe
from flows.recipe_training import mix_soup
from tasks.corpus_maths import problems
from tasks.evaluate import FILE
from tasks.shards import Artifact, input_files
from tasks.spread import spread
from tasks.store import Store

Scores = dict[str, dict[str, float]]  # bits per byte by checkpoint and held-out source

TARGET, GENERAL = "word_problems", "web"
CANDIDATES = ("solved", "unsolved", "arithmetic", "flan", "wiki", "code")
SOLVED_KINDS = {"shopping", "sharing", "walking", "production", "percentage", "rectangle"}  # of the ten kinds that the target has
MICRO_SEEDS, FULL_SEEDS = (1, 2, 3), (4, 5, 6)  # different: the same seed's micro-anneal would be the beginning of the full one's data
MICRO_STEPS, FULL_STEPS, PRETRAIN_STEPS = 200, 2000, 3000
SEQUENCE_LENGTH, BATCH = 128, 4
EVERY = "the mean over all sources"


def write_maths(folder: Path, of_each: int) -> None:
    """Word problems of one generator, dealt to the target, to those with worked solutions and to those without; no problem stands twice."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    dealt: dict[str, list[dict[str, str]]] = {TARGET: [], "solved": [], "unsolved": []}
    for number, problem in enumerate(islice(problems(1), 3 * of_each)):
        name = list(dealt)[number % 3]
        if name == "unsolved":
            problem = {**problem, "answer": problem["answer"].splitlines()[-1]}
        if name != "solved" or problem["template"] in SOLVED_KINDS:
            dealt[name].append(problem)
    for name, chosen in dealt.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chosen))
    (folder / "done").touch()


def recipe(folder: Path) -> dict[str, Any]:
    """The experiment over texts in `folder`: one mix a source, half of it general text; micro-anneals on a tenth of what the anneals see."""

    def maths(name: str) -> dict[str, Any]:
        return {"format": "jsonl", "paths": [f"{folder}/maths/{name}.jsonl"], "fields": {"text": "{question}\n{answer}"}}

    corpus = folder / "corpus"
    mixes = {name: {name: {"repeat": 1}, GENERAL: {"share": 0.5}} for name in CANDIDATES}
    first, *others = CANDIDATES
    anneal = {"seeds": list(FULL_SEEDS), "steps": FULL_STEPS}
    return {
        "name": "microanneal",
        "store": str(folder / "store"),
        "sample_corpus": {"folder": str(corpus), "bytes": 32_000_000},
        "sources": {
            GENERAL: {"format": "dclm", "paths": [f"{corpus}/dclm/**/*.jsonl.zst"]},
            "papers": {"format": "dolma", "paths": [f"{corpus}/dolma/pes2o/*.jsonl.gz"]},
            TARGET: maths(TARGET),
            "solved": maths("solved"),
            "unsolved": maths("unsolved"),
            "arithmetic": {"format": "arithmetic", "arithmetic": {"documents": 80_000, "seed": 1}},
            "flan": {"format": "dolma", "paths": [f"{corpus}/flan/*.jsonl.gz"]},
            "wiki": {"format": "dolma", "paths": [f"{corpus}/dolma/wiki/*.jsonl.gz"]},
            "code": {"format": "starcoder", "paths": [f"{corpus}/starcoder/**/*.parquet"]},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 2048, "train_on": [{"format": "jsonl", "paths": [f"{corpus}/labels/*.jsonl"]}]},
        "sequence_length": SEQUENCE_LENGTH,
        "held_out": {"share": 0.03, "tokens_per_source": 30_000},
        "mixes": {"pretraining": {"sources": {GENERAL: {"repeat": 1}, "papers": {"repeat": 1}}}}
        | {name: {"sources": sources, "seed": 7201} for name, sources in mixes.items()},
        "model": {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden": 192},
        "pretrain": {
            "mix": "pretraining",
            "steps": PRETRAIN_STEPS,
            "learning_rate": 4.0e-3,
            "warmup_steps": 100,
            "decay_steps": PRETRAIN_STEPS * 3 // 2,
            "global_batch_instances": BATCH,
            "micro_batch_instances": BATCH,
            "precision": "fp32",
            "checkpoint_every": 500,
        },
        "micro_anneals": {
            name: {
                "sources": {name: 1},
                "general": {GENERAL: 1},
                "seed": 7201,
                "seeds": list(MICRO_SEEDS),
                "tokens": MICRO_STEPS * BATCH * SEQUENCE_LENGTH,
            }
            for name in CANDIDATES
        },
        "anneal": {"mix": first, **anneal, "further": [{"mix": name, **anneal} for name in others], "soup": {"of_each_mix": True}},
        "where": {"engine": {"workers": 1}, "launcher": {"threads": 1, "device": "cpu"}},
    }


def run(folder: Path) -> tuple[Recipe, Scores, dict[str, Any]]:
    """Every run of the recipe: the recipe, its scores, and what each mix holds by name. What is in the store already is used again."""
    written = recipe(folder.resolve())
    write_maths(folder / "maths", 12_000)
    (folder / "recipe.json").write_text(json.dumps(written, indent=1))
    made = Recipe.model_validate(written)
    pipeline = Pipeline(made, make_runner(made), _call_and_tell, _tell)
    pipeline.corpus()
    scores = _scores(pipeline.store, pipeline.micro_anneal_all()) | _scores(pipeline.store, pipeline.evaluate_all())
    mixes = {name: json.loads(input_files(pipeline.store, pipeline.mix(name).refs[0])["mix.json"].read_text()) for name in made.mixes}
    return made, scores, mixes


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _call_and_tell(name: str, function: Callable[[], Any]) -> Any:
    _tell(name)
    return function()


def _scores(store: Store, evaluated: Artifact) -> Scores:
    """Bits per byte, with the mean over sources that counts each source once, not by its size."""
    told = json.loads(input_files(store, evaluated.refs[0])[FILE].read_text())["checkpoints"]
    found: Scores = {name: {source: each["bits_per_byte"] for source, each in by.items() if source != "all"} for name, by in told.items()}
    return {name: {**by, EVERY: sum(by.values()) / len(by)} for name, by in found.items()}


def values(scores: Scores, runs: Iterable[tuple[str, str]], metric: str) -> Values:
    """The metric of all seeds by candidate; `runs`: (candidate, name of the run's checkpoint)."""
    found: dict[str, list[float]] = {}
    for candidate, name in runs:
        found.setdefault(candidate, []).append(scores[name][metric])
    return found


def rank_claim(micro: Values, full: Values) -> dict[str, Any]:
    """Kendall's tau of the means over seeds, with its interval over seeds and sources, and whether best and worst can be told apart at all."""
    low, high = agreement.tau_interval(micro, full, sources_too=True)
    return {
        "value": round(float(agreement.kendall_tau(agreement.means(micro), agreement.means(full))), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "unit": "Kendall's tau",
        "rounds": min(len(each) for each in (*micro.values(), *full.values())),
        "sources": len(micro),
        "over_seeds_alone": [round(each, 4) for each in agreement.tau_interval(micro, full, sources_too=False)],
        "by_chance": round(agreement.tau_by_chance(micro, full), 4),
        "without_one_source": [round(each, 4) for each in agreement.tau_without_one(micro, full)],
        "micro_best_and_worst": str(agreement.best_to_worst(micro)),
        "full_best_and_worst": str(agreement.best_to_worst(full)),
        "verdict": "resolved" if agreement.best_to_worst(micro).resolved and agreement.best_to_worst(full).resolved else "not resolved",
    }


def soup_claim(soups: dict[str, float], singles: Values) -> dict[str, Any]:
    """A soup's bits per byte over the best of its ingredients', the mean over the soups with its 95 % interval (Student's t)."""
    ratios = [soups[name] / min(singles[name]) for name in soups]
    said = spread(ratios)
    low, high = said.interval or (said.mean, said.mean)
    means = spread([soups[name] / mean for name, mean in zip(singles, agreement.means(singles), strict=True)])
    return {
        "value": round(said.mean, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "unit": "x",
        "rounds": len(ratios),
        "each": {name: round(ratio, 5) for name, ratio in zip(soups, ratios, strict=True)},
        "against_mean_single": round(means.mean, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("benchmarks/.work/microanneal"), help="folder of texts and runs; it stays")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.store.mkdir(parents=True, exist_ok=True)
    made, scores, mixes = run(options.store)
    assert made.anneal
    micro_runs = [(run.micro, run.label) for run in made.micro_anneal_runs()]
    full_runs = [(run.mix, run.name) for run in made.anneal.runs()]
    table = [("held-out bits per byte of the pretrained model", f"{TARGET} {scores['pretrained'][TARGET]:.4f}")]
    for name in CANDIDATES:
        for metric in (TARGET, EVERY):
            cells = []
            for label, runs in (("micro", micro_runs), ("full", full_runs)):
                each = values(scores, runs, metric)[name]
                change = sum(each) / len(each) - scores["pretrained"][metric]
                cells.append(f"{label} {change:+.4f}, standard error {agreement.standard_error(each):.4f}")
            table.append((f"{name}: change on {metric}", "; ".join(cells)))
        tokens = {each["name"]: each["tokens"] for each in mixes[name]["sources"]}
        epochs = FULL_STEPS * BATCH * SEQUENCE_LENGTH / sum(tokens.values())
        table.append((f"{name}: tokens of the mix", f"{tokens}; a full anneal sees {epochs:.2f} of it"))
    claims = {}
    for metric in (TARGET, EVERY):
        micro, full = values(scores, micro_runs, metric), values(scores, full_runs, metric)
        ranked, soup = rank_claim(micro, full), soup_claim({name: scores[mix_soup(name)][metric] for name in CANDIDATES}, full)
        pairs, same = agreement.resolved_pairs(micro, full)
        table.append((f"on {metric}: pairs resolved in micro and full anneals", f"{pairs}, {same} of them in the same order"))
        for name in ("over_seeds_alone", "by_chance", "without_one_source", "micro_best_and_worst", "full_best_and_worst"):
            table.append((f"on {metric}: {name}", str(ranked[name])))
        if metric == TARGET:
            claims = {"microanneal_rank_agreement": ranked, "soup_vs_best_single": soup}
        else:
            for name, claim in (("rank agreement", ranked), ("soup against best single", soup)):
                table.append((f"on {metric}: {name}", f"{claim['value']:.4f} ({claim['low']:.4f} to {claim['high']:.4f})"))
    measure.report(table, claims, options.out)


if __name__ == "__main__":
    main()
