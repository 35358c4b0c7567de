"""MinHash signatures of texts: two texts whose sets of word n-grams have the Jaccard similarity s share a bucket with the probability
1 - (1 - s^hashes_per_bucket)^buckets (Broder 1997; the banding of FineWeb, whose numbers are the defaults).

The values are those of datatrove's `MinhashDedupSignature` over words split at white space, at nearly three times its speed
(`benchmarks/minhash.py`). Its own words come from a tokenizer of the text's language, which is a package and a download of its own.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import regex
import xxhash
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION
from pydantic import BaseModel, ConfigDict, Field

SEED = 1  # datatrove's
PRIME_BITS = np.uint64(61)
PRIME = np.uint64((1 << 61) - 1)
AT_ONCE = 256  # n-grams permuted at once, so that the work stays in the cache

_SPACES = bytes(ord(" ") if chr(code) in PUNCTUATION else code for code in range(128)) + bytes(range(128, 256))
_OTHER_PUNCTUATION = re.compile(f"[{''.join(sign for sign in PUNCTUATION if not sign.isascii())}]+")
_MARKS = regex.compile(r"\p{Mn}+")


class MinHash(BaseModel):
    """Near duplicates: the defaults find nine in ten pairs that share 80 % of their word n-grams, half of those that share 70 %."""

    model_config = ConfigDict(extra="forbid")
    ngram: int = Field(default=5, ge=1, description="Words of an n-gram.", json_schema_extra={"position": 0})
    buckets: int = Field(default=14, ge=1, description="Buckets; one shared bucket makes a pair.", json_schema_extra={"position": 1})
    hashes_per_bucket: int = Field(
        default=8, ge=1, description="Hashes that must all be equal within a bucket.", json_schema_extra={"position": 2}
    )


def words(text: str) -> list[bytes]:
    """Lower case, numbers as 0, no punctuation and no accents, split at white space: the words that are compared, in UTF-8."""
    spaced = NUMBERS_PATTERN.sub("0", text.lower()).encode().translate(_SPACES)
    if spaced.isascii():
        return spaced.split()
    plain = _MARKS.sub("", unicodedata.normalize("NFD", _OTHER_PUNCTUATION.sub(" ", spaced.decode())))
    return [word.encode() for word in plain.split()]


def shingles(text: str, ngram: int) -> np.ndarray:
    """uint64[n-grams]: xxHash64 of each word n-gram; empty where the text has fewer words."""
    found = words(text)
    joined, count = b" ".join(found), max(len(found) - ngram + 1, 0)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    ends = np.cumsum(lengths + 1) - 1
    spans = zip((ends - lengths)[:count].tolist(), ends[ngram - 1 :].tolist(), strict=True)
    return np.array([xxhash.xxh64_intdigest(joined[start:end]) for start, end in spans], np.uint64)


class Signer:
    """Signatures under one configuration."""

    def __init__(self, config: MinHash) -> None:
        self.config = config
        random, count = np.random.RandomState(SEED), config.buckets * config.hashes_per_bucket
        self.factor = random.randint(1, int(PRIME), dtype=np.uint64, size=count)
        self.offset = random.randint(0, int(PRIME), dtype=np.uint64, size=count)
        self.low, self.high = np.empty((2, AT_ONCE, count), np.uint64)

    def signature(self, text: str) -> np.ndarray | None:
        """uint64[buckets * hashes_per_bucket]: for each permutation the least n-gram; None where a text has no n-gram."""
        hashes = shingles(text, self.config.ngram)
        if not len(hashes):
            return None
        least = np.full(len(self.factor), np.iinfo(np.uint64).max, np.uint64)
        for first in range(0, len(hashes), AT_ONCE):
            some = hashes[first : first + AT_ONCE, None]
            low, high = self.low[: len(some)], self.high[: len(some)]
            # modulo 2^61 - 1 as (x mod 2^61) + (x div 2^61); a sum of 2^61 - 1 or more, one in 2^58, is left as it is
            np.multiply(some, self.factor, out=low)
            low += self.offset
            np.right_shift(low, PRIME_BITS, out=high)
            low &= PRIME
            low += high
            np.minimum(least, low.min(axis=0), out=least)
        return least

    def buckets(self, text: str) -> list[int] | None:
        """A 64-bit hash of each bucket; None where a text has no n-gram, which is then like no other."""
        signature = self.signature(text)
        if signature is None:
            return None
        return [xxhash.xxh64_intdigest(bucket.astype("<u8").tobytes()) for bucket in signature.reshape(self.config.buckets, -1)]
