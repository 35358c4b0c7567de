"""HTML of a forum post to the text that a reader of the page sees.

lexbor (in resiliparse) parses it as a browser does; here its nodes become lines. resiliparse's own extraction trims code, glues powers to
their base and leaves the words of some elements out. No word is lost and none is added but what a browser draws: the numbers and bullets
of lists, and `>` before a quote, as in mail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from resiliparse.parse.html import HTMLTree, NodeType

_PARAGRAPHS = {"p", "ul", "ol", "blockquote", "pre", "table", "dl", "hr", "h1", "h2", "h3", "h4", "h5", "h6"}  # an empty line around them
_LINES = _PARAGRAPHS | {
    *("div", "li", "tr", "dt", "dd", "caption", "address", "article", "aside", "center", "details", "summary", "dir", "menu", "fieldset"),
    *("figure", "figcaption", "footer", "form", "header", "hgroup", "legend", "main", "nav", "section", "option", "optgroup", "body"),
}
_HIDDEN = {"script", "style"}  # a browser shows nothing of them; no author writes words there
_PLACEHOLDER_ALT = "enter image description here"  # what the editor puts in where the author wrote nothing

_SPACES = re.compile(r"[ \t\n\r\f]+")
# Formulas of several lines keep them: a % in LaTeX comments out the rest of one.
# Their length has a limit, or a post of nothing but beginnings would take hours.
_DISPLAYED = re.compile(
    r"(\n?\$\$.{1,4000}?\$\$\n?|\n?\\\[.{1,4000}?\\\]\n?|\n?\\begin\{(\w{1,40}\*?)\}.{1,4000}?\\end\{\2\}\n?)", re.DOTALL
)
_DEEPEST_LEVEL = 12  # lists and quotes deeper than this are indented no further
_DEEPEST_ELEMENT = 200  # of elements deeper than this only the words are kept: a hostile post nests a million


def to_text(source: str) -> str:
    """The visible text of an HTML fragment.

    Paragraphs stand apart by an empty line. Code in <pre> keeps its lines and its indentation, without fences; formulas stay as written.
    Cells of a table are parted by tabs. A link gives its words, an image its alternative text.
    """
    writer = _Writer()
    _walk(HTMLTree.parse(source).document, writer)
    return writer.text()


def _walk(root: Any, writer: _Writer) -> None:
    """Document order, without recursion. (resiliparse's traverse_dom never leaves an element without children.)"""
    open_elements: list[Any] = []

    def leave() -> Any:
        element = open_elements.pop()
        if len(open_elements) < _DEEPEST_ELEMENT:
            writer.leave(element)
        return element

    node = root
    while node is not None:
        if node.type == NodeType.TEXT:
            writer.words(node.value)
        elif node.type in (NodeType.ELEMENT, NodeType.DOCUMENT):
            if len(open_elements) < _DEEPEST_ELEMENT:
                writer.enter(node)
            open_elements.append(node)
            child = node.first_child
            if child is not None:
                node = child
                continue
            leave()
        following = node.next
        while following is None and open_elements:
            following = leave().next
        node = following


class _Level:
    """A list item, a quote or a definition: what stands before its first line, and before the others."""

    def __init__(self, first: str, rest: str) -> None:
        self.first, self.rest, self.begun = first, rest, False


class _Writer:
    """Takes nodes in document order and writes lines. `gap`: line ends that are due before the next word (2: an empty line)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = ""
        self.gap = 0
        self.levels: list[_Level] = []
        self.counters: list[int | None] = []  # the next number of each open list, None for bullets
        self.captured: list[str] = []  # open elements whose text is needed whole: powers, cells
        self.is_first_cell = True
        self.pre = 0
        self.code = 0
        self.hidden = 0

    def text(self) -> str:
        self._end_line(0)
        return "\n".join(self.lines)

    # -- nodes ---------------------------------------------------------------------------------------------------------------------

    def enter(self, node: Any) -> None:
        tag = node.tag
        if tag in _HIDDEN:
            self.hidden += 1
        if tag in _LINES:
            self._break(2 if tag in _PARAGRAPHS and not self._is_inner_list(tag) else 1)
        opened = _OPEN.get(tag)
        if opened:
            opened(self, node)

    def leave(self, node: Any) -> None:
        tag = node.tag
        closed = _CLOSE.get(tag)
        if closed:
            closed(self, node)
        if tag in _HIDDEN:
            self.hidden -= 1
        if tag in _LINES:
            self._break(2 if tag in _PARAGRAPHS and not self._is_inner_list(tag) else 1)

    def _is_inner_list(self, tag: str) -> bool:
        return tag in ("ul", "ol") and bool(self.counters)

    def open_list(self, node: Any) -> None:
        start = node.getattr("start", "") if node.tag == "ol" else None
        self.counters.append(None if start is None else int(start) if re.fullmatch(r"-?\d{1,9}", start) else 1)

    def close_list(self, node: Any) -> None:
        self.counters.pop()

    def open_item(self, node: Any) -> None:
        number = self.counters[-1] if self.counters else None
        value = node.getattr("value", "")
        if number is not None:
            number = int(value) if re.fullmatch(r"-?\d{1,9}", value) else number
            self.counters[-1] = number + 1
        marker = "  • " if number is None else f"  {number}. "
        self._open_level(marker, " " * len(marker))

    def open_quote(self, node: Any) -> None:
        self._open_level("> ", "> ")

    def open_definition(self, node: Any) -> None:
        self._open_level("    ", "    ")

    def _open_level(self, first: str, rest: str) -> None:
        deep = len(self.levels) >= _DEEPEST_LEVEL
        self.levels.append(_Level("" if deep else first, "" if deep else rest))

    def close_level(self, node: Any) -> None:
        self._break(1)
        self.levels.pop()

    def open_pre(self, node: Any) -> None:
        self.pre += 1
        self.captured.append("")

    def close_pre(self, node: Any) -> None:
        self.pre -= 1
        block = self.captured.pop().strip("\r\n").rstrip()
        if self.captured or not block:
            self._put(block)
            return
        for line in block.split("\n"):
            self.line = line
            self._end_line(1, code=True)
        self.gap = 2

    def open_code(self, node: Any) -> None:
        self.code += 1

    def close_code(self, node: Any) -> None:
        self.code -= 1

    def open_capture(self, node: Any) -> None:
        self.captured.append("")

    def close_power(self, node: Any) -> None:
        self._put(_power(self.captured.pop().strip()))

    def close_index(self, node: Any) -> None:
        index = self.captured.pop().strip()
        self._put(_index(self.captured[-1] if self.captured else self.line, index))

    def open_row(self, node: Any) -> None:
        self.is_first_cell = True

    def open_cell(self, node: Any) -> None:
        if self.captured:
            self._space()  # a table within a cell
        elif not self.is_first_cell:
            self.line += "\t"
        self.is_first_cell = False
        self.captured.append("")

    def close_cell(self, node: Any) -> None:
        self._put(_SPACES.sub(" ", self.captured.pop()).strip(" "))

    def line_break(self, node: Any) -> None:
        if self.pre:
            self._put("\n")
        else:
            self._break(1)

    def image(self, node: Any) -> None:
        alt = node.getattr("alt", "")
        if alt != _PLACEHOLDER_ALT:
            self.words(alt)

    # -- words ---------------------------------------------------------------------------------------------------------------------

    def words(self, text: str) -> None:
        if self.hidden:
            return
        if self.pre:
            self._put(text)
        elif self.code:
            self._put(re.sub(r"[\n\r\f]+", " ", text))
        elif "\n" in text and not self.captured and ("$$" in text or "\\" in text):
            for at, part in enumerate(_DISPLAYED.split(text)):
                if at % 3 == 1:
                    self._formula(part)
                elif at % 3 == 0:
                    self._flow(part)
        else:
            self._flow(text)

    def _flow(self, text: str) -> None:
        text = _SPACES.sub(" ", text)
        held = self.captured[-1] if self.captured else self.line
        if not held or held[-1] in " \n\t":
            text = text.removeprefix(" ")
        self._put(text)

    def _formula(self, formula: str) -> None:
        first, *others = [line.rstrip() for line in formula.split("\n")]
        self._put(first)
        for line in others:
            self._end_line(1)
            self._put(line)

    def _put(self, text: str) -> None:
        if self.captured:
            self.captured[-1] += text
        else:
            self.line += text

    def _space(self) -> None:
        if self.captured[-1] and self.captured[-1][-1] not in " \n\t":
            self.captured[-1] += " "

    # -- lines ---------------------------------------------------------------------------------------------------------------------

    def _break(self, gap: int) -> None:
        if self.pre:
            if self.captured[-1] and not self.captured[-1].endswith("\n"):
                self.captured[-1] += "\n"
        elif self.captured:
            self._space()
        else:
            self._end_line(gap)

    def _end_line(self, gap: int, code: bool = False) -> None:
        line = self.line if code else self.line.rstrip(" \t")
        self.line = ""
        if line or code:
            if self.lines:
                blank = "".join(level.rest for level in self.levels if level.begun).rstrip()
                self.lines += [blank] * (max(self.gap, 1) - 1)
            prefix = "".join(level.rest if level.begun else level.first for level in self.levels)
            for level in self.levels:
                level.begun = True
            self.lines.append(prefix + line if line else prefix.rstrip())
            self.gap = gap
        else:
            self.gap = max(self.gap, gap)


_Handler = Callable[[_Writer, Any], None]
_OPEN: dict[str, _Handler] = {
    "ul": _Writer.open_list,
    "ol": _Writer.open_list,
    "li": _Writer.open_item,
    "blockquote": _Writer.open_quote,
    "dd": _Writer.open_definition,
    "pre": _Writer.open_pre,
    "code": _Writer.open_code,
    "sup": _Writer.open_capture,
    "sub": _Writer.open_capture,
    "tr": _Writer.open_row,
    "td": _Writer.open_cell,
    "th": _Writer.open_cell,
    "br": _Writer.line_break,
    "img": _Writer.image,
}
_CLOSE: dict[str, _Handler] = {
    "ul": _Writer.close_list,
    "ol": _Writer.close_list,
    "li": _Writer.close_level,
    "blockquote": _Writer.close_level,
    "dd": _Writer.close_level,
    "pre": _Writer.close_pre,
    "code": _Writer.close_code,
    "sup": _Writer.close_power,
    "sub": _Writer.close_index,
    "td": _Writer.close_cell,
    "th": _Writer.close_cell,
}


def _power(raised: str) -> str:
    """10<sup>6</sup> must not become 106; 20<sup>th</sup> and notes in brackets stay words."""
    if not raised or re.fullmatch(r"[A-Za-z]{2}|[\[(*†‡].*|.*\s.*", raised, re.DOTALL):
        return raised
    return f"^{raised}" if raised.isdigit() or len(raised) == 1 else f"^({raised})"


def _index(before: str, index: str) -> str:
    """x<sub>i</sub> becomes x_i; a count in a formula of chemistry (H<sub>2</sub>O) and small print stay words."""
    before = before[-2:]
    is_count = index.isdigit() and re.search(r"([A-Z][a-z]?|[)\]])$", before)
    if not index or is_count or not before.strip() or before[-1].isspace() or re.match(r"[\[(*†‡]|.*\s", index, re.DOTALL):
        return index
    return f"_{index}" if re.fullmatch(r"\w+", index) else f"_({index})"
