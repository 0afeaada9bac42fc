"""Credit grants: make, void, expire, read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ledger_svc.grants import Grant, Lot, burned
from mesh.db import Connection, Database, Row

OPEN_MAX = 500  # lots of one organization that are not used up: each cut goes over all of them
MADE, DIFFERS, BORN_EXPIRED, TOO_MANY = 1, 2, 3, 4
VOIDED, VOID_DIFFERS, NO_GRANT, ENDED = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A lot to make."""

    id: str
    request_id: str
    amount_micros: int
    priority: int
    expires_at: datetime | None
    category: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request to make or void a lot."""

    status: int
    grant_id: str
    replayed: bool
    field: str


@dataclass(frozen=True, slots=True)
class Found:
    """Lots and the organization's time at which they were read."""

    grants: list[Grant]
    at: datetime


async def make(db: Database, organization_id: str, new: NewGrant, actor: str) -> Answer:
    """Post a grant to the wallet."""
    row = await db.one(
        "SELECT status, grant_id, replayed, field FROM make_grant($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        organization_id,
        new.id,
        new.request_id,
        new.amount_micros,
        new.priority,
        new.expires_at,
        new.category,
        actor,
        new.reason,
        OPEN_MAX,
    )
    return Answer(row["status"], row["grant_id"], row["replayed"], row["field"])


async def void(db: Database, organization_id: str, grant_id: str, request_id: str, actor: str, reason: str) -> Answer:
    """Take back what is left of a lot."""
    row = await db.one(
        "SELECT status, replayed, field FROM void_grant($1, $2, $3, $4, $5)",
        organization_id,
        grant_id,
        request_id,
        actor,
        reason,
    )
    return Answer(row["status"], grant_id, row["replayed"], row["field"])


async def expire(db: Database, organization_id: str) -> bool:
    """Take what is due; return whether something stays due, covered by holds in flight."""
    waits: bool = await db.value("SELECT expire_grants_of($1)", organization_id)
    return waits


async def get(db: Database, organization_id: str, grant_id: str) -> Found:
    """Return one lot, or none."""
    return await _read(db, organization_id, "AND g.id = $2", grant_id)


async def of_organization(db: Database, organization_id: str, after: str, limit: int) -> Found:
    """Return lots, oldest first."""
    return await _read(db, organization_id, "AND g.id > $2 ORDER BY g.id LIMIT $3", after, limit)


async def _read(db: Database, organization_id: str, which: str, *values: object) -> Found:
    async with db.transaction() as tx:
        # One snapshot: burns, the wallet and the transfers of one moment belong together.
        await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows = await tx.fetch(
            f"""
            SELECT g.id, g.organization_id, g.category, g.priority, g.amount_micros, g.reason, g.made_at, g.expires_at,
                   v.voided_at, b.burned, b.broken
              FROM grants g
              LEFT JOIN grant_voids v ON v.grant_id = g.id
             CROSS JOIN LATERAL (
               SELECT coalesce(sum(x.amount_micros) FILTER (WHERE x.cause = 'spent'), 0)::bigint AS burned,
                      coalesce(sum(x.amount_micros) FILTER (WHERE x.cause <> 'spent'), 0)::bigint AS broken
                 FROM grant_burns x WHERE x.grant_id = g.id) b
             WHERE g.organization_id = $1 {which}
            """,  # noqa: S608  # our own conditions
            organization_id,
            *values,
        )
        losses = burned(*await figures(tx, organization_id))
        now = await tx.fetch("SELECT ledger_time($1) AS at", organization_id)
    return Found([_grant(row, losses.get(row["id"], 0)) for row in rows], now[0]["at"])


async def figures(tx: Connection, organization_id: str) -> tuple[list[Lot], int, int]:
    """Return the open lots as of the last cut, what the wallet spent since then, and what it has settled."""
    rows = await tx.fetch(
        "SELECT grant_id, seq, priority, expires_at, remaining_micros FROM open_grants WHERE organization_id = $1 "
        "LIMIT $2",
        organization_id,
        OPEN_MAX,
    )
    wallet = await tx.fetchrow("SELECT spent, settled FROM spent_since_cut($1)", organization_id)
    spent, settled = (wallet["spent"], wallet["settled"]) if wallet else (0, 0)
    lots = [
        Lot(row["grant_id"], row["seq"], row["priority"], row["expires_at"], row["remaining_micros"]) for row in rows
    ]
    return lots, spent, settled


def _grant(row: Row, lost_micros: int) -> Grant:
    return Grant(
        id=row["id"],
        organization_id=row["organization_id"],
        category=row["category"],
        priority=row["priority"],
        amount_micros=row["amount_micros"],
        burned_micros=row["burned"] + lost_micros,
        broken_micros=row["broken"],
        reason=row["reason"],
        made_at=row["made_at"],
        expires_at=row["expires_at"],
        voided_at=row["voided_at"],
    )
