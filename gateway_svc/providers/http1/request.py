"""The head of a POST as bytes, and where it goes: nothing that a caller gives can end a line or frame a body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from yarl import URL

KNOWN_MAX = 1024
HOST = re.compile(r"[a-z0-9._~-]+|[0-9a-f:.]+")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5
OURS = frozenset({"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"})
DEFAULTS = {"accept-encoding": "identity", "user-agent": "mandate"}


class InvalidRequest(ValueError):
    """An address or a header that can't be sent; the text never holds a value."""


class Origin(NamedTuple):
    """Whom a connection leads to; `host` is a name in ASCII or a literal address without brackets."""

    is_tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """An address that was read; `opening` is the request line and the host."""

    origin: Origin
    opening: str


@lru_cache(maxsize=KNOWN_MAX)
def target_of(url: str) -> Target:
    """Read an absolute http or https address; InvalidRequest for any other, and for one that holds credentials."""
    if not url.isprintable() or " " in url:
        raise InvalidRequest("an address holds no spaces and no control characters")
    try:
        parsed = URL(url)
    except ValueError:
        raise InvalidRequest("this is no address") from None
    if parsed.scheme not in {"http", "https"} or parsed.port is None or parsed.port == 0:
        raise InvalidRequest("only http and https addresses can be asked")
    if parsed.user is not None or parsed.password is not None:
        raise InvalidRequest("an address holds no credentials")
    host = parsed.raw_host or ""
    if HOST.fullmatch(host) is None:
        raise InvalidRequest("this host is none")
    opening = f"POST {parsed.raw_path_qs} HTTP/1.1\r\nhost: {parsed.host_port_subcomponent}\r\n"
    return Target(Origin(parsed.scheme == "https", host, parsed.port), opening)


def head_of(target: Target, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Build a request's head; InvalidRequest for a header that is malformed or that frames the message."""
    values = tuple(headers.values())
    text = "".join(values)
    if not (text.isascii() and text.isprintable()) and VALUE.fullmatch(text) is None:
        raise InvalidRequest("a header's value holds what it can't")
    return (target.opening + _template(tuple(headers)) % (*values, body_bytes)).encode("latin-1")


@lru_cache(maxsize=KNOWN_MAX)
def _template(names: tuple[str, ...]) -> str:
    """Check the names, once for each set of them, and return the lines of a head with places for the values."""
    lowered = {name.lower() for name in names}
    if not all(TOKEN.fullmatch(name) for name in names):
        raise InvalidRequest("a header's name is no token")
    if reserved := lowered & OURS:
        raise InvalidRequest(f"{min(reserved)} is not the caller's to set")
    ours = "".join(f"{name}: {value}\r\n" for name, value in DEFAULTS.items() if name not in lowered)
    given = "".join(f"{name.replace('%', '%%')}: %s\r\n" for name in names)
    return f"{ours}{given}content-length: %d\r\n\r\n"
