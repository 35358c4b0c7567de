"""What is personal is masked, and what only looks so in code, mathematics and prose is left alone."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks import ingest
from tasks.masking import TOKENS, mask
from tasks.shards import Shard
from tasks.sources import SourceConfig
from tasks.sources.base import RawFile

EMAIL, PHONE, IP = TOKENS.values()

# what is between < and > is personal
PERSONAL = {
    EMAIL: """
        Write to <jane.doe@example.org>, or not.
        <j.r+list_2024@mail.dept.uni-heidelberg.de>
        From: Jane Doe (<jane@a-b.co.uk>)
        mailto:<x@y.info>?subject=hi
        addresses = ['<ann@host.com>', "<bob@host.net>"]
        <MARY.O'NEIL@COMPANY.COM>; <müller@firma.de>
        联系<foo@bar.cn>。
        user_id,<a@b.dev>,2024
        Guido van Rossum [<guido@python.org>].
    """,
    PHONE: """
        Call <650-636-4884> or visit us
        <(801) 596-1887>, <(310)392-4944>, <505.562.2253>
        customer service at <1-800-746-9089>.
        It is <+1 (555) 234-5555>, Mum
        <+49 30 25 81 72 65>, <+49 (0)40 / 49 07 11 06>, <+44 20 7946 0958>, <+81 158-23-2012>
        <+41.31.322.55.11> or <+41584622007>; <+14155552671>
        Tel. <0863/91131> - Fax: <089 1258-359>
        Telefon: <0201-2402-0>, Tel.: <(030) 78 95 47 78>
        phone number: <555-3476>; cell: <0171 1234567>
        tel <+49 611 7878 394> | Phone: <(310)392-4944> Fax: <(310)314-7349>
        fax (<555-2428>) or TEL <0471 80 60 745>
    """,
    IP: """
        Failed password for root from <218.92.0.31> port 22
        http://<93.184.216.34>/index.html, ssh admin@<52.230.7.59>
        the address <94.245.121.253>:8080 (or <2a00:1450:4001:82a::200e>)
        [<2607:f8b0:4004:800::200e>]:443
    """,
}
NOT_PERSONAL = r"""
    x = q@k.mt(2, 3) + w@self.weight + A@B.T     # products
    @property, @app.route("/"), foo@bar, f = @(x) x.^2
    git clone git@github.com:allenai/OLMo.git
    \makeatletter \@ifnextchar \hbox@to.de
    lodash@4.17.21, user@localhost, price @ $5.com
    version 1.2.3.4, v2.10.115.1, Chrome/88.200.4324.96, driver 10.18.13.5
    EC 3.4.21.62 and EC_number = 2.7.11.101, see section 8.2.4.45 and 4.1.2.3
    OID 1.3.6.1.4.1, 1.2.3, 256.300.1.2, 1.2.3.456
    127.0.0.1, 192.168.1.100, 10.0.0.255, 0.0.0.0, 255.255.255.0, 169.254.10.1, 224.0.0.251
    fe80::1, ::1, 2001:db8::1, 12:30:45, std::vector, a::b, 2014:05
    ISBN 0-306-40615-2, 978-3-16-148410-0, ISSN 2049-3630
    2015-03-01, 01.02.2003, 1999-2004, 12/31/1999, 2024-01-02 03:04:05
    pi is 3.1415926535 and 4294967296 is 2^32, 1355563265, 1 000 000 000
    +4294967296, +1.000000, +10011010010, +281474976710656, 2+14155552671, x=+123456789
    123-456-7890-1234, 555-1234, 415-926-53589, doi 10.1016/j.cell.2007.07.032
    her phone 742 / 106 = <<742/106=7>>7 times, cell 2 4 6 8 10 12 14, Tel Aviv 1 2 3
    4111 1111 1111 1111, 078-05-1120, arXiv:1501.00001, 0x1234567890, $650.636.4884
    650-636-4884/2, 212 555 1234, 3.212.555.1234
"""


@pytest.mark.parametrize("token, line", [(token, line.strip()) for token, lines in PERSONAL.items() for line in lines.strip().splitlines()])
def test_personal_data_is_masked(token, line):
    parts = line.replace("<", "\0<").replace(">", "\0").split("\0")
    expected = "".join(token if part.startswith("<") else part for part in parts)
    masked, counts = mask("".join(part.removeprefix("<") for part in parts))
    assert masked == expected
    assert sum(counts.values()) == line.count("<")


@pytest.mark.parametrize("line", [line.strip() for line in NOT_PERSONAL.strip().splitlines()])
def test_what_only_looks_personal_is_left_alone(line):
    assert mask(line) == (line, {"email": 0, "phone": 0, "ip": 0})


def test_masking_twice_is_masking_once():
    once, _ = mask("a@b.com 218.92.0.31 650-636-4884")
    assert once == f"{EMAIL} {IP} {PHONE}"
    assert mask(once) == (once, {"email": 0, "phone": 0, "ip": 0})


@pytest.mark.parametrize("unit", ["a@", "a.", "x@a.", "1.", "1 ", "-1", "(", "2::", "1:", "tel 1 x", "123-", "A9z/+"])
def test_long_runs_of_what_patterns_begin_with_are_passed_over(unit):
    """A pattern that walked back from each of them would need hours for this."""
    text = unit * (400_000 // len(unit))
    assert mask(text)[0] == text


@pytest.fixture
def pages(tmp_path):
    lines = [
        {"id": "a@b.com", "text": "write to a@b.com or b@c.org", "author": "d@e.net"},
        {"id": "2", "text": "call 650-636-4884"},
        {"id": "3", "text": "nothing"},
    ]
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return RawFile(f"file://{path}", "raw.jsonl", path.stat().st_size, "content")


CONFIG = SourceConfig(format="jsonl", paths=["x"])


def ingested(raw: RawFile, folder: Path, mask: bool):
    folder.mkdir()
    books = ingest.run(Shard(ingest.task("web", CONFIG, raw, mask).config, {"raw": [raw]}, folder))
    books.balance("ingest")
    return pq.read_table(folder / "documents.parquet"), books


def test_a_source_is_masked_where_it_asks_for_it_and_the_books_tell_how_much(pages, tmp_path):
    plain, books = ingested(pages, tmp_path / "plain", mask=False)
    assert not [name for name in books.counts if name.startswith("masked")]
    masked, books = ingested(pages, tmp_path / "masked", mask=True)
    assert {name: number for name, number in books.counts.items() if name.startswith("masked")} == {
        "masked_email": 2,
        "masked_phone": 1,
        "masked_ip": 0,
    }
    assert masked["text"].to_pylist() == [f"write to {EMAIL} or {EMAIL}", f"call {PHONE}", "nothing"]
    assert books.counts["bytes"] == sum(len(text.encode()) for text in masked["text"].to_pylist())
    assert masked.drop_columns("text").equals(plain.drop_columns("text"))  # ids and metadata stay


def test_the_key_of_what_is_not_masked_knows_nothing_of_masking(pages):
    task = ingest.task("web", CONFIG, pages)
    assert set(task.config) == {"source", "reader", "place"} and "mask" not in json.dumps(task.config)
    assert task.key(ingest.STEP) != ingest.task("web", CONFIG, pages, mask=True).key(ingest.STEP)
