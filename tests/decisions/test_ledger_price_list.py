from __future__ import annotations

import json
from collections.abc import Callable
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


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(SHIPPED)
    document["models"] = document["models"][:1]
    change(document["models"][0])
    return json.dumps(document)


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
    ("change", "problem"),
    [
        (lambda entry: entry["usd_per_mtok"].update(input="0.0000001"), "not whole micro-credits"),
        (lambda entry: entry["usd_per_mtok"].update(input="-1"), "not whole micro-credits"),
        (lambda entry: entry["usd_per_mtok"].update(input="Infinity"), "not whole micro-credits"),
        (lambda entry: entry["usd_per_mtok"].update(input="NaN"), "not whole micro-credits"),
        (lambda entry: entry["usd_per_mtok"].update(input="eight"), "no number of dollars"),
        (lambda entry: entry["usd_per_mtok"].pop("cache_write"), "cache_write is missing"),
        (lambda entry: entry.pop("context_tokens"), "context_tokens is missing"),
        (lambda entry: entry.update(source=""), "no source or date"),
        (lambda entry: entry.pop("source_date"), "no source or date"),
        (lambda entry: entry.update(model="a,b"), "must not hold"),
    ],
)
def test_a_bad_price_is_refused_by_the_name_of_its_model(change: Callable[[dict[str, Any]], object], problem: str) -> None:
    with pytest.raises(BadPriceList, match=rf"^openai/.*{problem}"):
        parse(changed(change), 1)


def test_a_model_that_stands_twice_is_refused() -> None:
    document = json.loads(SHIPPED)
    document["models"].append(document["models"][0])
    with pytest.raises(BadPriceList, match="twice"):
        parse(json.dumps(document), 100)
