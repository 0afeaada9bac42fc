from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_svc import burn
from ledger_svc.latencies import CLASSES, ENDS_MS, mean, quantile_ms

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("charged", "elapsed", "rate"),
    [
        (0, 24 * HOUR, 0),
        (24, 24 * HOUR, 1),
        (11, 24 * HOUR, 0),
        (12, 24 * HOUR, 1),  # half up
        (36, 24 * HOUR, 2),
        (10, HOUR / 2, 20),
        (10, timedelta(), 0),
        (10**15, 24 * HOUR, 41_666_666_666_667),
    ],
)
def test_the_rate_is_what_an_hour_cost_rounded_half_up(charged: int, elapsed: timedelta, rate: int) -> None:
    assert burn.hourly_micros(charged, elapsed) == rate


@pytest.mark.parametrize(
    ("available", "charged", "after"),
    [
        (48, 24, 48 * HOUR),
        (1, 24, HOUR),
        (0, 24, timedelta()),
        (-5, 24, timedelta()),
        (5, 0, None),
        (24 * 36_525, 24, 24 * 36_525 * HOUR),
        (24 * 36_525 + 1, 24, None),
        (10**15, 1, None),
    ],
)
def test_the_wallet_runs_out_when_the_rate_has_eaten_it(available: int, charged: int, after: timedelta | None) -> None:
    found = burn.run_out(available, charged, 24 * HOUR, NOW)
    assert found == (None if after is None else NOW + after)


def counts(latencies: list[int]) -> list[int]:
    """Count as PostgreSQL's width_bucket does."""
    found = [0] * CLASSES
    for latency in latencies:
        found[sum(latency >= end for end in ENDS_MS)] += 1
    return found


@given(st.lists(st.integers(0, 130_000), min_size=1, max_size=60), st.sampled_from([1, 50, 95, 100]))
def test_a_quantile_lies_in_the_class_of_the_exact_value(latencies: list[int], percent: int) -> None:
    exact = sorted(latencies)[-(-len(latencies) * percent // 100) - 1]
    found = quantile_ms(counts(latencies), percent)
    assert counts([found]) == counts([exact])


def test_a_quantile_of_nothing_is_0_and_beyond_all_classes_their_end() -> None:
    assert quantile_ms([0] * CLASSES, 95) == 0
    assert quantile_ms(counts([10**7]), 50) == ENDS_MS[-1]


@pytest.mark.parametrize(("total", "count", "found"), [(0, 0, 0), (5, 2, 3), (4, 3, 1), (5, 3, 2), (9, 3, 3)])
def test_a_mean_is_rounded_half_up(total: int, count: int, found: int) -> None:
    assert mean(total, count) == found
