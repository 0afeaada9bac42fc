from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from ledger_svc.__main__ import PRICES
from ledger_svc.price_list import BadPriceList, parse

SHIPPED = PRICES.read_text()
RATES = {
    "input": "input_rate",
    "cached_input": "cached_input_rate",
    "cache_write": "cache_write_rate",
    "output": "output_rate",
}


@pytest.mark.parametrize("credits_per_usd", [1, 100, 10_000])
def test_the_shipped_list_is_exact_at_every_exchange_rate(credits_per_usd: int) -> None:
    prices = {price.route: price for price in parse(SHIPPED, credits_per_usd)}
    dollars = [entry for entry in json.loads(SHIPPED)["models"] if "usd_per_mtok" in entry]
    assert len(dollars) > 5
    for entry in dollars:
        price = prices[f"{entry['provider']}/{entry['model']}"]
        for kind, name in RATES.items():
            assert Decimal(getattr(price, name)) == Decimal(entry["usd_per_mtok"][kind]) * credits_per_usd * 10**6


def test_every_shipped_price_says_where_and_when_it_was_read() -> None:
    prices = parse(SHIPPED, 100)
    assert all(price.source and date.fromisoformat(price.source_date) for price in prices)


def test_another_exchange_rate_gives_every_price_another_id() -> None:
    assert not {price.id for price in parse(SHIPPED, 1)} & {price.id for price in parse(SHIPPED, 100)}


def test_the_mock_models_cost_what_the_documentation_says() -> None:
    prices = {price.route: price for price in parse(SHIPPED, 100)}
    model, flat = prices["mock/mock-model"], prices["mock/mock-flat"]
    assert (model.input_rate, model.output_rate, model.request_micros) == (100_000_000, 200_000_000, 0)
    assert (flat.input_rate, flat.output_rate, flat.request_micros) == (0, 0, 1_000_000)


@pytest.mark.parametrize(
    ("part", "name", "value", "problem"),
    [
        ("usd_per_mtok", "input", "0.0000001", "not whole micro-credits"),
        ("usd_per_mtok", "input", "-1", "not whole micro-credits"),
        ("usd_per_mtok", "input", "Infinity", "not whole micro-credits"),
        ("usd_per_mtok", "input", "NaN", "not whole micro-credits"),
        ("usd_per_mtok", "input", "eight", "no number of dollars"),
        ("usd_per_mtok", "cache_write", None, "cache_write is missing"),
        ("", "context_tokens", None, "context_tokens is missing"),
        ("", "source", "", "no source or date"),
        ("", "source_date", None, "no source or date"),
        ("", "model", "a,b", "must not hold"),
    ],
)
def test_a_bad_price_is_refused_by_the_name_of_its_model(part: str, name: str, value: str | None, problem: str) -> None:
    document = json.loads(SHIPPED)
    entry = document["models"][0]
    values: dict[str, Any] = entry[part] if part else entry
    if value is None:
        del values[name]
    else:
        values[name] = value
    with pytest.raises(BadPriceList, match=rf"^openai/.*{problem}"):
        parse(json.dumps(document), 1)


def test_a_model_that_stands_twice_is_refused() -> None:
    document = json.loads(SHIPPED)
    document["models"].append(document["models"][0])
    with pytest.raises(BadPriceList, match="twice"):
        parse(json.dumps(document), 100)
