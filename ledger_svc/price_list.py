"""Read lists of prices: the shipped one, and an operator's own over it. Pure.

US dollars become micro-credits exactly, or the list is refused. A price's id is made from all that it says, so that
whatever is edited is a new version, and what is not stays the version it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from decimal import Decimal
from typing import Any

from ledger_svc.pricing import (
    RATE_MAX,
    REQUEST_MICROS_MAX,
    TIERS_MAX,
    TOKENS_MAX,
    Price,
    Rates,
    Tier,
    is_route,
)

MICROS_PER_CREDIT = 1_000_000
MODELS_MAX = 2_000
SOURCE_MAX = 500
DIGEST_LENGTH = 12
CLASSES = ("input", "cached_input", "cache_write", "output", "reasoning")
UNITS = ("usd_per_mtok", "micros_per_mtok")
LIMITS = ("request_micros", "context_tokens", "output_tokens_max")
FIELDS = frozenset((*UNITS, *LIMITS, "provider", "model", "tiers", "longer_unpriced", "source", "source_date"))
DOLLARS = re.compile(r"\d{1,9}(\.\d{1,12})?")  # few enough digits for Decimal to be exact
Entry = Mapping[str, Any]


class BadPriceList(Exception):
    """The list names a price that is not exact, not sourced or not there; the text names the model."""


def parse(text: str, credits_per_usd: int) -> list[Price]:
    """Return the prices of a list of 1 to 2,000 models."""
    try:
        document = json.loads(text, parse_float=str, parse_constant=str)
    except ValueError as problem:
        raise BadPriceList(f"is no JSON: {problem}") from None
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MODELS_MAX:
        raise BadPriceList(f"models must be a list of 1 to {MODELS_MAX}")
    prices = [_checked(entry, place, credits_per_usd) for place, entry in enumerate(entries)]
    routes = {price.route: price for price in prices}
    for price in prices:
        if routes[price.route] is not price:
            raise BadPriceList(f"{price.route}: stands twice in the list")
    return prices


def laid_over(shipped: Sequence[Price], own: Sequence[Price]) -> list[Price]:
    """Return the shipped prices with an operator's own added, or in their place where the model is the same."""
    merged = {price.route: price for price in (*shipped, *own)}
    if len(merged) > MODELS_MAX:
        raise BadPriceList(f"there are more than {MODELS_MAX} models with the shipped ones")
    return list(merged.values())


def _checked(entry: Any, place: int, credits_per_usd: int) -> Price:
    provider, model = (entry.get("provider"), entry.get("model")) if isinstance(entry, dict) else (None, None)
    if not isinstance(provider, str) or not isinstance(model, str):
        raise BadPriceList(f"models[{place}]: provider or model is missing")
    try:
        return _price(provider, model, entry, credits_per_usd)
    except BadPriceList as problem:
        raise BadPriceList(f"{provider}/{model}: {problem}") from None


def _price(provider: str, model: str, entry: Entry, credits_per_usd: int) -> Price:
    if not is_route(provider, model):
        raise BadPriceList("names have 1 to 100 characters, none of them , # @ or a space; a provider's no /")
    if unknown := sorted(entry.keys() - FIELDS):
        raise BadPriceList(f"{unknown[0]} is not known here")
    price = Price(
        id="",
        provider=provider,
        model=model,
        rates=_rates(entry, credits_per_usd),
        request_micros=_whole(entry, "request_micros", 0, REQUEST_MICROS_MAX) if "request_micros" in entry else 0,
        context_tokens=_whole(entry, "context_tokens", 1, TOKENS_MAX),
        output_tokens_max=_whole(entry, "output_tokens_max", 1, TOKENS_MAX),
        source=_source(entry),
        source_date=_source_date(entry),
        tiers=_tiers(entry.get("tiers", []), credits_per_usd),
        longer_unpriced=_truth(entry.get("longer_unpriced", False), "longer_unpriced"),
    )
    if price.tiers and price.tiers[-1].above_tokens >= price.context_tokens:
        raise BadPriceList("tiers: the last one begins where the context ends")
    said = json.dumps(asdict(price), sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:DIGEST_LENGTH]
    return replace(price, id=f"{price.route}@{price.source_date}.{digest}")


def _tiers(entries: Any, credits_per_usd: int) -> tuple[Tier, ...]:
    if not isinstance(entries, list) or len(entries) > TIERS_MAX:
        raise BadPriceList(f"tiers must be a list of at most {TIERS_MAX}")
    tiers: list[Tier] = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() - {*UNITS, "above_tokens"}:
            raise BadPriceList("tiers: each holds above_tokens and its rates, and nothing else")
        above = _whole(entry, "above_tokens", tiers[-1].above_tokens + 1 if tiers else 1, TOKENS_MAX)
        tiers.append(Tier(above, _rates(entry, credits_per_usd)))
    return tuple(tiers)


def _rates(entry: Entry, credits_per_usd: int) -> Rates:
    units = [unit for unit in UNITS if unit in entry]
    if len(units) != 1 or not isinstance(entry[units[0]], dict):
        raise BadPriceList(f"rates must be given as one of {' and '.join(UNITS)}")
    given: dict[str, Any] = entry[units[0]]
    if unknown := sorted(given.keys() - set(CLASSES)):
        raise BadPriceList(f"{unknown[0]} is no class of tokens")
    said = {"reasoning": given.get("output"), **given}
    if missing := [kind for kind in CLASSES if said.get(kind) is None]:
        raise BadPriceList(f"{missing[0]} is missing")
    if units == ["micros_per_mtok"]:
        return Rates(**{kind: _whole(said, kind, 0, RATE_MAX) for kind in CLASSES})
    return Rates(**{kind: _micros(said[kind], credits_per_usd) for kind in CLASSES})


def _micros(usd: Any, credits_per_usd: int) -> int:
    if isinstance(usd, bool) or not isinstance(usd, str | int) or not DOLLARS.fullmatch(str(usd)):
        raise BadPriceList(f"{usd!r} is no number of dollars")
    micros = Decimal(usd) * credits_per_usd * MICROS_PER_CREDIT
    if micros != micros.to_integral_value():
        raise BadPriceList(f"{usd} dollars are not whole micro-credits")
    if micros > RATE_MAX:
        raise BadPriceList(f"{usd} dollars are above {RATE_MAX} micro-credits")
    return int(micros)


def _whole(entry: Entry, name: str, least: int, most: int) -> int:
    value = entry.get(name)
    if value is None:
        raise BadPriceList(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadPriceList(f"{name} must be a whole number from {least} to {most}")
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadPriceList(f"{name} must be true or false")
    return value


def _source(entry: Entry) -> str:
    source = entry.get("source")
    if not isinstance(source, str) or not 1 <= len(source) <= SOURCE_MAX or not source.isprintable():
        raise BadPriceList(f"source must say in 1 to {SOURCE_MAX} characters where the price is published")
    return source


def _source_date(entry: Entry) -> str:
    try:
        return date.fromisoformat(entry["source_date"]).isoformat()
    except (KeyError, TypeError, ValueError):
        raise BadPriceList("source_date must say as YYYY-MM-DD when it was read") from None
