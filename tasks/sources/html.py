"""HTML of a forum post to text: resiliparse does the blocks, lists and link words; code and powers need care of their own."""

from __future__ import annotations

import html
import re

from resiliparse.extract.html2text import extract_plain_text

_PRE = re.compile(r"<pre\b[^>]*>(.*?)</pre>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_SUP = re.compile(r"<sup>\s*([^<]+?)\s*</sup>", re.IGNORECASE)
_PLACEHOLDER_ALT = 'alt="enter image description here"'  # what the editor puts in where the author wrote nothing

# U+FFFE cannot stand in XML; only `&#xFFFE;` in the HTML could bring it.
_MARK = "\ufffe"
_MARKED = re.compile(rf"^( *)([^\n]*?){_MARK}(\d{{1,6}}){_MARK}", re.MULTILINE)


def to_text(source: str) -> str:
    """The visible text: code blocks as they are (indented with their list), paragraphs apart by an empty line, formulas as written."""
    blocks: list[str] = []

    def take_out(match: re.Match[str]) -> str:
        blocks.append(html.unescape(_TAG.sub("", match[1])).strip("\r\n").rstrip())
        return f"<p>{_MARK}{len(blocks) - 1}{_MARK}</p>"

    def put_back(match: re.Match[str]) -> str:
        if int(match[3]) >= len(blocks):
            return match[0]  # somebody wrote the mark himself
        indent = match[1] + " " * len(match[2])
        return match[1] + match[2] + blocks[int(match[3])].replace("\n", "\n" + indent)

    # resiliparse indents only the first line of a code block in a list, and trims lines: take the blocks out meanwhile.
    marked = _PRE.sub(take_out, source.replace(_MARK, ""))
    marked = _SUP.sub(_power, marked).replace(_PLACEHOLDER_ALT, "")
    return _MARKED.sub(put_back, extract_plain_text(marked, preserve_formatting=True)).rstrip()


def _power(match: re.Match[str]) -> str:
    """10<sup>6</sup> must not become 106; 20<sup>th</sup> and marks in brackets stay words."""
    raised = match[1]
    if raised.isdigit() or (len(raised) == 1 and raised.isalpha()):
        return f"^{raised}"
    if re.fullmatch(r"[A-Za-z]{2}|[\[(*†‡].*|.*\s.*", raised):
        return raised
    return f"^({raised})"
