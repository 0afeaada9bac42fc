"""An organization's books as one process remembers them: read what a batch needs, write a batch that was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from ledger_svc.books import Account, Books, LimitSet, OpenHold, Plain
from ledger_svc.holds import Placing, Settling
from mesh.db import Database, Row

READ = """
SELECT turn, now, told_at, due_at, wallet, revenue, transfer_seq, usage_seq, audit_seq, audit_hash, agent_sets,
       h_request, h_agent, h_key, h_user, h_ceiling, h_set, h_held_at, s_id, s_path, s_accounts, s_until,
       a_id, a_settled, a_held, a_floor, a_disabled, a_auto
  FROM read_books($1, $2, $3, $4)
"""
POST = """
SELECT next_turn, now
  FROM post_plain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::bigint[], $11::text::bigint[], $12::text::bigint[],
                  $13::text::bigint[], $14::text::boolean[], $15::text::boolean[], $16, $17, $18)
"""


@dataclass(frozen=True, slots=True)
class Pages:
    """A part of an organization's books, and the time of the database then."""

    books: Books
    now: datetime


@dataclass(frozen=True, slots=True)
class Posted:
    """The turn that a batch began, and the time of the database after it."""

    turn: UUID
    now: datetime


async def read(
    db: Database, organization_id: str, agents: Sequence[tuple[str, int]], requests: Sequence[str]
) -> Pages | None:
    """Read what is needed for holds of agents at versions of their paths, and for settling requests, as of one moment.

    What is not plain is left out. None where the books have no beginning yet.
    """
    row = await db.one(
        READ, organization_id, [agent for agent, _ in agents], [version for _, version in agents], list(requests)
    )
    if None in (row["turn"], row["wallet"], row["told_at"], row["audit_seq"]):
        return None
    books = Books(
        organization_id=organization_id,
        turn=row["turn"],
        told_at=row["told_at"],
        due_at=row["due_at"],
        wallet=row["wallet"],
        revenue=row["revenue"] or 0,
        transfer_seq=row["transfer_seq"],
        usage_seq=row["usage_seq"],
        audit_seq=row["audit_seq"],
        audit_hash=row["audit_hash"],
    )
    accounts = _columns(row, "a_id", "a_settled", "a_held", "a_floor", "a_disabled", "a_auto")
    books.accounts = {number: Account(*fields) for number, *fields in accounts}
    sets = {
        number: LimitSet(number, path, tuple(map(int, above.split(","))), until)
        for number, path, above, until in _columns(row, "s_id", "s_path", "s_accounts", "s_until")
    }
    books.limits = {
        agent: sets[number] for agent, number in zip(agents, row["agent_sets"] or (), strict=False) if number in sets
    }
    holds = _columns(row, "h_request", "h_agent", "h_key", "h_user", "h_ceiling", "h_set", "h_held_at")
    books.holds = {
        request: OpenHold(agent, key, user, ceiling, sets[number], held_at)
        for request, agent, key, user, ceiling, number, held_at in holds
    }
    return Pages(books, row["now"])


async def post(db: Database, books: Books, batch: Plain) -> Posted | None:
    """Write a batch in one commit; None where nothing was written: the books are no longer so.

    StatementError, and nothing is written either, where a key was used before or a hold is not open.
    """
    row = await db.one(
        POST,
        books.organization_id,
        books.turn,
        batch.at,
        books.wallet,
        books.revenue,
        books.transfer_seq,
        books.usage_seq,
        books.audit_seq,
        batch.posted,
        *_accounts(batch),
        _settlements(batch),
        [_hold(placing, hold) for placing, hold in batch.placed],
        list({placing.holder_id for placing, _ in batch.placed}),
    )
    return None if row["next_turn"] is None else Posted(row["next_turn"], row["now"])


def _accounts(batch: Plain) -> tuple[str, ...]:
    """Return the columns of what becomes of accounts, each as the text of an array: the rows are many and short."""
    accounts = batch.accounts.values()
    columns = (
        map(str, batch.accounts),
        [str(account.settled_micros) for account in accounts],
        [str(account.held_micros) for account in accounts],
        [str(account.floor_micros) for account in accounts],
        ["t" if account.disabled else "f" for account in accounts],
        ["t" if account.auto_disable else "f" for account in accounts],
    )
    return tuple(f"{{{','.join(column)}}}" for column in columns)


def _settlements(batch: Plain) -> list[tuple[object, ...]]:
    audited = zip(batch.settled, batch.lines, batch.hashes, strict=True)
    return [_settlement(settling, hold, line, digest) for (settling, hold), line, digest in audited]


def _settlement(settling: Settling, hold: OpenHold, line: str, digest: bytes) -> tuple[object, ...]:
    price, usage, limits = settling.price, settling.usage, hold.limits
    return (
        settling.request_id,
        hold.agent_id,
        hold.api_key_id,
        hold.end_user,
        hold.ceiling_micros,
        limits.path,
        limits.id if len(limits.accounts) > 1 else 0,
        hold.held_at,
        settling.cost_micros,
        price.provider,
        price.model,
        price.id,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        settling.estimated,
        settling.outcome,
        settling.http_status,
        settling.latency_ms,
        settling.overhead_ms,
        settling.first_token_ms,
        settling.streamed,
        settling.usage_source,
        settling.attempts,
        settling.dialect,
        line,
        digest,
    )


def _hold(placing: Placing, hold: OpenHold) -> tuple[object, ...]:
    return (
        placing.request_id,
        placing.agent_id,
        placing.api_key_id,
        placing.end_user,
        placing.holder_id,
        placing.routes,
        placing.price_ids,
        placing.input_tokens_max,
        placing.output_wanted,
        placing.output_min,
        placing.choices,
        placing.cost_max_micros,
        placing.output_fits,
        hold.ceiling_micros,
        hold.limits.id,
    )


def _columns(row: Row, *names: str) -> zip[tuple[Any, ...]]:
    return zip(*(row[name] or () for name in names), strict=True)
