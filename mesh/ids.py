"""Typed, time-ordered ids: a prefix that says what it names, then 26 characters of Crockford base32 (as in ULID)."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26
PAIRS = [first + second for first in ALPHABET for second in ALPHABET]  # two characters are looked up at once
PAIR_SHIFTS = range(120, -1, -10)


class Kind(StrEnum):
    """Every kind of object that has an id; the value is the prefix."""

    PERSON = "usr"
    SESSION = "ses"
    ORGANIZATION = "org"
    WORKSPACE = "ws"
    AGENT_GROUP = "grp"
    AGENT = "agt"
    API_KEY = "key"
    CREDENTIAL = "crd"
    POLICY = "pol"
    ROUTE = "rte"
    ACCOUNT = "acc"
    BUDGET = "bud"
    GRANT = "grt"
    TRANSFER = "trf"
    REQUEST = "req"
    HOLDER = "gtw"


def new(kind: Kind) -> str:
    """Make an id: 48 bits of milliseconds since 1970, then 80 random bits."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return f"{kind}_{''.join([PAIRS[number >> shift & 1023] for shift in PAIR_SHIFTS])}"


def kind_of(text: str) -> Kind | None:
    """Return what kind of id a text is, or None when it is no id at all."""
    prefix, _, rest = text.partition("_")
    if len(rest) != LENGTH or any(character not in ALPHABET for character in rest):
        return None
    return Kind(prefix) if prefix in set(Kind) else None
