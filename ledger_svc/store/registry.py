"""What identity told the ledger, and the prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from ledger_svc.pricing import Price
from mesh.db import Database, Row

PRICES_LOCK = 7102  # advisory: replicas that start at once take turns
PRICE_COLUMNS = (
    "id, provider, model, input_micros_per_mtok, cached_input_micros_per_mtok, cache_write_micros_per_mtok, "
    "output_micros_per_mtok, reasoning_micros_per_mtok, request_micros, context_tokens, output_tokens_max, "
    "source, source_date"
)


@dataclass(frozen=True, slots=True)
class NodeFact:
    """Where a node stands as of a version."""

    id: str
    organization_id: str
    path: tuple[str, ...]
    path_version: int


async def put_nodes(db: Database, nodes: Sequence[NodeFact]) -> None:
    """Record facts; one already known is left as it is. A new organization's wallet is opened with its node."""
    async with db.transaction() as tx:
        await tx.executemany(
            "INSERT INTO nodes (id, path_version, organization_id, path) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING",
            sorted((node.id, node.path_version, node.organization_id, list(node.path)) for node in nodes),
        )
        for organization_id in sorted({node.organization_id for node in nodes if node.id == node.organization_id}):
            await tx.execute("SELECT lock_organization($1)", organization_id)
            await tx.execute("SELECT account_of($1, 'wallet')", organization_id)


async def organization_of(db: Database, object_id: str) -> str | None:
    """Return the organization that a node or budget belongs to."""
    organization_id: str | None = await db.value(
        """
        SELECT organization_id FROM nodes WHERE id = $1
        UNION ALL
        SELECT organization_id FROM budgets WHERE id = $1
        LIMIT 1
        """,
        object_id,
    )
    return organization_id


async def put_keys(db: Database, keys: Sequence[tuple[str, str]]) -> None:
    """Record public keys as (key id, JSON Web Key)."""
    async with db.transaction() as tx:
        await tx.executemany(
            "INSERT INTO verification_keys (key_id, jwk) VALUES ($1, $2) ON CONFLICT (key_id) DO NOTHING", list(keys)
        )


async def jwk_of(db: Database, key_id: str) -> str | None:
    """Return a public key by its id."""
    jwk: str | None = await db.value("SELECT jwk FROM verification_keys WHERE key_id = $1", key_id)
    return jwk


async def put_prices(db: Database, prices: Sequence[Price]) -> None:
    """Put prices in force that are not; a price that was in force once before comes back as a version of its own."""
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock($1, 0)", PRICES_LOCK)
        await tx.executemany(
            f"""
            INSERT INTO prices ({PRICE_COLUMNS})
            SELECT $1::text || CASE WHEN before.times = 0 THEN '' ELSE '#' || before.times + 1 END,
                   $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
              FROM (SELECT count(*) AS times FROM prices
                     WHERE provider = $2 AND model = $3 AND split_part(id, '#', 1) = $1) before
             WHERE $1 IS DISTINCT FROM (SELECT split_part(id, '#', 1) FROM prices
                                         WHERE provider = $2 AND model = $3 ORDER BY ordinal DESC LIMIT 1)
            """,  # noqa: S608  # our own column names
            [_price_values(price) for price in prices],
        )


async def prices_in_force(db: Database) -> list[Price]:
    """Return the newest price of each model, at most 2,000."""
    rows = await db.rows(
        f"SELECT DISTINCT ON (provider, model) {PRICE_COLUMNS} FROM prices "  # noqa: S608
        "ORDER BY provider, model, ordinal DESC LIMIT 2000"
    )
    return [_price(row) for row in rows]


async def price_of(db: Database, price_id: str) -> Price | None:
    """Return one price for ever."""
    row = await db.row(f"SELECT {PRICE_COLUMNS} FROM prices WHERE id = $1", price_id)  # noqa: S608
    return _price(row) if row else None


def _price_values(price: Price) -> tuple[object, ...]:
    return (
        price.id,
        price.provider,
        price.model,
        price.input_rate,
        price.cached_input_rate,
        price.cache_write_rate,
        price.output_rate,
        price.reasoning_rate,
        price.request_micros,
        price.context_tokens,
        price.output_tokens_max,
        price.source,
        date.fromisoformat(price.source_date),
    )


def _price(row: Row) -> Price:
    return Price(
        id=row["id"],
        provider=row["provider"],
        model=row["model"],
        input_rate=row["input_micros_per_mtok"],
        cached_input_rate=row["cached_input_micros_per_mtok"],
        cache_write_rate=row["cache_write_micros_per_mtok"],
        output_rate=row["output_micros_per_mtok"],
        reasoning_rate=row["reasoning_micros_per_mtok"],
        request_micros=row["request_micros"],
        context_tokens=row["context_tokens"],
        output_tokens_max=row["output_tokens_max"],
        source=row["source"],
        source_date=row["source_date"].isoformat(),
    )
