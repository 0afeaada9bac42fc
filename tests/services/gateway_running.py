"""A running gateway for tests, over a real identity, vault and ledger; agents with keys and money to ask it as."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import aiohttp

from gateway_svc import service
from gateway_svc.assembly import Gateway, gateway
from gateway_svc.channels import channels
from gateway_svc.http.app import Endpoints
from gateway_svc.http.completions import Endpoint
from gateway_svc.http.health import Health
from gateway_svc.http.models import Models
from gateway_svc.settings import Settings
from identity_svc.parts import Parts, assembled
from identity_svc.service import registrations as identity_registrations
from identity_svc.service import resolver as identity_resolver
from ledger_svc.store import wallets
from mandate.gateway.v1 import policies_pb2, policies_pb2_grpc, routes_pb2_grpc
from mandate.identity.v1 import directory_pb2, directory_pb2_grpc, keys_pb2, keys_pb2_grpc, people_pb2, people_pb2_grpc
from mandate.ledger.v1 import wallets_pb2, wallets_pb2_grpc
from mandate.vault.v1 import credentials_pb2_grpc
from mesh import children, db
from mesh.caller import Caller, Person, acting
from mesh.client import call
from mesh.secret import Secret
from mesh.settings import Runtime
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.identity_running import Family, fresh, settings_of, signing, working
from vault_svc import root
from vault_svc import service as vault_service
from vault_svc.keyring import Keyring
from vault_svc.tenants import TenantKeys

POLLS_MAX = 500
ROOT_KEY = hashlib.sha256(b"root key of the vault's tests").digest()  # one database, one root key


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    async def of(cls, response: aiohttp.ClientResponse) -> Self:
        headers = {name.lower(): text for name, text in response.headers.items()}
        return cls(response.status, headers, await response.read())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def events(self) -> list[str]:
        return [part for part in self.body.decode().split("\n\n") if part]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Everything around a gateway, as the edge and the person behind it hold it."""

    house: House
    ledger: RunningLedger
    runtime: Runtime  # knows every address
    people: people_pb2_grpc.PeopleServiceAsyncStub
    directory: directory_pb2_grpc.DirectoryServiceAsyncStub
    keys: keys_pb2_grpc.KeyServiceAsyncStub
    credentials: credentials_pb2_grpc.CredentialServiceAsyncStub
    wallets: wallets_pb2_grpc.WalletServiceAsyncStub
    identity: Parts

    async def tenant(self, micros: int = 1_000_000_000) -> Tenant:
        """Sign somebody up, with an organization, an agent, a key and money."""
        email = f"{fresh('person')}@example.com"
        session = await call(
            self.people.SignUp, people_pb2.SignUpRequest(email=email, password="correct horse battery", name="Ada")
        )
        with acting(await self.person(session)):
            request = directory_pb2.CreateOrganizationRequest(name="Acme", request_id=fresh())
            organization = await call(self.directory.CreateOrganization, request)
        owner = await self.person(session)
        with acting(owner):
            workspace = await call(
                self.directory.CreateWorkspace,
                directory_pb2.CreateWorkspaceRequest(
                    organization_id=organization.id, name="Research", request_id=fresh()
                ),
            )
            group = await call(
                self.directory.CreateAgentGroup,
                directory_pb2.CreateAgentGroupRequest(workspace_id=workspace.id, name="Readers", request_id=fresh()),
            )
        tenant = Tenant(self, owner, Family(organization.id, workspace.id, group.id, ""), "", "")
        tenant = await tenant.another_agent()
        if micros:
            await wallets.post(self.ledger.database, organization.id, fresh(), "purchase", micros, "", "test", "")
        return tenant

    async def person(self, session: people_pb2.Session) -> Caller:
        answer = await call(self.people.Authenticate, people_pb2.AuthenticateRequest(access_token=session.access_token))
        return Caller("edge", Person(answer.person_id, session.id, {}, Secret(answer.mesh_token)))


@dataclass(frozen=True, slots=True)
class Tenant:
    """One organization, its owner, an agent and the agent's key."""

    mesh: Mesh
    owner: Caller
    family: Family
    key: str
    key_id: str

    async def another_agent(self) -> Tenant:
        with acting(self.owner):
            agent = await call(
                self.mesh.directory.CreateAgent,
                directory_pb2.CreateAgentRequest(
                    agent_group_id=self.family.agent_group_id, name="Reader", request_id=fresh()
                ),
            )
            issued = await call(
                self.mesh.keys.IssueApiKey,
                keys_pb2.IssueApiKeyRequest(agent_id=agent.id, name="laptop", request_id=fresh()),
            )
        family = dataclasses.replace(self.family, agent_id=agent.id)
        return dataclasses.replace(self, family=family, key=issued.plaintext, key_id=issued.api_key.id)

    async def usage(self) -> list[wallets_pb2.Usage]:
        """Return the organization's usage as its owner sees it."""
        with acting(self.owner):
            request = wallets_pb2.ListUsageRequest(organization_id=self.family.organization_id)
            return list((await call(self.mesh.wallets.ListUsage, request)).usage)

    async def wallet(self) -> tuple[int, int]:
        """Return settled and held micro-credits."""
        with acting(self.owner):
            request = wallets_pb2.GetWalletRequest(organization_id=self.family.organization_id)
            found = await call(self.mesh.wallets.GetWallet, request)
        return found.settled_micros, found.held_micros

    async def has_in_wallet(self, settled_micros: int) -> None:
        """Wait until so much is settled and nothing held."""
        for _ in range(POLLS_MAX):
            if await self.wallet() == (settled_micros, 0):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(await self.wallet())

    async def used(self, request_id: str) -> wallets_pb2.Usage:
        """Wait for the usage of one request."""
        for _ in range(POLLS_MAX):
            for row in await self.usage():
                if row.request_id == request_id:
                    return row
            await asyncio.sleep(0.02)
        raise AssertionError(request_id)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """One gateway process, in this process."""

    mesh: Mesh
    built: Gateway
    url: str
    session: aiohttp.ClientSession
    policies: policies_pb2_grpc.PolicyServiceAsyncStub
    routes: routes_pb2_grpc.RouteServiceAsyncStub
    bill_file: Path

    async def ask(
        self, tenant: Tenant | str, body: object, path: str = "/v1/chat/completions", **headers: str
    ) -> Answer:
        key = tenant if isinstance(tenant, str) else tenant.key
        sent = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(f"{self.url}{path}", data=io.BytesIO(data), headers=sent) as response:
            return await Answer.of(response)

    async def get(self, path: str, key: str = "") -> Answer:
        async with self.session.get(f"{self.url}{path}", headers={"authorization": f"Bearer {key}"}) as response:
            return await Answer.of(response)

    def bill(self) -> list[dict[str, Any]]:
        if not self.bill_file.exists():
            return []
        return [json.loads(line) for line in self.bill_file.read_text().splitlines()]

    async def limit(self, tenant: Tenant, target_id: str, **terms: Any) -> policies_pb2.Policy:
        request = policies_pb2.CreatePolicyRequest(target_id=target_id, name="limit", request_id=fresh(), **terms)
        with acting(tenant.owner):
            return await call(self.policies.CreatePolicy, request)


def endpoints_of_nothing() -> Endpoints:
    """Return what routes lead to where nobody asks for it."""
    nothing = cast("Any", None)
    return Endpoints(Endpoint(nothing, nothing, nothing, 1, ""), Models(nothing), Health(nothing))


@asynccontextmanager
async def mesh_running(house: House, ledger: RunningLedger) -> AsyncGenerator[Mesh]:
    """Serve identity and the vault beside the ledger."""
    async with AsyncExitStack() as stack:
        runtime = dataclasses.replace(house.runtime, ledger_address=ledger.address)
        parts = await stack.enter_async_context(assembled(runtime, settings_of(house)))
        await stack.enter_async_context(working(parts))
        serving = house.serving("identity", identity_registrations(parts), parts.keys, identity_resolver(parts))
        identity_address = await stack.enter_async_context(serving)
        stack.push_async_callback(parts.hub.close)
        await signing(parts)
        vault_db = await stack.enter_async_context(db.connect(house.dsn("vault"), service="vault"))
        tenant_keys = TenantKeys(vault_db, root.LocalRootKeys(Keyring("k1", {"k1": ROOT_KEY})))
        vault_address = await stack.enter_async_context(
            house.serving(
                "vault",
                vault_service.registrations(vault_db, tenant_keys, lease_ms=1_000),
                parts.keys,
                vault_service.resolver(vault_db),
            )
        )
        identity = await stack.enter_async_context(house.channel("identity", identity_address, as_service="edge"))
        edge = await stack.enter_async_context(house.channel("ledger", ledger.address, as_service="edge"))
        vault = await stack.enter_async_context(house.channel("vault", vault_address, as_service="edge"))
        yield Mesh(
            house,
            ledger,
            dataclasses.replace(runtime, identity_address=identity_address, vault_address=vault_address),
            people_pb2_grpc.PeopleServiceStub(identity),
            directory_pb2_grpc.DirectoryServiceStub(identity),
            keys_pb2_grpc.KeyServiceStub(identity),
            credentials_pb2_grpc.CredentialServiceStub(vault),
            wallets_pb2_grpc.WalletServiceStub(edge),
            parts,
        )


@asynccontextmanager
async def gateway_running(
    mesh: Mesh, folder: Path, *, is_ready: bool = True, **settings: Any
) -> AsyncGenerator[RunningGateway]:
    """Serve a gateway during the block; `is_ready` false for one that something is kept from."""
    bill_file = folder / f"{fresh('bill')}.jsonl"
    mesh.house.home.ensure_key("gateway")
    port = children.free_port()
    runtime = dataclasses.replace(mesh.runtime, gateway_port=port, **_runtime_of(settings))
    database_url = settings.pop("database_url", mesh.house.dsn("gateway"))
    own = Settings(database_url=database_url, mock_bill_file=bill_file, **settings)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(channels(runtime))
        built = await stack.enter_async_context(gateway(runtime, own, opened))
        await stack.enter_async_context(_looping(built.workers))
        stack.push_async_callback(built.drain)
        resolve = service.Resolver(built.parts.db, opened.identity)
        registrations = service.registrations(built.parts.db, resolve, opened.ledger)
        serving = mesh.house.serving("gateway", registrations, built.parts.keys, resolve)
        address = await stack.enter_async_context(serving)
        edge = await stack.enter_async_context(mesh.house.channel("gateway", address, as_service="edge"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        running = RunningGateway(
            mesh,
            built,
            f"http://127.0.0.1:{port}",
            session,
            policies_pb2_grpc.PolicyServiceStub(edge),
            routes_pb2_grpc.RouteServiceStub(edge),
            bill_file,
        )
        await _ready(running, 200 if is_ready else 503)
        yield running


def _runtime_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that are every service's out of the gateway's own."""
    names = {field.name for field in dataclasses.fields(Runtime)}
    return {name: settings.pop(name) for name in tuple(settings) if name in names}


@asynccontextmanager
async def _looping(workers: Sequence[Callable[[], Awaitable[None]]]) -> AsyncGenerator[None]:
    tasks = [asyncio.ensure_future(worker()) for worker in workers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _settled(answer: Answer, status: int) -> bool:
    """Say whether all but what is kept from a gateway has come up."""
    return status == 200 or list(answer.json["checks"].values()).count("down") == 1


async def _ready(running: RunningGateway, status: int) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                answer = await running.get("/health/ready")
                if answer.status == status and _settled(answer, status):
                    return
            await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider in a process of its own, with the bill that it keeps."""

    url: str
    bill_file: Path

    def bill(self) -> list[dict[str, Any]]:
        if not self.bill_file.exists():
            return []
        return [json.loads(line) for line in self.bill_file.read_text().splitlines()]

    def billed(self, request_id: str) -> dict[str, Any]:
        return next(line for line in self.bill() if line["request_id"] == request_id)


@asynccontextmanager
async def upstream_running(folder: Path) -> AsyncGenerator[Upstream]:
    """Run the fake provider during the block."""
    port, bill_file = children.free_port(), folder / f"{fresh('upstream')}.jsonl"
    program = Path(__file__).parent.parent / "fakes" / "upstream.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), "--port", str(port), "--bill", str(bill_file)
    )
    try:
        async with asyncio.timeout(20), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/health") as response:
                        await response.read()
                        break
                await asyncio.sleep(0.05)
        yield Upstream(f"http://127.0.0.1:{port}/v1", bill_file)
    finally:
        process.kill()
        await process.wait()
