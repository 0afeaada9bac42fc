"""What each field of a request can do to its cost; what no table names, the context window alone bounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

import orjson

from gateway_svc.dialects.reading import Json, JsonObject
from mesh.errors import InvalidArgument

TOOL_TOKENS = 32  # what a template adds to each of a list, with room
FOREIGN_TOKENS = 1_024  # Anthropic adds a prompt of its own, up to 700 tokens, for tools and for formats
# How many minutes the caches live that the price lists mean, by each vendor's mark of what to cache: longer ones cost
# more. Compatible servers take the marks of one vendor in the dialect of another.
CACHE_MINUTES: Mapping[str, int] = {"cache_control": 5, "prompt_cache_options": 30, "prompt_cache_breakpoint": 30}
MARKS = frozenset(CACHE_MINUTES)
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

# What compatible servers know beside OpenAI, by the references of vLLM, OpenRouter, Groq, Together, Fireworks, Mistral,
# LiteLLM.
FOREIGN: Fields = dict.fromkeys(
    (
        # other models than the one that is allowed, alone or beside it, or the same one several times over
        *("models", "model_list", "fallbacks", "context_window_fallback_dict", "route", "preset", "compound_custom"),
        *("safety_model", "speculation", "draft_model", "lora_request", "num_retries", "max_retries"),
        # addresses, keys and further requests of the caller's choice
        *("provider", "custom_llm_provider", "api_base", "base_url", "api_key", "extra_body", "extra_headers"),
        *("kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
        # more output than one answer of our limit
        *("best_of", "use_beam_search", "num_beams", "beam_width", "num_choices", "candidate_count", "samples"),
        *("num_return_sequences", "num_outputs", "num_samples", "num_generations", "ignore_eos"),
        # limits that are not ours
        *("max_new_tokens", "max_tokens_to_sample", "max_gen_len", "max_length", "n_predict", "num_predict"),
        *("thinking_budget", "min_tokens"),
        # tools and searches with fees
        *("plugins", "search_parameters", "search_settings", "enable_search", "web_search", "web_search_options"),
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


def refuse_long_caches(owner: JsonObject, prefix: str = "") -> None:
    """Raise for marks of what to cache that ask for a lifetime which no price covers."""
    if MARKS.isdisjoint(owner):
        return
    for name, minutes in CACHE_MINUTES.items():
        marks = owner.get(name)
        if isinstance(marks, dict) and marks.get("ttl") not in (None, f"{minutes}m"):
            raise unpriced(f"{prefix}{name}.ttl", f"only caches of {minutes} minutes have a price")


def kept_by_provider(field: str) -> InvalidArgument:
    """Return the error of what names a thing that a provider keeps: other tenants may share the key."""
    text = f"{field}: what the provider keeps can't be referred to"
    return InvalidArgument("UNSUPPORTED_FIELD", text, field=field)


def bounded(document: JsonObject, fields: Fields) -> bool:
    """Return whether every field of a request has a class."""
    return document.keys() <= fields.keys()


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
