"""HTML of posts becomes the text that a reader sees."""

import re
from pathlib import Path

import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sources import RawFile
from tasks.sources.html import to_text
from tasks.sources.posts_xml import parse, rows

REAL_DUMPS = ["ai.stackexchange.com/Posts.xml", "coffee.stackexchange.com/Posts.xml", "quantumcomputing.stackexchange.com.7z"]
ALIGNED = "$$\n\\begin{align}\n  a &amp; b \\\\ % why\n  c\n\\end{align}\n$$"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("no tags", "no tags"),
        ("<p>a</p>\n\n<p>b\nc<br>d<br/>\ne</p>", "a\n\nb c\nd\ne"),
        ("<p>a <b>b</b><i> c</i>  <em>d</em>.</p>", "a b c d."),
        ("<h1>One</h1>two<hr>three<h3>four</h3>", "One\n\ntwo\n\nthree\n\nfour"),
        # lists
        ("<ol><li>one</li><li>two<ul><li>x</li></ul></li></ol>", "  1. one\n  2. two\n       • x"),
        ("<ol start='9'><li>i<ol><li>a</li><li>b</li></ol></li><li>j</li></ol>", "  9. i\n       1. a\n       2. b\n  10. j"),
        ("<p>a</p><ul><li><p>b</p><p>c</p></li><li><p>d</p></li></ul>e", "a\n\n  • b\n\n    c\n\n  • d\n\ne"),
        ("<dl><dt>term</dt><dd>what it is</dd></dl>", "term\n    what it is"),
        # code
        ("<pre><code>    deep\n\n\n\tx  \n</code></pre>", "    deep\n\n\n\tx"),
        ("<p>a</p><pre class='x'><code>if a &lt; b &amp;&amp; c:\n    d()\n</code></pre><p>e</p>", "a\n\nif a < b && c:\n    d()\n\ne"),
        ("<ul><li>see<pre><code>if a:\n\n    b()\n</code></pre>then</li></ul>", "  • see\n\n    if a:\n\n        b()\n\n    then"),
        ("<pre><span>x</span> = 1<br>y</pre><pre>z</pre>", "x = 1\ny\n\nz"),
        ("use <code>a  &lt;b&gt;</code> or <kbd>Ctrl</kbd>+<kbd>C</kbd>", "use a  <b> or Ctrl+C"),
        # quotes
        ("he said<blockquote><p>one</p>\n<p>two</p></blockquote><p>so</p>", "he said\n\n> one\n>\n> two\n\nso"),
        ("<blockquote class='spoiler'><p>it</p><pre>a\n\n  b</pre></blockquote>", "> it\n>\n> a\n>\n>   b"),
        # formulas
        ("$x_1 &lt; \\frac{a}{b}$ and \\(y\n= 2\\)", "$x_1 < \\frac{a}{b}$ and \\(y = 2\\)"),
        (f"<p>so\n{ALIGNED}\nand</p>", "so\n$$\n\\begin{align}\n  a & b \\\\ % why\n  c\n\\end{align}\n$$\nand"),
        # powers and indices
        ("10<sup>-6</sup> m<sup>2</sup> 20<sup>th</sup> <sup>[1]</sup>", "10^(-6) m^2 20th [1]"),
        ("2<sup>10<sup>3</sup></sup> e<sup><i>x</i></sup>", "2^(10^3) e^x"),
        (
            "H<sub>2</sub>O, Ca(OH)<sub>2</sub>, x<sub>i</sub>, a<sub>i+1</sub> <sub>small print</sub>",
            "H2O, Ca(OH)2, x_i, a_(i+1) small print",
        ),
        # tables
        (
            "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td></td><td><b>1</b><br>2</td></tr></tbody></table>c",
            "a\tb\n\t1 2\n\nc",
        ),
        # links and pictures
        ("<a href='u'>the <b>words</b></a> stay", "the words stay"),
        ('see <img src="u" alt="enter image description here"><a href="v"><img alt="a cat"></a>', "see a cat"),
        # what is no word, and what is one in an element that nobody knows
        ("<!-- language: lang-py --><script>alert(1)</script><style>b {}</style>z", "z"),
        ("<foo>a</foo><button> b</button><select><option>c</option></select><label>d</label>", "a b\nc\nd"),
        ("<p hidden>a</p><p style='display:none'>b</p>", "a\n\nb"),
        ("a<p>b<b>c", "a\n\nbc"),
    ],
)
def test_html_becomes_text(html: str, text: str) -> None:
    assert to_text(html) == text


def test_nesting_without_end_is_no_trap() -> None:
    # Each level costs a line its prefix or copies the text within: without a limit these would take hours.
    assert to_text("<blockquote><ol><li>" * 5_000 + "x").endswith("x")
    assert to_text("<blockquote>" * 5_000 + "<p>x</p>" * 5_000).count("x") == 5_000
    assert to_text("<sup>" * 5_000 + "x").count("x") == 1
    assert to_text("\\begin{a}\n" * 3_000).count("begin") == 3_000


INLINE = ["b", "i", "em", "a", "code", "kbd", "del", "span", "sup", "sub", "strike", "font", "x-unknown"]
BLOCK = ["p", "div", "blockquote", "h2", "pre", "section", "x-block"]


def nodes(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    inside = st.lists(children, max_size=4).map(" ".join)
    return st.one_of(
        st.builds("<{0}>{1}</{0}>".format, st.sampled_from(INLINE + BLOCK), inside),
        st.builds("<{0}><li>{1}</li><li>{2}</li></{0}>".format, st.sampled_from(["ul", "ol"]), inside, inside),
        st.builds("<table><tr><th>{0}</th><td>{1}</td></tr><tr><td>{2}</td></tr></table>".format, inside, inside, inside),
        st.builds("<dl><dt>{0}</dt><dd>{1}</dd></dl>".format, inside, inside),
        st.builds("{0}<br>{1}<hr>{2}".format, inside, inside, inside),
    )


trees = st.recursive(st.just("WORD"), nodes, max_leaves=12)


@settings(max_examples=250, deadline=None)
@given(html=trees)
def test_no_word_is_lost_and_their_order_stays(html: str) -> None:
    count = html.count("WORD")
    for number in range(count):
        html = html.replace("WORD", f"w{number}w", 1)
    assert re.findall(r"w\d+w", to_text(html)) == [f"w{number}w" for number in range(count)]


@pytest.mark.parametrize("name", REAL_DUMPS)
def test_every_letter_of_real_posts_is_in_their_text(data: Path, name: str) -> None:
    path = data / "stackexchange" / name
    for row in rows(RawFile(str(path), path.name, path.stat().st_size, "0" * 64)):
        body = parse(row).get("Body")
        if not body.strip() or "<ol" in body:  # the numbers of lists are ours
            continue
        # The oracle: another parser, no layout.
        root = lxml.html.fragment_fromstring(body, create_parent="div")
        for image in root.iter("img"):
            image.text = image.get("alt", "").replace("enter image description here", "")
        wanted = "".join(letter for text in root.xpath("descendant-or-self::*/text()") for letter in text if letter.isalnum())
        assert "".join(letter for letter in to_text(body) if letter.isalnum()) == wanted, row[:80]
