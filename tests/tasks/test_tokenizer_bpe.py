"""Ranks, merges, Unicode classes, and which encoder is used."""

import logging
import random
from collections.abc import Iterable
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from tasks import bpe, tokenizer
from tasks.errors import UserError
from tasks.tokenizer import Tokenizer, train_bpe

MASKS = {"|||PHONE_NUMBER|||": 5000, "|||IP_ADDRESS|||": 5001}
BYTES = [bytes([byte]) for byte in range(256)]
# Tokens across the edge of a character: whether they are used tells how the pre-tokenizer classes that character.
EDGES = [pair for byte in BYTES[0x80:] for edge in (b"a", b".", b"'", b" ", b"\n") for pair in (edge + byte, byte + edge)]
SURROGATES = range(0xD800, 0xE000)


def classing_texts(code_points: Iterable[int]) -> list[str]:
    return [f"a{c}a .{c} '{c}a '{c}{c}a  {c}\n{c} {c} '{c}' {c}{c}{c}{c} {c}\r\n" for c in map(chr, code_points)]


def ids(encoder: bpe.Encoder, texts: list[str]) -> list[list[int]]:
    return [array.tolist() for array in encoder.encode_documents(texts)]


def naive_ids(text: str, rank_of: dict[bytes, int]) -> list[int]:
    """The classic pattern in the `tokenizers` library, then byte-pair encoding by its definition."""
    split = pre_tokenizers.Split(bpe.Regex(bpe.CLASSIC_PATTERN), "isolated")
    return [rank_of[part] for piece, _ in split.pre_tokenize_str(text) for part in naive_pieces(piece.encode(), rank_of)]


def ranked(tokens: list[bytes]) -> dict[bytes, int]:
    return {token: rank for rank, token in enumerate(tokens)}


def quicktok(ranks: list[bytes]) -> bpe.QuicktokEncoder:
    pytest.importorskip("quicktok")
    return bpe.QuicktokEncoder(ranks, MASKS, bpe.unicode_classes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe")
    train_bpe([Path(bpe.__file__).read_text(encoding="utf-8")], 500, path)
    return path


def test_encoders_class_characters_alike() -> None:
    """At both ends of every range of letters, numbers and space, of our classes and of all that Unicode added since, and at random."""
    ends = [end for ranges in bpe.unicode_classes().values() for bounds in ranges for end in bounds]
    new = [0x88F, 0xA7CE, 0xA7D2, 0x10940, 0x10959, 0x10EC5, 0x11DB0, 0x16EA0, 0x18D80, 0x1E6C0, 0x2B73A, 0x2CEA2, 0x323B0, 0x33479]
    some = {*(c + step for c in [*ends, *new] for step in (-1, 0, 1)), *random.Random(0).sample(range(0x80, 0x110000), 2000)}
    texts = classing_texts(sorted(some - set(SURROGATES)))
    assert ids(quicktok(BYTES + EDGES), texts) == ids(bpe.TiktokenEncoder(BYTES + EDGES, MASKS), texts)


@pytest.mark.soak
def test_encoders_class_every_character_alike() -> None:
    texts = classing_texts(c for c in range(0x110000) if c not in SURROGATES)
    assert ids(quicktok(BYTES + EDGES), texts) == ids(bpe.TiktokenEncoder(BYTES + EDGES, MASKS), texts)


def test_encoders_split_every_short_text_alike() -> None:
    ranks = [*BYTES, *[(a + b).encode() for a, b in product("sS1.' \t\n\r", repeat=2)]]
    texts = ["".join(characters) for length in range(1, 5) for characters in product("sS1.' \t\n\r", repeat=length)]
    expected = [naive_ids(text, ranked(ranks)) for text in texts]
    assert ids(bpe.TiktokenEncoder(ranks, MASKS), texts) == expected
    assert ids(quicktok(ranks), texts) == expected


def test_classes_are_unicodes() -> None:
    classes = {name: {c for first, last in ranges for c in range(first, last + 1)} for name, ranges in bpe.unicode_classes().items()}
    assert {ord(c) for c in "aZéſ中\U0002a6d6ʰ"} <= classes["letters"]
    assert {ord(c) for c in "09٣५²½ⅷ①"} <= classes["numbers"]
    assert classes["spaces"] == {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
    assert not classes["letters"] & classes["numbers"]


def naive_pieces(text: bytes, rank_of: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding by its definition."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while pairs := [(rank_of[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank_of]:
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), text=st.text("ab", min_size=1, max_size=30))
def test_one_merge_a_token_decides_as_ranks_do(seed: int, text: str) -> None:
    """In the `tokenizers` library, which knows merges only; on vocabularies grown at random, where many splits make the same token."""
    rng = random.Random(seed)
    ranks = [b"a", b"b"]
    for _ in range(12):
        grown = rng.choice(ranks) + rng.choice(ranks)
        # Only a token that its own bytes come to can be made by merges.
        if grown not in ranks and naive_pieces(grown, ranked([*ranks, grown])) == [grown]:
            ranks.append(grown)
    merges = [(left.decode(), right.decode()) for left, right in bpe.merges_of(ranks)]
    assert len(merges) == len(ranks) - 2
    library = models.BPE({token.decode(): rank for rank, token in enumerate(ranks)}, merges)
    assert [token.value.encode() for token in library.tokenize(text)] == naive_pieces(text.encode(), ranked(ranks))


def test_a_token_that_no_merge_makes_has_none() -> None:
    assert bpe.merges_of([b"a", b"b", b"c", b"abc"]) == []


def test_ranks_file_is_tiktokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = [*BYTES, b"ab", b"\n\n"]
    (tmp_path / "ranks").write_bytes(bpe.dump_ranks(ranks))
    assert tiktoken.load.load_tiktoken_bpe(str(tmp_path / "ranks")) == ranked(ranks)
    assert bpe.parse_ranks(bpe.dump_ranks(ranks), "ranks") == ranks


@pytest.mark.parametrize("line", [b"YQ==", b"YQ== 7", b"Y 1", b"YQ== x"])
def test_bad_ranks_name_file_and_line(line: bytes) -> None:
    with pytest.raises(UserError, match=r"some/ranks, line 2"):
        bpe.parse_ranks(b"YQ== 0\n" + line + b"\n", "some/ranks")


SPACES = st.sampled_from(["a", "1", ".", "|||IP_ADDRESS|||", "   ", " ", "\n", "\r", "\t", "\u3000", "\u00a0"])
# Tokens across every place where white space can be cut.
ACROSS = [
    a + b
    for a in (b" ", b"\t", b"\r", b"\n", b"\x80", b"\xa0", b"a", b".")
    for b in (b" ", b"\t", b"\r", b"\n", b"\xe3", b"\xc2", b"a", b".")
]


@cache
def cutting_and_plain() -> tuple[bpe.Encoder, tiktoken.Encoding]:
    ranks = [*BYTES, *ACROSS]
    plain = tiktoken.Encoding(
        "plain",
        pat_str=bpe.POSSESSIVE_PATTERN,
        mergeable_ranks=ranked(ranks),
        special_tokens=MASKS,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_LONG_WHITE_SPACE", 2)
        return bpe.TiktokenEncoder(ranks, MASKS), plain


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(SPACES, max_size=30))
def test_cutting_long_white_space_changes_no_id(pieces: list[str]) -> None:
    cutting, plain = cutting_and_plain()
    text = "".join(pieces)
    assert ids(cutting, [text]) == [plain.encode(text, allowed_special="all", disallowed_special=())]


@pytest.mark.parametrize("space", [" ", "\u3000", "\n "])
def test_tiktoken_survives_a_million_spaces(space: str) -> None:
    """tiktoken alone panics there; quicktok does not, and is the oracle."""
    text = "x" + space * 1_000_000 + "y"
    assert ids(bpe.TiktokenEncoder(BYTES, MASKS), [text]) == ids(quicktok(BYTES), [text])


def test_quicktok_is_used_where_it_is_installed(folder: Path) -> None:
    pytest.importorskip("quicktok")
    assert isinstance(Tokenizer.load(folder)._encoder, bpe.QuicktokEncoder)


def test_tiktoken_is_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["def encode(text: str) -> int:\n    return 1234567  # it's 日本 |||IP_ADDRESS||| <|endoftext|>", "", "a\ud800"]
    expected = ids(Tokenizer.load(folder), texts)  # type: ignore[arg-type]

    def no_wheel(*_: Any) -> None:
        raise ImportError("quicktok")

    monkeypatch.setattr(bpe, "QuicktokEncoder", no_wheel)
    fallback = Tokenizer.load(folder)
    assert isinstance(fallback._encoder, bpe.TiktokenEncoder)
    assert ids(fallback, texts) == expected  # type: ignore[arg-type]


def test_a_wrong_quicktok_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("quicktok")
    real = bpe.QuicktokEncoder
    monkeypatch.setattr(bpe, "QuicktokEncoder", lambda ranks, masks, classes: real(ranks, {}, classes))
    with caplog.at_level(logging.WARNING):
        assert isinstance(Tokenizer.load(folder)._encoder, bpe.TiktokenEncoder)
    assert "encoded by tiktoken" in caplog.text


def test_a_tiktoken_that_splits_otherwise_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_wheel(*_: Any) -> None:
        raise ImportError("quicktok")

    monkeypatch.setattr(bpe, "QuicktokEncoder", no_wheel)
    monkeypatch.setattr(bpe, "POSSESSIVE_PATTERN", r"\p{L}+|\P{L}+")
    with pytest.raises(UserError, match="tiktoken splits text otherwise"):
        Tokenizer.load(folder)


def test_without_quicktok_the_ranks_are_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken_ext.openai_public as openai_public

    monkeypatch.setitem(__import__("sys").modules, "quicktok", None)
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {b"b": 1, b"a": 0})
    assert tokenizer._cl100k_ranks() == [b"a", b"b"]

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", offline)
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR"):
        tokenizer._cl100k_ranks()
