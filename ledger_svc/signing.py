"""Sign the heads of chains that grew, and keep the tree below them. What a head says is in `heads.py`.

Nothing is signed blindly: every new entry's hash is computed again, and the tree must still come to the root that was
signed last. A stored tree that does not is built again from the entries; entries that do not are reported, not signed.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from ledger_svc import heads
from ledger_svc.heads import ChainBroken, Growing, Head
from ledger_svc.store import audit as store
from mesh import audit_keys
from mesh.audit_keys import AuditKeys, BadKeyFile
from mesh.canonical import NotCanonical
from mesh.db import Connection, Database
from mesh.errors import MeshError
from mesh.settings import SettingsError
from mesh.telemetry import logs, metrics

SETTING = "MANDATE_LEDGER_AUDIT_KEY_FILE"
LOOK_MAX = 500  # chains that one statement looks at
READ_MAX = 1_024

log = logs.get(__name__)


class ForeignHead(Exception):
    """The last head was signed by none of the keys of the file, which can therefore not go on from it."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"head {seq} is signed with an unknown key")
        self.seq = seq


class Signer:
    """Signs for as long as it runs; any number of replicas may, one at a time takes an organization."""

    def __init__(self, db: Database, path: Path, every_seconds: float) -> None:
        self._db = db
        self._path = path
        self._every_seconds = every_seconds
        self._stamp: tuple[int, int] | None = None
        self._keys: AuditKeys | None = None

    def check(self) -> None:
        """Read the key file; SettingsError when it can't be used."""
        try:
            self._read()
        except (BadKeyFile, OSError) as error:
            raise SettingsError(SETTING, str(error)) from None

    async def run(self) -> None:
        """Sign what grew, for ever; a rotated key is taken up by itself."""
        while True:
            try:
                await self.sign_all()
            except (MeshError, BadKeyFile, OSError) as error:
                log.warn("audit.not_signed", error=type(error).__name__)
            await asyncio.sleep(self._every_seconds)

    async def sign_all(self) -> None:
        """Sign every chain that is longer than its last head."""
        keys = await self._published()
        after, looked_at = "", LOOK_MAX
        while looked_at == LOOK_MAX:
            found = await store.unsigned(self._db, after, LOOK_MAX)
            looked_at, after = len(found), found[-1][0] if found else ""
            for organization_id in (organization_id for organization_id, unsigned in found if unsigned):
                await self.sign(keys, organization_id)

    async def sign(self, keys: AuditKeys, organization_id: str) -> None:
        """Sign one chain as far as it goes now; one that is not what was signed before is reported instead."""
        try:
            async with self._db.transaction() as tx:
                at = await store.take_turn(tx, organization_id)
                if at is None:
                    return
                last = await _last(tx, keys, organization_id)
                grown = await _grown(tx, organization_id, last)
                if grown.seq == (last.seq if last else 0):
                    return
                head = Head(organization_id, grown.seq, grown.seal, grown.root, _text(at), keys.key_id)
                signature = keys.sign(head.text)
                await store.add_head(tx, organization_id, grown.seq, head.text, signature, at, grown.made)
        except ForeignHead as foreign:
            metrics.AUDIT_BROKEN.inc()
            log.warn("audit.head_of_unknown_key", organization_id=organization_id, seq=foreign.seq)
        except ChainBroken as broken:
            metrics.AUDIT_BROKEN.inc()
            log.warn("audit.chain_broken", organization_id=organization_id, seq=broken.seq)

    async def _published(self) -> AuditKeys:
        keys = self._keys
        if self._stamp_now() != self._stamp or keys is None:
            keys = self._read()
            await store.publish_keys(self._db, [(audit_keys.id_of(record), record) for record in keys.records])
            self._stamp = self._stamp_now()
            log.event("audit.key_in_force", key_id=keys.key_id)
        return keys

    def _read(self) -> AuditKeys:
        self._keys = audit_keys.read(self._path)
        return self._keys

    def _stamp_now(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino


async def _last(tx: Connection, keys: AuditKeys, organization_id: str) -> Head | None:
    """Return the last head, which one of the keys of the file must have signed."""
    row = await store.last_head(tx, organization_id)
    if row is None:
        return None
    try:
        head = Head.of(row["head"])
    except (NotCanonical, KeyError, TypeError, ValueError) as error:  # a row that no signer wrote
        raise ForeignHead(row["seq"]) from error
    if head.seq != row["seq"] or not keys.knows(row["head"], head.key_id, row["signature"]):
        raise ForeignHead(row["seq"])
    return head


async def _grown(tx: Connection, organization_id: str, last: Head | None) -> Growing:
    """Return the chain and its tree up to the last entry, checked from the last 256 full entries before `last` on."""
    if last is not None:
        growing = await _stored(tx, organization_id, last.seq - last.seq % heads.CHUNK)
        if growing is not None and await _grow(tx, organization_id, growing, last):
            return growing
        log.warn("audit.tree_rebuilt", organization_id=organization_id, seq=last.seq)
    await store.forget_subtrees(tx, organization_id)
    growing = Growing(0, heads.genesis(organization_id), [])
    if not await _grow(tx, organization_id, growing, last):
        raise ChainBroken(last.seq if last else 0)
    return growing


async def _stored(tx: Connection, organization_id: str, base: int) -> Growing | None:
    """Return the chain and its tree as stored up to `base`, a multiple of 256; None when a part is missing."""
    if base == 0:
        return Growing(0, heads.genesis(organization_id), [])
    places = list(heads.places(0, base))
    found = await store.subtrees(tx, organization_id, places)
    seal = await store.seal_of(tx, organization_id, base)
    if seal is None or len(found) < len(places):
        return None
    return Growing(base, seal, [(place[0], found[place]) for place in places])


async def _grow(tx: Connection, organization_id: str, growing: Growing, last: Head | None) -> bool:
    """Add every further entry; False when the chain and its tree were not, at `last`, what it says."""
    if last is not None and growing.seq == last.seq and (growing.seal, growing.root) != (last.seal, last.root):
        return False
    while rows := await store.lines(tx, organization_id, growing.seq, READ_MAX):
        for row in rows:
            if row["seq"] != growing.seq + 1:
                raise ChainBroken(growing.seq + 1)
            growing.add(row["line"], row["hash"])
            if last is not None and row["seq"] == last.seq and (growing.seal, growing.root) != (last.seal, last.root):
                return False
        await asyncio.sleep(0)  # a long chain lets calls pass between
    if last is not None and growing.seq < last.seq:
        raise ChainBroken(growing.seq + 1)
    return True


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
