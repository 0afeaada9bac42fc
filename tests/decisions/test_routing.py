from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.routing import Target, order

SEEDS = [f"req_{number}" for number in range(20_000)]
TARGETS = st.lists(
    st.builds(Target, st.just("openai"), st.sampled_from("abc"), st.integers(0, 1_000), st.integers(0, 7)),
    min_size=1,
    max_size=8,
)


def weighing(*weights: int, tier: int = 0) -> list[Target]:
    return [Target("openai", f"model-{place}", weight, tier) for place, weight in enumerate(weights)]


def is_near(count: int, share: float) -> bool:
    """Say whether a count over all seeds lies within four standard deviations of what a share comes to."""
    return abs(count - len(SEEDS) * share) <= 4 * sqrt(len(SEEDS) * share * (1 - share))


@given(TARGETS, st.text())
def test_every_target_is_tried_once(targets: list[Target], seed: str) -> None:
    assert Counter(order(targets, seed)) == Counter(targets)


@given(TARGETS, st.text())
def test_a_seed_gives_the_same_order_each_time(targets: list[Target], seed: str) -> None:
    assert order(targets, seed) == order(tuple(targets), seed)


@given(TARGETS, st.text())
def test_tiers_follow_one_another_and_weight_0_comes_last_in_its_tier(targets: list[Target], seed: str) -> None:
    keys = [(target.tier, target.weight == 0) for target in order(targets, seed)]
    assert keys == sorted(keys)


@given(TARGETS, TARGETS, st.text())
def test_what_is_said_of_a_later_tier_changes_nothing_in_an_earlier(
    targets: list[Target], others: list[Target], seed: str
) -> None:
    later = [Target("openai", other.model, other.weight, tier=8) for other in others]
    assert order([*targets, *later], seed)[: len(targets)] == order(targets, seed)


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (1, 1_000), (5, 0, 15), (10, 20, 30, 40), (1,) * 8])
def test_the_first_is_drawn_by_weight(weights: tuple[int, ...]) -> None:
    targets = weighing(*weights)
    firsts = Counter(order(targets, seed)[0] for seed in SEEDS)
    assert all(is_near(firsts[target], target.weight / sum(weights)) for target in targets), firsts


@pytest.mark.parametrize("tier", [0, 3])
def test_the_second_is_drawn_by_weight_among_those_that_are_left(tier: int) -> None:
    targets = weighing(2, 3, 5, tier=tier)
    pairs = Counter(order(targets, seed)[:2] for seed in SEEDS)
    for first in targets:
        for second in targets:
            if first is not second:
                share = first.weight / 10 * second.weight / (10 - first.weight)
                assert is_near(pairs[(first, second)], share), (first, second)


def test_targets_of_weight_0_share_evenly_what_comes_to_them() -> None:
    targets = weighing(0, 0, 0)
    firsts = Counter(order(targets, seed)[0] for seed in SEEDS)
    assert all(is_near(firsts[target], 1 / 3) for target in targets)


def test_an_order_stays_what_it_was_when_the_program_starts_anew() -> None:
    targets = weighing(1, 1, 1, 1)
    assert [int(target.model[-1]) for target in order(targets, "req_golden")] == [0, 1, 3, 2]
