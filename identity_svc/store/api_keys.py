"""SQL of agents' API keys, and of where the agent behind a key or an access token stands."""

from __future__ import annotations

from datetime import datetime

from identity_svc.directory import AgentStanding, AgentState, ApiKey, Node, Unusable, Usable
from identity_svc.store import changes
from mesh import ids
from mesh.db import Connection, Database, Row
from mesh.paging import Page

NEWEST = f"{ids.Kind.API_KEY}_{'z' * ids.LENGTH}"  # above every id in any collation


async def add(tx: Connection, key: ApiKey, key_sha256: bytes) -> ApiKey | None:
    """Record a key by its digest, below its agent's organization; None when there is no such agent."""
    row = await tx.fetchrow(
        """
        INSERT INTO api_keys (id, organization_id, agent_id, name, prefix, key_sha256, created_at, expires_at)
        SELECT $1, organization_id, id, $3, $4, $5, $6, $7 FROM agents WHERE id = $2
        RETURNING id, organization_id, agent_id, name, prefix, created_at, expires_at, revoked_at
        """,
        key.id,
        key.agent_id,
        key.name,
        key.prefix,
        key_sha256,
        key.created_at,
        key.expires_at,
    )
    return _api_key(row) if row is not None else None


async def of_agent(db: Database, agent_id: str, page: Page) -> list[ApiKey]:
    """Return a page of an agent's keys, newest first, and one more row where there is one."""
    rows = await db.rows(
        """
        SELECT id, organization_id, agent_id, name, prefix, created_at, expires_at, revoked_at
          FROM api_keys
         WHERE agent_id = $1 AND id < $2
         ORDER BY id DESC
         LIMIT $3
        """,
        agent_id,
        page.after or NEWEST,
        page.size + 1,
    )
    return [_api_key(row) for row in rows]


async def revoke(tx: Connection, api_key_id: str, at: datetime) -> ApiKey | None:
    """End a key, telling those who watch; one that had ended keeps its time. None when there is no such key."""
    changed = await tx.fetchval(
        "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING organization_id",
        api_key_id,
        at,
    )
    if changed is not None:
        await changes.record(tx, changed, api_key_id, at)
    row = await tx.fetchrow(
        """
        SELECT id, organization_id, agent_id, name, prefix, created_at, expires_at, revoked_at
          FROM api_keys
         WHERE id = $1
        """,
        api_key_id,
    )
    return _api_key(row) if row is not None else None


async def resolve(db: Database, key_sha256: bytes, now: datetime) -> Usable | Unusable:
    """Say whose key a digest names and whether it may be used.

    One statement is one snapshot: the revision says exactly which changes the rest of the row has seen.
    """
    row = await db.row(
        """
        SELECT r.revision, k.id, k.expires_at, a.state, a.id AS agent_id, a.path_version,
               a.organization_id, a.workspace_id, a.agent_group_id
          FROM (SELECT coalesce(max(revision), 0) AS revision FROM changes) r
          LEFT JOIN (api_keys k JOIN agents a ON a.id = k.agent_id)
            ON k.key_sha256 = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)
        """,
        key_sha256,
        now,
    )
    if row is None:
        return Unusable(0)
    if row["id"] is None:
        return Unusable(row["revision"])
    return Usable(row["id"], row["expires_at"], AgentState(row["state"]), _agent_node(row), row["revision"])


async def resolve_agent(db: Database, agent_id: str) -> AgentStanding | Unusable:
    """Say where an agent stands; one statement is one snapshot here too."""
    row = await db.row(
        """
        SELECT r.revision, a.state, a.id AS agent_id, a.path_version,
               a.organization_id, a.workspace_id, a.agent_group_id
          FROM (SELECT coalesce(max(revision), 0) AS revision FROM changes) r
          LEFT JOIN agents a ON a.id = $1
        """,
        agent_id,
    )
    if row is None:
        return Unusable(0)
    if row["agent_id"] is None:
        return Unusable(row["revision"])
    return AgentStanding(AgentState(row["state"]), _agent_node(row), row["revision"])


def new(agent_id: str, name: str, prefix: str, at: datetime, expires_at: datetime | None) -> ApiKey:
    """Return a key that is not recorded yet; its organization is found when it is."""
    return ApiKey(ids.new(ids.Kind.API_KEY), "", agent_id, name, prefix, at, expires_at, None)


def _api_key(row: Row) -> ApiKey:
    return ApiKey(
        row["id"],
        row["organization_id"],
        row["agent_id"],
        row["name"],
        row["prefix"],
        row["created_at"],
        row["expires_at"],
        row["revoked_at"],
    )


def _agent_node(row: Row) -> Node:
    path = (row["organization_id"], row["workspace_id"], row["agent_group_id"], row["agent_id"])
    return Node(row["agent_id"], row["organization_id"], path, row["path_version"])
