"""SQL of what stands below an organization: workspaces, agent groups, agents."""

from __future__ import annotations

from datetime import datetime

from identity_svc.directory import Agent, AgentGroup, AgentState, Node, Workspace, parent_kind
from identity_svc.store import changes
from mesh import ids
from mesh.db import Connection, Database, Row
from mesh.ids import Kind
from mesh.paging import Page

ORGANIZATION_OF = {
    Kind.WORKSPACE: "SELECT organization_id FROM workspaces WHERE id = $1",
    Kind.AGENT_GROUP: "SELECT organization_id FROM agent_groups WHERE id = $1",
    Kind.AGENT: "SELECT organization_id FROM agents WHERE id = $1",
    Kind.API_KEY: "SELECT organization_id FROM api_keys WHERE id = $1",
}
GROUPS_OF = {
    Kind.ORGANIZATION: """
        SELECT id, organization_id, workspace_id, name, path_version, created_at FROM agent_groups
         WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3
        """,
    Kind.WORKSPACE: """
        SELECT id, organization_id, workspace_id, name, path_version, created_at FROM agent_groups
         WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT $3
        """,
}
AGENTS_OF = {
    Kind.ORGANIZATION: """
        SELECT id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at FROM agents
         WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3
        """,
    Kind.WORKSPACE: """
        SELECT id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at FROM agents
         WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT $3
        """,
    Kind.AGENT_GROUP: """
        SELECT id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at FROM agents
         WHERE agent_group_id = $1 AND id > $2 ORDER BY id LIMIT $3
        """,
}


async def organization_of(db: Database, object_id: str) -> str | None:
    """Return the organization that an object belongs to, None for an object that identity doesn't know."""
    kind = ids.kind_of(object_id)
    if kind is Kind.ORGANIZATION:
        return object_id  # whoever is granted a role in it proves that it exists
    query = ORGANIZATION_OF.get(kind) if kind is not None else None
    return await db.value(query, object_id) if query is not None else None


async def node(db: Database, node_id: str) -> Node | None:
    """Return where an object of the hierarchy stands."""
    row = await db.row("SELECT id, organization_id, path, path_version FROM nodes WHERE id = $1", node_id)
    return Node(row["id"], row["organization_id"], tuple(row["path"]), row["path_version"]) if row else None


async def add_workspace(tx: Connection, organization_id: str, name: str, at: datetime) -> Workspace | None:
    """Add a workspace; None when there is no such organization."""
    workspace_id = ids.new(Kind.WORKSPACE)
    revision = await changes.record(tx, organization_id, workspace_id, at)
    row = await tx.fetchrow(
        """
        INSERT INTO workspaces (id, organization_id, name, path_version, created_at)
        SELECT $1, id, $3, $4, $5 FROM organizations WHERE id = $2
        RETURNING id, organization_id, name, path_version, created_at
        """,
        workspace_id,
        organization_id,
        name,
        revision,
        at,
    )
    return _workspace(row) if row is not None else None


async def add_agent_group(tx: Connection, workspace_id: str, name: str, at: datetime) -> AgentGroup | None:
    """Add a group; None when there is no such workspace."""
    organization_id = await tx.fetchval(ORGANIZATION_OF[Kind.WORKSPACE], workspace_id)
    if organization_id is None:
        return None
    group_id = ids.new(Kind.AGENT_GROUP)
    revision = await changes.record(tx, organization_id, group_id, at)
    await tx.execute(
        """
        INSERT INTO agent_groups (id, organization_id, workspace_id, name, path_version, created_at)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        group_id,
        organization_id,
        workspace_id,
        name,
        revision,
        at,
    )
    return AgentGroup(group_id, organization_id, workspace_id, name, revision, at)


async def add_agent(tx: Connection, group_id: str, name: str, at: datetime) -> Agent | None:
    """Add an agent; None when there is no such group."""
    above = await tx.fetchrow("SELECT organization_id, workspace_id FROM agent_groups WHERE id = $1", group_id)
    if above is None:
        return None
    organization_id, workspace_id = above["organization_id"], above["workspace_id"]
    agent_id = ids.new(Kind.AGENT)
    revision = await changes.record(tx, organization_id, agent_id, at)
    await tx.execute(
        """
        INSERT INTO agents (id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at)
        VALUES ($1, $2, $3, $4, $5, 'active', $6, $7)
        """,
        agent_id,
        organization_id,
        workspace_id,
        group_id,
        name,
        revision,
        at,
    )
    return Agent(agent_id, organization_id, workspace_id, group_id, name, AgentState.ACTIVE, revision, at)


async def set_state(tx: Connection, agent_id: str, state: AgentState, at: datetime) -> Agent | None:
    """Suspend or resume an agent and tell watchers if that changed anything; None when there is no such agent."""
    changed = await tx.fetchval(
        "UPDATE agents SET state = $2 WHERE id = $1 AND state <> $2 RETURNING organization_id", agent_id, state
    )
    if changed is not None:
        await changes.record(tx, changed, agent_id, at)
    row = await tx.fetchrow(
        """
        SELECT id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at
          FROM agents
         WHERE id = $1
        """,
        agent_id,
    )
    return _agent(row) if row is not None else None


async def agent(db: Database, agent_id: str) -> Agent | None:
    """Return one agent."""
    row = await db.row(
        """
        SELECT id, organization_id, workspace_id, agent_group_id, name, state, path_version, created_at
          FROM agents
         WHERE id = $1
        """,
        agent_id,
    )
    return _agent(row) if row is not None else None


async def workspaces(db: Database, organization_id: str, page: Page) -> list[Workspace]:
    """Return a page of an organization's workspaces, and one more row where there is one."""
    rows = await db.rows(
        """
        SELECT id, organization_id, name, path_version, created_at
          FROM workspaces
         WHERE organization_id = $1 AND id > $2
         ORDER BY id
         LIMIT $3
        """,
        organization_id,
        page.after or "",
        page.size + 1,
    )
    return [_workspace(row) for row in rows]


async def agent_groups(db: Database, parent_id: str, page: Page) -> list[AgentGroup]:
    """Return a page of the groups below an organization or a workspace, and one more row where there is one."""
    query = GROUPS_OF[parent_kind(parent_id, tuple(GROUPS_OF))]
    rows = await db.rows(query, parent_id, page.after or "", page.size + 1)
    return [_agent_group(row) for row in rows]


async def agents(db: Database, parent_id: str, page: Page) -> list[Agent]:
    """Return a page of the agents below an organization, a workspace or a group, and one more where there is one."""
    query = AGENTS_OF[parent_kind(parent_id, tuple(AGENTS_OF))]
    rows = await db.rows(query, parent_id, page.after or "", page.size + 1)
    return [_agent(row) for row in rows]


def _workspace(row: Row) -> Workspace:
    return Workspace(row["id"], row["organization_id"], row["name"], row["path_version"], row["created_at"])


def _agent_group(row: Row) -> AgentGroup:
    return AgentGroup(
        row["id"], row["organization_id"], row["workspace_id"], row["name"], row["path_version"], row["created_at"]
    )


def _agent(row: Row) -> Agent:
    return Agent(
        row["id"],
        row["organization_id"],
        row["workspace_id"],
        row["agent_group_id"],
        row["name"],
        AgentState(row["state"]),
        row["path_version"],
        row["created_at"],
    )
