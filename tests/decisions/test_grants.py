from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_svc.grants import Grant, Lot, Status, burned

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SOON, LATER = NOW + timedelta(days=1), NOW + timedelta(days=2)
RICH = 10**6

FIRST = Lot("first", 3, 0, LATER, 10)
SECOND = Lot("second", 2, 50, SOON, 10)
THIRD = Lot("third", 4, 50, LATER, 10)
FOURTH = Lot("fourth", 1, 50, None, 10)
FIFTH = Lot("fifth", 5, 50, None, 10)
ALL = [FIFTH, THIRD, FIRST, FOURTH, SECOND]
ORDER = ["first", "second", "third", "fourth", "fifth"]

LOTS = st.lists(
    st.builds(
        Lot,
        st.uuids().map(str),
        st.integers(1, 9),
        st.integers(0, 2),
        st.none() | st.sampled_from([SOON, LATER]),
        st.integers(0, 50),
    ),
    max_size=6,
)
GRANT = Grant("grt", "org", "paid", 50, 10, 0, 0, "", NOW, None, None)


@pytest.mark.parametrize("spent", range(0, 60, 5))
def test_lots_burn_by_priority_then_expiry_then_making_and_bought_credits_last(spent: int) -> None:
    losses = burned(ALL, spent, RICH)
    assert list(losses) == ORDER[: len(losses)]
    assert [losses.get(name, 0) for name in ORDER] == [min(10, max(0, spent - 10 * place)) for place in range(5)]


@pytest.mark.parametrize(
    ("spent", "settled", "lost"),
    [(-20, RICH, 0), (0, 50, 0), (0, 49, 1), (0, 0, 50), (-5, 30, 20), (30, 45, 30), (3, 30, 20), (99, 0, 50)],
)
def test_lots_never_hold_more_than_the_wallet(spent: int, settled: int, lost: int) -> None:
    assert sum(burned(ALL, spent, settled).values()) == lost


@given(LOTS, st.integers(-100, 400), st.integers(0, 400))
def test_what_burns_is_there_and_no_lot_burns_before_an_earlier_one_is_gone(
    lots: list[Lot], spent: int, settled: int
) -> None:
    losses = burned(lots, spent, settled)
    total = sum(lot.remaining_micros for lot in lots)
    assert sum(losses.values()) == min(total, max(spent, total - settled, 0))
    ordered = sorted(lots, key=lambda lot: (lot.priority, lot.expires_at or datetime.max.replace(tzinfo=UTC), lot.seq))
    for earlier, later in pairwise(lot for lot in ordered if lot.remaining_micros):
        assert losses.get(later.grant_id, 0) <= later.remaining_micros
        assert not losses.get(later.grant_id) or losses[earlier.grant_id] == earlier.remaining_micros


@given(LOTS, st.integers(0, 200), st.integers(0, 200))
def test_two_cuts_burn_what_one_does(lots: list[Lot], one: int, other: int) -> None:
    first = burned(lots, one, RICH)
    left = [replace(lot, remaining_micros=lot.remaining_micros - first.get(lot.grant_id, 0)) for lot in lots]
    second = burned(left, other, RICH)
    both = burned(lots, one + other, RICH)
    assert {lot.grant_id: first.get(lot.grant_id, 0) + second.get(lot.grant_id, 0) for lot in lots} == {
        lot.grant_id: both.get(lot.grant_id, 0) for lot in lots
    }


@pytest.mark.parametrize(
    ("grant", "status"),
    [
        (GRANT, Status.ACTIVE),
        (replace(GRANT, expires_at=SOON, burned_micros=9), Status.ACTIVE),
        (replace(GRANT, burned_micros=10), Status.BURNED),
        (replace(GRANT, burned_micros=10, expires_at=NOW), Status.BURNED),
        (replace(GRANT, burned_micros=4, expires_at=NOW), Status.EXPIRED),
        (replace(GRANT, burned_micros=4, broken_micros=6, expires_at=NOW), Status.EXPIRED),
        (replace(GRANT, burned_micros=4, broken_micros=6, voided_at=NOW), Status.VOIDED),
        (replace(GRANT, expires_at=NOW, voided_at=NOW), Status.VOIDED),
    ],
)
def test_a_grant_says_what_became_of_it(grant: Grant, status: Status) -> None:
    assert grant.status(NOW) == status
