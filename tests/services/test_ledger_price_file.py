from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger_svc import price_list
from ledger_svc.__main__ import PRICES, prices_of
from ledger_svc.pricing import Price
from ledger_svc.settings import LedgerSettings
from mesh.secret import Secret
from mesh.settings import SettingsError

SOL, HAIKU = "openai/gpt-6-sol", "anthropic/claude-haiku-5-5"
CREDIT = 1_000_000


def shipped(credits_per_usd: int = 100) -> list[Price]:
    return price_list.parse(PRICES.read_text(encoding="utf-8"), credits_per_usd)


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., LedgerSettings]:
    """Build settings with an operator's own list."""

    def build(text: str | bytes | None, credits_per_usd: int = 100) -> LedgerSettings:
        path = tmp_path / "own.json"
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return LedgerSettings(database_url=Secret(""), credits_per_usd=credits_per_usd, prices_file=path)

    return build


def entry(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "provider": "openai",
        "model": "gpt-6-sol",
        "usd_per_mtok": {"input": "1", "cached_input": "1", "cache_write": "1", "output": "9"},
        "context_tokens": 1_000,
        "output_tokens_max": 1_000,
        "source": "our contract",
        "source_date": "2026-11-01",
    }
    return values | changes


def test_an_operators_own_list_adds_models_and_overrides_shipped_ones(own: Callable[..., LedgerSettings]) -> None:
    text = json.dumps({"models": [entry(), entry(provider="local", model="llama")]})
    listed = {price.route: price for price in prices_of(own(text, 10))}
    assert {price.route for price in shipped()} | {"local/llama"} == set(listed)
    assert (listed[SOL].rates.output, listed[SOL].tiers, listed[HAIKU]) == (
        90 * CREDIT,
        (),
        next(price for price in shipped(10) if price.route == HAIKU),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        (b"\xff", "does not hold text in UTF-8"),
        ("{", "is no JSON"),
        ('{"models": []}', "models must be a list"),
        (json.dumps({"models": [entry(source="")]}), "openai/gpt-6-sol: source must say"),
        (json.dumps({"models": [entry(usd_per_mtok={"input": 1})]}), "openai/gpt-6-sol: cached_input is missing"),
    ],
)
def test_a_bad_list_of_the_operators_stops_the_start_and_names_the_model(
    own: Callable[..., LedgerSettings], text: str | bytes | None, problem: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        prices_of(own(text))
    assert refused.value.name == "MANDATE_LEDGER_PRICES_FILE"
    assert problem in str(refused.value)
