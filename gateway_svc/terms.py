"""What a policy may say: names, models and limits that make sense. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Any

from gateway_svc.globs import EVERYTHING
from gateway_svc.policies import PER_MINUTE_MAX, Terms
from gateway_svc.verdicts import Asked
from mesh.errors import InvalidArgument, invalid

NAME_CHARACTERS_MAX = 200
NAMES_MAX = 100
TOOLS_MAX = 200
LIMITS_MAX = {
    "max_tokens_per_request": 10**12,
    "requests_per_minute": PER_MINUTE_MAX,
    "tokens_per_minute": PER_MINUTE_MAX,
    "max_cost_micros_per_request": 10**12,
}
PATTERN = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9._:/@+*-]{0,199}")
ENDPOINTS = ("chat.completions", "responses", "embeddings", "messages")
LISTS = ("allowed_models", "allowed_tools", "allowed_endpoints", "allowed_providers")
CHANGEABLE = ("name", *LISTS, *LIMITS_MAX, "cut_abandoned_streams")


def checked_name(name: str) -> str:
    """Return a name without outer spaces; InvalidArgument for one that can't be shown."""
    stripped = name.strip()
    if not 0 < len(stripped) <= NAME_CHARACTERS_MAX:
        raise invalid("name", f"must have 1 to {NAME_CHARACTERS_MAX} characters")
    if any(unicodedata.category(character) == "Cc" for character in stripped):
        raise invalid("name", "must not hold control characters")
    return stripped


def checked_terms(terms: Terms) -> Terms:
    """Return terms as they are kept; InvalidArgument names the field that is wrong."""
    for field, limit_max in LIMITS_MAX.items():
        limit: int | None = getattr(terms, field)
        if limit is not None and not 1 <= limit <= limit_max:
            raise invalid(field, f"must be 1 to {limit_max}")
    for field in LISTS:
        names: tuple[str, ...] = getattr(terms, field) or ()
        if len(names) > NAMES_MAX:
            raise invalid(field, f"must hold at most {NAMES_MAX} names")
        for name in names:
            _check_name(field, name)
    if terms == Terms():
        raise InvalidArgument("EMPTY_POLICY", "a policy must limit something", field="allowed_models")
    return terms


def changed_terms(before: Terms, wanted: Terms, named: frozenset[str]) -> Terms:
    """Return terms in which the fields that an update names are as wanted; InvalidArgument as for new ones."""
    if not named or named - set(CHANGEABLE):
        raise invalid("update_mask", f"must name one or more of {', '.join(CHANGEABLE)}")
    values: dict[str, Any] = {field: getattr(wanted, field) for field in named - {"name"}}
    return checked_terms(replace(before, **values))


def checked_asked(asked: Asked) -> Asked:
    """Return the description of a request that policies are to judge; InvalidArgument names the field that is wrong."""
    if len(asked.tools) > TOOLS_MAX:
        raise invalid("asked.tools", f"must hold at most {TOOLS_MAX} names")
    if asked.max_tokens is not None and asked.max_tokens < 1:
        raise invalid("asked.max_tokens", "must be at least 1")
    if asked.input_tokens < 0:
        raise invalid("asked.input_tokens", "must not be negative")
    return asked


def _check_name(field: str, name: str) -> None:
    if field == "allowed_endpoints":
        if name not in (EVERYTHING, *ENDPOINTS):
            raise invalid(field, f"{name[:200]!r} is none of {', '.join(ENDPOINTS)} and *")
    elif not PATTERN.fullmatch(name):
        raise invalid(field, f"{name[:200]!r} is no name, nor one in which * stands for what is open")
