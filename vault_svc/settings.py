"""What the vault reads besides every process's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret
from mesh.settings import Runtime, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """The vault's own settings."""

    database_url: Secret = setting("MANDATE_VAULT_DATABASE_URL", ..., "PostgreSQL as the vault's runtime role.")
    keyring_file: Path | None = setting(
        "MANDATE_VAULT_KEYRING_FILE", None, "JSON file of root keys; $MANDATE_HOME/keys/vault.json when empty."
    )
    lease_ms: int = setting(
        "MANDATE_VAULT_LEASE_MS",
        5_000,
        "How long the gateway may keep a secret it was lent, in milliseconds; removal takes effect within it.",
        minimum=100,
        maximum=60_000,
    )

    def keyring(self, runtime: Runtime) -> Path:
        """Return the file of root keys."""
        return self.keyring_file or runtime.home / "keys" / "vault.json"
