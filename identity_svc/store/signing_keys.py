"""SQL of the keys that sign mesh tokens; their private halves are sealed before they come here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mesh.db import Connection, Database

LOCK = "identity:signing_keys"
PUBLISHED_MAX = 16


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key pair that is in use; `state` is pending, active or retiring."""

    key_id: str
    state: str
    jwk: str
    sealed_private_key: bytes


async def published(db: Database) -> list[SigningKey]:
    """Return every key that may verify a live token, oldest first."""
    rows = await db.rows(
        """
        SELECT key_id, state, jwk, sealed_private_key
          FROM signing_keys
         WHERE state IN ('pending', 'active', 'retiring')
         ORDER BY created_at, key_id
         LIMIT $1
        """,
        PUBLISHED_MAX,
    )
    return [SigningKey(row["key_id"], row["state"], row["jwk"], row["sealed_private_key"]) for row in rows]


async def add_first(db: Database, key: SigningKey, at: datetime) -> None:
    """Add a pending key unless one is pending or active already; replicas that start together take turns."""
    async with db.transaction() as tx:
        await _lock(tx)
        await tx.execute(
            """
            INSERT INTO signing_keys (key_id, state, jwk, sealed_private_key, created_at)
            SELECT $1, 'pending', $2, $3, $4
             WHERE NOT EXISTS (SELECT FROM signing_keys WHERE state IN ('pending', 'active'))
            """,
            key.key_id,
            key.jwk,
            key.sealed_private_key,
            at,
        )


async def activate(db: Database, known: Sequence[str], at: datetime) -> None:
    """Let the pending key sign if it is among those that the ledger knows; the key that signed before retires."""
    async with db.transaction() as tx:
        await _lock(tx)
        pending = await tx.fetchval(
            "SELECT key_id FROM signing_keys WHERE state = 'pending' AND key_id = ANY($1)", list(known)
        )
        if pending is None:
            return
        await tx.execute("UPDATE signing_keys SET state = 'retiring', retired_at = $1 WHERE state = 'active'", at)
        await tx.execute(
            "UPDATE signing_keys SET state = 'active', activated_at = $2 WHERE key_id = $1 AND state = 'pending'",
            pending,
            at,
        )


async def _lock(tx: Connection) -> None:
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", LOCK)
