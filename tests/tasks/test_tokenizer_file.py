"""A tokenizer that comes as a file: the ids are those of the library that made it, and nothing of a text is lost."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tasks.errors import UserError
from tasks.tokenizer import Tokenizer, build_from_file

TEXTS = [
    "It's 1234 rivers,\n\n  and    more.  ",
    "naïve 日本語 👩\u200d👧 \u0000\x7f",
    "one <|endoftext|> within a text, |||PHONE_NUMBER||| too",
    "",
    " " * 50 + "x",
]


@pytest.fixture(scope="module")
def file() -> bytes:
    """In OLMo 1's manner: GPT-2's pre-tokenizer, a normalizer, added tokens of spaces and of masks, control tokens."""
    made = Library(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|padding|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.add_tokens(["    ", "|||PHONE_NUMBER|||"])
    made.enable_truncation(4)
    return made.to_str().encode()


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_from_file(file, "t.json", "<|endoftext|>", "<|padding|>", folder)
    return folder


def test_ids_are_the_library_s_but_for_control_tokens_which_are_ordinary_text(file, folder):
    library = Library.from_str(file.decode())
    library.no_truncation()
    tokenizer = Tokenizer.load(folder)
    for text in (TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[4]):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32 and ids.tolist() == library.encode(text, add_special_tokens=False).ids
    ids = tokenizer.encode(TEXTS[2]).tolist()
    assert tokenizer.eos_id not in ids and library.token_to_id("|||PHONE_NUMBER|||") in ids
    assert (tokenizer.kind, tokenizer.eos_id, tokenizer.pad_id) == ("huggingface", 0, 1)
    assert tokenizer.vocab_size == library.get_vocab_size() and tokenizer.padded_vocab_size % 128 == 0


def test_what_is_encoded_is_decoded_again(folder):
    tokenizer = Tokenizer.load(folder)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"  # a lone surrogate


def test_users_of_the_model_get_the_same_ids(folder):
    loaded = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_without_a_pad_token_eos_pads(file, tmp_path):
    build_from_file(file, "t.json", "<|endoftext|>", None, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad_id == tokenizer.eos_id == 0


def test_a_file_that_will_not_do_is_named(file, tmp_path):
    for data, eos, told in (
        (b"{}", "<|endoftext|>", "t.json: not a tokenizer.json"),
        (file, "</s>", "t.json: has no token '</s>'; set the tokenizer's eos_token"),
        (without(file, "a"), "<|endoftext|>", "t.json: has no token for the byte 97"),
    ):
        with pytest.raises(UserError) as error:
            build_from_file(data, "t.json", eos, None, tmp_path)
        assert told in str(error.value)


def without(file: bytes, character: str) -> bytes:
    told = json.loads(file)
    told["model"]["vocab"] = {token: number for token, number in told["model"]["vocab"].items() if character not in token}
    told["model"]["merges"] = [pair for pair in told["model"]["merges"] if character not in "".join(pair)]
    return json.dumps(told).encode()


def test_a_folder_that_was_changed_is_refused(file, tmp_path):
    build_from_file(file, "t.json", "<|endoftext|>", None, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(UserError, match=r"tokenizer\.json is not what tokenizer\.olmoflow\.json says"):
        Tokenizer.load(tmp_path)
