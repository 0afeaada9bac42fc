"""Machine-made secrets, API keys and session bearers: how they look and by which digest they are found.

They hold 256 random bits, so a plain SHA-256 is enough to keep; people's passwords are in `hashing.py`.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from enum import StrEnum

from mesh.secret import Secret

ALPHABET = string.digits + string.ascii_letters  # no sign that a double click or a URL would stumble over
RANDOM_CHARACTERS = 43  # 62 ** 43 is just above 2 ** 256
SHOWN_CHARACTERS = 12
DIGEST_BYTES = 32


class Prefix(StrEnum):
    """What a bearer begins with, so that a leaked one can be told."""

    API_KEY = "cpk_"
    SESSION = "mses_"


def mint(prefix: Prefix) -> Secret:
    """Make a bearer from 256 random bits."""
    return Secret(prefix + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS)))


def digest(bearer: Secret) -> bytes:
    """Return what is kept of a bearer."""
    return hashlib.sha256(bearer.reveal().encode()).digest()


def shown(bearer: Secret) -> str:
    """Return the first characters, which tell one key from another in a list."""
    return bearer.reveal()[:SHOWN_CHARACTERS]
