"""Periods of reports: their steps in a time zone, and the slots of sums that make them up. Pure.

Times are aware, in UTC. Zones come as `tzinfo`; since 2020 every one of them is, and changes by, whole quarters of an
hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from itertools import pairwise

EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
DAYS_MAX = 400
STEPS_MAX = 1_000
DAY, HOUR, QUARTER = timedelta(days=1), timedelta(hours=1), timedelta(minutes=15)
MINUTE = timedelta(minutes=1)
GRAINS = (1440, 60, 15)  # minutes of a slot
WEEK_HOURS = 168


class Interval(Enum):
    """The length of a trend's steps."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Bad:
    """Why two times are no period of a report, and which of them it is."""

    field: str
    problem: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole slots of one grain, end exclusive, that belong to one bucket of a report."""

    bucket: int
    grain_minutes: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Segment:
    """A time during which a zone keeps its distance from UTC."""

    start: datetime
    end: datetime
    offset: timedelta


def check(start: datetime, end: datetime) -> Bad | None:
    """Return what is wrong with a period."""
    for field, at in (("from_time", start), ("to_time", end)):
        if not EARLIEST <= at <= LATEST:
            return Bad(field, "must be in the years 2020 to 2099")
        if (at - EARLIEST) % QUARTER:
            return Bad(field, "must be on a quarter of an hour")
    if not start < end <= start + DAYS_MAX * DAY:
        return Bad("to_time", f"must be after from_time, and by at most {DAYS_MAX} days")
    return None


def floor(at: datetime, grain: timedelta) -> datetime:
    """Return the start of the slot that a time lies in."""
    return at - (at - EARLIEST) % grain


def pieces(bounds: Sequence[datetime], grains: Sequence[int] = GRAINS) -> list[Piece]:
    """Cut the buckets between consecutive bounds into the coarsest slots that fit, in order and without gaps.

    Bounds are whole slots of the finest grain; `grains` go from coarse to fine.
    """
    minutes = [(at - EARLIEST) // MINUTE for at in bounds]
    return [
        Piece(bucket, grain, EARLIEST + first * MINUTE, EARLIEST + last * MINUTE)
        for bucket, (start, end) in enumerate(pairwise(minutes))
        for grain, first, last in _cut(start, end, grains)
    ]


def _cut(start: int, end: int, grains: Sequence[int]) -> list[tuple[int, int, int]]:
    if start >= end:
        return []
    grain, *finer = grains
    first, last = -(-start // grain) * grain, end // grain * grain
    if not finer or (first == start and last == end):
        return [(grain, start, end)]
    if first >= last:
        return _cut(start, end, finer)
    return [*_cut(start, first, finer), (grain, first, last), *_cut(last, end, finer)]


def runs(cut: Sequence[Piece]) -> list[Piece]:
    """Join neighbours of one grain, whichever buckets they are of."""
    found: list[Piece] = []
    for piece in cut:
        if found and found[-1].grain_minutes == piece.grain_minutes:
            found[-1] = replace(found[-1], end=piece.end)
        else:
            found.append(piece)
    return found


def segments(start: datetime, end: datetime, zone: tzinfo) -> list[Segment]:
    """Divide a period where the zone changes its distance from UTC (at most once a day)."""
    found: list[Segment] = []
    since, offset = start, _offset(start, zone)
    at = start
    while at < end:
        later = min(at + DAY, end)
        if _offset(later, zone) != offset:
            changed = _change(at, later, offset, zone)
            if changed >= end:
                break
            found.append(Segment(since, changed, offset))
            since, offset = changed, _offset(changed, zone)
        at = later
    return [*found, Segment(since, end, offset)]


def _change(before: datetime, after: datetime, offset: timedelta, zone: tzinfo) -> datetime:
    while after - before > QUARTER:
        middle = before + (after - before) // (2 * QUARTER) * QUARTER
        if _offset(middle, zone) == offset:
            before = middle
        else:
            after = middle
    return after


def _offset(at: datetime, zone: tzinfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def steps(start: datetime, end: datetime, interval: Interval, zone: tzinfo) -> list[datetime]:
    """Return where the steps of a period begin, and its end.

    A step begins where the hour, day or month of the zone's clocks does; an hour also where clocks are changed.
    """
    bounds = [start]
    before = timedelta()
    for segment in segments(start, end, zone):
        shown = segment.start + segment.offset  # what the zone's clocks show, written as if it were UTC
        begun = _begin(shown, interval)
        if segment.start > start:
            shown_last = segment.start + before - timedelta.resolution
            if interval is Interval.HOUR or begun != _begin(shown_last, interval):
                bounds.append(segment.start)
        at = _next(begun, interval)
        while at - segment.offset < segment.end:
            bounds.append(at - segment.offset)
            at = _next(at, interval)
        before = segment.offset
    return [*bounds, end]


def _begin(shown: datetime, interval: Interval) -> datetime:
    match interval:
        case Interval.HOUR:
            return shown.replace(minute=0, second=0, microsecond=0)
        case Interval.DAY:
            return shown.replace(hour=0, minute=0, second=0, microsecond=0)
        case Interval.MONTH:
            return shown.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next(begun: datetime, interval: Interval) -> datetime:
    match interval:
        case Interval.HOUR:
            return begun + HOUR
        case Interval.DAY:
            return begun + DAY
        case Interval.MONTH:
            return (begun + 31 * DAY).replace(day=1)


def local_hours(start: datetime, end: datetime, zone: tzinfo) -> tuple[list[Piece], list[timedelta]]:
    """Cut a period where the zone changes its distance from UTC; with that distance for each bucket."""
    parts = segments(start, end, zone)
    cut = [Piece(bucket, GRAINS[-1], part.start, part.end) for bucket, part in enumerate(parts)]
    return cut, [part.offset for part in parts]
