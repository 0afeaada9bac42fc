"""Group commit: whatever waits for one organization shares its next commit, and each item is answered after it.

One commit of an organization runs at a time in a process; meanwhile the next batch gathers. Settlements and voids go
first, since they free headroom. A hold that would fit but for others in flight waits here, in order, for as long as its
request allows, with no lock and no connection held.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ledger_svc.holds import Placed, Placing, Refusal, Refused, SettleOutcome, Settling, Voiding, VoidOutcome
from ledger_svc.store import charges
from mesh.db import Database, StatementError
from mesh.errors import Internal, MeshError, Unavailable
from mesh.telemetry import logs, metrics

Item = TypeVar("Item", Placing, Settling, Voiding)
Outcome = TypeVar("Outcome")

BATCH_MAX = 500
QUEUE_MAX = 10_000  # items of one organization that wait; more are shed
RETRY_SECONDS = 0.05  # how often waiting holds are tried again when nothing here was freed: another replica may have

log = logs.get(__name__)


@dataclass(slots=True)
class Waiting(Generic[Item, Outcome]):
    """An item in a queue and where its outcome goes; `until` bounds the wait for headroom (loop time)."""

    item: Item
    outcome: asyncio.Future[Outcome]
    until: float = 0.0


@dataclass(slots=True)
class Lane:
    """What waits for one organization."""

    organization_id: str
    holds: deque[Waiting[Placing, Placed]] = field(default_factory=deque)
    settles: deque[Waiting[Settling, SettleOutcome]] = field(default_factory=deque)
    voids: deque[Waiting[Voiding, VoidOutcome]] = field(default_factory=deque)
    patient: list[Waiting[Placing, Placed]] = field(default_factory=list)
    freed: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def length(self) -> int:
        """Return how many items wait."""
        return len(self.holds) + len(self.settles) + len(self.voids) + len(self.patient)


class Commits:
    """The lanes of all organizations in this process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lanes: dict[str, Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, organization_id: str, item: Placing, wait_ms: int) -> asyncio.Future[Placed]:
        """Queue a request for a hold; it may wait up to `wait_ms` for headroom."""
        until = asyncio.get_running_loop().time() + wait_ms / 1000
        lane = self._lane(organization_id)
        return self._queue(lane, lane.holds, item, until)

    def settle(self, organization_id: str, item: Settling) -> asyncio.Future[SettleOutcome]:
        """Queue a settlement."""
        lane = self._lane(organization_id)
        return self._queue(lane, lane.settles, item)

    def void(self, organization_id: str, item: Voiding) -> asyncio.Future[VoidOutcome]:
        """Queue a void."""
        lane = self._lane(organization_id)
        return self._queue(lane, lane.voids, item)

    async def drain(self) -> None:
        """Wait until everything that was queued is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _lane(self, organization_id: str) -> Lane:
        lane = self._lanes.get(organization_id)
        if lane is None:
            lane = self._lanes[organization_id] = Lane(organization_id)
            task = asyncio.create_task(self._run(lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return lane

    def _queue(
        self, lane: Lane, queue: deque[Waiting[Item, Outcome]], item: Item, until: float = 0.0
    ) -> asyncio.Future[Outcome]:
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if lane.length >= QUEUE_MAX:
            outcome.set_exception(Unavailable("OVERLOADED", "too much waits for this organization", retry_after_ms=500))
        else:
            queue.append(Waiting(item, outcome, until))
            lane.wake.set()
        return outcome

    async def _run(self, lane: Lane) -> None:
        try:
            await asyncio.sleep(0)  # what arrives in the same turn of the loop shares the first commit
            while lane.length:
                if lane.settles:
                    await self._commit(lane, "settle", _take(lane.settles), charges.settle)
                    lane.freed = True
                if lane.voids:
                    await self._commit(lane, "void", _take(lane.voids), charges.void)
                    lane.freed = True
                await self._place(lane)
                if not (lane.settles or lane.voids or lane.holds) and lane.patient:
                    await _rest(lane)
        finally:
            del self._lanes[lane.organization_id]

    async def _place(self, lane: Lane) -> None:
        batch = _take(lane.holds)
        now = asyncio.get_running_loop().time()
        if batch or lane.freed or any(waiting.until <= now for waiting in lane.patient):
            batch = [*lane.patient, *batch]
            lane.patient, lane.freed = [], False
        for holder in dict.fromkeys(waiting.item.holder_id for waiting in batch):
            mine = deque(waiting for waiting in batch if waiting.item.holder_id == holder)
            while part := _take(mine):
                await self._place_for_holder(lane, part)

    async def _place_for_holder(self, lane: Lane, batch: list[Waiting[Placing, Placed]]) -> None:
        now = asyncio.get_running_loop().time()
        final = {waiting.item.request_id: waiting.until <= now for waiting in batch}

        async def place(db: Database, organization_id: str, items: Sequence[Placing]) -> list[Placed]:
            return await charges.place(db, organization_id, [(item, final[item.request_id]) for item in items])

        def answer(waiting: Waiting[Placing, Placed], placed: Placed) -> None:
            match placed:
                case Refused(refusal=Refusal.IN_FLIGHT, replayed=False) if not final[waiting.item.request_id]:
                    lane.patient.append(waiting)
                case _:
                    _answer(waiting, placed)

        await self._commit(lane, "place", batch, place, answer)

    async def _commit(
        self,
        lane: Lane,
        kind: str,
        batch: list[Waiting[Item, Outcome]],
        write: Callable[[Database, str, Sequence[Item]], Awaitable[list[Outcome]]],
        answer: Callable[[Waiting[Item, Outcome], Outcome], None] | None = None,
    ) -> None:
        metrics.LEDGER_BATCH.labels(kind).observe(len(batch))
        try:
            outcomes = await write(self._db, lane.organization_id, [waiting.item for waiting in batch])
        except MeshError as error:
            _fail(batch, error)
        except StatementError as error:
            if len(batch) == 1:
                log.error("commit.refused", error, kind=kind, organization_id=lane.organization_id)
                _fail(batch, Internal("INTERNAL", "the ledger could not write this"))
                return
            for waiting in batch:  # one bad item must not fail its neighbours
                await self._commit(lane, kind, [waiting], write, answer)
        except Exception as bug:  # noqa: BLE001  # a lane that died would leave its callers waiting for ever
            log.error("commit.bug", bug, kind=kind, organization_id=lane.organization_id)
            _fail(batch, Internal("INTERNAL", "the ledger failed on this"))
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                (answer or _answer)(waiting, outcome)


def _answer(waiting: Waiting[Any, Outcome], outcome: Outcome) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_result(outcome)


def _fail(batch: Sequence[Waiting[Any, Any]], error: MeshError) -> None:
    for waiting in batch:
        if not waiting.outcome.done():
            waiting.outcome.set_exception(error)


def _take(queue: deque[Waiting[Item, Outcome]]) -> list[Waiting[Item, Outcome]]:
    """Take a batch: nothing whose caller is gone, and no key twice (the second waits for the first one's answer)."""
    batch: list[Waiting[Item, Outcome]] = []
    keys: set[str] = set()
    later: list[Waiting[Item, Outcome]] = []
    while queue and len(batch) < BATCH_MAX:
        waiting = queue.popleft()
        if waiting.outcome.done():
            continue
        if waiting.item.request_id in keys:
            later.append(waiting)
            continue
        keys.add(waiting.item.request_id)
        batch.append(waiting)
    queue.extendleft(reversed(later))
    return batch


async def _rest(lane: Lane) -> None:
    lane.wake.clear()
    now = asyncio.get_running_loop().time()
    patience = min((waiting.until for waiting in lane.patient), default=now) - now
    try:
        async with asyncio.timeout(max(0.0, min(RETRY_SECONDS, patience))):
            await lane.wake.wait()
    except TimeoutError:
        lane.freed = True  # try again: another replica may have freed something
    lane.patient = [waiting for waiting in lane.patient if not waiting.outcome.done()]
