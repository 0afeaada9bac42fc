"""Identity's public keys, fetched over the mesh and kept for a while: the KeySource of services that call identity.

The ledger, which calls nobody, is sent its keys instead.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from mandate.identity.v1 import keys_pb2, keys_pb2_grpc
from mesh import client, tokens
from mesh.clock import monotonic_ms
from mesh.errors import MeshError
from mesh.telemetry import logs

if TYPE_CHECKING:
    import grpc
    from cryptography.hazmat.primitives.asymmetric import ec

FETCH_MS_MAX = 2_000
FETCH_EVERY_MS_MIN = 1_000  # tokens that name made-up keys must not turn into load on identity
FRESH_MS = 5 * 60_000
USABLE_MS_MAX = 15 * 60_000  # a key that identity withdrew is trusted no longer than this, even if identity is away
KEYS_MAX = 16

log = logs.get(__name__)


class IdentityKeys(tokens.KeySource):
    """Identity's verification keys: fetched on the first call, on an unknown key id, and once they are 5 minutes old.

    At most one fetch runs, at most once a second. Without an answer nothing unknown is accepted: a key id that cannot
    be looked up is an error (UNAVAILABLE), and keys 15 minutes old are not used.
    """

    def __init__(self, channel: grpc.aio.Channel, *, now_ms: Callable[[], float] = monotonic_ms) -> None:
        self._identity = keys_pb2_grpc.KeyServiceStub(channel)
        self._now_ms = now_ms
        self._keys: Mapping[str, ec.EllipticCurvePublicKey] = MappingProxyType({})
        self._fetched_at_ms = float("-inf")
        self._tried_at_ms = float("-inf")
        self._failure: MeshError | None = None
        self._fetch: asyncio.Task[None] | None = None

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        age_ms = self._now_ms() - self._fetched_at_ms
        usable = key_id in self._keys and age_ms < USABLE_MS_MAX
        if usable and age_ms < FRESH_MS:
            return self._keys[key_id]
        fetch = self._fetching()
        if usable:
            return self._keys[key_id]  # the fetch goes on behind this call
        if fetch is not None:
            await asyncio.shield(fetch)  # one caller that goes away must not end it for the others
        if self._failure is not None:
            raise self._failure
        return self._keys.get(key_id)

    async def close(self) -> None:
        """End a fetch that still runs; the channel is the owner's to close."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait((self._fetch,))

    def _fetching(self) -> asyncio.Task[None] | None:
        """Return the fetch that runs, begun now if the last one is a second old; None when it is too early."""
        if self._fetch is not None and not self._fetch.done():
            return self._fetch
        if self._now_ms() - self._tried_at_ms < FETCH_EVERY_MS_MIN:
            return None
        self._tried_at_ms = self._now_ms()
        # A context of its own: the fetch serves all callers, so it is bound neither to this one's deadline nor person.
        self._fetch = asyncio.get_running_loop().create_task(self._refresh(), context=contextvars.Context())
        return self._fetch

    async def _refresh(self) -> None:
        try:
            request = keys_pb2.ListVerificationKeysRequest()
            response = await client.call(self._identity.ListVerificationKeys, request, timeout_ms=FETCH_MS_MAX)
        except MeshError as error:
            self._failure = error
            log.warn("verification_keys.unavailable", reason=error.reason)
            return
        self._keys = MappingProxyType(dict(_read(response)))
        self._fetched_at_ms, self._failure = self._now_ms(), None


def _read(response: keys_pb2.ListVerificationKeysResponse) -> list[tuple[str, ec.EllipticCurvePublicKey]]:
    found: list[tuple[str, ec.EllipticCurvePublicKey]] = []
    for key in response.keys[:KEYS_MAX]:
        try:
            found.append((key.key_id, tokens.key_of_jwk(key.jwk)))
        except ValueError as error:
            log.warn("verification_keys.unreadable", key_id=key.key_id, error=type(error).__name__)
    return found
