"""A running identity for tests: its real parts and loops behind a real server, and somebody to call it as."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from identity_svc.parts import Parts, assembled
from identity_svc.service import registrations, resolver
from identity_svc.settings import Identity
from mandate.identity.v1 import directory_pb2 as directory
from mandate.identity.v1 import directory_pb2_grpc, keys_pb2_grpc, people_pb2_grpc
from mandate.identity.v1 import keys_pb2 as keys
from mandate.identity.v1 import people_pb2 as people
from mesh import ids
from mesh.caller import Caller, Person, acting
from mesh.client import call
from mesh.clock import Clock
from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.settings import Runtime
from mesh.testing import House
from tests.fakes.ledger import FakeLedger

PASSWORD = "correct horse battery"
SERVICES = tuple(
    service for module in (people, directory, keys) for service in module.DESCRIPTOR.services_by_name.values()
)

_numbers = itertools.count(1)


def fresh(prefix: str = "req") -> str:
    """Return a text that no test has used."""
    return f"{prefix}-{next(_numbers)}-{ids.new(ids.Kind.REQUEST)[-8:]}"


@dataclass(frozen=True, slots=True)
class Family:
    """An organization with one of everything below it."""

    organization_id: str
    workspace_id: str
    agent_group_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """Identity's stubs as the edge and as the gateway hold them."""

    parts: Parts
    ledger: FakeLedger
    people: people_pb2_grpc.PeopleServiceAsyncStub
    directory: directory_pb2_grpc.DirectoryServiceAsyncStub
    keys: keys_pb2_grpc.KeyServiceAsyncStub
    gateway_directory: directory_pb2_grpc.DirectoryServiceAsyncStub
    gateway_keys: keys_pb2_grpc.KeyServiceAsyncStub

    async def sign_up(self) -> people.Session:
        email = f"{fresh('person')}@example.com"
        return await call(self.people.SignUp, people.SignUpRequest(email=email, password=PASSWORD, name="Ada"))

    async def caller_of(self, session: people.Session) -> Caller:
        """Return the edge acting for a person with the roles that they have now."""
        request = people.AuthenticateRequest(access_token=session.access_token)
        answer = await call(self.people.Authenticate, request)
        token = Secret(answer.mesh_token)
        return Caller("edge", Person(answer.person_id, session.id, {}, token))

    async def organization(self, session: people.Session, name: str = "Acme") -> directory.Organization:
        with acting(await self.caller_of(session)):
            request = directory.CreateOrganizationRequest(name=name, request_id=fresh())
            return await call(self.directory.CreateOrganization, request)

    async def family(self, session: people.Session) -> Family:
        organization = await self.organization(session)
        with acting(await self.caller_of(session)):
            workspace = await call(
                self.directory.CreateWorkspace,
                directory.CreateWorkspaceRequest(organization_id=organization.id, name="Research", request_id=fresh()),
            )
            group = await call(
                self.directory.CreateAgentGroup,
                directory.CreateAgentGroupRequest(workspace_id=workspace.id, name="Readers", request_id=fresh()),
            )
            agent = await call(
                self.directory.CreateAgent,
                directory.CreateAgentRequest(agent_group_id=group.id, name="Reader", request_id=fresh()),
            )
        return Family(organization.id, workspace.id, group.id, agent.id)

    async def issue(self, session: people.Session, agent_id: str) -> keys.IssueApiKeyResponse:
        with acting(await self.caller_of(session)):
            request = keys.IssueApiKeyRequest(agent_id=agent_id, name="laptop", request_id=fresh())
            return await call(self.keys.IssueApiKey, request)


@asynccontextmanager
async def working(parts: Parts) -> AsyncGenerator[None]:
    """Run identity's loops during the block; one that dies fails the test."""
    tasks = [asyncio.ensure_future(worker()) for worker in parts.workers]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def signing(parts: Parts) -> None:
    """Wait until a key signs."""
    async with asyncio.timeout(10):
        while True:
            try:
                parts.keys.signer()
            except Unavailable:
                await asyncio.sleep(0.02)
            else:
                return


def settings_of(house: House) -> Identity:
    """Return settings with hashes as cheap as argon2 makes them."""
    sealing_key = house.home.ensure_key("identity")
    return Identity(
        database_url=house.dsn("identity"), sealing_key_file=sealing_key, argon2_memory_kib=64, argon2_passes=1
    )


def runtime_of(house: House, ledger: FakeLedger) -> Runtime:
    """Return the runtime of an identity that knows where the ledger is."""
    return dataclasses.replace(house.runtime, ledger_address=ledger.address)


@asynccontextmanager
async def identity_running(
    house: House,
    *,
    clock: Clock | None = None,
    ledger: FakeLedger | None = None,
    redis_url: Secret | None = None,
) -> AsyncGenerator[Running]:
    """Serve identity during the block, with a ledger that is there unless one is given."""
    async with AsyncExitStack() as stack:
        if ledger is None:
            ledger = FakeLedger()
            await stack.enter_async_context(ledger.serving(house))
        runtime = runtime_of(house, ledger)
        if redis_url is not None:
            runtime = dataclasses.replace(runtime, redis_url=redis_url)
        parts = await stack.enter_async_context(assembled(runtime, settings_of(house), clock))
        await stack.enter_async_context(working(parts))
        serving = house.serving("identity", registrations(parts), parts.keys, resolver(parts))
        address = await stack.enter_async_context(serving)
        stack.push_async_callback(parts.hub.close)
        edge = await stack.enter_async_context(house.channel("identity", address, as_service="edge", services=SERVICES))
        gateway = await stack.enter_async_context(
            house.channel("identity", address, as_service="gateway", services=SERVICES)
        )
        await signing(parts)
        yield Running(
            parts,
            ledger,
            people_pb2_grpc.PeopleServiceStub(edge),
            directory_pb2_grpc.DirectoryServiceStub(edge),
            keys_pb2_grpc.KeyServiceStub(edge),
            directory_pb2_grpc.DirectoryServiceStub(gateway),
            keys_pb2_grpc.KeyServiceStub(gateway),
        )


@asynccontextmanager
async def as_owner(house: House) -> AsyncGenerator[asyncpg.Connection]:
    """Lend a connection of the schemas' owner, for what no RPC can do."""
    connection = await asyncpg.connect(house.owner_dsn.reveal(), server_settings={"search_path": "identity"})
    try:
        yield connection
    finally:
        await connection.close()
