"""`mandate up`: the process table of a mesh on this machine, and its run from the lock on the home to the last stop.

How processes are kept is in `supervisor.py`, which services there are in `services.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import httpx

from mesh import audit_keys, certificates, probes, status
from mesh.clock import SystemClock
from mesh.embedded import postgres, valkey
from mesh.embedded.postgres import Postgres
from mesh.embedded.provision import SERVICES as SCHEMAS
from mesh.embedded.provision import addresses, provision
from mesh.embedded.valkey import Valkey
from mesh.home import Home, HomeError
from mesh.migrations import MigrationError, migrate
from mesh.ports import Layout
from mesh.services import SERVICES, named
from mesh.settings import Deployment, Runtime, Source, load, names_of, readings
from mesh.sockets import Claim, PortError, check, listening
from mesh.status import MeshStatus, Ports, ProcessStatus
from mesh.supervisor import Process, StartError, Supervisor
from mesh.tls import Certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.secret import Secret
    from mesh.services import Service
    from mesh.supervisor import Keeper

KEYS, KEYRINGS = ("identity", "gateway"), ("vault",)
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
SERVER_GRACE_SECONDS = 30.0
DRAIN_MARGIN_SECONDS = 5.0  # on top of the drain, for pools and logs to close
KILLED_SECONDS = 20.0  # until the processes of a killed supervisor are gone


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the process table follows from."""

    runtime: Runtime
    deployment: Deployment
    source: Source
    home: Home
    replicas: Mapping[str, int]

    @property
    def layout(self) -> Layout:
        """Return who listens where."""
        return Layout.of(self.runtime)

    @property
    def operator(self) -> Certificates:
        """Return the certificate that asks the services whether they are ready."""
        return Certificates(self.runtime.tls_dir or self.home.tls, "operator")

    @property
    def passwords(self) -> dict[str, Secret]:
        """Return the database password of each service's role."""
        return {name: self.home.secret(f"mandate_{name}") for name in SCHEMAS}

    @property
    def owner_dsn(self) -> Secret:
        """Return the database as the schemas' owner; no service is given it."""
        here = postgres.owner_dsn(self.layout.postgres, self.home.secret(postgres.SUPERUSER))
        return self.deployment.database_url or here

    @property
    def postgres(self) -> Postgres:
        """Return the embedded PostgreSQL of this home."""
        return Postgres.of(self.home, self.layout.postgres)

    @property
    def valkey(self) -> Valkey:
        """Return the embedded Valkey of this home."""
        return Valkey.of(self.home, self.layout.valkey)

    @property
    def embedded(self) -> set[str]:
        """Name the servers that are needed here and given by no setting, so that we bring them ourselves."""
        given = {"postgres": self.deployment.database_url, "valkey": self.runtime.redis_url}
        needed = {need for service in SERVICES if service.name in self.replicas for need in service.needs}
        return {name for name, url in given.items() if url is None and name in needed}


def replicas_of(asked: Mapping[str, int], only: tuple[str, ...] = ()) -> dict[str, int]:
    """Return how many of each service run: all, or those of `only` with what they need."""
    wanted = set(only or (service.name for service in SERVICES))
    for service in reversed(SERVICES):  # a service needs none that stands after it
        if service.name in wanted:
            wanted |= set(service.needs)
    return {service.name: asked.get(service.name, 1) for service in SERVICES if service.name in wanted}


async def up(replicas: Mapping[str, int], say: Callable[[str, str], None], *, inviting: bool) -> None:
    """Run the mesh until a signal; raise HomeError, PortError, SettingsError or StartError when it can't start.

    `inviting` says whether a new key may be shown once it is ready: to a person, never to a log.
    """
    source = Source.process()
    runtime, deployment = load(Runtime, source), load(Deployment, source)
    for service in SERVICES:
        if service.name in replicas and importlib.util.find_spec(service.package) is None:
            raise StartError(f"{service.package} is not installed here; `mandate up` runs the whole mesh")
    readings(source)  # what is wrong with a service's own setting is told before anything starts
    home = Home.open(runtime.home)
    plan = Plan(runtime, deployment, source, home, replicas)
    with home.lock(), await _sockets(plan) as descriptors:
        if runtime.tls_dir is None:
            certificates.ensure(home, SystemClock())
        ensure_keys(home)
        if deployment.database_url:
            await prepare_database(plan, say)
        plan.operator.client()  # a folder of certificates that lacks one is told before anything starts
        await _supervise(plan, descriptors, say, inviting=inviting)


def ensure_keys(home: Home) -> None:
    """Make what services find under $MANDATE_HOME/keys, where a new home, or one of an earlier version, lacks it."""
    for key in KEYS:
        home.ensure_key(key)
    for keyring in KEYRINGS:
        home.ensure_keyring(keyring)
    audit_keys.ensure(home, SystemClock().now())


async def migrate_once(say: Callable[[str, str], None]) -> None:
    """Bring the database to this version, with the embedded server started for it where none runs."""
    source = Source.process()
    runtime, deployment = load(Runtime, source), load(Deployment, source)
    home = Home.open(runtime.home)
    plan = Plan(runtime, deployment, source, home, {})
    if deployment.database_url or home.holder() is not None:
        await prepare_database(plan, say)
        return
    with home.lock():
        supervisor = Supervisor([_postgres_row(plan, say)], say)

        async def migrated() -> None:
            supervisor.stopping.set()

        await supervisor.run(migrated)


async def prepare_database(plan: Plan, say: Callable[[str, str], None]) -> None:
    """Make database, roles and schemas what this version needs; raise StartError that says why it can't."""
    try:
        provisioned = await provision(plan.owner_dsn, plan.passwords)
        for schema in SCHEMAS:
            for name in await migrate(provisioned.owner_dsn, schema):
                say("migrate", f"{schema} {name}")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, MigrationError) as error:
        raise StartError(f"the database could not be prepared: {error or type(error).__name__}") from error


def table(plan: Plan, descriptors: Mapping[str, int], say: Callable[[str, str], None]) -> list[Process]:
    """Return every process of the mesh."""
    rows: list[Process] = []
    if "postgres" in plan.embedded:
        rows.append(_postgres_row(plan, say))
    if "valkey" in plan.embedded:
        rows.append(_valkey_row(plan))
    for service in SERVICES:
        for replica in range(plan.replicas.get(service.name, 0)):
            rows.append(_service_row(plan, service, replica, descriptors))  # noqa: PERF401  # two levels read better so
    return rows


def greeting(mesh: MeshStatus) -> str:
    """Return what a person is told once everything is ready."""
    return "\n".join(
        ["ready", f"  portal   {mesh.portal_url}", f"  graphql  {mesh.graphql_url}", f"  gateway  {mesh.gateway_url}"]
    )


async def invitation(mesh: MeshStatus) -> str:
    """Make a new agent with credits and return a command that calls a model with its key, to be pasted as it is."""
    from mesh import story  # noqa: PLC0415  # brings an HTTP client, which a start does without

    running = {process.name for process in mesh.processes}
    if not {"gateway", "edge"} <= running:
        return ""
    try:
        api_key = await story.quick_key(mesh.graphql_url)
    except (story.StoryError, httpx.HTTPError) as error:
        return f"no key to try it with could be made: {error or type(error).__name__}"
    body = '{"model": "mock-model", "messages": [{"role": "user", "content": "Hello"}]}'
    return (
        f"try it:\ncurl {mesh.gateway_url}/v1/chat/completions -H 'Authorization: Bearer {api_key}' "
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


async def _supervise(
    plan: Plan, descriptors: Mapping[str, int], say: Callable[[str, str], None], *, inviting: bool
) -> None:
    def changed() -> None:
        try:
            status.write(plan.home, _status(plan, supervisor))
        except OSError as error:  # a full disk must not end what still runs
            say("", f"the state could not be written: {error.strerror}")

    async def started() -> None:
        mesh = _status(plan, supervisor)
        for line in greeting(mesh).splitlines():
            say("", line)
        for line in (await invitation(mesh)).splitlines() if inviting else ():
            say("", line)

    supervisor = Supervisor(table(plan, descriptors, say), say, changed)
    try:
        await supervisor.run(started)
    finally:
        status.clear(plan.home)


async def _sockets(plan: Plan) -> contextlib.AbstractContextManager[dict[str, int]]:
    """Listen on the shared HTTP ports once all ports are free; wait while processes of a killed supervisor end."""
    embedded = plan.embedded
    claims = [
        *plan.layout.claims(dict(plan.replicas), postgres="postgres" in embedded, valkey="valkey" in embedded),
        *_shared(plan).values(),
    ]
    deadline = asyncio.get_running_loop().time() + KILLED_SECONDS
    while True:
        try:
            check(claims)
        except PortError:
            if status.recorded(plan.home) is None or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return listening(_shared(plan))


def _shared(plan: Plan) -> dict[str, Claim]:
    shared: dict[str, Claim] = {}
    for service in SERVICES:
        port = plan.layout.http(service)
        if port is not None and service.name in plan.replicas:
            what = f"{service.name} HTTP, MANDATE_{service.name.upper()}_PORT"
            shared[service.name] = Claim(plan.runtime.host, port, what)
    return shared


def _postgres_row(plan: Plan, say: Callable[[str, str], None]) -> Process:
    server = plan.postgres

    async def prepare() -> None:
        try:
            await server.prepare()
        except HomeError as error:
            raise StartError(str(error)) from error

    return Process(
        name="postgres",
        argv=server.argv(),
        ready=server.ready,
        environment=BARE,
        account=server.account,
        prepare=prepare,
        settle=partial(prepare_database, plan, say),
        stop_signal=postgres.STOP_SIGNAL,
        death_signal=postgres.STOP_SIGNAL,
        grace_seconds=SERVER_GRACE_SECONDS,
    )


def _valkey_row(plan: Plan) -> Process:
    server = plan.valkey
    return Process(
        name="valkey",
        argv=server.argv(),
        ready=server.ready,
        environment=BARE,
        prepare=server.prepare,
        stop_signal=valkey.STOP_SIGNAL,
        death_signal=valkey.STOP_SIGNAL,
        grace_seconds=SERVER_GRACE_SECONDS,
    )


def _service_row(plan: Plan, service: Service, replica: int, descriptors: Mapping[str, int]) -> Process:
    host, grpc_port = plan.layout.near_host, plan.layout.grpc(service, replica)
    descriptor = descriptors.get(service.name)
    here = plan.embedded | plan.replicas.keys()
    return Process(
        name=service.name,
        replica=replica,
        argv=(sys.executable, "-P", "-m", "mesh.warm", service.package),  # -P: nothing is imported from where we stand
        ready=(
            probes.http_ready(host, plan.layout.metrics(service, replica))
            if grpc_port is None
            else probes.grpc_health(plan.operator, host, grpc_port)
        ),
        needs=tuple(need for need in service.needs if need in here),
        environment=_environment(plan, service, replica, descriptor),
        descriptors=() if descriptor is None else (descriptor,),
        warm=True,
        grace_seconds=plan.runtime.drain_seconds + DRAIN_MARGIN_SECONDS,
    )


def _environment(plan: Plan, service: Service, replica: int, descriptor: int | None) -> dict[str, str]:
    """Return what a service is told: a few basics, the settings it declares, and its place in this mesh."""
    environ = plan.source.environ
    found = {name: value for name, value in environ.items() if name in PASSED or name.startswith("PYTHON")}
    for name in sorted(_declared(service)):
        if value := plan.source.find(name):
            found[name] = value[0]
    found |= {
        "PYTHONUNBUFFERED": "1",
        "MANDATE_ENV_FILE": "",  # read once, here
        "MANDATE_HOME": str(plan.home.path),
        "MANDATE_REPLICA": str(replica),
    }
    if "valkey" in plan.embedded and "valkey" in service.needs:
        found["MANDATE_REDIS_URL"] = plan.valkey.url.reveal()
    if service.database:
        dsn = addresses(plan.owner_dsn, plan.passwords).services[service.name]
        found[f"MANDATE_{service.name.upper()}_DATABASE_URL"] = dsn.reveal()
    if descriptor is not None:
        found["MANDATE_HTTP_FD"] = str(descriptor)
    for peer in SERVICES:
        address = f"MANDATE_{peer.name.upper()}_ADDRESS"
        if peer.name in plan.replicas and address in names_of(Runtime):
            found[address] = plan.layout.addresses(peer, plan.replicas[peer.name])
    return found


def _declared(service: Service) -> set[str]:
    """Name the settings that a service is told: every process's and its own, of the cache only where it needs that."""
    module = importlib.import_module(f"{service.package}.settings")
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    found = names_of(Runtime).union(*(names_of(cls) for cls in own if is_dataclass(cls)))
    return found if "valkey" in service.needs else found - {"MANDATE_REDIS_URL", "MANDATE_REDIS_URL_FILE"}


def _status(plan: Plan, supervisor: Supervisor) -> MeshStatus:
    states = {keeper.state for keeper in supervisor.keepers}
    begun = all(keeper.was_ready.is_set() for keeper in supervisor.keepers)
    state = "stopping" if supervisor.stopping.is_set() else "ready" if states == {"ready"} else "degraded"
    host, layout = plan.runtime.public_host, plan.layout
    return MeshStatus(
        state=state if begun or state == "stopping" else "starting",
        pid=os.getpid(),
        home=str(plan.home.path),
        gateway_url=f"http://{host}:{layout.gateway_port}",
        graphql_url=f"http://{host}:{layout.edge_port}/graphql",
        portal_url=f"http://{host}:{layout.edge_port}/",
        processes=tuple(_process_status(plan, keeper) for keeper in supervisor.keepers),
    )


def _process_status(plan: Plan, keeper: Keeper) -> ProcessStatus:
    name, replica = keeper.process.name, keeper.process.replica
    ports = {"postgres": Ports(tcp=plan.layout.postgres), "valkey": Ports(tcp=plan.layout.valkey)}.get(name)
    if ports is None:
        service, layout = named(name), plan.layout
        ports = Ports(layout.grpc(service, replica), layout.metrics(service, replica), layout.http(service))
    return ProcessStatus(name, replica, keeper.pid, keeper.state, ports, keeper.restarts)
