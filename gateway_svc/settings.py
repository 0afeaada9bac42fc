"""What the gateway reads from its environment, beside the settings of every service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret
from mesh.settings import Runtime, setting

SEALING_SETTING = "MANDATE_GATEWAY_SEALING_KEY_FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The gateway's own settings."""

    database_url: Secret = setting("MANDATE_GATEWAY_DATABASE_URL", ..., "PostgreSQL as the gateway's own role.")
    sealing_key_file: Path | None = setting(
        SEALING_SETTING,
        None,
        "File of 32 bytes in base64 that seal answers kept for replay; $MANDATE_HOME/keys/gateway.key when empty.",
    )
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
    replay_hours: int = setting(
        "MANDATE_GATEWAY_REPLAY_HOURS",
        24,
        "How long an answer is kept, sealed, for a repeat of its Idempotency-Key.",
        minimum=1,
        maximum=24 * 30,
    )
    replay_key_days: int = setting(
        "MANDATE_GATEWAY_REPLAY_KEY_DAYS",
        30,
        "How long an Idempotency-Key is known, so that it is not billed again; no shorter than answers are kept.",
        minimum=1,
        maximum=365,
    )
    replay_bytes_max: int = setting(
        "MANDATE_GATEWAY_REPLAY_BYTES_MAX",
        8 * 1024 * 1024,
        "Largest answer kept for replay; a larger one is served, and its key answers 409 from then on.",
        minimum=1024,
        maximum=64 * 1024 * 1024,
    )
    replay_memory_bytes_max: int = setting(
        "MANDATE_GATEWAY_REPLAY_MEMORY_BYTES_MAX",
        256 * 1024 * 1024,
        "What answers that are recorded or given again may take in one process, a quarter of it one organization's; "
        "one past it is not kept, as if too large, or given again later.",
        minimum=1024,
    )

    def sealing_key_path(self, runtime: Runtime) -> Path:
        """Return the file of the sealing key."""
        return self.sealing_key_file or runtime.home / "keys" / "gateway.key"
