"""A mesh inside one test process: real PostgreSQL, Valkey, certificates, gRPC servers, on free ports of 127.0.0.1."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor import ServiceDescriptor

from mesh import certificates, children, client, ids, ports, tokens
from mesh.caller import Caller, Person
from mesh.chain.access import ScopeResolver
from mesh.clock import SystemClock
from mesh.embedded import postgres, valkey
from mesh.embedded.provision import SERVICES, Provisioned, provision
from mesh.home import Home
from mesh.migrations import migrate
from mesh.secret import Secret
from mesh.server import Registration, Server
from mesh.settings import Runtime
from mesh.tls import Certificates


class TestIssuer:
    """Issues mesh tokens and verifies them, as identity does, from a key made for the test."""

    __test__ = False

    def __init__(self) -> None:
        self._signer = tokens.Signer("test", ec.generate_private_key(ec.SECP256R1()))

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        return self._signer.private_key.public_key() if key_id == self._signer.key_id else None

    def person(self, **roles: str) -> Caller:
        """Return a caller at the edge: a new person with roles such as `org_…="owner"`."""
        person_id, session_id = ids.new(ids.Kind.PERSON), ids.new(ids.Kind.SESSION)
        token = self._signer.sign(person_id, session_id, roles, SystemClock().now())
        return Caller("edge", Person(person_id, session_id, roles, token))

    @property
    def jwk(self) -> str:
        """Return the public key as identity would publish it."""
        return tokens.public_jwk(self._signer.private_key.public_key())

    @property
    def key_id(self) -> str:
        """Return the name of the key."""
        return self._signer.key_id


@dataclass(frozen=True, slots=True)
class House:
    """What the servers of a test session stand on."""

    home: Home
    provisioned: Provisioned
    redis_url: Secret

    @property
    def owner_dsn(self) -> Secret:
        """Address of the database as the schemas' owner."""
        return self.provisioned.owner_dsn

    @property
    def runtime(self) -> Runtime:
        """Return settings whose gRPC ports are not yet anybody's."""
        base_port = children.free_port() - ports.GRPC["gateway"]
        return Runtime(
            home=self.home.path, base_port=base_port, redis_url=self.redis_url, drain_seconds=1, env_file=None
        )

    def dsn(self, service: str) -> Secret:
        """Return the address of the database as a service's runtime role."""
        return self.provisioned.services[service]

    def certificates(self, service: str) -> Certificates:
        """Return a service's certificate files."""
        return Certificates(self.home.tls, service)

    @asynccontextmanager
    async def serving(
        self, service: str, registrations: Sequence[Registration], keys: tokens.KeySource, resolve: ScopeResolver
    ) -> AsyncGenerator[str]:
        """Serve real mTLS gRPC on a free port and yield its address."""
        base_port = children.free_port() - ports.GRPC[service]
        runtime = dataclasses.replace(self.runtime, base_port=base_port)
        server = Server(service, runtime, registrations, keys, resolve)
        await server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            await server.stop()

    @asynccontextmanager
    async def channel(
        self, service: str, address: str, *, as_service: str, services: Iterable[ServiceDescriptor] = ()
    ) -> AsyncGenerator[grpc.aio.Channel]:
        """Open a channel with the certificate of `as_service`."""
        channel = client.connect(service, address, self.certificates(as_service), services)
        async with client.connected(channel):
            yield channel


@asynccontextmanager
async def house(directory: Path) -> AsyncGenerator[House]:
    """Start PostgreSQL and Valkey in `directory`, make certificates, and bring every schema up to date."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres.running(directory / "database"))
        cache = await stack.enter_async_context(valkey.running(directory / "cache"))
        home = Home.open(directory / "home")
        certificates.ensure(home, SystemClock())
        passwords = {service: home.secret(f"mandate_{service}") for service in SERVICES}
        provisioned = await provision(database.owner_dsn, passwords)
        for service in SERVICES:
            await migrate(provisioned.owner_dsn, service)
        yield House(home, provisioned, cache.url)
