"""The ids of cl100k are tiktoken's; fast encoder, fallback and exported Hugging Face tokenizer agree, for both kinds of tokenizer."""

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import bpe
from tasks.errors import UserError
from tasks.tokenizer import CL100K_SHA256, Tokenizer, build_cl100k, repair_surrogates, train_bpe

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("OLMOFLOW_DATA", REPOSITORY.parent / "shared" / "data"))
MASKS = ["|||PHONE_NUMBER|||", "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||"]
FILL_IN_THE_MIDDLE = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
CONTROLS = ["<|endoftext|>", *FILL_IN_THE_MIDDLE, "<|im_start|>", "<|im_end|>", "<|endofprompt|>", "<|pad|>"]

DOCUMENTS = {
    "empty": "",
    "digits": "1 12 123 1234 1234567 0.001 1,000,000 3.14159 0xDEADBEEF 2024-01-31T12:34:56 99.99% 1e-10",
    "other digits": "١٢٣٤٥٦٧ ۱۲۳۴ १२३४५ 12٣٤५६7 x²³¹⁴⁵ H₂O ½¾⅓ ⅷⅻ ①②③④⑤ 〇一二三 𝟏𝟐𝟑𝟒𝟓 12三4",
    "code": "def f(x: int) -> str:\n\treturn {'a': [i**2 for i in range(100)]}  # ok!!!\n\n\n#include <vector>\nint main(){return 0;}\n",
    "cjk": "日本語のトークナイザー。中文，没有空格！한국어 문장입니다. 久久AV中文ENGLISH 𠀀𪛖",
    "emoji": "👍🏽 👨‍👩‍👧‍👦 🇫🇷🇩🇪 ❤️‍🔥 \U0001f680\U0001f525 ©®™ ☃☃☃",
    "white space": "a  b   c    d\t\te\n\n\nf \n \n g\r\n\r\nh\r\r i\u00a0\u00a0j\u3000\u3000k\u2028l\u2029m\u0085n\v\f o   ",
    "contractions": "I'm I'M it's IT'S we'll WE'LL you've YOU'VE they're THEY'RE can't CAN'T he'd HE'D 'ſ 'tis 'TWAS o'clock ''s ' s 'S's",
    "crlf": "line one\r\nline two\r\n\r\n  indented\r\n\tend.\r\n",
    "zero width": "a\u200bb\u200cc\u200dd\ufeffe\u00adf\u2060g \u200b \u200b\u200b",
    "combining": "e\u0301 n\u0303o\u0304 Z̸̡͈̪͝a̷l̶g̵o̴ हिन्दी தமிழ் ภาษาไทย עברית العَرَبِيَّة",
    "nul": "\0\x01\x02\x1f\x7f\x80\x9f\ufffd\uffff\U0010ffff\ue000",
    "new letters": "..\U00010940\n \U00010940a \u088f\u0c5c \U000323b0\U000323b1",
    "controls": " ".join(CONTROLS) + "".join(CONTROLS) + "<|endoftext|" + "\n<|endoftext|>\n\n<|pad|>  ",
    "masks": "|||PHONE_NUMBER|||, |||EMAIL_ADDRESS|||;   |||IP_ADDRESS|||\n\n |||IP_ADDRESS||||||PHONE_NUMBER|||s 12|||IP_ADDRESS|||34",
    "nearly masks": "||||PHONE_NUMBER|||| |||PHONE_NUMBER|| |||phone_number||| |||IP_ADDRESS|||EMAIL_ADDRESS||| ||| |||URL|||",
    "mask and control": "<|im_start|>|||EMAIL_ADDRESS|||<|im_end|>   |||PHONE_NUMBER|||   <|pad|>",
    **{f"run of {run!r}": run * (100_000 // len(run)) for run in ["a", " ", "\n", "1", "!", "ab", "\t", " \n", "é", "中", "a\u0301"]},
    "spaces before a word": "x" + " " * 100_000 + "y",
}


class Kind(NamedTuple):
    """A tokenizer as we load it, as transformers loads it, and as tiktoken makes it of the folder's ranks and a pattern of its own."""

    folder: Path
    ours: Tokenizer
    hugging_face: Any
    reference: tiktoken.Encoding


def load_kind(folder: Path) -> Kind:
    from transformers import AutoTokenizer

    ours = Tokenizer.load(folder)
    ranks = tiktoken.load.load_tiktoken_bpe(str(folder / "ranks.tiktoken"))
    pattern = tiktoken_pattern() if ours.kind == "cl100k" else FORMER_PATTERN
    masks = {mask: ours.special_tokens[mask] for mask in MASKS}
    reference = tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens=masks)
    return Kind(folder, ours, AutoTokenizer.from_pretrained(folder), reference)


# cl100k's pattern as tiktoken formerly wrote it.
FORMER_PATTERN = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""


def tiktoken_pattern() -> str:
    """cl100k's pattern as the installed tiktoken writes it, without fetching the ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
        return tiktoken_ext.openai_public.cl100k_base()["pat_str"]


def training_texts() -> list[str]:
    stdlib = [path.read_text(encoding="utf-8")[:20_000] for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]]
    # Few letters in many ties make merges whose order matters.
    random_words = ["".join(random.Random(seed).choices("ab", k=40)) for seed in range(300)]
    scripts = [DOCUMENTS[name] for name in ("cjk", "emoji", "combining", "new letters", "digits", "other digits")]
    return [*stdlib, *random_words, *scripts * 2, "x\n \n  \n " * 1000]


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterable[None]:
    """transformers must not ask a server; tiktoken must not copy our files to a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        yield


@pytest.fixture(scope="module")
def cl100k(no_network: None, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("cl100k")
    build_cl100k(folder)
    return load_kind(folder)


@pytest.fixture(scope="module")
def trained(no_network: None, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(training_texts(), 2000, folder)
    return load_kind(folder)


@pytest.fixture(params=["cl100k", "trained"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.getfixturevalue(request.param)


def assert_same_ids(kind: Kind, texts: list[str]) -> None:
    """Ours are tiktoken's ids, and AutoTokenizer's with its default arguments."""
    for text, ids in zip(texts, kind.ours.encode_documents(texts), strict=True):
        expected = kind.reference.encode(text, allowed_special="all", disallowed_special=())
        assert ids.tolist() == expected, f"tiktoken differs on {text[:200]!r}"
        assert kind.hugging_face(text)["input_ids"] == expected, f"AutoTokenizer differs on {text[:200]!r}"
        assert kind.ours.decode(ids) == text


def assert_fast_ids(kind: Kind, texts: list[str]) -> None:
    """Ours are tiktoken's ids; for more text than the Hugging Face tokenizer would do quickly."""
    for text, ids in zip(texts, kind.ours.encode_documents(texts), strict=True):
        expected = kind.reference.encode_to_numpy(text, allowed_special="all", disallowed_special=())
        assert np.array_equal(ids, expected), f"tiktoken differs on {text[:200]!r}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_have_the_same_ids_everywhere(kind: Kind, name: str) -> None:
    assert_same_ids(kind, [DOCUMENTS[name]])


# Surrogates are no characters; the rest of Unicode is drawn, planted tokens and awkward pieces among it.
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text("ab", max_size=40),
    st.sampled_from(
        [*MASKS, *CONTROLS, "'S", "'ll", " ", "   ", "\n", "\n ", "\n  ", "\r\n", "123", "1234", "...", "\t", "!\n\n", "|||", "x", "é"]
    ),
)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_random_text_has_the_same_ids_everywhere(cl100k: Kind, trained: Kind, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert_same_ids(cl100k, [text])
    assert_same_ids(trained, [text])


def test_standard_library_has_the_same_ids_everywhere(kind: Kind) -> None:
    sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    texts = [path.read_bytes().decode("utf-8", "replace") for path in sources if "site-packages" not in path.parts]
    assert_same_ids(kind, [text[:20_000] for text in texts[::60]])
    assert_fast_ids(kind, texts[1::5])


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder is absent")
def test_real_documents_have_the_same_ids_everywhere(kind: Kind) -> None:
    texts = []
    for path in sorted(DATA.rglob("*")):
        if path.is_file():
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                texts.append(file.read(100_000).decode("utf-8", "replace"))
    assert len(texts) > 10
    assert_same_ids(kind, [text[:8_000] for text in texts])
    assert_fast_ids(kind, texts)


def test_cl100k_is_tiktokens_cl100k_base(cl100k: Kind) -> None:
    assert hashlib.sha256((cl100k.folder / "ranks.tiktoken").read_bytes()).hexdigest() == CL100K_SHA256
    # The hash that tiktoken's own loader asks for.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda _, expected_hash: expected_hash)
        assert tiktoken_ext.openai_public.cl100k_base()["mergeable_ranks"] == CL100K_SHA256
    assert cl100k.ours.encode("hello world, 1234567").tolist() == [15339, 1917, 11, 220, 4513, 10961, 22]  # as published


def test_no_cl100k_token_ends_in_space_after_a_line_break(cl100k: Kind) -> None:
    """Or tiktoken's pattern would differ from the classic one where white space after a line break ends a text."""
    tokens = tiktoken.load.load_tiktoken_bpe(str(cl100k.folder / "ranks.tiktoken"))
    assert [token for token in tokens if re.search(rb"[\r\n][^\r\n]+\Z", token)] == []


def test_trained_tokens_that_end_in_space_after_a_line_break_stay_within_the_classic_pattern(trained: Kind) -> None:
    """`\\s*[\\r\\n]+` brings such tokens about in training, but the classic pattern never hands one a text's end."""
    assert b"\n " in tiktoken.load.load_tiktoken_bpe(str(trained.folder / "ranks.tiktoken"))
    assert_same_ids(trained, ["x\n ", "x\n  ", "\n ", " \n \n ", "x\n |||IP_ADDRESS|||\n "])
    assert trained.ours.encode("x\n ").tolist() == [*trained.ours.encode("x\n").tolist(), *trained.ours.encode(" ").tolist()]


def test_cl100k_pins_olmo2s_ids(cl100k: Kind) -> None:
    assert cl100k.ours.special_tokens == {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "|||PHONE_NUMBER|||": 100261,
        "|||EMAIL_ADDRESS|||": 100262,
        "|||IP_ADDRESS|||": 100263,
        "<|im_start|>": 100264,
        "<|im_end|>": 100265,
        "<|endofprompt|>": 100276,
        "<|pad|>": 100277,
    }
    assert (cl100k.ours.eos_id, cl100k.ours.pad_id) == (100257, 100277)
    assert (cl100k.ours.vocab_size, cl100k.ours.padded_vocab_size) == (100278, 100352)
    for token, token_id in cl100k.ours.special_tokens.items():
        assert cl100k.hugging_face.convert_tokens_to_ids(token) == token_id
        assert cl100k.hugging_face.convert_ids_to_tokens(token_id) == token
    for gap in (100256, *range(100266, 100276), *range(100278, 100352)):
        assert cl100k.hugging_face.convert_ids_to_tokens(gap) is None
        assert cl100k.ours.decode([gap]) == ""


def test_trained_special_tokens_end_the_vocabulary(trained: Kind) -> None:
    ours = trained.ours
    assert (ours.vocab_size, ours.padded_vocab_size) == (2000, 2048)
    assert sorted(ours.special_tokens.values()) == list(range(1989, 2000))
    assert (ours.eos_id, ours.pad_id) == (1989, 1999)
    assert len((trained.folder / "ranks.tiktoken").read_bytes().splitlines()) == 1989


def test_control_tokens_in_a_document_are_ordinary_text(kind: Kind) -> None:
    special = set(kind.ours.special_tokens.values())
    for control in CONTROLS:
        assert not special & set(kind.ours.encode(f"a{control} b").tolist())


def test_masking_tokens_are_single_ids(kind: Kind) -> None:
    for mask in MASKS:
        assert kind.ours.encode(mask).tolist() == [kind.ours.special_tokens[mask]]


def test_hugging_face_folder_has_eos_and_pad_and_adds_nothing(kind: Kind) -> None:
    hugging_face = kind.hugging_face
    assert hugging_face.is_fast
    assert (hugging_face.eos_token_id, hugging_face.pad_token_id, hugging_face.bos_token_id) == (kind.ours.eos_id, kind.ours.pad_id, None)
    assert hugging_face("")["input_ids"] == []
    padded = hugging_face(["a", "a b c"], padding=True, padding_side="right")["input_ids"]
    assert padded[0] == [kind.ours.encode("a")[0], *[kind.ours.pad_id] * (len(padded[1]) - 1)]


def test_hugging_face_decodes_special_ids(kind: Kind) -> None:
    ours, hugging_face = kind.ours, kind.hugging_face
    ids = [*ours.encode("é 中!").tolist(), ours.eos_id, ours.special_tokens["|||IP_ADDRESS|||"], ours.pad_id]
    assert hugging_face.decode([ours.eos_id]) == "<|endoftext|>"
    assert hugging_face.decode(ids) == ours.decode(ids) == "é 中!<|endoftext|>|||IP_ADDRESS|||<|pad|>"
    # The masking token is a word of the document, not a control token.
    assert hugging_face.decode(ids, skip_special_tokens=True) == "é 中!|||IP_ADDRESS|||"


def test_control_tokens_are_parsed_when_asked_for(kind: Kind) -> None:
    ours = kind.ours
    ids = kind.hugging_face("<|im_start|>x<|im_end|>", split_special_tokens=False)["input_ids"]
    assert ids == [ours.special_tokens["<|im_start|>"], *ours.encode("x").tolist(), ours.special_tokens["<|im_end|>"]]
    assert_same_ids(kind, ["<|im_start|>x<|im_end|>"])  # and asking once changes nothing for later calls


def test_a_models_folder_loads_the_same_tokenizer(kind: Kind, tmp_path: Path) -> None:
    """Beside an Olmo2 config.json transformers must not put another pre-tokenizer in place of ours, nor after save_pretrained."""
    from transformers import AutoTokenizer

    shutil.copytree(kind.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}))
    beside_model = AutoTokenizer.from_pretrained(tmp_path)
    assert_same_ids(kind._replace(hugging_face=beside_model), [*DOCUMENTS.values()][:17])
    beside_model.save_pretrained(tmp_path / "saved")
    assert_same_ids(kind._replace(hugging_face=AutoTokenizer.from_pretrained(tmp_path / "saved")), [*DOCUMENTS.values()][:17])


def test_lone_surrogates_are_repaired_as_tiktoken_does(kind: Kind) -> None:
    texts = ["a\ud800b", "\udfff", "\ud83d\ude00 pair", "ordinary é", "x\ud83d|||IP_ADDRESS|||"]
    expected = [kind.reference.encode(text, allowed_special="all", disallowed_special=()) for text in texts]
    assert [ids.tolist() for ids in kind.ours.encode_documents(texts)] == expected
    assert [repair_surrogates(text) for text in texts] == ["a\ufffdb", "\ufffd", "😀 pair", "ordinary é", "x\ufffd|||IP_ADDRESS|||"]


def test_ids_are_uint32_arrays(kind: Kind) -> None:
    for ids in [kind.ours.encode("hello"), kind.ours.encode(""), *kind.ours.encode_documents(["", "a b"])]:
        assert isinstance(ids, np.ndarray)
        assert ids.dtype == np.uint32 and ids.ndim == 1
    assert kind.ours.encode_documents([]) == []


def test_decode_mends_broken_bytes_and_refuses_foreign_ids(kind: Kind) -> None:
    half = kind.ours.encode("\U000323b0")[:-1]
    assert kind.ours.decode(half) == kind.hugging_face.decode(half.tolist())
    for foreign in (-1, kind.ours.padded_vocab_size):
        with pytest.raises(UserError, match="outside the vocabulary"):
            kind.ours.decode([0, foreign])


def test_training_twice_gives_the_same_bytes_whatever_the_threads(trained: Kind, tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(training_texts()))
    program = (
        "import json, pathlib, sys; from tasks.tokenizer import train_bpe\n"
        "train_bpe(json.loads(pathlib.Path(sys.argv[1]).read_text()), 2000, pathlib.Path(sys.argv[2]))"
    )
    folder = tmp_path / "again"
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, texts, folder], check=True, cwd=REPOSITORY, env=environment)
    assert files(folder) == files(trained.folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_trained_merges_are_those_of_the_library(tmp_path: Path) -> None:
    """The ranks come from the trained vocabulary; the merges we write must be what the `tokenizers` library trained."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    texts = training_texts()
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(bpe.Regex(bpe.CLASSIC_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1989, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    train_bpe(texts, 2000, tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"] == json.loads(library.to_str())["model"]["merges"]


def test_masking_tokens_and_surrogates_do_not_reach_training(tmp_path: Path) -> None:
    train_bpe(["|||PHONE_NUMBER|||, \ud800|||IP_ADDRESS|||"] * 50, 400, tmp_path)
    tokens = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert not [token for token in tokens if b"PHONE" in token or b"IP" in token]


def test_few_texts_give_a_smaller_vocabulary(tmp_path: Path) -> None:
    train_bpe(["ab ab ab"], 1000, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size < 300
    assert tokenizer.eos_id == tokenizer.vocab_size - 11
    assert tokenizer.decode(tokenizer.encode("ab ab!")) == "ab ab!"


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"266.*267"):
        train_bpe(["a"], 266, tmp_path)


def test_identity_names_the_ids(cl100k: Kind, trained: Kind, tmp_path: Path) -> None:
    assert cl100k.ours.sha256 != trained.ours.sha256
    train_bpe(["ab ab ab"], 300, tmp_path / "a")
    train_bpe(["ba ba ba"], 300, tmp_path / "b")
    assert Tokenizer.load(tmp_path / "a").sha256 != Tokenizer.load(tmp_path / "b").sha256


def test_damaged_folders_are_refused(trained: Kind, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a tokenizer's folder"):
        Tokenizer.load(tmp_path)
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    ranks = (tmp_path / "ranks.tiktoken").read_bytes().splitlines(keepends=True)
    (tmp_path / "ranks.tiktoken").write_bytes(b"".join(ranks[:-1]))
    with pytest.raises(UserError, match=r"ranks\.tiktoken"):
        Tokenizer.load(tmp_path)
