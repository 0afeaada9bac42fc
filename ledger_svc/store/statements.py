"""Balances and statements as of past moments, and the check of the books."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mesh.db import Database, Row

LINES_SCANNED = 20_000  # transfers that one page of a statement looks at
VERIFY_SECONDS = 120
NOW = "infinity"


@dataclass(frozen=True, slots=True)
class Account:
    """One account of an organization."""

    id: int


async def account(db: Database, organization_id: str, name: str, at: datetime | None) -> Account | None:
    """Return an account by its kind, or the window of a budget at a moment (now when None); None: there is none yet."""
    found: int | None = await db.value(
        """
        SELECT a.id FROM accounts a LEFT JOIN budgets g ON g.id = a.budget_id
         WHERE a.organization_id = $1
           AND (a.kind = $2 AND a.budget_id IS NULL
                OR a.budget_id = $2 AND a.kind = 'budget'
                   AND a.window_start = (window_of($1, g.period, coalesce($3, ledger_time($1)))).starts)
         LIMIT 1
        """,
        organization_id,
        name,
        at,
    )
    return None if found is None else Account(found)


async def seq_at(db: Database, organization_id: str, at: datetime | None) -> int:
    """Return the last transfer at or before a moment; 0: none. The newest when `at` is None."""
    if at is None:
        last: int = await db.value("SELECT last_seq($1)", organization_id)
        return last
    seq: int = await db.value("SELECT seq_at($1, $2)", organization_id, at)
    return seq


async def time_of(db: Database, organization_id: str, seq: int) -> datetime | None:
    """Return when a transfer was posted."""
    at: datetime | None = await db.value(
        "SELECT posted_at FROM transfers WHERE organization_id = $1 AND seq = $2", organization_id, seq
    )
    return at


async def balance_at(
    db: Database, organization_id: str, account: Account, seq: int, at: datetime | str | None = None
) -> int:
    """Return what an account had settled with every transfer up to `seq`, in micro-credits.

    `at` is the moment that is meant where it is later than that transfer; NOW is one.
    """
    moment = at.isoformat() if isinstance(at, datetime) else at
    balance: int = await db.value(
        "SELECT balance_at($1, $2, $3, $4::text::timestamptz)", organization_id, account.id, seq, moment
    )
    return balance


async def lines(
    db: Database, organization_id: str, account: Account, after_seq: int, until_seq: int, limit: int
) -> list[Row]:
    """Return lines of an account among the transfers after one and up to another, oldest first."""
    return await db.rows(
        "SELECT seq, kind, key, phase, amount_micros, actor, reason, posted_at FROM lines_of($1, $2, $3, $4) LIMIT $5",
        organization_id,
        account.id,
        after_seq,
        until_seq,
        limit,
    )


async def verify(db: Database, organization_id: str) -> tuple[list[Row], Row]:
    """Recompute the books in one snapshot; return what does not agree, and how far was looked."""
    async with db.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        wrong = await connection.fetch(
            "SELECT what, subject, expected, found FROM verify_books($1)", organization_id, timeout=VERIFY_SECONDS
        )
        reached = await connection.fetchrow(
            """
            SELECT last_seq($1) AS transfers,
                   coalesce((SELECT max(seq) FROM usage WHERE organization_id = $1), 0) AS usage,
                   coalesce((SELECT max(seq) FROM audit WHERE organization_id = $1), 0) AS audit
            """,
            organization_id,
        )
    if reached is None:
        raise LookupError("a statement that always answers a row answered none")
    return wrong, reached


async def rebuild(db: Database, organization_id: str) -> int:
    """Make the list of open holds and missing checkpoints anew; return how many holds were not listed."""
    async with db.connection() as connection:
        count = await connection.fetchval("SELECT rebuild_derived($1)", organization_id, timeout=VERIFY_SECONDS)
    return int(count or 0)


async def thin(db: Database, organization_id: str, before: datetime) -> bool:
    """Delete checkpoints that others stand in for, over the next 10,000 transfers; return whether there is more."""
    more: bool = await db.value("SELECT thin_checkpoints($1, $2)", organization_id, before)
    return more


async def organizations_after(db: Database, organization_id: str, limit: int) -> list[str]:
    """Return organizations in the order of their ids."""
    rows = await db.rows(
        "SELECT organization_id FROM organizations_after($1, $2) AS organization_id", organization_id, limit
    )
    return [row["organization_id"] for row in rows]
