from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_svc.pricing import TOKENS_MAX, Bound, Price, Unpriceable, Usage, bound, cost_micros

PRICE = Price("p@1", "mock", "m", 3_000_000, 1_000_000, 4_000_000, 10_000_000, 12_000_000, 7, 1000, 1000, "s", "d")
RATES = st.integers(0, 10**10)
TOKENS = st.integers(0, 10_000)
PRICES = st.builds(
    replace,
    st.just(PRICE),
    input_rate=RATES,
    cached_input_rate=RATES,
    cache_write_rate=RATES,
    output_rate=RATES,
    reasoning_rate=RATES,
    request_micros=st.integers(0, 10**6),
)


def bounded(prices: list[Price], input_tokens: int, output_tokens: int, choices: int) -> Bound:
    found = bound(prices, input_tokens, output_tokens, choices)
    assert isinstance(found, Bound)
    return found


@pytest.mark.parametrize(
    ("usage", "outcome", "micros"),
    [
        (Usage(), "ok", 7),
        (Usage(), "upstream_error", 0),
        (Usage(input_tokens=1), "upstream_error", 3 + 7),
        (Usage(input_tokens=2), "ok", 6 + 7),
        (Usage(cached_input_tokens=2), "ok", 2 + 7),
        (Usage(cache_write_tokens=2), "ok", 8 + 7),
        (Usage(output_tokens=2), "ok", 20 + 7),
        (Usage(reasoning_tokens=2), "ok", 24 + 7),
        (Usage(1, 1, 1, 1, 1), "client_gone", 3 + 1 + 4 + 10 + 12 + 7),
    ],
)
def test_each_class_of_tokens_costs_its_own_rate(usage: Usage, outcome: str, micros: int) -> None:
    assert cost_micros(PRICE, usage, outcome) == micros


@pytest.mark.parametrize(("tokens", "micros"), [(0, 0), (1, 1), (3, 1), (4, 2), (6, 2), (3_000_000, 999_999)])
def test_a_request_is_rounded_up_once_and_not_each_class(tokens: int, micros: int) -> None:
    third = replace(PRICE, input_rate=333_333, output_rate=333_333, request_micros=0)
    assert cost_micros(third, Usage(input_tokens=tokens - tokens // 2, output_tokens=tokens // 2), "ok") == micros


def test_a_bound_covers_the_dearest_of_each_part_over_all_routes() -> None:
    other = replace(PRICE, input_rate=9_000_000, output_rate=1, reasoning_rate=1, request_micros=1)
    assert bounded([PRICE, other], 10, 5, 2).ceiling_micros(5) == 10 * 9 + 2 * 5 * 12 + 7


def test_what_64_bits_cannot_hold_is_not_priced() -> None:
    dear = replace(PRICE, output_rate=10**12)
    assert isinstance(bound([dear], TOKENS_MAX, TOKENS_MAX, 128), Unpriceable)


@given(prices=st.lists(PRICES, min_size=1, max_size=4), choices=st.integers(1, 8), data=st.data())
def test_usage_within_the_bound_never_costs_more_than_the_ceiling(
    prices: list[Price], choices: int, data: st.DataObject
) -> None:
    input_max, output_max = data.draw(TOKENS), data.draw(TOKENS)
    parts = data.draw(st.lists(st.integers(0, input_max), min_size=2, max_size=2).map(sorted))
    spoken = data.draw(st.integers(0, output_max * choices))
    thought = data.draw(st.integers(0, output_max * choices - spoken))
    usage = Usage(parts[0], parts[1] - parts[0], input_max - parts[1], spoken, thought)
    ceiling = bounded(prices, input_max, output_max, choices).ceiling_micros(output_max)
    assert all(cost_micros(price, usage, "ok") <= ceiling for price in prices)


@given(price=PRICES, less=TOKENS, more=TOKENS, choices=st.integers(1, 8))
def test_more_tokens_never_cost_less(price: Price, less: int, more: int, choices: int) -> None:
    found = bounded([price], less, less + more, choices)
    assert found.ceiling_micros(less) <= found.ceiling_micros(less + more)
    assert cost_micros(price, Usage(output_tokens=less), "ok") <= cost_micros(
        price, Usage(output_tokens=less + more), "ok"
    )


@given(price=PRICES, usage=st.builds(Usage, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS))
def test_a_cost_is_exact_but_for_less_than_one_micro_credit(price: Price, usage: Usage) -> None:
    exact = (
        usage.input_tokens * price.input_rate
        + usage.cached_input_tokens * price.cached_input_rate
        + usage.cache_write_tokens * price.cache_write_rate
        + usage.output_tokens * price.output_rate
        + usage.reasoning_tokens * price.reasoning_rate
    )
    assert 0 <= (cost_micros(price, usage, "ok") - price.request_micros) * 1_000_000 - exact < 1_000_000
