"""Group commit: whatever waits for one organization shares its next commit, and each item is answered after it.

One commit of an organization runs at a time in a process; meanwhile the next batch gathers. Settlements and voids go
first, since they free headroom. A hold that would fit but for others in flight waits here, in order, for as long as its
request allows, with no lock and no connection held.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from ledger_svc.holds import (
    Placed,
    Placing,
    Posted,
    Posting,
    Refusal,
    Refused,
    SettleOutcome,
    Settling,
    Voiding,
    VoidOutcome,
)
from ledger_svc.remembering import Remembering
from mesh.db import Database, StatementError
from mesh.errors import Internal, MeshError, Unavailable
from mesh.telemetry import logs, metrics, traces


class Keyed(Protocol):
    """What may wait: something that asks under a key of its own."""

    @property
    def request_id(self) -> str:
        """Return the key."""
        ...


Item = TypeVar("Item", bound=Keyed)
Outcome = TypeVar("Outcome")
Answer = Callable[[Outcome | MeshError], None]

BATCH_MAX = 1_000
QUEUE_MAX = 10_000  # items of one organization that wait; more are shed
TWINS_MAX = 10_000  # askers who share one item's answer; more wait in the queue
RETRY_SECONDS = 0.05  # how often waiting holds are tried again when nothing here was freed: another replica may have

# Looked up once: a look-up takes a lock, and each commit needs one.
BATCH_ITEMS = {kind: metrics.LEDGER_BATCH.labels(kind) for kind in ("place", "settle", "void", "post")}

log = logs.get(__name__)


@dataclass(slots=True)
class Asker:
    """Who waits for answers; nothing that was not begun is done for one that is gone."""

    gone: bool = False


@dataclass(slots=True)
class Waiting(Generic[Item, Outcome]):
    """An item in a queue and who is to hear of it, once; `until` bounds the wait for headroom (loop time)."""

    item: Item
    asker: Asker
    answer: Answer[Outcome]
    until: float = 0.0
    span: traces.Span | None = None
    twins: list[Waiting[Item, Outcome]] = field(default_factory=list)  # the same item again, and its askers

    @property
    def wanted(self) -> bool:
        """Return whether anybody is left to hear the answer."""
        return not self.asker.gone or any(twin.wanted for twin in self.twins)

    def tell(self, outcome: Outcome | MeshError) -> None:
        """Answer everybody who asked this; whoever asked again hears of a replay."""
        _call(self.answer, outcome)
        if self.twins:
            again = _as_replay(outcome)
            for twin in self.twins:
                twin.tell(again)


@dataclass(slots=True)
class Lane:
    """What waits for one organization."""

    organization_id: str
    holds: deque[Waiting[Placing, Placed]] = field(default_factory=deque)
    settles: deque[Waiting[Settling, SettleOutcome]] = field(default_factory=deque)
    voids: deque[Waiting[Voiding, VoidOutcome]] = field(default_factory=deque)
    posts: deque[Waiting[Posting, Posted]] = field(default_factory=deque)
    patient: list[Waiting[Placing, Placed]] = field(default_factory=list)
    freed: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def length(self) -> int:
        """Return how many items wait."""
        return len(self.holds) + len(self.settles) + len(self.voids) + len(self.posts) + len(self.patient)


class Commits:
    """The lanes of all organizations in this process."""

    def __init__(self, db: Database) -> None:
        self._books = Remembering(db)
        self._lanes: dict[str, Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.LEDGER_WAITING.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Return how many items wait for a commit; those in the commits that run are not among them."""
        return sum(lane.length for lane in tuple(self._lanes.values()))  # asked for by the metrics' thread, too

    def place(
        self,
        organization_id: str,
        item: Placing,
        wait_ms: int,
        asker: Asker,
        answer: Answer[Placed],
        span: traces.Span | None = None,
    ) -> None:
        """Queue a request for a hold; it may wait up to `wait_ms` for headroom."""
        lane = self._lane(organization_id)
        until = asyncio.get_running_loop().time() + wait_ms / 1000 if wait_ms else 0.0
        _queue(lane, lane.holds, Waiting(item, asker, answer, until, span))

    def settle(
        self,
        organization_id: str,
        item: Settling,
        asker: Asker,
        answer: Answer[SettleOutcome],
        span: traces.Span | None = None,
    ) -> None:
        """Queue a settlement."""
        lane = self._lane(organization_id)
        _queue(lane, lane.settles, Waiting(item, asker, answer, span=span))

    def void(self, organization_id: str, item: Voiding, asker: Asker, answer: Answer[VoidOutcome]) -> None:
        """Queue a void."""
        lane = self._lane(organization_id)
        _queue(lane, lane.voids, Waiting(item, asker, answer))

    def post(self, organization_id: str, item: Posting, asker: Asker, answer: Answer[Posted]) -> None:
        """Queue a charge that has its price."""
        lane = self._lane(organization_id)
        _queue(lane, lane.posts, Waiting(item, asker, answer))

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

    async def _run(self, lane: Lane) -> None:
        try:
            await asyncio.sleep(0)  # what arrives in the same turn of the loop shares the first commit
            while lane.length:
                if lane.voids:
                    await self._commit(lane, "void", _take(lane.voids), self._books.void)
                    lane.freed = True
                if lane.settles and lane.holds and not lane.patient:
                    await self._settle_and_place(lane)
                else:
                    if lane.settles:
                        await self._commit(lane, "settle", _take(lane.settles), self._books.settle)
                        lane.freed = True
                    await self._place(lane)
                await self._commit(lane, "post", _take(lane.posts), self._books.post)
                if not (lane.settles or lane.voids or lane.holds or lane.posts) and lane.patient:
                    await _rest(lane)
        finally:
            del self._lanes[lane.organization_id]

    async def _settle_and_place(self, lane: Lane) -> None:
        settles, holds = _take(lane.settles), _take(lane.holds)
        if not settles or not holds:
            lane.settles.extendleft(reversed(settles))
            lane.holds.extendleft(reversed(holds))
            return
        BATCH_ITEMS["settle"].observe(len(settles))
        BATCH_ITEMS["place"].observe(len(holds))
        final = _final(holds)
        placings = [(waiting.item, last) for waiting, last in zip(holds, final, strict=True)]
        try:
            with traces.within(_span([*settles, *holds])):
                settled, placed = await self._books.settle_and_place(
                    lane.organization_id, [waiting.item for waiting in settles], placings
                )
        except StatementError:  # one bad item must not fail its neighbours
            await self._commit(lane, "settle", settles, self._books.settle)
            await self._decide(lane, holds)
        except Exception as error:  # noqa: BLE001  # a lane that died would leave its callers waiting for ever
            told = _told(error, "both", lane)
            _answer_all(settles, told)
            _answer_all(holds, told)
        else:
            for waiting, outcome in zip(settles, settled, strict=True):
                waiting.tell(outcome)
            _answer_holds(lane, holds, placed, final)

    async def _place(self, lane: Lane) -> None:
        batch = _take(lane.holds)
        if lane.patient:
            now = asyncio.get_running_loop().time()
            if batch or lane.freed or any(waiting.until <= now for waiting in lane.patient):
                batch = [*lane.patient, *batch]
                lane.patient = []
        lane.freed = False
        queue = deque(batch)
        while part := _take(queue):
            await self._decide(lane, part)

    async def _decide(self, lane: Lane, batch: list[Waiting[Placing, Placed]]) -> None:
        final = dict(zip((waiting.item.request_id for waiting in batch), _final(batch), strict=True))

        async def place(organization_id: str, items: Sequence[Placing]) -> list[Placed]:
            return await self._books.place(organization_id, [(item, final[item.request_id]) for item in items])

        def answer(waiting: Waiting[Placing, Placed], placed: Placed) -> None:
            _answer_holds(lane, [waiting], [placed], [final[waiting.item.request_id]])

        await self._commit(lane, "place", batch, place, answer)

    async def _commit(
        self,
        lane: Lane,
        kind: str,
        batch: list[Waiting[Item, Outcome]],
        write: Callable[[str, Sequence[Item]], Awaitable[list[Outcome]]],
        answer: Callable[[Waiting[Item, Outcome], Outcome], None] | None = None,
    ) -> None:
        if not batch:
            return
        BATCH_ITEMS[kind].observe(len(batch))
        try:
            with traces.within(_span(batch)):
                outcomes = await write(lane.organization_id, [waiting.item for waiting in batch])
        except StatementError as error:
            if len(batch) > 1:
                for waiting in batch:  # one bad item must not fail its neighbours
                    await self._commit(lane, kind, [waiting], write, answer)
                return
            log.error("commit.refused", error, kind=kind, organization_id=lane.organization_id)
            _answer_all(batch, Internal("INTERNAL", "the ledger could not write this"))
        except Exception as error:  # noqa: BLE001  # a lane that died would leave its callers waiting for ever
            _answer_all(batch, _told(error, kind, lane))
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                (answer or _pass_on)(waiting, outcome)


def _told(error: Exception, kind: str, lane: Lane) -> MeshError:
    if isinstance(error, MeshError):
        return error
    log.error("commit.bug", error, kind=kind, organization_id=lane.organization_id)
    return Internal("INTERNAL", "the ledger failed on this")


def _span(batch: Sequence[Waiting[Any, Any]]) -> traces.Span | None:
    """Return the span that a commit of many is shown under: the first traced item's."""
    return next((waiting.span for waiting in batch if waiting.span is not None), None)


def _pass_on(waiting: Waiting[Item, Outcome], outcome: Outcome) -> None:
    waiting.tell(outcome)


def _queue(lane: Lane, queue: deque[Waiting[Item, Outcome]], waiting: Waiting[Item, Outcome]) -> None:
    if lane.length >= QUEUE_MAX:
        _call(waiting.answer, Unavailable("OVERLOADED", "too much waits for this organization", retry_after_ms=500))
    else:
        queue.append(waiting)
        lane.wake.set()


def _final(holds: Sequence[Waiting[Placing, Placed]]) -> list[bool]:
    now = asyncio.get_running_loop().time()
    return [waiting.until <= now for waiting in holds]


def _answer_holds(
    lane: Lane, batch: Sequence[Waiting[Placing, Placed]], placed: Sequence[Placed], final: Sequence[bool]
) -> None:
    for waiting, outcome, last in zip(batch, placed, final, strict=True):
        match outcome:
            case Refused(refusal=Refusal.IN_FLIGHT, replayed=False) if not last:
                lane.patient.append(waiting)
            case _:
                waiting.tell(outcome)


def _answer_all(batch: Sequence[Waiting[Any, Any]], error: MeshError) -> None:
    for waiting in batch:
        waiting.tell(error)


def _call(answer: Answer[Outcome], outcome: Outcome | MeshError) -> None:
    try:
        answer(outcome)
    except Exception as bug:  # noqa: BLE001  # what one asker does with its answer must not keep the others' from them
        log.error("commit.unheard", bug)


def _as_replay(outcome: Any) -> Any:
    return replace(outcome, replayed=True) if hasattr(outcome, "replayed") else outcome


def _take(queue: deque[Waiting[Item, Outcome]]) -> list[Waiting[Item, Outcome]]:
    """Take a batch: nothing that nobody waits for, no key twice. The same again shares the answer; others wait."""
    batch: list[Waiting[Item, Outcome]] = []
    keys: dict[str, Waiting[Item, Outcome]] = {}
    later: list[Waiting[Item, Outcome]] = []
    while queue and len(batch) < BATCH_MAX:
        waiting = queue.popleft()
        if not waiting.wanted:
            continue
        first = keys.setdefault(waiting.item.request_id, waiting)
        if first is waiting:
            batch.append(waiting)
        elif first.item == waiting.item and len(first.twins) < TWINS_MAX:
            first.twins.append(waiting)
        else:
            later.append(waiting)
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
    lane.patient = [waiting for waiting in lane.patient if waiting.wanted]
