"""With whose secret a provider is asked: the organization's own from the vault, else the platform's. In memory only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from gateway_svc.breaker import fingerprint
from gateway_svc.calls import Calls
from mandate.vault.v1 import credentials_pb2, credentials_pb2_grpc
from mesh import client
from mesh.clock import monotonic_ms
from mesh.errors import MeshError, Unavailable
from mesh.secret import Secret
from mesh.telemetry import logs

LEASES_MAX = 10_000
LEASE_MS_MAX = 60_000
NOT_FOUND_MS = 1_000
OPEN_MS = 2_000

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Credential:
    """A provider's key; `base_url` is not to be trusted when `own` is true."""

    secret: Secret
    base_url: str
    own: bool  # the organization's, not the platform's
    fingerprint: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the fingerprint once, and not for each call."""
        object.__setattr__(self, "fingerprint", fingerprint(self.secret))

    @property
    def named(self) -> bool:
        """Return whether the organization says where it leads."""
        return self.own and bool(self.base_url)


@dataclass(frozen=True, slots=True)
class _Lease:
    credential: Credential | None
    until_ms: float


class Credentials:
    """The secrets that the vault has lent."""

    def __init__(self, channel: grpc.aio.Channel, platform: Mapping[str, Credential]) -> None:
        self._vault = credentials_pb2_grpc.CredentialServiceStub(channel)
        self._platform = platform
        self._leases: OrderedDict[tuple[str, str], _Lease] = OrderedDict()
        self._opening: Calls[tuple[str, str], Credential | None] = Calls()

    async def of(self, organization_id: str, provider: str) -> Credential:
        """Return what to ask a provider with; PROVIDER_NOT_CONFIGURED when there is neither key."""
        key = (organization_id, provider)
        lease = self._leases.get(key)
        if lease is not None and lease.until_ms > monotonic_ms():
            own = lease.credential
        else:
            own = await self._opening.share(key, lambda: self._open(key))
        credential = own or self._platform.get(provider)
        if credential is None:
            raise Unavailable("PROVIDER_NOT_CONFIGURED", f"there is no key for the provider {provider}")
        return credential

    def forget(self, organization_id: str, provider: str) -> None:
        """Drop a lease whose secret the provider no longer takes."""
        self._leases.pop((organization_id, provider), None)

    async def _open(self, key: tuple[str, str]) -> Credential | None:
        request = credentials_pb2.OpenCredentialRequest(organization_id=key[0], provider=key[1])
        asked_at_ms = monotonic_ms()
        try:
            opened = await client.call(self._vault.OpenCredential, request, timeout_ms=OPEN_MS)
        except MeshError as error:
            log.warn("vault.unavailable", reason=error.reason)
            raise Unavailable(
                "CREDENTIALS_UNAVAILABLE", "the provider's key cannot be fetched", retry_after_ms=500
            ) from None
        credential = Credential(Secret(opened.secret), opened.base_url, own=True) if opened.found else None
        lease_ms = min(opened.lease_ms, LEASE_MS_MAX) if opened.found else NOT_FOUND_MS
        self._leases.pop(key, None)
        self._leases[key] = _Lease(credential, asked_at_ms + lease_ms)
        if len(self._leases) > LEASES_MAX:
            self._leases.popitem(last=False)
        return credential
