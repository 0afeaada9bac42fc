"""Time as a dependency, so that tests can set it; durations come from the loop, and money's time from PostgreSQL."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What tells the time of day."""

    def now(self) -> datetime:
        """Return the time of day in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SetClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def move(self, by: timedelta) -> None:
        """Let time pass."""
        self._now += by


def monotonic_ms() -> float:
    """Return milliseconds from a clock that never goes back; for durations only."""
    return time.monotonic() * 1000
