"""An organization of four agents in two workspaces, with a budget on each level, as an owner makes it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tests.journeys.running import Mesh, Tenant


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent, its key, and everything above it."""

    id: str
    key: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Agents 0 and 1 share a group, 2 has one beside it in their workspace, 3 a workspace of its own."""

    mesh: Mesh
    tenant: Tenant
    agents: tuple[Agent, ...]

    def budget(self, kind: str, target_id: str, limit_micros: int, **more: object) -> str:
        """Put a limit on a node; `kind` is the field that names it."""
        values = {
            "target": {kind: target_id},
            "period": "TOTAL",
            "limitMicros": str(limit_micros),
            "idempotencyKey": uuid.uuid4().hex,
            **more,
        }
        made = self.mesh.mutate("createBudget", "CreateBudgetInput", values, "budget { id }", self.tenant.token)
        return made["budget"]["id"]

    def limited(self, organization: int, workspace: int, group: int, agent: int) -> dict[str, int]:
        """Put a limit on the organization and on each level above agent 0; return them by their target."""
        tenant = self.tenant
        nodes = {
            "organizationId": (tenant.organization_id, organization),
            "workspaceId": (tenant.workspace_id, workspace),
            "agentGroupId": (tenant.agent_group_id, group),
            "agentId": (tenant.agent_id, agent),
        }
        for kind, (target_id, limit_micros) in nodes.items():
            self.budget(kind, target_id, limit_micros)
        return dict(nodes.values())


def family(mesh: Mesh, micros: int) -> Family:
    """Sign a person up who buys so much and makes four agents."""
    tenant = mesh.tenant(micros)
    organization, workspace, group = tenant.organization_id, tenant.workspace_id, tenant.agent_group_id
    group_2 = _made(mesh, tenant, "AgentGroup", workspaceId=workspace)
    workspace_2 = _made(mesh, tenant, "Workspace", organizationId=organization)
    group_3 = _made(mesh, tenant, "AgentGroup", workspaceId=workspace_2)
    first = Agent(tenant.agent_id, tenant.api_key, (organization, workspace, group, tenant.agent_id))
    paths = [
        (organization, workspace, group),
        (organization, workspace, group_2),
        (organization, workspace_2, group_3),
    ]
    return Family(mesh, tenant, (first, *(_agent(mesh, tenant, path) for path in paths)))


def _agent(mesh: Mesh, tenant: Tenant, path: tuple[str, ...]) -> Agent:
    agent = _made(mesh, tenant, "Agent", agentGroupId=path[-1])
    values = {"agentId": agent, "name": "K"}
    key = mesh.mutate("issueApiKey", "IssueApiKeyInput", values, "plaintext", tenant.token)["plaintext"]
    return Agent(agent, key, (*path, agent))


def _made(mesh: Mesh, tenant: Tenant, kind: str, **parent: str) -> str:
    name = kind[0].lower() + kind[1:]
    values = {"name": "Another", **parent}
    return mesh.mutate(f"create{kind}", f"Create{kind}Input", values, f"{name} {{ id }}", tenant.token)[name]["id"]
