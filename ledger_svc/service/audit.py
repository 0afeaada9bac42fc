"""The audit chain: hand it out."""

from __future__ import annotations

from typing import Any

import grpc

from ledger_svc.store import wallets
from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh.db import Database
from mesh.errors import invalid

PAGE_DEFAULT, PAGE_MAX = 500, 1_000
Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(rpc.AuditServiceServicer):
    """Implements mandate.ledger.v1.AuditService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ExportAudit(self, request: pb.ExportAuditRequest, context: Context) -> pb.ExportAuditResponse:
        if not 0 <= request.page_size <= PAGE_MAX:
            raise invalid("page_size", f"must be 0 to {PAGE_MAX}")
        if request.after_seq < 0:
            raise invalid("after_seq", "must not be below 0")
        size = request.page_size or PAGE_DEFAULT
        lines = await wallets.audit(self._db, request.organization_id, request.after_seq, size + 1)
        return pb.ExportAuditResponse(lines=lines[:size], more=len(lines) > size)
