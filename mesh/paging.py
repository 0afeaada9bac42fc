"""Pages of lists: sizes with a maximum, and opaque tokens that hold the last key seen (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from mesh.errors import invalid

SIZE_DEFAULT = 50
SIZE_MAX = 100
TOKEN_MAX = 400


@dataclass(frozen=True, slots=True)
class Page:
    """How many rows to read, after which key (None: from the start)."""

    size: int
    after: str | None


def page_of(page_size: int, page_token: str, *, size_max: int = SIZE_MAX) -> Page:
    """Check what a request asked for; InvalidArgument names the field."""
    if not 0 <= page_size <= size_max:
        raise invalid("page_size", f"must be 0 to {size_max}")
    return Page(page_size or SIZE_DEFAULT, _decode(page_token) if page_token else None)


def next_token(page: Page, keys: list[str]) -> str:
    """Return the token of the following page, or "" when `keys` (read with a limit of size + 1) ends here."""
    if len(keys) <= page.size:
        return ""
    return token_of(keys[page.size - 1])


def token_of(after: str) -> str:
    """Return the token of the page that begins after a key."""
    return base64.urlsafe_b64encode(json.dumps({"after": after}).encode()).decode()


def _decode(token: str) -> str:
    try:
        after = json.loads(base64.urlsafe_b64decode(token[:TOKEN_MAX].encode()))["after"]
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise invalid("page_token", "was not given out by this list") from None
    if not isinstance(after, str) or not (after.isascii() and after.isprintable()):  # PostgreSQL takes no NUL
        raise invalid("page_token", "was not given out by this list")
    return after
