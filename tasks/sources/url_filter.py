"""The URL filter of RefinedWeb and FineWeb: block lists of domains and words, read before any page is looked at."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

import fsspec

from tasks.sources.config import UrlFilter


def make(config: UrlFilter) -> Callable[[str], str | None]:
    """A function that says which list a URL is on, in datatrove's words (`domain`, `hard_blacklisted`, ...), None where on none.

    datatrove's own lists are unpacked into the Hugging Face cache once; in memory they take 0.8 GB, after five
    seconds of loading.
    """
    return _made(config.model_dump_json())


@functools.lru_cache(maxsize=1)  # the lists are large: a worker reads them once for all its shards
def _made(settings: str) -> Callable[[str], str | None]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import URLFilter
    from loguru import logger
    from tldextract import TLDExtract

    logger.disable("datatrove.pipeline.filters")  # it tells of its unpacking
    config = UrlFilter.model_validate_json(settings)
    blocked = URLFilter(
        soft_word_threshold=config.soft_word_threshold,
        extra_domains=list(_lines(config.domains)),
        extra_urls=list(_lines(config.urls)),
        banned_words=list(_lines(config.words)),
        banned_subwords=list(_lines(config.subwords)),
        soft_banned_words=list(_lines(config.soft_words)),
        use_integrated_lists=config.integrated_lists,
    )
    # The list of public suffixes in the package, not one fetched today: a result must not depend on the day.
    blocked.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)

    def reason(url: str) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # datatrove asks tldextract by an old name
            verdict = blocked.filter(Document(text="", id="", metadata={"url": url}))
        return verdict[1] if isinstance(verdict, tuple) else None

    return reason


def _lines(paths: list[str]) -> Iterator[str]:
    for path in paths:
        with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as stream:
            yield from (line.strip() for line in stream if line.strip())
