import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from tasks.errors import UserError
from tasks.scorers import EduClassifierConfig, make_scorer, train_edu
from tasks.scorers.edu_classifier import EduClassifier
from tasks.scorers.train_edu import train_regressor, train_vocabulary

GOOD, BAD = ["theorem", "proof", "lemma", "integral", "cell"], ["buy", "cheap", "click", "sale", "win"]
TINY = {"epochs": 8, "hidden_size": 32, "layers": 1, "max_tokens": 100, "vocab_size": 320, "batch_examples": 8}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def examples(n: int, seed: int) -> list[tuple[str, float]]:
    """Texts of 1 to 150 words whose score is 5 times the share of good words."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        good, words = rng.random(), rng.randint(1, 150)
        made.append((" ".join(rng.choice(GOOD if rng.random() < good else BAD) for _ in range(words)), 5 * good))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edu") / "model"
    train_regressor(examples(100, 0), out, **TINY)
    return out


def score(model: Path | str, texts: list[str], **config: object) -> np.ndarray:
    return make_scorer(EduClassifierConfig.model_validate({"batch_tokens": 512, "device": "cpu", **config}), Path(model)).score(texts)[
        "edu"
    ]


def alone(folder: Path, text: str) -> float:
    """The raw output of Hugging Face's own model for one text, without any padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=100)
    with torch.no_grad():
        return model(**inputs).logits.item()


def test_the_score_is_the_raw_output_of_the_model_on_the_text_alone(folder: Path) -> None:
    texts = [text for text, _ in examples(6, 3)] + ["", "a" * 3000]
    found = score(folder, texts)
    assert found.dtype == np.float32
    assert found == pytest.approx([alone(folder, text) for text in texts], abs=1e-5)


def test_a_score_does_not_depend_on_the_other_texts(folder: Path) -> None:
    texts = [text for text, _ in examples(60, 4)]
    together = score(folder, texts)
    shuffled = np.random.default_rng(0).permutation(60)
    assert np.abs(score(folder, [texts[i] for i in shuffled]) - together[shuffled]).max() < 1e-6
    assert np.abs(score(folder, texts[:1]) - together[:1]).max() < 1e-6
    assert len(score(folder, [])) == 0


def test_batches_of_one_length_always_have_the_same_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = EduClassifier(EduClassifierConfig(batch_tokens=512, device="cpu"), folder)
    shapes = []
    forward = scorer.model.forward
    monkeypatch.setattr(scorer.model, "forward", lambda **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or forward(**inputs))
    scorer.score([text for text, _ in examples(30, 5)])
    assert set(shapes) == {(8, 64), (5, 100)} and len(shapes) > 3


def test_max_tokens_cuts_texts_and_never_goes_over_the_models_own_limit(folder: Path, tmp_path: Path) -> None:
    text = " ".join(GOOD * 30)
    assert score(folder, [text], max_tokens=20) == pytest.approx(score(folder, [text + " buy cheap"], max_tokens=20), abs=1e-6)
    assert EduClassifier(EduClassifierConfig(max_tokens=512, device="cpu"), folder).max_tokens == 100
    # a tokenizer that knows no limit, as many on the hub
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert score(tmp_path, [text * 9], max_tokens=512) == score(folder, [text * 9])


def test_training_learns_to_tell_unseen_texts_apart(folder: Path) -> None:
    texts, scores = zip(*examples(80, 9), strict=True)
    found = score(folder, list(texts))
    assert np.corrcoef(found, scores)[0, 1] > 0.8
    assert np.mean((found - scores) ** 2) < 0.6 * np.var(scores)


def test_training_again_gives_the_same_files_whatever_torchs_state(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    torch.set_num_threads(2)
    train_regressor(examples(100, 0), tmp_path, **TINY)
    names = sorted(path.name for path in folder.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert [name for name in names if (tmp_path / name).read_bytes() != (folder / name).read_bytes()] == []


def test_another_process_makes_the_same_vocabulary() -> None:
    # Some trainers number tokens in the order of a hash map, which differs between processes only.
    texts = [text for text, _ in examples(20, 0)] + ["naïve Füße 漢字 \U0001f4a1"]
    code = f"from tasks.scorers.train_edu import train_vocabulary; print(train_vocabulary({texts!r}, 320).to_str())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert other.strip() == train_vocabulary(texts, 320).to_str()


def test_training_computes_with_one_thread_and_leaves_torchs_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(train_edu, "_fit", lambda *_: threads.append(torch.get_num_threads()) or torch.rand(1))
    torch.set_num_threads(2)
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    train_regressor(examples(3, 0), tmp_path / "model", **TINY)
    assert threads == [1] and torch.get_num_threads() == 2
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("bad", "message"), [([], "no examples"), ([("a", 1.0), ("b", 5.5)], "example 1 is 5.5"), ([("a", float("nan"))], "0 is nan")]
)
def test_bad_examples_are_named(bad: list[tuple[str, float]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train_regressor(bad, tmp_path / "model")


def broken(folder: Path, out: Path, outputs: int = 1, head: bool = True, safe: bool = True) -> Path:
    """A BERT folder with that many outputs, without its head, or with its weights in a pickle."""
    config = BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    config.num_labels = outputs
    model = BertForSequenceClassification(config) if head else BertModel(config)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    if not safe:
        torch.save(model.state_dict(), out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()
    return out


def test_a_model_that_cannot_score_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two has 2 outputs"):
        score(broken(folder, tmp_path / "two", outputs=2), ["a"])
    with pytest.raises(UserError, match=r"headless lacks the weights classifier\.bias"):
        score(broken(folder, tmp_path / "headless", head=False), ["a"])
    with pytest.raises(UserError, match="pickled cannot be loaded"):
        score(broken(folder, tmp_path / "pickled", safe=False), ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty cannot be loaded"):
        score(tmp_path / "empty", ["a"])


def test_provenance_names_device_class_and_dtype(folder: Path) -> None:
    scorer = EduClassifier(EduClassifierConfig(device="cpu", dtype="bfloat16"), folder)
    assert scorer.provenance == {"device": "cpu", "dtype": "bfloat16"}
    texts = [text for text, _ in examples(5, 3)]
    assert scorer.score(texts)["edu"] == pytest.approx(score(folder, texts), abs=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_scores_as_the_cpu_to_within_rounding(folder: Path) -> None:
    texts = [text for text, _ in examples(30, 3)]
    assert score(folder, texts, device="cuda") == pytest.approx(score(folder, texts), abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_where_there_is_none_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        score(folder, ["a"], device="cuda")
