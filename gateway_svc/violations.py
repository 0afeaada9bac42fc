"""Refusals by policy as audit facts: told to the agent only after theirs is committed.

An agent that is refused for one reason again and again gets a few facts of its own, and then one for all that comes
within a second. Organizations wait in turn for their transactions, each in a queue of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from fractions import Fraction

from gateway_svc.shares import Shares
from mesh import audit
from mesh.audit import Fact
from mesh.clock import monotonic_ms
from mesh.db import Database, StatementError
from mesh.errors import Internal, MeshError, Unavailable
from mesh.telemetry import logs, metrics

WAITING_MAX = 2_000
WAITING_ALONE = Fraction(3, 4)  # of one organization
BATCH_MAX = 200
WRITERS = 4
AT_ONCE, EACH_MS = 10, 1_000  # facts of one agent and reason: so many at once, and then one in so much time
PACES_MAX = 10_000
ACTION = "policy.violated"

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Violation:
    """One refusal: who was refused what, and why, without a word of the prompt."""

    organization_id: str
    agent_id: str
    api_key_id: str
    request_id: str
    endpoint: str
    reason: str
    limit: str  # which limit stood in the way, where the reason does not say

    def fact(self, count: int) -> Fact:
        """Return it as the audit chain keeps it, with how many like it that came after it."""
        detail = {
            "reason": self.reason.lower(),
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "api_key_id": self.api_key_id,
            "limit": self.limit,
            "count": count,
        }
        return Fact(self.organization_id, ACTION, self.agent_id, detail)


@dataclass(slots=True, eq=False)
class _Group:
    """One refusal, or those of a second that differ in their request alone."""

    first: Violation
    is_due: bool
    count: int = 0
    written: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Pace:
    full_ms: float  # when the leaky bucket is empty again
    due_ms: float


class _Paces:
    """When the next facts of an agent and a reason may be written; those that come before then share the moment."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Pace] = OrderedDict()

    def due_ms(self, violation: Violation, now_ms: float) -> float:
        key = (violation.agent_id, violation.reason)
        pace = self._known.pop(key, _Pace(now_ms, now_ms))
        if pace.due_ms <= now_ms:
            full_ms = max(now_ms, pace.full_ms) + EACH_MS
            pace = _Pace(full_ms, max(now_ms, full_ms - AT_ONCE * EACH_MS))
        self._known[key] = pace
        if len(self._known) > PACES_MAX:
            self._known.popitem(last=False)
        return pace.due_ms


class Violations:
    """What waits to be written; bounded, since whoever is refused waits with it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shares = Shares(WAITING_MAX, WAITING_ALONE)
        self._paces = _Paces()
        self._groups: dict[str, dict[Violation, _Group]] = {}  # by organization
        self._turns: dict[str, None] = {}  # organizations that may have something due, the first to be next
        self._writing: set[str] = set()  # a second writer would wait for the first one's lock
        self._woken = asyncio.Event()

    async def record(self, violation: Violation) -> None:
        """Write a fact and wait for its commit; Unavailable or Internal where it can't be written."""
        organization_id = violation.organization_id
        if not self._shares.take(organization_id, 1):
            metrics.SHED.labels("refusals").inc()
            raise Unavailable("OVERLOADED", "too many requests are refused at once", retry_after_ms=1_000)
        try:
            group = self._group(violation)
            group.count += 1
            await asyncio.shield(group.written)
        finally:
            self._shares.give_back(organization_id, 1)
        metrics.VIOLATIONS.labels(violation.reason.lower()).inc()

    async def run(self) -> None:
        """Write for ever, an organization's facts of one moment in one transaction."""
        async with asyncio.TaskGroup() as writers:
            for _ in range(WRITERS):
                writers.create_task(self._write_always())

    def _group(self, violation: Violation) -> _Group:
        groups = self._groups.setdefault(violation.organization_id, {})
        like = replace(violation, request_id="")
        group = groups.get(like)
        if group is None:
            now_ms = monotonic_ms()
            wait_ms = self._paces.due_ms(violation, now_ms) - now_ms
            group = _Group(violation, is_due=wait_ms <= 0)
            if group.is_due:
                groups[violation] = group  # nothing joins it
                self._queue(violation.organization_id)
            else:
                groups[like] = group
                asyncio.get_running_loop().call_later(wait_ms / 1000, self._come_due, group)
        return group

    def _come_due(self, group: _Group) -> None:
        group.is_due = True
        self._queue(group.first.organization_id)

    def _queue(self, organization_id: str) -> None:
        if organization_id not in self._writing:
            self._turns.setdefault(organization_id)
            self._woken.set()

    async def _write_always(self) -> None:
        while True:
            while self._turns:
                organization_id = next(iter(self._turns))
                del self._turns[organization_id]
                self._writing.add(organization_id)
                try:
                    await self._write(self._due(organization_id))
                finally:
                    self._writing.discard(organization_id)
                if any(group.is_due for group in self._groups.get(organization_id, {}).values()):
                    self._queue(organization_id)
            self._woken.clear()
            await self._woken.wait()

    def _due(self, organization_id: str) -> list[_Group]:
        """Take an organization's groups that are due; what comes from now on begins others."""
        groups = self._groups.get(organization_id, {})
        due = [(like, group) for like, group in groups.items() if group.is_due][:BATCH_MAX]
        for like, _ in due:
            del groups[like]
        if not groups:
            self._groups.pop(organization_id, None)
        return [group for _, group in due]

    async def _write(self, batch: list[_Group]) -> None:
        if not batch:
            return
        failure: MeshError | None = None
        try:
            async with self._db.transaction() as tx:
                await audit.record_all(tx, [(group.first.agent_id, group.first.fact(group.count)) for group in batch])
        except (MeshError, StatementError) as error:
            log.warn("violations.unwritten", error=type(error).__name__, number=sum(group.count for group in batch))
            failure = error if isinstance(error, MeshError) else Internal("INTERNAL", "it can't be put on record")
        for group in batch:
            if failure is None:
                group.written.set_result(None)
            else:
                group.written.set_exception(failure)
                group.written.exception()  # seen, though all who waited may have left
