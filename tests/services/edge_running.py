"""A running edge for tests, over a real identity, vault, ledger and policy service; people to ask it as."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway_svc import service as policy_service
from graphql_edge import serving, stubs
from graphql_edge.settings import EdgeSettings
from mandate.identity.v1 import directory_pb2
from mesh import children, client, db, sockets
from mesh.sockets import Claim
from mesh.testing import House
from mesh.verification import IdentityKeys
from tests.conftest import RunningLedger
from tests.services.gateway_running import mesh_running
from tests.services.identity_running import PASSWORD, fresh


@dataclass(frozen=True, slots=True)
class Asker:
    """One person at the edge."""

    edge: RunningEdge
    email: str
    token: str

    async def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """Execute a query and return its data; an error fails the test."""
        answer = await self.answer(query, **variables)
        assert "errors" not in answer, answer
        return answer["data"]

    async def answer(self, query: str, **variables: object) -> dict[str, Any]:
        """Execute a query and return the whole answer."""
        return (await self.edge.post(query, variables, authorization=f"Bearer {self.token}")).json()

    async def payload(self, name: str, fields: str, /, **values: object) -> dict[str, Any]:
        """Make a mutation and return its payload."""
        kind = f"{name[0].upper()}{name[1:]}Input" if name not in AGENT_INPUTS else "AgentInput"
        query = f"mutation($i: {kind}!) {{ {name}(input: $i) {{ {fields} userErrors {{ code field message }} }} }}"
        return (await self.ask(query, i=values))[name]

    async def made(self, name: str, fields: str, /, **values: object) -> dict[str, Any]:
        """Make a mutation that must not be refused."""
        payload = await self.payload(name, fields, **values)
        assert payload["userErrors"] == [], payload
        return payload

    async def organization(self, name: str = "Acme") -> str:
        """Create an organization and return its id."""
        made = await self.made("createOrganization", "organization { id }", name=name, idempotencyKey=fresh())
        return made["organization"]["id"]

    async def agent(self, organization_id: str) -> Agent:
        """Build the hierarchy down to an agent."""
        made = await self.made("createWorkspace", "workspace { id }", organizationId=organization_id, name="W")
        workspace = made["workspace"]["id"]
        made = await self.made("createAgentGroup", "agentGroup { id }", workspaceId=workspace, name="G")
        group = made["agentGroup"]["id"]
        made = await self.made("createAgent", "agent { id }", agentGroupId=group, name="A")
        return Agent(organization_id, workspace, group, made["agent"]["id"])


AGENT_INPUTS = {"suspendAgent", "resumeAgent"}


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent and all above it."""

    organization_id: str
    workspace_id: str
    group_id: str
    id: str


@dataclass(frozen=True, slots=True)
class RunningEdge:
    """The edge, as a stranger reaches it."""

    url: str
    client: httpx.AsyncClient
    addresses: Mapping[str, str] = field(default_factory=dict[str, str])

    async def post(self, query: str, variables: Mapping[str, object] | None = None, **headers: str) -> httpx.Response:
        """Execute one operation."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        self.client.cookies.clear()  # a test says itself which cookies it sends
        return await self.client.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables or {}}, headers=sent
        )

    async def person(self) -> Asker:
        """Sign a new person up."""
        email = f"{fresh('person')}@example.com"
        values = {"email": email, "password": PASSWORD, "name": "Ada"}
        query = "mutation($i: SignUpInput!) { signUp(input: $i) { accessToken userErrors { code field message } } }"
        answer = (await self.post(query, {"i": values})).json()
        return Asker(self, email, answer["data"]["signUp"]["accessToken"])


@asynccontextmanager
async def backed(house: House, ledger: RunningLedger) -> AsyncGenerator[dict[str, str]]:
    """Serve everything that the edge calls and yield the addresses."""
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(mesh_running(house, ledger))
        contracts = directory_pb2.DESCRIPTOR.services_by_name.values()
        identity = client.connect("identity", mesh.runtime.identity_address, house.certificates("gateway"), contracts)
        await stack.enter_async_context(client.connected(identity))
        database = await stack.enter_async_context(db.connect(house.dsn("gateway"), service="gateway"))
        resolve, keys = policy_service.Resolver(database, identity), IdentityKeys(identity)
        stack.push_async_callback(keys.close)
        told = await stack.enter_async_context(house.channel("ledger", ledger.address, as_service="gateway"))
        registrations = policy_service.registrations(database, resolve, told)
        gateway = await stack.enter_async_context(house.serving("gateway", registrations, keys, resolve))
        yield {
            "identity": mesh.runtime.identity_address,
            "vault": mesh.runtime.vault_address,
            "ledger": ledger.address,
            "gateway": gateway,
        }


@asynccontextmanager
async def edge_running(
    house: House, addresses: Mapping[str, str], *, environment: str = "development", **settings: Any
) -> AsyncGenerator[RunningEdge]:
    """Serve an edge during the block."""
    port = children.free_port()
    runtime = dataclasses.replace(house.runtime, edge_port=port, environment=environment)
    async with AsyncExitStack() as stack:
        over = await stack.enter_async_context(stubs.connect(addresses, house.certificates("edge")))
        edge = serving.build(runtime, EdgeSettings(**settings), over)
        await stack.enter_async_context(
            serving.listening(edge.app(), sockets.listen(Claim("127.0.0.1", port, "test")), 1)
        )
        asking = await stack.enter_async_context(httpx.AsyncClient(timeout=20))
        yield RunningEdge(f"http://127.0.0.1:{port}", asking, addresses)
