"""What an answer with embeddings used: `prompt_tokens` alone. Pure."""

from __future__ import annotations

from gateway_svc.dialects.reading import JsonObject
from gateway_svc.usage import TokenUsage, of_openai


def usage_of(document: JsonObject) -> TokenUsage | None:
    """Read the figures of a whole answer."""
    usage = document.get("usage")
    return of_openai({**usage, "completion_tokens": 0}) if isinstance(usage, dict) else None
