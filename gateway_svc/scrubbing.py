"""Secrets taken out of what providers say: as they are, and as an error may quote them in another writing. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import orjson

from mesh.secret import Secret

KEY_SHAPE = re.compile(r"\b(sk|rk|pk|xai|gsk)-[\w*.-]{4,}")
REDACTED = "[redacted]"
BASE64_GROUP = 3  # bytes that four letters hold; a text may begin at any of them


def scrub(text: str, secret: Secret | None) -> str:
    """Take a secret, and whatever else looks like a key, out of a provider's text."""
    if secret is not None and secret.reveal():
        for writing in writings(secret.reveal()):
            text = text.replace(writing, REDACTED)
    return KEY_SHAPE.sub(REDACTED, text)


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
