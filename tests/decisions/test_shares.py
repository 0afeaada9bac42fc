from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.shares import Shares

OWNERS = "abcdefgh"
alone = st.sampled_from([Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
moves = st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(-5, 5)), max_size=300)


def fill(shares: Shares, owner: str) -> int:
    """Take unit by unit until there are no more to be had."""
    taken = 0
    while shares.take(owner, 1):
        taken += 1
    return taken


@pytest.mark.parametrize(
    ("total", "part", "most"), [(2000, "3/4", 1500), (8, "3/4", 6), (1, "3/4", 1), (100, "1/4", 25)]
)
def test_one_alone_gets_its_part_and_no_more(total: int, part: str, most: int) -> None:
    assert fill(Shares(total, Fraction(part)), "a") == most


@given(st.integers(1, 500), alone, moves)
def test_whoever_has_one_never_takes_the_last_and_whoever_has_none_gets_it(
    total: int, part: Fraction, moved: list[tuple[str, int]]
) -> None:
    shares, taken = Shares(total, part), dict.fromkeys(OWNERS, 0)
    for owner, units in moved:
        if units < 0:
            returned = min(-units, taken[owner])
            shares.give_back(owner, returned)
            taken[owner] -= returned
            continue
        free = shares.free
        if not shares.take(owner, units):
            assert free == 0 or taken[owner] + units > 1
            continue
        taken[owner] += units
        assert taken[owner] <= 1 or taken[owner] * (1 - part) <= shares.free * part
    assert shares.free == total - sum(taken.values())
    assert shares.owners == sum(1 for units in taken.values() if units)


@given(st.integers(1, 12), alone)
def test_greedy_owners_leave_as_much_free_as_the_law_says(number: int, part: Fraction) -> None:
    total = 10_000
    shares = Shares(total, part)
    names = [f"owner {index}" for index in range(number)]
    while any([shares.take(name, 1) for name in names]):  # noqa: C419  # each of them asks, whoever got some
        pass
    multiple = part / (1 - part)
    assert abs(shares.free - total / (1 + number * multiple)) <= number
    assert shares.take("another", 1)
