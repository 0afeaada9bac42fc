from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_svc import periods
from ledger_svc.periods import DAY, EARLIEST, HOUR, QUARTER, Interval

QUARTERS = st.integers(0, 3_000 * 96).map(lambda count: EARLIEST + count * QUARTER)
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo"]
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "start", "end", "interval", "begun"),
    [
        ("UTC", "2026-03-01T12:00", "2026-03-02T06:00", Interval.DAY, ["03-01T12:00", "03-02T00:00"]),
        ("Asia/Kolkata", "2026-03-01T18:00", "2026-03-02T19:00", Interval.DAY,
         ["03-01T18:00", "03-01T18:30", "03-02T18:30"]),
        ("Asia/Kathmandu", "2026-03-01T00:00", "2026-03-01T02:00", Interval.HOUR,
         ["03-01T00:00", "03-01T00:15", "03-01T01:15"]),
        # clocks go forward at 01:00 UTC: a day of 23 hours
        ("Europe/Berlin", "2026-03-28T23:00", "2026-03-30T22:00", Interval.DAY, ["03-28T23:00", "03-29T22:00"]),
        # and back: the hour from 2 to 3 is there twice, the day has 25
        ("Europe/Berlin", "2026-10-24T22:00", "2026-10-26T23:00", Interval.DAY, ["10-24T22:00", "10-25T23:00"]),
        ("Europe/Berlin", "2026-10-25T00:00", "2026-10-25T03:00", Interval.HOUR,
         ["10-25T00:00", "10-25T01:00", "10-25T02:00"]),
        # forward at midnight: there is no 00:00, the day begins at 01:00
        ("Africa/Cairo", "2026-04-23T20:00", "2026-04-24T21:30", Interval.DAY,
         ["04-23T20:00", "04-23T22:00", "04-24T21:00"]),
        # back by half an hour at 2: the second half hour after 1 is there twice
        ("Australia/Lord_Howe", "2026-04-04T14:00", "2026-04-04T16:30", Interval.HOUR,
         ["04-04T14:00", "04-04T15:00", "04-04T15:30"]),
        ("Europe/Berlin", "2026-01-01T00:00", "2026-05-01T00:00", Interval.MONTH,
         ["01-01T00:00", "01-31T23:00", "02-28T23:00", "03-31T22:00", "04-30T22:00"]),
    ],
)  # fmt: skip
def test_steps_begin_where_the_clocks_of_the_zone_say(
    zone: str, start: str, end: str, interval: Interval, begun: list[str]
) -> None:
    found = periods.steps(at(start), at(end), interval, ZoneInfo(zone))
    assert found == [*(at(f"2026-{text}") for text in begun), at(end)]


@settings(deadline=None)
@given(QUARTERS, st.integers(1, 400 * 96), ZONES, st.sampled_from(Interval))
def test_steps_are_in_order_and_show_one_hour_day_or_month_each(
    start: datetime, quarters: int, zone: str, interval: Interval
) -> None:
    found = periods.steps(start, start + quarters * QUARTER, interval, ZoneInfo(zone))
    shown = {Interval.HOUR: "%Y-%m-%d %H %z", Interval.DAY: "%Y-%m-%d", Interval.MONTH: "%Y-%m"}[interval]
    labels: list[str] = []
    for first, last in pairwise(found):
        assert first < last
        ends = (first, last - QUARTER)
        names = {moment.astimezone(ZoneInfo(zone)).strftime(shown) for moment in ends}
        assert len(names) == 1
        labels += names
    assert all(before != after for before, after in pairwise(labels))


@given(st.lists(QUARTERS, min_size=2, max_size=6, unique=True).map(sorted))
def test_pieces_fill_their_buckets_with_whole_slots_and_no_more_than_five_runs(bounds: list[datetime]) -> None:
    found = periods.pieces(bounds)
    assert (found[0].start, found[-1].end) == (bounds[0], bounds[-1])
    assert all(before.end == after.start for before, after in pairwise(found))
    for piece in found:
        grain = timedelta(minutes=piece.grain_minutes)
        assert bounds[piece.bucket] <= piece.start < piece.end <= bounds[piece.bucket + 1]
        assert not (piece.start - EARLIEST) % grain
        assert not (piece.end - EARLIEST) % grain
    for bucket in range(len(bounds) - 1):
        own = [piece for piece in found if piece.bucket == bucket]
        assert len(own) <= 5
        small = sum(((piece.end - piece.start) for piece in own if piece.grain_minutes == 15), timedelta())
        assert small < 2 * HOUR
    joined = periods.runs(found)
    assert (joined[0].start, joined[-1].end) == (bounds[0], bounds[-1])
    assert all(before.grain_minutes != after.grain_minutes for before, after in pairwise(joined))


@given(QUARTERS, st.integers(1, 400 * 96), ZONES)
def test_a_piece_for_the_heatmap_keeps_one_distance_from_utc(start: datetime, quarters: int, zone: str) -> None:
    pieces, offsets = periods.local_hours(start, start + quarters * QUARTER, ZoneInfo(zone))
    for piece in pieces:
        offset = offsets[piece.bucket]
        assert piece.start.astimezone(ZoneInfo(zone)).utcoffset() == offset
        assert (piece.end - QUARTER).astimezone(ZoneInfo(zone)).utcoffset() == offset


def test_every_zone_keeps_to_quarters_of_an_hour() -> None:
    start, end = at("2026-01-01"), at("2027-01-01")
    for name in sorted(zoneinfo.available_timezones()):
        zone = ZoneInfo(name)
        for segment in periods.segments(start, end, zone):
            assert not segment.offset % QUARTER, name
            if segment.start > start:
                before = segment.start - timedelta(seconds=1)
                assert before.astimezone(zone).utcoffset() != segment.offset, name


@pytest.mark.parametrize(
    ("start", "end", "field"),
    [
        ("2026-01-01T00:00", "2026-01-01T00:15", None),
        ("2026-01-01T00:00", "2027-02-05T00:00", None),
        ("2019-12-31T23:45", "2020-01-02T00:00", "from_time"),
        ("2026-01-01T00:01", "2026-01-02T00:00", "from_time"),
        ("2026-01-01T00:00", "2026-01-01T00:15:01", "to_time"),
        ("2026-01-01T00:00", "2026-01-01T00:00", "to_time"),
        ("2026-01-02T00:00", "2026-01-01T00:00", "to_time"),
        ("2026-01-01T00:00", "2027-02-05T00:15", "to_time"),
        ("2026-01-01T00:00", "2100-01-02T00:00", "to_time"),
    ],
)
def test_a_period_is_on_quarters_and_bounded(start: str, end: str, field: str | None) -> None:
    bad = periods.check(at(start), at(end))
    assert (bad.field if bad else None) == field


def test_the_slot_of_a_time_begins_at_or_before_it() -> None:
    assert periods.floor(at("2026-01-01T00:14:59"), QUARTER) == at("2026-01-01T00:00")
    assert periods.floor(at("2026-01-01T00:15:00"), QUARTER) == at("2026-01-01T00:15")
    assert periods.floor(at("2026-01-01T13:00:00"), DAY) == at("2026-01-01T00:00")
