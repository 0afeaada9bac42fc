"""The audit chain, what other services told, signed heads and the tree below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ledger_svc.heads import Place
from mesh.db import Connection, Database, Row

SCAN_MAX = 10_000  # entries that one page of a list looks at
KEYS_MAX = 200
SIGNING_LOCK = 7103  # advisory: one replica at a time grows an organization's tree


@dataclass(frozen=True, slots=True)
class Told:
    """A fact of another service, checked; `detail` is canonical and says whose it is."""

    organization_id: str
    source_seq: int
    actor: str
    action: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a fact stands in the chain; `differs` names the field of an earlier one under the same number."""

    seq: int
    was_there: bool
    differs: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries a list shows; '' and None let everything through. `prefix` is of the action."""

    actor: str
    action: str
    prefix: str
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head as it was signed, and the keys up to the one that signed it."""

    text: str
    signature: bytes
    seq: int
    recorded_at: datetime
    keys: tuple[str, ...]


async def append(db: Database, source: str, facts: Sequence[Told]) -> list[Appended]:
    """Append facts of one organization, each once, in one commit."""
    rows = await db.rows(
        "SELECT fact_seq, was_there, differs FROM append_facts($1, $2, $3, $4, $5, $6, $7)",
        facts[0].organization_id,
        source,
        [fact.source_seq for fact in facts],
        [fact.actor for fact in facts],
        [fact.action for fact in facts],
        [fact.subject for fact in facts],
        [fact.detail for fact in facts],
    )
    return [Appended(row["fact_seq"], row["was_there"], row["differs"]) for row in rows]


async def lines(db: Database | Connection, organization_id: str, after_seq: int, limit: int) -> list[Row]:
    """Return entries as (seq, line, hash), oldest first."""
    query = "SELECT seq, line, hash FROM audit WHERE organization_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"
    if isinstance(db, Database):
        return await db.rows(query, organization_id, after_seq, limit)
    return await db.fetch(query, organization_id, after_seq, limit)


async def bounds(db: Database, organization_id: str, wanted: Filter) -> tuple[int, int]:
    """Return the first entry that a filter's times let through, and one past the last."""
    row = await db.one(
        """
        SELECT CASE WHEN $2::timestamptz IS NULL THEN 1 ELSE audit_seq_at($1, $2) END AS low,
               CASE WHEN $3::timestamptz IS NULL
                    THEN (SELECT coalesce(max(seq), 0) + 1 FROM audit WHERE organization_id = $1)
                    ELSE audit_seq_at($1, $3) END AS high
        """,
        organization_id,
        wanted.start,
        wanted.end,
    )
    return row["low"], row["high"]


async def page(db: Database, organization_id: str, within: tuple[int, int], wanted: Filter, limit: int) -> list[Row]:
    """Return entries from `within` (first, one past the last) that a filter lets through, newest first."""
    return await db.rows(
        """
        SELECT seq, actor, action, subject, detail, recorded_at
          FROM audit a
         CROSS JOIN LATERAL (SELECT line::json ->> 'actor' AS actor, line::json ->> 'action' AS action,
                                    line::json ->> 'subject' AS subject, (line::json -> 'detail')::text AS detail) e
         WHERE organization_id = $1 AND seq >= $2 AND seq < $3
           AND ($4 = '' OR actor = $4) AND ($5 = '' OR action = $5) AND ($6 = '' OR starts_with(action, $6))
         ORDER BY seq DESC LIMIT $7
        """,
        organization_id,
        *within,
        wanted.actor,
        wanted.action,
        wanted.prefix,
        limit,
    )


async def last_head(db: Database | Connection, organization_id: str) -> Row | None:
    """Return the newest head as (head, signature, seq, recorded_at)."""
    query = (
        "SELECT head, signature, seq, recorded_at FROM audit_heads WHERE organization_id = $1 ORDER BY seq DESC LIMIT 1"
    )
    if isinstance(db, Database):
        return await db.row(query, organization_id)
    return await db.fetchrow(query, organization_id)


async def signed_head(db: Database, organization_id: str) -> SignedHead | None:
    """Return the newest head with the records of all keys, oldest first."""
    row = await last_head(db, organization_id)
    if row is None:
        return None
    keys = await db.rows("SELECT line FROM audit_keys ORDER BY ordinal LIMIT $1", KEYS_MAX)
    return SignedHead(row["head"], row["signature"], row["seq"], row["recorded_at"], tuple(key["line"] for key in keys))


async def publish_keys(db: Database, keys: Sequence[tuple[str, str]]) -> None:
    """Record the signer's public keys as (id, record), oldest first; one that is there stays as it is."""
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock($1, 0)", SIGNING_LOCK)
        await tx.executemany("INSERT INTO audit_keys (id, line) VALUES ($1, $2) ON CONFLICT DO NOTHING", keys)


async def unsigned(db: Database, after: str, limit: int) -> list[tuple[str, bool]]:
    """Look at up to `limit` chains after an organization: whose each is, and whether it is longer than its head."""
    rows = await db.rows("SELECT organization, unsigned FROM unsigned_chains($1, $2)", after, limit)
    return [(row["organization"], row["unsigned"]) for row in rows]


async def take_turn(tx: Connection, organization_id: str) -> datetime | None:
    """Take an organization's tree for this transaction and return the time; None when another replica has it."""
    return await tx.fetchval(
        "SELECT CASE WHEN pg_try_advisory_xact_lock($1, hashtext($2)) THEN clock_timestamp() END",
        SIGNING_LOCK,
        organization_id,
    )


async def seal_of(tx: Connection, organization_id: str, seq: int) -> bytes | None:
    """Return the hash of one entry."""
    return await tx.fetchval("SELECT hash FROM audit WHERE organization_id = $1 AND seq = $2", organization_id, seq)


async def subtrees(db: Database | Connection, organization_id: str, places: Sequence[Place]) -> dict[Place, bytes]:
    """Return those of the asked subtrees that are stored."""
    query = (
        "SELECT level, position, hash FROM audit_subtrees JOIN unnest($2::smallint[], $3::bigint[]) w(level, position)"
        " USING (level, position) WHERE organization_id = $1"
    )
    asked = (organization_id, [level for level, _ in places], [position for _, position in places])
    rows = await (db.rows(query, *asked) if isinstance(db, Database) else db.fetch(query, *asked))
    return {(row["level"], row["position"]): row["hash"] for row in rows}


async def forget_subtrees(tx: Connection, organization_id: str) -> None:
    """Drop the stored tree, to be built again from the entries."""
    await tx.execute("DELETE FROM audit_subtrees WHERE organization_id = $1", organization_id)


async def add_head(  # noqa: PLR0913, PLR0917  # one parameter a column
    tx: Connection, organization_id: str, seq: int, head: str, signature: bytes, at: datetime, made: dict[Place, bytes]
) -> None:
    """Record a head with the subtrees that became complete since the one before."""
    await tx.execute(
        "INSERT INTO audit_subtrees (organization_id, level, position, hash) "
        "SELECT $1, * FROM unnest($2::smallint[], $3::bigint[], $4::bytea[])",
        organization_id,
        [level for level, _ in made],
        [position for _, position in made],
        list(made.values()),
    )
    await tx.execute(
        "INSERT INTO audit_heads (organization_id, seq, head, signature, recorded_at) VALUES ($1, $2, $3, $4, $5)",
        organization_id,
        seq,
        head,
        signature,
        at,
    )
