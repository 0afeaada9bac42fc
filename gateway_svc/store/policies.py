"""Policies as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from gateway_svc.policies import Terms
from mesh.db import Connection, Database, Row

TARGETS_MAX = 4
POLICIES_PER_TARGET_MAX = 20

# ruff: noqa: S608  # only COLUMNS is ever put into a statement
COLUMNS = """id, organization_id, target_id, name, allowed_models, max_tokens_per_request, requests_per_minute,
  tokens_per_minute, created_at, removed_at"""
ON_TARGETS = f"SELECT {COLUMNS} FROM policies WHERE target_id = ANY($1) AND removed_at IS NULL ORDER BY id LIMIT $2"
PAGE = f"SELECT {COLUMNS} FROM policies WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3"
ADD = f"""
INSERT INTO policies (id, organization_id, target_id, name, allowed_models, max_tokens_per_request,
  requests_per_minute, tokens_per_minute)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
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
    removed_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy that is about to be added."""

    id: str
    organization_id: str
    target_id: str
    name: str
    terms: Terms


async def policies_on(db: Database, targets: Sequence[str]) -> list[StoredPolicy]:
    """Return the policies in force on the levels of one path."""
    rows = await db.rows(
        ON_TARGETS,
        list(targets),
        TARGETS_MAX * POLICIES_PER_TARGET_MAX,
    )
    return [_policy(row) for row in rows]


async def count_on(tx: Connection, target_id: str) -> int:
    """Count the policies in force on one target, whose number nobody else changes until the transaction ends."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", target_id)
    query = "SELECT count(*) FROM policies WHERE target_id = $1 AND removed_at IS NULL"
    return cast("int", await tx.fetchval(query, target_id))


async def add(tx: Connection, new: NewPolicy) -> StoredPolicy:
    """Write a policy."""
    row = await tx.fetchrow(
        ADD,
        new.id,
        new.organization_id,
        new.target_id,
        new.name,
        None if new.terms.allowed_models is None else list(new.terms.allowed_models),
        new.terms.max_tokens_per_request,
        new.terms.requests_per_minute,
        new.terms.tokens_per_minute,
    )
    return _policy(cast("Row", row))


async def remove(tx: Connection, policy_id: str) -> StoredPolicy | None:
    """End a policy; one that has ended keeps the time at which it did."""
    row = await tx.fetchrow(
        REMOVE,
        policy_id,
    )
    return None if row is None else _policy(row)


async def page(db: Database, organization_id: str, after: str, limit: int) -> list[StoredPolicy]:
    """Return an organization's policies with ids after `after`, oldest first."""
    rows = await db.rows(
        PAGE,
        organization_id,
        after,
        limit,
    )
    return [_policy(row) for row in rows]


async def organization_of(db: Database, policy_id: str) -> str | None:
    """Return whose policy it is."""
    query = "SELECT organization_id FROM policies WHERE id = $1"
    return cast("str | None", await db.value(query, policy_id))


def _policy(row: Row) -> StoredPolicy:
    models = row["allowed_models"]
    return StoredPolicy(
        id=row["id"],
        organization_id=row["organization_id"],
        target_id=row["target_id"],
        name=row["name"],
        terms=Terms(
            allowed_models=None if models is None else tuple(models),
            max_tokens_per_request=row["max_tokens_per_request"],
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
        ),
        created_at=row["created_at"],
        removed_at=row["removed_at"],
    )
