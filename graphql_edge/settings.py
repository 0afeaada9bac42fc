"""What the edge reads besides the runtime's settings. The edge has no database."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """How the edge serves browsers."""

    cors_origins: tuple[str, ...] = setting(
        "MANDATE_EDGE_CORS_ORIGINS",
        (),
        "Origins of other sites whose pages may call GraphQL, such as https://a.example.",
    )
    secure_cookies: bool = setting(
        "MANDATE_EDGE_SECURE_COOKIES", False, "Mark the session cookie Secure; for an edge that people reach by https."
    )
    operation_ms: int = setting(
        "MANDATE_EDGE_OPERATION_MS", 10_000, "How long one GraphQL operation may take.", minimum=100, maximum=60_000
    )
