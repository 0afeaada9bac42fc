"""An organization's own keys: made once, wrapped by a root key, and kept unwrapped in memory for a minute at most."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh import sealing
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError
from mesh.secret import Secret
from mesh.settings import SettingsError
from vault_svc import store
from vault_svc.root import KEYRING_SETTING, RootKeys, broken_seal
from vault_svc.store import TenantKeyRow

TTL_MS = 60_000
CACHED_MAX = 10_000
FIRST_VERSION = 1
KEY_PURPOSE = "tenant-key"
PEPPER_INFO = b"mandate vault requests 1"


@dataclass(frozen=True, slots=True)
class TenantKey:
    """An organization's key, open."""

    organization_id: str
    version: int
    key: bytes = field(repr=False)

    def seal(self, secret: Secret, record: tuple[str, ...]) -> bytes:
        """Seal a secret so that it opens under this key, in this record (table, row, purpose, …) alone."""
        return sealing.seal(self.key, secret.reveal().encode(), self._binding(record))

    def open(self, sealed: bytes, record: tuple[str, ...]) -> Secret:
        """Open what `seal` made; Internal when it was altered or moved."""
        try:
            return Secret(sealing.unseal(self.key, sealed, self._binding(record)).decode())
        except sealing.BrokenSeal:
            raise broken_seal() from None

    def _binding(self, record: tuple[str, ...]) -> tuple[str, ...]:
        return (self.organization_id, *record, f"{self.organization_id}/{self.version}")


class TenantKeys:
    """Every organization's keys, through the database and the root keys."""

    def __init__(self, db: Database, root: RootKeys, *, now_ms: Callable[[], float] = monotonic_ms) -> None:
        self._db = db
        self._root = root
        self._now_ms = now_ms
        self._open: dict[tuple[str, int], tuple[float, TenantKey]] = {}

    async def newest(self, organization_id: str) -> TenantKey:
        """Return the key that seals now, made for an organization that has none."""
        row = await store.tenant_key(self._db, organization_id) or await self._make(organization_id)
        return await self.opened(row)

    async def pepper(self, organization_id: str) -> bytes:
        """Return what keys digests of the organization's requests; from its first key, so that no rotation changes it.

        It comes from no root key: a root key that is kept far away can't be read, and a retired one is gone.
        """
        row = await store.tenant_key(self._db, organization_id, FIRST_VERSION) or await self._make(organization_id)
        first = await self.opened(row)
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=PEPPER_INFO).derive(first.key)

    async def opened(self, row: TenantKeyRow) -> TenantKey:
        """Unwrap a key, or take it from memory."""
        name = (row.organization_id, row.version)
        found = self._open.get(name)
        if found is not None and self._now_ms() < found[0]:
            return found[1]
        key = await self._root.unwrap(row.wrapped, _binding(row.organization_id, row.version))
        opened = TenantKey(row.organization_id, row.version, key)
        self._open.pop(name, None)
        self._drop_old()
        self._open[name] = (self._now_ms() + TTL_MS, opened)
        return opened

    async def try_all_roots(self) -> None:
        """Unwrap one key of each root key in use; SettingsError when they are not all there."""
        for row in await store.one_key_of_each_root(self._db):
            try:
                await self._root.unwrap(row.wrapped, _binding(row.organization_id, row.version))
            except MeshError as error:
                problem = f"root key {row.wrapped.root_key_id!r} is missing or is not the one that was used"
                raise SettingsError(KEYRING_SETTING, problem) from error

    async def _make(self, organization_id: str) -> TenantKeyRow:
        key = os.urandom(sealing.KEY_BYTES)
        wrapped = await self._root.wrap(key, _binding(organization_id, FIRST_VERSION))
        await store.add_tenant_key(self._db, TenantKeyRow(organization_id, FIRST_VERSION, wrapped))
        row = await store.tenant_key(self._db, organization_id)  # another replica's, if that was faster
        assert row is not None  # noqa: S101  # it was recorded just now, by whomever
        return row

    def _drop_old(self) -> None:
        """Forget what has expired, and the oldest when full: keys are in the order in which they were opened."""
        now_ms = self._now_ms()
        while self._open:
            name, (until_ms, _) = next(iter(self._open.items()))
            if until_ms > now_ms and len(self._open) < CACHED_MAX:
                return
            del self._open[name]


def _binding(organization_id: str, version: int) -> tuple[str, str, str]:
    return (organization_id, str(version), KEY_PURPOSE)
