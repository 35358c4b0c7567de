"""`olmoflow figure`: the report's figures again, small."""

import json
import shutil
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from flows import cli
from flows.figure import load
from olmo_model.config import ModelConfig
from olmo_model.growth import growth
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from tasks.errors import RecipeError, UserError
from tasks.figure_mix import Text, find, plant_repetitions
from tasks.store import Attempt, Books, Store
from trainer.data import Mix, permute
from trainer.repetition import repeated_documents

FIGURES = sorted((Path(__file__).resolve().parents[2] / "deployments/figures").glob("figure-*.yaml"))
LENGTH, INSTANCES, STEPS = 64, 90, 50
ABOUT = {"figure": 9, "title": "<Epsilon>", "reported": "A lower one is better."}
BASE = {
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "mlp_hidden": 16},
    "data": {"seed": 0},
    "global_batch_instances": 1,
    "micro_batch_instances": 1,
    "optimizer": {"learning_rate": 1e-2},
    "schedule": {"kind": "cosine", "warmup_steps": 5},
    "max_steps": STEPS,
    "metrics": {"embedding_norm_every_steps": 10},
    "seed": 0,
    "precision": "fp32",
}
VARIANTS = {"epsilon 1e-8": {}, "epsilon 1e-5": {"optimizer.eps": 1e-5}}
LAUNCHER = {"device": "cpu", "threads": 1}


@pytest.fixture
def mix(tmp_path):
    """A folder with a compiled mix of random tokens, 10 more than its instances take."""
    folder = tmp_path / "mix"
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(1, 64, LENGTH * INSTANCES + 10).astype("<u4")
    (folder / "tokens.npy").write_bytes(tokens.tobytes())
    half = len(tokens) // 2
    np.save(folder / "extents.npy", np.array([[0, 0, half, half], [0, half, len(tokens) - half, len(tokens)]], np.int64))
    header = {"version": 1, "kind": "packed", "sequence_length": LENGTH, "tokens": len(tokens), "instances": INSTANCES, "documents": 2}
    header |= {"vocab_size": 64, "eos_id": 0, "pad_id": 0, "files": ["tokens.npy"], "bytes": 4, "sources": [], "tokenizer": "none"}
    (folder / "mix.json").write_text(json.dumps(header))
    return folder


@pytest.fixture
def figure(tmp_path, mix):
    """`figure(keys, **mix=...) -> invoked`: run the command on a figure's file of these keys."""

    def run(keys, named=mix):
        path = tmp_path / "figure-x.yaml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        options = ["--mix", str(named), "--into", str(tmp_path / "figures"), "--store", str(tmp_path / "store")]
        return CliRunner().invoke(cli.app, ["figure", str(path), *options])

    return run


def spikes(values):
    """The definition, value by value; the first twenty count as none."""
    found = 0
    for at in range(20, len(values)):
        last = values[max(0, at - 1000) : at]
        found += abs(values[at] - fmean(last)) >= 7 * pstdev(last)
    return 100 * found / len(values)


def test_a_figure_trains_its_variants_once_and_ends_in_its_plot_and_spike_scores(figure, tmp_path):
    variants = {"too fast": {"optimizer.learning_rate": 1e30}, "epsilon 1e-5": {"optimizer.eps": 1e-5}}
    keys = {**ABOUT, "training": BASE, "variants": variants, "launcher": LAUNCHER, "curves": ["grad_norm", "embedding_norm"]}
    assert figure(keys).exit_code == 0
    made = json.loads((tmp_path / "figures/figure-x.json").read_text())["variants"]
    runs = {name: tmp_path / "figures" / variant["run"] for name, variant in made.items()}
    optimizers = {name: json.loads((run / "config.json").read_text())["optimizer"] for name, run in runs.items()}
    assert [(each["learning_rate"], each["eps"]) for each in optimizers.values()] == [(1e30, 1e-8), (1e-2, 1e-5)]
    assert made["too fast"]["diverged"] and 0 < made["too fast"]["steps"] < 10
    assert not made["epsilon 1e-5"]["diverged"] and made["epsilon 1e-5"]["steps"] == STEPS

    lines = [json.loads(line) for line in (runs["epsilon 1e-5"] / "metrics.jsonl").read_text().splitlines()]
    lines[40]["grad_norm"] = 1e4  # a spike, so that the score is not 0
    (runs["epsilon 1e-5"] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logs = {name: (run / "trainer.log").read_text() for name, run in runs.items()}
    again = figure(keys)
    assert {name: (run / "trainer.log").read_text() for name, run in runs.items()} == logs, "a run that had ended was started again"
    made = json.loads((tmp_path / "figures/figure-x.json").read_text())["variants"]
    for metric in ("loss", "grad_norm"):
        expected = spikes([line[metric] for line in lines])
        assert made["epsilon 1e-5"]["spike_scores"][metric] == pytest.approx(expected)
    assert expected == 2, "the spike is one value of fifty"
    assert "epsilon 1e-5" in again.stdout and "grad norm 2.000" in again.stdout

    page = (tmp_path / "figures/figure-x.html").read_text()
    assert "&lt;Epsilon&gt;" in page and "<Epsilon>" not in page and "2.000 %" in page and "of 50 steps" in page and ">diverged<" in page
    charts = [json.loads(part.split("</script>")[0]) for part in page.split('<script type="application/json">')[1:]]
    assert len(charts) == 2 and charts[0]["lines"][1]["p"][40] == [41, 1e4], "the first chart is not of the gradient norm"
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_figure_of_initialisation_draws_the_growth_of_each_model(figure, tmp_path, mix):
    widths = {"widths": [16, 32], "head_dim": 16, "documents": 3, "model": {"n_layers": 2}}
    keys = {**ABOUT, "initialisation": widths, "variants": {"OLMo 2": {}, "scaled": {"init": "scaled"}}, "launcher": LAUNCHER}
    assert figure(keys).exit_code == 0
    made = json.loads((tmp_path / "figures/figure-x.json").read_text())["variants"]
    opened = Mix(mix)
    documents = [torch.from_numpy(opened.instance(int(n)).astype(np.int64)) for n in permute(np.arange(3), INSTANCES, 0, 0)]
    for name, init in (("OLMo 2", "normal"), ("scaled", "scaled")):
        model = Olmo2(ModelConfig(32, 2, 2, 2, 80, 64, init=init))
        init_weights(model, 0)
        for kind, expected in zip(("activations", "gradients"), growth(model, documents), strict=True):
            found = made[name]["widths"]["32"][kind]
            assert (found["exponent"], found["last"]) == pytest.approx((expected.exponent, expected.last), rel=1e-3)
    assert "d_model 32" in (tmp_path / "figures/figure-x.html").read_text()


def test_planted_repetitions_stand_in_their_share_of_the_instances_and_nowhere_else(mix, tmp_path):
    planted = plant_repetitions(find(str(mix), "store", tmp_path / "into"), 0.1, 0, tmp_path / "planted")
    before, after = Mix(mix), Mix(planted.folder, planted.files)
    assert after.instances == 100
    ids = np.stack([after.instance(n) for n in range(100)])
    found = repeated_documents(ids.reshape(-1), np.arange(100) * LENGTH, np.full(100, LENGTH))
    assert found.tolist() == [False] * 90 + [True] * 10
    assert all((ids[n] == before.instance(n)).all() for n in range(90))


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_each_shipped_figure_can_run_and_its_variants_differ(path, tmp_path):
    shipped = load(path)
    assert shipped.figure == int(path.stem.removeprefix("figure-"))
    text = Text(tmp_path, tmp_path / "files.json", {"vocab_size": 2048, "sequence_length": 128, "instances": 9000}, "0" * 64)
    made = shipped.train_configs(text, str(path)) if shipped.training else shipped.models(text, str(path))
    kinds = list(made.values())
    assert all(one != other for at, one in enumerate(kinds) for other in kinds[at + 1 :])


def test_figures_3_to_10_are_shipped():
    assert [load(path).figure for path in FIGURES] == list(range(3, 11))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {"a": {}, "b": {"optimizer.epsilon": 1}}}, "variant b: unknown key optimizer.epsilon"),
        ({"variants": {"a": {}, "b": {"optimizer.eps": 0}}}, "variant b: optimizer.eps is 0"),
        ({"variants": {"a": {}, "b": {"seed.x": 1}}}, "variant b: there is nothing under seed"),
        ({"curvs": []}, "unknown key curvs; did you mean curves"),
        ({"initialisation": {"widths": [8, 16], "model": {}}}, "give either training or initialisation"),
        ({"variants": {"a": {}, "b": {"global_batch_instances": 91}}}, "fewer than one batch of 91"),
        ({"launcher": {**LAUNCHER, "processes": 2}}, "global_batch_instances 1 is not divisible by ranks"),
    ],
)
def test_a_wrong_figure_is_one_sentence_before_anything_runs(figure, changes, words, tmp_path):
    error = figure({**ABOUT, "training": BASE, "variants": VARIANTS, "launcher": LAUNCHER, **changes}).exception
    assert isinstance(error, RecipeError) and words in str(error) and "\n" not in str(error)
    assert not list(tmp_path.glob("figures/runs/*"))


def test_a_mix_of_the_store_goes_by_name_or_id_and_the_newest_of_a_name_is_taken(mix, tmp_path):
    store = Store(str(tmp_path / "store"))
    tokens = Attempt(store, "tokenize", "t", "web")
    shutil.copy(mix / "tokens.npy", tokens.folder)
    tokens.commit(Books(), 0)
    for key, name, day in (("a", "pretraining", 1), ("b", "pretraining", 2), ("c", "dolmino", 3)):
        attempt = Attempt(store, "mix", key, name)
        shutil.copy(mix / "extents.npy", attempt.folder)
        header = {**json.loads((mix / "mix.json").read_text()), "kind": "scattered", "files": ["tokenize/t/tokens.npy"]}
        (attempt.folder / "mix.json").write_text(json.dumps(header))
        attempt.commit(Books(), 0)
        manifest = {"id": f"mix-{key}1", "step": "mix", "name": name, "created": f"2026-01-0{day}", "shards": [key]}
        store.replace(f"artifacts/mix/mix-{key}1.json", json.dumps(manifest))
    for named, key in (("pretraining", "b"), ("dolmino", "c"), ("mix-a", "a")):
        found = find(named, store.url, tmp_path / "into")
        assert found.folder.parent.name == key
        assert (Mix(found.folder, found.files).instance(3) == Mix(mix).instance(3)).all()
    with pytest.raises(UserError, match=r"3 mixes of the store .* have an id that begins with mix-"):
        find("mix-", store.url, tmp_path / "into")


def test_a_mix_that_is_not_there_is_named(figure):
    error = figure({**ABOUT, "training": BASE, "variants": VARIANTS}, "nothing").exception
    assert isinstance(error, UserError) and str(error).startswith("nothing is neither a folder with a mix.json nor a mix of the store")
