"""What each field of a request can do to its cost; what no table names, the context window alone bounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

import orjson

from gateway_svc.dialects.reading import Json, JsonObject
from mesh.errors import InvalidArgument

TOOL_TOKENS = 32  # what a template adds to each of a list, with room
FOREIGN_TOKENS = 1_024  # Anthropic adds a prompt of its own, up to 700 tokens, for tools and for formats
PRICED_CACHE = (None, "30m")  # longer-lived cache writes cost more than the list says
PRICED_TIERS = (None, "auto", "default", "flex", "standard_only")  # others cost more than the list says


class FieldClass(Enum):
    """What a field can do to the cost of a request."""

    NEUTRAL = auto()
    BYTES = auto()  # becomes input tokens, at most one a byte
    COUNTED = auto()  # has its own place in the bound
    UNPRICED = auto()  # would cost what no price covers: refused
    UNSERVED = auto()  # asks for what the gateway does not do: refused


NEUTRAL, BYTES, COUNTED, UNPRICED, UNSERVED = FieldClass
Fields = Mapping[str, FieldClass]

# What compatible servers know beside OpenAI: other models than the one that is allowed, limits that are not ours, tools
# and searches with fees, and addresses and keys of the caller's choice.
FOREIGN: Fields = dict.fromkeys(
    (
        *("models", "fallbacks", "route", "provider", "api_base", "base_url", "api_key", "extra_body"),
        *("best_of", "use_beam_search", "num_choices", "candidate_count", "max_new_tokens"),
        *("max_tokens_to_sample", "n_predict", "num_predict", "thinking_budget"),
        *("plugins", "search_parameters", "enable_search", "web_search", "web_search_options"),
    ),
    UNPRICED,
)


def refuse(document: JsonObject, fields: Fields) -> None:
    """Raise for a field that no price covers, or that the gateway does not serve."""
    for name, value in document.items():
        kind = fields.get(name)
        if value is None or kind is None:
            continue
        if kind is UNPRICED:
            raise unpriced(name)
        if kind is UNSERVED and value is not False:
            raise InvalidArgument("UNSUPPORTED_FIELD", f"{name}: the gateway does not serve it", field=name)
    if document.get("service_tier") not in PRICED_TIERS:
        raise unpriced("service_tier")


def unpriced(field: str, why: str = "no price covers it") -> InvalidArgument:
    """Return the error of what would cost more than any price list says."""
    return InvalidArgument("UNPRICED_FIELD", f"{field}: {why}", field=field)


def refuse_long_caches(owner: JsonObject, name: str, field: str) -> None:
    """Raise for OpenAI's marks of what to cache where they ask for a lifetime that no price covers."""
    marks = owner.get(name)
    if isinstance(marks, dict) and marks.get("ttl") not in PRICED_CACHE:
        raise unpriced(f"{field}.ttl")


def kept_by_provider(field: str) -> InvalidArgument:
    """Return the error of what names a thing that a provider keeps: other tenants may share the key."""
    text = f"{field}: what the provider keeps can't be referred to"
    return InvalidArgument("UNSUPPORTED_FIELD", text, field=field)


def bounded(document: JsonObject, fields: Fields) -> bool:
    """Return whether every field of a request has a class."""
    return all(name in fields for name in document)


def tokens_of(document: JsonObject, fields: Fields) -> tuple[int, int]:
    """Return what the fields that become input come to: by bytes, and what foreign vendors add to it."""
    tokens = foreign = 0
    for name, value in document.items():
        if value is not None and fields.get(name) is BYTES:
            tokens += len(orjson.dumps(value)) + (TOOL_TOKENS * len(value) if isinstance(value, list) else 0)
            foreign += FOREIGN_TOKENS
    return tokens, foreign


def bytes_of(value: Json) -> int:
    """Return how many bytes a value has as JSON, which is at least as many as it has tokens."""
    return len(orjson.dumps(value))
