"""The benchmark of training steps, at sizes that take seconds: its last line, and what it says where it cannot measure."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training

TINY = ["--d-model", "32", "--layers", "1", "--vocabularies", "64", "128", "--instances", "2", "--micro-batch", "1"]
TINY += ["--sequence-length", "32", "--steps", "3", "--warm-up", "1", "--rounds", "1"]
KEYS = {"cpu_small_vocab_vs_best_peer", "cpu_large_vocab_vs_best_peer", "cpu_large_vocab_memory", "mfu_1b_bf16", "tokens_per_second_7b"}


@pytest.fixture
def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`measured(arguments) -> claims`, as the last line has them."""

    def run(arguments: list[str]) -> dict[str, Any]:
        training.main([*arguments, "--folder", str(tmp_path)])
        claims: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert claims.keys() == KEYS and all(claim["value"] is not None or claim["why"] for claim in claims.values())
        return claims

    return run


def _peer(folder: Path, loss: str) -> str:
    """A peer that needs no time to start: 1,000 seconds for the tokens of 3 steps, and a `loss` as a function of the vocabulary V."""
    path = folder / "peer.py"
    path.write_text(f"""
import json, math, sys
import numpy as np
config, tokens, steps, warm_up = sys.argv[1:]
config = json.load(open(config))
V = config["model"]["vocab_size"]
assert np.fromfile(tokens, "<u4").max() < V and (steps, warm_up) == ("4", "1")
step = config["global_batch_instances"] * config["sequence_length"]
print(json.dumps({{"seconds": 1000, "tokens": 3 * step, "losses": [{loss}] * 4}}))
""")
    return str(path)


def test_the_real_trainer_is_compared_with_the_best_of_the_peers_that_are_here(
    tmp_path: Path, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PEERS", {"json": _peer(tmp_path, "math.log(V)"), "no_such_library": "no.py"})
    claims = measured(TINY)
    for size in ("small", "large"):
        claim = claims[f"cpu_{size}_vocab_vs_best_peer"]
        assert claim["value"] > 100 and claim["peer"] == "json" and "no_such_library" in claim["why"]
    assert claims["cpu_large_vocab_memory"]["value"] > 1
    assert claims["mfu_1b_bf16"]["value"] is None and "--preset 1b" in claims["mfu_1b_bf16"]["why"]
    assert not list(tmp_path.glob("training-*"))


def test_peers_that_do_other_work_end_it(tmp_path: Path, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PEERS", {"json": _peer(tmp_path, "1.0")})
    with pytest.raises(SystemExit, match="not the same work"):
        measured(TINY)


def test_a_trainer_that_ends_early_ends_it_with_what_the_trainer_said(measured: Any) -> None:
    with pytest.raises(SystemExit, match="sequence_length is 1; give 2 or more"):
        measured([*TINY, "--sequence-length", "1"])


@pytest.mark.parametrize("preset", ["1b", "7b"])
def test_without_a_gpu_it_says_so(measured: Any, preset: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    key = {"1b": "mfu_1b_bf16", "7b": "tokens_per_second_7b"}[preset]
    assert measured(["--device", "cuda", "--preset", preset])[key]["why"] == "torch sees no GPU here"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--device", "cuda"], "go together"), (["--preset", "1b"], "go together"), (["--micro-batch", "3"], "not divisible")],
)
def test_arguments_that_do_not_fit_are_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.parse(arguments)
    assert told in capsys.readouterr().err


@pytest.mark.soak
def test_both_peers_run(measured: Any) -> None:
    pytest.importorskip("olmo_core")
    claims = measured(TINY)
    for key in ("cpu_small_vocab_vs_best_peer", "cpu_large_vocab_vs_best_peer", "cpu_large_vocab_memory"):
        assert claims[key]["value"] > 0 and "why" not in claims[key]
