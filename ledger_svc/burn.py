"""How fast credits are spent and when they will be gone. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

HOUR_MICROSECONDS = 3_600_000_000
MICROSECOND = timedelta(microseconds=1)
RUN_OUT_MAX = timedelta(days=36_525)


def hourly_micros(charged_micros: int, elapsed: timedelta) -> int:
    """Return the micro-credits of an hour, rounded half up; 0 over no time."""
    span = elapsed // MICROSECOND
    return (2 * charged_micros * HOUR_MICROSECONDS + span) // (2 * span) if span > 0 else 0


def run_out(available_micros: int, charged_micros: int, elapsed: timedelta, now: datetime) -> datetime | None:
    """Return when what is available is spent at this rate; None when it isn't within 100 years."""
    if charged_micros <= 0:
        return None
    left = max(available_micros, 0) * (elapsed // MICROSECOND) // charged_micros
    return now + timedelta(microseconds=left) if left <= RUN_OUT_MAX // MICROSECOND else None
