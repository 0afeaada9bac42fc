"""Identity's own signing keys: made once, sealed at rest, told to the ledger before they sign, verified with here."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from identity_svc.registry import Registry
from identity_svc.store import signing_keys as store
from identity_svc.store.signing_keys import SigningKey
from mesh import sealing
from mesh.clock import Clock, monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.settings import SettingsError
from mesh.telemetry import logs
from mesh.tokens import KeySource, Signer, key_of_jwk, public_jwk

SEALING_SETTING = "MANDATE_IDENTITY_SEALING_KEY_FILE"
REFRESH_SECONDS = 5.0
RETRY_SECONDS_MAX = 2.0
RELOAD_EVERY_MS_MIN = 1_000  # tokens that name made-up keys must not turn into load on the database

log = logs.get(__name__)


class SigningKeys(KeySource):
    """Which key signs now, and which keys verify."""

    def __init__(self, db: Database, registry: Registry, clock: Clock, sealing_key: bytes) -> None:
        self._db = db
        self._registry = registry
        self._clock = clock
        self._sealing_key = sealing_key
        self._signer: Signer | None = None
        self._jwks: Mapping[str, str] = MappingProxyType({})
        self._keys: Mapping[str, ec.EllipticCurvePublicKey] = MappingProxyType({})
        self._told: Mapping[str, str] = MappingProxyType({})
        self._loaded_at_ms = float("-inf")

    def signer(self) -> Signer:
        """Return the key that signs; Unavailable until the ledger knows one."""
        if self._signer is None:
            raise Unavailable("NO_SIGNING_KEY", "no signing key is in force yet", retry_after_ms=500)
        return self._signer

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        if key_id not in self._keys and monotonic_ms() - self._loaded_at_ms > RELOAD_EVERY_MS_MIN:
            await self._load()
        return self._keys.get(key_id)

    async def published(self) -> Mapping[str, str]:
        """Return the public keys that may verify a live token, as the database has them now."""
        return {key.key_id: key.jwk for key in await store.published(self._db)}

    async def open(self) -> None:
        """Make the first key if there is none, and load what there is; SettingsError when the seal does not open."""
        await store.add_first(self._db, _made(self._sealing_key), self._clock.now())
        await self._load()

    async def run(self) -> None:
        """Keep the ledger told and this process up to date, for ever; failures are tried again, up to 2 s apart."""
        pause_seconds = 0.05
        while True:
            try:
                await self.announce()
                await asyncio.sleep(REFRESH_SECONDS)
                pause_seconds = 0.05
            except MeshError as error:
                log.warn("signing_keys.not_announced", reason=error.reason)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, RETRY_SECONDS_MAX)

    async def announce(self) -> None:
        """Tell the ledger the keys if they are news to it, then let a pending one sign."""
        await self._load()
        if self._jwks == self._told:
            return
        telling = self._jwks
        await self._registry.put_keys(telling)
        await store.activate(self._db, tuple(telling), self._clock.now())
        self._told = telling
        await self._load()

    async def _load(self) -> None:
        keys = await store.published(self._db)
        active = next((key for key in keys if key.state == "active"), None)
        if active is None:
            self._signer = None
        elif self._signer is None or self._signer.key_id != active.key_id:
            self._signer = Signer(active.key_id, _opened(active, self._sealing_key))
            log.event("signing_key.in_force", key_id=active.key_id)
        self._jwks = MappingProxyType({key.key_id: key.jwk for key in keys})
        self._keys = MappingProxyType({key.key_id: key_of_jwk(key.jwk) for key in keys})
        self._loaded_at_ms = monotonic_ms()


def _made(sealing_key: bytes) -> SigningKey:
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = public_jwk(private.public_key())
    key_id = _thumbprint(jwk)
    plaintext = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey(key_id, "pending", jwk, sealing.seal(sealing_key, plaintext, _binding(key_id)))


def _opened(key: SigningKey, sealing_key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        plaintext = sealing.unseal(sealing_key, key.sealed_private_key, _binding(key.key_id))
    except sealing.BrokenSeal:
        raise SettingsError(SEALING_SETTING, "is not the key that sealed the signing keys of this database") from None
    private = load_der_private_key(plaintext, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key.key_id} is not an elliptic-curve key")
    return private


def _thumbprint(jwk: str) -> str:
    """Name a key by its JWK thumbprint (RFC 7638)."""
    members = json.loads(jwk)
    required = {name: members[name] for name in ("crv", "kty", "x", "y")}
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode()


def _binding(key_id: str) -> tuple[str, ...]:
    return ("identity", "signing_keys", key_id, "private key")
