"""What a service did, for the audit chain: written in the transaction that does it, delivered to the ledger after it.

The ledger takes each fact once by (service, count), so a fact is in the chain exactly once however often it is sent.
A service's schema holds the two tables of `TABLES`. Facts hold no secrets, and no names or emails that people chose.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import caller, canonical, client, faults
from mesh.errors import MeshError
from mesh.outbox import Outbox
from mesh.telemetry import logs, metrics

if TYPE_CHECKING:
    import grpc

    from mesh.db import Connection, Database

TABLES = """
CREATE TABLE audit_counts (
  organization_id text PRIMARY KEY,
  last_seq        bigint NOT NULL
);

CREATE TABLE audit_outbox (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  payload    bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
"""
SERVICE = pb.DESCRIPTOR.services_by_name["AuditService"]

log = logs.get(__name__)
Detail = Mapping[str, "str | int | bool | Sequence[str] | None"]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that was done in an organization: `action` such as "agent.created", upon `subject`."""

    organization_id: str
    action: str
    subject: str
    detail: Detail


async def record(tx: Connection, fact: Fact) -> None:
    """Write down what whoever calls now did, in the transaction that does it; the last thing before its commit.

    The count is locked from here to the commit, so that an organization's facts are numbered without a gap and in the
    order of their commits.
    """
    await record_all(tx, [(caller.current().actor, fact)])


async def record_all(tx: Connection, facts: Sequence[tuple[str, Fact]]) -> None:
    """Write down what each actor did in one and the same organization; as `record` does, at the cost of one."""
    row = await tx.fetchrow(
        "INSERT INTO audit_counts AS c (organization_id, last_seq) VALUES ($1, $2) "
        "ON CONFLICT (organization_id) DO UPDATE SET last_seq = c.last_seq + $2 "
        "RETURNING last_seq, clock_timestamp() AS at",
        facts[0][1].organization_id,
        len(facts),
    )
    assert row is not None  # noqa: S101  # INSERT … RETURNING gives its row or raises
    time = Timestamp()
    time.FromDatetime(row["at"])
    messages = [
        pb.AuditFact(
            source_seq=row["last_seq"] - len(facts) + place,
            organization_id=fact.organization_id,
            actor=actor,
            action=fact.action,
            subject=fact.subject,
            detail=canonical.dumps(fact.detail),
            time=time,
        )
        for place, (actor, fact) in enumerate(facts, start=1)
    ]
    payloads = [message.SerializeToString() for message in messages]
    await tx.execute("INSERT INTO audit_outbox (payload) SELECT unnest($1::bytea[])", payloads)


def delivery(db: Database, service: str, ledger: grpc.aio.Channel) -> Callable[[], Awaitable[None]]:
    """Return the loop that delivers a service's facts to the ledger, for ever."""
    stub = rpc.AuditServiceStub(ledger)

    async def deliver(payloads: Sequence[bytes]) -> None:
        request = pb.AppendAuditRequest(facts=[pb.AuditFact.FromString(payload) for payload in payloads])
        answered = await client.call(stub.AppendAudit, request)
        for fact, answer in zip(request.facts, answered.facts, strict=True):
            if answer.HasField("fault"):
                _refused(fact, faults.from_fault(answer.fault))

    return Outbox(db, service, deliver, table="audit_outbox").run


def _refused(fact: pb.AuditFact, error: MeshError) -> None:
    """Say what the ledger will never take: only after one of the two databases was put back to an older state."""
    metrics.AUDIT_REFUSED.inc()
    log.warn(
        "audit.refused",
        reason=error.reason,
        field=error.details.get("field", ""),
        organization_id=fact.organization_id,
        source_seq=fact.source_seq,
        actor=fact.actor,
        action=fact.action,
        subject=fact.subject,
        detail=fact.detail,
    )
