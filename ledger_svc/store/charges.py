"""Holds, settlements and voids, a batch of one organization a call; and the leases of holders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ledger_svc.holds import (
    Differs,
    Ended,
    Granted,
    Lapsed,
    NoHold,
    Placed,
    Placing,
    Posted,
    Posting,
    Refusal,
    Refused,
    Settled,
    SettleOutcome,
    Settling,
    StalePath,
    Voided,
    Voiding,
    VoidOutcome,
)
from mesh.db import Database, Row

GRANTED, STALE, DIFFERS, LAPSED = 1, 6, 7, 8
UNCERTAIN_MAX = 500  # holds a call of mark_uncertain, as it says itself
ENDS = {2: "settled", 3: "resolved"}


PLACED = "status, output_tokens, ceiling, blocker, target, short, replayed, field"
SETTLED = "status, charged, breach, replayed, field, balance"
BOTH = (
    "status, charged, breach, replayed, field, balance, "
    "held_status, output_tokens, ceiling, blocker, target, short, held_replayed, held_field"
)
SETTLED_COLUMNS = 6


async def place(db: Database, organization_id: str, items: Sequence[tuple[Placing, bool]]) -> list[Placed]:
    """Decide holds in order; each comes with whether an in-flight refusal is its final answer."""
    values = _place_values(items)
    row = await db.one(f"SELECT {PLACED} FROM place_holds({_marks(len(values) + 1)})", organization_id, *values)  # noqa: S608
    return [_placed(*fields) for fields in zip(*row.values(), strict=True)]


async def settle(db: Database, organization_id: str, items: Sequence[Settling]) -> list[SettleOutcome]:
    """Charge completions at their holds' prices."""
    values = _settle_values(items)
    row = await db.one(f"SELECT {SETTLED} FROM settle_holds({_marks(len(values) + 1)})", organization_id, *values)  # noqa: S608
    return _settlements(row)


async def settle_and_place(
    db: Database, organization_id: str, settlings: Sequence[Settling], placings: Sequence[tuple[Placing, bool]]
) -> tuple[list[SettleOutcome], list[Placed]]:
    """Charge completions, then decide holds, in one commit."""
    values = [*_settle_values(settlings), *_place_values(placings)]
    row = await db.one(f"SELECT {BOTH} FROM settle_and_place({_marks(len(values) + 1)})", organization_id, *values)  # noqa: S608
    placed = zip(*tuple(row.values())[SETTLED_COLUMNS:], strict=True)
    return _settlements(row), [_placed(*fields) for fields in placed]


def _marks(count: int) -> str:
    return ", ".join(f"${number}" for number in range(1, count + 1))


def _place_values(items: Sequence[tuple[Placing, bool]]) -> list[list[Any]]:
    placings = [item for item, _ in items]
    holders = list(dict.fromkeys(item.holder_id for item in placings))
    agents = list(dict.fromkeys((item.agent_id, item.path_version) for item in placings))
    holder_of = {holder: index for index, holder in enumerate(holders, 1)}
    agent_of = {agent: index for index, agent in enumerate(agents, 1)}
    return [
        holders,
        [agent_id for agent_id, _ in agents],
        [path_version for _, path_version in agents],
        [item.request_id for item in placings],
        [holder_of[item.holder_id] for item in placings],
        [agent_of[item.agent_id, item.path_version] for item in placings],
        [item.api_key_id for item in placings],
        [item.end_user for item in placings],
        [item.routes for item in placings],
        [item.price_ids for item in placings],
        [item.input_tokens_max for item in placings],
        [item.output_wanted for item in placings],
        [item.output_min for item in placings],
        [item.choices for item in placings],
        [item.cost_max_micros for item in placings],
        [item.output_fits for item in placings],
        [item.bound.input_cost for item in placings],
        [item.bound.output_rate for item in placings],
        [item.bound.flat_micros for item in placings],
        [final for _, final in items],
    ]


def _settle_values(items: Sequence[Settling]) -> list[list[Any]]:
    return [
        [item.request_id for item in items],
        [item.cost_micros for item in items],
        [item.price.provider for item in items],
        [item.price.model for item in items],
        [item.price.id for item in items],
        [item.usage.input_tokens for item in items],
        [item.usage.cached_input_tokens for item in items],
        [item.usage.cache_write_tokens for item in items],
        [item.usage.output_tokens for item in items],
        [item.usage.reasoning_tokens for item in items],
        [item.estimated for item in items],
        [item.outcome for item in items],
        [item.http_status for item in items],
        [item.latency_ms for item in items],
        [item.overhead_ms for item in items],
        [item.first_token_ms for item in items],
        [item.streamed for item in items],
        [item.usage_source for item in items],
        [item.attempts for item in items],
        [item.dialect for item in items],
    ]


def _settlements(row: Row) -> list[SettleOutcome]:
    balance: int = row["balance"]
    columns = (row["status"], row["charged"], row["breach"], row["replayed"], row["field"])
    return [_settled(*fields, balance) for fields in zip(*columns, strict=True)]


def _placed(  # noqa: PLR0913, PLR0917  # one parameter a column of the answer
    status: int,
    tokens: int,
    ceiling: int,
    blocker: str,
    target: str,
    short: int,
    replayed: bool,  # noqa: FBT001
    field: str,
) -> Placed:
    match status:
        case 1:
            return Granted(tokens, ceiling, replayed)
        case 6:
            return StalePath()
        case 7:
            return Differs(field)
        case 8:
            return Lapsed()
        case _:
            return Refused(Refusal(status), blocker, target, short, replayed)


def _settled(status: int, charged: int, breach: int, replayed: bool, field: str, balance: int) -> SettleOutcome:  # noqa: FBT001
    match status:
        case 1:
            return Settled(charged, balance, breach, replayed)
        case 2:
            return NoHold()
        case 3:
            return Ended("voided")
        case 4:
            return Ended("resolved")
        case _:
            return Differs(field)


async def post(db: Database, organization_id: str, items: Sequence[Posting]) -> list[Posted]:
    """Charge agents for what has its price."""
    agents = list(dict.fromkeys((item.agent_id, item.path_version) for item in items))
    agent_of = {agent: index for index, agent in enumerate(agents, 1)}
    row = await db.one(
        f"SELECT {PLACED}, balance FROM post_charges({_marks(10)})",  # noqa: S608
        organization_id,
        [agent_id for agent_id, _ in agents],
        [path_version for _, path_version in agents],
        [item.request_id for item in items],
        [agent_of[item.agent_id, item.path_version] for item in items],
        [item.api_key_id for item in items],
        [item.end_user for item in items],
        [item.provider for item in items],
        [item.model for item in items],
        [item.amount_micros for item in items],
    )
    *columns, balance = row.values()
    return [_posted(_placed(*fields), balance) for fields in zip(*columns, strict=True)]


def _posted(placed: Placed, balance: int) -> Posted:
    match placed:
        case Granted(ceiling_micros=charged, replayed=replayed):
            return Settled(charged, balance, 0, replayed)
        case Lapsed():
            raise LookupError("the ledger's own lease is not in its table")
        case _:
            return placed


async def void(db: Database, organization_id: str, items: Sequence[Voiding]) -> list[VoidOutcome]:
    """Give holds back; a key that was never placed is closed for ever."""
    row = await db.one(
        "SELECT status, replayed FROM void_holds($1, $2, $3, $4)",
        organization_id,
        [item.request_id for item in items],
        [item.agent_id for item in items],
        [item.reason for item in items],
    )
    return [_voided(*fields) for fields in zip(row["status"], row["replayed"], strict=True)]


def _voided(status: int, replayed: bool) -> VoidOutcome:  # noqa: FBT001  # a column
    match status:
        case 1:
            return Voided(replayed)
        case 4:
            return Differs("agent_id")
        case _:
            return Ended(ENDS[status])


@dataclass(frozen=True, slots=True)
class Terms:
    """Whose a granted hold is, and the price id and route of each way that it may take; none for a charge at once."""

    agent_id: str
    prices: tuple[tuple[str, str], ...]


async def terms_of(db: Database, organization_id: str, request_id: str) -> Terms | None:
    """Return the terms of a granted hold; None when there is no such hold."""
    row = await db.row(
        "SELECT agent_id, price_ids, routes FROM holds WHERE organization_id = $1 AND request_id = $2 AND status = $3",
        organization_id,
        request_id,
        GRANTED,
    )
    if row is None:
        return None
    return Terms(row["agent_id"], tuple(zip(row["price_ids"], row["routes"].split(","), strict=False)))


async def open_lease(db: Database, holder_id: str) -> bool:
    """Begin a holder's life, or go on with it after its stream broke; False when it has lapsed."""
    lapsed = await db.row(
        """
        INSERT INTO leases (holder_id) VALUES ($1)
        ON CONFLICT (holder_id) DO UPDATE
          SET beat_at = CASE WHEN leases.lapsed_at IS NULL THEN clock_timestamp() ELSE leases.beat_at END
        RETURNING lapsed_at
        """,
        holder_id,
    )
    return lapsed is not None and lapsed["lapsed_at"] is None


async def renew_lease(db: Database, holder_id: str) -> bool:
    """Record a beat; False when the holder has lapsed."""
    tag = await db.execute(
        "UPDATE leases SET beat_at = clock_timestamp() WHERE holder_id = $1 AND lapsed_at IS NULL", holder_id
    )
    return tag == "UPDATE 1"


async def forgive_silence(db: Database) -> None:
    """Count every living holder as heard from now: while no ledger listened, none could be heard."""
    await db.execute("UPDATE leases SET beat_at = clock_timestamp() WHERE lapsed_at IS NULL")


async def lapse_holders(db: Database, lease_ms: int) -> list[str]:
    """End the leases of silent holders; return the organizations with open holds of lapsed ones (at most 1,000)."""
    rows = await db.rows("SELECT organization_id FROM lapse_holders($1) AS organization_id", lease_ms)
    return [row["organization_id"] for row in rows]


async def mark_uncertain(db: Database, organization_id: str) -> int:
    """Move lapsed holders' ceilings to suspense and list them as uncertain; at most 500 a call. Return how many."""
    count: int = await db.value("SELECT mark_uncertain($1)", organization_id)
    return count
