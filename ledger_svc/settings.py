"""What the ledger reads from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret
from mesh.settings import Runtime, setting


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
    prices_file: Path | None = setting(
        "MANDATE_LEDGER_PRICES_FILE",
        None,
        "JSON file in the shape of ledger_svc/prices.json: models to add, or to price otherwise than shipped.",
    )
    lease_ms: int = setting(
        "MANDATE_LEDGER_LEASE_MS",
        5_000,
        "How long a gateway may be silent before its holds become uncertain.",
        minimum=1_000,
        maximum=60_000,
    )
    audit_key_file: Path | None = setting(
        "MANDATE_LEDGER_AUDIT_KEY_FILE",
        None,
        "File of the key that signs audit chains, closed to other users; $MANDATE_HOME/keys/audit.json when empty.",
    )
    audit_sign_seconds: int = setting(
        "MANDATE_LEDGER_AUDIT_SIGN_SECONDS",
        10,
        "How often audit chains that grew are signed.",
        minimum=1,
        maximum=3_600,
    )
    pool_size: int = setting(
        "MANDATE_LEDGER_POOL_SIZE", 12, "Most connections to PostgreSQL of one process.", minimum=2, maximum=100
    )

    def audit_key_path(self, runtime: Runtime) -> Path:
        """Return the file of the key that signs audit chains."""
        return self.audit_key_file or runtime.home / "keys" / "audit.json"
