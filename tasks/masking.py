"""Masking of personal data: e-mail addresses, phone numbers and IP addresses become OLMo's masking tokens (report, section 2.2).

Text for a language model is full of what only looks like personal data: versions, section numbers, matrix products with @, long numbers.
So each kind asks for more than its shape, and in doubt the text stays as it is. datatrove's `PIIFormatter` and dolma's tagger ask for less:
both take any version `1.2.3.4` for an IP address, dolma any ten digits for a phone number, and datatrove leaves phone numbers alone.

Each pattern begins with a character that is rare in text, and what must stand around a match is looked at afterwards: so most of a text is
passed over at the speed of a search for one character.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator

VERSION = 1  # part of the key of what is masked: raise it when a rule changes
TOKENS = {"email": "|||EMAIL_ADDRESS|||", "phone": "|||PHONE_NUMBER|||", "ip": "|||IP_ADDRESS|||"}

Span = tuple[int, int]


def mask(text: str) -> tuple[str, dict[str, int]]:
    """(the text with its personal data masked, how many of each kind of `TOKENS` that were)."""
    counts = {}
    for kind, find in _FINDERS.items():
        parts, end = [], 0
        for start, stop in sorted(find(text), key=lambda span: (span[0], -span[1])):
            if start >= end:
                parts += [text[end:start], TOKENS[kind]]
                end = stop
        counts[kind] = len(parts) // 2
        text = "".join([*parts, text[end:]])
    return text, counts


# -- e-mail --------------------------------------------------------------------------------------------------------------------------

_LETTER = "a-z0-9\u00c0-\u024f"
_LOCAL = re.compile(rf"(?<![{_LETTER}\\])[{_LETTER}_](?:[{_LETTER}_.%+'-]*[{_LETTER}_+-])?$", re.IGNORECASE)
_LOCAL_LENGTH = 64
# Domains that mail is read at: a country's code or one of these. Any word would make `x@self.weight` an address.
_GENERIC = (
    "com org net edu gov mil int info biz name pro coop aero museum jobs mobi travel asia app dev page cloud email online site website store "
    "shop tech digital agency studio blog news live media club group team world today life xyz top icu vip space design health center company "
    "solutions services systems network software university academy school foundation church law legal bank finance africa berlin london nyc"
)
_DOMAIN = re.compile(
    rf"(?:[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?\.){{1,6}}(?:[a-z]{{2}}|{'|'.join(_GENERIC.split())})(?![\w(@]|-\w|\.\w)", re.IGNORECASE
)
_ACCOUNTS = {"git", "hg", "svn", "cvs", "anonymous", "anoncvs"}  # git@host:path is where a repository lies


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(0, at - _LOCAL_LENGTH), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and local[0].lower() not in _ACCOUNTS:
            yield local.start(), domain.end()
        at = text.find("@", at + 1)


# -- phone ---------------------------------------------------------------------------------------------------------------------------

_COUNTRY = (  # the codes that are assigned (ITU E.164)
    r"(?:1|7|20|27|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[12368]|2[2-6]\d|29[017-9]|35\d|37\d|38[0-35-79]|42[013]|50\d|59\d|67[02-9]|"
    r"68\d|69[0-2]|85[02356]|88[06]|96\d|97[0-79]|99[2-689])"
)
_GAP = r"[ .\-/\u00a0\u2010-\u2013]"
_INTERNATIONAL = re.compile(rf"\+(?>(?={_COUNTRY})\d{{1,3}}(?:{_GAP}?\(0?\d{{0,4}}\))?(?:{_GAP}{{0,3}}\d){{5,14}})(?!\d)")
_NORTH_AMERICAN = re.compile(  # neither an area nor an exchange begins with 0 or 1
    r"[(2-9](?:(?<=\()[2-9]\d\d\) ?|(?<=\d)\d\d(?P<sign>[.-]))[2-9]\d\d(?(sign)(?P=sign)|[ .-])\d{4}(?!\d)"
)
_GROUPS = re.compile(rf"\d(?>(?:{_GAP}{{0,3}}[()]?{_GAP}?\d){{6,14}})(?!\d)")
_CALL = re.compile(  # words that only numbers to call follow, and words that need a sign between
    r"(?<![\w./-])(?:(?:tel(?:ephone|efon|efono|éfono)?|(?:tele)?fax)(?: ?(?:no|nr|number))?[.:]{0,2}"
    r"|(?:phone|mobile|cell|whatsapp|hotline|toll[ -]free)(?: ?(?:phone|no\.?|nr\.?|number|:)){1,2})"
    r"[ \t\u00a0]{0,3}(?:\([A-Za-z ]{1,12}\))?[ \t:\u00a0]{0,3}\+?\(?$",
    re.IGNORECASE,
)
_CALL_LENGTH = 40


def _stands_alone(text: str, start: int, stop: int) -> bool:
    """Whether a number is no part of a word, a longer number, a sum or an address."""
    return re.match(r"[\w+.,/:=#$€£-]", text[start - 1 : start]) is None and re.match(r"\w|[+/=%]|[-.,:]\d", text[stop : stop + 2]) is None


def _phones(text: str) -> Iterator[Span]:
    return itertools.chain(_international(text), _north_american(text), _called(text))


def _international(text: str) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text):
        digits, gaps = re.sub(r"\D", "", match[0]), re.findall(r"[^\d+.]|\.(?=.*\.)", match[0])
        is_number = 8 <= len(digits) <= 15 and bool(gaps)  # +1.000000 has one dot
        # without gaps only where it cannot well be an integer: eleven digits or more, and in North America by the rules there
        is_compact = (
            11 <= len(digits) <= 13 and match[0][1:].isdigit() and (digits[0] != "1" or bool(re.fullmatch(r"1[2-9]..[2-9].{6}", digits)))
        )
        if (is_number or is_compact) and re.match(r"[\w+.]", text[match.start() - 1 : match.start()]) is None:
            yield match.span()


def _north_american(text: str) -> Iterator[Span]:
    for match in _NORTH_AMERICAN.finditer(text):
        long_distance = re.search(r"(?<![\w.])1[ .-]$", text[max(0, match.start() - 3) : match.start()])
        start = match.start() - 2 if long_distance else match.start()
        if _stands_alone(text, start, match.end()):
            yield start, match.end()


def _called(text: str) -> Iterator[Span]:
    """Digits in groups behind `Tel.`, `Fax:` and the like, in whatever form a country writes them."""
    for match in _GROUPS.finditer(text):
        call = _CALL.search(text, max(0, match.start() - _CALL_LENGTH), match.start())
        if call:
            opening = re.search(r"\+?\(?$", call[0])
            before = opening[0] if opening else ""
            closed = before.endswith("(") <= (")" in match[0])  # of "fax (555-2428)" the parentheses stay
            yield match.start() - (len(before) if closed else 0), match.end()


# -- IP ------------------------------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)", re.ASCII)  # the first number stands before
_FIRST = re.compile(r"(?<![\w.-])\d{1,3}$", re.ASCII)
_IPV6 = re.compile(r"[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])", re.ASCII)
_SMALL = 63  # versions, sections and enzymes consist of small numbers; of the IPv4 addresses one in 256 does
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|versions?|rel|releases?|rev|revision|build|firmware|driver|update|patch|sec|sections?|chapter|fig|figure|tab|table|theorem|"
    r"lemma|clause|article|rule|appendix|eq|equation|step|ec|ec[_ ]number)[.:]?[ \t(=]*|§[ \t]*|\w/)$",
    re.IGNORECASE,
)
_NUMBERED_LENGTH = 24


def _ips(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        first = _FIRST.search(text, max(0, match.start() - 4), match.start())
        if first is None:
            continue
        address, before = first[0] + match[0], text[max(0, first.start() - _NUMBERED_LENGTH) : first.start()]
        if max(map(int, address.split("."))) > _SMALL and _is_public(address) and not _NUMBERED.search(before):
            yield first.start(), match.end()
    for match in _IPV6.finditer(text) if text.count(":") > 1 else ():
        if _is_public(match[0]) and not re.match(r"[\w:.]", text[match.start() - 1 : match.start()]):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {"email": _emails, "phone": _phones, "ip": _ips}
