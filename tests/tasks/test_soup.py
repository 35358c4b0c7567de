"""A greedy soup against one made by brute force; its books hold every soup that was tried."""

import itertools
import json
from pathlib import Path

import pytest

from tasks import soup
from tasks.launch import LauncherConfig
from tasks.shards import ShardRef
from tasks.store import Attempt, Books, Store

# Each model is one number: the mean of its ingredients'. Its score is how far that is from 10.
NUMBERS = {"a": 4.0, "b": 9.0, "c": 12.0, "d": 30.0, "e": 11.5}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def cook(store, monkeypatch):
    """cook(names): the greedy soup of such models, with the launched processes played; returns the record and what was told."""
    launched = []

    def number(folder: str) -> float:
        return float(json.loads((Path(folder) / "checkpoint.json").read_text()))

    def launch(module, config, folder, launcher, *rest, **more):
        launched.append((module, launcher.processes))
        if module == "trainer.soup":
            mean = sum(map(number, config["ingredients"])) / len(config["ingredients"])
            Path(config["output"]).mkdir(exist_ok=True)
            (Path(config["output"]) / "checkpoint.json").write_text(json.dumps(mean))
        else:
            scores = {name: {"all": {"bits_per_byte": abs(number(each) - 10)}} for name, each in config["checkpoints"].items()}
            Path(config["output"]).write_text(json.dumps({"checkpoints": scores}))

    def ref(name: str) -> ShardRef:
        attempt = Attempt(store, "train", f"key{name}", name)
        (attempt.folder / "checkpoint.json").write_text(json.dumps(NUMBERS[name]))
        attempt.commit(Books("steps", 1, 1), 0.0)
        return ShardRef("train", f"key{name}")

    monkeypatch.setattr(soup, "launch", launch)
    monkeypatch.setattr(soup.evaluate, "held_out_mixes", lambda store, held_out, folder: ({"web": {}}, ["tiny"]))

    def cooked(names: str):
        task = soup.greedy_task("soup", {name: ref(name) for name in names}, {"web": ShardRef("held-out", "k")}, 32, "fp32", 4)
        key = task.key(soup.STEP)
        soup.SoupJob(store, LauncherConfig(processes=3))(task, key)
        record = store.record("soup", key)
        told = json.loads(Path(store.full(record.file("greedy.json").path)).read_text())
        made = number(str(Path(store.full(record.file("checkpoint/checkpoint.json").path)).parent))
        return record, told, made, launched

    return cooked


def greedy(names: str) -> tuple[list[str], list[list[str]]]:
    """Wortsman et al. (2022), recipe 1, over the numbers: what is chosen, and all that was tried."""

    def distance(chosen: list[str]) -> float:
        return abs(sum(NUMBERS[name] for name in chosen) / len(chosen) - 10)

    line = sorted(names, key=lambda name: distance([name]))
    chosen, tried = line[:1], [line[:1]]
    for name in line[1:]:
        tried.append([*chosen, name])
        if distance([*chosen, name]) < distance(chosen):
            chosen = [*chosen, name]
    return chosen, tried


@pytest.mark.parametrize("names", ["".join(names) for size in (1, 2, 5) for names in itertools.combinations("abcde", size)])
def test_it_is_the_soup_that_brute_force_finds(cook, names):
    record, told, made, _ = cook(names)
    chosen, tried = greedy(names)
    assert told["chosen"] == chosen and [each["ingredients"] for each in told["tried"]] == tried
    assert made == pytest.approx(sum(NUMBERS[name] for name in chosen) / len(chosen))
    assert record.books.read == len(names) == record.books.kept + sum(record.books.dropped.values())
    assert record.books.kept == len(chosen)


def test_every_tried_soup_and_every_single_score_is_told_and_the_launchers_ranks_score_them(cook):
    _, told, _, launched = cook("abcde")
    assert told["ingredients"] == {name: abs(value - 10) for name, value in NUMBERS.items()}
    for each in told["tried"]:
        mean = sum(NUMBERS[name] for name in each["ingredients"]) / len(each["ingredients"])
        assert each["bits_per_byte"] == pytest.approx(abs(mean - 10))
    assert told["held_out"] == ["web"] and told["nothing_held_out"] == ["tiny"]
    assert set(launched) == {("trainer.evaluate", 3), ("trainer.soup", 1)}


def test_a_plain_soup_keeps_its_key_and_a_greedy_one_has_another():
    refs = [ShardRef("train", "a"), ShardRef("train", "b")]
    plain = soup.task("soup", refs)
    assert plain.config == {"weights": None} and list(plain.inputs) == ["ingredients"] and soup.STEP.version == 2
    other = soup.greedy_task("soup", dict(zip("ab", refs, strict=True)), {}, 32, "fp32", 4)
    assert len({each.key(soup.STEP) for each in (plain, other, soup.task("soup", refs, [0.5, 0.5]))}) == 3
