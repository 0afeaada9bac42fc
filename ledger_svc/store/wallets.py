"""Wallets by hand, and what happened to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mesh.db import Database, Row

TRANSFER_COLUMNS = """
  t.seq, t.kind, t.key, t.phase, t.amount_micros, t.actor, t.reason, t.posted_at, d.kind AS debit, c.kind AS credit
"""
TRANSFER_TABLES = "transfers t JOIN accounts d ON d.id = t.debit JOIN accounts c ON c.id = t.credit"


@dataclass(frozen=True, slots=True)
class Balance:
    """An organization's wallet."""

    settled_micros: int
    held_micros: int


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a posting by hand."""

    status: int
    replayed: bool
    field: str
    seq: int | None


POSTED, SHORT, NO_PURCHASE, ABOVE_PURCHASE, DIFFERS, CHAIN_FAILED = 1, 2, 3, 4, 5, 6


async def balance(db: Database, organization_id: str) -> Balance:
    """Return the wallet's balances; an organization that the ledger just learned of has nothing."""
    row = await db.row(
        """
        SELECT b.settled, b.held FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b
         WHERE a.organization_id = $1 AND a.kind = 'wallet' AND a.budget_id IS NULL AND a.window_start IS NULL
        """,
        organization_id,
    )
    return Balance(row["settled"], row["held"]) if row else Balance(0, 0)


async def post(  # noqa: PLR0913, PLR0917  # one parameter a column of the posting
    db: Database, organization_id: str, key: str, kind: str, amount_micros: int, purchase: str, actor: str, reason: str
) -> Posted:
    """Post a purchase, refund or adjustment; below 0 takes from the wallet."""
    row = await db.one(
        "SELECT status, replayed, field, seq FROM post_by_hand($1, $2, $3, $4, $5, $6, $7)",
        organization_id,
        key,
        kind,
        amount_micros,
        purchase,
        actor,
        reason,
    )
    return Posted(row["status"], row["replayed"], row["field"], row["seq"])


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """One transfer to post; `linked`: it and the next are posted both or neither."""

    key: str
    kind: str
    debit: str
    credit: str
    amount_micros: int
    reason: str
    linked: bool


async def post_batch(
    db: Database, organization_id: str, transfers: Sequence[NewTransfer], actor: str
) -> tuple[list[Posted], int]:
    """Post transfers in order; return what became of each, and the wallet's settled balance after them."""
    row = await db.one(
        "SELECT status, replayed, field, seqs, balance FROM post_transfers($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        organization_id,
        [transfer.key for transfer in transfers],
        [transfer.kind for transfer in transfers],
        [transfer.debit for transfer in transfers],
        [transfer.credit for transfer in transfers],
        [transfer.amount_micros for transfer in transfers],
        [transfer.reason for transfer in transfers],
        [transfer.linked for transfer in transfers],
        actor,
    )
    columns = (row["status"], row["replayed"], row["field"], row["seqs"])
    balance: int = row["balance"]
    return [Posted(*fields) for fields in zip(*columns, strict=True)], balance


async def resolve(  # noqa: PLR0913, PLR0917  # likewise
    db: Database, organization_id: str, key: str, request_id: str, actual_micros: int | None, actor: str, reason: str
) -> Posted:
    """Decide an uncertain hold."""
    row = await db.one(
        "SELECT status, replayed, field FROM resolve_hold($1, $2, $3, $4, $5, $6)",
        organization_id,
        key,
        request_id,
        actual_micros,
        actor,
        reason,
    )
    return Posted(row["status"], row["replayed"], row["field"], None)


async def transfer(db: Database, organization_id: str, seq: int) -> Row | None:
    """Return one transfer."""
    return await db.row(
        f"SELECT {TRANSFER_COLUMNS} FROM {TRANSFER_TABLES} WHERE t.organization_id = $1 AND t.seq = $2",  # noqa: S608
        organization_id,
        seq,
    )


async def last_transfer_of(db: Database, organization_id: str, key: str) -> Row | None:
    """Return the newest transfer that was posted under a key."""
    return await db.row(
        f"SELECT {TRANSFER_COLUMNS} FROM {TRANSFER_TABLES} "  # noqa: S608
        "WHERE t.organization_id = $1 AND t.key = $2 AND t.phase IN ('resolve', 'release', 'suspend') "
        "ORDER BY t.seq DESC LIMIT 1",
        organization_id,
        key,
    )


async def transfers(db: Database, organization_id: str, before_seq: int | None, limit: int) -> list[Row]:
    """Return transfers, newest first."""
    return await db.rows(
        f"SELECT {TRANSFER_COLUMNS} FROM {TRANSFER_TABLES} "  # noqa: S608
        "WHERE t.organization_id = $1 AND ($2::bigint IS NULL OR t.seq < $2) ORDER BY t.seq DESC LIMIT $3",
        organization_id,
        before_seq,
        limit,
    )


async def entries(db: Database, organization_id: str, before_seq: int | None, transfer_count: int) -> list[Row]:
    """Return the entries of so many transfers, newest first; account 0 mirrors the budgets' lines."""
    return await db.rows(
        """
        WITH page AS (SELECT seq, kind, key, phase, posted_at FROM transfers
                       WHERE organization_id = $1 AND ($2::bigint IS NULL OR seq < $2) ORDER BY seq DESC LIMIT $3)
        SELECT p.seq, p.kind, p.key, p.phase, p.posted_at, e.amount_micros,
               CASE WHEN e.account_id = 0 THEN 'budgets'
                    WHEN a.kind = 'budget' THEN 'budget:' || a.budget_id
                    ELSE a.kind END AS account
          FROM page p
          JOIN entries e ON e.organization_id = $1 AND e.seq = p.seq
          LEFT JOIN accounts a ON a.id = e.account_id
         ORDER BY p.seq DESC, account, e.amount_micros
        """,
        organization_id,
        before_seq,
        transfer_count,
    )


async def usage(db: Database, organization_id: str, before_seq: int | None, limit: int) -> list[Row]:
    """Return completions, newest first."""
    return await db.rows(
        """
        SELECT seq, request_id, path, agent_id, api_key_id, end_user, provider, model, price_id,
               input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
               charged_micros, ceiling_micros, breach_micros, estimated, outcome,
               http_status, latency_ms, overhead_ms, first_token_ms, streamed, usage_source,
               attempts, dialect, used_at
          FROM usage WHERE organization_id = $1 AND ($2::bigint IS NULL OR seq < $2) ORDER BY seq DESC LIMIT $3
        """,
        organization_id,
        before_seq,
        limit,
    )


async def uncertain(db: Database, organization_id: str, after: tuple[datetime, str] | None, limit: int) -> list[Row]:
    """Return holds that nobody decided yet, the longest uncertain first; `after` is the last one seen."""
    since, request_id = after or (None, None)
    return await db.rows(
        """
        SELECT h.request_id, h.agent_id, h.holder_id, h.ceiling_micros, h.held_at, h.routes, o.decided_at
          FROM outcomes o JOIN holds h USING (organization_id, request_id)
         WHERE o.organization_id = $1 AND o.phase = 'uncertain'
           AND ($2::timestamptz IS NULL OR (o.decided_at, o.request_id) > ($2, $3::text))
           AND NOT EXISTS (SELECT 1 FROM ends x WHERE x.organization_id = o.organization_id
                              AND x.request_id = o.request_id AND x.phase <> 'uncertain')
         ORDER BY o.decided_at, o.request_id LIMIT $4
        """,
        organization_id,
        since,
        request_id,
        limit,
    )
