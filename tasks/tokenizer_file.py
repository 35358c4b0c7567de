"""A tokenizer that comes as the file `tokenizer.json` of the `tokenizers` library, such as OLMo 1's, encoded by that library itself.

Only byte-level ones are taken: another loses what it has no token for, and bits per byte of what is left would flatter it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.errors import UserError

# Bytes that no UTF-8 text has: a vocabulary may be without them.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}


class FileEncoder:
    """Encodes as the file says. Its control tokens are ordinary text where a document has them; its other added tokens are found."""

    def __init__(self, data: bytes, name: str) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises its own, which is no better than this
            raise UserError(f"{name}: not a tokenizer.json that the library `tokenizers` reads ({error}); give another file") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; one thread, since workers already run beside each other."""
        return [np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.uint32) for text in texts]


def described(encoder: FileEncoder, name: str, eos_token: str, pad_token: str | None, byte_characters: Sequence[str]) -> dict[str, Any]:
    """vocab_size (largest id + 1), eos_id, pad_id and special_tokens of a file. UserError where it has no such token or is not byte-level."""
    ids = encoder.tokenizer.get_vocab(with_added_tokens=True)
    lost = [byte for byte, character in enumerate(byte_characters) if character not in ids and byte not in _NEVER]
    if lost:
        raise UserError(f"{name}: has no token for the byte {lost[0]}, so that text would be lost; give a byte-level tokenizer")
    named = {"eos_token": eos_token, **({"pad_token": pad_token} if pad_token is not None else {})}
    for key, token in named.items():
        if token not in ids:
            raise UserError(f"{name}: has no token {token!r}; set the tokenizer's {key} to one of its own")
    special = {token: ids[token] for token in dict.fromkeys(named.values())}
    return {
        "vocab_size": max(ids.values()) + 1,
        "eos_id": ids[eos_token],
        "pad_id": ids[pad_token or eos_token],
        "special_tokens": special,
    }


def token_bytes(encoder: FileEncoder, byte_characters: Sequence[str], size: int) -> list[bytes]:
    """What each of `size` ids stands for; nothing where it stands for nothing."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters)}
    added = {token.content for token in encoder.tokenizer.get_added_tokens_decoder().values()}
    found = [b""] * size
    for token, token_id in encoder.tokenizer.get_vocab(with_added_tokens=True).items():
        plain = token not in added and all(character in byte_of for character in token)
        found[token_id] = bytes(byte_of[character] for character in token) if plain else token.encode()
    return found


def written(data: bytes) -> dict[str, Any]:
    """The file without limits on a text's length, for users of the exported model."""
    return {**json.loads(data), "truncation": None, "padding": None}
