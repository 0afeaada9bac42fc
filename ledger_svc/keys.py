"""The public keys that identity pushed here: the ledger verifies mesh tokens without asking anybody."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from ledger_svc.store import registry
from mesh import tokens
from mesh.db import Database

KEYS_MAX = 100


class LedgerKeys:
    """A KeySource over the verification_keys table; a key never changes, so it is read once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[str, ec.EllipticCurvePublicKey] = {}

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        """Return a key by its id, or None when identity pushed no such key."""
        if key_id not in self._known:
            jwk = await registry.jwk_of(self._db, key_id)
            if jwk is None:
                return None
            if len(self._known) >= KEYS_MAX:
                self._known.clear()
            self._known[key_id] = tokens.key_of_jwk(jwk)
        return self._known[key_id]
