"""Routes as they are kept, each with its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from gateway_svc.routing import Alias, Limits, Target
from gateway_svc.store import change_log
from mesh.db import Connection, Database, Row

ROUTES_MAX = 100  # of one organization, in force

# ruff: noqa: S608  # only WHOLE and LATEST are ever put into a statement
WHOLE = """
SELECT r.id, r.organization_id, r.alias, r.created_at, r.updated_at, r.removed_at,
       array_agg(t.provider ORDER BY t.place) AS providers,
       array_agg(t.model ORDER BY t.place) AS models,
       array_agg(t.weight ORDER BY t.place) AS weights,
       array_agg(t.tier ORDER BY t.place) AS tiers,
       array_agg(t.context_tokens ORDER BY t.place) AS context_tokens,
       array_agg(t.output_tokens_max ORDER BY t.place) AS output_tokens_max
  FROM routes r JOIN route_targets t ON t.route_id = r.id
"""
ONE = f"{WHOLE} WHERE r.id = $1 GROUP BY r.id"
IN_FORCE = f"""
WITH found AS ({WHOLE} WHERE r.organization_id = $1 AND r.removed_at IS NULL GROUP BY r.id ORDER BY r.id LIMIT $2)
SELECT {change_log.LATEST} AS revision, found.* FROM (VALUES (true)) AS always LEFT JOIN found ON true
"""
PAGE = f"""
{WHOLE} WHERE r.id IN (SELECT id FROM routes WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3)
GROUP BY r.id ORDER BY r.id
"""
ADD = "INSERT INTO routes (id, organization_id, alias) VALUES ($1, $2, $3)"
RENAME = "UPDATE routes SET alias = $2, updated_at = clock_timestamp() WHERE id = $1"
REMOVE = "UPDATE routes SET removed_at = clock_timestamp() WHERE id = $1 AND removed_at IS NULL"
ADD_TARGETS = """
INSERT INTO route_targets (route_id, place, provider, model, weight, tier, context_tokens, output_tokens_max)
SELECT $1, place, provider, model, weight, tier, context_tokens, output_tokens_max
  FROM unnest($2::text[], $3::text[], $4::smallint[], $5::smallint[], $6::bigint[], $7::bigint[])
       WITH ORDINALITY AS t (provider, model, weight, tier, context_tokens, output_tokens_max, place)
"""


@dataclass(frozen=True, slots=True)
class StoredRoute:
    """A route as it stands in its tables."""

    id: str
    organization_id: str
    alias: str
    targets: tuple[Target, ...]
    created_at: datetime
    updated_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True, slots=True)
class InForce:
    """An organization's aliases, as they were when `revision` was the latest change."""

    revision: int
    aliases: tuple[Alias, ...]


async def lock(tx: Connection, organization_id: str) -> None:
    """Keep everybody else from changing an organization's routes until the transaction ends."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 4))", organization_id)


async def lock_of(tx: Connection, route_id: str) -> StoredRoute | None:
    """Return a route, in force or not, that nobody else changes until the transaction ends."""
    organization_id: str | None = await tx.fetchval("SELECT organization_id FROM routes WHERE id = $1", route_id)
    if organization_id is None:
        return None
    await lock(tx, organization_id)
    return await find(tx, route_id)


async def count(tx: Connection, organization_id: str) -> int:
    """Count an organization's routes in force."""
    query = "SELECT count(*) FROM routes WHERE organization_id = $1 AND removed_at IS NULL"
    return cast("int", await tx.fetchval(query, organization_id))


async def holder(tx: Connection, organization_id: str, alias: str) -> str | None:
    """Return the route in force that has an alias."""
    query = "SELECT id FROM routes WHERE organization_id = $1 AND alias = $2 AND removed_at IS NULL"
    return cast("str | None", await tx.fetchval(query, organization_id, alias))


async def find(tx: Connection, route_id: str) -> StoredRoute | None:
    """Return a route, in force or not."""
    row = await tx.fetchrow(ONE, route_id)
    return None if row is None else _route(row)


async def add(tx: Connection, route: Alias, organization_id: str) -> None:
    """Write a new route."""
    await tx.execute(ADD, route.route_id, organization_id, route.name)
    await _add_targets(tx, route.route_id, route.targets)
    await change_log.record(tx, change_log.routes_of(organization_id))


async def change(tx: Connection, route: Alias, organization_id: str) -> None:
    """Give a route in force the alias and the targets that it is to have."""
    await tx.execute(RENAME, route.route_id, route.name)
    await tx.execute("DELETE FROM route_targets WHERE route_id = $1", route.route_id)
    await _add_targets(tx, route.route_id, route.targets)
    await change_log.record(tx, change_log.routes_of(organization_id))


async def remove(tx: Connection, route_id: str, organization_id: str) -> None:
    """End a route; one that has ended keeps the time at which it did."""
    await tx.execute(REMOVE, route_id)
    await change_log.record(tx, change_log.routes_of(organization_id))


async def in_force(db: Database, organization_id: str) -> InForce:
    """Return what an organization's aliases stand for."""
    rows = await db.rows(IN_FORCE, organization_id, ROUTES_MAX)
    aliases = tuple(Alias(row["id"], row["alias"], _targets(row)) for row in rows if row["id"] is not None)
    return InForce(rows[0]["revision"], aliases)


async def page(db: Database, organization_id: str, after: str, limit: int) -> list[StoredRoute]:
    """Return an organization's routes with ids after `after`, oldest first."""
    return [_route(row) for row in await db.rows(PAGE, organization_id, after, limit)]


async def organization_of(db: Database, route_id: str) -> str | None:
    """Return whose route it is."""
    query = "SELECT organization_id FROM routes WHERE id = $1"
    return cast("str | None", await db.value(query, route_id))


async def _add_targets(tx: Connection, route_id: str, targets: Sequence[Target]) -> None:
    limits = [target.limits for target in targets]
    await tx.execute(
        ADD_TARGETS,
        route_id,
        [target.provider for target in targets],
        [target.model for target in targets],
        [target.weight for target in targets],
        [target.tier for target in targets],
        [None if each is None else each.context_tokens for each in limits],
        [None if each is None else each.output_tokens_max for each in limits],
    )


def _route(row: Row) -> StoredRoute:
    return StoredRoute(
        id=row["id"],
        organization_id=row["organization_id"],
        alias=row["alias"],
        targets=_targets(row),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        removed_at=row["removed_at"],
    )


def _targets(row: Row) -> tuple[Target, ...]:
    columns = ("providers", "models", "weights", "tiers", "context_tokens", "output_tokens_max")
    return tuple(
        Target(provider, model, weight, tier, None if context is None else Limits(context, output))
        for provider, model, weight, tier, context, output in zip(*(row[name] for name in columns), strict=True)
    )
