"""What a policy may say: names, models and limits that make sense. Pure."""

from __future__ import annotations

import re
import unicodedata

from gateway_svc.policies import PER_MINUTE_MAX, Terms
from mesh.errors import InvalidArgument, invalid

NAME_CHARACTERS_MAX = 200
MODELS_MAX = 100
LIMITS_MAX = {
    "max_tokens_per_request": 10**12,
    "requests_per_minute": PER_MINUTE_MAX,
    "tokens_per_minute": PER_MINUTE_MAX,
}
MODEL_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,198}\*?$|^\*$")


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
    models = terms.allowed_models
    if models is not None:
        if len(models) > MODELS_MAX:
            raise invalid("allowed_models", f"must hold at most {MODELS_MAX} models")
        for model in models:
            if not MODEL_PATTERN.match(model):
                raise invalid("allowed_models", f"{model[:200]!r} is no model's name, nor the start of one with a *")
    limits = (terms.max_tokens_per_request, terms.requests_per_minute, terms.tokens_per_minute)
    if models is None and all(limit is None for limit in limits):
        raise InvalidArgument("EMPTY_POLICY", "a policy must limit something", field="allowed_models")
    return terms
