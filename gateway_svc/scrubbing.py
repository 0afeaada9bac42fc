"""Secrets taken out of what providers say: as they are, and as an error may quote them in another writing. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import orjson

from mesh.secret import Secret

KEY_SHAPE = re.compile(
    r"\b(?:(?:sk|rk|pk|xai|gsk|pplx|nvapi)[-_][\w*.-]{4,}|AIza[\w*.-]{4,}"
    # A word behind `Bearer` is one of the text unless it is long or has a digit.
    r"|(?i:bearer)\s{1,8}(?:[\w*.~+/-]{20,}|(?=[\w*.~+/-]{0,19}[0-9*])[\w*.~+/-]{4,})=*)"
)
# As vendors name the accounts, organizations, projects and workspaces of those who ask.
ACCOUNT_SHAPE = re.compile(
    r"\b(?:org|proj|acct|user|account|wrkspc)[-_](?:(?=[A-Za-z]{0,19}[0-9])[A-Za-z0-9]{6,}|[A-Za-z0-9]{20,})\b"
)
ESCAPING = "\\%&"
NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}  # of HTML, as escaping writes them
REDACTED = "[redacted]"
BASE64_GROUP = 3  # bytes that four letters hold; a text may begin at any of them


def scrub(text: str, secret: Secret | None) -> str:
    """Take a secret, and whatever else looks like a key, out of a provider's text."""
    if secret is not None and secret.reveal():
        if any(mark in text for mark in ESCAPING):  # the pattern of a long key takes 50 ms to compile
            text = re.sub("".join(map(_written, secret.reveal())), REDACTED, text)
        for writing in writings(secret.reveal()):
            text = text.replace(writing, REDACTED)
    return KEY_SHAPE.sub(REDACTED, text)


def scrub_accounts(text: str) -> str:
    """Take out what names an account at a provider."""
    return ACCOUNT_SHAPE.sub(REDACTED, text)


def writings(secret: str) -> Iterator[str]:
    """Give the ways to write a secret that are found in errors: plain, in JSON, for URLs, in hexadecimal, in base64."""
    data = secret.encode(errors="replace")
    escaped = orjson.dumps(data.decode()).decode()[1:-1]
    yield from (secret, escaped, escaped.replace("/", "\\/"))
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret), data.hex(), data.hex().upper())
    for before in range(BASE64_GROUP):
        whole = base64.b64encode(b"\0" * before + data).decode()
        # Letters that hold bits of what is before or behind it differ from text to text.
        first = -(-before * 8 // 6)
        inner = whole[first : (before + len(data)) * 8 // 6]
        yield from (inner, inner.translate(str.maketrans("+/", "-_")))


def _written(letter: str) -> str:
    """Return a pattern of one letter as it is, or as JSON, a URL or HTML may escape it, each of its own."""
    code = ord(letter)
    ways = [
        rf"(?i:\\{{1,3}}u{code:04x})",
        rf"(?i:&\#x0{{0,4}}{code:x};)",
        rf"&\#0{{0,4}}{code};",
        "".join(f"(?i:%{byte:02x})" for byte in letter.encode(errors="replace")),
        *([f"&{NAMED[letter]};"] if letter in NAMED else []),
        rf"\\{{0,3}}{re.escape(letter)}",  # last: it is also what some of the others begin with
    ]
    return f"(?:{'|'.join(ways)})"
