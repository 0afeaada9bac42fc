"""The hierarchy below an organization: workspaces, agent groups, agents, and their API keys.

What stands in lists makes no further calls, so that the calls of an operation don't grow with the lists in it.
"""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Self

import strawberry

from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, field, key_of, mutation
from graphql_edge.schema.keys import ApiKey, api_keys
from graphql_edge.schema.pages import SIZE_DEFAULT, Connection
from graphql_edge.schema.reports import UsageReports
from graphql_edge.schema.scalars import time_of
from mandate.identity.v1 import directory_pb2 as pb


@strawberry.enum
class AgentState(Enum):
    """Whether an agent may act."""

    ACTIVE = pb.AGENT_STATE_ACTIVE
    SUSPENDED = pb.AGENT_STATE_SUSPENDED


@strawberry.type
class Workspace:
    """The first level below an organization."""

    id: strawberry.ID
    organization_id: strawberry.ID
    name: str
    create_time: datetime


@strawberry.type
class AgentGroup:
    """The second level below an organization."""

    id: strawberry.ID
    organization_id: strawberry.ID
    workspace_id: strawberry.ID
    name: str
    create_time: datetime


@strawberry.type
class AgentSummary:
    """A program that acts with keys of its own, as it stands in lists."""

    id: strawberry.ID
    organization_id: strawberry.ID
    workspace_id: strawberry.ID
    agent_group_id: strawberry.ID
    name: str
    state: AgentState
    create_time: datetime

    @classmethod
    def of(cls, message: pb.Agent) -> Self:
        """Read an agent from the contract's message."""
        return cls(
            id=strawberry.ID(message.id),
            organization_id=strawberry.ID(message.organization_id),
            workspace_id=strawberry.ID(message.workspace_id),
            agent_group_id=strawberry.ID(message.agent_group_id),
            name=message.name,
            state=AgentState(message.state),
            create_time=time_of(message.create_time),
        )


@strawberry.type
class Agent(AgentSummary):
    """A program that acts with keys of its own."""

    @field
    async def api_keys(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[ApiKey] | None:
        """Page through the agent's keys, newest first."""
        return await api_keys(info.context, self.id, first, after)

    @field
    def reports(self) -> UsageReports:
        """Report on the agent's usage."""
        return UsageReports(organization_id=self.organization_id, node_id=self.id)


def workspace_of(message: pb.Workspace) -> Workspace:
    """Read a workspace from the contract's message."""
    return Workspace(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        name=message.name,
        create_time=time_of(message.create_time),
    )


def agent_group_of(message: pb.AgentGroup) -> AgentGroup:
    """Read a group from the contract's message."""
    return AgentGroup(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        workspace_id=strawberry.ID(message.workspace_id),
        name=message.name,
        create_time=time_of(message.create_time),
    )


@strawberry.input
class CreateWorkspaceInput(Keyed):
    """A new workspace."""

    organization_id: strawberry.ID
    name: str


@strawberry.input
class CreateAgentGroupInput(Keyed):
    """A new group of agents."""

    workspace_id: strawberry.ID
    name: str


@strawberry.input
class CreateAgentInput(Keyed):
    """A new agent."""

    agent_group_id: strawberry.ID
    name: str


@strawberry.input
class AgentInput(Keyed):
    """The agent that is meant."""

    id: strawberry.ID


@strawberry.type
class WorkspacePayload(Payload):
    """The workspace."""

    workspace: Workspace | None = None


@strawberry.type
class AgentGroupPayload(Payload):
    """The group."""

    agent_group: AgentGroup | None = None


@strawberry.type
class AgentPayload(Payload):
    """The agent."""

    agent: Agent | None = None


@strawberry.type
class DirectoryQueries:
    """One object of the hierarchy."""

    @field
    async def agent(self, info: Info, id: strawberry.ID) -> Agent | None:
        """Return one agent."""
        return Agent.of(await info.context.call(info.context.stubs.directory.GetAgent, pb.GetAgentRequest(agent_id=id)))


@strawberry.type
class DirectoryMutations:
    """Build the hierarchy, and stop agents in it."""

    @mutation
    async def create_workspace(self, info: Info, input: CreateWorkspaceInput) -> WorkspacePayload | None:
        """Add a workspace to an organization."""
        request = pb.CreateWorkspaceRequest(
            organization_id=input.organization_id, name=input.name, request_id=key_of(input)
        )
        made = await info.context.call(info.context.stubs.directory.CreateWorkspace, request)
        return WorkspacePayload(workspace=workspace_of(made))

    @mutation
    async def create_agent_group(self, info: Info, input: CreateAgentGroupInput) -> AgentGroupPayload | None:
        """Add a group of agents to a workspace."""
        request = pb.CreateAgentGroupRequest(workspace_id=input.workspace_id, name=input.name, request_id=key_of(input))
        made = await info.context.call(info.context.stubs.directory.CreateAgentGroup, request)
        return AgentGroupPayload(agent_group=agent_group_of(made))

    @mutation
    async def create_agent(self, info: Info, input: CreateAgentInput) -> AgentPayload | None:
        """Add an agent to a group."""
        request = pb.CreateAgentRequest(agent_group_id=input.agent_group_id, name=input.name, request_id=key_of(input))
        return AgentPayload(agent=Agent.of(await info.context.call(info.context.stubs.directory.CreateAgent, request)))

    @mutation
    async def suspend_agent(self, info: Info, input: AgentInput) -> AgentPayload | None:
        """Stop an agent at every gateway within a second; its keys stay."""
        request = pb.SuspendAgentRequest(agent_id=input.id, request_id=key_of(input))
        return AgentPayload(agent=Agent.of(await info.context.call(info.context.stubs.directory.SuspendAgent, request)))

    @mutation
    async def resume_agent(self, info: Info, input: AgentInput) -> AgentPayload | None:
        """Let a suspended agent act again."""
        request = pb.ResumeAgentRequest(agent_id=input.id, request_id=key_of(input))
        return AgentPayload(agent=Agent.of(await info.context.call(info.context.stubs.directory.ResumeAgent, request)))
