"""Refusals by policy as audit facts, each of them one: told to the agent only after its fact is committed.

Those that come at the same time share a transaction, so that an agent that hammers costs little more than one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from mesh import audit
from mesh.audit import Fact
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs, metrics

WAITING_MAX = 2_000
BATCH_MAX = 200
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

    def fact(self) -> Fact:
        """Return it as the audit chain keeps it."""
        detail = {
            "reason": self.reason.lower(),
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "api_key_id": self.api_key_id,
            "limit": self.limit,
        }
        return Fact(self.organization_id, ACTION, self.agent_id, detail)


@dataclass(slots=True, eq=False)
class _Waiting:
    violation: Violation
    written: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Violations:
    """What waits to be written; bounded, since whoever is refused waits with it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: deque[_Waiting] = deque()
        self._woken = asyncio.Event()

    async def record(self, violation: Violation) -> None:
        """Write a fact and wait for its commit; Unavailable where it can't be written."""
        if len(self._waiting) >= WAITING_MAX:
            metrics.SHED.labels("refusals").inc()
            raise Unavailable("OVERLOADED", "too many requests are refused at once", retry_after_ms=1_000)
        waiting = _Waiting(violation)
        self._waiting.append(waiting)
        self._woken.set()
        await waiting.written
        metrics.VIOLATIONS.labels(violation.reason.lower()).inc()

    async def run(self) -> None:
        """Write for ever, an organization's facts of one moment in one transaction."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                by_organization: dict[str, list[_Waiting]] = {}
                for _ in range(min(len(self._waiting), BATCH_MAX)):
                    waiting = self._waiting.popleft()
                    by_organization.setdefault(waiting.violation.organization_id, []).append(waiting)
                for batch in by_organization.values():
                    await self._write(batch)

    async def _write(self, batch: list[_Waiting]) -> None:
        failure: MeshError | None = None
        try:
            async with self._db.transaction() as tx:
                facts = [(waiting.violation.agent_id, waiting.violation.fact()) for waiting in batch]
                await audit.record_all(tx, facts)
        except MeshError as error:
            log.warn("violations.unwritten", reason=error.reason, number=len(batch))
            failure = error
        for waiting in batch:
            if waiting.written.done():
                continue
            if failure is None:
                waiting.written.set_result(None)
            else:
                waiting.written.set_exception(failure)
