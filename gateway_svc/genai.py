"""What OpenTelemetry's conventions for generative AI call a completion and its parts. Pure.

These are the names of the last release (opentelemetry-semantic-conventions 0.66b2; nothing in them is stable yet). The
conventions have since moved to a repository of their own, which has released nothing: its `cache_write` is here still
`cache_creation`. The metrics that they name stand with all others, in `mesh.telemetry.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from gateway_svc.dialects import Dialect
from gateway_svc.usage import TokenUsage

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
REQUEST_STREAM = "gen_ai.request.stream"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_CREATION = "gen_ai.usage.cache_creation.input_tokens"
USAGE_REASONING = "gen_ai.usage.reasoning.output_tokens"
AGENT_ID = "gen_ai.agent.id"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
HTTP_STATUS = "http.response.status_code"

CHAT, EMBEDDINGS = "chat", "embeddings"
OPERATIONS: Mapping[Dialect, str] = MappingProxyType(
    {
        Dialect.CHAT: CHAT,
        Dialect.RESPONSES: CHAT,
        Dialect.MESSAGES: CHAT,
        Dialect.EMBEDDINGS: EMBEDDINGS,
    }
)
PORTS: Mapping[str, int] = MappingProxyType({"https": 443, "http": 80})
INPUT, OUTPUT = "input", "output"  # gen_ai.token.type


def asked(dialect: Dialect, provider: str, model: str, *, stream: bool) -> dict[str, str | int]:
    """Describe what is asked of whom."""
    return {
        OPERATION_NAME: OPERATIONS[dialect],
        PROVIDER_NAME: provider,
        REQUEST_MODEL: model,
        REQUEST_STREAM: stream,
    }


def limited(output_tokens: int, choices: int) -> dict[str, str | int]:
    """Describe how much may come out, of a request that generates."""
    several: dict[str, str | int] = {} if choices == 1 else {REQUEST_CHOICE_COUNT: choices}
    return {REQUEST_MAX_TOKENS: output_tokens} | several


def server(base_url: str) -> dict[str, str | int]:
    """Describe where it is asked: the host and the port, and nothing else that an address may hold."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:  # no address at all, which whoever asks it will find out
        return {}
    return {} if host is None or port is None else {SERVER_ADDRESS: host, SERVER_PORT: port}


def used(usage: TokenUsage) -> dict[str, str | int]:
    """Describe what was used; what was cached, or thought, is counted within what went in, or came out."""
    parts = {
        USAGE_CACHE_READ: usage.cached_input_tokens,
        USAGE_CACHE_CREATION: usage.cache_write_tokens,
        USAGE_REASONING: usage.reasoning_tokens,
    }
    whole: dict[str, str | int] = {USAGE_INPUT_TOKENS: usage.input_total, USAGE_OUTPUT_TOKENS: usage.output_total}
    return whole | {name: tokens for name, tokens in parts.items() if tokens}
