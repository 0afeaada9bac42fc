"""DirectoryService: the hierarchy organization → workspace → agent group → agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from identity_svc import directory, wire
from identity_svc.names import name_of
from identity_svc.store import hierarchy, organizations
from identity_svc.worker import Delivery
from mandate.identity.v1 import directory_pb2 as pb
from mandate.identity.v1 import directory_pb2_grpc as rpc
from mesh import caller, outbox
from mesh.audit import Fact
from mesh.chain import Context
from mesh.clock import Clock
from mesh.db import Connection, Database
from mesh.errors import NotFound
from mesh.idempotency import once
from mesh.paging import next_token, page_of

Answer = TypeVar("Answer", bound=Message)
Item = TypeVar("Item")
Placed = TypeVar("Placed", directory.Organization, directory.Workspace, directory.AgentGroup, directory.Agent)
ACTIONS = {directory.AgentState.SUSPENDED: "agent.suspended", directory.AgentState.ACTIVE: "agent.resumed"}


class DirectoryServicer(rpc.DirectoryServiceServicer):
    """Implements mandate.identity.v1.DirectoryService."""

    def __init__(self, db: Database, clock: Clock, delivery: Delivery, pepper: bytes) -> None:
        self._db = db
        self._clock = clock
        self._delivery = delivery
        self._pepper = pepper

    async def CreateOrganization(self, request: pb.CreateOrganizationRequest, context: Context) -> pb.Organization:
        name, owner_id = name_of(request.name), caller.current_person().id

        async def make(tx: Connection) -> pb.Organization:
            made = await organizations.add(tx, owner_id, name, self._clock.now())
            return wire.organization(await _told(tx, made))

        return await self._create(request, pb.Organization, make, _organization("organization.created"))

    async def GetOrganization(self, request: pb.GetOrganizationRequest, context: Context) -> pb.Organization:
        found = await organizations.find(self._db, request.organization_id)
        return wire.organization(_there(found, "organization_id"))

    async def UpdateOrganization(self, request: pb.UpdateOrganizationRequest, context: Context) -> pb.Organization:
        wanted = directory.renamed(tuple(request.update_mask.paths), request.organization.name)
        name = name_of(wanted, "organization.name")

        async def make(tx: Connection) -> pb.Organization:
            found = await organizations.rename(tx, request.organization.id, name, self._clock.now())
            return wire.organization(_there(found, "organization.id"))

        audited = _organization("organization.renamed")
        return (await once(self._db, request, pb.Organization, make, audited=audited, pepper=self._pepper)).answer

    async def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, context: Context
    ) -> pb.ListOrganizationsResponse:
        page = page_of(request.page_size, request.page_token)
        found = await organizations.of_person(self._db, caller.current_person().id, page)
        return pb.ListOrganizationsResponse(
            organizations=[wire.organization(item) for item in found[: page.size]],
            next_page_token=next_token(page, [item.id for item in found]),
        )

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, context: Context) -> pb.Workspace:
        name = name_of(request.name)

        async def make(tx: Connection) -> pb.Workspace:
            made = await hierarchy.add_workspace(tx, request.organization_id, name, self._clock.now())
            return wire.workspace(await _told(tx, _there(made, "organization_id")))

        return await self._create(
            request, pb.Workspace, make, lambda made: Fact(made.organization_id, "workspace.created", made.id, {})
        )

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, context: Context) -> pb.ListWorkspacesResponse:
        page = page_of(request.page_size, request.page_token)
        found = await hierarchy.workspaces(self._db, request.organization_id, page)
        return pb.ListWorkspacesResponse(
            workspaces=[wire.workspace(item) for item in found[: page.size]],
            next_page_token=next_token(page, [item.id for item in found]),
        )

    async def CreateAgentGroup(self, request: pb.CreateAgentGroupRequest, context: Context) -> pb.AgentGroup:
        name = name_of(request.name)

        async def make(tx: Connection) -> pb.AgentGroup:
            made = await hierarchy.add_agent_group(tx, request.workspace_id, name, self._clock.now())
            return wire.agent_group(await _told(tx, _there(made, "workspace_id")))

        def fact(made: pb.AgentGroup) -> Fact:
            detail = {"workspace_id": made.workspace_id}
            return Fact(made.organization_id, "agent_group.created", made.id, detail)

        return await self._create(request, pb.AgentGroup, make, fact)

    async def ListAgentGroups(self, request: pb.ListAgentGroupsRequest, context: Context) -> pb.ListAgentGroupsResponse:
        page = page_of(request.page_size, request.page_token)
        found = await hierarchy.agent_groups(self._db, request.parent_id, page)
        return pb.ListAgentGroupsResponse(
            agent_groups=[wire.agent_group(item) for item in found[: page.size]],
            next_page_token=next_token(page, [item.id for item in found]),
        )

    async def CreateAgent(self, request: pb.CreateAgentRequest, context: Context) -> pb.Agent:
        name = name_of(request.name)

        async def make(tx: Connection) -> pb.Agent:
            made = await hierarchy.add_agent(tx, request.agent_group_id, name, self._clock.now())
            return wire.agent(await _told(tx, _there(made, "agent_group_id")))

        def fact(made: pb.Agent) -> Fact:
            detail = {"agent_group_id": made.agent_group_id, "workspace_id": made.workspace_id}
            return Fact(made.organization_id, "agent.created", made.id, detail)

        return await self._create(request, pb.Agent, make, fact)

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.Agent:
        return wire.agent(_there(await hierarchy.agent(self._db, request.agent_id), "agent_id"))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        page = page_of(request.page_size, request.page_token)
        found = await hierarchy.agents(self._db, request.parent_id, page)
        return pb.ListAgentsResponse(
            agents=[wire.agent(item) for item in found[: page.size]],
            next_page_token=next_token(page, [item.id for item in found]),
        )

    async def SuspendAgent(self, request: pb.SuspendAgentRequest, context: Context) -> pb.Agent:
        return await self._set_state(request, directory.AgentState.SUSPENDED)

    async def ResumeAgent(self, request: pb.ResumeAgentRequest, context: Context) -> pb.Agent:
        return await self._set_state(request, directory.AgentState.ACTIVE)

    async def ResolveNode(self, request: pb.ResolveNodeRequest, context: Context) -> pb.Node:
        return wire.node(_there(await hierarchy.node(self._db, request.node_id), "node_id"))

    async def _set_state(
        self, request: pb.SuspendAgentRequest | pb.ResumeAgentRequest, state: directory.AgentState
    ) -> pb.Agent:
        async def make(tx: Connection) -> pb.Agent:
            found = await hierarchy.set_state(tx, request.agent_id, state, self._clock.now())
            return wire.agent(_there(found, "agent_id"))

        def fact(found: pb.Agent) -> Fact:
            return Fact(found.organization_id, ACTIONS[state], found.id, {})

        return (await once(self._db, request, pb.Agent, make, audited=fact, pepper=self._pepper)).answer

    async def _create(
        self,
        request: Message,
        kind: type[Answer],
        make: Callable[[Connection], Awaitable[Answer]],
        audited: Callable[[Answer], Fact],
    ) -> Answer:
        """Create once, then see that the ledger knows; without the ledger the object is there all the same."""
        made = await once(self._db, request, kind, make, audited=audited, pepper=self._pepper)
        await self._delivery.settle()
        return made.answer


def _organization(action: str) -> Callable[[pb.Organization], Fact]:
    return lambda made: Fact(made.id, action, made.id, {})


async def _told(tx: Connection, made: Placed) -> Placed:
    """Write the event that tells the ledger of a new node, in the transaction that makes it."""
    await outbox.write(tx, [wire.node_fact(directory.node_of(made))])
    return made


def _there(found: Item | None, field: str) -> Item:
    """Return what was found; an object of the wrong kind answers like one that does not exist."""
    if found is None:
        raise NotFound("NOT_FOUND", f"no such {field}", field=field)
    return found
