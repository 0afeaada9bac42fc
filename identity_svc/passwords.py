"""Which passwords may be chosen, and the one form in which they are hashed. Pure; hashing is in `hashing.py`."""

from __future__ import annotations

import unicodedata

from mesh.errors import invalid
from mesh.secret import Secret

CHARACTERS_MIN, CHARACTERS_MAX = 10, 1_024


def chosen(text: str) -> Secret:
    """Return a new password; InvalidArgument when it has not 10 to 1,024 characters."""
    if len(text) < CHARACTERS_MIN:
        raise invalid("password", f"must have at least {CHARACTERS_MIN} characters")
    return presented(text)


def presented(text: str) -> Secret:
    """Return a password to compare, in NFKC (NIST SP 800-63B, 5.1.1.2), so that every keyboard's spelling is one."""
    if len(text) > CHARACTERS_MAX:
        raise invalid("password", f"must have at most {CHARACTERS_MAX} characters")
    return Secret(unicodedata.normalize("NFKC", text))
