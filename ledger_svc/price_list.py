"""Read the shipped price list into prices. Pure: US dollars become micro-credits exactly, or the list is refused."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from ledger_svc.pricing import Price

MICROS_PER_CREDIT = 1_000_000
SEPARATORS = frozenset(",#@")  # of routes and of price ids
CLASSES = ("input", "cached_input", "cache_write", "output")


class BadPriceList(Exception):
    """The list names a price that is not exact, not sourced or not there; the text names the model."""


def parse(text: str, credits_per_usd: int) -> list[Price]:
    """Return the prices of a list. A price's id changes with the list's version and with the exchange rate."""
    document: dict[str, Any] = json.loads(text)
    version = f"{document['version']}x{credits_per_usd}"
    prices = [_checked(entry, version, credits_per_usd) for entry in document["models"]]
    if len({price.route for price in prices}) != len(prices):
        raise BadPriceList("a model stands twice in the list")
    return prices


def _checked(entry: dict[str, Any], version: str, credits_per_usd: int) -> Price:
    try:
        return _price(entry, version, credits_per_usd)
    except KeyError as missing:
        name = f"{entry.get('provider')}/{entry.get('model')}"
        raise BadPriceList(f"{name}: {missing.args[0]} is missing") from None


def _price(entry: dict[str, Any], version: str, credits_per_usd: int) -> Price:
    name = f"{entry['provider']}/{entry['model']}"
    if SEPARATORS & set(name.partition("/")[2]):
        raise BadPriceList(f"{name}: a name must not hold any of {' '.join(sorted(SEPARATORS))}")
    if not entry.get("source") or not entry.get("source_date"):
        raise BadPriceList(f"{name}: no source or date")
    if "micros_per_mtok" in entry:
        rates = {kind: int(entry["micros_per_mtok"][kind]) for kind in CLASSES}
    else:
        rates = {kind: _micros(name, entry["usd_per_mtok"][kind], credits_per_usd) for kind in CLASSES}
    return Price(
        id=f"{name}@{version}",
        provider=entry["provider"],
        model=entry["model"],
        input_rate=rates["input"],
        cached_input_rate=rates["cached_input"],
        cache_write_rate=rates["cache_write"],
        output_rate=rates["output"],
        reasoning_rate=rates["output"],
        request_micros=int(entry.get("request_micros", 0)),
        context_tokens=int(entry["context_tokens"]),
        output_tokens_max=int(entry["output_tokens_max"]),
        source=entry["source"],
        source_date=entry["source_date"],
    )


def _micros(name: str, usd: str, credits_per_usd: int) -> int:
    try:
        micros = Decimal(usd) * credits_per_usd * MICROS_PER_CREDIT
    except InvalidOperation:
        raise BadPriceList(f"{name}: {usd!r} is no number of dollars") from None
    if not micros.is_finite() or micros != micros.to_integral_value() or micros < 0:
        raise BadPriceList(f"{name}: {usd} dollars are not whole micro-credits")
    return int(micros)
