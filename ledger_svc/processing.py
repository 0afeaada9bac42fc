"""How the ledger's slow work is carried out: the one interface that a driver implements.

Not in here: holding, settling and voiding. Those are transitions of the ledger itself, each one commit; see
docs/decisions. A driver takes up what the `jobs` table says is due, in which work is recorded in the commit of the fact
that asks for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of slow work: its kind and key are unique for ever."""

    kind: str
    key: str
    payload: Mapping[str, str]


Handler = Callable[[Job], Awaitable[timedelta | None]]
"""Does one job and returns None, or in how long to do it again. Whatever it raises is a failure, to be tried again; it
may run twice at any time, so it must not mind."""


class UsageProcess(Protocol):
    """What schedules jobs and sees to it that each is done, at least once."""

    async def schedule(self, job: Job, after: timedelta = timedelta()) -> bool:
        """Record a job to be done once `after` is over; False when its key was scheduled before."""
        ...

    async def run(self, handlers: Mapping[str, Handler]) -> None:
        """Do what becomes due, for ever; kinds without a handler are left for another process."""
        ...
