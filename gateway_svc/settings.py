"""What the gateway reads from its environment, beside the settings of every service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret
from mesh.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The gateway's own settings."""

    database_url: Secret = setting("MANDATE_GATEWAY_DATABASE_URL", ..., "PostgreSQL as the gateway's own role.")
    openai_api_key: Secret | None = setting("OPENAI_API_KEY", None, "The platform's key for OpenAI.")
    openai_base_url: str = setting(
        "OPENAI_BASE_URL", "https://api.openai.com/v1", "Where OpenAI's models are asked; may be a private address."
    )
    anthropic_api_key: Secret | None = setting("ANTHROPIC_API_KEY", None, "The platform's key for Anthropic.")
    anthropic_base_url: str = setting(
        "ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
        "Where Anthropic's models are asked; may be a private address.",
    )
    in_flight_max: int = setting(
        "MANDATE_GATEWAY_IN_FLIGHT_MAX", 2_000, "Completions at once in one process; more get 503.", minimum=1
    )
    connections_max: int = setting(
        "MANDATE_GATEWAY_CONNECTIONS_MAX",
        5_000,
        "Clients' connections at once in one process; more get 503. At most half of the files it may open.",
        minimum=1,
    )
    body_bytes_max: int = setting(
        "MANDATE_GATEWAY_BODY_BYTES_MAX", 1024 * 1024, "Largest request body; larger ones get 413.", minimum=1024
    )
    upstream_seconds_max: int = setting(
        "MANDATE_UPSTREAM_SECONDS_MAX", 600, "How long a provider may stay silent.", minimum=1, maximum=3600
    )
    mock_bill_file: Path | None = setting(
        "MANDATE_MOCK_BILL_FILE", None, "File to which the mock models append what each call costs them."
    )
