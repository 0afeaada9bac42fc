from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_svc.pricing import (
    NUMERATOR_MAX,
    RATE_MAX,
    TIERS_MAX,
    TOKENS_MAX,
    Bound,
    Price,
    Rates,
    Tier,
    Unpriceable,
    Usage,
    bill,
    bound,
    cost_micros,
    is_route,
)

PRICE = Price("p@1", "mock", "m", Rates(3_000_000, 1_000_000, 4_000_000, 10_000_000, 12_000_000), 7, 1000, 1000, "", "")
LONG = Rates(6_000_000, 2_000_000, 8_000_000, 15_000_000, 18_000_000)
TIERED = replace(PRICE, tiers=(Tier(100, LONG), Tier(200, Rates(7_000_000, 0, 0, 1_000_000, 0))))
TOKENS = st.integers(0, 10_000)
RATES = st.builds(Rates, *[st.integers(0, 10**10)] * 5)
TIERS = st.dictionaries(st.integers(1, 12_000), RATES, max_size=TIERS_MAX).map(
    lambda tiers: tuple(Tier(above, rates) for above, rates in sorted(tiers.items()))
)
PRICES = st.builds(replace, st.just(PRICE), rates=RATES, tiers=TIERS, request_micros=st.integers(0, 10**6))
USAGES = st.builds(Usage, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)


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
        (Usage(reasoning_tokens=1), "upstream_error", 12 + 7),
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


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        (Usage(input_tokens=100, output_tokens=1), 100 * 3 + 10),
        (Usage(input_tokens=101, output_tokens=1), 101 * 6 + 15),
        (Usage(50, 50, 0, 1), 50 * 3 + 50 * 1 + 10),
        (Usage(50, 50, 1, 1), 50 * 6 + 50 * 2 + 8 + 15),
        (Usage(output_tokens=500), 500 * 10),
        (Usage(input_tokens=200), 200 * 6),
        (Usage(input_tokens=201), 201 * 7),
    ],
)
def test_all_input_decides_the_tier_and_the_tier_prices_the_whole_request(usage: Usage, micros: int) -> None:
    assert cost_micros(TIERED, usage, "ok") == micros + 7


@pytest.mark.parametrize(("tokens", "micros"), [(0, 0), (1, 1), (3, 1), (4, 2), (6, 2), (3_000_000, 999_999)])
def test_a_request_is_rounded_up_once_and_not_each_class(tokens: int, micros: int) -> None:
    third = replace(PRICE, rates=Rates(333_333, 0, 0, 333_333, 0), request_micros=0)
    assert cost_micros(third, Usage(input_tokens=tokens - tokens // 2, output_tokens=tokens // 2), "ok") == micros


def test_a_bound_covers_the_dearest_of_each_part_over_all_routes() -> None:
    other = replace(PRICE, rates=Rates(9_000_000, 1_000_000, 4_000_000, 1, 1), request_micros=1)
    assert bounded([PRICE, other], 10, 5, 2).ceiling_micros(5) == 10 * 9 + 2 * 5 * 12 + 7


@pytest.mark.parametrize(("input_tokens", "micros"), [(100, 100 * 4 + 12), (101, 101 * 8 + 18), (201, 201 * 8 + 18)])
def test_a_bound_covers_the_tiers_that_its_input_may_reach_and_no_others(input_tokens: int, micros: int) -> None:
    assert bounded([TIERED], input_tokens, 1, 1).ceiling_micros(1) == micros + 7


def test_what_64_bits_cannot_hold_is_not_priced() -> None:
    dear = replace(PRICE, rates=replace(PRICE.rates, output=RATE_MAX))
    assert isinstance(bound([dear], TOKENS_MAX, TOKENS_MAX, 128), Unpriceable)


def test_no_class_of_tokens_at_the_dearest_rate_leaves_64_bits() -> None:
    usage = Usage(TOKENS_MAX, TOKENS_MAX, TOKENS_MAX, TOKENS_MAX, TOKENS_MAX)
    found = bill(replace(PRICE, rates=Rates(*[RATE_MAX] * 5)), usage, "ok")
    assert {line.picos for line in found.lines} == {NUMERATOR_MAX}
    assert NUMERATOR_MAX + 10**6 < 2**63
    assert found.cost_micros < 2**63


@given(
    price=PRICES,
    input_tokens=TOKENS,
    wanted=TOKENS,
    choices=st.integers(1, 8),
    limit=st.integers(1, 10**9) | st.integers(10**9, 10**15),
)
def test_as_much_output_fits_a_limit_on_cost_as_costs_no_more_and_no_token_less(
    price: Price, input_tokens: int, wanted: int, choices: int, limit: int
) -> None:
    found = bounded([price], input_tokens, wanted, choices)
    fits = found.output_within(limit, wanted)
    assert fits <= wanted
    assert fits < 0 or found.ceiling_micros(fits) <= limit
    assert fits == wanted or found.ceiling_micros(fits + 1) > limit


@pytest.mark.parametrize(("limit", "fits"), [(36, -1), (37, 0), (48, 0), (49, 1), (60, 1), (61, 2), (10**15, 9)])
def test_the_least_limit_that_a_token_fits_is_its_ceiling(limit: int, fits: int) -> None:
    assert bounded([replace(PRICE, request_micros=17)], 5, 9, 1).output_within(limit, 9) == fits


@pytest.mark.parametrize(("limit", "fits"), [(6, -1), (7, 9)])
def test_output_that_costs_nothing_fits_wherever_the_request_does(limit: int, fits: int) -> None:
    assert bounded([replace(PRICE, rates=Rates(0, 0, 0, 0, 0))], 5, 9, 1).output_within(limit, 9) == fits


@given(prices=st.lists(PRICES, min_size=1, max_size=4), choices=st.integers(1, 8), data=st.data())
def test_usage_within_the_bound_never_costs_more_than_the_ceiling(
    prices: list[Price], choices: int, data: st.DataObject
) -> None:
    input_max, output_max = data.draw(TOKENS), data.draw(TOKENS)
    input_tokens = data.draw(st.integers(0, input_max))
    parts = data.draw(st.lists(st.integers(0, input_tokens), min_size=2, max_size=2).map(sorted))
    spoken = data.draw(st.integers(0, output_max * choices))
    thought = data.draw(st.integers(0, output_max * choices - spoken))
    usage = Usage(parts[0], parts[1] - parts[0], input_tokens - parts[1], spoken, thought)
    ceiling = bounded(prices, input_max, output_max, choices).ceiling_micros(output_max)
    assert all(cost_micros(price, usage, "ok") <= ceiling for price in prices)


@given(price=PRICES, less=TOKENS, more=TOKENS, choices=st.integers(1, 8))
def test_more_output_never_costs_less(price: Price, less: int, more: int, choices: int) -> None:
    found = bounded([price], less, less + more, choices)
    assert found.ceiling_micros(less) <= found.ceiling_micros(less + more)
    assert cost_micros(price, Usage(output_tokens=less), "ok") <= cost_micros(
        price, Usage(output_tokens=less + more), "ok"
    )


@given(price=PRICES, usage=USAGES)
def test_a_cost_is_exact_but_for_less_than_one_micro_credit(price: Price, usage: Usage) -> None:
    prompt = usage.input_tokens + usage.cached_input_tokens + usage.cache_write_tokens
    rates = [price.rates, *(tier.rates for tier in price.tiers if prompt > tier.above_tokens)][-1]
    exact = (
        usage.input_tokens * rates.input
        + usage.cached_input_tokens * rates.cached_input
        + usage.cache_write_tokens * rates.cache_write
        + usage.output_tokens * rates.output
        + usage.reasoning_tokens * rates.reasoning
    )
    assert 0 <= (cost_micros(price, usage, "ok") - price.request_micros) * 1_000_000 - exact < 1_000_000


@given(price=PRICES, usage=st.one_of(USAGES, st.just(Usage())), outcome=st.sampled_from(["ok", "upstream_error"]))
def test_a_bill_comes_to_what_was_charged(price: Price, usage: Usage, outcome: str) -> None:
    found = bill(price, usage, outcome)
    assert found.cost_micros == cost_micros(price, usage, outcome)
    assert (
        sum(line.tokens for line in found.lines) == usage.prompt_tokens + usage.output_tokens + usage.reasoning_tokens
    )


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-6"), ("openai", "meta/llama:8b"), ("x", "y" * 100)])
def test_a_route_may_be_what_fits_into_a_list_of_routes(provider: str, model: str) -> None:
    assert is_route(provider, model)


@pytest.mark.parametrize(
    ("provider", "model"),
    [("open/ai", "gpt-6"), ("", "gpt-6"), ("x", ""), ("x", "y" * 101), *[("x", f"y{sign}6") for sign in ",#@ \n\x00"]],
)
def test_a_route_may_not_be_what_does_not(provider: str, model: str) -> None:
    assert not is_route(provider, model)
