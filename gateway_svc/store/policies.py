"""Policies as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from gateway_svc.policies import Terms
from gateway_svc.store import change_log
from mesh.db import Connection, Database, Row

TARGETS_MAX = 4
POLICIES_PER_TARGET_MAX = 20

# ruff: noqa: S608  # only COLUMNS and LATEST are ever put into a statement
TERMS = """allowed_models, allowed_tools, allowed_endpoints, allowed_providers, max_tokens_per_request,
  requests_per_minute, tokens_per_minute, max_cost_micros_per_request, cut_abandoned_streams"""
COLUMNS = f"id, organization_id, target_id, name, {TERMS}, created_at, updated_at, removed_at"
ON_TARGETS = f"""
SELECT {change_log.LATEST} AS revision, {COLUMNS}
FROM (VALUES (true)) AS always LEFT JOIN policies ON target_id = ANY($1) AND removed_at IS NULL
ORDER BY id LIMIT $2
"""
PAGE = f"SELECT {COLUMNS} FROM policies WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3"
ADD = f"""
INSERT INTO policies (id, organization_id, target_id, name, {TERMS})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
RETURNING {COLUMNS}
"""
LOCKED = f"SELECT {COLUMNS} FROM policies WHERE id = $1 FOR UPDATE"
CHANGE = f"""
UPDATE policies SET name = $2, ({TERMS}) = ROW ($3, $4, $5, $6, $7, $8, $9, $10, $11), updated_at = clock_timestamp()
WHERE id = $1
RETURNING {COLUMNS}
"""
REMOVE = f"""
UPDATE policies SET removed_at = coalesce(removed_at, clock_timestamp()) WHERE id = $1
RETURNING {COLUMNS}
"""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy as it stands in the table."""

    id: str
    organization_id: str
    target_id: str
    name: str
    terms: Terms
    created_at: datetime
    updated_at: datetime | None
    removed_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy that is about to be added."""

    id: str
    organization_id: str
    target_id: str
    name: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class InForce:
    """The policies on some targets, as they were when `revision` was the latest change."""

    revision: int
    policies: tuple[StoredPolicy, ...]


async def in_force(db: Database, targets: Sequence[str]) -> InForce:
    """Return the policies in force on the levels of one path."""
    rows = await db.rows(ON_TARGETS, list(targets), TARGETS_MAX * POLICIES_PER_TARGET_MAX)
    return InForce(rows[0]["revision"], tuple(_policy(row) for row in rows if row["id"] is not None))


async def count_on(tx: Connection, target_id: str) -> int:
    """Count the policies in force on one target, whose number nobody else changes until the transaction ends."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", target_id)
    query = "SELECT count(*) FROM policies WHERE target_id = $1 AND removed_at IS NULL"
    return cast("int", await tx.fetchval(query, target_id))


async def add(tx: Connection, new: NewPolicy) -> StoredPolicy:
    """Write a policy."""
    row = await tx.fetchrow(ADD, new.id, new.organization_id, new.target_id, new.name, *_values(new.terms))
    return _policy(cast("Row", row))


async def locked(tx: Connection, policy_id: str) -> StoredPolicy | None:
    """Return a policy that nobody else changes until the transaction ends."""
    row = await tx.fetchrow(LOCKED, policy_id)
    return None if row is None else _policy(row)


async def change(tx: Connection, policy_id: str, name: str, terms: Terms) -> StoredPolicy:
    """Write a policy's new name and terms."""
    return _policy(cast("Row", await tx.fetchrow(CHANGE, policy_id, name, *_values(terms))))


async def remove(tx: Connection, policy_id: str) -> StoredPolicy | None:
    """End a policy; one that has ended keeps the time at which it did."""
    row = await tx.fetchrow(REMOVE, policy_id)
    return None if row is None else _policy(row)


async def page(db: Database, organization_id: str, after: str, limit: int) -> list[StoredPolicy]:
    """Return an organization's policies with ids after `after`, oldest first."""
    return [_policy(row) for row in await db.rows(PAGE, organization_id, after, limit)]


async def organization_of(db: Database, policy_id: str) -> str | None:
    """Return whose policy it is."""
    query = "SELECT organization_id FROM policies WHERE id = $1"
    return cast("str | None", await db.value(query, policy_id))


def _values(terms: Terms) -> tuple[object, ...]:
    """Return what stands in the columns of `TERMS`, in their order."""
    lists = (terms.allowed_models, terms.allowed_tools, terms.allowed_endpoints, terms.allowed_providers)
    return (
        *(None if names is None else list(names) for names in lists),
        terms.max_tokens_per_request,
        terms.requests_per_minute,
        terms.tokens_per_minute,
        terms.max_cost_micros_per_request,
        terms.cut_abandoned_streams,
    )


def _policy(row: Row) -> StoredPolicy:
    return StoredPolicy(
        id=row["id"],
        organization_id=row["organization_id"],
        target_id=row["target_id"],
        name=row["name"],
        terms=Terms(
            allowed_models=_names(row["allowed_models"]),
            allowed_tools=_names(row["allowed_tools"]),
            allowed_endpoints=_names(row["allowed_endpoints"]),
            allowed_providers=_names(row["allowed_providers"]),
            max_tokens_per_request=row["max_tokens_per_request"],
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            max_cost_micros_per_request=row["max_cost_micros_per_request"],
            cut_abandoned_streams=row["cut_abandoned_streams"],
        ),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        removed_at=row["removed_at"],
    )


def _names(column: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if column is None else tuple(column)
