"""Write batches from what this process remembers of an organization's books, or else by walking through them.

A plain batch is one call that only writes. What makes a batch anything else (a refusal, a clamp, a repeat, a threshold)
or a turn that somebody else had sends it to the functions that lock, read and decide in the database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import asyncpg

from ledger_svc import books as deciding
from ledger_svc.books import Books
from ledger_svc.holds import (
    Granted,
    Placed,
    Placing,
    Posted,
    Posting,
    Settled,
    SettleOutcome,
    Settling,
    Voiding,
    VoidOutcome,
)
from ledger_svc.store import books as store
from ledger_svc.store import charges
from mesh.clock import monotonic_ms
from mesh.db import Database, StatementError
from mesh.telemetry import logs, metrics

ENTRIES_MAX = 200_000  # accounts, sets of limits and holds of all organizations; about 80 MB
SKIPPED_MAX = 64  # batches that are walked at once after some that were no use to try
MOMENT = timedelta(microseconds=1)
# A key that was used before, and a hold that is not open.
EXPECTED = (asyncpg.UniqueViolationError, asyncpg.NoDataFoundError)

log = logs.get(__name__)

Result = TypeVar("Result")
Outcomes = tuple[list[SettleOutcome], list[Placed]]


@dataclass(slots=True)
class Memory:
    """What is remembered of one organization, with the database's time at a moment of ours."""

    books: Books | None = None
    now: datetime | None = None
    now_ms: float = 0.0
    misses: int = 0
    skip: int = 0
    counted: int = 0  # entries, when they were counted last

    @property
    def size(self) -> int:
        """Return how many entries are remembered."""
        books = self.books
        return 1 if books is None else 1 + len(books.accounts) + len(books.limits) + len(books.holds)

    def time(self, books: Books) -> datetime:
        """Return the organization's time: the database's, and after all that was told before."""
        assert self.now is not None  # noqa: S101  # kept together with the books
        return max(self.now + timedelta(milliseconds=monotonic_ms() - self.now_ms), books.told_at + MOMENT)

    def keep(self, books: Books, now: datetime) -> None:
        """Remember books as of the database's time."""
        self.books, self.now, self.now_ms = books, now, monotonic_ms()

    def miss(self, why: str) -> None:
        """Forget the books, which were no use; after several in a row, do not try for a while."""
        metrics.LEDGER_WAYS.labels(why).inc()
        self.books = None
        self.skip = min(2**self.misses, SKIPPED_MAX) - 1
        self.misses = min(self.misses + 1, SKIPPED_MAX)


class Remembering:
    """The commits of all organizations in this process; one of each organization at a time."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._memories: OrderedDict[str, Memory] = OrderedDict()
        self._size = 0  # entries of all memories

    @property
    def entries(self) -> int:
        """Return how many entries are remembered of all organizations."""
        return self._size

    async def place(self, organization_id: str, items: Sequence[tuple[Placing, bool]]) -> list[Placed]:
        """Decide holds in order; each comes with whether an in-flight refusal is its final answer."""
        plain = await self._plain(organization_id, (), [item for item, _ in items])
        if plain is not None:
            return plain[1]
        return await self._walked(organization_id, charges.place(self._db, organization_id, items))

    async def settle(self, organization_id: str, items: Sequence[Settling]) -> list[SettleOutcome]:
        """Charge completions at their holds' prices."""
        plain = await self._plain(organization_id, items, ())
        if plain is not None:
            return plain[0]
        return await self._walked(organization_id, charges.settle(self._db, organization_id, items))

    async def settle_and_place(
        self, organization_id: str, settlings: Sequence[Settling], placings: Sequence[tuple[Placing, bool]]
    ) -> Outcomes:
        """Charge completions, then decide holds, in one commit."""
        plain = await self._plain(organization_id, settlings, [item for item, _ in placings])
        if plain is not None:
            return plain
        return await self._walked(
            organization_id, charges.settle_and_place(self._db, organization_id, settlings, placings)
        )

    async def void(self, organization_id: str, items: Sequence[Voiding]) -> list[VoidOutcome]:
        """Give holds back."""
        return await self._walked(organization_id, charges.void(self._db, organization_id, items))

    async def post(self, organization_id: str, items: Sequence[Posting]) -> list[Posted]:
        """Charge agents for what has its price."""
        return await self._walked(organization_id, charges.post(self._db, organization_id, items))

    async def _walked(self, organization_id: str, writing: Awaitable[Result]) -> Result:
        self._forget(organization_id)
        return await writing

    async def _plain(
        self, organization_id: str, settlings: Sequence[Settling], placings: Sequence[Placing]
    ) -> Outcomes | None:
        """Write a batch that is plain; None, and nothing is written, for any other."""
        memory = self._memories.setdefault(organization_id, Memory())
        if memory.skip:
            metrics.LEDGER_WAYS.labels("not_tried").inc()
            memory.skip -= 1
            return None
        try:
            return await self._tried(memory, organization_id, settlings, placings)
        finally:
            self._bound(organization_id, memory)

    async def _tried(
        self, memory: Memory, organization_id: str, settlings: Sequence[Settling], placings: Sequence[Placing]
    ) -> Outcomes | None:
        books = await self._read(memory, organization_id, settlings, placings)
        batch = books and deciding.plain(books, settlings, placings, memory.time(books))
        if books is None or batch is None:
            memory.miss("not_plain")
            return None
        memory.books = None  # whatever becomes of the commit, until it is known
        try:
            posted = await store.post(self._db, books, batch)
        except StatementError as error:
            if not isinstance(error, EXPECTED):
                log.error("commit.not_plain", error, organization_id=organization_id)
            memory.miss("refused")
            return None
        if posted is None:
            memory.miss("turn_lost")
            return None
        deciding.apply(books, batch, posted.turn)
        memory.keep(books, posted.now)
        memory.misses = 0
        metrics.LEDGER_WAYS.labels("plain").inc()
        balance = books.accounts[books.wallet].settled_micros
        return (
            [Settled(settling.cost_micros, balance, 0, replayed=False) for settling in settlings],
            [Granted(item.output_fits, hold.ceiling_micros, replayed=False) for item, hold in batch.placed],
        )

    async def _read(
        self, memory: Memory, organization_id: str, settlings: Sequence[Settling], placings: Sequence[Placing]
    ) -> Books | None:
        """Return books with all that a batch needs to know; None where there are none yet."""
        agents = {(item.agent_id, item.path_version) for item in placings}
        requests = {item.request_id for item in settlings}
        books = memory.books
        if books is not None:
            moment = memory.time(books)
            unknown = {agent for agent in agents if (kept := books.limits.get(agent)) is None or kept.until <= moment}
            unheard = requests - books.holds.keys()
            if not unknown and not unheard:
                return books
            pages = await store.read(self._db, organization_id, list(unknown), list(unheard))
            if pages is not None and pages.books.turn == books.turn:
                books.accounts.update(pages.books.accounts)
                books.limits.update(pages.books.limits)
                books.holds.update(pages.books.holds)
                books.told_at = max(books.told_at, pages.books.told_at)
                return books
        pages = await store.read(self._db, organization_id, list(agents), list(requests))
        if pages is None:
            return None
        memory.keep(pages.books, pages.now)
        return pages.books

    def _forget(self, organization_id: str) -> None:
        memory = self._memories.get(organization_id)
        if memory is not None:
            memory.books = None
            self._count(memory)

    def _count(self, memory: Memory) -> None:
        self._size += memory.size - memory.counted
        memory.counted = memory.size

    def _bound(self, organization_id: str, memory: Memory) -> None:
        """Count what is remembered, and forget of all but this organization what was of use the longest ago."""
        if self._memories.get(organization_id) is not memory:
            return
        self._count(memory)
        self._memories.move_to_end(organization_id)
        while self._size > ENTRIES_MAX and len(self._memories) > 1:
            _, oldest = self._memories.popitem(last=False)
            self._size -= oldest.counted
        if self._size > ENTRIES_MAX:
            self._forget(organization_id)
