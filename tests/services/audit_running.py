"""An organization's audit chain as a test drives it: exported, listed, proved, and signed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger_svc.signing import Signer
from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import audit_keys, caller
from mesh.client import call
from mesh.clock import SystemClock
from mesh.testing import TestIssuer
from mesh.verify import Complete, verify
from tests.conftest import RunningLedger
from tests.services.ledger_running import Tenant, owner


@dataclass(frozen=True)
class Auditor:
    """An organization's chain as its viewer sees it, and the signer of all chains."""

    ledger: RunningLedger
    stub: rpc.AuditServiceAsyncStub
    viewer: caller.Caller
    organization: str
    signer: Signer
    path: Path

    async def export(self, page_size: int = 3, after_seq: int = 0) -> list[bytes]:
        lines: list[bytes] = []
        with caller.acting(self.viewer):
            while True:
                request = pb.ExportAuditRequest(
                    organization_id=self.organization, after_seq=after_seq, page_size=page_size
                )
                page = await call(self.stub.ExportAudit, request)
                lines += [line.encode() + b"\n" for line in page.lines]
                after_seq = page.last_seq
                if not page.more:
                    return lines

    async def listed(self, **wanted: Any) -> list[pb.AuditEntry]:
        entries: list[pb.AuditEntry] = []
        token = ""
        with caller.acting(self.viewer):
            while True:
                request = pb.ListAuditRequest(
                    organization_id=self.organization, page_size=3, page_token=token, **wanted
                )
                page = await call(self.stub.ListAudit, request)
                entries += page.entries
                token = page.next_page_token
                if not token:
                    return entries

    async def head(self) -> pb.AuditHead:
        with caller.acting(self.viewer):
            return await call(self.stub.GetAuditHead, pb.GetAuditHeadRequest(organization_id=self.organization))

    async def proof(self, seq: int) -> bytes:
        request = pb.ProveAuditEntryRequest(organization_id=self.organization, seq=seq)
        with caller.acting(self.viewer):
            proved = await call(self.stub.ProveAuditEntry, request)
        return "".join(f"{line}\n" for line in proved.lines).encode()

    async def sign(self) -> None:
        await self.signer.sign_all()

    async def heads(self) -> int:
        query = "SELECT count(*) FROM audit_heads WHERE organization_id = $1"
        return await self.ledger.database.value(query, self.organization)

    async def grow(self, count: int) -> None:
        """Add facts in one commit."""
        async with owner(self.ledger.house) as connection:
            await connection.execute(
                "SELECT append_audit($1, ledger_time($1), array_fill('t'::text, ARRAY[$2::int]), "
                "array_fill('test.grown'::text, ARRAY[$2]), array_fill('s'::text, ARRAY[$2]), "
                "array_fill('{}'::text, ARRAY[$2]))",
                self.organization,
                count,
            )


@asynccontextmanager
async def auditing(ledger: RunningLedger, issuer: TestIssuer, folder: Path, who: Tenant) -> AsyncGenerator[Auditor]:
    path = folder / "audit.json"
    audit_keys.create(path, SystemClock().now())
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        signer = Signer(ledger.database, path, 60)
        viewer = issuer.person(**{who.organization: "viewer"})
        yield Auditor(ledger, rpc.AuditServiceStub(channel), viewer, who.organization, signer, path)


@asynccontextmanager
async def looping(*loops: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    tasks = [asyncio.ensure_future(loop()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def chain(ledger: RunningLedger, organization: str, count: int) -> list[dict[str, Any]]:
    """Wait for so many entries that services told, and return all of them; the chain must hold."""
    query = "SELECT line, hash FROM audit WHERE organization_id = $1 ORDER BY seq"
    async with asyncio.timeout(15):
        while True:
            rows = await ledger.database.rows(query, organization)
            entries = [json.loads(row["line"]) for row in rows]
            told = [entry for entry in entries if "source" in entry["detail"]]
            if len(told) >= count:
                break
            await asyncio.sleep(0.05)
    verdict = verify(f'{{"entry":{row["line"]},"hash":"{row["hash"].hex()}"}}\n'.encode() for row in rows)
    assert isinstance(verdict, Complete)
    assert verdict.gaps == ()
    return told
