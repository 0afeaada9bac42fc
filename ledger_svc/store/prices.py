"""Prices, version by version, and what a charge is recomputed from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from ledger_svc.pricing import Price, Rates, Tier
from mesh.db import Database, Row

PRICES_LOCK = 7102  # advisory: replicas that start at once take turns
IN_FORCE_MAX = 2_000
TIER_NUMBERS = 6
RATE_COLUMNS = (
    "input_micros_per_mtok, cached_input_micros_per_mtok, cache_write_micros_per_mtok, output_micros_per_mtok, "
    "reasoning_micros_per_mtok"
)
TERMS = (
    f"{RATE_COLUMNS}, tiers, request_micros, context_tokens, longer_unpriced, output_tokens_max, source, source_date"
)
COLUMNS = f"id, provider, model, {TERMS}"
NEWEST = (
    f"SELECT DISTINCT ON (provider, model) {COLUMNS}, withdrawn FROM prices "  # noqa: S608  # our own column names
    "ORDER BY provider, model, ordinal DESC"
)


async def put(db: Database, prices: Sequence[Price]) -> None:
    """Put these prices in force and end those of every other model; what is in force already stays as it is.

    What comes back after another version, or after a withdrawal, is a version of its own: its id has a number more.
    """
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock($1, 0)", PRICES_LOCK)
        await tx.executemany(
            f"""
            INSERT INTO prices ({COLUMNS})
            SELECT $1::text || CASE WHEN before.times = 0 THEN '' ELSE '#' || before.times + 1 END,
                   $2, $3, $4, $5, $6, $7, $8, $9::bigint[], $10, $11, $12, $13, $14, $15
              FROM (SELECT count(*) AS times FROM prices
                     WHERE provider = $2 AND model = $3 AND split_part(id, '#', 1) = $1) before
             WHERE $1 IS DISTINCT FROM (SELECT split_part(id, '#', 1) FROM prices
                                         WHERE provider = $2 AND model = $3 ORDER BY ordinal DESC LIMIT 1)
            """,  # noqa: S608  # our own column names
            [_values(price) for price in prices],
        )
        await tx.execute(
            f"""
            INSERT INTO prices ({COLUMNS}, withdrawn)
            SELECT provider || '/' || model || '@withdrawn'
                     || CASE WHEN before.times = 0 THEN '' ELSE '#' || before.times + 1 END,
                   provider, model, {TERMS}, true
              FROM ({NEWEST}) newest
             CROSS JOIN LATERAL (SELECT count(*) AS times FROM prices x
                                  WHERE x.provider = newest.provider AND x.model = newest.model AND x.withdrawn) before
             WHERE NOT withdrawn AND provider || '/' || model <> ALL ($1)
            """,  # noqa: S608
            [price.route for price in prices],
        )


async def in_force(db: Database) -> list[Price]:
    """Return the newest price of each model that was not withdrawn, at most 2,000."""
    rows = await db.rows(
        f"SELECT {COLUMNS} FROM ({NEWEST}) newest WHERE NOT withdrawn ORDER BY provider, model LIMIT $1",  # noqa: S608
        IN_FORCE_MAX,
    )
    return [_price(row) for row in rows]


async def version(db: Database, price_id: str) -> Price | None:
    """Return one version for ever."""
    row = await db.row(f"SELECT {COLUMNS} FROM prices WHERE id = $1", price_id)  # noqa: S608
    return _price(row) if row else None


async def default_route(db: Database, organization_id: str) -> str:
    """Return the provider/model whose price an organization's unknown models have; empty where they have none."""
    route: str | None = await db.value(
        "SELECT default_price FROM rules WHERE organization_id = $1 ORDER BY version DESC LIMIT 1", organization_id
    )
    return route or ""


async def completion(db: Database, organization_id: str, request_id: str) -> Row | None:
    """Return what a completion used and was charged."""
    return await db.row(
        """
        SELECT request_id, provider, model, price_id, outcome, input_tokens, cached_input_tokens, cache_write_tokens,
               output_tokens, reasoning_tokens, charged_micros, ceiling_micros, breach_micros
          FROM usage WHERE organization_id = $1 AND request_id = $2
        """,
        organization_id,
        request_id,
    )


def _values(price: Price) -> tuple[object, ...]:
    tiers = [number for tier in price.tiers for number in (tier.above_tokens, *_numbers(tier.rates))]
    return (
        price.id,
        price.provider,
        price.model,
        *_numbers(price.rates),
        tiers,
        price.request_micros,
        price.context_tokens,
        price.longer_unpriced,
        price.output_tokens_max,
        price.source,
        date.fromisoformat(price.source_date),
    )


def _numbers(rates: Rates) -> tuple[int, ...]:
    return rates.input, rates.cached_input, rates.cache_write, rates.output, rates.reasoning


def _price(row: Row) -> Price:
    tiers: list[int] = row["tiers"]
    return Price(
        id=row["id"],
        provider=row["provider"],
        model=row["model"],
        rates=Rates(*(row[name] for name in RATE_COLUMNS.split(", "))),
        request_micros=row["request_micros"],
        context_tokens=row["context_tokens"],
        longer_unpriced=row["longer_unpriced"],
        output_tokens_max=row["output_tokens_max"],
        source=row["source"],
        source_date=row["source_date"].isoformat(),
        tiers=tuple(
            Tier(tiers[start], Rates(*tiers[start + 1 : start + TIER_NUMBERS]))
            for start in range(0, len(tiers), TIER_NUMBERS)
        ),
    )
