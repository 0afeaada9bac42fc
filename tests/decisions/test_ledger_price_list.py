from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from ledger_svc.__main__ import PRICES
from ledger_svc.price_list import BadPriceList, laid_over, parse
from ledger_svc.pricing import RATE_MAX, Price, Rates

SHIPPED = PRICES.read_text(encoding="utf-8")
DOLLARS = {"input": "1.25", "cached_input": "0", "cache_write": "2", "output": "10"}
LONG = {"above_tokens": 200_000, "usd_per_mtok": DOLLARS}


def entry(**changes: Any) -> dict[str, Any]:
    """Return a good entry with changes; None takes a field out."""
    values: dict[str, Any] = {
        "provider": "openai",
        "model": "gpt-own",
        "usd_per_mtok": DOLLARS,
        "context_tokens": 1_000_000,
        "output_tokens_max": 8_000,
        "source": "our contract",
        "source_date": "2026-11-01",
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def listed(*entries: Any, credits_per_usd: int = 100) -> list[Price]:
    return parse(json.dumps({"models": entries}), credits_per_usd)


@pytest.mark.parametrize("credits_per_usd", [1, 100, 10_000])
def test_the_shipped_list_is_exact_at_every_exchange_rate(credits_per_usd: int) -> None:
    prices = {price.route: price for price in parse(SHIPPED, credits_per_usd)}
    dollars = [model for model in json.loads(SHIPPED)["models"] if "usd_per_mtok" in model]
    assert len(dollars) > 5
    for model in dollars:
        price = prices[f"{model['provider']}/{model['model']}"]
        for said, rates in ((model, price.rates), *zip(model.get("tiers", []), price.tiers, strict=True)):
            found = rates if isinstance(rates, Rates) else rates.rates
            for kind, usd in said["usd_per_mtok"].items():
                assert Decimal(getattr(found, kind)) == Decimal(usd) * credits_per_usd * 10**6
            assert found.reasoning == found.output


def test_every_shipped_price_says_where_and_when_it_was_read() -> None:
    prices = parse(SHIPPED, 100)
    assert all(price.source and date.fromisoformat(price.source_date) for price in prices)


def test_what_says_that_longer_prompts_cost_more_than_it_knows_is_another_version() -> None:
    (before,), (after,) = listed(entry()), listed(entry(longer_unpriced=True))
    assert (before.longer_unpriced, after.longer_unpriced) == (False, True)
    assert before.id != after.id


def test_of_the_shipped_models_gpt_6_2_alone_has_prompts_without_a_price() -> None:
    unpriced = {price.model: price.context_tokens for price in parse(SHIPPED, 1) if price.longer_unpriced}
    assert unpriced == {"gpt-6.2-astra": 272_000, "gpt-6.2-sol": 272_000}


def test_a_long_prompt_of_a_shipped_model_costs_what_its_vendor_states() -> None:
    prices = {price.model: price for price in parse(SHIPPED, 1)}
    haiku, sol = prices["claude-haiku-5-5"], prices["gpt-6.1-sol"]
    assert (haiku.tier(100_000).rates.input, haiku.tier(100_001).rates.input) == (100_000, 500_000)
    assert (sol.tier(272_000).rates.output, sol.tier(272_001).rates.output) == (10_000_000, 15_000_000)


def test_anthropics_caches_cost_what_those_of_5_minutes_do() -> None:
    rates = [
        rates
        for price in parse(SHIPPED, 100)
        if price.provider == "anthropic"
        for rates in (price.rates, *(tier.rates for tier in price.tiers))
    ]
    assert len(rates) > 1
    assert [rate.cache_write * 4 for rate in rates] == [rate.input * 5 for rate in rates]


def test_a_price_keeps_its_id_until_something_that_it_says_is_edited() -> None:
    first = listed(entry())[0]
    assert first == listed(entry())[0]
    assert first.id.startswith("openai/gpt-own@2026-11-01.")
    edits: list[dict[str, Any]] = [
        {"usd_per_mtok": DOLLARS | {"output": "11"}},
        {"usd_per_mtok": DOLLARS | {"reasoning": "11"}},
        {"tiers": [LONG]},
        {"request_micros": 1},
        {"context_tokens": 999_999},
        {"source": "our new contract"},
        {"source_date": "2026-11-02"},
    ]
    ids = {first.id, listed(entry(), credits_per_usd=1)[0].id, *(listed(entry(**edit))[0].id for edit in edits)}
    assert len(ids) == len(edits) + 2


def test_the_mock_models_cost_what_the_documentation_says() -> None:
    prices = {price.route: price for price in parse(SHIPPED, 100)}
    model, flat = prices["mock/mock-model"], prices["mock/mock-flat"]
    assert (model.rates.input, model.rates.output, model.request_micros) == (100_000_000, 200_000_000, 0)
    assert (flat.rates.input, flat.rates.output, flat.request_micros) == (0, 0, 1_000_000)


@pytest.mark.parametrize("usd", ["0.1", "0.10", 0.1])
def test_a_number_of_dollars_is_read_as_it_is_written(usd: object) -> None:
    assert listed(entry(usd_per_mtok=DOLLARS | {"input": usd}))[0].rates.input == 10_000_000


def test_reasoning_costs_what_output_does_unless_the_list_says_otherwise() -> None:
    assert listed(entry())[0].rates.reasoning == 10 * 10**8
    assert listed(entry(usd_per_mtok=DOLLARS | {"reasoning": 3}))[0].rates.reasoning == 3 * 10**8


def test_an_operators_prices_add_models_and_stand_in_for_shipped_ones() -> None:
    shipped, own = listed(entry(model="a"), entry(model="b")), listed(entry(model="b", source="ours"), entry(model="c"))
    assert {price.model: price.source for price in laid_over(shipped, own)} == {
        "a": "our contract",
        "b": "ours",
        "c": "our contract",
    }


BAD: list[tuple[dict[str, Any], str]] = [
    *[
        ({"usd_per_mtok": DOLLARS | {"input": usd}}, problem)
        for usd, problem in [
            ("0.0000000001", "not whole micro-credits"),
            ("0.10000000000000000000000000000001", "no number of dollars"),
            ("-1", "no number of dollars"),
            (-1, "no number of dollars"),
            ("Infinity", "no number of dollars"),
            (float("nan"), "no number of dollars"),
            ("1e999999999", "no number of dollars"),
            ("eight", "no number of dollars"),
            (True, "no number of dollars"),
            ([], "no number of dollars"),
            ("999999999", "are above"),
            (None, "input is missing"),
        ]
    ],
    ({"usd_per_mtok": DOLLARS | {"cached_imput": "1"}}, "cached_imput is no class of tokens"),
    ({"usd_per_mtok": None}, "rates must be given as one of"),
    ({"micros_per_mtok": {}}, "rates must be given as one of"),
    ({"usd_per_mtok": None, "micros_per_mtok": {**dict.fromkeys(DOLLARS, 1), "input": RATE_MAX + 1}}, "input must be"),
    ({"usd_per_mtok": None, "micros_per_mtok": dict.fromkeys(DOLLARS, "1")}, "must be a whole number"),
    ({"model": "a,b"}, "names have"),
    ({"context_tokens": None}, "context_tokens is missing"),
    ({"context_tokens": 0}, "context_tokens must be"),
    ({"context_tokens": 10_000_001}, "context_tokens must be"),
    ({"output_tokens_max": 1.5}, "output_tokens_max must be"),
    ({"output_tokens_max": True}, "output_tokens_max must be"),
    ({"request_micros": -1}, "request_micros must be"),
    ({"request_micro": 1}, "request_micro is not known here"),
    ({"source": None}, "source must say"),
    ({"source": ""}, "source must say"),
    ({"source_date": None}, "source_date must say"),
    ({"source_date": "yesterday"}, "source_date must say"),
    ({"tiers": {}}, "tiers must be"),
    ({"tiers": [LONG | {"above_tokens": number} for number in range(1, 6)]}, "at most 4"),
    ({"tiers": [LONG, LONG]}, "above_tokens must be a whole number from 200001"),
    ({"tiers": [LONG | {"above_tokens": 0}]}, "above_tokens must be a whole number from 1"),
    ({"tiers": [{"above_tokens": 5}]}, "rates must be given as one of"),
    ({"tiers": [LONG | {"from": 5}]}, "and nothing else"),
    ({"tiers": [7]}, "and nothing else"),
    ({"tiers": [LONG | {"above_tokens": 1_000_000}]}, "begins where the context ends"),
]


@pytest.mark.parametrize(("changes", "problem"), BAD)
def test_a_bad_price_is_refused_with_its_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadPriceList) as refused:
        listed(entry(**changes))
    assert str(refused.value).startswith("openai/")
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON"),
        ('{"models": [', "is no JSON"),
        ("[]", "models must be a list"),
        ('{"models": {}}', "models must be a list"),
        ('{"models": []}', "models must be a list of 1"),
        (json.dumps({"models": [{}] * 2_001}), "1 to 2000"),
        ('{"models": [7]}', "models[0]: provider or model is missing"),
        (json.dumps({"models": [entry(), entry(provider=None)]}), "models[1]: provider or model is missing"),
        (json.dumps({"models": [entry(), entry(source="x")]}), "openai/gpt-own: stands twice"),
    ],
)
def test_what_is_no_list_of_prices_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadPriceList) as refused:
        parse(text, 100)
    assert problem in str(refused.value)


def test_more_models_than_can_be_listed_are_refused_whichever_list_they_come_from() -> None:
    shipped = listed(*(entry(model=f"m{number}") for number in range(1_500)))
    with pytest.raises(BadPriceList, match="more than 2000"):
        laid_over(shipped, listed(*(entry(model=f"n{number}") for number in range(501))))
