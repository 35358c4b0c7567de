"""Small Stack Exchange dumps, as archives of sites whose documents are known."""

import functools
import io

import py7zr

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def site_archive(documents: dict[int, str]) -> bytes:
    """A site of a question with an accepted answer for each number, whose answer has this text; of equal documents always the same bytes."""
    return _archive(tuple(sorted(documents.items())))


@functools.cache  # an archive holds the time at which it was made
def _archive(documents: tuple[tuple[int, str], ...]) -> bytes:
    rows = []
    for number, text in documents:
        question, answer = 2 * number + 1, 2 * number + 2
        rows.append(f'<row Id="{question}" PostTypeId="1" AcceptedAnswerId="{answer}" Score="9" Title="T{number}" Body="why {number}" />\n')
        rows.append(f'<row Id="{answer}" PostTypeId="2" ParentId="{question}" Score="9" Body="{text}" />\n')
    sink = io.BytesIO()
    with py7zr.SevenZipFile(sink, "w") as packed:
        packed.writestr(HEAD + "".join(rows) + "</posts>", "Posts.xml")
    return sink.getvalue()


def write_dump(folder, sites: dict[str, dict[int, str]], marker: bool = True):
    """A dump's folder: an archive for each site, and `_SUCCESS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for site, documents in sites.items():
        (folder / f"{site}.7z").write_bytes(site_archive(documents))
    if marker:
        (folder / "_SUCCESS").touch()
    return folder


def recipe(folder, dumps, **section):
    """A recipe over the dumps that appear at a path, with a mix of them."""
    return {
        "name": "forum",
        "store": str(folder / "store"),
        "stackexchange_dumps": {"path": str(dumps), "settle_minutes": 0, **section},
        "sources": {"forum": {"format": "stackexchange", "paths": ["{dump}"], "filters": [{"column": "repeated", "equals": False}]}},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [str(folder / "words.jsonl")]}]},
        "sequence_length": 16,
        "held_out": {"share": 0.1, "tokens_per_source": 100},
        "mixes": {"mid": {"sources": {"forum": {"repeat": 1}}}},
        "where": {"engine": {"workers": 1}},
    }
