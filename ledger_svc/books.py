"""Batches that need no walk, decided by sums over what is remembered of an organization's books.

Plain is a batch in which every hold that is settled is open and covers its cost, every hold that is wanted fits as a
whole, and no budget passes a threshold. Anything else is None here and the database's to walk through, item by item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ledger_svc.holds import Placing, Settling

THRESHOLDS = (50, 80, 100)  # percent of a limit; passing one is told, and may stop its target

quoted = json.JSONEncoder(ensure_ascii=False).encode


class Account(NamedTuple):
    """A wallet, a budget's window or revenue, as of the last commit; no floor is ever above 0."""

    settled_micros: int
    held_micros: int
    floor_micros: int
    disabled: bool
    auto_disable: bool


@dataclass(frozen=True, slots=True)
class LimitSet:
    """The accounts that an agent's holds count against, the wallet first, good until the first of its windows ends."""

    id: int
    path: str  # ids, separated by commas
    accounts: tuple[int, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A granted hold that has not ended."""

    agent_id: str
    api_key_id: str
    end_user: str
    ceiling_micros: int
    limits: LimitSet
    held_at: datetime


@dataclass(slots=True)
class Books:
    """What a process remembers of one organization, true while nobody else has a turn."""

    organization_id: str
    turn: UUID
    told_at: datetime  # the last moment of the organization's time
    due_at: datetime | None  # when the next lot of credits expires
    wallet: int
    revenue: int  # 0 before the first charge
    transfer_seq: int
    usage_seq: int
    audit_seq: int
    audit_hash: bytes
    limits: dict[tuple[str, int], LimitSet] = field(default_factory=dict)  # by agent and version of its path
    accounts: dict[int, Account] = field(default_factory=dict)
    holds: dict[str, OpenHold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plain:
    """A batch that was decided: what it makes of each account, and what there is to write of each item."""

    at: datetime
    accounts: dict[int, Account]
    settled: Sequence[tuple[Settling, OpenHold]]
    lines: Sequence[str]
    hashes: Sequence[bytes]
    placed: Sequence[tuple[Placing, OpenHold]]
    posted: int  # transfers


def plain(books: Books, settlings: Sequence[Settling], placings: Sequence[Placing], at: datetime) -> Plain | None:
    """Decide settlements, then holds; None for a batch that is not plain, or of which something is not remembered."""
    settled = _settled(books, settlings)
    placed = _placed(books, placings, at)
    if settled is None or placed is None:
        return None
    accounts = _accounts(books, settled, placed)
    if accounts is None:
        return None
    lines, hashes = _chained(books, settled, at)
    posted = sum(settling.cost_micros > 0 for settling, _ in settled)
    return Plain(at, accounts, settled, lines, hashes, placed, posted)


def apply(books: Books, batch: Plain, turn: UUID) -> None:
    """Remember a batch that was committed, and the turn that it began."""
    books.turn = turn
    books.told_at = batch.at
    books.transfer_seq += batch.posted
    books.usage_seq += len(batch.settled)
    books.accounts.update(batch.accounts)
    if batch.hashes:
        books.audit_seq += len(batch.hashes)
        books.audit_hash = batch.hashes[-1]
    for settling, _ in batch.settled:
        del books.holds[settling.request_id]
    for placing, hold in batch.placed:
        books.holds[placing.request_id] = hold


def _settled(books: Books, settlings: Iterable[Settling]) -> list[tuple[Settling, OpenHold]] | None:
    found: list[tuple[Settling, OpenHold]] = []
    for settling in settlings:
        hold = books.holds.get(settling.request_id)
        if hold is None or settling.cost_micros > hold.ceiling_micros:
            return None
        found.append((settling, hold))
    return found


def _placed(books: Books, placings: Sequence[Placing], at: datetime) -> list[tuple[Placing, OpenHold]] | None:
    if placings and books.due_at is not None and books.due_at <= at:
        return None
    found: list[tuple[Placing, OpenHold]] = []
    for placing in placings:
        limits = books.limits.get((placing.agent_id, placing.path_version))
        if limits is None or limits.until <= at or placing.output_fits < placing.output_min:
            return None
        ceiling = placing.bound.ceiling_micros(placing.output_fits)
        found.append((placing, OpenHold(placing.agent_id, placing.api_key_id, placing.end_user, ceiling, limits, at)))
    return found


def _accounts(
    books: Books, settled: Sequence[tuple[Settling, OpenHold]], placed: Iterable[tuple[Placing, OpenHold]]
) -> dict[int, Account] | None:
    """Return every account that a batch touches as it is then; None where one has no room, or something to tell."""
    accounts: dict[int, Account] = {}
    spent, freed = _sums(settled)
    for number, cost in spent.items():
        was = books.accounts.get(number)
        if was is None or _tells(was, was.settled_micros - cost):
            return None
        settled_micros, held_micros = was.settled_micros - cost, was.held_micros - freed[number]
        accounts[number] = Account(settled_micros, held_micros, was.floor_micros, was.disabled, was.auto_disable)
    for number, ceiling in _taken(placed).items():
        was = accounts.get(number) or books.accounts.get(number)
        if was is None or was.disabled or was.settled_micros - was.held_micros - ceiling < was.floor_micros:
            return None
        held_micros = was.held_micros + ceiling
        accounts[number] = Account(was.settled_micros, held_micros, was.floor_micros, was.disabled, was.auto_disable)
    if settled:
        revenue = books.accounts.get(books.revenue)
        if revenue is None:
            return None
        earned = revenue.settled_micros + sum(settling.cost_micros for settling, _ in settled)
        accounts[books.revenue] = revenue._replace(settled_micros=earned)
    return accounts


def _sums(settled: Iterable[tuple[Settling, OpenHold]]) -> tuple[dict[int, int], dict[int, int]]:
    """Return what is spent of each account, and what is no longer held of it."""
    spent: dict[int, int] = {}
    freed: dict[int, int] = {}
    for settling, hold in settled:
        cost, ceiling = settling.cost_micros, hold.ceiling_micros
        for number in hold.limits.accounts:
            spent[number] = spent.get(number, 0) + cost
            freed[number] = freed.get(number, 0) + ceiling
    return spent, freed


def _taken(placed: Iterable[tuple[Placing, OpenHold]]) -> dict[int, int]:
    """Return what is newly held of each account."""
    taken: dict[int, int] = {}
    for _, hold in placed:
        ceiling = hold.ceiling_micros
        for number in hold.limits.accounts:
            taken[number] = taken.get(number, 0) + ceiling
    return taken


def _tells(was: Account, settled: int) -> bool:
    """Return whether spending passed a threshold, or a budget is used up that is to stop its target then."""
    limit, used = -was.floor_micros, -settled
    if used * 100 < limit * THRESHOLDS[0]:
        return False
    used_before = -was.settled_micros
    if limit > 0 and any(used * 100 >= limit * percent > used_before * 100 for percent in THRESHOLDS):
        return True
    return was.auto_disable and not was.disabled and used >= limit


def _chained(books: Books, settled: Iterable[tuple[Settling, OpenHold]], at: datetime) -> tuple[list[str], list[bytes]]:
    """Return the audit lines of settlements, canonical as `append_audit` makes them, and the hash after each."""
    lines: list[str] = []
    hashes: list[bytes] = []
    last, organization, time = books.audit_hash, quoted(books.organization_id), f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"
    for seq, (settling, hold) in enumerate(settled, books.audit_seq + 1):
        price = settling.price
        detail = (
            f'{{"breach_micros":0,"charged_micros":{settling.cost_micros},"model":{quoted(price.model)},'
            f'"outcome":{quoted(settling.outcome)},"price_id":{quoted(price.id)},"provider":{quoted(price.provider)}}}'
        )
        line = (
            f'{{"action":"charge.settled","actor":{quoted(hold.agent_id)},"detail":{detail},'
            f'"organization":{organization},"seq":{seq},"subject":{quoted(settling.request_id)},"time":"{time}"}}'
        )
        last = hashlib.sha256(last + line.encode()).digest()
        lines.append(line)
        hashes.append(last)
    return lines, hashes
