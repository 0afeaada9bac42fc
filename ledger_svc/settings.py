"""What the ledger reads from the environment."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.secret import Secret
from mesh.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """The ledger's own settings."""

    database_url: Secret = setting(
        "MANDATE_LEDGER_DATABASE_URL", ..., "PostgreSQL as the ledger's runtime role, which owns nothing."
    )
    credits_per_usd: int = setting(
        "MANDATE_CREDITS_PER_USD",
        100,
        "Credits that one US dollar buys; a change makes new prices.",
        minimum=1,
        maximum=10_000,
    )
    lease_ms: int = setting(
        "MANDATE_LEDGER_LEASE_MS",
        5_000,
        "How long a gateway may be silent before its holds become uncertain.",
        minimum=1_000,
        maximum=60_000,
    )
    pool_size: int = setting(
        "MANDATE_LEDGER_POOL_SIZE", 12, "Most connections to PostgreSQL of one process.", minimum=2, maximum=100
    )
