"""Byte-pair encoding: ranks, merges, and the encoders that turn text into ids.

A vocabulary is a list of byte strings whose place is their rank (= id, = merge priority), with tiktoken's meaning: of all adjacent pairs in
a pre-token whose concatenation is in the list, the one of the lowest rank, the leftmost at a tie, is merged, until none is left.
tiktoken is the reference; quicktok is the fast encoder where it has a wheel. quicktok 0.4's own table of Unicode classes knows letters of
Unicode 17 that tiktoken 0.14 and `tokenizers` 0.23 do not (4657 code points), so it is given the classes that `tokenizers` uses.
"""

import base64
import binascii
import re
import struct
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Regex, pre_tokenizers

from tasks.errors import UserError

# cl100k's pre-tokenizer, twice. The `tokenizers` library reads `{1,3}+` as a repeated group where tiktoken's regex engine reads a
# possessive quantifier, and then disagrees on one document in three: it gets the classic form. The possessive form spares tiktoken
# backtracking. It is tiktoken 0.14's own with `\s++$` moved behind `\s*[\r\n]`: where white space after a line break ends a text, tiktoken
# now keeps the two together, which no token of cl100k can show but one of a trained vocabulary may.
CLASSIC_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
POSSESSIVE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s++$|\s+(?!\S)|\s"
)

_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_WHITE_SPACE = 100_000  # characters; tiktoken 0.14 manages 200,000 and panics (stack overflow) at 1,000,000

Range = tuple[int, int]


class Encoder(Protocol):
    """Turns texts without lone surrogates into ids; special tokens are found in the text, all else is ordinary."""

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]: ...


def dump_ranks(ranks: Sequence[bytes]) -> bytes:
    """The ranks in tiktoken's file format: a line each of base64 token, space, rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))


def parse_ranks(data: bytes, name: str) -> list[bytes]:
    """The inverse of `dump_ranks`. UserError naming the file `name` and the line for what is no rank, or ranks that do not count from 0."""
    ranks = []
    decode = binascii.a2b_base64  # what base64.b64decode calls, without its half of the time
    for number, line in enumerate(data.splitlines()):
        try:
            token, rank = line.split(b" ")
            if int(rank) != number:
                raise ValueError(f"rank {int(rank)} out of order")
            ranks.append(decode(token, strict_mode=True))
        except (ValueError, binascii.Error) as error:
            raise UserError(f"{name}, line {number + 1}: not `base64-token rank` ({error}); build the tokenizer again") from error
    return ranks


def merges_of(ranks: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The one merge that makes each token longer than a byte, by rank; a token that no merge can make has none.

    Byte-pair encoding inside a token's bytes does not see what is around them, so whenever the token comes about in any text, it comes
    about from the two pieces that encoding the token alone passes through last. A list of these pairs therefore decides exactly as ranks
    do, which the list of all splits (what converters usually write) does not.
    """
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    merges = []
    for rank, token in enumerate(ranks):
        if len(token) > 1:
            parts = _encode_below(token, rank_of, rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _encode_below(token: bytes, rank_of: dict[bytes, int], limit: int) -> list[bytes]:
    """The pieces of `token` when only merges of a rank below `limit` are allowed."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [rank_of.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        best = min(candidates)
        if best >= limit:
            break
        at = candidates.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@cache
def unicode_classes() -> dict[str, list[Range]]:
    r"""The code points that the installed `tokenizers` library takes for letters \p{L}, numbers \p{N} and space \s, as inclusive ranges.

    Takes about a second: each class is asked for in a string of the planes 0 to 3; the others hold none of the three.
    """
    code_points = [*range(0xD800), *range(0xE000, 0x40000)]  # surrogates are no characters
    everything = "".join(map(chr, code_points))

    def ranges(character_class: str) -> list[Range]:
        split = pre_tokenizers.Split(Regex(f"[{character_class}]+"), "removed", invert=True)
        return [(code_points[start], code_points[end - 1]) for _, (start, end) in split.pre_tokenize_str(everything)]

    return {"letters": ranges(r"\p{L}"), "numbers": ranges(r"\p{N}"), "spaces": ranges(r"\s")}


class TiktokenEncoder:
    """The reference. About 6 MB of text a second on one core."""

    def __init__(self, ranks: Sequence[bytes], special_tokens: dict[str, int]) -> None:
        import tiktoken

        self._special_tokens = set(special_tokens)
        self._encoding = tiktoken.Encoding(
            "olmoflow",
            pat_str=POSSESSIVE_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
            special_tokens=special_tokens,
        )
        # A space before a special token or the end of the text is the end of what is pre-tokenized: nothing to cut there.
        specials = "|".join(map(re.escape, special_tokens))
        self._long_space = re.compile(f"(?<![{_WHITE_SPACE}])[{_WHITE_SPACE}]{{{_LONG_WHITE_SPACE},}}+(?=.)(?!{specials})", re.DOTALL)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32."""
        return [np.concatenate([self._encode(piece) for piece in self._cut(text)]) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special=self._special_tokens, disallowed_special=())

    def _cut(self, text: str) -> list[str]:
        r"""Cut very long white space before its last character, where the pre-tokenizer cuts anyway.

        `\s+(?!\S)` leaves the last character of white space to the word that follows, save for a line break, which `\s*[\r\n]` takes.
        """
        cuts = [m.end() - 1 for m in self._long_space.finditer(text) if text[m.end() - 1] not in "\r\n"]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class QuicktokEncoder:
    """The same ids several times faster. Raises ImportError where quicktok has no wheel, RuntimeError where it cannot take the ranks."""

    def __init__(self, ranks: Sequence[bytes], special_tokens: dict[str, int], classes: dict[str, list[Range]]) -> None:
        import quicktok

        with tempfile.TemporaryDirectory(prefix="olmoflow-ranks-") as name:
            _write_quicktok_files(Path(name), ranks, special_tokens, classes)
            self._tokenizer = quicktok.Tokenizer("olmoflow", name)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32; views of one array."""
        # One thread: shards are what runs in parallel. Of special tokens quicktok knows only those it was given.
        ids, offsets = self._tokenizer.encode_batch(texts, 1, True)
        bounds = offsets.tolist()
        return [ids[start:end] for start, end in pairwise(bounds)]


def _write_quicktok_files(folder: Path, ranks: Sequence[bytes], special_tokens: dict[str, int], classes: dict[str, list[Range]]) -> None:
    """The files of a quicktok 0.4 encoding: tokens, special tokens, scanner, and the Unicode classes (all numbers little-endian)."""
    vocabulary = [struct.pack("<H", len(token)) + token + struct.pack("<I", rank) for rank, token in enumerate(ranks)]
    (folder / "olmoflow.vocab").write_bytes(struct.pack("<I", len(vocabulary)) + b"".join(vocabulary))
    specials = [struct.pack("<IH", token_id, len(token)) + token.encode() for token, token_id in special_tokens.items()]
    (folder / "olmoflow.special").write_bytes(struct.pack("<I", len(specials)) + b"".join(specials))
    # The scanner of the classic pattern; the one named cl100k keeps a line break and the white space that ends a text together.
    (folder / "olmoflow.enc").write_text("scanner=llama3\n")
    (folder / "uniclass.bin").write_bytes(b"".join(_pack_ranges(classes[name]) for name in ("letters", "numbers", "spaces")))


def _pack_ranges(ranges: Iterable[Range]) -> bytes:
    packed = [struct.pack("<II", *bounds) for bounds in ranges]
    return struct.pack("<I", len(packed)) + b"".join(packed)
