"""What people may call things, and what counts as an email address. Pure."""

from __future__ import annotations

import unicodedata

from mesh.errors import invalid

NAME_MAX = 200
EMAIL_MAX = 254
LOCAL_PART_MAX = 64
CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line and paragraph separators


def name_of(text: str, field: str = "name") -> str:
    """Return a name without the blanks around it; InvalidArgument when it has not 1 to 200 printable characters."""
    name = text.strip()
    if not 1 <= len(name) <= NAME_MAX:
        raise invalid(field, f"must have 1 to {NAME_MAX} characters")
    if any(unicodedata.category(character) in CONTROL for character in name):
        raise invalid(field, "must not hold control characters")
    return name


def email_of(text: str) -> str:
    """Return an address in the one form in which it is kept; InvalidArgument when it cannot be one.

    Plain on purpose: one @ with something before and after it, no blanks. Only mail that arrives proves an address.
    """
    email = text.strip().lower()
    local, at, domain = email.partition("@")
    if not (at and local and domain) or "@" in domain or len(local) > LOCAL_PART_MAX or len(email) > EMAIL_MAX:
        raise invalid("email", "must be an address such as name@example.com")
    if any(character.isspace() or unicodedata.category(character) in CONTROL for character in email):
        raise invalid("email", "must not hold blanks or control characters")
    return email
