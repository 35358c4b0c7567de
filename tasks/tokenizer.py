r"""The tokenizer artifact: one folder from which we encode documents and from which users of the model load a Hugging Face tokenizer.

| file | holds |
|---|---|
| `tokenizer.olmoflow.json` | kind, vocab_size, padded_vocab_size, eos_id, pad_id, special_tokens, mask_tokens, probe (text, ids), sha256 |
| `ranks.tiktoken` | the tokens by rank, for the fast encoder |
| `unicode_classes.json` | which code points are letters, numbers and space, for the fast encoder |
| `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` | the same tokenizer for `transformers.AutoTokenizer` |

One that came as a file (`tasks.tokenizer_file`) has no ranks and no classes: it is encoded by its `tokenizer.json`.

**A document is ordinary text.** `<|endoftext|>` or `<|im_start|>` written in a document is split like any other text, as Ai2 did; only the
three masking tokens, which curation puts where personal data stood, are single ids. `AutoTokenizer.from_pretrained(folder)(text)` gives
the same ids with its default arguments: the control tokens are special tokens, and `split_special_tokens: true` in
`tokenizer_config.json` keeps the tokenizer from finding them in text; the masking tokens are added tokens that are not special, so they
are found, and `skip_special_tokens=True` leaves them in what it decodes. Whoever wants control tokens parsed, in a chat template say,
asks for it: `tokenizer(text, split_special_tokens=False)`, or sets `tokenizer.split_special_tokens = False`.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks import bpe, tokenizer_file
from tasks.errors import UserError
from tasks.train_tokenizer import FROM_FILE

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
MASK_TOKENS = ("|||PHONE_NUMBER|||", "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||")

# OLMo 2's ids. cl100k's ranks end at 100255 and its special tokens begin at 100257: ids are pinned, never counted.
CL100K_SPECIAL_TOKENS = {
    END_OF_TEXT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    MASK_TOKENS[0]: 100261,
    MASK_TOKENS[1]: 100262,
    MASK_TOKENS[2]: 100263,
    "<|im_start|>": 100264,
    "<|im_end|>": 100265,
    "<|endofprompt|>": 100276,
    PAD: 100277,
}
# Of the ranks in tiktoken's file format, as tiktoken itself checks it.
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

METADATA_FILE = "tokenizer.olmoflow.json"
RANKS_FILE = "ranks.tiktoken"
CLASSES_FILE = "unicode_classes.json"
HUGGING_FACE_FILE = "tokenizer.json"

_VOCABULARY_MULTIPLE = 128
_LONGEST_TOKEN = 128  # bytes; cl100k's longest
_SMALLEST_VOCABULARY = 256 + len(CL100K_SPECIAL_TOKENS)

# What an encoder must get right when it is loaded, or it is not used: contractions, digits, white space, code points of several Unicode
# versions (U+10940 is a letter since Unicode 17), control and masking tokens.
_PROBE = (
    "It's HERE'S we'Ll 'ſ don't 1234567 ١٢٣٤ x²³½ 3.14\r\n\r\n  \tdef f(x):\n    return x  # ok!!!\n\n \n  naïve Straße 日本語，中文。\n"
    "한국어 हिन्दी\u200d\u200b\u00a0\u3000 \u0085a\u2028b 👩\u200d👩\u200d👧 ..\U00010940\n \U00010940a"
    " <|endoftext|><|pad|> ||||PHONE_NUMBER||| |||IP_ADDRESS|||   |||EMAIL_ADDRESS|||\n  "
)

_log = logging.getLogger(__name__)


class Tokenizer:
    """A loaded tokenizer. Ids are uint32, special ids included; `padded_vocab_size` is the model's vocabulary size.

    Attributes: kind ("cl100k", "bpe" or "huggingface"), vocab_size (largest id + 1), padded_vocab_size (to a multiple of 128), eos_id, pad_id,
    special_tokens (token -> id), sha256 (of all that decides ids).
    """

    def __init__(self, metadata: dict[str, Any], tokens: Sequence[bytes], encoder: bpe.Encoder) -> None:
        self.kind: str = metadata["kind"]
        self.vocab_size: int = metadata["vocab_size"]
        self.padded_vocab_size: int = metadata["padded_vocab_size"]
        self.eos_id: int = metadata["eos_id"]
        self.pad_id: int = metadata["pad_id"]
        self.special_tokens: dict[str, int] = metadata["special_tokens"]
        self.sha256: str = metadata["sha256"]
        self._encoder = encoder
        self._bytes = [*tokens, *[b""] * (self.padded_vocab_size - len(tokens))]
        for token, token_id in self.special_tokens.items():
            self._bytes[token_id] = token.encode()

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Load what `build_cl100k`, `train_bpe` or `build_from_file` wrote. UserError for a folder that is not whole."""
        folder = Path(folder)
        metadata = json.loads(_read(folder / METADATA_FILE))
        if metadata["kind"] == FROM_FILE:
            return cls._load_file(folder, metadata)
        ranks_data, classes_data = _read(folder / RANKS_FILE), _read(folder / CLASSES_FILE)
        if _identity(ranks_data, classes_data, metadata["special_tokens"]) != metadata["sha256"]:
            raise UserError(f"{folder}: {RANKS_FILE} or {CLASSES_FILE} is not what {METADATA_FILE} says; build the tokenizer again")
        ranks = bpe.parse_ranks(ranks_data, str(folder / RANKS_FILE))
        return cls(metadata, ranks, _checked_encoder(folder, metadata, ranks, json.loads(classes_data)))

    @classmethod
    def _load_file(cls, folder: Path, metadata: dict[str, Any]) -> "Tokenizer":
        data = _read(folder / HUGGING_FACE_FILE)
        if _identity_of_file(data, metadata["special_tokens"]) != metadata["sha256"]:
            raise UserError(f"{folder}: {HUGGING_FACE_FILE} is not what {METADATA_FILE} says; build the tokenizer again")
        encoder = tokenizer_file.FileEncoder(data, str(folder / HUGGING_FACE_FILE))
        if encoder.encode_documents([metadata["probe"]["text"]])[0].tolist() != metadata["probe"]["ids"]:
            raise UserError(f"{folder}: the installed `tokenizers` splits text otherwise than when it was built; install that version")
        return cls(metadata, tokenizer_file.token_bytes(encoder, _byte_characters(), metadata["vocab_size"]), encoder)

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text, uint32 of shape (tokens,), without EOS."""
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32 of shape (tokens,), without EOS; lone surrogates are repaired first."""
        try:
            return self._encoder.encode_documents(texts)
        except (TypeError, UnicodeEncodeError):  # how quicktok and tiktoken refuse lone surrogates
            return self._encoder.encode_documents([repair_surrogates(text) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens written out; an id of the vocabulary that stands for nothing gives nothing.

        Bytes that are no UTF-8 become U+FFFD. UserError for an id outside the padded vocabulary.
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.padded_vocab_size:
            raise UserError(f"id {ids.min() if ids.min() < 0 else ids.max()} is outside the vocabulary of {self.padded_vocab_size}")
        return b"".join([self._bytes[token_id] for token_id in ids.tolist()]).decode("utf-8", "replace")


def repair_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD, as tiktoken does; no library encodes a lone one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def build_cl100k(folder: Path) -> None:
    """Write OLMo 2's tokenizer: cl100k's ranks and the pinned special ids.

    The ranks are those that quicktok brings; without quicktok tiktoken fetches them, or finds them in TIKTOKEN_CACHE_DIR.
    """
    ranks = _cl100k_ranks()
    if hashlib.sha256(bpe.dump_ranks(ranks)).hexdigest() != CL100K_SHA256:
        raise UserError("the installed quicktok or tiktoken brings other cl100k ranks than OLMo 2's; install the pinned versions")
    _write_folder(folder, "cl100k", ranks, CL100K_SPECIAL_TOKENS)


def _cl100k_ranks() -> list[bytes]:
    try:
        import quicktok
    except ImportError:
        return _cl100k_ranks_of_tiktoken()
    encoding = quicktok.get_encoding("cl100k_base")
    return [encoding.decode_single_token_bytes(rank) for rank in range(100256)]


def _cl100k_ranks_of_tiktoken() -> list[bytes]:
    from tiktoken_ext.openai_public import cl100k_base

    try:
        rank_of = cl100k_base()["mergeable_ranks"]
    except OSError as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"tiktoken could not fetch the cl100k ranks ({error}); set TIKTOKEN_CACHE_DIR to a folder that holds them"
        ) from error
    return sorted(rank_of, key=rank_of.__getitem__)


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE of `vocab_size` ids, special tokens included, with cl100k's pre-tokenizer; write its folder.

    The special tokens take the last ids, in the order of `CL100K_SPECIAL_TOKENS`. Texts with too few pairs that occur twice give a
    smaller vocabulary. The same texts give the same bytes, whatever the number of threads.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(f"vocab_size is {vocab_size}; bytes and special tokens alone need {_SMALLEST_VOCABULARY}")
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    trained = HuggingFaceTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(bpe.Regex(bpe.CLASSIC_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CL100K_SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    trained.train_from_iterator(_training_texts(texts), trainer)
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    id_of = trained.get_vocab()
    ranks = [bytes(byte_of[character] for character in token) for token in sorted(id_of, key=id_of.__getitem__)]
    _write_folder(folder, "bpe", ranks, {token: len(ranks) + i for i, token in enumerate(CL100K_SPECIAL_TOKENS)})


def build_from_file(data: bytes, name: str, eos_token: str, pad_token: str | None, folder: Path) -> None:
    """Write the folder of a tokenizer that came as a file; `name` is the file's, for errors. EOS pads where there is no `pad_token`."""
    encoder = tokenizer_file.FileEncoder(data, name)
    told = tokenizer_file.described(encoder, name, eos_token, pad_token, _byte_characters())
    written = _json(tokenizer_file.written(data))
    (probe_ids,) = encoder.encode_documents([_PROBE])
    metadata = {
        "kind": FROM_FILE,
        **told,
        "padded_vocab_size": _padded(told["vocab_size"]),
        "mask_tokens": {},
        "probe": {"text": _PROBE, "ids": probe_ids.tolist()},
        "sha256": _identity_of_file(written, told["special_tokens"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HUGGING_FACE_FILE).write_bytes(written)
    _write_described(folder, metadata, eos_token, pad_token or eos_token)


def _training_texts(texts: Iterable[str]) -> Iterator[str]:
    """What of the texts is ordinary: masking tokens never reach the merges."""
    for text in texts:
        pieces = [repair_surrogates(text)]
        for mask in MASK_TOKENS:
            pieces = [part for piece in pieces for part in piece.split(mask)]
        yield from pieces


def _write_folder(folder: Path, kind: str, ranks: Sequence[bytes], special_tokens: dict[str, int]) -> None:
    masks = {token: special_tokens[token] for token in MASK_TOKENS}
    vocab_size = max(special_tokens.values()) + 1
    ranks_data, classes_data = bpe.dump_ranks(ranks), _json(bpe.unicode_classes())
    (probe_ids,) = bpe.TiktokenEncoder(ranks, masks).encode_documents([_PROBE])
    metadata = {
        "kind": kind,
        "vocab_size": vocab_size,
        "padded_vocab_size": _padded(vocab_size),
        "eos_id": special_tokens[END_OF_TEXT],
        "pad_id": special_tokens[PAD],
        "special_tokens": special_tokens,
        "mask_tokens": masks,
        "probe": {"text": _PROBE, "ids": probe_ids.tolist()},
        "sha256": _identity(ranks_data, classes_data, special_tokens),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RANKS_FILE).write_bytes(ranks_data)
    (folder / CLASSES_FILE).write_bytes(classes_data)
    (folder / HUGGING_FACE_FILE).write_bytes(_json(_hugging_face(ranks, special_tokens)))
    _write_described(folder, metadata, END_OF_TEXT, PAD)


def _padded(vocab_size: int) -> int:
    return -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def _write_described(folder: Path, metadata: dict[str, Any], eos_token: str, pad_token: str) -> None:
    """What users of the model need beside `tokenizer.json`, and our own description."""
    named = {"eos_token": eos_token, "pad_token": pad_token}
    # The plain class: classes named after models rebuild the pre-tokenizer to their own liking.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_bytes(_json(config))
    (folder / "special_tokens_map.json").write_bytes(_json(named))
    (folder / METADATA_FILE).write_bytes(_json(metadata))


def _hugging_face(ranks: Sequence[bytes], special_tokens: dict[str, int]) -> dict[str, Any]:
    """`tokenizer.json`. The special tokens stand in the model's vocabulary too, or the library would number them by counting."""
    character_of = _byte_characters()

    def written(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    matching = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = {"type": "Split", "pattern": {"Regex": bpe.CLASSIC_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": token, **matching, "special": token not in MASK_TOKENS}
            for token, token_id in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a pre-token that is a token is that token, as in tiktoken
            "vocab": {written(token): rank for rank, token in enumerate(ranks)} | special_tokens,
            "merges": [[written(left), written(right)] for left, right in bpe.merges_of(ranks)],
        },
    }


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte: itself where it is printable Latin-1, else from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _checked_encoder(folder: Path, metadata: dict[str, Any], ranks: Sequence[bytes], classes: dict[str, list[bpe.Range]]) -> bpe.Encoder:
    """quicktok where it is installed and encodes the probe as tiktoken did when the folder was built, else tiktoken."""
    probe, masks = metadata["probe"], metadata["mask_tokens"]
    try:
        quick = bpe.QuicktokEncoder(ranks, masks, classes)
        if quick.encode_documents([probe["text"]])[0].tolist() == probe["ids"]:
            return quick
        _log.warning("quicktok splits text otherwise than tiktoken: %s is encoded by tiktoken, several times slower", folder)
    except ImportError:
        pass  # no wheel for this machine
    except RuntimeError as error:
        _log.warning("quicktok cannot take the ranks of %s (%s): it is encoded by tiktoken, several times slower", folder, error)
    reference = bpe.TiktokenEncoder(ranks, masks)
    if reference.encode_documents([probe["text"]])[0].tolist() != probe["ids"]:
        raise UserError(f"{folder}: the installed tiktoken splits text otherwise than the one that built this tokenizer; install that one")
    return reference


def _identity(ranks_data: bytes, classes_data: bytes, special_tokens: dict[str, int]) -> str:
    digest = hashlib.sha256()
    for part in (bpe.CLASSIC_PATTERN.encode(), ranks_data, classes_data, _json(special_tokens)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _identity_of_file(data: bytes, special_tokens: dict[str, int]) -> str:
    return hashlib.sha256(hashlib.sha256(data).digest() + _json(special_tokens)).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not a tokenizer's folder ({error.strerror}); build the tokenizer again") from error
